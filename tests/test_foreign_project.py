"""A LightningCLI project of a stranger: cli.py and YAML files, written by one who has read the documentation only."""

import importlib.util
import sys
import textwrap

import pytest
import torch
import yaml
from dtrap.errors import DtrapError
from layouts import make_eurosat

CLI = """
    from lightning.pytorch.cli import LightningCLI
    from dtrap.datamodules import EuroSATDataModule
    from dtrap.lightning_modules import FewShotClassifier


    def main(args=None):
        return LightningCLI(FewShotClassifier, EuroSATDataModule, seed_everything_default=1, args=args)


    if __name__ == "__main__":
        main()
"""

SUBCLASSES = """
    import torch
    from lightning.pytorch import LightningDataModule, LightningModule
    from lightning.pytorch.cli import LightningCLI


    class Noise(LightningDataModule):
        '''Images of two kinds of noise; knows nothing of dtrap.'''

        class_names = ["dark noise", "bright noise"]

        def __init__(self, images: int = 8):
            super().__init__()
            self.images = images

        def _loader(self, seed):
            labels = torch.arange(self.images) % 2
            noise = torch.randn(self.images, 3, 48, 48, generator=torch.Generator().manual_seed(seed))
            pairs = torch.utils.data.TensorDataset(noise + labels[:, None, None, None] - 0.5, labels)
            return torch.utils.data.DataLoader(pairs, batch_size=4)

        def train_dataloader(self):
            return self._loader(0)

        def val_dataloader(self):
            return self._loader(1)

        def test_dataloader(self):
            return [self._loader(2), self._loader(3)]

        def predict_dataloader(self):
            return self._loader(4)


    class Linear(LightningModule):
        '''A classifier that knows of dtrap's batches only.'''

        def __init__(self, classes: int = 3):
            super().__init__()
            self.layer = torch.nn.Linear(3 * 8 * 8, classes)

        def forward(self, images):
            return self.layer(torch.nn.functional.adaptive_avg_pool2d(images, 8).flatten(1))

        def _loss(self, batch):
            return torch.nn.functional.cross_entropy(self(batch["images"]), batch["labels"])

        def training_step(self, batch, batch_idx):
            return self._loss(batch)

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self._loss(batch), batch_size=len(batch["labels"]))

        def test_step(self, batch, batch_idx):
            self.log("test/loss", self._loss(batch), batch_size=len(batch["labels"]))

        def predict_step(self, batch, batch_idx):
            return self(batch["images"]).argmax(dim=-1)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)


    def main(args=None):
        return LightningCLI(
            LightningModule, LightningDataModule, subclass_mode_model=True, subclass_mode_data=True, args=args
        )
"""

TRAINER = """
    trainer:
      accelerator: cpu
      max_epochs: 6
      enable_progress_bar: false
      enable_model_summary: false
      logger:
        class_path: lightning.pytorch.loggers.CSVLogger
        init_args: {save_dir: logs, name: null}
      callbacks:
        - class_path: dtrap.callbacks.StageSwitch
        - class_path: lightning.pytorch.callbacks.ModelCheckpoint
          init_args: {monitor: val/accuracy, mode: max, dirpath: best, filename: best}
        - class_path: lightning.pytorch.callbacks.ModelCheckpoint
          init_args: {dirpath: every, save_top_k: -1, filename: "{epoch}"}
"""

MODEL = """
    model:
      backbone:
        class_path: dtrap.lightning_modules.backbones.OpenCLIP
        init_args: {name: tiny_clip.json, pretrained: tiny_clip.safetensors}
      tuner:
        class_path: dtrap.lightning_modules.tuners.LoRA
        init_args: {rank: 2}
      learning_rate: 0.005
"""

DATA = """
    data:
      root: eurosat
      way: 3
      shot: 2
      query: 4
      validation_shots: 3
"""

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def eurosat(tmp_path_factory):
    return make_eurosat(tmp_path_factory.mktemp("data") / "eurosat", per_class=9)


