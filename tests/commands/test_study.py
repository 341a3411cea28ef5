"""`dtrap study` on the embedded data."""

import json
import os
import signal
import subprocess
import sys

import pytest
import yaml
from dtrap.commands.study_parsing import StudyParser, options_set
from dtrap.protocol.identity import identity
from dtrap.protocol.run_folder import ResultRows
from dtrap.protocol.studies.cells import cells_of
from dtrap.protocol.studies.file import read_study
from dtrap.protocol.studies.resolve import Resolver, methods_of
from run_folders import numbers, rows_of

SMALL = """# A small study
sets: [demo.yaml]
arms: {plain: methods/baseline.yaml, both: [], again: []}
compare: plain
episodes: 2
options: [--trainer.max_epochs, 2, --data.query, 2]
"""
GRID = """# Weights of both terms
sets: [demo.yaml]
grid:
  model.objective.anti_visual_weight: [0.0, 0.3]
  model.objective.relation_weight: [0.0, 1.0]
arms: {plain: methods/baseline.yaml, both: []}
compare: plain
episodes: 2
options: [--trainer.max_epochs, 2, --data.query, 2]
"""


@pytest.fixture
def study(dtrap, tmp_path):
    def run(text, *words, name="small.yaml"):
        (tmp_path / name).write_text(text)
        return dtrap("study", name, *words)

    return run


def part_of(folder):
    (part,) = json.loads((folder / "study.json").read_text())["parts"]
    return part


def test_a_cell_is_an_ordinary_run_and_more_episodes_compute_only_the_new_ones(study, dtrap, tmp_path):
    status, out, err = study(SMALL)
    assert (status, err) == (0, "")
    folder = tmp_path / "runs" / "study_small"
    part = part_of(folder)
    assert part["arms"] == ["plain", "both", "again"]
    (cell,) = part["cells"]
    assert cell["set_title"] == "Shapes (x-ray)"
    cell = folder / cell["folder"]
    assert [row["method"] for row in rows_of(cell)] == ["plain", "both", "again"] * 2
    assert rows_of(cell)[2]["same_as"] == "both"
    # The same numbers as those of dtrap fit.
    words = ["--config", "demo.yaml", "--config", "methods/baseline.yaml", "--trainer.max_epochs", 2, "--data.query", 2]
    run = ["--protocol.folder", "fit", "--protocol.method", "plain", "--protocol.episodes", 2]
    assert dtrap("fit", *words, *run, "--protocol.compare", "null")[0] == 0
    alone = numbers(tmp_path / "fit")
    assert {key: numbers(cell)[key] for key in alone} == alone
    before = (cell / "results.jsonl").read_bytes()
    assert study(SMALL, "--episodes", 3)[0] == 0
    after = (cell / "results.jsonl").read_bytes()
    assert after.startswith(before)
    assert len(rows_of(cell)) == 9
    status, out, _ = study(SMALL, "--episodes", 3)
    assert "1 of 1 runs are finished." in out
    assert (cell / "results.jsonl").read_bytes() == after
    # An edited file: the cell is another one now, which the plan says before the run refuses it.
    edited = SMALL.replace("max_epochs, 2", "max_epochs, 3")
    status, out, _ = study(edited, "--plan")
    assert "small/demo has results of another config" in out
    assert "trainer.max_epochs: 2 in the folder, 3 now" in out
    status, out, err = study(edited)
    assert status == 1
    assert "small/demo failed" in err
    assert "Delete that folder, or choose another one for the study with --folder." in err
    assert "--protocol" not in err
    assert "trainer.max_epochs: 2 in the folder, 3 now" in err
    assert (cell / "results.jsonl").read_bytes() == after


