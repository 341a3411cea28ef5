"""Verdicts on open questions: the interval of the paired difference, and how often a warning was wrong."""

import numpy as np
from dtrap.protocol.studies.results import read_study
from dtrap.protocol.studies.verdicts import verdict_lines
from scipy import stats
from study_folders import cell_of, rows_of, write_rows, write_study


def lines_of(folder, cells, arms, compare, verdict, measures=("accuracy",)):
    part = {
        "axes": {"sets": [cell["axes"]["sets"] for cell in cells]},
        "arms": arms,
        "compare": compare,
        "cells": cells,
    }
    write_study(folder, [part | {"verdict": verdict, "measures": list(measures)}])
    (part,) = read_study(folder).parts
    return verdict_lines(part)


def test_an_arm_is_better_where_the_interval_excludes_0_and_undecided_elsewhere(tmp_path):
    generator = np.random.default_rng(1)
    base = generator.normal(50, 8, 30)
    cells = []
    for name, gain in (("up.yaml", 3.0), ("same.yaml", 0.0), ("down.yaml", -3.0)):
        cells.append(cell_of({"sets": name}, ["fixed", "gap"], 30))
        other = base + gain + generator.normal(0, 1, 30) - (0 if gain else 0.2)
        write_rows(tmp_path / cells[-1]["folder"], rows_of("fixed", base.tolist()) + rows_of("gap", other.tolist()))
        low, high = stats.ttest_1samp(other - base, 0).confidence_interval(0.95)
        assert (low > 0, high < 0) == (gain > 0, gain < 0)
    rule, line = lines_of(tmp_path, cells, ["fixed", "gap"], "fixed", "accuracy")
    assert rule.startswith("Rule: ")
    assert "better in 1 (up " in line
    assert "worse in 1 (down " in line
    assert "undecided in 1 (same " in line
    assert line.count("30 pairs") == 3


def test_a_lower_cross_entropy_is_better_and_three_pairs_decide_nothing(tmp_path):
    cell = cell_of({"sets": "one.yaml"}, ["fixed", "gap"])
    losses = [2.0, 2.1, 1.9, 2.0, 2.2]
    rows = rows_of("fixed", [50.0] * 5, cross_entropy=losses)
    rows += rows_of("gap", [50.0] * 5, cross_entropy=[loss - 0.5 + 0.01 * n for n, loss in enumerate(losses)])
    write_rows(tmp_path / cell["folder"], rows)
    measures = ("accuracy", "cross_entropy")
    assert "better in 1" in lines_of(tmp_path, [cell], ["fixed", "gap"], "fixed", "cross_entropy", measures)[1]
    write_rows(tmp_path / cell["folder"], [row for row in rows if row["episode"] < 3])
    assert "undecided in 1" in lines_of(tmp_path, [cell], ["fixed", "gap"], "fixed", "cross_entropy", measures)[1]


def test_the_error_rate_of_the_warning_in_near_domains(tmp_path):
    near = [True, True, True, False, False, False, False, False]
    gains = [-2.0, 1.0, 0.0, 3.0, -1.0, 0.0, 2.0, 4.0]  # wrong: episodes 1, 2 (warned, not worse) and 4 (silent, worse)
    plain, both = [50.0] * 8, [50.0 + gain for gain in gains]
    found = [{"accuracy": 90.0, "entropy": 0.05, "gap_drop": 0.1, "near": value} for value in near]
    cell = cell_of({"sets": "one.yaml"}, ["plain", "both"])
    write_rows(tmp_path / cell["folder"], rows_of("plain", plain) + rows_of("both", both, near_domain=found))
    _, line, warned, silent = lines_of(tmp_path, [cell], ["plain", "both"], "plain", "near_domain")
    interval = stats.binomtest(3, 8).proportion_ci(0.95)
    assert f"wrong in 3 of 8 episodes: 37.5 % (95 % {100 * interval.low:.1f} to {100 * interval.high:.1f}" in line
    assert "where it warned: -0.3" in warned
    assert "worse in 1" in warned
    assert "where it was silent: 1.6" in silent
    assert "over 5" in silent


def test_a_study_without_a_verdict_prints_none(tmp_path):
    cell = cell_of({"sets": "one.yaml"}, ["plain", "both"])
    write_rows(tmp_path / cell["folder"], rows_of("plain", [50.0]) + rows_of("both", [51.0]))
    assert lines_of(tmp_path, [cell], ["plain", "both"], "plain", None) == []
