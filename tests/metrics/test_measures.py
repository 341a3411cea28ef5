"""Every measure against a plain evaluation of its formula in NumPy and SciPy, and what it does at its limits."""

import math

import numpy as np
import pytest
import torch
from dtrap.lightning_modules import losses
from dtrap.metrics import (
    alignment,
    centroid_gap,
    cross_fitted_scale,
    distribution_gap,
    fitted_scale,
    gap_direction,
    gap_shift_curve,
    modality_gap,
    nearest_prototype_accuracy,
    relation_agreement,
    relative_modality_gap,
    scatter_ratio,
    uniformity,
)
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import rankdata

TOLERANCE = {"abs": 1e-6, "rel": 0}
LABELS = [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 0, 0]
WITH_TEXTS = {
    "modality_gap": lambda f, t, y: modality_gap(f, t),
    "centroid_gap": lambda f, t, y: centroid_gap(f, t[y]),
    "distribution_gap": distribution_gap,
    "relative_modality_gap": relative_modality_gap,
    "alignment": alignment,
    "gap_drop": lambda f, t, y: gap_shift_curve(f, t, y, [-0.5, 0.0, 0.5]).drop,
    "least_shift": lambda f, t, y: gap_shift_curve(f, t, y, [-0.5, 0.0, 0.5]).least_shift,
    "shifted_accuracy": lambda f, t, y: gap_shift_curve(f, t, y, [0.1]).accuracy,
    "rank_correlation": lambda f, t, y: relation_agreement(f, t, y).rank_correlation,
    "divergence": lambda f, t, y: relation_agreement(f, t, y).divergence,
    "fitted_scale": fitted_scale,
    "cross_fitted": lambda f, t, y: cross_fitted_scale(f, t, y).cross_entropy,
}
VISUAL = {
    "uniformity": lambda f, t, y: uniformity(f),
    "scatter_ratio": lambda f, t, y: scatter_ratio(f, y),
    "nearest_prototype_accuracy": lambda f, t, y: nearest_prototype_accuracy(f, y),
}
MEASURES = WITH_TEXTS | VISUAL


@pytest.fixture
def features():
    """Images [15, 8] of five unbalanced classes around their texts [5, 8], a gap between both, and the labels."""
    generator = torch.Generator().manual_seed(7)
    texts = torch.randn(5, 8, generator=generator)
    labels = torch.tensor(LABELS)
    images = texts[labels] + 1.2 * torch.randn(15, 8, generator=generator) + 2 * torch.randn(8, generator=generator)
    return images, texts, labels


def plain(features):
    """The same in NumPy and float64, the rows normalized."""
    images, texts, labels = (value.double().numpy() for value in features)
    norms = [np.sqrt((rows**2).sum(axis=1, keepdims=True)) for rows in (images, texts)]
    return images / norms[0], texts / norms[1], labels.astype(int)


def cross_entropy(f, t, y, scale):
    return -log_softmax(scale * f @ t.T, axis=1)[np.arange(len(y)), y]


def shift(f, t, g, d, sides):
    f, t = (f - d / 2 * g, t + d / 2 * g) if sides == "both" else (f - d * g, t)
    return f / np.linalg.norm(f, axis=1, keepdims=True), t / np.linalg.norm(t, axis=1, keepdims=True)


def pairs_of(count):
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def test_gap_and_its_direction(features):
    f, t, _ = plain(features)
    gap = f.mean(axis=0) - t.mean(axis=0)
    assert float(modality_gap(*features[:2])) == pytest.approx(np.sqrt(gap @ gap), **TOLERANCE)
    np.testing.assert_allclose(gap_direction(*features[:2]), gap / np.sqrt(gap @ gap), atol=1e-6)


def test_the_distance_of_the_pairs_is_split_into_centroid_and_distribution_gap(features):
    images, texts, labels = features
    f, t, y = plain(features)
    centered = (f - f.mean(axis=0)) - (t[y] - t[y].mean(axis=0))
    centroid, distribution = centroid_gap(images, texts[labels]), distribution_gap(images, texts[labels])
    assert float(distribution) == pytest.approx(np.sqrt((centered**2).sum(axis=1).mean()), **TOLERANCE)
    assert float(distribution_gap(images, texts, labels)) == pytest.approx(float(distribution), **TOLERANCE)
    assert float(centroid) == pytest.approx(np.linalg.norm(f.mean(axis=0) - t[y].mean(axis=0)), **TOLERANCE)
    assert float(centroid**2 + distribution**2) == pytest.approx(((f - t[y]) ** 2).sum(axis=1).mean(), **TOLERANCE)


