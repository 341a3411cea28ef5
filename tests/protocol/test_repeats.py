"""Repeated held-out images: the corrected interval of Nadeau and Bengio, and a run from the rows to the report."""

import json

import numpy as np
import pytest
from dtrap.protocol.reports.numbers import unpaired_difference
from dtrap.protocol.statistics import CORRECTED, STUDENT, mean_interval, paired_difference, resampling_ratio
from dtrap.protocol.summary import result_lines, summarize
from layouts import make_folder
from scipy import stats

NAME = "Nadeau and Bengio's corrected resampled t"


def corrected(values, ratio):
    """Half width as in section 3 of the paper, equation 11: t sqrt((1/J + n2/n1) s²)."""
    count = len(values)
    spread = sum((value - sum(values) / count) ** 2 for value in values) / (count - 1)
    return stats.t.ppf(0.975, df=count - 1) * ((1 / count + ratio) * spread) ** 0.5


def test_the_corrected_interval():
    values = [70.0, 75.0, 64.0, 81.0, 72.0]
    found = mean_interval(values, resampled=10 / 30)
    assert found.kind == CORRECTED == NAME
    assert found.half_width == pytest.approx(corrected(values, 10 / 30), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((72.4 - found.half_width, 72.4 + found.half_width))
    assert found.half_width == pytest.approx(mean_interval(values).half_width * np.sqrt(1 + 5 / 3), rel=1e-12)
    assert "± 12.7 (95 %, Nadeau and Bengio's corrected resampled t over 5)" in str(found)
    assert mean_interval(values).kind == STUDENT
    assert mean_interval([50.0], 0.5).half_width is None
    assert mean_interval([50.0, 50.0], 0.5).identical


def test_it_covers_where_students_interval_does_not():
    """Means over overlapping draws: accuracies of one fixed set of images, of which each repeat tests a part."""
    rng, covered = np.random.default_rng(3), {None: 0, 0.25: 0}
    for _ in range(400):
        images = rng.random(50) < 0.7  # right or wrong, whatever was trained on
        values = [100.0 * rng.permutation(images)[:10].mean() for _ in range(10)]
        for ratio in covered:
            found = mean_interval(values, ratio)
            covered[ratio] += (found.low or found.mean) <= 70 <= (found.high or found.mean)
    assert covered[None] < 0.85 * 400
    assert 0.92 * 400 < covered[0.25] < 0.99 * 400


def test_paired_and_unpaired_differences_have_the_same_correction():
    first, second = {0: 60.0, 1: 71.0, 2: 68.0, 3: 50.0}, {0: 58.0, 1: 70.0, 2: 61.0, 4: 9.0}
    found = paired_difference(first, second, 0.5)
    assert (found.count, found.kind) == (3, CORRECTED)
    assert found.half_width == pytest.approx(corrected([2.0, 1.0, 7.0], 0.5), rel=1e-12)
    ours, theirs = [60.0, 71.0, 68.0, 50.0], [40.0, 44.0, 49.0]
    both = unpaired_difference(ours, theirs, (0.5, 0.5))
    parts = [np.var(ours, ddof=1) * (1 / 4 + 0.5), np.var(theirs, ddof=1) * (1 / 3 + 0.5)]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 3 + parts[1] ** 2 / 2)
    assert both.half_width == pytest.approx(stats.t.ppf(0.975, freedom) * sum(parts) ** 0.5, rel=1e-9)
    assert both.kind == CORRECTED


def row(episode, accuracy, method="a", **more):
    return {"episode": episode, "method": method, "accuracy": accuracy, "test_images": 9, "support_images": 18} | more


def test_rows_say_that_they_are_repeats():
    assert resampling_ratio([row(0, 50.0), row(1, 60.0)]) is None
    assert resampling_ratio([row(0, 50.0), row(1, 60.0, resampled=0.5)]) == 0.5  # a held-out run that was extended
    uneven = [row(0, 50.0, resampled=0.5), row(1, 60.0, test_images=8, support_images=20, resampled=0.4)]
    assert resampling_ratio(uneven) == pytest.approx(0.45)


def test_the_summary_names_the_interval_of_every_number():
    values = {"a": [60.0, 70.0, 80.0, 55.0], "b": [58.0, 71.0, 75.0, 55.0]}
    rows = [
        row(number, value, name, resampled=0.5, cross_entropy=value / 50)
        for name, found in values.items()
        for number, value in enumerate(found)
    ]
    summary = summarize(rows, "photos 3 classes", ["a", "b"], episodes=4, unit="repeat")
    method = summary["methods"]["a"]
    assert method["resampled"] == 0.5
    assert method["accuracy"]["kind"] == method["cross_entropy"]["kind"] == NAME
    assert method["accuracy"]["half_width"] == pytest.approx(corrected(values["a"], 0.5))
    difference = summary["differences"]["b"]
    assert difference["kind"] == summary["measure_differences"]["b"]["cross_entropy"]["kind"] == NAME
    assert difference["half_width"] == pytest.approx(corrected([2.0, -1.0, 5.0, 0.0], 0.5))
    assert f"(95 %, {NAME})" in result_lines(summary)[0]
    assert " · 4 repeats · 9 test images each · " in result_lines(summary)[0]


