import io
import json

import numpy as np
import pytest
from dtrap.protocol.summary import render, summarize
from rich.console import Console
from scipy import stats


def rows_of(method, accuracies, zero_shot=30.0, **more):
    return [
        {
            "episode": episode,
            "method": method,
            "accuracy": accuracy,
            "zero_shot_accuracy": zero_shot,
            "seconds": 2.0,
            **more,
        }
        for episode, accuracy in enumerate(accuracies)
    ]


def printed(summary, width=80):
    stream = io.StringIO()
    render(summary, Console(file=stream, width=width))
    return stream.getvalue()


def with_mean_and_half_width(mean, half_width, count):
    """Values whose mean and 95% half width are the given ones."""
    values = np.random.default_rng(count).normal(size=count)
    values = (values - values.mean()) / values.std(ddof=1)
    return mean + values * half_width * np.sqrt(count) / stats.t.ppf(0.975, count - 1)


def test_the_result_line_of_a_whole_run():
    accuracies = with_mean_and_half_width(51.2, 0.6, 400)
    zero_shot = with_mean_and_half_width(30.1, 0.4, 400)
    rows = rows_of("svl-ra", accuracies, test_images=75)
    for row, value in zip(rows, zero_shot, strict=True):
        row["zero_shot_accuracy"] = value
    summary = summarize(rows, "ISIC 5-way 5-shot", ["svl-ra"], episodes=400)
    assert printed(summary) == (
        "ISIC 5-way 5-shot · 400 episodes · 75 test images each · 51.2 ± 0.6 % (95 %, Student's t)  "
        "(zero-shot 30.1 ± 0.4 %)\n"
    )
    assert summary["methods"]["svl-ra"]["accuracy"]["images"] == 30000


def test_a_partial_run_says_how_much_of_it_there_is():
    summary = summarize(rows_of("a", [40.0, 60.0] * 18 + [50.0]), "ISIC 5-way 5-shot", ["a"], episodes=400)
    assert "ISIC 5-way 5-shot · 37 of 400 episodes · 50.0 ± " in printed(summary)
    nothing = summarize([], "ISIC 5-way 5-shot", ["a"], episodes=400)
    assert printed(nothing) == "ISIC 5-way 5-shot · 0 of 400 episodes · no result yet\n"


def test_rows_of_old_folders_have_a_number_of_test_images_only_in_their_confusion():
    summary = summarize(rows_of("a", [51.26]), "ISIC 5-way 5-shot", ["a"], episodes=1)
    assert printed(summary) == "ISIC 5-way 5-shot · 1 episode · 51.3 %  (zero-shot 30.0 %)\n"
    rows = rows_of("a", [50.0], 25.0, confusion=[[1, 1], [1, 1]], per_class={"x": 50.0, "y": 50.0}, classes=["x", "y"])
    assert "· 4 test images · 50.0 % (95 % 6.8 to 93.2, exact binomial)" in printed(
        summarize(rows, "ISIC", ["a"], episodes=1)
    )


def test_one_task_has_the_exact_interval_of_its_test_images():
    rows = rows_of("a", [70.0], 60.0, test_images=10, support_images=32)
    summary = summarize(rows, "my_photos 3 classes", ["a"], episodes=1)
    assert printed(summary) == (
        "my_photos 3 classes · 1 episode · trained on 32 images, tested on 10 · 70.0 % (95 % 34.8 to 93.3, exact "
        "binomial)  (zero-shot 60.0 %, 26.2 to 87.8)\n"
    )
    assert summary["methods"]["a"]["accuracy"]["kind"] == "exact binomial"


def test_two_episodes_are_too_few_and_identical_values_have_no_interval():
    rows = rows_of("a", [50.0, 60.0], test_images=10) + rows_of("b", [50.0, 60.0], test_images=10)
    summary = summarize(rows, "ISIC", ["a", "b"], episodes=2)
    text = printed(summary)
    assert "· a · 2 episodes · 10 test images each · 55.0 ± 63.5 % (95 %, Student's t, 2 episodes are too few)" in text
    assert "(zero-shot 30.0 % in both episodes)" in text
    assert "identical (2 pairs)" in text
    assert "±" not in text.split("identical")[1].splitlines()[0]


def test_constant_differences_are_not_called_identical():
    rows = rows_of("a", [50.0, 60.0]) + rows_of("b", [49.0, 59.0])
    assert "+1.00 in both pairs" in printed(summarize(rows, "ISIC", ["a", "b"], episodes=2))


