"""Projects of the package pytorch_lightning: losses and StageSwitch work there; what does not says what to import."""

import sys

import pytest
import quiet
import torch
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import EuroSATDataModule
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from layouts import make_eurosat
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def pl():
    """The package, only while a test uses it: dtrap's modules say so where it is imported."""
    yield pytest.importorskip("pytorch_lightning", reason="pytorch-lightning is not installed")
    for name in [name for name in sys.modules if name.split(".")[0] == "pytorch_lightning"]:
        del sys.modules[name]


@pytest.fixture
def old(pl):
    """A module of an old project that suppresses visual learning with dtrap's losses."""

    class Old(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 16))
            self.classes = nn.Parameter(torch.randn(3, 16))
            self.objective = Objective(relation_source="current")
            self.progress = []

        def training_step(self, batch, batch_idx):
            self.progress.append(self.objective.progress)
            return self.objective(self.encoder(batch["images"]), self.classes, batch["labels"])["total"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    return Old()


@pytest.fixture
def data(tmp_path):
    return EuroSATDataModule(make_eurosat(tmp_path / "eurosat", per_class=4), way=3, shot=2, query=2)


@pytest.mark.parametrize("rule", ["exact", "gap"])
def test_losses_and_stage_switch_work_there(pl, old, data, rule):
    module = old
    switch = StageSwitch(rule=rule)
    trainer = pl.Trainer(max_epochs=5, callbacks=[switch], **quiet.QUIET)
    trainer.fit(module, data.train_dataloader())
    last = 6 if rule == "exact" else switch.ended
    assert 2 <= last <= 8
    assert module.progress[:last] == pytest.approx([step / 6 for step in range(last)])
    assert module.progress[last:] == [None] * (10 - last)


def test_a_data_module_says_what_to_import(pl, old, data):
    trainer = pl.Trainer(max_epochs=1, **quiet.QUIET)
    with pytest.raises(DtrapError, match=r"write `from lightning.pytorch import Trainer`, or pass the loaders"):
        trainer.fit(old, datamodule=data)


def test_our_module_warns_where_the_old_package_is_in_use(pl, tiny_backbone):
    with pytest.warns(UserWarning, match=r"write `from lightning.pytorch import Trainer`"):
        FewShotClassifier(tiny_backbone)