def test_relative_modality_gap(features):
    images, texts, labels = features
    f, t, y = plain(features)

    def distance(first, second):
        return (1 - first @ second) / 2

    def expected(f, t, y):
        between = np.mean([distance(row, t[c]) for row, c in zip(f, y, strict=True)])
        within = [np.mean([distance(rows[i], rows[j]) for i, j in pairs_of(len(rows))]) for rows in (f, t)]
        return between / (between + np.mean(within))

    assert float(relative_modality_gap(images, texts, labels)) == pytest.approx(expected(f, t, y), **TOLERANCE)
    as_pairs = expected(f, t[y], np.arange(15))
    assert float(relative_modality_gap(images, texts[labels])) == pytest.approx(as_pairs, **TOLERANCE)
    assert as_pairs != pytest.approx(expected(f, t, y), abs=1e-3), "repeated texts are nearer to each other"


@pytest.mark.parametrize("sides", ["both", "image"])
@pytest.mark.parametrize("own_direction", [True, False])
def test_gap_shift(features, sides, own_direction):
    f, t, y = plain(features)
    g = f.mean(axis=0) - t.mean(axis=0) if own_direction else np.arange(1.0, 9.0)
    direction = None if own_direction else torch.arange(1.0, 9.0)
    g = g / np.linalg.norm(g)
    shifts = [-0.9, -0.3, 0.0, 0.4, 2.5]
    curve = gap_shift_curve(*features, shifts, sides=sides, direction=direction, logit_scale=30.0)
    for number, d in enumerate(shifts):
        moved, moved_texts = shift(f, t, g, d, sides)
        apart = moved.mean(axis=0) - moved_texts.mean(axis=0)
        expected = np.linalg.norm(apart) * np.sign(g @ apart)
        assert float(curve.distance[number]) == pytest.approx(expected, **TOLERANCE)
        loss = cross_entropy(moved, moved_texts, y, 30.0).mean()
        assert float(curve.loss[number]) == pytest.approx(loss, **TOLERANCE)
        hits = (moved @ moved_texts.T).argmax(axis=1) == y
        assert float(curve.accuracy[number]) == pytest.approx(hits.mean(), **TOLERANCE)
    unshifted = float(curve.loss[2])
    assert float(curve.unshifted_loss) == pytest.approx(unshifted, abs=1e-12)
    assert float(curve.drop) == pytest.approx(unshifted - float(min(curve.loss)), abs=1e-12)
    assert float(curve.least_shift) == shifts[int(curve.loss.argmin())]
    if own_direction:
        assert float(curve.distance[0]) > 0 > float(curve.distance[4])


def test_the_loss_without_a_shift_is_known_where_zero_is_not_a_shift(features):
    f, t, y = plain(features)
    curve = gap_shift_curve(*features, [0.5])
    assert float(curve.unshifted_loss) == pytest.approx(cross_entropy(f, t, y, 100).mean(), **TOLERANCE)
    assert float(curve.drop) == pytest.approx(float(curve.unshifted_loss - curve.loss[0]), **TOLERANCE)


def test_of_equal_losses_the_least_shift_counts():
    axes = torch.eye(3)
    curve = gap_shift_curve(axes, axes, torch.arange(3), [-0.2, -0.1, 0.1, 0.2], direction=torch.ones(3), logit_scale=0)
    assert curve.loss.tolist() == [pytest.approx(math.log(3))] * 4
    assert abs(float(curve.least_shift)) == pytest.approx(0.1)


def test_alignment_and_uniformity(features):
    f, t, y = plain(features)
    distances = np.linalg.norm(f - t[y], axis=1)
    assert float(alignment(*features)) == pytest.approx((distances**2).mean(), **TOLERANCE)
    assert float(alignment(*features, alpha=3)) == pytest.approx((distances**3).mean(), **TOLERANCE)
    for power in (2, 0.5, 900):
        squared = np.array([((f[i] - f[j]) ** 2).sum() for i, j in pairs_of(15)])
        # The largest exponent is taken out, since exp(-900 * 1) is zero in floating point.
        expected = np.log(np.exp(-power * (squared - squared.min())).mean()) - power * squared.min()
        assert float(uniformity(features[0], t=power)) == pytest.approx(expected, abs=1e-6)


