"""A fit that is resumed from a Lightning checkpoint ends like the fit that was not interrupted."""

import pytest
import torch
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import ShapesDataModule
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.objective import PlainRows
from dtrap.lightning_modules.tuners import (
    FWT,
    LDC,
    CLIPAdapter,
    CoOp,
    FullFineTuning,
    LinearHead,
    LoRA,
    LPPlusPlus,
    MaPLe,
    StepSPT,
    TipAdapterF,
)
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from quiet import QUIET
from small_backbones import open_clip_vit

STEPS = 10
TUNERS = {
    "LoRA": lambda: LoRA(rank=2, dropout=0.0),
    "LoRA, text": lambda: LoRA("text", rank=2, dropout=0.0),
    "LoRA, both": lambda: LoRA("both", rank=2, dropout=0.0),
    "LoRA with dropout": lambda: LoRA(rank=2, dropout=0.5),
    "CoOp": lambda: CoOp(context_tokens=4),
    "CoOp of each class": lambda: CoOp(context_tokens=2, class_specific=True),
    "MaPLe": MaPLe,
    "CLIP-Adapter": CLIPAdapter,
    "Tip-Adapter-F": TipAdapterF,
    "LP++": lambda: LPPlusPlus(alpha_every=3),
    "LDC": LDC,
    "linear head": LinearHead,
    "full, vision": FullFineTuning,
    "full, both": lambda: FullFineTuning("both"),
    "StepSPT": StepSPT,
    "FWT around LoRA": lambda: FWT(LoRA(rank=2, dropout=0.25)),
}


class EveryStep(Callback):
    """Saves a checkpoint after every step."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(self.folder / f"{trainer.fit_loop.epoch_loop.total_batch_idx + 1}.ckpt")


class Terms(Callback):
    """The terms of every step."""

    def __init__(self):
        self.terms = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.terms.append({name: float(value) for name, value in outputs.items() if name != "loss"})


@pytest.fixture(scope="module")
def backbone_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("backbone")


def run(module, *callbacks, epochs=STEPS // 2, data=None, **options):
    """A fit on two views of two shots; gives back the tuner's state and the terms of each step."""
    torch.manual_seed(len(options))  # as another process would start
    terms = Terms()
    trainer = Trainer(max_epochs=epochs, callbacks=[StageSwitch(), terms, *callbacks], **QUIET)
    trainer.fit(module, datamodule=data or ShapesDataModule(shot=2, query=1, views=2), **options)
    return {name: value.detach().clone() for name, value in module.tuner.adapter_state().items()}, terms.terms


def check_same(found, expected, label):
    assert found.keys() == expected.keys()
    assert not [name for name, value in expected.items() if not torch.equal(found[name], value)], label


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tuner", TUNERS)
def test_a_fit_resumed_at_any_step_equals_the_uninterrupted_one(tmp_path, backbone_folder, tuner):
    expected, terms = run(FewShotClassifier(open_clip_vit(backbone_folder), TUNERS[tuner]()), EveryStep(tmp_path))
    assert len(terms) == STEPS
    module = FewShotClassifier(open_clip_vit(backbone_folder), TUNERS[tuner]())
    for step in range(1, STEPS + 1):
        found, rest = run(module, ckpt_path=tmp_path / f"{step}.ckpt", weights_only=True)
        assert rest == terms[step:], step
        check_same(found, expected, step)


@pytest.mark.parametrize("objective", [{"relation_form": "softmax"}, {"visual_term": "noise"}])
def test_the_variants_of_the_objective_are_resumed_too(tmp_path, tiny_backbone, objective):
    module = FewShotClassifier(tiny_backbone, LoRA(rank=2), Objective(**objective), plain_views="encode")
    expected, terms = run(module, EveryStep(tmp_path))
    for step in (1, 3, 6, 7):
        found, rest = run(module, ckpt_path=tmp_path / f"{step}.ckpt")
        assert rest == terms[step:]
        check_same(found, expected, step)


@pytest.mark.filterwarnings("error:.*not resumable")
def test_mini_batches_of_an_episode_are_resumed_in_the_middle_of_an_epoch(tmp_path, tiny_backbone):
    data = ShapesDataModule(shot=2, query=1, views=2, batch_size=8, drop_last=False)
    module = FewShotClassifier(tiny_backbone, LoRA(rank=2), Objective(relation_source="current"))
    expected, terms = run(module, EveryStep(tmp_path), epochs=3, data=data)
    assert len(terms) == 9
    for step in range(1, 9):
        found, rest = run(module, epochs=3, data=data, ckpt_path=tmp_path / f"{step}.ckpt")
        assert rest == terms[step:]
        check_same(found, expected, step)


