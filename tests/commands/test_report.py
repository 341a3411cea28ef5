import csv
import json
import os
from pathlib import Path

import pytest
from run_writer import write_run
from scipy import stats

METHODS = ("svl-ra", "baseline")
OLD = Path(__file__).parents[1] / "data" / "old_run"


@pytest.fixture
def make_run(tmp_path):
    """Write a run folder in the test's folder, see `write_run`."""
    return lambda name, *args, **options: write_run(tmp_path / name, *args, **options)


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
    assert "mean of" not in out


def test_one_set_has_no_mean_over_sets(dtrap, make_run):
    _, out, _ = dtrap("report", make_run("a", "ISIC 5-way 5-shot", {"svl-ra": [50.0, 52.0]}))
    assert cells_of(out, "svl-ra") == ["51.0 ± 12.7, too few"]
    assert "mean of" not in out


def test_lines_are_whole_however_many_sets_there_are(dtrap, make_run):
    runs = [make_run(str(n), f"Set{n:02d} all-way 16-shot", {"svl-ra": [10.0 + n, 12.0 + n]}) for n in range(15)]
    _, out, _ = dtrap("report", *runs)
    assert cells_of(out, "svl-ra") == [*(f"{11 + n}.0 ± 12.7, too few" for n in range(15)), "18.0"]
    assert all(f"Set{n:02d}" in out for n in range(15))


def test_what_an_accuracy_rests_on_is_in_its_column_or_its_cell(dtrap, make_run, tmp_path):
    run = make_run(
        "ISIC", "ISIC", {"svl-ra": [50.0, 60.0, 70.0, 80.0], "baseline": [50.0] * 4}, 4, more={"test_images": 75}
    )
    status, out, err = dtrap("report", run)
    assert status == 0, err
    assert "4 × 75 images" in out
    assert cells_of(out, "baseline") == ["50.0 in all 4"]
    path = run / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    names = [f"class {number}" for number in range(10)]
    tested = {
        "test_images": 5,
        "balanced_accuracy": 45.0,
        "classes": names,
        "per_class": dict.fromkeys(names[:8], 50.0),
    }
    changed = [row | tested if row["method"] == "baseline" else row for row in rows]
    changed[-1] |= {"accuracy": None, "diverged": "the loss is not finite from step 3"}
    path.write_text("".join(f"{json.dumps(row)}\n" for row in changed))
    status, out, err = dtrap("report", run, "--csv", "all.csv")
    assert status == 0, err
    (cell,) = cells_of(out, "baseline")
    assert cell == "50.0 in all 3 (1 diverged, 3 × 5 images, 8 of 10 classes, balanced accuracy 45.0)"
    assert f"{run}: 2 of 10 classes of 'baseline' have no test image" in out
    assert "'baseline' on ISIC: 1 diverged and left out (the loss is not finite from step 3)." in out
    with (tmp_path / "all.csv").open() as file:
        found = {row["method"]: row for row in csv.DictReader(file)}
    assert (found["svl-ra"]["test_images"], found["svl-ra"]["interval"]) == ("300", "Student's t")
    assert (found["baseline"]["diverged"], found["baseline"]["untested_classes"]) == ("1", "2")
    assert (found["baseline"]["difference"], found["baseline"]["pairs"]) == ("10.0", "3")


def test_a_method_whose_episodes_all_diverged_has_no_accuracy(dtrap, make_run):
    folder = make_run("a", "ISIC", {"svl-ra": [None, None]}, more={"diverged": "x"})
    assert cells_of(dtrap("report", folder)[1], "svl-ra") == ["2 diverged"]


def test_a_run_folder_whose_name_is_not_utf8_is_written_into_the_table(dtrap, make_run, tmp_path):
    folder = make_run("a", "ISIC", {"svl-ra": [50.0, 52.0]})
    renamed = folder.rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    status, _, err = dtrap("report", renamed, "--csv", "all.csv")
    assert status == 0, err
    assert "caf\\udce9" in (tmp_path / "all.csv").read_text(encoding="utf-8")


def test_runs_of_an_earlier_version_are_read(dtrap):
    status, out, err = dtrap("report", OLD / "demo", OLD / "all_way")
    assert status == 0, err
    assert cells_of(out, "svl-ra") == ["72.2 ± 70.6, too few", "16.7, 3.6 to 41.4 (1 of 2)"]
    assert cells_of(out, "baseline") == ["72.2 ± 211.8, too few"]


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
    second = make_run("b", "ISIC 5-way 5-shot", {"baseline": [40.0, 41.0], "coop": [1.0, 1.0]})
    _, out, _ = dtrap("report", first, second)
    assert [cells_of(out, name) for name in ("svl-ra", "baseline")] == [
        ["51.0 ± 12.7, too few"],
        ["40.5 ± 6.4, too few"],
    ]
    assert "svl-ra minus baseline +10.50 ± 6.35 (2 pairs, too few)" in " ".join(out.split())


