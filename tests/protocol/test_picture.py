import io
import subprocess
import sys

import numpy as np
import pytest
from dtrap.drawing import save_png
from dtrap.errors import DtrapError
from dtrap.protocol.picture import episode_figure
from matplotlib.patches import Rectangle
from PIL import Image


def episode(names, shots, queries, predictions=None, views=2, size=8):
    generator = np.random.default_rng(0)
    support_labels = np.repeat(np.arange(len(names)), shots)
    query_labels = np.repeat(np.arange(len(names)), queries)
    return {
        "support_images": generator.random((views, len(support_labels), 3, size, size), dtype=np.float32),
        "support_labels": support_labels,
        "query_images": generator.random((len(query_labels), 3, size, size), dtype=np.float32),
        "query_labels": query_labels,
        "query_predictions": query_labels if predictions is None else np.asarray(predictions),
        "class_names": names,
        "title": "ISIC 5-way 1-shot · episode 3",
    }


def texts(figure):
    return [text.get_text().replace("\n", " ") for text in figure.axes[0].texts]


def frames(figure):
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


@pytest.mark.parametrize("shots", [1, 5])
def test_a_png_with_every_support_view_and_query(tmp_path, shots):
    names = ["Melanoma", "Melanocytic Nevus", "Basal Cell Carcinoma", "Dermatofibroma", "Vascular Lesion"]
    path = tmp_path / "pictures" / "episode_3.png"
    content = episode(names, shots, 15, views=5)
    save_png(path, episode_figure(**content), "")
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert image.width > 1000
    figure = episode_figure(**content)
    assert len(figure.axes[0].images) == 5 * 5 * min(shots, 3) + 75
    assert len(frames(figure)) == 75
    assert "75 of 75 queries right" in texts(figure)[1]


def test_wrong_predictions_differ_by_more_than_colour():
    figure = episode_figure(**episode(["cat", "dog"], 1, 2, predictions=[0, 1, 1, 1]))
    wrong = [text for text in figure.axes[0].texts if text.get_text() == "as: dog"]
    assert [text.get_fontweight() for text in wrong] == ["bold"]
    assert texts(figure).count("dog") == 3  # the class and its two right queries
    widths = [frame.get_linewidth() for frame in frames(figure)]
    assert widths[1] > max(widths[0], *widths[2:])
    assert len({frame.get_edgecolor() for frame in frames(figure)}) == 2
    assert {"1 of 2 right", "2 of 2 right"} <= set(texts(figure))


def test_pixels_are_those_of_the_images():
    content = episode(["cat", "dog"], 1, 1, views=1, size=2)
    content["query_images"][1] = np.arange(12).reshape(3, 2, 2) / 11 * 2 - 0.5
    shown = episode_figure(**content).axes[0].images[-1].get_array()
    expected = np.clip(content["query_images"][1], 0, 1).transpose(1, 2, 0)
    np.testing.assert_allclose(shown, expected, atol=1e-6)


def test_unequal_and_empty_classes_and_limits_are_told():
    figure = episode_figure(**episode(["cat", "dog", "owl"], [1, 0, 9], [0, 2, 40]))
    assert "0 of 2 right" not in texts(figure)
    found = " ".join(texts(figure))
    assert "3 of 9 shots" in found
    assert "40 of 40 right first 16 queries shown" in found


def test_support_only():
    figure = episode_figure(**episode(["cat", "dog"], [3, 1], [0, 0], predictions=[]))
    assert "no held-out images" in texts(figure)
    assert not any("right" in text for text in texts(figure))


def test_many_classes_are_cut_with_a_note():
    figure = episode_figure(**episode([f"class {number}" for number in range(38)], 1, 1, views=1))
    assert "the first 20 of 38 classes" in texts(figure)[1]


def test_long_names_stay_inside_their_cells_and_apart():
    stem = "Tomato___a_rather_long_name_of_a_disease_of_leaves"
    names = [f"{stem}_{end}_on_the_lower_side_of_older_leaves" for end in ("x", "y")] + ["W" * 50, "$x_{$"]
    content = episode(names, 1, 4, predictions=[0, 1, 2, 3] * 4)
    figure = episode_figure(**content)
    captions = {text.get_text() for text in figure.axes[0].texts if text.get_horizontalalignment() == "center"}
    assert len({caption.removeprefix("as: ") for caption in captions if caption.startswith("as: ")}) == 4
    assert all(len(line) <= 15 for caption in captions for line in caption.split("\n"))
    assert all(caption.count("\n") <= 1 for caption in captions)
    figure.savefig(io.BytesIO())


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "pictures").write_text("a file")
    with pytest.raises(DtrapError, match=r"a\.png: cannot write"):
        save_png(tmp_path / "pictures" / "a.png", episode_figure(**episode(["cat", "dog"], 1, 1)), "")


def test_pyplot_and_torch_stay_out():
    modules = ["identity", "picture", "progress", "run_folder", "statistics", "summary"]
    code = (
        "import sys\n"
        + "".join(f"import dtrap.protocol.{module}\n" for module in modules)
        + "print([name for name in ('torch', 'lightning', 'matplotlib.pyplot') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