def test_diverged_episodes_are_in_no_mean_and_named():
    rows = rows_of("a", [40.0, 50.0, 60.0, 50.0]) + rows_of("b", [40.0, None, 60.0, 50.0])
    reason = "the loss is not finite from step 3"
    rows[5] |= {"diverged": reason, "zero_shot_accuracy": 99.0, "losses": None}
    summary = summarize(rows, "ISIC", ["a", "b"], episodes=4)
    method = summary["methods"]["b"]
    assert (method["episodes"], method["accuracy"]["count"], method["zero_shot_accuracy"]["mean"]) == (4, 3, 30.0)
    assert method["diverged"] == [{"episode": 1, "reason": reason}]
    assert summary["differences"]["b"]["count"] == 3
    text = printed(summary)
    assert "· b · 4 episodes · 50.0 ± 24.8 % (95 %, Student's t, 3 episodes are too few)" in text
    assert f"1 diverged and left out (episode 1: {reason})" in text
    assert "50.0 ± 24.8 %, too few (1 diverged)" in text
    every = [row | {"accuracy": None, "diverged": reason} for row in rows_of("a", [1.0, 2.0])]
    text = printed(summarize(every, "ISIC", ["a"], episodes=2))
    assert text == f"ISIC · 2 episodes · 2 diverged and left out (episodes 0, 1: {reason}) · no accuracy\n"


def test_classes_without_test_images_and_what_stands_beside_accuracy_are_said():
    beside = {"balanced_accuracy": 45.0, "macro_f1": 41.0, "auroc": 71.0}
    tested = {"classes": ["x", "y", "z"], "per_class": {"x": 50.0, "z": 40.0}, "test_images": 8, **beside}
    rows = rows_of("a", [50.0], 25.0, **tested) + rows_of("b", [50.0], 25.0, **tested)
    summary = summarize(rows, "ISIC", ["a", "b"], episodes=1)
    assert summary["methods"]["a"]["untested_classes"] == ["y"]
    text = printed(summary)
    assert "balanced accuracy 45.0 %, macro-F1 41.0 %, AUROC 71.0 % · 1 of 3 classes has no test image: 'y'" in text
    assert "50.0 %, 15.7 to 84.3 (2 of 3 classes)" in text
    assert "balanced accuracy" in text.splitlines()[1]
    old = [{key: value for key, value in row.items() if key not in beside} for row in rows[:1]]
    mixed = summarize([*old, {**rows[0], "episode": 1}], "ISIC", ["a"], episodes=2)
    assert "balanced_accuracy" not in mixed["methods"]["a"]


def test_no_accuracy_is_claimed_without_held_out_images():
    rows = rows_of("a", [None], zero_shot=None, per_class={})
    summary = summarize(rows, "my_photos 4 classes", ["a"], episodes=1, support_images=23)
    line = "my_photos 4 classes · trained on 23 images · no held-out images, so no accuracy\n"
    assert printed(summary) == line
    assert "%" not in line
    assert summary["methods"]["a"]["accuracy"] is None


def test_more_rows_than_asked_for_do_not_count():
    rows = rows_of("a", [10.0, 20.0, 90.0]) + rows_of("of an earlier comparison", [99.0])
    summary = summarize(rows, "ISIC", ["a"], episodes=2)
    assert list(summary["methods"]) == ["a"]
    assert summary["methods"]["a"]["accuracy"]["mean"] == 15.0
    assert summary["seconds"] == 4.0


def test_class_means_are_over_the_episodes_with_that_class():
    rows = rows_of("a", [50.0, 50.0, 50.0])
    for row, per_class in zip(rows, [{"x": 20.0, "y": 80.0}, {"x": 40.0}, {"x": None}], strict=True):
        row["per_class"] = per_class
    per_class = summarize(rows, "ISIC", ["a"], episodes=3)["methods"]["a"]["per_class"]
    assert per_class == {"x": {"mean": 30.0, "episodes": 2}, "y": {"mean": 80.0, "episodes": 1}}


def test_differences_are_the_first_method_minus_each_other_on_common_episodes():
    rows = rows_of("first", [50.0, 60.0, 70.0, 10.0]) + rows_of("second", [49.0, 57.0, 69.0])
    summary = summarize(rows, "ISIC", ["first", "second", "third"], episodes=4)
    difference = summary["differences"]["second"]
    error = np.std([1, 3, 1], ddof=1) / np.sqrt(3)
    assert difference["mean"] == pytest.approx(5 / 3)
    assert difference["half_width"] == pytest.approx(stats.t.interval(0.95, 2, scale=error)[1])
    assert difference["count"] == 3
    assert summary["differences"]["third"] is None
    assert summary["seconds"] == 14.0
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


@pytest.mark.parametrize("width", [20, 80, 200])
def test_several_methods_print_plainly_and_uncut_at_any_width(width):
    names = [
        "svl-ra",
        "a method with [red]quite[/red] a long name, longer than eighty columns leave room for it",
    ]
    rows = rows_of(names[0], [50.0, 60.0, 70.0]) + rows_of(names[1], [49.0, 57.0, 69.0])
    text = printed(summarize(rows, "ISIC 5-way 5-shot", names, episodes=3), width)
    assert "\x1b" not in text
    lines = [line.strip() for line in text.splitlines()]
    interval = "60.0 ± 24.8 % (95 %, Student's t, 3 episodes are too few)  (zero-shot 30.0 % in all 3 episodes)"
    assert f"ISIC 5-way 5-shot · {names[0]} · 3 episodes · {interval}" in lines
    (cells,) = [line for line in lines if line.startswith(names[1])]
    assert "58.3 ± 25.0 %" in cells
    assert cells.endswith("+1.67 ± 2.87 (3 pairs), too few")
    assert any("svl-ra minus this" in line for line in lines)