@pytest.fixture
def project(tmp_path, monkeypatch, eurosat):
    """The stranger's folder, with the data linked into it: name, text -> file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "eurosat").symlink_to(eurosat)

    def write(name, *parts):
        (tmp_path / name).write_text("".join(map(textwrap.dedent, parts)))

    return write


def command_line(name):
    """Return `main` of a file in the current folder, as `python cli.py` runs it."""
    spec = importlib.util.spec_from_file_location(f"foreign_{name}", f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def values(path):
    """The trained values of a checkpoint."""
    return torch.load(path, weights_only=True)["state_dict"]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], value) for name, value in second.items())


def test_fit_validate_test_predict_and_resume_from_yaml_alone(project, tmp_path):
    project("cli.py", CLI)
    project("config.yaml", TRAINER, MODEL, DATA)
    main = command_line("cli").main
    fitted = main(["fit", "--config", "config.yaml"])
    assert fitted.trainer.current_epoch == 6
    assert fitted.trainer.checkpoint_callback.best_model_path == str(tmp_path / "best" / "best.ckpt")
    logged = (tmp_path / "logs" / "version_0" / "metrics.csv").read_text().splitlines()
    column = logged[0].split(",").index("val/accuracy")
    accuracies = [float(line.split(",")[column]) for line in logged[1:] if line.split(",")[column]]
    assert len(accuracies) == 6

    best = ["--ckpt_path", "best/best.ckpt"]
    validated = main(["validate", "--config", "config.yaml", *best]).trainer.callback_metrics
    assert float(validated["val/accuracy"]) == pytest.approx(max(accuracies))
    assert float(validated["val/images"]) == 9
    tested = main(["test", "--config", "config.yaml", *best]).trainer.callback_metrics
    assert float(tested["test/images"]) == 12
    predicting = main(["predict", "--config", "config.yaml", *best])
    [predicted] = predicting.trainer.predict_loop.predictions
    right = (predicted["predicted"] == predicted["labels"]).float().mean()
    assert 100 * float(right) == pytest.approx(float(tested["test/accuracy"]))
    assert predicted["sample_id"].tolist() == predicting.datamodule.query_ids

    whole = values("every/epoch=5.ckpt")
    assert not same(whole, values("every/epoch=2.ckpt"))
    (tmp_path / "every" / "epoch=5.ckpt").unlink()
    saved = yaml.safe_load((tmp_path / "logs" / "version_0" / "config.yaml").read_text())
    assert saved["data"]["validation_shots"] == 3
    resumed = main(["fit", "--config", "logs/version_0/config.yaml", "--ckpt_path", "every/epoch=2.ckpt"])
    assert resumed.trainer.current_epoch == 6
    [again] = list((tmp_path / "every").glob("epoch=5*.ckpt"))
    assert same(whole, values(again))


def test_early_stopping_and_keep_best_from_yaml(project):
    project("cli.py", CLI)
    project("model.yaml", MODEL, DATA)
    stopping = """
        trainer:
          accelerator: cpu
          max_epochs: 30
          enable_progress_bar: false
          enable_model_summary: false
          logger: false
          default_root_dir: logs
          enable_checkpointing: false
          callbacks:
            - class_path: dtrap.callbacks.StageSwitch
            - class_path: dtrap.callbacks.KeepBest
            - class_path: lightning.pytorch.callbacks.EarlyStopping
              init_args: {monitor: val/accuracy, mode: max, patience: 2}
        """
    project("stopping.yaml", stopping)
    fitted = command_line("cli").main(["fit", "--config", "model.yaml", "--config", "stopping.yaml"])
    keep, stopper = (
        next(each for each in fitted.trainer.callbacks if type(each).__name__ == name)
        for name in ("KeepBest", "EarlyStopping")
    )
    assert len(keep.accuracies) < 30
    assert keep.accuracies.index(max(keep.accuracies)) == keep.best
    assert len(keep.accuracies) == keep.best + 3
    assert float(stopper.best_score) == max(keep.accuracies)
    words = ["fit", "--config", "model.yaml", "--config", "stopping.yaml", "--data.validation_shots", "0"]
    again = command_line("cli").main
    with pytest.raises(DtrapError, match=r"monitors val/accuracy.*--data\.validation_shots"):
        again([*words, "--trainer.default_root_dir", "other"])


def test_our_module_with_a_strangers_data_and_their_module_with_ours(project, monkeypatch):
    project("cli.py", SUBCLASSES)
    cli = command_line("cli")
    monkeypatch.setitem(sys.modules, "foreign_cli", cli)  # `python cli.py` has it as __main__
    ours = "model:\n  class_path: dtrap.lightning_modules.FewShotClassifier\n  init_args:\n"
    ours += textwrap.indent(textwrap.dedent(MODEL).split("\n", 2)[2], "  ")
    project("ours.yaml", TRAINER, ours, "data:\n  class_path: foreign_cli.Noise\n")
    fitted = cli.main(["fit", "--config", "ours.yaml"])
    assert fitted.model.class_prompts.class_names == ("dark noise", "bright noise")
    tested = cli.main(["test", "--config", "ours.yaml", "--ckpt_path", "best/best.ckpt"]).trainer.callback_metrics
    assert float(tested["test/images"]) == 16
    both = [float(tested[f"test/accuracy/dataloader_idx_{number}"]) for number in (0, 1)]
    assert float(tested["test/accuracy"]) == pytest.approx(sum(both) / 2)
    predicted = cli.main(["predict", "--config", "ours.yaml", "--ckpt_path", "best/best.ckpt"])
    assert torch.cat(predicted.trainer.predict_loop.predictions).shape == (8, 2)

    data = "data:\n  class_path: dtrap.datamodules.EuroSATDataModule\n  init_args:\n"
    data += textwrap.indent(textwrap.dedent(DATA).split("\n", 2)[2], "  ")
    theirs = """
        model: foreign_cli.Linear
        trainer:
          accelerator: cpu
          max_epochs: 2
          enable_progress_bar: false
          logger:
            class_path: lightning.pytorch.loggers.CSVLogger
            init_args: {save_dir: their_logs}
          callbacks:
            - class_path: lightning.pytorch.callbacks.ModelCheckpoint
              init_args: {monitor: val/loss, dirpath: theirs, filename: best}
        """
    project("theirs.yaml", theirs, data)
    assert "val/loss" in cli.main(["fit", "--config", "theirs.yaml"]).trainer.callback_metrics
    best = ["--ckpt_path", "theirs/best.ckpt"]
    assert "test/loss" in cli.main(["test", "--config", "theirs.yaml", *best]).trainer.callback_metrics
    assert "val/loss" in cli.main(["validate", "--config", "theirs.yaml", *best]).trainer.callback_metrics
    predicted = cli.main(["predict", "--config", "theirs.yaml", *best]).trainer.predict_loop.predictions
    assert torch.cat(predicted).shape == (12,)
