"""`dtrap study` on the embedded data."""

import json

import pytest
from run_folders import numbers, rows_of

SMALL = """# A small study
sets: [demo.yaml]
arms: {plain: methods/baseline.yaml, both: [], again: []}
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


def test_a_cell_is_an_ordinary_run_and_more_episodes_compute_only_the_new_ones(study, dtrap, tmp_path):
    status, out, err = study(SMALL)
    assert (status, err) == (0, "")
    folder = tmp_path / "runs" / "study_small"
    described = json.loads((folder / "study.json").read_text())
    assert described["format"] == "dtrap-study/1"
    (part,) = described["parts"]
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
