"""Episodes that diverge in a run: marked, named, left out of files, and an exit status where a method has no result."""

import json

import pytest
import torch
from dtrap.datamodules import EuroSATDataModule
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.tuners import CLIPAdapter
from dtrap.protocol import run_protocol
from run_folders import rows_of


def test_a_method_that_diverges_in_every_episode_ends_with_1_and_names_the_rate(dtrap, words, tmp_path):
    asked = [*words, "--protocol.folder", "run", "--protocol.episodes", 2, "--model.learning_rate", "1e30",
             "--protocol.save_adapters", "true", "--protocol.pictures", 1]  # fmt: skip
    status, out, err = dtrap(*asked)
    assert status == 1
    assert "'svl-ra' has no result: 2 episodes of 2 diverged" in err
    assert "lower --model.learning_rate (now 1e+30)" in err
    assert out.count("episode 0 of 'svl-ra' diverged: the loss is not finite from step ") == 1
    rows = rows_of(tmp_path / "run")
    assert len(rows) == 4
    for row in rows:
        assert row["accuracy"] is row["confusion"] is row["per_class"] is None
        assert row["cross_entropy"] is row["calibration_error"] is None
        assert row["zero_shot_accuracy"] is not None
        assert row["zero_shot_cross_entropy"] > 0
        assert row["diverged"].startswith("the loss is not finite from step ")
        values = [value for terms in row["losses"].values() for value in (terms or {}).values()]
        assert None not in values
    assert not (tmp_path / "run" / "adapters").exists()
    assert not (tmp_path / "run" / "pictures").exists()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["methods"]["svl-ra"]["accuracy"] is None
    again, out, err = dtrap(*asked)
    assert again == 1
    assert "Already finished" in out
    assert "diverged" in err


def test_a_run_goes_on_after_a_diverged_episode(tiny_backbone, root, tmp_path):
    class BreaksOnce(CLIPAdapter):
        fits = 0

        def reset(self, seed, num_classes):
            super().reset(seed, num_classes)
            self.fits += 1

        def classification_loss(self, *arguments):
            loss = super().classification_loss(*arguments)
            return loss * float("inf") if self.fits == self.broken else loss

    tuner = BreaksOnce()
    module = FewShotClassifier(tiny_backbone, tuner)
    tuner.broken = tuner.fits + 3  # a rehearsal and the first episode come before
    arguments = {"episodes": 3, "folder": str(tmp_path / "run"), "trainer": {"max_epochs": 2, "accelerator": "cpu"}}
    result = run_protocol({"adapter": lambda: module}, EuroSATDataModule(root, shot=1, query=2), **arguments)
    assert [("diverged" in row, row["accuracy"] is None) for row in result.rows] == [
        (False, False), (True, True), (False, False),
    ]  # fmt: skip
    assert result.accuracy["adapter"].count == 2
    tuner.broken = 0
    alone = run_protocol(
        {"adapter": lambda: module}, EuroSATDataModule(root, shot=1, query=2),
        **{**arguments, "folder": str(tmp_path / "sound")},
    )  # fmt: skip
    for sound, row in zip(alone.rows[::2], result.rows[::2], strict=True):
        assert {**sound, "seconds": 0} == {**row, "seconds": 0}


def test_scores_that_are_not_finite_after_a_finite_training_are_a_divergence_too(tiny_backbone, root, tmp_path):
    class Breaks(CLIPAdapter):
        def logits(self, *arguments):
            logits = super().logits(*arguments)
            return logits if self.training else logits * float("nan")

    with pytest.raises(DtrapError, match=r"the scores of 10 of 10 images are not finite; lower --model\.learning_rate"):
        run_protocol(
            {"adapter": lambda: FewShotClassifier(tiny_backbone, Breaks())}, EuroSATDataModule(root, shot=1, query=2),
            episodes=1, folder=str(tmp_path / "run"), trainer={"max_epochs": 2, "accelerator": "cpu"},
        )  # fmt: skip
    assert rows_of(tmp_path / "run")[0]["accuracy"] is None


def test_a_backbone_whose_scores_are_not_finite_stops_the_run(tiny_backbone, root, tmp_path):
    module = FewShotClassifier(tiny_backbone, CLIPAdapter())
    module._checked |= {"image", "text"}
    with torch.no_grad():
        tiny_backbone.model.visual.proj.fill_(float("nan"))
    with pytest.raises(DtrapError, match="zero-shot: the scores of 10 of 10 images are not finite"):
        run_protocol({"adapter": lambda: module}, EuroSATDataModule(root, shot=1, query=2), episodes=1,
                     folder=str(tmp_path / "run"), trainer={"max_epochs": 2, "accelerator": "cpu"})  # fmt: skip
    assert not (tmp_path / "run" / "results.jsonl").exists()
