"""Where batches come from: a data module, other loaders after it, shuffled, endless or several validation loaders."""

import pytest
import quiet
import torch
from dtrap.callbacks import KeepBest, StageSwitch
from dtrap.datamodules import ShapesDataModule
from dtrap.datamodules.views import Preprocessing
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.tuners import LDC, CLIPAdapter, CoOp, LoRA, LPPlusPlus, StepSPT, TipAdapter, TipAdapterF
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, IterableDataset

QUIET = quiet.QUIET | {"num_sanity_val_steps": 0}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def data(tiny_backbone):
    return ShapesDataModule(shot=2, query=3, preprocessing=Preprocessing.of(tiny_backbone))


def loader(*batches):
    return DataLoader(list(batches), batch_size=None)


def predictions(trainer, module, **loaders):
    trainer.test(module, verbose=False, **loaders)
    return torch.cat(module.test_predictions)


def test_loaders_after_a_data_module_are_their_own(tiny_backbone, data):
    """Lightning keeps the data module of the earlier call; equal ids mean other images there."""
    module = FewShotClassifier(tiny_backbone, CLIPAdapter())
    trainer = Trainer(max_epochs=1, **QUIET)
    trainer.fit(module, datamodule=data)
    predictions(trainer, module, datamodule=data)
    other = data.query() | {"images": torch.randn(data.query()["images"].shape)}
    found = predictions(trainer, module, dataloaders=loader(other))
    assert torch.equal(found, predictions(Trainer(**QUIET), module, dataloaders=loader(other)))
    with torch.no_grad():
        assert torch.equal(found, module(other["images"]).argmax(-1))


def test_a_fit_on_other_loaders_prepares_the_tuner_from_them(tiny_backbone, data):
    module = FewShotClassifier(tiny_backbone, TipAdapter())
    trainer = Trainer(max_epochs=1, **QUIET)
    trainer.fit(module, datamodule=data)
    other = data.support() | {"images": torch.randn(data.support()["images"].shape)}
    trainer.fit(module, loader(other))
    with torch.no_grad():
        features = tiny_backbone.encode_image(other["images"]).unflatten(0, (5, -1)).mean(0)
    keys = features / features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(module.tuner.keys.sort(dim=0).values, keys.sort(dim=0).values)


def test_kept_features_belong_to_a_precision(tiny_backbone, data):
    module = FewShotClassifier(tiny_backbone, LPPlusPlus())
    module.set_classes(data.class_names)
    for precision in ("32-true", "64-true"):
        Trainer(max_epochs=1, precision=precision, **QUIET).fit(module, datamodule=data)
    assert module.tuner.weight.dtype == torch.float64
    with torch.no_grad():
        images = data.support()["images"].double()
        kept = module.encode_images(images)
    unit = kept / kept.norm(dim=1, keepdim=True)
    lipschitz = torch.linalg.eigvalsh(unit.T @ unit)[-1]
    assert float(module.tuner.weight_step) == pytest.approx(float(4 * len(unit) / lipschitz), rel=1e-12)


def test_kept_features_do_not_shift_what_is_random_later(tiny_backbone, data):
    module = FewShotClassifier(tiny_backbone, LoRA("text", dropout=0.5), Objective(0.0, 0.0))

    def fit():
        torch.manual_seed(0)
        Trainer(max_epochs=2, **QUIET).fit(module, datamodule=data)
        return {name: value.detach().clone() for name, value in module.tuner.adapter_state().items()}

    cold, warm = fit(), fit()
    assert all(torch.equal(cold[name], value) for name, value in warm.items())


def test_shuffled_rows_of_several_views_are_scored_one_by_one(tiny_backbone, data):
    module = FewShotClassifier(tiny_backbone, CLIPAdapter())
    module.set_classes(data.class_names)
    support = data.support()
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    batches = [{name: column[rows] for name, column in support.items()} for rows in order.split(8)]
    found = predictions(Trainer(**QUIET), module, dataloaders=loader(*batches))
    with torch.no_grad():
        assert torch.equal(found, module(support["images"][order]).argmax(-1))


def test_views_that_are_added_up_must_be_of_the_same_images(tiny_backbone, data):
    module = FewShotClassifier(tiny_backbone, StepSPT())
    module.set_classes(data.class_names)
    module.start_task(0)
    support = data.support()
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    batch = {name: column[order] for name, column in support.items()}
    with pytest.raises(DtrapError, match="not 5 views of the same images"):
        predictions(Trainer(**QUIET), module, dataloaders=loader(batch))


@pytest.mark.parametrize("make", [lambda: TipAdapterF(search_scale=(5.0, 5.0), search_step=(3, 3)), LDC])
def test_several_validation_loaders_are_one_validation_split(tiny_backbone, data, monkeypatch, make):
    tuner = make()
    seen = []
    monkeypatch.setattr(tuner, "choose", lambda features, texts, labels, scale: seen.append(labels.tolist()))
    monkeypatch.setattr(FewShotClassifier, "validation_step", lambda self, batch, batch_idx, dataloader_idx=0: None)
    query = data.query()
    half = [{name: column[rows] for name, column in query.items()} for rows in (slice(0, 7), slice(7, 15))]
    module = FewShotClassifier(tiny_backbone if not isinstance(tuner, LDC) else shipped(), tuner)
    images = data if not isinstance(tuner, LDC) else ShapesDataModule(shot=2, query=3)
    half = half if not isinstance(tuner, LDC) else [images.query()]
    module.set_classes(data.class_names)
    Trainer(max_epochs=1, **QUIET).fit(module, loader(images.support()), val_dataloaders=[loader(b) for b in half])
    assert seen == [query["labels"].tolist()]


