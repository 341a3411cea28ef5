"""`--protocol.relevance`: the picture of relevance maps, and that it changes nothing else."""

import numpy as np
from dtrap.protocol.relevance_picture import RelevanceColumns, first_of_each_class, relevance_figure
from PIL import Image
from run_folders import numbers
from small_backbones import open_clip_resnet


def columns(images, **maps):
    generator = np.random.default_rng(0)
    drawn = [generator.random((2, images, 2, 2)) for _ in range(4)]
    return [
        RelevanceColumns("cosines", True, maps.get("true", drawn[0]), drawn[1]),
        RelevanceColumns("gradients", False, drawn[2], drawn[3]),
    ]


def figure(labels, predictions, **maps):
    return relevance_figure(
        images=np.random.default_rng(0).random((len(labels), 3, 8, 8)),
        labels=labels,
        predictions=predictions,
        class_names=["cat", "sea_lion"],
        columns=columns(len(labels), **maps),
        title="ISIC, episode 3",
        what="2 of 30 queries",
    )


def texts(drawn):
    return [text.get_text() for text in drawn.axes[0].texts]


def test_maps_of_the_predicted_class_are_drawn_where_it_is_wrong():
    drawn = figure([0, 1], [0, 0])
    assert len(drawn.axes[0].images) == (1 + 2 * 2) + (1 + 2 * 4)
    assert {"right", "as: cat", "sea lion"} <= set(texts(drawn))
    widths = [patch.get_linewidth() for patch in drawn.axes[0].patches]
    assert widths[1] > widths[0]
    assert len(figure([0, 1], [0, 1]).axes[0].images) == 2 * (1 + 2 * 2)
    assert "predicted class, if wrong" not in texts(figure([0, 1], [0, 1]))


def test_a_row_has_one_color_scale_for_cosines_and_its_range_below_each_map():
    before, after = np.array([[[0.1, 0.2], [0.3, 0.4]]]), np.array([[[0.1, 0.8], [0.9, 0.5]]])
    drawn = figure([0], [0], true=np.stack([before, after]))
    assert {"0.10 to 0.40", "0.10 to 0.90"} <= set(texts(drawn))
    images = [np.asarray(image.get_array()) for image in drawn.axes[0].images]
    pixels, first, second = images[:3]
    gray = pixels.mean(axis=-1, keepdims=True) / 4
    # The lowest value has the same color before and after; the highest before is not the brightest of all.
    np.testing.assert_allclose((first - gray)[0, 0], (second - gray)[0, 0], atol=1e-6)
    assert (first - gray)[7, 7].sum() < 0.8 * (second - gray)[7, 0].sum()
    # Rows of patches are rows of the picture.
    assert (second - gray)[0, 7].sum() > (second - gray)[7, 7].sum() > (second - gray)[0, 0].sum()


def test_the_first_images_of_each_class_are_chosen():
    assert first_of_each_class([0, 0, 0, 1, 1, 1, 1], 4) == [0, 1, 3, 4]
    assert first_of_each_class([1, 0, 1], 1) == [1]
    assert first_of_each_class([2] * 40, 3) == [0, 1, 2]
    assert first_of_each_class([], 3) == []


def test_a_run_draws_it_and_gives_the_same_numbers(dtrap, words, tmp_path):
    relevance = [*words, "--protocol.relevance", 1, "--protocol.pictures", 1]
    status, _, err = dtrap(*relevance, "--protocol.episodes", 2, "--protocol.folder", "with")
    assert status == 0, err
    dtrap(*words, "--protocol.episodes", 2, "--protocol.folder", "without")
    assert numbers(tmp_path / "with") == numbers(tmp_path / "without")
    names = sorted(path.name for path in (tmp_path / "with" / "pictures").iterdir())
    assert names == [
        "episode_0000_baseline.png", "episode_0000_baseline_relevance.png", "episode_0000_svl-ra.png",
        "episode_0000_svl-ra_relevance.png",
    ]  # fmt: skip
    with Image.open(tmp_path / "with" / "pictures" / names[1]) as image:
        image.load()
        assert image.height > 1000  # a row for each of the 10 queries
    # Neutral: another number resumes.
    status, out, err = dtrap(*words, "--protocol.relevance", 3, "--protocol.folder", "with", "--protocol.episodes", 2)
    assert status == 0, err
    assert "Already finished" in out
    dtrap(*words, "--protocol.folder", "with", "--protocol.episodes", 1, "--protocol.overwrite", "true")
    assert not (tmp_path / "with" / "pictures").exists()


def test_of_a_folder_without_queries_support_images_are_drawn(dtrap, tiny_model, root, tmp_path):
    status, _, err = dtrap(
        "fit", "--config", "folder.yaml", "--data.root", root / "2750", *tiny_model, "--trainer.max_epochs", 1,
        "--protocol.relevance", 1, "--protocol.folder", "run", "--model.image_chunk", 3,
    )  # fmt: skip
    assert status == 0, err
    assert (tmp_path / "run" / "pictures" / "episode_0000_svl-ra_relevance.png").stat().st_size > 10_000


def test_a_backbone_without_blocks_is_refused_before_anything_is_written(dtrap, root, tmp_path):
    open_clip_resnet(tmp_path / "model")
    status, _, err = dtrap(
        "fit", "--config", "eurosat_1shot.yaml", "--config", "tuners/linear_head.yaml", "--data.root", root,
        "--data.query", 2,
        "--model.backbone.name", "model/small_rn.json", "--model.backbone.pretrained", "model/small_rn.safetensors",
        "--protocol.relevance", 1, "--protocol.folder", "run",
    )  # fmt: skip
    assert status == 2, err
    assert "transformer blocks" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "results.jsonl").exists()


def test_two_pictures_of_one_name_are_refused(dtrap, words, tmp_path):
    (tmp_path / "other.yaml").write_text("protocol: {method: a_relevance}\nmodel: {learning_rate: 0.1}\n")
    status, _, err = dtrap(
        *words[:-1], "other.yaml", "--protocol.method", "a", "--protocol.relevance", 1, "--protocol.folder", "run"
    )
    assert status == 2, err
    assert "of the method 'a' and the picture of 'a_relevance' would be one file" in err
