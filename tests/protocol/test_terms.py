"""The terms of the loss that a row keeps, and predictions of the all-way protocol."""

import json

import numpy as np
import pytest
from all_way_runs import data, words
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import EuroSATDataModule
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.tuners import CLIPAdapter, TipAdapter
from dtrap.protocol import run_protocol
from layouts import make_eurosat
from lightning.pytorch import Callback
from run_folders import rows_of
from safetensors import safe_open


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_eurosat(tmp_path_factory.mktemp("terms") / "eurosat", per_class=6)


class Watch(Callback):
    """Keeps every step's terms, and ends the training before a step."""

    def __init__(self, stop=None):
        self.seen, self.stop = [], stop

    def __deepcopy__(self, memo):
        return self

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append({name: float(value) for name, value in outputs.items()})
        trainer.should_stop = trainer.should_stop or len(self.seen) == self.stop


def row_of(backbone, root, folder, watch, tuner=None, epochs=120):
    result = run_protocol(
        {"method": lambda: FewShotClassifier(backbone, tuner or CLIPAdapter())},
        EuroSATDataModule(root, way=3, shot=1, query=2, views=2),
        episodes=1,
        folder=str(folder / "run"),
        trainer={"max_epochs": epochs, "accelerator": "cpu", "logger": False, "callbacks": [watch]},
        stage_switch=StageSwitch(0, "1/2"),
    )
    return result.rows[0]


def test_a_row_keeps_the_terms_of_50_evenly_spaced_steps_and_the_stage(tiny_backbone, root, tmp_path):
    watch = Watch()
    terms = row_of(tiny_backbone, root, tmp_path, watch)["terms"]
    steps = terms["step"]
    assert steps == np.rint(np.linspace(0, 119, 50)).astype(int).tolist()
    assert terms["stage"] == [0, 59]
    for name in ("total", "L_vlm", "L_ad", "L_ra"):
        expected = [watch.seen[step].get(name, np.nan) for step in steps]
        found = [np.nan if value is None else value for value in terms[name]]
        assert found == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert terms["L_ra"][0] is None  # there is no previous step
    assert all((value is None) == (step >= 60) for step, value in zip(steps, terms["L_ad"], strict=True))


def test_a_training_that_ends_early_keeps_its_last_step(tiny_backbone, root, tmp_path):
    watch = Watch(stop=31)
    row = row_of(tiny_backbone, root, tmp_path, watch)
    terms = row["terms"]
    assert terms["step"] == [step for step in np.rint(np.linspace(0, 119, 50)) if step < 30] + [30]
    assert terms["stage"] == [0, 30]
    assert terms["total"][-1] == pytest.approx(watch.seen[-1]["total"], rel=1e-5)


def test_without_a_training_there_are_no_terms(tiny_backbone, root, tmp_path):
    row = row_of(tiny_backbone, root, tmp_path, Watch(), TipAdapter(), epochs=1)
    assert row["terms"] is None
    assert row["cross_entropy"] > 0


def test_streamed_test_images_have_predictions_under_their_own_names(dtrap, root, tmp_path, damaged):
    more = ["--data.all_way.seeds", "[1]", "--trainer.max_epochs", 1, "--protocol.save_predictions", "true"]
    module = data(damaged, shot=4)
    lost = module.query_ids[3]
    with open(module.index.paths[lost], "wb") as file:
        file.write(b"no image")
    status, _, err = dtrap(*words(damaged, "run", *more, "--data.bad_images", "skip"))
    assert status == 0, err
    (row,) = rows_of(tmp_path / "run")
    with safe_open(tmp_path / "run" / "predictions" / "episode_0000_svl-ra.safetensors", "np") as file:
        scores, labels, images = file.get_tensor("scores"), file.get_tensor("labels"), file.metadata()["images"]
    expected = [i for i in module.query_ids if i != lost]
    assert [name in module.index.paths[i] for name, i in zip(json.loads(images), expected, strict=True)] == [True] * 19
    assert labels.tolist() == [module.index.labels[i] for i in expected]
    assert len(scores) == row["test_images"] == 19
    assert row["accuracy"] == pytest.approx(100 * (scores.argmax(axis=1) == labels).mean())
