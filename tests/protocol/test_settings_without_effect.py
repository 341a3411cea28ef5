"""Settings that would do nothing, or make a row that is not what it looks like, are refused before the first file."""

import warnings

import pytest
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import EuroSATDataModule, ShapesDataModule
from dtrap.datamodules.all_way import AllWay
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.tuners import CLIPAdapter, StepSPT
from dtrap.protocol import run_protocol
from dtrap.protocol.trainer_options import check_trainer_options
from lightning.pytorch import Trainer
from quiet import QUIET
from run_folders import rows_of


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--trainer.max_epochs", 0], "trainer.max_epochs is 0"),
        (["--trainer.max_epochs", -1], "trainer.max_epochs is -1, without an end"),
        (["--trainer.max_epochs", "null"], "trainer.max_epochs is None, without an end"),
        (["--trainer.max_steps", 0], "trainer.max_steps is 0"),
        (["--trainer.max_time", "00:00:01:00"], "trainer.max_time is"),
        (["--trainer.fast_dev_run", "true"], "trainer.fast_dev_run is True"),
        (["--trainer.fast_dev_run", 3], "trainer.fast_dev_run is 3"),
        (["--trainer.overfit_batches", 1], "trainer.overfit_batches is 1"),
        (["--trainer.overfit_batches", "0.5"], "trainer.overfit_batches is 0.5"),
        (["--trainer.barebones", "true"], "trainer.barebones is True"),
        (["--trainer.limit_train_batches", 0], "trainer.limit_train_batches is 0"),
        (["--trainer.limit_train_batches", "0.0"], "trainer.limit_train_batches is 0"),
        (["--trainer.limit_val_batches", 0], "trainer.limit_val_batches is 0"),
        (["--trainer.limit_test_batches", "0.5"], "trainer.limit_test_batches is 0.5"),
        (["--trainer.limit_test_batches", 1], "trainer.limit_test_batches is 1"),
        (["--trainer.gradient_clip_val", -1], "trainer.gradient_clip_val (null: no clipping) is -1"),
        (["--trainer.gradient_clip_val", ".inf"], "trainer.gradient_clip_val (null: no clipping) is inf"),
        (["--trainer.gradient_clip_val", ".nan"], "trainer.gradient_clip_val (null: no clipping) is nan"),
        (["--trainer.gradient_clip_val", 0], "trainer.gradient_clip_val (null: no clipping) is 0"),
        (["--trainer.gradient_clip_algorithm", "norm"], "trainer.gradient_clip_algorithm is 'norm'"),
        (["--trainer.accumulate_grad_batches", 0], "trainer.accumulate_grad_batches is 0"),
        (["--trainer.accumulate_grad_batches", 2], "each epoch is one step with all support rows"),
        (["--trainer.min_epochs", 9], "trainer.min_epochs is 9, but a training ends after"),
        (["--trainer.enable_checkpointing", "true"], "trainer.enable_checkpointing is true"),
        (["--data.episode", 3], "data.episode is 3"),
        (["--data.template", "a photo"], "template is 'a photo'"),
        (["--data.template", ""], "template is ''"),
        (["--data.template", "a {cls} of {}"], "template is 'a {cls} of {}'"),
        (["--model.template", ""], "template is ''"),
        (["--model.template", "a photo of {cls}"], "template is 'a photo of {cls}'"),
        (["--model.template", "['a {}.', 'b']"], "template is 'b'"),
        (["--model.template", "[]"], "template is an empty list"),
        (["--model.learning_rate", ".inf"], "learning_rate is inf"),
        (["--model.learning_rate", ".nan"], "learning_rate is nan"),
        (["--model.objective.relation_weight", ".nan"], "relation_weight is nan"),
        (["--model.optimizer", "SGD", "--model.optimizer.lr", 0], "--model.optimizer.lr is 0"),
        (["--model.optimizer", "SGD", "--model.optimizer.lr", ".inf"], "--model.optimizer.lr is inf"),
        (["--config", "batches/coop.yaml", "--config", "methods/authors_code.yaml"], "relation_source is 'previous'"),
        (["--data.batch_size", 5], "relation_source is 'previous', but data.batch_size is 5"),
        (["--config", "batches/coop.yaml", "--model.objective.visual_term", "visual"], "visual_term is 'visual'"),
        (["--config", "batches/coop.yaml", "--model.objective.visual_term", "negated_visual"],
         "visual_term is 'negated_visual'"),
        (["--config", "batches/coop.yaml", "--config", "tuners/stepspt.yaml"], "the tuner stepspt makes several"),
        (["--config", "batches/coop.yaml", "--config", "tuners/ldc.yaml", "--data.batch_size", 1], "data.batch_size"),
        (["--config", "all_way/clip_lora.yaml", "--data.seed", 2], "Set --data.seed 1 and give --data.all_way.seeds"),
        (["--config", "all_way/clip_lora.yaml", "--data.way", 3], "way is 3, which has no effect"),
        (["--config", "all_way/clip_lora.yaml", "--data.batch_size", 8], "give --data.all_way.batch_size 8"),
        (["--config", "all_way/clip_lora.yaml", "--data.views", 1], "views is 1, which has no effect"),
        (["--config", "all_way/clip_lora.yaml", "--model.objective.relation_source", "previous"],
         "relation_source is 'previous', but the all-way protocol streams mini-batches"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_setting_without_effect_is_refused_before_anything_is_written(
    dtrap, root, tiny_model, tmp_path, options, told
):
    every_way = "all_way/clip_lora.yaml" in options
    query = [] if every_way else ["--data.query", "2"]
    status, out, err = dtrap(
        "fit", "--config", "eurosat_1shot.yaml", "--data.root", root, *query, *tiny_model, "--protocol.episodes", 1,
        "--protocol.folder", "run", "--trainer.max_epochs", 2, *options,
    )  # fmt: skip
    assert status == 2, (out, err)
    assert told in err
    assert len(err.splitlines()) <= 5
    assert not (tmp_path / "run" / "results.jsonl").exists()


def test_options_of_the_trainer_that_train_and_test_everything_are_taken():
    for sound in (
        {"max_epochs": 1}, {"max_epochs": None, "max_steps": 3}, {"max_epochs": 1, "limit_test_batches": 1.0},
        {"max_epochs": 1, "fast_dev_run": False, "overfit_batches": 0.0, "gradient_clip_val": 0.5},
        {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 0.5, "accumulate_grad_batches": 2},
    ):  # fmt: skip
        check_trainer_options(sound)


@pytest.mark.parametrize(
    ("make", "options", "told"),
    [
        (lambda b: FewShotClassifier(b), {"batch_size": 5}, "relation_source is 'previous'"),
        (lambda b: FewShotClassifier(b, StepSPT()), {"batch_size": 5}, "the tuner stepspt makes several"),
        (lambda b: FewShotClassifier(b), {"all_way": AllWay()}, "relation_source is 'previous'"),
        (
            lambda b: FewShotClassifier(b, objective=Objective(visual_term="visual", relation_source="current")),
            {"all_way": AllWay()},
            "visual_term is 'visual'",
        ),
    ],
)
def test_pairs_that_cannot_work_are_refused_before_the_first_episode(
    tiny_backbone, root, tmp_path, make, options, told
):
    data = EuroSATDataModule(root, shot=1, **({"query": 2} if "batch_size" in options else {}), **options)
    with pytest.raises(DtrapError, match=told):
        run_protocol({"transductive": lambda: make(tiny_backbone)}, data, folder=str(tmp_path / "run"), episodes=1)
    assert not (tmp_path / "run" / "identity.json").exists()


def test_a_row_says_that_a_callback_ended_its_training(dtrap, words, tmp_path):
    stopping = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "train/L_vlm",
                "--trainer.callbacks.check_on_train_epoch_end", "true", "--trainer.callbacks.stopping_threshold",
                "1000", "--protocol.episodes", 1]  # fmt: skip
    status, _, err = dtrap(*words, *stopping, "--protocol.folder", "stopped")
    assert status == 0, err
    assert {row.get("stopped_early") for row in rows_of(tmp_path / "stopped")} == {"after 1 of 5 epochs"}
    dtrap(*words, "--protocol.folder", "whole", "--protocol.episodes", 1)
    assert {row.get("stopped_early") for row in rows_of(tmp_path / "whole")} == {None}


@pytest.mark.parametrize(("epochs", "warned"), [(1, True), (2, False)])
def test_a_training_of_the_warm_up_alone_is_said(tiny_backbone, epochs, warned):
    data = ShapesDataModule(way=2, shot=1, query=1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        Trainer(max_epochs=epochs, **QUIET).fit(FewShotClassifier(tiny_backbone, CLIPAdapter()), datamodule=data)
    assert any("is the warm-up at the rate 1e-5" in str(warning.message) for warning in seen) is warned


@pytest.mark.parametrize(("start", "stop", "warned"), [(0, "3/5", False), (0.5, 0.5, True), (0, "1/10", True)])
def test_a_stage_without_a_step_is_said(tiny_backbone, start, stop, warned):
    data = ShapesDataModule(way=2, shot=1, query=1)
    trainer = Trainer(max_epochs=4, callbacks=[StageSwitch(start, stop)], **QUIET)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trainer.fit(FewShotClassifier(tiny_backbone, CLIPAdapter()), datamodule=data)
    assert any("is empty, so L_ad and L_ra have no effect" in str(warning.message) for warning in seen) is warned