def test_uniformity_of_many_rows_is_that_of_all_pairs():
    rows = torch.randn(1500, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    unit = rows / rows.norm(dim=1, keepdim=True)
    expected = torch.pdist(unit).square().mul(-2).exp().mean().log()  # the authors' line
    assert float(uniformity(rows)) == pytest.approx(float(expected), abs=1e-9)


def test_scatter_ratio_and_nearest_prototypes(features):
    images, _, labels = features
    f, _, y = plain(features)
    between = sum((y == c).sum() * ((f[y == c].mean(axis=0) - f.mean(axis=0)) ** 2).sum() for c in range(5))
    within = sum(((f[y == c] - f[y == c].mean(axis=0)) ** 2).sum() for c in range(5))
    assert float(scatter_ratio(images, labels)) == pytest.approx(between / within, **TOLERANCE)
    hits = []
    for i in range(15):
        others = np.arange(15) != i
        means = np.stack([f[(y == c) & others].mean(axis=0) for c in range(5)])
        hits.append((means / np.linalg.norm(means, axis=1, keepdims=True) @ f[i]).argmax() == y[i])
    assert float(nearest_prototype_accuracy(images, labels)) == pytest.approx(np.mean(hits), **TOLERANCE)
    assert 0.2 < np.mean(hits) < 1


def test_labels_of_classes_may_have_gaps(features):
    images, _, labels = features
    strange = torch.tensor([-7, 3, 900, 4, 10**12])[labels]
    assert torch.equal(scatter_ratio(images, strange), scatter_ratio(images, labels))
    assert torch.equal(nearest_prototype_accuracy(images, strange), nearest_prototype_accuracy(images, labels))


def test_an_image_alone_in_its_class_is_a_candidate_but_not_counted():
    images = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.9, 0.2], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 0, 1])
    assert float(nearest_prototype_accuracy(images, labels)) == 1
    images[3] = torch.tensor([1.0, 0.1])  # the lonely class is nearest to the second image
    assert float(nearest_prototype_accuracy(images, labels)) < 1


def test_collapsed_images_have_the_accuracy_of_chance():
    labels = torch.arange(4).repeat(3)
    images = torch.tensor([[0.3, -0.2, 0.7]]).repeat(12, 1)
    assert float(nearest_prototype_accuracy(images, labels)) == pytest.approx(0.25)


def test_relation_agreement(features):
    images, texts, labels = features
    f, t, y = plain(features)
    visual, text = f @ f.T, (t @ t.T)[np.ix_(y, y)]
    # Entries of the same class are exactly equal, and all 1: computed cosines of a row with itself differ by rounding.
    text[y[:, None] == y[None, :]] = 1
    first, second = (rankdata([relation[i, j] for i, j in pairs_of(15)]) for relation in (visual, text))
    found = relation_agreement(images, texts, labels)
    assert float(found.rank_correlation) == pytest.approx(np.corrcoef(first, second)[0, 1], **TOLERANCE)
    rows = [softmax(v) @ (np.log(softmax(v)) - np.log(softmax(w))) for v, w in zip(visual, text, strict=True)]
    assert float(found.divergence) == pytest.approx(np.mean(rows), **TOLERANCE)
    as_in_code = relation_agreement(images, texts, labels, form="cosine")
    assert float(as_in_code.divergence) == pytest.approx((np.exp(text) * (text - visual)).mean(), **TOLERANCE)


@pytest.mark.parametrize("form", ["softmax", "cosine"])
def test_the_divergence_is_the_loss_of_relation_alignment_at_its_end(features, form):
    images, texts, labels = features
    relations = losses.visual_relations(images, images)
    fused = losses.fuse_relations(relations, losses.text_relations(texts, labels, labels), progress=1.0)
    expected = losses.relation_alignment_loss(relations, fused, form=form)
    assert float(relation_agreement(*features, form=form).divergence) == pytest.approx(float(expected), abs=1e-6)