def test_the_same_method_of_several_runs_is_one_whose_episodes_add_up(dtrap, make_run, tmp_path):
    short = make_run("short", "ISIC", {"svl-ra": [50.0, 52.0], "baseline": [40.0, 40.0]})
    longer = make_run("longer", "ISIC", {"svl-ra": [50.0, 52.0, 60.0, 61.0]}, 4)
    for runs in ([short, longer], [longer, short], [longer, short, short]):
        status, out, err = dtrap("report", *runs, "--csv", "all.csv")
        assert (status, err) == (0, "")
        assert cells_of(out, "svl-ra") == ["55.8 ± 8.8 (4 episodes)"]
        assert "Both are shown" not in out
        with (tmp_path / "all.csv").open() as file:
            (row,) = [row for row in csv.DictReader(file) if row["method"] == "svl-ra"]
        assert row["run"] == "; ".join(map(str, dict.fromkeys(runs)))
    # an option that an earlier version did not have: the rows show that it changed nothing
    newer = make_run("newer", "ISIC", {"svl-ra": [50.0]}, settings={"svl-ra": {"model": {"clipping": 1.0}}})
    assert cells_of(dtrap("report", longer, newer)[1], "svl-ra") == ["55.8 ± 8.8"]


def test_methods_of_one_name_that_are_not_the_same_are_both_shown(dtrap, make_run):
    slow, fast = ({"svl-ra": {"model": {"init_args": {"learning_rate": rate}}}} for rate in (0.1, 0.2))
    runs = [
        make_run("a", "ISIC", {"svl-ra": [50.0, 52.0]}, settings=slow),
        make_run("b", "ISIC", {"svl-ra": [60.0, 62.0]}, settings=fast),
        make_run("c", "EuroSAT", {"svl-ra": [70.0, 72.0]}, settings=slow),
        make_run("d", "EuroSAT", {"svl-ra": [80.0, 82.0]}, settings=fast),
    ]
    status, out, err = dtrap("report", *runs)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert next("51.0" in line and "71.0" in line for line in lines if "svl-ra (learning_rate 0.1) " in line)
    assert next("61.0" in line and "81.0" in line for line in lines if "svl-ra (learning_rate 0.2) " in line)
    assert "'svl-ra' on ISIC in a and b: model.learning_rate is 0.1 and 0.2. Both are shown." in out
    other = make_run("e", "ISIC", {"svl-ra": [50.0, 53.0]}, settings=slow)
    status, out, err = dtrap("report", runs[0], other)
    assert (status, err) == (0, "")
    assert "svl-ra (in a)" in out
    assert "svl-ra (in e)" in out
    assert "the same config, but other numbers in 1 of 2 common episodes" in out


def test_runs_on_other_episodes_are_compared_unpaired(dtrap, make_run, tmp_path):
    ours, theirs = [50.0, 52.0, 55.0, 51.0], [40.0, 45.0, 47.0, 41.0, 39.0]
    runs = [
        make_run("a", "ISIC 5-way 5-shot", {"svl-ra": ours}, 4),
        make_run("b", "ISIC 5-way 5-shot", {"baseline": theirs}, 5, data={"seed": 2}),
    ]
    status, out, err = dtrap("report", *runs, "--csv", "all.csv")
    assert (status, err) == (0, "")
    found = stats.ttest_ind(ours, theirs, equal_var=False)
    interval = found.confidence_interval()
    half_width = (interval.high - interval.low) / 2
    mean = sum(ours) / 4 - sum(theirs) / 5
    assert f"{mean:+.2f} ± {half_width:.2f} [4 and 5]" in out
    assert "ISIC 5-way 5-shot, seed 1" in " ".join(out.split())
    assert "svl-ra on ISIC 5-way 5-shot, seed 1 minus baseline, unpaired" in out
    assert "Unpaired: the two are on different episodes" in out
    with (tmp_path / "all.csv").open() as file:
        (row,) = [row for row in csv.DictReader(file) if row["method"] == "baseline"]
    assert (row["difference_kind"], row["pairs"]) == ("unpaired", "")
    assert float(row["difference_half_width"]) == pytest.approx(half_width)
    # the same options, but the rows are of other classes
    other = make_run("c", "ISIC 5-way 5-shot", {"coop": ours}, 4, more={"classes": ["x"]})
    _, out, _ = dtrap("report", runs[0], make_run("d", "ISIC 5-way 5-shot", {"x": ours}, 4, more={"classes": ["y"]}))
    assert "paired, episodes" not in out
    assert "minus x" in dtrap("report", other, tmp_path / "d")[1]
    assert "unpaired" in dtrap("report", other, tmp_path / "d")[1]


