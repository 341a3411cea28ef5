"""Batches of strangers, and of dtrap's own loaders without their data module: taken, or refused in one sentence."""

import warnings

import pytest
import quiet
import torch
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import FolderDataModule, Preprocessing, ShapesDataModule, UnlabeledImages
from dtrap.datamodules.all_way import AllWay
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.tuners import CLIPAdapter, TipAdapter
from layouts import make_folder
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

QUIET = quiet.QUIET | {"num_sanity_val_steps": 0}
pytestmark = pytest.mark.filterwarnings("ignore:.*(does not have many workers|in eval mode|LeafSpec|StageSwitch)")
CLASSES = ["cat", "dog", "horse"]
SAID = "expects images in \\[0, 1\\] normalized with mean \\(0.4815.*\\) and std \\(0.2686"


@pytest.fixture
def module(tiny_backbone):
    made = FewShotClassifier(tiny_backbone, CLIPAdapter())
    made.set_classes(CLASSES)
    made.start_task(0)
    return made


@pytest.fixture
def images(tiny_backbone):
    mean, std = (torch.tensor(values)[:, None, None] for values in (tiny_backbone.image_mean, tiny_backbone.image_std))
    return (torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - mean) / std


LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def loader(*batches):
    return DataLoader(list(batches), batch_size=None)


def trainer(**arguments):
    return Trainer(max_epochs=1, **QUIET | arguments)


def trained(module, train, **more):
    torch.manual_seed(0)
    trainer().fit(module, train, **more)
    return {name: value.clone() for name, value in module.tuner.adapter_state().items()}


class Once:
    """A loader of one batch, which it yields as it is; a DataLoader would convert arrays."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return 1

    def __iter__(self):
        yield self.batch


FORMS = {
    "torchvision": lambda images, labels: (images, labels),
    "a collated list": lambda images, labels: [images, labels],
    "torchgeo": lambda images, labels: {"image": images, "label": labels, "crs": ["EPSG:4326"], "bbox": object()},
    "mixed": lambda images, labels: {"image": images, "labels": labels.to(torch.int32)},
    "double precision": lambda images, labels: {"images": images.double(), "label": labels.to(torch.uint8)},
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_torchvision_and_torchgeo_train_like_ours(module, images, form):
    own = trained(module, loader({"images": images, "labels": LABELS}))
    other = trained(module, loader(FORMS[form](images, LABELS)))
    assert all(torch.equal(own[name], value) for name, value in other.items())


@pytest.mark.parametrize("form", FORMS)
def test_and_are_validated_tested_and_predicted(module, images, form):
    batch = FORMS[form](images, LABELS)
    expected = module(images)
    trainer().validate(module, loader(batch), verbose=False)
    trainer().test(module, loader(batch), verbose=False)
    assert torch.equal(torch.cat(module.test_predictions), expected.argmax(-1))
    for given in (batch, images, [images], {"image": images}, {"images": images, "labels": "unknown"}):
        assert torch.allclose(trainer().predict(module, loader(given))[0], expected.softmax(-1), atol=1e-6)


def test_a_tuner_that_reads_the_support_first_takes_them_too(tiny_backbone, images):
    keys = []
    for form in FORMS.values():
        module = FewShotClassifier(tiny_backbone, TipAdapter())
        module.set_classes(CLASSES)
        keys.append(trained(module, loader(form(images, LABELS)))["keys"])
    assert all(torch.equal(keys[0], other) for other in keys)


def test_torchvisions_image_folder(module, tmp_path, tiny_backbone):
    make_folder(tmp_path / "photos")
    transform = Compose([Resize((32, 32)), ToTensor(), Normalize(tiny_backbone.image_mean, tiny_backbone.image_std)])
    data = ImageFolder(tmp_path / "photos", transform)
    module.set_classes(data.classes)
    trainer().fit(module, DataLoader(data, batch_size=4))
    trainer().test(module, DataLoader(data, batch_size=4), verbose=False)
    assert int(module.confusion.compute().sum()) == len(data)


def test_a_data_module_that_normalizes_after_the_transfer(module, images):
    """As torchgeo's: the step gets other values than the loader gives."""

    class Geo(LightningDataModule):
        def train_dataloader(self):
            return loader({"image": images * 255, "label": LABELS})

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch | {"image": batch["image"] / 255}

    torch.manual_seed(0)
    trainer().fit(module, datamodule=Geo())
    state = {name: value.clone() for name, value in module.tuner.adapter_state().items()}
    own = trained(module, loader({"images": images, "labels": LABELS}))
    assert all(torch.equal(state[name], value) for name, value in own.items())