class Interrupt(Callback):
    """Raises within a step, after the random numbers of the step were drawn."""

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step == 4:
            raise RuntimeError("power cut")


def test_a_checkpoint_of_an_exception_within_a_step_repeats_that_step(tmp_path, tiny_backbone):
    module = FewShotClassifier(tiny_backbone, LoRA(rank=2, dropout=0.5))
    expected, terms = run(module)
    save = ModelCheckpoint(tmp_path, save_on_exception=True)
    saving = {**QUIET, "enable_checkpointing": True}
    trainer = Trainer(max_epochs=5, callbacks=[StageSwitch(), Interrupt(), save], **saving)
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="power cut"):
        trainer.fit(module, datamodule=ShapesDataModule(shot=2, query=1, views=2))
    (file,) = tmp_path.glob("*.ckpt")
    found, rest = run(module, ckpt_path=file)
    assert rest == terms[4:]
    check_same(found, expected, "exception")


def test_best_and_last_of_model_checkpoint_are_tested_and_resumed(tmp_path, tiny_backbone):
    module = FewShotClassifier(tiny_backbone, LoRA(rank=2))
    data = ShapesDataModule(shot=2, query=3, views=2)
    save = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True, monitor="train/total")
    trainer = Trainer(max_epochs=5, callbacks=[StageSwitch(), save], **{**QUIET, "enable_checkpointing": True})
    trainer.fit(module, datamodule=data)
    last = trainer.test(datamodule=data, ckpt_path="last", verbose=False)
    other = FewShotClassifier(OpenCLIP("tiny_clip.json", "tiny_clip.safetensors"), LoRA(rank=2))
    with pytest.raises(DtrapError, match="trained on the backbone"):
        trainer.test(other, datamodule=data, ckpt_path="last", verbose=False)
    assert trainer.test(module, datamodule=data, ckpt_path=save.last_model_path, verbose=False) == last
    trainer.test(datamodule=data, ckpt_path="best", verbose=False)
    data.set_episode(3)
    with pytest.raises(DtrapError, match="trained for the classes"):
        trainer.test(module, datamodule=data, ckpt_path="last", verbose=False)


class Own(LightningModule):
    """A stranger's module with our objective, without a generator of its own."""

    def __init__(self):
        super().__init__()
        self.image = torch.nn.Linear(3 * 48 * 48, 8)
        self.texts = torch.nn.Parameter(torch.ones(5, 8))
        self.objective = Objective()

    def training_step(self, batch, batch_idx):
        features = self.image(batch["images"].flatten(1))
        plain = PlainRows(features[:10], batch["labels"][:10])
        terms = self.objective(features, self.texts, batch["labels"], plain=plain)
        return {"loss": terms["total"], **{name: term.detach() for name, term in terms.items()}}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


@pytest.mark.parametrize("step", [1, 3, 6, 8])
def test_the_objective_in_a_strangers_module_is_resumed(tmp_path, step):
    def fit(*callbacks, **options):
        torch.manual_seed(0)
        module, terms = Own(), Terms()
        trainer = Trainer(max_epochs=5, callbacks=[StageSwitch(), terms, *callbacks], **QUIET)
        trainer.fit(module, datamodule=ShapesDataModule(shot=2, query=0, views=2), **options)
        return module, terms.terms

    module, terms = fit(EveryStep(tmp_path))
    resumed, rest = fit(ckpt_path=tmp_path / f"{step}.ckpt", weights_only=True)
    assert rest == terms[step:]
    assert torch.equal(module.image.weight, resumed.image.weight)
    # A state dict of before the objective had a state.
    old = {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    assert len(old) == 3
    module.load_state_dict(old)


def test_a_checkpoint_of_an_earlier_version_is_resumed_with_a_warning(tmp_path, tiny_backbone):
    module = FewShotClassifier(tiny_backbone, LoRA(rank=2))
    run(module, EveryStep(tmp_path))
    content = torch.load(tmp_path / "2.ckpt", weights_only=True)
    del content["dtrap"]
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.warns(UserWarning, match="earlier version of dtrap"):
        run(module, ckpt_path=tmp_path / "old.ckpt")