def test_relations_that_follow_the_texts_agree_and_reversed_ones_do_not():
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.5], [0.0, 1.0]])
    labels = torch.arange(3)
    assert float(relation_agreement(texts, texts, labels).rank_correlation) == pytest.approx(1)
    assert float(relation_agreement(texts, texts, labels).divergence) == pytest.approx(0, abs=1e-12)
    other = torch.tensor([[1.0, 0.0], [-0.5, 1.0], [0.9, 0.8]])
    assert float(relation_agreement(other, texts, labels).rank_correlation) == pytest.approx(-1)


def test_the_fitted_scale_has_the_least_cross_entropy(features):
    f, t, y = plain(features)
    found = minimize_scalar(
        lambda scale: cross_entropy(f, t, y, scale).mean(), bounds=(0, 100), method="bounded", options={"xatol": 1e-9}
    )
    assert fitted_scale(*features) == pytest.approx(found.x, abs=1e-4)
    assert cross_entropy(f, t, y, fitted_scale(*features)).mean() <= found.fun + 1e-12


def test_limits_of_the_fitted_scale(features):
    images, texts, labels = features
    assert fitted_scale(texts, texts, torch.arange(5)) == 1000, "every image is nearest to its own text"
    assert fitted_scale(texts, texts, torch.arange(5), largest=50) == 50
    assert fitted_scale(-texts, texts, torch.arange(5)) == 0, "worse than chance"
    assert math.isnan(fitted_scale(images, texts[:1], torch.zeros(15, dtype=int)))
    assert math.isnan(fitted_scale(images, texts[:1].repeat(5, 1), labels))


def test_both_halves_are_measured_at_the_scale_of_the_other(features):
    f, t, y = plain(features)
    order = np.argsort(y, kind="stable")
    halves = [order[0::2], order[1::2]]
    scales = [
        minimize_scalar(
            lambda scale, half=half: cross_entropy(f[half], t, y[half], scale).mean(),
            bounds=(0, 100), method="bounded", options={"xatol": 1e-10},
        ).x
        for half in halves
    ]  # fmt: skip
    g = f.mean(axis=0) - t.mean(axis=0)
    g = g / np.linalg.norm(g)
    shifts = np.linspace(-1, 1, 41)
    curve = np.zeros(41)
    for half, scale in zip(halves, scales[::-1], strict=True):
        for number, d in enumerate(shifts):
            moved, moved_texts = shift(f[half], t, g, d, "both")
            curve[number] += cross_entropy(moved, moved_texts, y[half], scale).sum() / 15
    found = cross_fitted_scale(*features)
    assert found.scale == pytest.approx(np.mean(scales), abs=1e-4)
    assert found.cross_entropy == pytest.approx(curve[20], abs=1e-5)
    assert found.gap_drop == pytest.approx(curve[20] - curve.min(), abs=1e-5)
    assert found.images == 15