KEYS = "Expected a dictionary with `images` \\(or `image`\\) and `labels` \\(or `label`\\)"
REFUSED = {
    "other keys": (lambda i, y: {"pixel_values": i, "labels": y}, f"the keys pixel_values, labels. {KEYS}"),
    "no labels": (lambda i, y: {"images": i}, f"the keys images. {KEYS}"),
    "both": (lambda i, y: {"image": i, "images": i, "labels": y}, f"both images and image. {KEYS}"),
    "three": (lambda i, y: (i, y, y), f"a (tuple|list) of 3. {KEYS}"),
    "a tensor": (lambda i, y: i, f"a Tensor. {KEYS}"),
    "a dictionary of loaders": (lambda i, y: {"a": (i, y)}, f"the keys a. {KEYS}"),
    "text": (lambda i, y: "cat", f"a (str|list of 1). {KEYS}"),
    "another size": (lambda i, y: (i[..., :24], y), r"are \[6, 3, 32, 24\]; random/.* takes .*\[B, 3, 32, 32\]"),
    "gray": (lambda i, y: (i[:, :1], y), r"are \[6, 1, 32, 32\]; .* takes"),
    "channels last": (lambda i, y: (i.permute(0, 2, 3, 1), y), r"are \[6, 32, 32, 3\]; .* takes"),
    "one image": (lambda i, y: (i[0], y[:1]), r"are \[3, 32, 32\]; .* takes"),
    "no image": (lambda i, y: (i[:0], y[:0]), r"are \[0, 3, 32, 32\]; .* takes"),
    "bytes": (lambda i, y: ((i * 50).to(torch.uint8), y), "are uint8; .* takes floating-point images"),
    "no tensor": (lambda i, y: (i.tolist(), y), "are a list; .* takes"),
    "not a number": (
        lambda i, y: (i.index_fill(0, torch.tensor([4]), float("nan")), y),
        "1 of 6 images .* NaN or infinite, the first in row 4",
    ),
    "infinite": (lambda i, y: (i / torch.zeros(()), y), "6 of 6 images .* NaN or infinite"),
    "a label too high": (lambda i, y: (i, y + 1), "from 1 to 3, but there are 3 classes; expected 0 to 2"),
    "a label too low": (lambda i, y: (i, y - 1), "from -1 to 1, but there are 3 classes"),
    "one-hot": (lambda i, y: (i, torch.eye(3)[y]), r"are \[6, 3\], such as one-hot.*labels.argmax\(dim=1\)"),
    "columns": (lambda i, y: (i, y[:, None]), r"a int64 tensor \[6, 1\] for 6 images; expected whole numbers \[6\]"),
    "too few labels": (lambda i, y: (i, y[:5]), r"a int64 tensor \[5\] for 6 images"),
    "float labels": (lambda i, y: (i, y.float()), r"a float32 tensor \[6\]"),
    "bool labels": (lambda i, y: (i, y > 0), r"a bool tensor \[6\]"),
    "names": (lambda i, y: {"images": i, "labels": ["cat"] * 6}, "`labels` of the loader's batch is a list"),
    "ids": (lambda i, y: {"images": i, "labels": y, "sample_id": y[:2]}, "`sample_id` of the loader's batch"),
    "views": (lambda i, y: {"images": i, "labels": y, "view": y.float()}, "`view` of the loader's batch"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_everything_else_is_refused(module, images, case, stage):
    change, told = REFUSED[case]
    batch = change(images, LABELS)
    with pytest.raises(DtrapError, match=told) as stop:
        getattr(trainer(), stage)(
            module, [loader(batch)] if stage == "fit" and isinstance(batch, str) else loader(batch)
        )
    assert str(stop.value).count("\n") == 0


@pytest.mark.parametrize("case", ["other keys", "another size", "bytes", "not a number", "text"])
def test_and_in_predictions(module, images, case):
    change, told = REFUSED[case]
    with pytest.raises(DtrapError, match=told.replace("and `labels` \\(or `label`\\)", "")):
        trainer().predict(module, loader(change(images, LABELS)))


def test_later_batches_are_checked_too(module, images):
    with pytest.raises(DtrapError, match="from 1 to 3"):
        trainer().test(module, loader((images, LABELS), (images, LABELS + 1)), verbose=False)


def test_what_no_step_waited_for_is_refused_at_the_end_of_the_epoch(module, images):
    """On an accelerator; there a label without a class would otherwise stop the device."""
    module.incoming((images, LABELS), "test")
    batches = module._incoming["test"]
    kept = batches._check_later(images, LABELS)
    assert torch.equal(kept, LABELS)
    module.finish_incoming()
    assert batches._check_later(images, LABELS + 1).max() == 2
    batches._check_later(images, LABELS)
    with pytest.raises(DtrapError, match="not finite, or labels outside of 0 to 2"):
        module.finish_incoming()
    batches._check_later(images * float("nan"), LABELS)
    with pytest.raises(DtrapError, match="not finite, or labels"):
        module.finish_incoming()
    module.finish_incoming()


def test_one_line_states_what_the_backbone_expects(module, images, caplog):
    caplog.set_level("INFO", logger="lightning.pytorch.utilities.rank_zero")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            trainer().fit(module, loader((images, LABELS)), val_dataloaders=loader((images, LABELS)))
    lines = [record.getMessage() for record in caplog.records if "expects images" in record.getMessage()]
    assert len(lines) == 1
    assert "mean (0.4815, 0.4578, 0.4082) and std (0.2686, 0.2613, 0.2758); the values of the first batch" in lines[0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda i, b: b, f"{SAID}.*from 0.00 to 1.00, as of images that are not normalized"),
        (lambda i, b: b * 255, f"{SAID}.*from 0.00 to 255.00, as of images in 0 to 255: divide by 255"),
        (lambda i, b: 2 * i, f"{SAID}.*, which gives -1.79 to 2.15, but .*Check the normalization"),
    ],
)
def test_values_that_cannot_be_right_are_a_warning(module, images, tiny_backbone, change, told):
    mean, std = (torch.tensor(values)[:, None, None] for values in (tiny_backbone.image_mean, tiny_backbone.image_std))
    between = (images * std + mean).clamp(0, 1)
    between[0, 0, 0, 0], between[0, 0, 0, 1] = 0, 1
    with pytest.warns(UserWarning, match=told):
        trainer().fit(module, loader((change(images, between), LABELS)))


