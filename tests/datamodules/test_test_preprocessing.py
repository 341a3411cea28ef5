"""The backbone's own evaluation transform in the all-way protocol, compared with open_clip's and torchvision's."""

import json
from functools import cache

import pytest
import torch
from coop_layouts import COOP_MAKERS
from dtrap.datamodules import (
    ChestXDataModule,
    CropDiseaseDataModule,
    EuroSATDataModule,
    FewShotDataModule,
    FolderDataModule,
    ImageIndex,
    ISICDataModule,
    Preprocessing,
    UnlabeledImages,
    coop,
)
from dtrap.datamodules.all_way import AllWay
from dtrap.datamodules.images import open_image
from dtrap.errors import DtrapError
from dtrap.lightning_modules.backbones import OpenCLIP, Transformers
from dtrap.lightning_modules.backbones import open_clip as module
from layouts import make_folder, picture
from open_clip.transform import image_transform
from small_backbones import clip_config, save_transformers, siglip_config
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from transformers import CLIPModel, SiglipModel

SIZES = [(40, 30), (30, 41), (32, 32), (33, 100), (8, 7), (32, 50)]


class Stated:
    """What a backbone states of its images."""

    image_size, image_mean, image_std = 32, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)

    def __init__(self, resize="shortest", interpolation="bicubic"):
        self.image_resize, self.image_interpolation = resize, interpolation


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_every_pixel_is_that_of_open_clip(size, mode, interpolation):
    theirs = image_transform(
        32, False, Stated.image_mean, Stated.image_std, resize_mode=mode, interpolation=interpolation
    )
    ours = Preprocessing.of(Stated(mode, interpolation)).using("backbone")
    image = picture(1, size)
    torch.testing.assert_close(ours.to_tensor(image), theirs(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_every_pixel_of_clip_is_that_of_torchvision(size):
    theirs = transforms.Compose(
        [
            transforms.Resize(32, InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(Stated.image_mean, Stated.image_std),
        ]
    )
    image = picture(2, size)
    ours = Preprocessing.of(Stated()).using("backbone").to_tensor(image)
    torch.testing.assert_close(ours, theirs(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "tag", "expected"),
    [
        ("ViT-B-16-quickgelu", "openai", ("shortest", "bicubic")),
        ("ViT-B-16-SigLIP2", "webli", ("squash", "bicubic")),
        ("PE-Core-B-16", "meta", ("squash", "bilinear")),
    ],
)
def test_published_weights_have_the_transform_that_open_clip_states(name, tag, expected):
    architecture = module.find_architecture(name)
    for weights in (module.Weights(tag, None, architecture.tags[tag]), module.Weights("mine", None, None)):
        found = module._evaluation_transform(architecture, weights)
        assert (found["resize_mode"], found["interpolation"]) == expected


def test_where_published_weights_differ_a_file_gets_open_clips_default():
    found = module._evaluation_transform(module.find_architecture("ViT-H-14"), module.Weights("mine", None, None))
    assert (found["resize_mode"], found["interpolation"]) == ("shortest", "bicubic")


def test_a_json_config_states_its_own(tiny_clip_files, tmp_path):
    config, checkpoint = tiny_clip_files
    content = {"model_cfg": json.loads(config.read_text())}
    for stated in ({}, {"resize_mode": "squash", "interpolation": "bilinear"}):
        (tmp_path / "own.json").write_text(json.dumps(content | {"preprocess_cfg": stated}))
        backbone = OpenCLIP(str(tmp_path / "own.json"), str(checkpoint))
        expected = tuple(stated.values()) or ("shortest", "bicubic")
        assert Preprocessing.of(backbone).evaluation == expected


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_transformers_state_theirs_in_the_processor(tmp_path, family):
    config, model = {"clip": (clip_config(), CLIPModel), "siglip": (siglip_config(), SiglipModel)}[family]
    save_transformers(tmp_path, config, model)
    default = ("shortest", "bicubic") if family == "clip" else ("squash", "bicubic")
    assert Preprocessing.of(Transformers(str(tmp_path))).evaluation == default
    stated = {"do_center_crop": False, "resample": 2, "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    assert Preprocessing.of(Transformers(str(tmp_path))).evaluation == ("squash", "bilinear")


def test_a_backbone_of_a_stranger_is_evaluated_as_clip():
    class Plain:
        image_size, image_mean, image_std = 32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    assert Preprocessing.of(Plain()).evaluation == ("shortest", "bicubic")
    with pytest.raises(DtrapError, match="resize_mode is 'crop'; expected"):
        Preprocessing.of(Stated("crop"))


OURS = Preprocessing.of(Stated())


def all_way(root, kind=FolderDataModule, **options):
    settings = {"seeds": [1], "batch_size": 3, "validation": True} | options.pop("settings", {})
    return kind(root, shot=2, preprocessing=OURS, all_way=AllWay(**settings), **options)


@cache
def expected(path, transform):
    return OURS.using(transform).to_tensor(open_image(path))


def rows(data, batches):
    """Pairs of an image of the batches and its path."""
    for batch in batches:
        for position, image in zip(batch["sample_id"].tolist(), batch["images"], strict=True):
            yield str(data.path_of(position)), image


@pytest.mark.parametrize("option", [None, "squash", "backbone"])
def test_test_validation_and_cache_images_follow_the_option(tmp_path, option):
    data = all_way(make_folder(tmp_path / "photos"), test_preprocessing=option)
    for batches in (data.test_dataloader(), data.val_dataloader(), data.support_batches()):
        seen = list(rows(data, batches))
        assert len(seen) > 6
        assert all(torch.equal(image, expected(path, option or "backbone")) for path, image in seen)


def test_plain_training_images_are_those_of_the_cache(tmp_path):
    data = all_way(make_folder(tmp_path / "photos"), settings={"augmentation": "plain"})
    assert all(torch.equal(image, expected(path, "backbone")) for path, image in rows(data, data.train_dataloader()))


def test_training_crops_stay_as_they_are(tmp_path):
    root = make_folder(tmp_path / "photos")
    crops = [next(iter(all_way(root, test_preprocessing=o).train_dataloader())) for o in ("squash", "backbone")]
    assert torch.equal(crops[0]["images"], crops[1]["images"])


def test_episodes_are_squashed_unless_told(tmp_path):
    root = make_folder(tmp_path / "photos")
    for option in (None, "squash", "backbone"):
        data = FolderDataModule(root, way=2, shot=2, query=1, views=1, preprocessing=OURS, test_preprocessing=option)
        seen = [*rows(data, [data.support()]), *rows(data, data.test_dataloader())]
        assert all(torch.equal(image, expected(path, option or "squash")) for path, image in seen)
    one_task = FolderDataModule(root, views=1, preprocessing=OURS)
    assert all(torch.equal(image, expected(path, "squash")) for path, image in rows(one_task, [one_task.support()]))


class Own(FewShotDataModule):
    def scan(self):
        return ImageIndex(["a.png"], [0], ["a"])


@pytest.mark.parametrize("kind", [*(getattr(coop, name) for name in sorted(coop.__all__)), FolderDataModule, Own])
def test_the_eleven_sets_and_own_images_take_the_backbones_transform(kind, tmp_path):
    assert all_way(tmp_path, kind).preprocessing == OURS.using("backbone")
    if kind is not FolderDataModule:
        assert kind(tmp_path, shot=2, preprocessing=OURS).preprocessing == OURS


@pytest.mark.parametrize("kind", [ISICDataModule, EuroSATDataModule, CropDiseaseDataModule, ChestXDataModule])
def test_the_four_sets_of_the_paper_keep_its_squash(kind, tmp_path):
    assert all_way(tmp_path, kind).preprocessing == OURS
    assert all_way(tmp_path, kind, test_preprocessing="backbone").preprocessing == OURS.using("backbone")


def test_the_option_is_checked(tmp_path):
    with pytest.raises(DtrapError, match="test_preprocessing is 'crop'; expected one of squash, backbone"):
        FolderDataModule(tmp_path, test_preprocessing="crop")


def test_unlabeled_images_follow_their_preprocessing(tmp_path):
    root = make_folder(tmp_path / "photos")
    for transform in ("squash", "backbone"):
        images = UnlabeledImages(root, OURS.using(transform))
        assert torch.equal(images[3]["images"], expected(images.paths[3], transform))


def test_every_set_is_covered():
    assert len(COOP_MAKERS) == 11
