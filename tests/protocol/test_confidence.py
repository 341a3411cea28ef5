"""Cross-entropy and calibration error in rows, files, tables and loggers, against NumPy, SciPy and torchmetrics."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dtrap.datamodules import EuroSATDataModule
from dtrap.errors import DtrapError
from dtrap.protocol.recorder import evenly_spaced
from dtrap.protocol.result import ProtocolResult
from dtrap.protocol.summary import difference_lines, render, summarize
from layouts import make_eurosat
from rich.console import Console
from run_folders import rows_of, summary_of
from safetensors import safe_open
from scipy import stats
from torchmetrics.classification import MulticlassCalibrationError

WAY, QUERY, EPISODES = 5, 2, 4
METHODS = ("svl-ra", "baseline")


@pytest.fixture(scope="module")
def ran(tmp_path_factory, tiny_clip_files):
    """The data and the folder of a run of two methods with their predictions, and the words that resume it."""
    from dtrap.cli import main

    folder = tmp_path_factory.mktemp("confidence")
    root = make_eurosat(folder / "eurosat", per_class=4)
    config, checkpoint = map(str, tiny_clip_files)
    words = [
        "fit", "--config", "eurosat_1shot.yaml", "--data.root", str(root), "--data.query", str(QUERY),
        "--model.backbone.name", config, "--model.backbone.pretrained", checkpoint, "--trainer.max_epochs", "4",
        "--protocol.compare", "methods/baseline.yaml", "--protocol.folder", str(folder / "run"),
        "--protocol.episodes", str(EPISODES), "--model.learning_rate", "0.01",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        main([*words, "--protocol.save_predictions", "true", "--protocol.save_adapters", "true"])
    assert stop.value.code == 0
    return root, folder / "run", words


def opened(folder, row):
    with safe_open(folder / "predictions" / f"episode_{row['episode']:04d}_{row['method']}.safetensors", "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def softmax(scores):
    exact = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    return exact / exact.sum(axis=1, keepdims=True)


def calibration_error(probabilities, labels):
    """Sum over 15 bins of share of images x |accuracy - mean highest probability|."""
    highest, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((highest * 15).astype(int), 15)
    return sum((bins == b).mean() * abs(right[bins == b].mean() - highest[bins == b].mean()) for b in set(bins))


def test_the_numbers_of_a_row_follow_from_the_saved_scores(ran):
    _, folder, _ = ran
    rows = rows_of(folder)
    assert len(rows) == EPISODES * len(METHODS)
    for row in rows:
        saved, metadata = opened(folder, row)
        scores, labels = saved["scores"], saved["labels"]
        assert (scores.dtype, scores.shape) == (np.float32, (WAY * QUERY, WAY))
        probabilities = softmax(scores)
        assert row["cross_entropy"] == pytest.approx(-np.log(probabilities[range(10), labels]).mean(), rel=1e-9)
        assert row["calibration_error"] == pytest.approx(100 * calibration_error(probabilities, labels), rel=1e-9)
        metric = MulticlassCalibrationError(WAY, n_bins=15, norm="l1")
        expected = metric(torch.from_numpy(probabilities), torch.from_numpy(labels))
        assert row["calibration_error"] == pytest.approx(100 * float(expected), rel=1e-6)
        assert row["accuracy"] == pytest.approx(100 * (scores.argmax(axis=1) == labels).mean())
        assert json.loads(metadata["class_names"]) == row["classes"]
        # Zero-shot numbers are of the backbone alone, the same in both methods.
        (other,) = [r for r in rows if r["episode"] == row["episode"] and r["method"] != row["method"]]
        assert row["zero_shot_cross_entropy"] == other["zero_shot_cross_entropy"] != row["cross_entropy"]
        assert row["zero_shot_calibration_error"] == other["zero_shot_calibration_error"]


def test_a_file_of_predictions_has_the_names_of_the_queries_and_the_most_confident_errors(ran):
    root, folder, _ = ran
    data = EuroSATDataModule(root, shot=1, query=QUERY)
    for row in rows_of(folder):
        saved, metadata = opened(folder, row)
        data.set_episode(row["episode"])
        images = json.loads(metadata["images"])
        found = [next(Path(root).rglob(Path(image).name)) for image in images]
        assert found == [Path(data.index.paths[i]) for i in data.query_ids]
        assert all(str(path).endswith(image) for path, image in zip(found, images, strict=True))
        wrong = np.flatnonzero(saved["scores"].argmax(axis=1) != saved["labels"])
        highest = softmax(saved["scores"]).max(axis=1)
        expected = sorted(wrong, key=lambda i: -highest[i])[:12]
        assert saved["thumbnail_rows"].tolist() == expected
        assert saved["thumbnails"].dtype == np.uint8
        assert saved["thumbnails"].shape == (len(expected), 64, 64, 3)
        for picture, number in zip(saved["thumbnails"], expected, strict=True):
            whole = np.asarray(data.load_image(data.query_ids[number]))  # 24 x 18 pixels, so 64 x 48
            assert np.abs(picture[8:56].mean(axis=(0, 1)) - whole.mean(axis=(0, 1))).max() < 3
            assert not picture[:8].any()


def test_summary_and_logger_have_scipys_intervals_and_the_table_shows_them(ran, dtrap):
    _, folder, words = ran
    rows, summary = rows_of(folder), summary_of(folder)
    columns = {m: {r["episode"]: r for r in rows if r["method"] == m} for m in METHODS}
    status, out, err = dtrap(*words)
    assert status == 0, err
    assert "Already finished" in out  # files that a run writes do not belong to its identity
    last = list(csv.DictReader((folder / "metrics.csv").open()))[-1]
    for name in ("cross_entropy", "calibration_error"):
        values = {m: np.array([columns[m][e][name] for e in range(EPISODES)]) for m in METHODS}
        for method, numbers in values.items():
            found = summary["methods"][method][name]
            low, high = stats.t.interval(0.95, EPISODES - 1, numbers.mean(), stats.sem(numbers))
            assert [found["mean"], found["low"], found["high"]] == pytest.approx([numbers.mean(), low, high])
            assert (found["count"], found["images"]) == (EPISODES, EPISODES * WAY * QUERY)
            ending = "" if method == "svl-ra" else "/baseline"
            assert float(last[f"{name}_mean{ending}"]) == pytest.approx(numbers.mean())
            assert float(last[f"{name}_interval{ending}"]) == pytest.approx((high - low) / 2)
        paired = stats.ttest_rel(values["svl-ra"], values["baseline"]).confidence_interval(0.95)
        found = summary["measure_differences"]["baseline"][name]
        assert [found["low"], found["high"]] == pytest.approx([paired.low, paired.high])
        assert float(last[f"{name}_difference_mean/baseline"]) == pytest.approx(found["mean"])
        last_pair = [columns[m][EPISODES - 1][name] for m in METHODS]
        assert float(last[f"{name}_difference/baseline"]) == pytest.approx(last_pair[0] - last_pair[1])
    assert summary["measure_differences"]["baseline"]["accuracy"] == summary["differences"]["baseline"]
    (line,) = [line for line in out.splitlines() if "cross-entropy" in line and "· svl-ra ·" in line]
    mean = summary["methods"]["svl-ra"]["cross_entropy"]
    assert f"cross-entropy {mean['mean']:.3f} ± {mean['half_width']:.3f} nats (zero-shot " in line
    difference = summary["measure_differences"]["baseline"]["cross_entropy"]
    assert f"{difference['mean']:+.3f} ± {difference['half_width']:.3f}" in out
    tables = out.splitlines()[: out.splitlines().index(line)]
    assert max(map(len, tables)) <= 120


def test_a_saved_adapter_is_tested_with_the_same_numbers(ran, dtrap):
    _, folder, _ = ran
    adapters = folder / "adapters" / "episode_0001_svl-ra.safetensors"
    status, out, err = dtrap("test", "--config", folder / "config.yaml", "--adapter", adapters)
    assert status == 0, err
    (row,) = [row for row in rows_of(folder) if (row["episode"], row["method"]) == (1, "svl-ra")]
    before = f"(zero-shot {row['zero_shot_cross_entropy']:.3f})"
    assert f"cross-entropy {row['cross_entropy']:.3f} nats {before}" in out
    assert f"calibration error {row['calibration_error']:.1f} %" in out


def test_files_of_predictions_are_missed_cleared_and_need_space(ran, dtrap, tmp_path, monkeypatch):
    from dtrap.protocol import space

    *_, words = ran
    more = ["--protocol.folder", "new", "--protocol.episodes", 1]
    assert dtrap(*words, *more)[0] == 0
    more += ["--protocol.save_predictions", "true"]
    _, out, _ = dtrap(*words, *more)
    assert "this run saved no predictions; use --protocol.overwrite true" in out
    (tmp_path / "new" / "predictions").mkdir()
    (tmp_path / "new" / "predictions" / "of an earlier run").touch()
    left = tmp_path / "new" / "predictions" / ".episode_0000_svl-ra.safetensors.999999999.tmp"
    left.touch()
    status, out, err = dtrap(*words, *more, "--protocol.overwrite", "true")
    assert status == 0, err
    assert "Predictions: new/predictions" in out
    names = sorted(path.name for path in (tmp_path / "new" / "predictions").iterdir())
    assert names == ["episode_0000_baseline.safetensors", "episode_0000_svl-ra.safetensors"]
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: space.shutil._ntuple_diskusage(10**9, 10**9, 0))
    status, _, err = dtrap(*words, *more, "--protocol.folder", "full")
    assert status == 2
    assert "the run would write predictions of 299.1 kB" in err
    assert "leave out --protocol.save_predictions" in err


# Rows of earlier versions, and results in Python


def rows(method, measured, accuracies=(50.0, 60.0, 70.0)):
    return [
        {"episode": e, "method": method, "accuracy": a, "test_images": 10, "seconds": 1.0}
        | ({} if value is None else {"cross_entropy": value})
        for e, (a, value) in enumerate(zip(accuracies, measured, strict=True))
    ]


def printed(summary):
    stream = io.StringIO()
    render(summary, Console(file=stream, width=120))
    return stream.getvalue()


def test_rows_of_an_earlier_version_are_said_to_be_missing():
    found = rows("a", [None, 2.0, 3.0]) + rows("b", [1.0, 2.5, 2.5])
    summary = summarize(found, "ISIC", ["a", "b"], episodes=3)
    assert summary["methods"]["a"]["cross_entropy"]["count"] == 2
    assert summary["methods"]["a"]["accuracy"]["count"] == 3
    text = printed(summary)
    assert "2.500 ± 6.353 nats (in 2 of 3 episodes, too few)" in text
    assert "+0.000 ± 6.353 (2 pairs, too few)" in text
    old = printed(summarize(rows("a", [None] * 3) + rows("b", [None] * 3), "ISIC", ["a", "b"], episodes=3))
    assert "entropy" not in old
    assert "difference:" not in old


def test_a_result_gives_any_measure_and_its_paired_difference():
    found = rows("a", [1.0, 2.0, 3.0]) + rows("b", [1.5, 2.0, 4.0])
    for row in found:
        ends = {"start": 0.7 + row["episode"] / 10, "end": row["cross_entropy"] / 10}
        row["alignment"] = [{"step": 5, "moment": moment, "query": {"gap_drop": ends[moment]}} for moment in ends]
    result = ProtocolResult(Path("run"), found, summarize(found, "ISIC", ["a", "b"], episodes=3))
    assert result.measure("cross_entropy")["a"].mean == 2.0
    paired = stats.ttest_rel([1.0, 2.0, 3.0], [1.5, 2.0, 4.0]).confidence_interval()
    difference = result.measure_difference("cross_entropy")["b"]
    assert (difference.low, difference.high) == pytest.approx((paired.low, paired.high))
    assert result.measure("query.gap_drop")["b"].mean == pytest.approx(0.25)
    assert result.measure("calibration_error") == {"a": None, "b": None}
    assert f"{result.measure('query.gap_drop')['b']:.3f}".startswith("0.250 ± ")
    assert "loss(0) - least loss, queries -0.050 ± 0.124 nats" in difference_lines(result.summary)[0]
    zero_shot, first, _ = printed(result.summary).split("(nats)")[-1].splitlines()[2:5]
    assert zero_shot.split() == ["zero-shot", "0.800", "±", "0.248"]
    assert first.split() == ["a", "2.000", "±", "2.484", "0.200", "±", "0.248"]
    with pytest.raises(DtrapError, match=r"unknown measure 'cross_entrop'.*Did you mean 'cross_entropy'"):
        result.measure("cross_entrop")


def test_classes_have_their_numbers_of_test_images():
    (row,) = rows("a", [1.0], [50.0])
    row |= {"classes": ["x", "y"], "per_class": {"x": 50.0, "y": 75.0}, "confusion": [[1, 1], [1, 3]]}
    per_class = summarize([row], "ISIC", ["a"], episodes=1)["methods"]["a"]["per_class"]
    assert per_class["y"] == {"mean": 75.0, "episodes": 1, "images": 4}


@pytest.mark.parametrize("total", [1, 2, 49, 50, 51, 120, 250, 10_000])
def test_kept_steps_are_evenly_spaced_from_the_first_to_the_last(total):
    steps = sorted(evenly_spaced(total))
    assert (steps[0], steps[-1], len(steps)) == (0, total - 1, min(total, 50))
    gaps = np.diff(steps)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1
