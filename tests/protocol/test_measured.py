"""Flat names of a row's measures, and how they are titled."""

from dtrap.protocol.measured import MEASURES, measure_of, measured_values, row_measures

ROW = {
    "episode": 3,
    "accuracy": 52,
    "zero_shot_accuracy": 40.5,
    "cross_entropy": 2.8,
    "zero_shot_cross_entropy": None,
    "calibration_error": float("nan"),
    "seconds": 3.0,
    "alignment": [
        {"step": 0, "moment": "start", "query": {"gap_drop": 0.1}, "support": {"gap_drop": 0.2}},
        {"step": 7, "moment": None, "query": {"gap_drop": 0.3}},
        {"step": 150, "moment": "switch", "query": {"gap_drop": 0.4, "uniformity": None}, "support": None},
        {"step": 250, "moment": "end", "query": {"gap_drop": 0.5}, "support": {"gap_drop": 0.6}},
    ],
    "accuracy_at": {"step": [50, 100], "accuracy": [48.0, None]},
}


def test_a_row_has_one_flat_name_for_each_finite_measure():
    assert row_measures(ROW) == {
        "accuracy": 52.0,
        "zero_shot_accuracy": 40.5,
        "cross_entropy": 2.8,
        "query.gap_drop@start": 0.1,
        "support.gap_drop@start": 0.2,
        "query.gap_drop@switch": 0.4,
        "query.gap_drop": 0.5,
        "support.gap_drop": 0.6,
        "accuracy@50": 48.0,
    }
    assert row_measures({"episode": 0, "method": "of an early version"}) == {}


def test_diverged_rows_have_no_values_by_episode():
    rows = [ROW, {"episode": 4, "zero_shot_accuracy": 41.0, "diverged": "the loss is not finite"}]
    assert measured_values(rows)["zero_shot_accuracy"] == {3: 40.5}


def test_titles_say_images_and_moment():
    assert measure_of("query.gap_drop").title == "loss(0) - least loss, queries"
    assert measure_of("support.gap_drop@start").title == "loss(0) - least loss, support, at the start"
    assert measure_of("zero_shot_cross_entropy").title == "zero-shot cross-entropy"
    assert measure_of("accuracy@50").title == "accuracy, at step 50"
    assert measure_of("a_users_own").title == "a_users_own"
    assert measure_of("zero_shot_cross_entropy").better == "lower"
    assert all(measure_of(name) == measure for name, measure in MEASURES.items())