def test_the_best_is_marked_where_the_intervals_allow_it(dtrap, make_run):
    values = [50.0, 55.0, 52.0, 58.0, 51.0]
    clear = {
        "svl-ra": [v + 5 + d for v, d in zip(values, [0, 1, 0, 1, 0], strict=True)],
        "a": values,
        "b": [v - 9 + v / 50 for v in values],
    }
    _, out, _ = dtrap("report", make_run("clear", "ISIC", clear, 5))
    assert cells_of(out, "svl-ra")[0].endswith(" *")
    assert not cells_of(out, "a")[0].endswith(" *")
    assert "Marked: better than each other method" in out
    unclear = {"svl-ra": [v + d for v, d in zip(values, [9, -8, 9, -8, 1], strict=True)], "a": values}
    _, out, _ = dtrap("report", make_run("unclear", "ISIC", unclear, 5))
    assert " *" not in out
    assert "No method is marked as the best: an interval of a paired difference contains 0" in out


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
        ('{"description": 3, "episodes": 2, "methods": {"a": {}}}', ["the description is '3'"]),
        ('{"description": "X", "episodes": "2", "methods": {}}', ["'2'", "instead of a number"]),
        ('{"description": "X", "episodes": NaN, "methods": {}}', ["nan", "instead of a number"]),
        (b"\xff\xfe", ["not a summary"]),
    ],
)
def test_a_missing_or_damaged_summary_is_told_with_the_remedy(dtrap, make_run, tmp_path, content, told):
    sound, bad = (make_run(name, "ISIC", {"svl-ra": [50.0, 52.0]}) for name in ("sound", "bad"))
    (bad / "summary.json").unlink()
    if content is not None:
        (bad / "summary.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    status, out, err = dtrap("report", sound, bad)
    assert (status, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith("Left out: ")]
    assert cells_of(out, "svl-ra") == ["51.0 ± 12.7, too few"]
    alone, _, err = dtrap("report", bad)
    assert alone == 2
    assert len(err.splitlines()) == 1
    for part in [str(bad), *told]:
        assert part in line
        assert part in err


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("identity.json", None, ["has no identity.json"]),
        ("identity.json", '{"methods": {}}', ["identity.json: not written by dtrap", "no 'svl-ra'"]),
        ("results.jsonl", None, ["has no results.jsonl"]),
        ("results.jsonl", "{}\n{}\n", ["results.jsonl, line 1: not a result row", "Delete that line"]),
        ("results.jsonl", '{"method": "svl-ra", "episode": 0, "accuracy": "1"}\n', ["line 1", "'1'"]),
        ("results.jsonl", '{"method": "svl-ra", "episode": 0, "accuracy": 1e9}\n', ["line 1", "between 0 and 100"]),
        ("results.jsonl", '{"method": "svl-ra", "episode": 0, "alignment": [3]}\n', ["line 1"]),
        ("results.jsonl", '{"method": "svl-ra", "episode": 0, "classes": ["a"], "confusion": [[1, 2]]}\n', ["line 1"]),
        ("results.jsonl", "[" * 100_000 + "\n", ["line 1", "nested too deep"]),
    ],
)
def test_other_damaged_files_are_left_out_too(dtrap, make_run, file, content, told):
    sound, bad = (make_run(name, "ISIC", {"svl-ra": [50.0, 52.0]}) for name in ("sound", "bad"))
    (bad / file).unlink()
    if content is not None:
        (bad / file).write_text(content)
    status, out, err = dtrap("report", bad, sound)
    assert (status, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith("Left out: ")]
    for part in [str(bad), *told]:
        assert part in line


def test_a_row_that_a_kill_has_cut_is_left_out_alone(dtrap, make_run):
    folder = make_run("a", "ISIC", {"svl-ra": [50.0, 52.0]}, 3)
    with (folder / "results.jsonl").open("a") as file:
        file.write('{"episode": 2, "method": "svl')
    assert cells_of(dtrap("report", folder)[1], "svl-ra") == ["51.0 ± 12.7, too few (2 of 3)"]


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
        words = ["--data.seed", seed, "--protocol.folder", f"run_{seed}", "--trainer.callbacks", "null"]
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
    status, out, err = dtrap("report", "run_1", "run_2")
    assert (status, err) == (0, "")
    assert "seed 2" in out
    assert "unpaired" in out
