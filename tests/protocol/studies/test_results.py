"""A study's frame against formulas evaluated here, and its table, from folders written by hand."""

import numpy as np
import pytest
from dtrap.console import SafeConsole
from dtrap.errors import DtrapError
from dtrap.protocol.reports.study_tables import part_tables
from dtrap.protocol.studies.needed import episodes_needed
from dtrap.protocol.studies.results import read_study
from dtrap.protocol.studies.table import print_study
from scipy import stats
from study_folders import SETS, ablation, cell_of, rows_of, write_rows, write_study


def half_width(values):
    return stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))


def line_of(frame, **keys):
    for name, value in keys.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def printed(capsys, folder):
    capsys.readouterr()
    print_study(read_study(folder), SafeConsole(width=100))
    return capsys.readouterr().out


def test_means_intervals_and_paired_differences_of_every_cell(tmp_path):
    drawn = ablation(tmp_path, episodes=30)
    frame = read_study(tmp_path).frame
    assert len(frame) == 4 * 4 * 2
    for (name, arm), values in drawn.items():
        line = line_of(frame, sets=name.removesuffix(".yaml"), arm=arm, measure="accuracy")
        assert line["mean"] == pytest.approx(values.mean(), abs=1e-9)
        assert line["half_width"] == pytest.approx(half_width(values), abs=1e-9)
        assert (line["count"], line["images"], line["asked"], line["state"]) == (30, 30 * 75, 30, "finished")
        differences = values - drawn[name, "plain"]
        if arm == "plain":
            assert np.isnan(line["difference"])
            continue
        assert line["difference"] == pytest.approx(differences.mean(), abs=1e-9)
        low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
        assert line["difference_half_width"] == pytest.approx((high - low) / 2, abs=1e-9)
        assert line["pairs"] == 30


def test_the_mean_over_the_sets_counts_each_set_alike(tmp_path):
    drawn = ablation(tmp_path, episodes=20)
    means = read_study(tmp_path).means
    line = line_of(means, arm="both", measure="accuracy")
    own = [drawn[name, "both"] for name in SETS]
    assert line["mean"] == pytest.approx(np.mean([values.mean() for values in own]), abs=1e-9)
    variances = np.array([values.var(ddof=1) / 20 for values in own])
    degrees = variances.sum() ** 2 / (variances**2 / 19).sum()
    expected = stats.t.ppf(0.975, degrees) * np.sqrt(variances.sum()) / 4
    assert line["half_width"] == pytest.approx(expected, abs=1e-9)
    assert (line["count"], line["episodes"], line["pairs"]) == (4, 80, 80)
    differences = [drawn[name, "both"] - drawn[name, "plain"] for name in SETS]
    assert line["difference"] == pytest.approx(np.mean(differences), abs=1e-9)
    assert line["published"] == 58.26
    assert line["published_difference"] == pytest.approx(58.26 - 56.07)


@pytest.mark.parametrize("half", [1.0, 0.5])
@pytest.mark.parametrize("spread", [0.3, 2.0, 9.0])
def test_the_number_of_episodes_is_the_least_whose_interval_is_narrow_enough(half, spread):
    values = np.random.default_rng(3).normal(0, spread, 25)
    wide = [stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n) for n in range(2, 3000)]
    expected = next(n for n, width in enumerate(wide, start=2) if width <= half)
    assert episodes_needed(values.tolist(), half) == expected


def test_nothing_is_guessed_from_few_or_equal_differences():
    assert episodes_needed([0.0, 1.0, 2.0] * 3, 1.0) is None
    assert episodes_needed([1.0] * 30, 1.0) is None
    assert episodes_needed([0.0, 1.0] * 5, 1.0) is not None


def test_differences_are_over_common_episodes_without_diverged_ones(tmp_path):
    plain = rows_of("plain", [10.0, 20.0, 30.0, 40.0])
    both = rows_of("both", [11.0, 23.0, None, 90.0])[:3]
    both[2] |= {"diverged": "the loss is not finite from step 3 on"}
    cell = cell_of({"sets": "isic_1shot.yaml"}, ["plain", "both"], 4)
    write_rows(tmp_path / cell["folder"], plain + both)
    part = {"axes": {"sets": ["isic_1shot.yaml"]}, "arms": ["plain", "both"], "compare": "plain", "cells": [cell]}
    write_study(tmp_path, [part])
    line = line_of(read_study(tmp_path).frame, arm="both")
    assert (line["difference"], line["pairs"], line["count"], line["diverged"], line["episodes"]) == (2.0, 2, 2, 1, 3)
    assert line["state"] == "unfinished"