def test_two_halves_of_one_image_per_class_and_of_one_image():
    texts = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    images = texts + torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
    assert math.isfinite(cross_fitted_scale(images, texts, torch.arange(5)).cross_entropy)
    alone = cross_fitted_scale(images[:1], texts, torch.arange(1))
    assert math.isnan(alone.cross_entropy)
    assert alone.images == 1


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_change_the_input_alone(features, name, dtype):
    images, texts, labels = features
    half = images.to(dtype), texts.to(dtype)
    expected = MEASURES[name](half[0].double(), half[1].double(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = MEASURES[name](*half, labels)
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


@pytest.mark.parametrize("name", MEASURES)
def test_arrays_are_measured_like_tensors(features, name):
    expected = MEASURES[name](*features)
    found = MEASURES[name](*(value.numpy() for value in features))
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_row_without_a_direction_makes_a_measure_nan(features, name, value):
    images, texts, labels = features
    if value == 0:
        images[3] = 0
    else:
        images[3, 2] = value
    assert torch.as_tensor(MEASURES[name](images, texts, labels)).isnan().all()


@pytest.mark.parametrize("name", WITH_TEXTS)
def test_a_text_that_is_not_finite_makes_a_measure_nan(features, name):
    images, texts, labels = features
    texts[1] = math.nan
    assert torch.as_tensor(WITH_TEXTS[name](images, texts, labels)).isnan().all()


@pytest.mark.parametrize("name", MEASURES)
def test_length_and_order_of_the_rows_do_not_matter(features, name):
    images, texts, labels = features
    order = torch.tensor([14, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9, 13, 12, 11, 10])
    if name == "cross_fitted":  # the order deals the images to the two halves
        order = torch.arange(15)
    expected = float(torch.as_tensor(MEASURES[name](images, texts, labels)))
    found = MEASURES[name](2.0**40 * images[order], 2.0**-40 * texts, labels[order].int())
    assert float(torch.as_tensor(found)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["scatter_ratio", "nearest_prototype_accuracy"])
def test_visual_measures_of_one_class_or_of_one_image_per_class_are_unknown(features, name):
    images, texts, _ = features
    assert VISUAL[name](images, texts, torch.zeros(15, dtype=int)).isnan()
    assert VISUAL[name](images, texts, torch.arange(15)).isnan()


def test_what_needs_pairs_is_unknown_for_one_image(features):
    images, texts, _ = features
    one = torch.tensor([0])
    assert uniformity(images[:1]).isnan()
    assert relative_modality_gap(images[:1], texts, one).isnan()
    assert relation_agreement(images[:1], texts, one).rank_correlation.isnan()
    assert relation_agreement(images[:2], texts, one.repeat(2)).rank_correlation.isnan()


def test_constant_relations_have_no_rank_correlation_and_no_warning(features, recwarn):
    images, texts, _ = features
    assert relation_agreement(images, texts, torch.zeros(15, dtype=int)).rank_correlation.isnan()
    assert not recwarn.list


def test_without_a_gap_the_shift_has_no_direction(features):
    _, texts, _ = features
    curve = gap_shift_curve(texts, texts, torch.arange(5), [0.0, 0.5])
    assert curve.loss.isnan().all()
    assert curve.least_shift.isnan()
    assert float(curve.unshifted_loss) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["modality_gap", "distribution_gap", "alignment", "divergence", "scatter_ratio"])
def test_functions_have_a_gradient(features, name):
    images, texts, labels = features
    images.requires_grad_()
    MEASURES[name](images, texts, labels).backward()
    assert images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0


def test_mistakes_are_named_with_shape_and_expectation(features):
    images, texts, labels = features
    for call, message in {
        lambda: modality_gap(images[0], texts): r"image_features has the shape \[8\]; expected \[rows, width\]",
        lambda: modality_gap(images, texts[:0]): r"text_features has the shape \[0, 8\]; expected at least one row",
        lambda: modality_gap(images, texts[:, :5]): r"\[15, 8\] and text_features \[5, 5\]; expected the same width",
        lambda: modality_gap(images > 0, texts): "image_features has the type torch.bool; expected real numbers",
        lambda: distribution_gap(images, texts): "15 rows and text_features 5; expected pairs. Pass labels",
        lambda: alignment(images, texts, labels[:3]): r"labels has the shape \[3\]; expected \[15\]",
        lambda: alignment(images, texts, labels.float()): "labels has the type torch.float32; expected integers",
        lambda: alignment(images, texts, labels + 1): "labels has values from 1 to 5; expected 0 to 4",
        lambda: alignment(images, texts, labels - 1): "labels has values from -1 to 3; expected 0 to 4",
        lambda: scatter_ratio(images, labels[:, None]): r"labels has the shape \[15, 1\]; expected \[15\]",
        lambda: uniformity(images[:0]): r"features has the shape \[0, 8\]; expected at least one row",
        lambda: gap_shift_curve(images, texts, labels, []): "expected a list of at least one finite number",
        lambda: gap_shift_curve(images, texts, labels, [math.nan]): "expected a list of at least one finite number",
        lambda: gap_shift_curve(images, texts, labels, [0], sides="text"): "sides is 'text'; expected one of both,",
        lambda: gap_shift_curve(images, texts, labels, [0], direction=texts): r"shape \[5, 8\]; expected \[8\]",
        lambda: fitted_scale(images, texts, labels, largest=0): "largest is 0; expected a finite number above 0",
        lambda: relation_agreement(images, texts, labels, form="kl"): "form is 'kl'; expected one of softmax, cosine",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e160])
@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_the_length_of_the_features_does_not_matter_however_small_or_large_it_is(features, measure, scale):
    images, texts, labels = features
    found = measure(images.double() * scale, texts.double() * scale, labels)
    assert float(found) == pytest.approx(float(measure(images, texts, labels)), rel=1e-6, abs=1e-6)
