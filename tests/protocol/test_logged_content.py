"""What loggers of every kind hold of a run with two methods, read back from their own files."""

import csv
import json
import os
import socket

import pytest
import wandb
import yaml
from dtrap.cli import main
from dtrap.protocol.loggers import without_local_paths
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import MetricRecord
from wandb_files import all_recorded

KEYS = {
    *("dataset", "way", "shot", "query", "backbone", "weights", "tuner", "rank", "method", "seed", "lambda", "beta"),
    *("learning_rate", "epochs", "steps", "precision", "episodes", "dtrap_version", "torch_version"),
    *("lightning_version", "lambda/baseline", "beta/baseline"),
}
LOGGERS = [f"--config=loggers/{name}.yaml" for name in ("wandb", "tensorboard", "mlflow", "csv")]
SHORT = ["--trainer.max_epochs=2", "--data.query=2", "--protocol.pictures=1"]


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """W&B without a server and without anybody's settings."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_PROJECT", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        for name, value in (("WANDB_MODE", "offline"), ("NETRC", "netrc"), ("WANDB_CONFIG_DIR", "config")):
            patch.setenv(name, value if name == "WANDB_MODE" else str(folder / value))
        patch.setenv("WANDB_DATA_DIR", str(folder / "data"))
        yield folder
    wandb.teardown()


def fit(folder, *words, episodes=2):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config=demo.yaml", f"--protocol.episodes={episodes}", f"--protocol.folder={folder}", *words])
    assert stop.value.code == 0


@pytest.fixture(scope="module")
def run(offline, tmp_path_factory):
    """A run of two methods with all loggers at once, and one more episode in a second start; its folder."""
    folder = tmp_path_factory.mktemp("runs") / "my_run"
    fit(folder, *LOGGERS, *SHORT)
    fit(folder, *LOGGERS, *SHORT, episodes=3)
    return folder


def nulls(value):
    if isinstance(value, dict):
        return any(map(nulls, value.values()))
    return any(map(nulls, value)) if isinstance(value, list) else value is None


def test_wandb_config_is_flat_resolved_and_without_null(run):
    config = all_recorded(run)[0].config
    assert config.keys() >= KEYS
    assert not nulls(config)
    found = {key: config[key] for key in ("way", "shot", "tuner", "rank", "method", "seed", "lambda", "beta", "steps")}
    assert found == dict(
        zip(found, (5, 1, "lora", 16, "svl-ra", 1, 0.1, 3.0, 2), strict=True)
    )  # one step an epoch, two epochs
    assert (config["lambda/baseline"], config["beta/baseline"], config["learning_rate"]) == (0.0, 0.0, 4e-4)


def test_a_later_start_adds_no_episode_twice(run):
    parts = all_recorded(run)
    assert [[entry["episode"] for entry in part.history] for part in parts] == [[0, 1], [2]]
    assert len({part.run.run_id for part in parts}) == 1
    assert (run / "wandb_id.txt").read_text().strip() == parts[0].run.run_id
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [scalar.step for scalar in events.Scalars("accuracy")] == [0, 1, 2]
    with (run / "metrics.csv").open() as file:
        assert [line["episode"] for line in csv.DictReader(file)] == ["0", "1", "2"]
    (metric,) = run.glob("mlruns/*/*/metrics/accuracy.baseline")
    assert [line.split()[2] for line in metric.read_text().splitlines()] == ["0", "1", "2"]


def test_wandb_has_pictures_tables_and_figures(run):
    first, second = all_recorded(run)
    files = first.path.parent / "files"
    for method in ("svl-ra", "baseline"):
        assert (files / first.history[0][f"pictures/{method}.path"]).is_file()
        assert f"pictures/{method}.path" not in first.history[1]
    for entry, part in ((first.history[1], first), (second.history[0], second)):
        for name in ("figures/accuracy", "figures/differences", "figures/gap-shift", "figures/losses"):
            assert (part.path.parent / "files" / entry[f"{name}.path"]).is_file()
    table = json.loads((second.path.parent / "files" / second.history[0]["per_class.path"]).read_text())
    assert table["columns"] == ["method", "class", "episodes", "test_images", "right", "accuracy"]
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    for method in ("svl-ra", "baseline"):
        right = sum(
            line[place] for row in rows if row["method"] == method for place, line in enumerate(row["confusion"])
        )
        assert sum(line[4] for line in table["data"] if line[0] == method) == right
        assert sum(line[3] for line in table["data"] if line[0] == method) == 3 * 10


def test_wandb_metrics_have_a_goal_and_a_summary(run):
    recorded = all_recorded(run)[0]
    mean, entropy = recorded.metrics["accuracy_mean"], recorded.metrics["cross_entropy_mean/baseline"]
    assert (mean.goal, entropy.goal) == (MetricRecord.GOAL_MAXIMIZE, MetricRecord.GOAL_MINIMIZE)
    assert mean.summary.last
    assert mean.step_metric == "episode"
    summary = json.loads((run / "summary.json").read_text())
    assert all_recorded(run)[1].summary["accuracy_mean"] == summary["methods"]["svl-ra"]["accuracy"]["mean"]
    assert "query.gap_drop" in recorded.history[0]


def test_no_local_path_is_sent(run):
    for part in all_recorded(run):
        sent = [part.path, *(path for path in part.path.parent.glob("files/**/*") if path.suffix != ".txt")]
        for path in filter(os.path.isfile, sent):
            content = path.read_bytes()
            for secret in (str(run.parent), os.getcwd(), f"@{socket.gethostname()}"):
                assert secret.encode() not in content
        assert not list(part.path.parent.glob("files/wandb-metadata.json"))
    (source,) = run.glob("mlruns/*/*/tags/mlflow.source.name")
    assert source.read_text() == "dtrap"
    assert str(run.parent) not in (run / "hparams.yaml").read_text() + (run / "tensorboard/hparams.yaml").read_text()


def test_tensorboard_mlflow_and_csv_hold_the_same_content(run):
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert {"pictures/svl-ra", "pictures/baseline", "figures/losses"} <= set(events.Tags()["images"])
    assert {"per_class/text_summary", "confusion/text_summary"} <= set(events.Tags()["tensors"])
    artifacts = {path.relative_to(path.parents[1]).as_posix() for path in run.glob("mlruns/*/*/artifacts/*/*")}
    assert {"tables/per_class.csv", "figures/losses.png", "pictures/episode_0000_svl-ra.png"} <= artifacts
    (rank,) = run.glob("mlruns/*/*/params/rank")
    assert rank.read_text() == "16"
    with (run / "per_class.csv").open() as file:
        assert sum(int(line["test_images"]) for line in csv.DictReader(file)) == 2 * 3 * 10
    assert yaml.safe_load((run / "hparams.yaml").read_text())["lambda"] == 0.1


def test_paths_are_sent_if_asked_and_an_agent_gives_the_run_its_id(offline, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "trial7")
    words = ["--config=loggers/wandb.yaml", "--trainer.max_epochs=1", "--data.query=1"]
    fit(tmp_path / "run", *words, "--protocol.log_paths=True", episodes=1)
    (recorded,) = all_recorded(tmp_path / "run")
    assert recorded.run.run_id == "trial7"
    assert (tmp_path / "run" / "wandb_id.txt").read_text().strip() == "trial7"
    assert recorded.config["protocol"]["folder"] == str(tmp_path / "run")
    monkeypatch.delenv("WANDB_RUN_ID")
    fit(tmp_path / "run", *words, episodes=2)
    assert [part.run.run_id for part in all_recorded(tmp_path / "run")] == ["trial7", "trial7"]


def test_a_trial_of_a_sweep_that_repeats_a_finished_one_is_logged(offline, tmp_path, monkeypatch):
    words = ["--config=loggers/wandb.yaml", "--trainer.max_epochs=1", "--data.query=1"]
    fit(tmp_path / "run", *words, "--trainer.logger=false", episodes=1)
    monkeypatch.setenv("WANDB_RUN_ID", "trial8")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    fit(tmp_path / "run", *words, episodes=1)
    (recorded,) = all_recorded(tmp_path / "run")
    assert recorded.run.run_id == "trial8"
    assert "accuracy_mean" in recorded.summary


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ({"root": "/data/x", "way": 5, "name": "openai"}, {"way": 5, "name": "openai"}),
        (["~/x", "../x", "C:\\x", "methods/baseline.yaml"], ["methods/baseline.yaml"]),
        ({"text": "no image in /home/me/x.png today"}, {"text": "no image in … today"}),
        ({"template": "a photo of a {}.", "stop": "3/5"}, {"template": "a photo of a {}.", "stop": "3/5"}),
        (
            {"name": "hf-hub:owner/name", "url": "https://x.org/y"},
            {"name": "hf-hub:owner/name", "url": "https://x.org/y"},
        ),
    ],
)
def test_values_without_local_paths(value, sent):
    assert without_local_paths(value) == sent
