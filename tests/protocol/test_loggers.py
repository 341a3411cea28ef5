"""Loggers as the command line sets them up, and what they do when they fail; W&B is read back from its own files."""

import csv
import json
import os
import sys
import threading
import time
from http.server import ThreadingHTTPServer

import pytest
import wandb
import yaml
from dtrap.cli import main
from dtrap.protocol import loggers
from dtrap.protocol.loggers import ProtocolLogger
from dtrap.protocol.run_folder import RunFolder
from layouts import make_eurosat
from lightning.pytorch.loggers import Logger, WandbLogger
from wandb_files import Recorded, WandbServer, all_recorded

CONFIGS = {"main": {"model": {"rank": 4}}, "baseline": {"model": {"rank": 2}}}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Keeps W&B away from the credentials and settings of whoever runs the tests."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR"):
            patch.delenv(name, raising=False)
        patch.setenv("NETRC", str(folder / "netrc"))
        patch.setenv("WANDB_CONFIG_DIR", str(folder / "config"))
        yield folder


@pytest.fixture(autouse=True)
def _fresh_wandb(home):
    yield
    wandb.teardown()
    os.environ.pop("WANDB_MODE", None)  # Lightning sets it for its own `offline`


@pytest.fixture(scope="module")
def fit(home, tiny_clip_files):
    """dtrap fit on small EuroSAT images with a random CLIP, into a folder: words -> nothing."""
    data, (config, checkpoint) = make_eurosat(home / "eurosat", per_class=3), tiny_clip_files
    model = ["--model.backbone.name", str(config), "--model.backbone.pretrained", str(checkpoint)]
    task = ["--config", "eurosat_1shot.yaml", "--data.root", str(data), "--data.query", "2", *model]
    short = ["--trainer.max_epochs", "2", "--protocol.compare", "methods/baseline.yaml"]

    def run(folder, *words, episodes=3):
        more = ["--protocol.folder", str(folder), "--protocol.episodes", str(episodes)]
        with pytest.raises(SystemExit) as stop:
            main(["fit", *task, *short, *more, *map(str, words)])
        assert stop.value.code == 0

    return run


@pytest.fixture(scope="module")
def wandb_run(fit, home):
    """A finished protocol run with the shipped W&B overlay, offline; its folder."""
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.chdir(elsewhere)
        fit(home / "my_run", "--config", "loggers/wandb.yaml")
    assert not list(elsewhere.iterdir())
    return home / "my_run"