def test_equal_methods_of_other_cells_are_copied_and_equal_cells_share_a_folder(study, tmp_path):
    text = GRID + "seeds: [1, 2]\n"
    assert study(text, "--only", "demo_seed1_anti_visual_weight_0.0_relation_weight_1.0")[0] == 0
    assert study(text, "--only", "small")[0] == 0
    folder = tmp_path / "runs" / "study_small"
    cells = part_of(folder)["cells"]
    assert len({cell["folder"] for cell in cells}) == 8
    rows = {cell["name"]: rows_of(folder / cell["folder"]) for cell in cells}
    computed = [
        (row["seed"], row["episode"], row["method"], name)
        for name in rows
        for row in rows[name]
        if "same_as" not in row
    ]
    # Of each seed and episode: plain once, and both for three pairs of weights; with 0 and 0 it is plain.
    assert len(computed) == 2 * 2 * 4
    copied = [row for name in rows for row in rows[name] if "copied_from" in row]
    # With 0 and 0 both repeats plain, which in one cell is copied itself.
    assert len(copied) == 2 * 2 * 3 + 2
    for row in copied:
        (source,) = [
            other for other in rows_of(folder / row["copied_from"])
            if (other["method"], other["episode"]) == (row["same_as"], row["episode"])
        ]  # fmt: skip
        assert source["accuracy"] == row["accuracy"]
        assert source["losses"] == row["losses"]
    for name, found in rows.items():
        assert len({(row["method"], row["episode"]) for row in found}) == len(found) == 4, name
    twice = "sets: [demo.yaml]\nparts: {a: {}, b: {shots: [1]}}\nepisodes: 1\noptions: [--trainer.max_epochs, 1]\n"
    assert study(twice, name="twice.yaml")[0] == 0
    described = json.loads((tmp_path / "runs" / "study_twice" / "study.json").read_text())
    assert [cell["folder"] for part in described["parts"] for cell in part["cells"]] == ["a/demo", "a/demo"]
    assert not (tmp_path / "runs" / "study_twice" / "b").exists()


def test_a_failed_cell_is_named_and_the_others_go_on(study, tmp_path):
    text = SMALL.replace(
        "[demo.yaml]", "[isic_1shot.yaml, demo.yaml, eurosat_1shot.yaml]\nbackbones: [backbones/tiny.yaml]"
    )
    status, _, err = study(text)
    assert status == 2
    assert "isic_1shot.yaml needs a folder of images. Give --data-root FOLDER" in err
    assert "--data-root is data, which is not a folder" in study(text, "--data-root", "data")[2]
    (tmp_path / "data").mkdir()
    status, _, err = study(text, "--data-root", "data", "--episodes", 1)
    assert status == 1
    assert "small/isic_1shot_tiny failed" in err
    assert "dtrap data fetch isic" in err
    assert "dtrap data fetch eurosat" in err
    folder = tmp_path / "runs" / "study_small"
    assert len(rows_of(folder / "demo_tiny")) == 3
    assert not (folder / "isic_1shot_tiny" / "results.jsonl").exists()


def test_the_plan_counts_and_estimates_and_writes_nothing_else(study, dtrap, tmp_path):
    status, out, _ = study(GRID, "--plan")
    assert status == 0
    assert "4 cells: 0 of 16 rows done, 16 missing." in out
    assert "measured steps" in out
    assert "2 copied" in out
    folder = tmp_path / "runs" / "study_small"
    assert [path.name for path in folder.iterdir()] == ["plan.json"]
    assert study(GRID, "--only", "demo_anti_visual_weight_0.3_relation_weight_0.0")[0] == 0
    status, out, _ = study(GRID, "--plan")
    assert "4 cells: 4 of 16 rows done, 12 missing." in out
    assert "rows of other cells" in out
    code = "import sys\nfrom dtrap.cli import main\ntry: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    words = [sys.executable, "-c", code, "study", "small.yaml", "--plan"]
    again = subprocess.run(words, capture_output=True, text=True, check=True)
    assert again.stdout == f"{out}False\n"
    plain = GRID.replace("both: []", "both: [], more: [--stage_switch.stop, 4/5]")
    assert "4 cells: 4 of 24 rows done, 20 missing." in study(plain, "--plan")[1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (SMALL + "grid: {model.tuner.rnak: [1]}\n", ["small/demo_rnak_1", "--model.tuner.rnak", "Did you mean"]),
        (SMALL + "grid: {model.tuner.rank: [4, many]}\n", ["small/demo_rank_many", "found 'many'", "a whole number"]),
        (SMALL.replace("again: []", "again: [--data.shot, 2]"), ["the arm 'again' changes the data"]),
        (SMALL + "tuners: [tuners/coop.yaml]\ngrid: {model.tuner.rank: [4]}\n", ["--model.tuner.rank"]),
    ],
)
def test_a_mistake_in_a_cell_is_found_before_anything_is_written(study, tmp_path, text, told):
    for words in ([], ["--plan"]):
        status, _, err = study(text, *words)
        assert status == 2
        for part in told:
            assert part in err
        assert not (tmp_path / "runs").exists()