def test_episodes_beyond_those_asked_for_do_not_count(tmp_path):
    cell = cell_of({"sets": "isic_1shot.yaml"}, ["both"], 2)
    write_rows(tmp_path / cell["folder"], rows_of("both", [10.0, 20.0, 90.0]))
    write_study(tmp_path, [{"axes": {"sets": ["isic_1shot.yaml"]}, "arms": ["both"], "cells": [cell]}])
    assert line_of(read_study(tmp_path).frame, arm="both")["mean"] == 15.0


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({}, 38.1),
        ({"backbones": "backbones/clip.yaml"}, 38.1),
        ({"tuners": "tuners/lora.yaml"}, 38.1),
        ({"seeds": 3, "backbones": "default"}, 38.1),
        ({"shots": 5}, None),
        ({"backbones": "backbones/siglip2.yaml"}, None),
        ({"tuners": "tuners/coop.yaml"}, None),
        ({"model.objective.relation_weight": 30}, None),
    ],
)
def test_a_published_number_stands_next_to_the_same_setting_only(tmp_path, axes, expected):
    cell = cell_of({"sets": "isic_1shot.yaml", **axes}, ["plain", "both"], 1)
    part = {"axes": {key: [value] for key, value in cell["axes"].items()}, "arms": ["plain", "both"], "cells": [cell]}
    write_study(tmp_path, [part | {"published": "ablation", "compare": "plain"}])
    line = line_of(read_study(tmp_path).frame, arm="both")
    assert (None if np.isnan(line["published"]) else line["published"]) == expected


def test_the_published_mean_is_that_of_the_four_sets(tmp_path):
    ablation(tmp_path, episodes=3, sets=list(SETS)[:2])
    means = read_study(tmp_path).means
    assert not means["mean"].isna().any()
    assert means["published"].isna().all()


def test_the_table_fits_in_100_columns_and_is_the_same_to_the_byte(tmp_path, capsys):
    ablation(tmp_path)
    out = printed(capsys, tmp_path)
    assert out == printed(capsys, tmp_path)
    assert max(map(len, out.splitlines())) <= 100
    for text in ("40 × 75", "40 pairs", "36.4", "+1.7 ", "mean of", "needed ±1 / ±0.5", "minus plain"):
        assert text in out
    assert out.count("published ") >= 7
    assert "arXiv" in out


def test_sets_of_one_title_are_told_apart_and_their_mean_says_where_a_set_has_too_few(tmp_path, capsys):
    arms = ["plain", "both"]
    cells = [cell_of({"sets": name}, arms, episodes, title="Same") for name, episodes in (("a", 12), ("b", 2))]
    for start, cell in zip((50.0, 20.0), cells, strict=True):
        values = [start + number for number in range(cell["episodes"])]
        write_rows(tmp_path / cell["folder"], [row for arm in arms for row in rows_of(arm, values)])
    part = {"axes": {"sets": ["a", "b"]}, "arms": arms, "compare": "plain", "cells": cells}
    write_study(tmp_path, [part])
    results = read_study(tmp_path)
    assert set(results.frame["set"]) == {"Same (a)", "Same (b)"}
    table = next(part_tables(results, results.parts[0]))
    assert table.head == ["arm", "Same (a)", "Same (b)", "mean of 2 sets"]
    texts = [cell.text for cell in table.rows[0]]
    assert [text.partition(" ")[0] for text in texts] == ["plain", "55.5", "20.5", "38.0"]
    assert texts[3].endswith("too few")
    assert printed(capsys, tmp_path).count("too few") == 4
    # two sets are not two episodes
    cells[1] |= {"episodes": 12}
    rows = [row for arm in arms for row in rows_of(arm, [20.0 + number for number in range(12)])]
    write_rows(tmp_path / "b", rows)
    write_study(tmp_path, [part])
    assert "too few" not in printed(capsys, tmp_path).partition("needed")[0]


def test_the_undefined_gap_is_not_called_the_measured_one(tmp_path, capsys):
    arms = ["plain", "both"]
    cell = cell_of({"sets": "chestx_1shot.yaml"}, arms, 4)
    rows = [
        row | {"alignment": [{"step": 9, "moment": "end", "query": {"gap_drop": drop}, "support": {}}]}
        for arm in arms
        for row, drop in zip(rows_of(arm, [50.0] * 4), [0.1, 0.2, 0.3, 0.4], strict=True)
    ]
    write_rows(tmp_path / cell["folder"], rows)
    part = {"axes": {"sets": ["chestx_1shot.yaml"]}, "arms": arms, "compare": "plain", "cells": [cell]}
    write_study(tmp_path, [part | {"measures": ["query.gap_drop"], "published": "trap"}])
    out = printed(capsys, tmp_path)
    assert 'published "Gap"' in out
    assert "0.356" in out
    assert "does not define" in out
    assert "identical" in out


