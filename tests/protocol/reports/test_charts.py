"""What each chart says: texts of the drawing and alternative texts, against numbers computed here."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from dtrap.protocol.reports import charts
from dtrap.protocol.reports.charts.accuracy import running_mean
from dtrap.protocol.reports.charts.differences import bars
from dtrap.protocol.reports.charts.features import principal_components
from dtrap.protocol.statistics import mean_interval
from scipy import stats

GENERATOR = np.random.default_rng(13)
SHOTS = [1, 2, 4, 8, 16]


def texts(chart):
    """All texts of the drawing, in their order."""
    return [element.text for element in ElementTree.fromstring(chart.svg).iter() if element.tag.endswith("}text")]


def student(values):
    """Mean and half width of the 95 % interval."""
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return np.mean(values), (high - low) / 2


def test_accuracy_per_episode_says_mean_interval_and_count():
    first, second = GENERATOR.normal(60, 8, 800), GENERATOR.normal(50, 8, 30)
    chart = charts.accuracy_per_episode({"svl-ra": (range(800), first), "baseline": (range(30), [*second[:-1], None])})
    for name, values in (("svl-ra", first), ("baseline", second[:-1])):
        mean, half_width = student(values)
        said = f"{mean:.1f} ± {half_width:.1f} ({len(values)} episodes)"
        assert f"{name}: mean {said}, lowest {values.min():.1f}, highest {values.max():.1f}." in chart.alt
        assert {name, said} <= set(texts(chart))
        assert (name, said, f"{values.min():.1f}", f"{values.max():.1f}") in chart.table.rows
    assert "1 value missing and left out." in chart.note


def test_the_running_mean_is_that_of_each_beginning():
    values = GENERATOR.normal(1e6, 3, 50)
    mean, half_width = running_mean(values)
    assert math.isnan(half_width[0])
    assert mean[0] == values[0]
    for count in range(2, 51):
        assert mean[count - 1] == pytest.approx(np.mean(values[:count]), rel=1e-12)
        assert half_width[count - 1] == pytest.approx(student(values[:count])[1], rel=1e-6)


def test_episodes_are_drawn_in_their_order():
    shuffled = charts.accuracy_per_episode({"a": ([3, 0, 2, 1], [40, 10, 30, 20])})
    assert shuffled == charts.accuracy_per_episode({"a": (range(4), [10, 20, 30, 40])})


def test_points_of_many_episodes_are_one_picture():
    series = {f"method {i}": (range(800), GENERATOR.normal(60, 8, 800)) for i in range(5)}
    assert charts.accuracy_per_episode(series).svg.count("<image") == 1
    assert len(charts.accuracy_per_episode(series).svg) < 120_000
    few = charts.accuracy_per_episode({"a": (range(30), GENERATOR.normal(60, 8, 30))})
    assert "<image" not in few.svg


def test_paired_differences_say_mean_and_signs():
    values = np.array([4, 0, 0, -1.3333, 2.6667, 4, 1.3333, -4])
    chart = charts.difference_distribution({"svl-ra minus baseline": values})
    mean, half_width = student(values)
    said = f"{mean:+.2f} ± {half_width:.2f} (8 pairs)"
    assert f"svl-ra minus baseline: mean {said}, from −4.00 to +4.00; 4 above zero, 2 equal, 2 below." in chart.alt
    assert {"svl-ra minus baseline", said} <= set(texts(chart))
    assert chart.table.rows == (("svl-ra minus baseline", said, "4", "2", "2"),)


@pytest.mark.parametrize("values", [GENERATOR.integers(-40, 40, 800) * 4 / 3, GENERATOR.normal(0, 5, 800), [4.0, 4.0]])
def test_bars_count_every_value_once(values):
    centers, heights, width = bars(np.asarray(values))
    assert heights.sum() == len(values)
    assert len(centers) <= 45
    if len(centers) > 1:
        assert np.diff(centers).min() >= width * 0.999
    if len(values) == 800 and np.allclose(np.asarray(values) * 0.75 % 1, 0):
        # Each bar holds equally many places of the grid, so that there is no comb.
        assert width * 0.75 == pytest.approx(round(width * 0.75), abs=1e-4)


def test_few_different_values_have_a_bar_each():
    centers, heights, width = bars(np.array([0, 0, 4 / 3, -4 / 3, 0]))
    assert centers == pytest.approx([-4 / 3, 0, 4 / 3], abs=1e-5)
    assert heights.tolist() == [1, 3, 1]
    assert width == pytest.approx(4 / 3, abs=1e-5)


def curve(least):
    shifts = np.linspace(-1, 1, 21)
    return {"shifts": shifts, "distance": 0.8 - shifts, "loss": 1.5 + (shifts - least) ** 2, "accuracy": [0.5] * 21}


def test_the_gap_shift_marks_loss_0_and_least_loss():
    chart = charts.gap_shift_curves({"plain": curve(0.7), "both": {**curve(0.2), "accuracy": None}})
    assert (
        "plain: loss 1.990 where nothing is moved at distance 0.800, accuracy there 50.0 %; least loss 1.500 at shift "
        "+0.700; difference 0.490; 21 shifts." in chart.alt
    )
    assert "both: loss 1.540 where nothing is moved at distance 0.800; least loss 1.500 at shift +0.200" in chart.alt
    assert {"loss(0) − least loss 0.490", "loss(0) − least loss 0.040", "accuracy (%)"} <= set(texts(chart))
    without = {name: {**curve(0.7), "accuracy": None} for name in "ab"}
    assert "accuracy (%)" not in texts(charts.gap_shift_curves(without))


def test_a_gap_shift_without_the_shift_0_has_no_difference():
    found = charts.gap_shift_curves({"a": {"shifts": [0.5, 1], "distance": [0.3, 0.1], "loss": [2, 1]}})
    assert found.table.rows == (("a", "–", "1.000", "–", "+1.000", "–"),)


def test_loss_curves_say_the_switch_and_use_a_log_scale():
    steps = list(range(0, 250, 5))
    loss = [math.exp(-step / 40) for step in steps]
    active = [1.5 if step < 150 else None for step in steps]
    chart = charts.loss_curves({
        "svl-ra": {"step": steps, "total": loss, "L_vlm": loss, "L_ad": active, "L_ra": None, "stage": [0, 150]},
        "plain": {"step": steps, "total": loss, "L_vlm": loss, "stage": None},
    })  # fmt: skip
    assert f"total from 1.000 at step 0 to {loss[-1]:.3f} at step 245" in chart.alt
    assert "L_ad (SVL) from 1.500 at step 0 to 1.500 at step 145; suppressed from step 0 to 150." in chart.alt
    assert "plain: total from 1.000" in chart.alt
    assert "no suppressed stage." in chart.alt
    found = texts(chart)
    assert f"final {loss[-1]:.3f}, switch at step 150" in found
    assert {"total", "L_vlm", "L_ad (SVL)", "0.01"} <= set(found)
    assert "L_ra (RA)" not in found


def test_classes_stand_in_the_order_of_their_accuracy():
    chart = charts.per_class_accuracy({
        "svl-ra": {"cat": 80.0, "dog": {"mean": 30.0, "episodes": 12}, "emu": None},
        "plain": {"cat": 70.0, "dog": {"mean": 50.0, "episodes": 15}},
    })  # fmt: skip
    assert [row[0] for row in chart.table.rows] == ["dog", "cat"]
    assert chart.table.rows[0] == ("dog", "30.0", "50.0")
    assert "svl-ra: mean 55.0 over 2 classes; lowest dog 30.0 and cat 80.0; highest cat 80.0 and dog 30.0." in chart.alt
    assert "Each value is a mean over 12 to 15 episodes." in chart.note
    assert [text for text in texts(chart) if text in ("cat", "dog", "emu")] == ["dog", "cat"]


def test_of_many_classes_the_lowest_and_the_highest_are_drawn():
    chart = charts.per_class_accuracy({"a": {f"class {i:03}": float(i) for i in range(101)}})
    drawn = [text for text in texts(chart) if re.fullmatch(r"class \d+", text)]
    assert drawn == [f"class {i:03}" for i in [*range(20), *range(81, 101)]]
    assert "The 20 lowest and the 20 highest of 101 classes." in chart.note
    assert "61 classes between" in texts(chart)
    assert "mean 50.0 over 101 classes" in chart.alt


def test_a_confusion_matrix_says_counts_shares_and_the_most_frequent_errors():
    chart = charts.confusion_matrix([[8, 2, 0], [0, 10, 0], [5, 1, 4]], ["cat", "dog", "emu"])
    found = texts(chart)
    assert [text for text in found if text.isdigit()] == ["8", "2", "10", "5", "1", "4"]
    assert {"80 %", "20 %", "100 %", "50 %", "40 %"} <= set(found)
    assert "3 classes and 30 images. 22 right, 73.3 %." in chart.alt
    assert "emu taken for cat (5 of 10 images), cat taken for dog (2 of 10 images) and emu taken for dog" in chart.alt
    assert chart.table.rows[2] == ("emu", "5", "1", "4")
    assert "30 images" in chart.note


@pytest.mark.parametrize("many", [13, 38, 100, 120])
def test_a_large_confusion_matrix_is_one_picture(many):
    counts = np.eye(many, dtype=int) * 5
    counts[2, 7] = 3
    chart = charts.confusion_matrix(counts, [f"class {i}" for i in range(many)])
    assert chart.svg.count("<image") == 1
    assert len(chart.svg) < 150_000
    assert f"{5 * many} right" in chart.alt
    assert "class 2 taken for class 7 (3 of 8 images)" in chart.alt
    assert texts(chart).count("class 5") == (2 if many <= 100 else 0)


def test_a_heat_map_has_its_numbers_and_marks_the_published_setting():
    values = [[55.0, 56.25, None], [57.5, 54.0, 53.0]]
    chart = charts.heat_map("lambda", [0.01, 0.1, 1], "beta", [1, 3], values, (0.1, 3), half_widths=np.ones((2, 3)),
                            counts=np.full((2, 3), 60))  # fmt: skip
    found = texts(chart)
    assert {"55.0", "56.2", "57.5", "54.0", "53.0", "±1.0", "0.01", "0.1", "1", "3", "lambda", "beta"} <= set(found)
    assert "Highest: 57.5 ± 1.0 at lambda 0.01, beta 3. Lowest: 53.0 ± 1.0 at lambda 1, beta 3." in chart.alt
    assert "1 of 6 without a value." in chart.alt
    assert "At the published setting (0.1, 3): 54.0 ± 1.0." in chart.alt
    assert "Each number rests on 60 values." in chart.note
    assert chart.svg.count("stroke: #d55e00") == 1
    elsewhere = charts.heat_map("lambda", [0.01], "beta", [1], [[5]], (0.1, 3))
    assert "stroke: #d55e00" not in elsewhere.svg
    assert "The published setting is not among these." in elsewhere.note


def coop():
    generator = np.random.default_rng(1)
    sets = ("ImageNet", "Caltech101", "OxfordPets", "StanfordCars", "Flowers102", "Food101", "FGVCAircraft", "SUN397",
            "DTD", "EuroSAT", "UCF101")  # fmt: skip
    panels = {name: {m: (SHOTS, generator.uniform(50, 90, 5), [0.5] * 5) for m in ("svl-ra", "plain")} for name in sets}
    return panels, dict.fromkeys(sets, 60.0)


def test_coops_figure_has_twelve_panels_with_the_mean_first():
    panels, stars = coop()
    chart = charts.coop_panels(panels, stars)
    titles = ["Mean", *panels]
    assert [text for text in texts(chart) if text in titles] == titles
    means = [np.mean([panels[name]["svl-ra"][1][place] for name in panels]) for place in range(5)]
    said = ", ".join(f"{mean:.1f} at {shot}" for mean, shot in zip(means, SHOTS, strict=True))
    assert f"Mean over 11 sets: zero-shot 60.0; svl-ra {said} shots" in chart.alt
    assert texts(chart).count("16") == 12
    assert chart.wide
    assert ("Mean", "svl-ra", "60.0", *(f"{mean:.1f}" for mean in means)) in chart.table.rows


def test_the_mean_over_sets_leaves_out_shots_that_a_set_lacks():
    panels, stars = coop()
    panels["DTD"]["plain"] = ([1, 4], [50, 60], None)
    stars["DTD"] = None
    chart = charts.coop_panels(panels, stars)
    row = next(row for row in chart.table.rows if row[:2] == ("Mean", "plain"))
    assert row[2] == "–"
    assert [cell != "–" for cell in row[3:]] == [True, False, True, False, False]
    assert "no zero-shot mean, since a set has none" in chart.note


def features(way=5):
    generator = np.random.default_rng(2)
    labels = np.repeat(np.arange(way), 4)
    texts_of_classes = generator.normal(size=(way, 16))
    images = texts_of_classes[labels] + generator.normal(size=(4 * way, 16))
    return images, labels, texts_of_classes, np.arange(4 * way) % 4 > 0


def test_a_feature_map_says_cosines_and_hits():
    images, labels, class_texts, is_query = features()
    names = ["cat", "dog", "emu", "fox", "gnu"]
    after = 2 * class_texts[labels]
    chart = charts.feature_map(images, after, is_query, labels, class_texts, class_texts, names, method="pca")
    unit = images / np.linalg.norm(images, axis=1, keepdims=True)
    cosines = unit @ (class_texts / np.linalg.norm(class_texts, axis=1, keepdims=True)).T
    own = cosines[np.arange(20), labels].mean()
    right = (cosines.argmax(axis=1) == labels)[is_query].sum()
    assert f"Before training: mean cosine of an image with its class text {own:.3f}" in chart.alt
    assert f"{right} of 15 queries nearest" in chart.alt
    assert "After training: mean cosine of an image with its class text 1.000, distance of the means" in chart.alt
    assert "15 of 15 queries nearest" in chart.alt
    assert "5 class texts, 5 support images and 15 queries." in chart.note
    assert {"before training", "after training", *names} <= set(texts(chart))


def test_principal_components_are_those_of_the_covariance_with_a_fixed_sign():
    images, *_ = features()
    points, shares = principal_components(images)
    values, vectors = np.linalg.eigh(np.cov(images.T))
    assert shares == pytest.approx(values[::-1][:2] / values.sum())
    for place in range(2):
        direction = vectors[:, -1 - place]
        direction = direction * np.sign(direction[np.abs(direction).argmax()])
        assert points[:, place] == pytest.approx((images - images.mean(axis=0)) @ direction)
    assert principal_components(np.ones((3, 1)))[0].tolist() == [[0, 0]] * 3


def test_t_sne_is_used_where_it_is_installed():
    pytest.importorskip("sklearn")
    images, labels, class_texts, is_query = features()
    given = (images, images + 1, is_query, labels, class_texts, class_texts, list("abcde"))
    chart = charts.feature_map(*given)
    assert "t-SNE, perplexity 8" in chart.alt
    assert chart == charts.feature_map(*given)
    assert "PCA" in charts.feature_map(*given, method="pca").alt


def test_measures_have_one_panel_each():
    plain, both = mean_interval([2.5, 3.0, 3.5, 2.8]), mean_interval([1.0, 1.5, 2.0, 1.2])
    chart = charts.measure_panels(
        {"cross-entropy": {"plain": plain, "both": vars(both)}, "gap drop": {"plain": plain, "both": None}},
        better={"cross-entropy": "lower"},
        digits={"cross-entropy": 3},
    )
    assert (
        f"cross-entropy: plain {plain.mean:.3f} ± {plain.half_width:.3f} (4 episodes); both {both.mean:.3f}"
        in chart.alt
    )
    assert {"cross-entropy (lower is better)", "gap drop", "plain", "both"} <= set(texts(chart))
    assert f"{plain.mean:.2f} ± {plain.half_width:.2f}" in texts(chart)
    assert chart.table.rows[1][2] == "–"
    assert "Each over 4 episodes." in chart.note