# Our own loaders without their data module

OTHER = Preprocessing(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
REMEDY = r"set `data.preprocessing = Preprocessing.of\(backbone\)` before the loaders are made"
DIFFERENT = rf"made with 32 x 32 pixels, mean \(0.5, .*but random/.* takes 32 x 32 pixels, mean \(0.4815.*{REMEDY}"


def shapes(preprocessing, **more):
    data = ShapesDataModule(way=3, shot=2, query=2, preprocessing=preprocessing, **more)
    data.setup()
    return data


def test_a_loader_of_another_normalization_is_refused(module):
    data = shapes(OTHER)
    module.set_classes(data.class_names)
    with pytest.raises(DtrapError, match=DIFFERENT):
        trainer().fit(module, data.train_dataloader())
    with pytest.raises(DtrapError, match=DIFFERENT):
        trainer().test(module, data.test_dataloader(), verbose=False)
    with pytest.raises(DtrapError, match=DIFFERENT):
        trainer().fit(module, shapes(OTHER, batch_size=4).train_dataloader())


def test_a_loader_of_another_size_is_refused(module):
    data = shapes(None)
    module.set_classes(data.class_names)
    with pytest.raises(DtrapError, match=rf"made with 48 x 48 pixels.*takes 32 x 32 pixels.*{REMEDY}"):
        trainer().fit(module, data.train_dataloader())


def test_the_validation_loader_is_compared_before_the_first_step(module, monkeypatch):
    steps = []
    monkeypatch.setattr(module.tuner, "classification_loss", lambda *a: steps.append(1))
    right, wrong = shapes(Preprocessing.of(module.backbone)), shapes(OTHER)
    module.set_classes(right.class_names)
    with pytest.raises(DtrapError, match=DIFFERENT):
        trainer().fit(module, right.train_dataloader(), val_dataloaders=wrong.test_dataloader())
    assert steps == []


def test_a_tuner_that_reads_the_support_first_is_stopped_before(tiny_backbone):
    module = FewShotClassifier(tiny_backbone, TipAdapter())
    data = shapes(OTHER)
    module.set_classes(data.class_names)
    with pytest.raises(DtrapError, match=DIFFERENT):
        trainer().fit(module, data.train_dataloader())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda loaders: CombinedLoader({"a": loaders}, "sequential"),
        lambda loaders: [loaders],
        lambda loaders: DataLoader(Subset(UnlabeledLike(loaders), range(2)), batch_size=None),
    ],
)
def test_a_wrapped_loader_is_compared(module, wrap):
    data = shapes(OTHER)
    module.set_classes(data.class_names)
    with pytest.raises(DtrapError, match=DIFFERENT):
        trainer().test(module, wrap(data.test_dataloader()), verbose=False)


