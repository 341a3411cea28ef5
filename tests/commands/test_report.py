import csv
import json
import os
from pathlib import Path

import pytest
from dtrap.protocol.summary import summarize

METHODS = ("svl-ra", "baseline")


@pytest.fixture
def make_run(tmp_path):
    """Write the summary of a run: (name, description, {method: accuracies}, episodes asked, ...) -> its folder."""

    def make(name, description, accuracies, episodes=2, protocol="5-way 5-shot", **model):
        rows = [
            {"episode": episode, "method": method, "accuracy": value, "zero_shot_accuracy": 30.0, "seconds": 1.0}
            for method, values in accuracies.items()
            for episode, value in enumerate(values)
        ]
        folder = tmp_path / name
        folder.mkdir()
        summary = summarize(rows, description, list(accuracies), episodes=episodes) | {"protocol": protocol}
        for method in summary["methods"].values():
            method |= model
        (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return make


def cells_of(out, method):
    """Cells of a method's row, taken apart at two or more blanks."""
    (line,) = [line for line in out.splitlines() if line.split()[:1] == [method]]
    return [cell.strip() for cell in line.split("  ") if cell.strip()][1:]


def test_a_column_per_set_and_the_mean_over_sets(dtrap, make_run):
    runs = [
        make_run("a", "ISIC 5-way 5-shot", {"svl-ra": [50.0, 52.0], "baseline": [40.0, 40.0]}),
        make_run("b", "EuroSAT 5-way 5-shot", {"svl-ra": [80.0, 80.0], "baseline": [70.0, 72.0]}),
        make_run("c", "EuroSAT 5-way 1-shot", {"svl-ra": [61.0, 61.0]}, protocol="5-way 1-shot"),
        make_run("d", "ISIC 5-way 1-shot", {"svl-ra": [41.0, 41.0]}, protocol="5-way 1-shot"),
    ]
    status, out, err = dtrap("report", *runs[:2])
    assert (status, err) == (0, "")
    assert cells_of(out, "svl-ra") == ["51.0 ± 12.7, too few", "80.0 in all 2", "65.5"]
    assert cells_of(out, "baseline") == ["40.0 in all 2", "71.0 ± 12.7, too few", "55.5"]
    assert "mean of 2" in out
    assert "95 % intervals. ±: Student's t over episodes or seeds." in out
    status, out, _ = dtrap("report", *runs)
    same = ["80.0 in all 2", "61.0 in all 2", "41.0 in all 2"]
    assert cells_of(out, "svl-ra") == ["51.0 ± 12.7, too few", *same, "65.5", "51.0"]
    assert cells_of(out, "baseline") == ["40.0 in all 2", "71.0 ± 12.7, too few", "55.5"]
    assert out.count("mean of 2") == 2
    assert out.count("A mean over sets weighs each set alike and has no interval of its own.") == 1
    status, out, _ = dtrap("report", *runs[1:3])
    assert "mean" not in out


def test_one_set_has_no_mean_over_sets(dtrap, make_run):
    _, out, _ = dtrap("report", make_run("a", "ISIC 5-way 5-shot", {"svl-ra": [50.0, 52.0]}))
    assert cells_of(out, "svl-ra") == ["51.0 ± 12.7, too few"]
    assert "mean" not in out


def test_lines_are_whole_however_many_sets_there_are(dtrap, make_run):
    runs = [make_run(str(n), f"Set{n:02d} all-way 16-shot", {"svl-ra": [10.0 + n, 12.0 + n]}) for n in range(15)]
    _, out, _ = dtrap("report", *runs)
    assert cells_of(out, "svl-ra") == [*(f"{11 + n}.0 ± 12.7, too few" for n in range(15)), "18.0"]
    assert all(f"Set{n:02d}" in out for n in range(15))


def test_what_an_accuracy_rests_on_is_in_its_column_or_its_cell(dtrap, make_run, tmp_path):
    def run(name, **more):
        folder = make_run(name, name, {"svl-ra": [50.0, 60.0, 70.0, 80.0], "baseline": [50.0] * 4}, 4)
        summary = json.loads((folder / "summary.json").read_text())
        for method in summary["methods"].values():
            method |= {"test_images": 300, "test_images_each": [75, 75]}
        summary["methods"]["baseline"] |= more
        (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    status, out, err = dtrap("report", run("ISIC"), "--csv", "all.csv")
    assert status == 0, err
    assert "4 × 75 images" in out
    assert cells_of(out, "baseline") == ["50.0 in all 4"]
    reason = [{"episode": 3, "reason": "the loss is not finite from step 3"}]
    beside = {"balanced_accuracy": {"mean": 45.0}, "classes": 10, "untested_classes": ["a", "b"]}
    other = run("EuroSAT", test_images=10, diverged=reason, **beside)
    status, out, err = dtrap("report", other, "--csv", "all.csv")
    assert status == 0, err
    (cell,) = cells_of(out, "baseline")
    assert cell == ("50.0 in all 3 (1 diverged, 3 episodes, 10 images, 8 of 10 classes, balanced accuracy 45.0)")
    assert f"{other}: 2 of 10 classes of 'baseline' have no test image" in " ".join(out.split())
    with (tmp_path / "all.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert (rows["svl-ra"]["test_images"], rows["svl-ra"]["interval"]) == ("300", "Student's t")
    assert (rows["baseline"]["diverged"], rows["baseline"]["untested_classes"]) == ("1", "2")


def test_a_method_whose_episodes_all_diverged_has_no_accuracy(dtrap, make_run):
    folder = make_run("a", "ISIC", {"svl-ra": [None, None]})
    summary = json.loads((folder / "summary.json").read_text())
    summary["methods"]["svl-ra"]["diverged"] = [{"episode": n, "reason": "x"} for n in range(2)]
    (folder / "summary.json").write_text(json.dumps(summary))
    assert cells_of(dtrap("report", folder)[1], "svl-ra") == ["2 diverged"]


def test_a_run_folder_whose_name_is_not_utf8_is_written_into_the_table(dtrap, make_run, tmp_path):
    folder = make_run("a", "ISIC", {"svl-ra": [50.0, 52.0]})
    renamed = folder.rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    status, _, err = dtrap("report", renamed, "--csv", "all.csv")
    assert status == 0, err
    assert "caf\\udce9" in (tmp_path / "all.csv").read_text(encoding="utf-8")


def test_a_summary_of_an_earlier_version_is_read(dtrap, make_run):
    folder = make_run("a", "ISIC", {"svl-ra": [50.0, 52.0]})
    accuracy = {"mean": 51.0, "half_width": 12.7, "count": 2}
    old = {"episodes": 2, "accuracy": accuracy, "zero_shot_accuracy": None, "per_class": {}, "seconds": 1.0}
    content = {"description": "ISIC", "unit": "episode", "episodes": 2, "methods": {"svl-ra": old}, "differences": {}}
    (folder / "summary.json").write_text(json.dumps(content))
    status, out, err = dtrap("report", folder)
    assert status == 0, err
    assert cells_of(out, "svl-ra") == ["51.0 ± 12.7, too few"]


def test_unfinished_runs_are_marked_and_so_is_their_mean(dtrap, make_run):
    runs = [
        make_run("a", "ISIC", {"svl-ra": [50.0] * 37, "baseline": [41.0] * 400, "new": []}, episodes=400),
        make_run("b", "EuroSAT", {"svl-ra": [80.0], "baseline": [71.0], "new": [1.0]}, episodes=1),
    ]
    _, out, _ = dtrap("report", *runs)
    assert cells_of(out, "svl-ra") == ["50.0 in all 37 (37 of 400)", "80.0", "65.0 (unfinished)"]
    assert cells_of(out, "baseline") == ["41.0 in all 400 (400 episodes)", "71.0", "56.0"]
    assert cells_of(out, "new") == ["0 of 400", "1.0"]


def test_a_run_without_held_out_images_claims_no_accuracy(dtrap, make_run):
    runs = [
        make_run("a", "my_photos 4 classes", {"svl-ra": [None]}, episodes=1),
        make_run("b", "X", {"svl-ra": [5.0]}, 1),
    ]
    _, out, _ = dtrap("report", *runs)
    assert cells_of(out, "svl-ra") == ["no accuracy", "5.0"]


def test_rows_of_two_runs_on_one_set_go_together_if_their_methods_differ(dtrap, make_run):
    first = make_run("a", "ISIC 5-way 5-shot", {"svl-ra": [50.0, 52.0]})
    second = make_run("b", "ISIC 5-way 5-shot", {"baseline": [40.0, 40.0], "coop": [1.0, 1.0]})
    third = make_run("c", "ISIC 5-way 5-shot", {"other": [40.0, 40.0], "coop": [2.0, 2.0]})
    _, out, _ = dtrap("report", first, second)
    assert [cells_of(out, name) for name in ("svl-ra", "baseline")] == [
        ["51.0 ± 12.7, too few"],
        ["40.0 in all 2"],
    ]
    status, _, err = dtrap("report", first, second, third)
    assert status == 2
    for part in (str(second), str(third), "'coop'", "ISIC 5-way 5-shot"):
        assert part in err
    status, _, err = dtrap("report", first, first)
    assert status == 2


def test_methods_of_one_name_with_several_backbones_or_tuners_are_several_rows(dtrap, make_run, tmp_path):
    base, large = {"backbone": "ViT-B-16/openai"}, {"backbone": "ViT-L-14/openai"}
    runs = [
        make_run("a", "ISIC", {"svl-ra": [50.0], "baseline": [40.0]}, 1, **base, tuner="LoRA"),
        make_run("b", "EuroSAT", {"svl-ra": [70.0], "baseline": [60.0]}, 1, **large, tuner="LoRA"),
        make_run("c", "EuroSAT", {"svl-ra": [71.0]}, 1, **large, tuner="CoOp"),
    ]
    status, out, err = dtrap("report", *runs, "--csv", "all.csv")
    assert status == 0, err
    lines = [line.split("  ") for line in out.splitlines()]
    rows = {cells[1]: [cell.strip() for cell in cells[2:] if cell.strip()] for cells in lines if len(cells) > 2}
    assert rows["svl-ra (ViT-B-16/openai, LoRA)"] == ["50.0"]
    assert rows["svl-ra (ViT-L-14/openai, LoRA)"] == ["70.0"]
    assert rows["svl-ra (ViT-L-14/openai, CoOp)"] == ["71.0"]
    assert rows["baseline (ViT-B-16/openai)"] == ["40.0"]
    with (tmp_path / "all.csv").open() as file:
        found = [(row["method"], row["backbone"], row["tuner"], row["mean"]) for row in csv.DictReader(file)]
    assert ("svl-ra", "ViT-L-14/openai", "CoOp", "71.0") in found
    assert len(found) == 5


def test_the_csv_file_has_the_same_numbers(dtrap, make_run, tmp_path):
    runs = [
        make_run("a", "ISIC, lesions", {"svl-ra": [50.0, 52.0], "baseline": [40.0]}),
        make_run("b", "EuroSAT", {"svl-ra": [80.0, 81.0]}),
    ]
    status, out, _ = dtrap("report", *runs, "--csv", "tables/all.csv")
    assert status == 0
    assert "tables/all.csv" in out
    with (tmp_path / "tables" / "all.csv").open() as file:
        rows = {(row["method"], row["set"]): row for row in csv.DictReader(file)}
    assert set(rows) == {
        ("svl-ra", "ISIC, lesions"),
        ("svl-ra", "EuroSAT"),
        ("svl-ra", "mean of 2"),
        ("baseline", "ISIC, lesions"),
    }
    whole = rows["svl-ra", "EuroSAT"]
    assert (float(whole["mean"]), whole["episodes"], whole["episodes_asked"]) == (80.5, "2", "2")
    assert float(whole["half_width"]) == pytest.approx(6.3531, abs=1e-4)
    assert whole["run"] == str(runs[1])
    assert float(rows["svl-ra", "mean of 2"]["mean"]) == 65.75
    part = rows["baseline", "ISIC, lesions"]
    assert (part["half_width"], part["episodes"], part["episodes_asked"]) == ("", "1", "2")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, ["has no summary.json", "dtrap fit"]),
        ("{", ["not a summary", "Start that run again"]),
        ("[]", ["not a summary"]),
        ("{}", ["not a summary", "no 'episodes'"]),
        ('{"description": "X", "episodes": 2, "methods": {}}', ["no method"]),
        ('{"description": 3, "episodes": 2, "methods": {"a": {"accuracy": null, "episodes": 2}}}', ["no description"]),
        ('{"description": "X", "episodes": 2, "methods": {"a": {"episodes": 2}}}', ["no 'accuracy'"]),
        ('{"description": "X", "episodes": "2", "methods": {}}', ["'2'", "instead of a number"]),
        (
            '{"description": "X", "episodes": 2, "methods": {"a": {"episodes": 2, "accuracy": {"mean": NaN}}}}',
            ["nan", "instead of a number"],
        ),
        (b"\xff\xfe", ["not a summary"]),
    ],
)
def test_a_missing_or_damaged_summary_is_told_with_the_remedy(dtrap, make_run, tmp_path, content, told):
    sound = make_run("sound", "ISIC", {"svl-ra": [50.0, 52.0]})
    (tmp_path / "bad").mkdir()
    if content is not None:
        (tmp_path / "bad" / "summary.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    status, out, err = dtrap("report", sound, tmp_path / "bad")
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    for part in [str(tmp_path / "bad"), *told]:
        assert part in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], ["RUN", "dtrap report --help"]),
        (["nowhere"], ["nowhere is not a folder"]),
        (["run", "--cvs", "x"], ["'--cvs'"]),
        (["run", "--csv"], ["--csv"]),
        (["run", "--csv", "taken"], ["taken", "cannot write", "--csv"]),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(dtrap, make_run, tmp_path, words, told):
    make_run("run", "ISIC", {"svl-ra": [50.0, 52.0]})
    (tmp_path / "taken").mkdir()
    status, _, err = dtrap("report", *words)
    assert status == 2
    assert len(err.splitlines()) == 1
    for part in told:
        assert part in err


def test_the_summary_that_fit_leaves_is_read(dtrap):
    for seed in (1, 2):
        words = ["--data.seed", seed, "--protocol.folder", f"run_{seed}"]
        status, _, err = dtrap(
            "fit", "--config", "demo.yaml", "--protocol.episodes", 1, "--trainer.max_epochs", 1, *words
        )
        assert status == 0, err
    status, out, _ = dtrap("report", "run_1")
    assert status == 0
    for method in METHODS:
        (cell,) = cells_of(out, method)
        summary = json.loads(Path("run_1/summary.json").read_text())["methods"][method]
        assert summary["tuner"] == "LoRA"
        assert summary["backbone"]
        accuracy = summary["accuracy"]
        assert cell == f"{accuracy['mean']:.1f}, {accuracy['low']:.1f} to {accuracy['high']:.1f}"
    assert "1 × 75 images" in out
    assert "a to b: exact binomial over the test images" in out
    status, _, err = dtrap("report", "run_1", "run_2")
    assert status == 2
    assert "run_1 and run_2 both have 'svl-ra'" in err