def test_cells_without_a_result_are_named(tmp_path, capsys):
    arms = ["plain", "both"]
    names = list(SETS)
    cells = [cell_of({"sets": name}, arms, 4) for name in names]
    write_rows(tmp_path / cells[0]["folder"], [row for arm in arms for row in rows_of(arm, [50.0, 60.0, 70.0, 80.0])])
    write_rows(tmp_path / cells[1]["folder"], rows_of("plain", [50.0, 60.0]))
    (tmp_path / cells[2]["folder"]).mkdir()
    (tmp_path / cells[2]["folder"] / "results.jsonl").write_text("no row\nno row\n")
    write_study(tmp_path, [{"axes": {"sets": names}, "arms": arms, "compare": "plain", "cells": cells}])
    assert read_study(tmp_path, {"mine/chestx_1shot": "no data"}).parts[0].cells[3].failed == "no data"
    results = read_study(tmp_path)
    assert [cell.state for cell in results.parts[0].cells] == ["finished", "unfinished", "failed", "missing"]
    assert results.means["mean"].isna().all()
    out = " ".join(printed(capsys, tmp_path).split())
    assert "unfinished: 1 of 4 cells: eurosat_1shot (0 of 4)" in out
    assert "not run yet: 1 of 4 cells: chestx_1shot" in out
    assert "failed: crop_disease_1shot: " in out
    assert "2 of 4" in out


def test_axes_stand_in_columns_of_their_own_and_a_wide_table_is_cut(tmp_path, capsys):
    sets, shots = [f"coop/set{n}_1shot.yaml" for n in range(11)], [1, 16]
    cells = []
    for name in sets:
        for shot in shots:
            title = f"Set number {name[8:-11]} all-way {shot}-shot"
            cell = cell_of({"sets": name, "shots": shot}, ["plain", "both"], 3, title=title)
            write_rows(
                tmp_path / cell["folder"], rows_of("plain", [50.0, 51.0, 52.0]) + rows_of("both", [60.0, 62.0, 61.0])
            )
            cells.append(cell)
    axes = {"sets": sets, "shots": shots}
    write_study(tmp_path, [{"axes": axes, "arms": ["plain", "both"], "compare": "plain", "cells": cells}])
    out = printed(capsys, tmp_path)
    assert max(map(len, out.splitlines())) <= 100
    assert out.count("Set number 10") == 2
    assert "all-way 1" not in out
    assert "11 sets" in out
    assert "too few" in out
    assert any(line.split()[:2] == ["shots", "arm"] for line in out.splitlines())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no study.json"),
        ("{", "not the record of a study"),
        ('{"format": "other"}', "expected 'dtrap-study/1'"),
        ('{"format": "dtrap-study/1", "name": "x", "title": "y", "parts": 3}', "not the record of a study"),
        ('{"format": "dtrap-study/1", "name": "x", "title": "y", "parts": [{}]}', "no 'arms'"),
    ],
)
def test_a_damaged_record_is_refused_with_a_remedy(tmp_path, content, message):
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    with pytest.raises(DtrapError, match=message) as refused:
        read_study(tmp_path)
    assert "dtrap study" in str(refused.value)


def test_a_cell_outside_of_the_study_is_refused(tmp_path):
    cell = cell_of({"sets": "isic_1shot.yaml"}, ["both"], folder="../elsewhere")
    write_study(tmp_path / "study", [{"axes": {"sets": ["isic_1shot.yaml"]}, "arms": ["both"], "cells": [cell]}])
    with pytest.raises(DtrapError, match=r"\.\./elsewhere"):
        read_study(tmp_path / "study")


def test_a_transductive_arm_is_found_under_its_marked_name(tmp_path):
    cell = cell_of({"sets": "isic_1shot.yaml"}, ["both"], 5) | {"unit": "seed"}
    write_rows(tmp_path / cell["folder"], rows_of("both-transductive", [10.0, 20.0]))
    write_study(tmp_path, [{"axes": {"sets": ["isic_1shot.yaml"]}, "arms": ["both"], "cells": [cell]}])
    line = line_of(read_study(tmp_path).frame, arm="both")
    assert (line["mean"], line["asked"], line["unit"], line["state"]) == (15.0, 5, "seed", "unfinished")