class UnlabeledLike:
    """A data set that keeps one of our loaders."""

    def __init__(self, loaders):
        self.batches, self.dataset = list(loaders), loaders

    def __getitem__(self, index):
        return self.batches[index]


def test_streams_and_unlabeled_images_carry_it(module, tmp_path):
    root = make_folder(tmp_path / "photos")
    data = FolderDataModule(root, shot=1, preprocessing=OTHER, all_way=AllWay([1], 2, validation=True))
    data.setup()
    module.set_classes(data.class_names)
    for loaders in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        with pytest.raises(DtrapError, match=DIFFERENT):
            trainer().fit(module, loaders)
    unlabeled = UnlabeledImages(root, OTHER)
    for loaders in (unlabeled.batches(), DataLoader(unlabeled)):
        with pytest.raises(DtrapError, match=DIFFERENT):
            trainer().predict(module, loaders)


def test_given_by_hand_the_result_is_that_of_the_data_module(tiny_backbone):
    states = []
    for given in (True, False):
        data = ShapesDataModule(way=3, shot=2, query=2)
        module = FewShotClassifier(tiny_backbone, CLIPAdapter(), Objective(0.0, 0.0), start_seed=3)
        if given:
            data.preprocessing = Preprocessing.of(tiny_backbone)
            data.setup("fit")
            module.set_classes(data.class_names)
            trainer(callbacks=[StageSwitch()]).fit(module, data.train_dataloader())
        else:
            trainer(callbacks=[StageSwitch()]).fit(module, datamodule=data)
        states.append({name: value.clone() for name, value in module.tuner.adapter_state().items()})
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_given_after_the_images_were_decoded(tiny_backbone):
    data = ShapesDataModule(way=3, shot=2, query=2)
    assert data.support()["images"].shape[-1] == 48
    data.preprocessing = Preprocessing.of(tiny_backbone)
    assert data.support()["images"].shape[-1] == 32
    assert data.train_dataloader().preprocessing == data.preprocessing
    with pytest.raises(DtrapError, match=r"preprocessing is a NoneType; expected .*Preprocessing.of\(backbone\)"):
        data.preprocessing = None


def test_the_full_batch_of_our_own_loader_is_not_checked_again(module, monkeypatch):
    from dtrap.lightning_modules import incoming

    monkeypatch.setattr(incoming, "check_values", lambda *a: pytest.fail("values of our own loader were read"))
    data = shapes(Preprocessing.of(module.backbone))
    module.set_classes(data.class_names)
    trainer().fit(module, data.train_dataloader())
    trainer().fit(module, datamodule=ShapesDataModule(way=3, shot=2, query=2))


def test_a_data_set_with_an_attribute_of_that_name_is_no_loader_of_ours(module, images):
    data = TensorDataset(images, LABELS)
    data.preprocessing = "bicubic"
    trainer().fit(module, DataLoader(data, batch_size=3))