STUDY = """# Repeats over one folder
sets: [folder.yaml]
arms: {plain: methods/baseline.yaml, both: []}
compare: plain
episodes: 3
options: [--config, tuners/linear_head.yaml, --trainer.max_epochs, 3, --data.views, 1, --data.held_out, 0.34,
  --data.repeats, 3, --data.seed, 2]
"""


def of_file(folder):
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    names = dict.fromkeys(row["method"] for row in rows)
    return {name: [row["accuracy"] for row in rows if row["method"] == name] for name in names}


def test_a_run_and_its_report_name_the_interval_everywhere(dtrap, tmp_path, tiny_model):
    root = make_folder(tmp_path / "photos", counts=(8, 7, 6))
    words = ["--config", "folder.yaml", "--config", "tuners/linear_head.yaml", "--data.root", root, *tiny_model]
    words += ["--trainer.max_epochs", 3, "--data.views", 1, "--data.seed", 2]
    words += ["--protocol.folder", "run", "--protocol.compare", "tuners/clip_adapter.yaml"]
    status, out, err = dtrap("fit", *words, "--data.held_out", 0.34, "--data.repeats", 2)
    assert status == 0, err
    status, out, err = dtrap("fit", *words, "--data.held_out", 0.34, "--data.repeats", 4)  # extends the run
    assert status == 0, err
    folder = tmp_path / "run"
    accuracies = of_file(folder)
    logged = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"accuracy_corrected_interval", "accuracy_corrected_low", "accuracy_mean"} <= {*logged}
    assert "accuracy_interval" not in logged
    assert [len(found) for found in accuracies.values()] == [4, 4]
    summary = json.loads((folder / "summary.json").read_text())
    ratio = 7 / 14  # of 8, 7 and 6 images 3, 2 and 2 are held out
    for name, values in accuracies.items():
        method = summary["methods"][name]
        assert method["resampled"] == ratio
        assert method["test_images_each"] == [7, 7]
        if len(set(values)) > 1:
            assert method["accuracy"]["half_width"] == pytest.approx(corrected(values, ratio))
    (first, second), (difference,) = accuracies.values(), summary["differences"].values()
    pairs = [ours - theirs for ours, theirs in zip(first, second, strict=True)]
    assert difference["half_width"] == pytest.approx(corrected(pairs, ratio))
    assert f"± {difference['half_width']:.2f} (4 pairs, corrected resampled t)" in out
    assert f"4 repeats · 7 test images each · {summary['methods']['svl-ra']['accuracy']['mean']:.1f}" in out
    assert NAME in out
    command = next(line for line in out.splitlines() if line.startswith("A classifier of all images: dtrap fit"))
    assert command.endswith("--data.repeats null --data.held_out null --protocol.folder run_all_images")
    assert len(list((folder / "adapters").glob("*.safetensors"))) == 8
    forms = ("html", "latex", "markdown", "csv")
    status, out, err = dtrap("report", "run", *(word for form in forms for word in (f"--{form}", f"report.{form}")))
    assert status == 0, err
    for text in (out, *((tmp_path / f"report.{form}").read_text() for form in forms)):
        assert NAME in text.replace("&#39;", "'")
        assert "Student" not in text
    status, out, err = dtrap("fit", *command.split()[7:])
    assert status == 0, err
    assert "trained on 21 images" in out


def test_a_study_of_repeats_names_the_interval(dtrap, tmp_path, tiny_model):
    make_folder(tmp_path / "photos", counts=(8, 7, 6))
    (tmp_path / "small.yaml").write_text(STUDY)
    status, out, err = dtrap("study", "small.yaml", "--data.root", "photos", *tiny_model)
    assert status == 0, err
    assert f"intervals over repeats of held-out images: {NAME}" in " ".join(out.split())
    folder = next((tmp_path / "runs" / "study_small").rglob("results.jsonl")).parent
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    values = [row["accuracy"] for row in rows if row["method"] == "both"]
    tested, trained = rows[0]["test_images"], rows[0]["support_images"]
    assert f"{np.mean(values):.1f} ± {corrected(values, tested / trained):.1f}" in out
    for form in ([], ["--html", "page.html"]):
        status, out, err = dtrap("report", tmp_path / "runs" / "study_small", *form)
        assert status == 0, err
        text = (tmp_path / "page.html").read_text().replace("&#39;", "'") if form else out
        assert NAME in text
        assert "Student" not in text