def rows_of(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def csv_lines(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def row(episode, method="main", accuracy=50.0):
    return {
        "episode": episode,
        "method": method,
        "accuracy": accuracy,
        "zero_shot_accuracy": 20.0,
        "losses": {"boundary": None, "end": {"L_vlm": 0.5}},
        "seconds": 1.0,
    }


def episodes_of(history):
    return [entry["episode"] for entry in history]


def leaves(value, path=()):
    """The values of nested mappings by path; a mapping without values has none."""
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, item in value.items() for key, leaf in leaves(item, (*path, name)).items()}


# W&B offline, through the command line


def test_one_wandb_run_for_the_whole_protocol_run(wandb_run):
    assert len(list(wandb_run.glob("wandb/offline-run-*"))) == 1
    recorded = Recorded(wandb_run)
    assert recorded.run.display_name == "my_run"
    assert recorded.run.project == "dtrap"
    assert recorded.run.run_group == "EuroSAT 5-way 1-shot"
    assert recorded.run.job_type == "svl-ra"
    assert {"EuroSAT", "1-shot", "lora", "svl-ra", "baseline"} < set(recorded.run.tags)
    assert any("random" in tag for tag in recorded.run.tags)
    assert recorded.exit_codes == [0]


def test_wandb_history_is_one_row_per_episode_with_episode_as_x_axis(wandb_run):
    recorded = Recorded(wandb_run)
    assert "episode" in recorded.metrics
    assert recorded.metrics["*"].step_metric == "episode"
    assert episodes_of(recorded.history) == [0, 1, 2]
    for stored in rows_of(wandb_run):
        entry = recorded.history[stored["episode"]]
        ending = "" if stored["method"] == "svl-ra" else "/baseline"
        for key in ("accuracy", "zero_shot_accuracy", "seconds"):
            assert entry[key + ending] == pytest.approx(stored[key])
        assert entry["L_vlm_end" + ending] == pytest.approx(stored["losses"]["end"]["L_vlm"])
    for entry in recorded.history:
        assert entry["difference/baseline"] == pytest.approx(entry["accuracy"] - entry["accuracy/baseline"])


def test_wandb_summary_is_the_printed_result(wandb_run):
    summary = json.loads((wandb_run / "summary.json").read_text())
    recorded = Recorded(wandb_run).summary
    for method, ending in (("svl-ra", ""), ("baseline", "/baseline")):
        for key in ("accuracy", "zero_shot_accuracy"):
            assert recorded[f"{key}_mean{ending}"] == pytest.approx(summary["methods"][method][key]["mean"])
            half_width = summary["methods"][method][key]["half_width"]  # 0 of identical values: no interval
            assert recorded.get(f"{key}_interval{ending}", 0) == pytest.approx(half_width)
            assert (recorded[f"{key}_episodes{ending}"], recorded[f"{key}_images{ending}"]) == (3, 30)
    difference = summary["differences"]["baseline"]
    assert recorded["difference_mean/baseline"] == pytest.approx(difference["mean"])
    assert recorded.get("difference_interval/baseline", 0) == pytest.approx(difference["half_width"])
    assert "accuracy" not in recorded


def test_wandb_config_has_the_whole_configs_without_null_and_paths(wandb_run):
    config = Recorded(wandb_run).config
    for name, sent in (("config.yaml", config), ("config.baseline.yaml", config["compared"]["baseline"])):
        for section, saved in yaml.safe_load((wandb_run / name).read_text()).items():
            assert leaves(sent[section]) == {
                path: value
                for path, value in leaves(saved).items()
                if value is not None and not str(value).startswith("/") and path[:1] != ("logger",)
            }


def test_a_killed_run_goes_on_with_its_wandb_id_and_every_episode_once(wandb_run, fit, monkeypatch):
    before = Recorded(wandb_run).run.run_id
    results = wandb_run / "results.jsonl"
    results.write_text("".join(results.read_text().splitlines(keepends=True)[:-1]) + '{"episode": 2, "met')
    monkeypatch.setenv("WANDB_MODE", "offline")
    fit(wandb_run, "--config", "loggers/wandb.yaml", episodes=5)
    parts = all_recorded(wandb_run)
    assert [part.run.run_id for part in parts] == [before, before]
    assert [episodes_of(part.history) for part in parts] == [[0, 1, 2], [3, 4]]
    assert [step for part in parts for step in part.steps] == [0, 1, 2, 3, 4]
    assert all("accuracy/baseline" in entry for part in parts for entry in part.history)

    fit(wandb_run, "--config", "loggers/wandb.yaml", "--protocol.overwrite", "true", episodes=1)
    assert Recorded(wandb_run).run.run_id != before


def test_what_the_user_sets_for_wandb_stays(fit, tmp_path):
    fit(
        tmp_path / "run",
        *("--config", "loggers/wandb.yaml", "--trainer.logger.offline", "true", "--trainer.logger.project", "mine"),
        *("--trainer.logger.init_args.tags", "[a]", "--trainer.logger.group", "g", "--trainer.logger.name", "n"),
        *("--trainer.logger.save_dir", tmp_path / "own", "--trainer.logger.settings.init_timeout", "5"),
        *("--trainer.logger+", "CSVLogger", "--trainer.logger.save_dir", tmp_path / "csv"),
        episodes=1,
    )
    run = Recorded(tmp_path / "own").run
    assert (run.project, list(run.tags), run.run_group, run.display_name) == ("mine", ["a"], "g", "n")
    assert not (tmp_path / "run" / "wandb").exists()
    assert len(csv_lines(next(tmp_path.glob("csv/*/*")))) == 1


# CSV and none, through the command line


def test_csv_has_every_episode_once_also_after_a_restart(fit, tmp_path, recwarn, capfd):
    fit(tmp_path, episodes=2)
    fit(tmp_path, episodes=3)
    lines = csv_lines(tmp_path)
    assert [line["episode"] for line in lines] == ["0", "1", "2"]
    for stored in rows_of(tmp_path):
        ending = "" if stored["method"] == "svl-ra" else "/baseline"
        assert float(lines[stored["episode"]]["accuracy" + ending]) == pytest.approx(stored["accuracy"])
    assert not [warning for warning in recwarn if "logs directory" in str(warning.message)]
    assert "logs directory" not in capfd.readouterr().err


def test_no_logger_leaves_nothing(fit, tmp_path):
    fit(tmp_path, "--trainer.logger", "false", episodes=1)
    assert not (tmp_path / "metrics.csv").exists()
    assert not (tmp_path / "wandb").exists()


# W&B without a connection


def wandb_logger(folder, **options):
    options = {"project": "dtrap", "settings": dict(loggers.WANDB_SETTINGS), **options}
    return WandbLogger(save_dir=str(folder), id="someid", **options)


def run_three_episodes(configured, folder, after_first=lambda: None):
    """Log three episodes; returns the warnings."""
    shown = []
    logger = ProtocolLogger(configured, RunFolder(folder), {"main": CONFIGS["main"]}, shown.append)
    rows = []
    logger.log_earlier(rows)
    for episode in range(3):
        rows.append(row(episode, accuracy=50.0 + episode))
        logger.log_episode(rows, episode)
        if episode == 0:
            after_first()
    logger.finish("success")
    return shown


class Terminal:
    """A terminal at which nobody sits."""

    def isatty(self):
        return True

    def readline(self, *_):
        pytest.fail("something asked a question")

    read = readline


def assert_offline_rows(folder, warnings):
    assert len(warnings) == 1
    recorded = Recorded(folder)
    assert warnings[0].endswith(f"wandb sync {recorded.path.parent}")
    assert recorded.path.parent.name.startswith("offline-run-")
    assert episodes_of(recorded.history) == [0, 1, 2]
    assert recorded.summary["accuracy_mean"] == 51.0


def test_without_an_api_key_wandb_goes_offline_and_asks_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("wandb.errors.term._sys_stderr_isatty", lambda: True, raising=False)
    warnings = run_three_episodes(wandb_logger(tmp_path), tmp_path)
    assert "API key" in warnings[0]
    assert_offline_rows(tmp_path, warnings)
    assert isinstance(sys.stdin, Terminal)


def test_without_a_server_wandb_goes_offline_within_bounds(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setitem(loggers.WANDB_SETTINGS, "init_timeout", 1.0)
    started = time.monotonic()
    warnings = run_three_episodes(wandb_logger(tmp_path), tmp_path)
    assert time.monotonic() - started < 30
    assert_offline_rows(tmp_path, warnings)


def test_a_connection_lost_in_the_middle_does_not_stop_the_run(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), WandbServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setitem(loggers.WANDB_SETTINGS, "finish_timeout", 1.0)

    def lose():
        server.shutdown()
        server.server_close()

    started = time.monotonic()
    assert run_three_episodes(wandb_logger(tmp_path), tmp_path, after_first=lose) == []
    assert time.monotonic() - started < 20
    recorded = Recorded(tmp_path)
    assert recorded.path.parent.name.startswith("run-")
    assert episodes_of(recorded.history) == [0, 1, 2]


# Other loggers


class Notebook(Logger):
    """A logger of somebody else's."""

    name, version = "notebook", 0

    def __init__(self, fail_at=None):
        super().__init__()
        self.fail_at, self.hyperparameters, self.rows, self.status = fail_at, None, [], None

    def log_hyperparams(self, params):
        self.hyperparameters = params

    def log_metrics(self, metrics, step=None):
        if step == self.fail_at:
            raise ConnectionError("the line is dead\nand more")
        self.rows.append((step, metrics))

    def finalize(self, status):
        self.status = status


def test_another_logger_gets_hyperparameters_and_rows(tmp_path):
    notebook = Notebook()
    assert run_three_episodes(notebook, tmp_path) == []
    assert notebook.hyperparameters == {**CONFIGS["main"], "method": "main", "compared": {}}
    assert [step for step, _ in notebook.rows] == [0, 1, 2]
    first, _, last = (metrics for _, metrics in notebook.rows)
    assert (first["accuracy_mean"], "accuracy_interval" in first) == (50.0, False)
    assert last["accuracy_mean"] == 51.0
    assert last["accuracy_interval"] == pytest.approx(2.484, abs=1e-3)
    assert last["L_vlm_end"] == 0.5
    assert "L_vlm_boundary" not in last
    assert notebook.status == "success"


def test_a_failing_logger_is_dropped_with_one_warning(tmp_path):
    failing, sound = Notebook(fail_at=1), Notebook()
    warnings = run_three_episodes([failing, sound], tmp_path)
    assert len(warnings) == 1
    assert "Notebook" in warnings[0]
    assert "the line is dead" in warnings[0]
    assert "\n" not in warnings[0]
    assert [step for step, _ in failing.rows] == [0]
    assert [step for step, _ in sound.rows] == [0, 1, 2]


def test_a_wandb_run_that_fails_in_the_middle_is_dropped_with_one_warning(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise wandb.Error("broken pipe")

    logger = wandb_logger(tmp_path, offline=True)
    with monkeypatch.context() as patch:
        warnings = run_three_episodes(logger, tmp_path, lambda: patch.setattr(logger, "log_metrics", fail))
    assert len(warnings) == 1
    assert "broken pipe" in warnings[0]
    assert wandb.run is None
    assert episodes_of(Recorded(tmp_path).history) == [0]


def test_an_episode_without_accuracy_has_losses_only(tmp_path):
    notebook = Notebook()
    logger = ProtocolLogger(notebook, RunFolder(tmp_path), CONFIGS, pytest.fail)
    silent = [row(0, method) | {"accuracy": None, "zero_shot_accuracy": None} for method in CONFIGS]
    logger.log_episode(silent, 0)
    expected = {"episode": 0, "seconds": 1.0, "seconds/baseline": 1.0, "L_vlm_end": 0.5, "L_vlm_end/baseline": 0.5}
    assert notebook.rows == [(0, expected)]


def test_an_episode_that_one_method_lacks_is_not_logged_as_finished(tmp_path):
    notebook = Notebook()
    logger = ProtocolLogger(notebook, RunFolder(tmp_path), CONFIGS, pytest.fail)
    rows = [row(0), row(0, "baseline", 40.0), row(1)]
    logger.log_earlier(rows)
    rows.append(row(1, "baseline", 46.0))
    logger.log_episode(rows, 1)
    assert [step for step, _ in notebook.rows] == [0, 1]
    assert [metrics["difference/baseline"] for _, metrics in notebook.rows] == [10.0, 4.0]
    assert notebook.rows[1][1]["difference_mean/baseline"] == 7.0