def shipped():
    from dtrap.lightning_modules.backbones import OpenCLIP

    return OpenCLIP("tiny_clip.json", "tiny_clip.safetensors")


def test_nothing_to_train_ends_well_with_a_least_number_of_epochs(tiny_backbone, data):
    module = FewShotClassifier(tiny_backbone, TipAdapter())
    Trainer(max_epochs=3, min_epochs=2, callbacks=[StageSwitch()], **QUIET).fit(module, datamodule=data)
    assert module.tuner.keys.shape == (10, tiny_backbone.feature_dim)


class Endless(IterableDataset):
    def __init__(self, batch):
        self.batch, self.given = batch, 0

    def __iter__(self):
        while True:
            self.given += 1
            yield self.batch


def test_an_endless_loader_is_refused_or_looked_at_up_to_its_limit(tiny_backbone, data):
    module = FewShotClassifier(tiny_backbone, TipAdapterF())
    module.set_classes(data.class_names)
    endless = Endless(data.support())
    with pytest.raises(DtrapError, match="the loader has no length"):
        Trainer(max_steps=2, **QUIET).fit(module, DataLoader(endless, batch_size=None))
    module.set_classes(data.class_names)
    trainer = Trainer(max_epochs=1, limit_train_batches=2, **QUIET)
    trainer.fit(module, DataLoader(endless, batch_size=None))
    assert trainer.global_step == 2
    assert endless.given < 12


def test_a_second_tuner_on_the_backbone_is_noticed_by_the_first(tiny_backbone, data):
    first = FewShotClassifier(tiny_backbone, CLIPAdapter())
    FewShotClassifier(tiny_backbone, LoRA())
    with pytest.raises(DtrapError, match="LoRA adapters of another tuner than clip-adapter"):
        Trainer(max_epochs=1, **QUIET).fit(first, datamodule=data)


def test_settings_that_cannot_work_are_refused(tiny_backbone, data):
    with pytest.raises(DtrapError, match="learning_rate is 0"):
        FewShotClassifier(tiny_backbone, CLIPAdapter(), learning_rate=0.0)
    module = FewShotClassifier(tiny_backbone, StepSPT())
    with pytest.raises(DtrapError, match=r"max_steps is 12.*trainer\.max_epochs"):
        Trainer(max_steps=12, **QUIET).fit(module, datamodule=data)
    with pytest.warns(UserWarning, match="coop learns its own prompt"):
        FewShotClassifier(tiny_backbone, CoOp(4), template="an x-ray of {}.")


def test_a_mistake_in_the_trainer_is_one_message(dtrap):
    words = ["--config", "demo.yaml", "--config", "tuners/stepspt.yaml", "--trainer.gradient_clip_val", 1]
    status, _, err = dtrap("fit", *words, "--protocol.episodes", 1)
    assert status == 2
    assert "dtrap: trainer: " in err
    assert "Change that option of the trainer" in err


def test_the_best_validation_survives_a_resumed_run(tiny_backbone, data, tmp_path, monkeypatch):
    module = FewShotClassifier(tiny_backbone, CLIPAdapter())
    module.set_classes(data.class_names)
    loaders = loader(data.support()), loader(data.query())

    def fit(accuracies, **more):
        values = iter(accuracies)
        monkeypatch.setattr(module, "_accuracy", lambda: torch.tensor(next(values)))
        keep = KeepBest()
        trainer = Trainer(callbacks=[keep], max_epochs=3, **QUIET)
        return trainer, keep, lambda: trainer.fit(module, *loaders, **more)

    class Stop(Exception):
        pass

    trainer, keep, run = fit([10.0, 90.0, 20.0])
    original = trainer.fit_loop.on_advance_end

    def save_and_stop():
        original()
        if trainer.current_epoch == 2:
            trainer.save_checkpoint(tmp_path / "middle.ckpt")
            raise Stop

    monkeypatch.setattr(trainer.fit_loop, "on_advance_end", save_and_stop)
    with pytest.raises(Stop):
        run()
    best = {name: value.clone() for name, value in keep._state.items()}
    _, keep, run = fit([30.0], ckpt_path=tmp_path / "middle.ckpt", weights_only=True)
    run()
    assert keep.best == 1
    assert keep.accuracies == [10.0, 90.0, 30.0]
    assert all(torch.equal(best[name], value) for name, value in module.tuner.adapter_state().items())


def test_modules_of_one_backbone_and_tuner_share_what_is_frozen(tiny_backbone, data, monkeypatch):
    encoded = []
    original = type(tiny_backbone).encode_image
    monkeypatch.setattr(
        type(tiny_backbone), "encode_image", lambda self, images: encoded.append(len(images)) or original(self, images)
    )
    tuner = CLIPAdapter()
    first = FewShotClassifier(tiny_backbone, tuner)
    second = FewShotClassifier(tiny_backbone, tuner, Objective(0.0, 0.0))
    second.share_frozen(first)
    for module in (first, second):
        trainer = Trainer(max_epochs=2, callbacks=[StageSwitch()], **QUIET)
        with module.zero_shot():
            trainer.test(module, datamodule=data, verbose=False)
        trainer.fit(module, datamodule=data)
        trainer.test(module, datamodule=data, verbose=False)
    assert encoded == [15, 50]


def test_a_data_module_can_be_printed(data):
    assert str(data).startswith("ShapesDataModule: Shapes (x-ray)")
