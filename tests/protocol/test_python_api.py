"""`run_protocol`: what `dtrap fit` does, called from Python."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import AllWay, EuroSATDataModule, ShapesDataModule
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.tuners import LoRA, StepSPT
from dtrap.protocol import Interval, mean_interval, paired_difference, run_protocol
from dtrap.protocol.module_method import describe
from layouts import make_eurosat
from lightning.pytorch.callbacks import EarlyStopping
from rich.console import Console

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "run-from-a-notebook.md"
TRAINER = {"max_epochs": 4, "accelerator": "cpu", "logger": False}


def tiny():
    return OpenCLIP("tiny_clip.json", "tiny_clip.safetensors")


@pytest.fixture
def run(tmp_path):
    """Two methods on three-way episodes in one folder; keywords change the module or the call."""

    def call(*, rank=2, rate=0.02, weight=3.0, **changes):
        model, tuner = tiny(), LoRA(rank=rank)
        methods = {
            "svl-ra": lambda: FewShotClassifier(model, tuner, Objective(relation_weight=weight), learning_rate=rate),
            "baseline": lambda: FewShotClassifier(model, tuner, Objective(0.0, 0.0), learning_rate=rate),
        }
        data = changes.pop("data", None) or ShapesDataModule(way=3, shot=1, query=6)
        settings = {"episodes": 2, "folder": str(tmp_path / "run"), "trainer": TRAINER, **changes}
        return run_protocol(methods, data, console=Console(quiet=True), **settings)

    return call


def without_seconds(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_rows_are_those_of_the_command(dtrap, run):
    result = run()
    words = ["--config", "demo.yaml", "--data.way", 3, "--data.query", 6, "--model.tuner.rank", 2]
    words += ["--model.learning_rate", 0.02, "--trainer.max_epochs", 4, "--trainer.accelerator", "cpu"]
    words += ["--trainer.callbacks", "null"]
    status, _, err = dtrap("fit", *words, "--protocol.episodes", 2, "--protocol.folder", "command")
    assert status == 0, err
    rows = [json.loads(line) for line in Path("command/results.jsonl").read_text().splitlines()]
    assert without_seconds(result.rows) == without_seconds(rows)
    assert len({row["accuracy"] for row in rows}) > 1
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary == result.summary


def test_means_differences_and_frame_come_from_the_rows(run):
    result = run()
    first, second = (
        {row["episode"]: row["accuracy"] for row in result.rows if row["method"] == name} for name in result.accuracy
    )
    assert result.accuracy == {"svl-ra": mean_interval(first.values()), "baseline": mean_interval(second.values())}
    assert result.differences == {"baseline": paired_difference(first, second)}
    assert isinstance(result.zero_shot_accuracy["baseline"], Interval)
    frame = result.frame()
    assert list(frame["accuracy"]) == [row["accuracy"] for row in result.rows]
    lines = repr(result).splitlines()
    assert lines[0].startswith("Shapes (x-ray) 3-way 1-shot · svl-ra · 2 episodes · ")
    assert lines[-1] == f"Results: {result.folder}"


def test_a_second_call_runs_the_missing_episodes_only(run, monkeypatch):
    first = run()
    steps, original = [], FewShotClassifier.training_step
    monkeypatch.setattr(
        FewShotClassifier, "training_step", lambda self, *words: steps.append(1) or original(self, *words)
    )
    assert run().rows == first.rows
    assert not steps
    more = run(episodes=3)
    assert more.rows[:4] == first.rows
    assert [(row["episode"], row["method"]) for row in more.rows[4:]] == [(2, "svl-ra"), (2, "baseline")]
    assert len(steps) == 2 * 4
    # The same data module may be used again, at whatever episode the last run has left it.
    used = ShapesDataModule(way=3, shot=1, query=6, episode=1)
    assert run(episodes=3, data=used).rows == more.rows


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rank": 4}, "model.tuner.rank: 2 in the folder, 4 now"),
        ({"rate": 0.01}, "model.learning_rate: 0.02 in the folder, 0.01 now"),
        ({"weight": 1.0}, "model.objective.relation_weight: 3.0 in the folder, 1.0 now"),
        ({"trainer": {**TRAINER, "max_epochs": 5}}, "trainer.max_epochs: 4 in the folder, 5 now"),
        ({"stage_switch": StageSwitch(stop=0.5)}, "stage_switch.stop: Fraction(3, 5) in the folder, Fraction(1, 2)"),
        ({"data": ShapesDataModule(way=3, shot=1, query=7)}, "data.query: 6 in the folder, 7 now"),
        ({"trainer": {**TRAINER, "callbacks": [EarlyStopping("train/L_vlm")]}}, "trainer.callbacks"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_has_changed_since_is_refused_with_the_difference(run, changes, line):
    before = run(episodes=1).rows
    with pytest.raises(DtrapError, match=re.escape(line)):
        run(episodes=2, **changes)
    assert run(episodes=1).rows == before


def test_device_logger_and_place_do_not_count(run, tmp_path):
    before = run(episodes=1).rows
    trainer = {**TRAINER, "devices": "auto", "enable_progress_bar": False, "logger": None, "gradient_clip_val": None}
    assert run(episodes=1, trainer=trainer).rows == before


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        ({}, "methods is empty"),
        ({"a/b": lambda: None}, "'a/b'; expected a name without '/'"),
        ({"a": lambda: 3}, "the factory returned int; expected a FewShotClassifier"),
        ({"a": lambda: FewShotClassifier(tiny(), StepSPT())}, "Name the method 'a-transductive'"),
    ],
)
def test_a_mistake_is_an_error_with_the_remedy(tmp_path, methods, told):
    with pytest.raises(DtrapError, match=told):
        run_protocol(methods, ShapesDataModule(), folder=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_misspelled_keyword_is_an_error():
    with pytest.raises(DtrapError, match=r"'episods'; expected one of .*Did you mean 'episodes'"):
        run_protocol({}, ShapesDataModule(), episods=3)


def test_an_interrupted_run_keeps_its_rows_and_raises(run, monkeypatch):
    original, calls = FewShotClassifier.on_test_epoch_start, iter(range(100))

    def start(self):
        if next(calls) == 3:
            raise KeyboardInterrupt
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(FewShotClassifier, "on_test_epoch_start", start)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert len(run().rows) == 4


def test_descriptions_hold_arguments_and_no_addresses():
    data = ShapesDataModule(way=3, shot=1, query=6, seed=4)
    assert data.query_shot == 6
    found = describe(data)
    assert found["class_path"].endswith("ShapesDataModule")
    expected = {"way": 3, "shot": 1, "query": 6, "seed": 4, "domain": "xray", "views": 5}
    assert found["init_args"].items() >= expected.items()
    one, other = torch.zeros(2), torch.ones(2)
    assert describe(one) == describe(torch.zeros(2)) != describe(other)
    described = json.dumps(describe({"a": [object(), torch.float32, OpenCLIP, Objective(), LoRA(), lambda: 0]}))
    assert " at 0x" not in described


def test_the_all_way_protocol_resumes_with_a_used_data_module(tmp_path):
    all_way = AllWay(seeds=[3, 4], batch_size=4)
    data = EuroSATDataModule(make_eurosat(tmp_path / "eurosat", per_class=6), shot=2, all_way=all_way)
    methods = {"ra": lambda: FewShotClassifier(tiny(), LoRA(rank=2), Objective(0.0, relation_source="current"))}

    def call(episodes):
        trainer = {**TRAINER, "max_epochs": 1}
        folder = str(tmp_path / "run")
        return run_protocol(
            methods, data, trainer=trainer, folder=folder, episodes=episodes, console=Console(quiet=True)
        )

    first, both = call(1), call(2)
    assert both.rows[:1] == first.rows
    assert [row["seed"] for row in both.rows] == [3, 4]
    assert call(2).rows == both.rows
    assert json.loads((tmp_path / "run" / "subset.json").read_text())["seeds"].keys() == {"3", "4"}


def test_importing_the_package_loads_neither_torch_nor_lightning():
    code = (
        "import sys, dtrap.protocol; print([m for m in ('torch', 'lightning', 'numpy', 'scipy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    code = code.replace('"max_epochs": 50', '"max_epochs": 2, "accelerator": "cpu"')
    scope = {"__name__": "page"}
    exec(compile(code, str(PAGE), "exec"), scope)
    assert len(scope["more"].rows) == 10
    assert set(scope["compared"].accuracy) == {"svl-ra", "clip_adapter-svl-ra"}
