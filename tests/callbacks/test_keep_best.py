"""KeepBest: the state of the best validation is the one that remains."""

import pytest
import quiet
import torch
from dtrap.callbacks import KeepBest
from dtrap.datamodules import ShapesDataModule
from dtrap.datamodules.views import Preprocessing
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

QUIET = quiet.QUIET | {"num_sanity_val_steps": 1}


class States(Callback):
    """Copies of the tuner's state at every validation."""

    def setup(self, trainer, pl_module, stage):
        self.states = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.states.append({k: v.detach().clone() for k, v in pl_module.tuner.adapter_state().items()})


def fit(module, ties, accuracies, monkeypatch):
    values = iter([0.0, *accuracies])  # the first is the sanity check's
    monkeypatch.setattr(module, "_accuracy", lambda: torch.tensor(next(values)))
    data = ShapesDataModule(shot=1, query=1, preprocessing=Preprocessing.of(module.backbone))
    module.set_classes(data.class_names)
    keep, states = KeepBest(ties), States()
    trainer = Trainer(max_epochs=len(accuracies), callbacks=[keep, states], **QUIET)
    train = DataLoader([data.support()], batch_size=None)
    trainer.fit(module, train, DataLoader([data.query()], batch_size=None))
    return keep, states.states


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("ties", "best"), [("first", 1), ("last", 3)])
def test_the_best_validation_counts(tiny_backbone, monkeypatch, ties, best):
    module = FewShotClassifier(tiny_backbone)
    keep, states = fit(module, ties, [20.0, 60.0, 40.0, 60.0, 30.0], monkeypatch)
    assert keep.best == best
    assert keep.accuracies == [20.0, 60.0, 40.0, 60.0, 30.0]
    kept = module.tuner.adapter_state()
    assert all(torch.equal(states[best][name], value) for name, value in kept.items())
    assert any(not torch.equal(states[-1][name], value) for name, value in kept.items())


def test_without_a_validation_loader_nothing_is_chosen(tiny_backbone):
    module, keep = FewShotClassifier(tiny_backbone), KeepBest()
    Trainer(max_epochs=1, callbacks=[keep], **QUIET).fit(module, datamodule=ShapesDataModule(shot=1, query=1))
    assert keep.best is None
    assert keep.accuracies == []


def test_mistakes_are_named():
    with pytest.raises(DtrapError, match="ties is 'best'"):
        KeepBest("best")

    class Other(LightningModule):
        pass

    with pytest.raises(DtrapError, match="Other has no attribute `tuner`"):
        KeepBest().setup(None, Other(), "fit")