def test_folders_of_something_else_are_refused(study, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert "it is not the folder of a study" in study(SMALL, "--folder", "other")[2]
    (tmp_path / "other" / "study.json").write_text('{"format": "dtrap-study/1", "name": "ablation", "parts": []}')
    assert "is the folder of the study 'ablation', not of 'small'" in study(SMALL, "--folder", "other")[2]
    (tmp_path / "other" / "study.json").write_text("{")
    assert "not written by dtrap" in study(SMALL, "--folder", "other")[2]
    assert "--only is 'dmo'; expected one of demo" in study(SMALL, "--only", "dmo")[2]


WORDS = ["--config", "demo.yaml"]


@pytest.mark.parametrize(
    ("axes", "arm"),
    [
        ({"data.shot": 2, "data.seed": 7}, []),
        ({"model.objective.anti_visual_weight": 0.3, "model.objective.relation_weight": 1}, []),
        ({"model.objective.anti_visual_weight": 0.3}, ["--config", "methods/baseline.yaml"]),
        ({"model.objective.anti_visual_weight": 0.3}, ["--config", "methods/svl.yaml"]),
        ({"model.tuner.rank": 4, "model.tuner.encoder": "text"}, []),
        ({"model.tuner.dropout": 0.1}, ["--config", "tuners/coop.yaml"]),
        ({"model.tuner": "CoOp", "model.tuner.context_tokens": 4}, []),
        ({"stage_switch.stop": "4/5", "stage_switch.start": 0.2}, []),
        ({"model.learning_rate": 1e-3, "trainer.max_epochs": 7}, ["--model.learning_rate", "0.5"]),
        ({"trainer.max_epochs": 7}, ["--trainer.max_epochs=3"]),
        ({"model.template": "a {}"}, []),
    ],
)
def test_values_of_axes_are_set_as_the_command_line_sets_them(tmp_path, monkeypatch, axes, arm):
    monkeypatch.chdir(tmp_path)
    named = {"data.shot": "shots", "data.seed": "seeds"}
    content = {"sets": ["demo.yaml"], "grid": {}, "arms": {"one": [], "two": []}}
    for option, value in axes.items():
        if option in named:
            content[named[option]] = [value]
        else:
            content["grid"][option] = [value]
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(content))
    (cell,) = cells_of(read_study(tmp_path / "a.yaml"))
    object.__setattr__(cell.arms[1], "words", tuple(arm))
    parse = StudyParser(None)
    given = [word for option, value in axes.items() for word in (f"--{option}", str(value))]
    expected = parse([*WORDS, *given], arm)
    found = methods_of(Resolver(parse, options_set).resolve(cell), "folder", 3)[1]
    for part in (expected, found):
        part.values["protocol"] = {}
    assert identity(found.values) == identity(expected.values)
    for section in ("data", "model", "trainer", "stage_switch"):
        assert found.parsed[section] == expected.parsed[section]


def test_killed_at_any_moment_and_started_again_each_row_is_there_once(study, tmp_path, monkeypatch):
    text = GRID.replace("weight: [0.0, 0.3]", "weight: [0.3]")
    assert study(text, name="whole.yaml")[0] == 0
    write = ResultRows.append

    def run_and_die_after(rows, cut):
        """Run the study in a process that ends in the middle of writing a row."""
        process = os.fork()
        if process:
            return os.waitpid(process, 0)[1]
        left = iter(range(rows))

        def append(self, row):
            if next(left, None) is None:
                with self.path.open("ab") as file:
                    file.write(json.dumps(row).encode()[:cut])
                    file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, row)

        ResultRows.append = append
        try:
            study(text)
        finally:
            os._exit(0)

    assert [run_and_die_after(rows, cut) for rows, cut in ((1, 40), (4, 300))] == [signal.SIGKILL] * 2
    assert study(text)[0] == 0
    whole, parts = tmp_path / "runs" / "study_whole", tmp_path / "runs" / "study_small"
    for cell in part_of(whole)["cells"]:
        assert numbers(parts / cell["folder"]) == numbers(whole / cell["folder"])
    assert part_of(parts)["cells"] == part_of(whole)["cells"]
