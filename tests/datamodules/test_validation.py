"""Validation images on request: the support and query images stay, and what needs them works with plain Lightning."""

import logging

import pytest
import quiet
import torch
from dtrap.callbacks import KeepBest
from dtrap.datamodules import AllWay, EuroSATDataModule, FolderDataModule, ShapesDataModule
from dtrap.datamodules.coop import DTDDataModule
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.tuners import LDC, LoRA, TipAdapter
from layouts import make_eurosat, picture, truncate
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.model_helpers import is_overridden

QUIET = quiet.QUIET | {"max_epochs": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_eurosat(tmp_path_factory.mktemp("eurosat"), per_class=9)


def episodes(root, **options):
    return EuroSATDataModule(root, **{"way": 3, "shot": 2, "query": 3, **options})


def ids(batches):
    return [position for batch in batches for position in batch["sample_id"].tolist()]


@pytest.mark.parametrize("episode", range(3))
def test_support_and_queries_are_those_without_validation(root, episode):
    with_validation, without = (episodes(root, episode=episode, validation_shots=shots) for shots in (2, 0))
    assert with_validation.task.support == without.task.support
    assert with_validation.task.query == without.task.query
    assert torch.equal(with_validation.support()["images"], without.support()["images"])
    validation = ids(with_validation.val_dataloader())
    labels = [label for batch in with_validation.val_dataloader() for label in batch["labels"].tolist()]
    assert labels == [0, 0, 1, 1, 2, 2]
    assert len(set(validation)) == 6
    assert not set(validation) & {*with_validation.support_ids, *with_validation.query_ids}
    names = with_validation.index.class_names
    assert [names[with_validation.index.labels[each]] for each in validation] == [
        with_validation.class_names[label] for label in labels
    ]


def test_it_is_the_same_in_every_process_and_order(root):
    walked = episodes(root, validation_shots=2)
    found = {}
    for number in (2, 0, 1, 2):
        walked.set_episode(number)
        found.setdefault(number, []).append(ids(walked.val_dataloader()))
    assert found[2][0] == found[2][1] == ids(episodes(root, validation_shots=2, episode=2).val_dataloader())


def test_an_unreadable_support_image_is_replaced_by_the_same_one(root, tmp_path):
    damaged = make_eurosat(tmp_path / "damaged", per_class=9)
    place = episodes(damaged, bad_images="skip")
    truncate(place.path_of(place.task.support[0][0]))
    truncate(place.path_of(place.task.query[1][0]))
    drawn = [episodes(damaged, bad_images="skip", validation_shots=shots) for shots in (0, 2)]
    validation = ids(drawn[1].val_dataloader())  # first: its images take no spare
    assert drawn[0].support_ids == drawn[1].support_ids
    assert drawn[0].query_ids == drawn[1].query_ids
    assert len(validation) == 6
    assert not set(validation) & {*drawn[1].support_ids, *drawn[1].query_ids}


def test_an_unreadable_validation_image_is_left_out_or_named(root, tmp_path):
    damaged = make_eurosat(tmp_path / "damaged", per_class=9)
    first = episodes(damaged, validation_shots=2)
    lost = first.task.validation[1][0]
    truncate(first.path_of(lost))
    data = episodes(damaged, validation_shots=2, bad_images="skip")
    assert ids(data.val_dataloader()) == [
        each for of_class in first.task.validation for each in of_class if each != lost
    ]
    with pytest.raises(DtrapError, match=r"episode 0 of EuroSAT.* --data\.bad_images skip"):
        episodes(damaged, validation_shots=2).val_dataloader()
    with pytest.raises(DtrapError, match=r"cannot be read|truncated|unreadable"):
        episodes(damaged, validation_shots=2).check_images([0])


def test_too_few_images_are_an_error_or_fewer(root, caplog):
    with pytest.raises(DtrapError, match=r"'.*' has 4.*needed: 5 \(validation_shots\).*--data\.validation_shots"):
        episodes(root, validation_shots=5).task  # noqa: B018
    fewer = episodes(root, validation_shots=5, small_classes="skip")
    with caplog.at_level(logging.WARNING):
        assert [len(found) for found in fewer.task.validation] == [4, 4, 4]
    assert "fewer than 5 validation images" in caplog.text
    with pytest.raises(DtrapError, match="left for validation"):
        episodes(root, query=7, validation_shots=1, small_classes="skip").task  # noqa: B018
    with pytest.raises(DtrapError, match=r"validation_shots is -1; expected"):
        episodes(root, validation_shots=-1)


def test_a_published_validation_split_is_used(tmp_path):
    root = tmp_path / "dtd"
    for name in ("banded", "dotted"):
        (root / "images" / name).mkdir(parents=True)
    parts = {"train": 3, "val": 2, "test": 3}
    rows, number = {part: [] for part in parts}, 0
    for label, name in enumerate(("banded", "dotted")):
        for part, count in parts.items():
            for _ in range(count if (name, part) != ("dotted", "val") else 0):
                picture(number).save(root / "images" / name / f"{number}.jpg")
                rows[part].append([f"{name}/{number}.jpg", label, name])
                number += 1
    import json

    (root / "split_zhou_DescribableTextures.json").write_text(json.dumps(rows))
    data = DTDDataModule(root, way=2, shot=1, query=2, validation_shots=2)
    plain = DTDDataModule(root, way=2, shot=1, query=2)
    assert (data.task.support, data.task.query) == (plain.task.support, plain.task.query)
    where = {
        data.index.class_names[label]: {data.index.splits[each] for each in found}
        for label, found in zip(data.task.classes, data.task.validation, strict=True)
    }
    assert where == {"banded": {"val"}, "dotted": {"train"}}  # a class without any takes the rest of its own
    assert not {*data.support_ids, *data.query_ids} & {each for found in data.task.validation for each in found}


@pytest.mark.filterwarnings("ignore")
def test_without_validation_there_is_none_and_lightning_runs_none(root, tiny_backbone):
    data = episodes(root)
    assert list(data.val_dataloader()) == []
    assert not is_overridden("val_dataloader", data)
    module = FewShotClassifier(tiny_backbone)
    trainer = Trainer(callbacks=[keep := KeepBest()], **QUIET)
    trainer.fit(module, datamodule=data)
    assert keep.accuracies == []
    assert "val/accuracy" not in trainer.callback_metrics
    with pytest.raises(DtrapError, match=r"no validation is asked for\. Give --data\.validation_shots"):
        Trainer(**QUIET).validate(module, datamodule=data, verbose=False)
    all_way = EuroSATDataModule(root, shot=2, all_way=AllWay())
    assert list(all_way.val_dataloader()) == []
    with pytest.raises(DtrapError, match=r"Give --data\.all_way\.validation true"):
        Trainer(**QUIET).validate(module, datamodule=all_way, verbose=False)
    with pytest.raises(DtrapError, match=r"validation_shots is 2.*--data\.all_way\.validation true"):
        EuroSATDataModule(root, shot=2, all_way=AllWay(), validation_shots=2)


@pytest.mark.parametrize("callback", [ModelCheckpoint, EarlyStopping])
def test_a_callback_that_waits_for_a_validation_is_told_before_the_first_step(root, tiny_backbone, callback, tmp_path):
    waiting = callback(monitor="val/accuracy", mode="max")
    trainer = Trainer(callbacks=[waiting], default_root_dir=tmp_path, **(QUIET | {"enable_checkpointing": True}))
    with pytest.raises(DtrapError, match=rf"{callback.__name__} monitors val/accuracy.*--data\.validation_shots"):
        trainer.fit(FewShotClassifier(tiny_backbone), datamodule=episodes(root))
    assert trainer.global_step == 0


class End(Callback):
    """The tuner's state at the end of the training, before KeepBest has its turn."""

    def on_train_end(self, trainer, pl_module):
        self.state = {name: value.detach().clone() for name, value in pl_module.tuner.adapter_state().items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("option", [{"validation_shots": 2}, {"all_way": AllWay(batch_size=8, validation=True)}])
def test_validating_changes_no_step_and_keeps_the_best(root, tiny_backbone, option):
    """A tuner that chooses nothing is trained alike; the accuracies are those of a validation of its own."""
    options = {"shot": 2} if "all_way" in option else {"way": 3, "shot": 2, "query": 3}
    off = {"all_way": AllWay(batch_size=8)} if "all_way" in option else {}
    module = FewShotClassifier(tiny_backbone, LoRA(rank=2))
    ends = []
    for given in (off, option):
        torch.manual_seed(0)
        ends.append(End())
        keep = KeepBest()
        data = EuroSATDataModule(root, **options, **given)
        trainer = Trainer(callbacks=[ends[-1], keep], **QUIET)
        trainer.fit(module, datamodule=data)
    assert all(torch.equal(ends[0].state[name], value) for name, value in ends[1].state.items())
    [validated] = trainer.validate(module, datamodule=data, verbose=False)
    assert validated["val/accuracy"] == pytest.approx(max(keep.accuracies))
    assert len(keep.accuracies) == 2
    classes = 3 if options.get("way") else 10
    assert validated["val/images"] == 2 * classes


@pytest.mark.filterwarnings("ignore")
def test_a_tuner_chooses_on_the_validation_images_alone(tiny_backbone, monkeypatch):
    seen = []
    monkeypatch.setattr(LDC, "choose", lambda self, features, texts, labels, scale: seen.append(labels.tolist()))
    from dtrap.lightning_modules.backbones import OpenCLIP

    module = FewShotClassifier(OpenCLIP("tiny_clip.json", "tiny_clip.safetensors"), LDC())
    for shots in (0, 2):
        data = ShapesDataModule(way=2, shot=1, query=1, validation_shots=shots)
        Trainer(**(QUIET | {"max_epochs": 1})).fit(module, datamodule=data)
    assert seen == [[0, 0, 1, 1]]


@pytest.mark.filterwarnings("ignore")
def test_predictions_name_images_labels_and_probabilities(root, tiny_backbone):
    data, module = episodes(root), FewShotClassifier(tiny_backbone, LoRA(rank=2))
    trainer = Trainer(**QUIET)
    [found] = trainer.predict(module, datamodule=data)
    assert found["sample_id"].tolist() == data.query_ids
    assert found["labels"].tolist() == data.query()["labels"].tolist()
    assert torch.allclose(found["probabilities"].sum(-1), torch.ones(9))
    assert found["predicted"].tolist() == found["probabilities"].argmax(-1).tolist()
    assert found["class_names"] == [data.class_names[number] for number in found["predicted"]]
    trainer.test(module, datamodule=data, verbose=False)
    assert torch.equal(found["predicted"], torch.cat(module.test_predictions))
    with pytest.raises(DtrapError, match=r"no query images, so there is nothing to predict"):
        Trainer(**QUIET).predict(module, datamodule=episodes(root, query=0))


@pytest.mark.filterwarnings("ignore")
def test_several_test_loaders_have_numbers_of_their_own(root, tiny_backbone):
    module, data = FewShotClassifier(tiny_backbone), episodes(root, validation_shots=3)
    trainer = Trainer(**QUIET)
    trainer.fit(module, datamodule=data)
    loaders = [data.test_dataloader(), data.val_dataloader()]
    alone = [trainer.test(module, loader, verbose=False)[0] for loader in loaders]
    for given in (loaders, {"queries": loaders[0], "others": loaders[1]}):
        both = trainer.test(module, given, verbose=False)
        merged = {name: value for part in both for name, value in part.items()}
        for number, single in enumerate(alone):
            for name, value in single.items():
                assert merged[f"{name}/dataloader_idx_{number}"] == pytest.approx(value, nan_ok=True), name
        assert merged["test/images"] == 18
        assert merged["test/accuracy"] == pytest.approx(sum(single["test/accuracy"] for single in alone) / 2)
    validated = trainer.validate(module, loaders, verbose=False)[1]
    assert validated["val/accuracy/dataloader_idx_1"] == pytest.approx(alone[1]["test/accuracy"])
    predicted = trainer.predict(module, loaders)
    assert [part[0]["sample_id"].tolist() for part in predicted] == [data.query_ids, ids(loaders[1])]
    [again] = trainer.test(module, loaders[0], verbose=False)
    assert again == alone[0]  # nothing of several loaders is left


@pytest.mark.filterwarnings("ignore")
def test_lightnings_tools_work_or_say_why_not(root, tiny_backbone, tmp_path):
    quiet_tools = QUIET | {"max_epochs": 20, "default_root_dir": tmp_path}

    def rate_of(module, **options):
        return Tuner(Trainer(**quiet_tools)).lr_find(module, datamodule=episodes(root, **options), num_training=20)

    module = FewShotClassifier(tiny_backbone, LoRA(rank=2))
    found = rate_of(module)
    assert found.suggestion() == module.learning_rate
    trainer = Trainer(**QUIET)
    trainer.fit(module, datamodule=episodes(root))
    assert trainer.optimizers[0].param_groups[0]["initial_lr"] == module.learning_rate
    assert not list(tmp_path.iterdir())

    with pytest.raises(DtrapError, match=r"a step has all support images.*--data\.batch_size.*--model\.image_chunk"):
        Tuner(Trainer(**quiet_tools)).scale_batch_size(module, datamodule=episodes(root))
    data = episodes(root, batch_size=3)
    size = Tuner(Trainer(**quiet_tools)).scale_batch_size(module, datamodule=data, max_trials=2)
    assert data.batch_size == size == 4
    assert {len(batch["labels"]) for batch in data.train_dataloader()} == {4}

    module.own_optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    with pytest.raises(DtrapError, match=r"the given optimizer has a rate of its own"):
        rate_of(module)


@pytest.mark.filterwarnings("ignore")
def test_no_rate_is_looked_for_where_nothing_is_trained(root, tiny_backbone):
    module = FewShotClassifier(tiny_backbone, TipAdapter())
    with pytest.raises(DtrapError, match=r"LearningRateFinder: there is no learning rate.*tip-adapter has nothing"):
        Trainer(callbacks=[LearningRateFinder()], **QUIET).fit(module, datamodule=episodes(root))


def test_the_rows_of_a_run_know_the_option(dtrap, tmp_path):
    words = [
        "--config",
        "demo.yaml",
        "--protocol.episodes",
        "1",
        "--trainer.max_epochs",
        "2",
        "--protocol.folder",
        "run",
    ]
    words += ["--data.query", "3", "--protocol.compare", "null", "--trainer.callbacks", "null"]
    assert dtrap("fit", *words)[0] == 0
    row = (tmp_path / "run" / "results.jsonl").read_text()
    status, _, err = dtrap("fit", *words, "--data.validation_shots", 2)
    assert status == 2
    assert "data.validation_shots: 0 in the folder, 2 now" in err
    status, _, err = dtrap("fit", *words[:-4], "--data.validation_shots", 2, "--protocol.folder", "other")
    assert status == 0, err
    assert row  # the first run's


def test_one_task_over_a_folder_has_the_loaders_too(folder_root):
    data = FolderDataModule(folder_root)
    assert list(data.val_dataloader()) == []
    assert not is_overridden("val_dataloader", data)
    shots = FolderDataModule(folder_root, held_out=0.3, validation_shots=1)
    plain = FolderDataModule(folder_root, held_out=0.3)
    assert shots.task.query == plain.task.query
    for support, before, validation in zip(shots.task.support, plain.task.support, shots.task.validation, strict=True):
        assert sorted(support + validation) == before
        assert len(support) >= 1
    assert max(map(len, shots.task.validation)) == 1
    assert ids(shots.val_dataloader()) == [each for found in shots.task.validation for each in found]


@pytest.mark.filterwarnings("ignore")
def test_a_validation_folder_is_validated_on(tmp_path, tiny_backbone):
    for split, numbers in (("train", (0, 1)), ("val", (2, 3, 4)), ("test", (5,))):
        for label, name in enumerate(("maple", "oak")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in numbers:
                picture(100 * label + number).save(tmp_path / split / name / f"{number}.png")
    data = FolderDataModule(tmp_path)
    trainer = Trainer(callbacks=[keep := KeepBest()], **QUIET)
    trainer.fit(FewShotClassifier(tiny_backbone, LoRA(rank=2)), datamodule=data)
    assert len(keep.accuracies) == 2
    assert {data.path_of(each).parts[-3] for each in ids(data.val_dataloader())} == {"val"}
    assert len(ids(data.val_dataloader())) == 6
    fewer = FolderDataModule(tmp_path, validation_shots=2)
    assert len(ids(fewer.val_dataloader())) == 4
    assert fewer.task.support == data.task.support


def test_a_run_validates_only_where_something_reads_it(dtrap, tmp_path, monkeypatch):
    steps = []
    original = FewShotClassifier.validation_step
    monkeypatch.setattr(
        FewShotClassifier, "validation_step", lambda *words: [steps.append(words[-1]), original(*words)][1]
    )
    words = ["--config", "demo.yaml", "--protocol.episodes", "1", "--trainer.max_epochs", "3", "--data.query", "2"]
    words += ["--protocol.compare", "null", "--data.validation_shots", "2", "--trainer.num_sanity_val_steps", "0"]
    accuracies = []
    for number, callbacks in enumerate(("null", "[{class_path: dtrap.callbacks.KeepBest}]")):
        status, _, err = dtrap("fit", *words, "--trainer.callbacks", callbacks, "--protocol.folder", f"run{number}")
        assert status == 0, err
        accuracies.append(len(steps))
    assert accuracies == [0, 3]
