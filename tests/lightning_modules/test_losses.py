"""The formulas of the paper, evaluated independently in NumPy, and their identities."""

import numpy as np
import pytest
import torch
from dtrap.lightning_modules import losses
from torch import Generator


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def log_softmax(x):
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def cross_entropy(logits, labels):
    return -log_softmax(logits)[np.arange(len(labels)), labels].mean()


@pytest.fixture(params=[(2, 1, 1, 3), (3, 2, 5, 8), (7, 4, 2, 6)], ids=str)
def case(request):
    way, shot, views, dim = request.param
    rng = np.random.default_rng(0)
    plain_labels = np.repeat(np.arange(way), shot)
    return {
        "way": way,
        "image": rng.normal(size=(views * way * shot, dim)) * 3,
        "text": rng.normal(size=(way, dim)),
        "labels": np.tile(plain_labels, views),
        "plain_labels": plain_labels,
    }


def as_tensors(case):
    return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in case.items()}


def test_cross_modal_loss_is_cross_entropy_of_scaled_cosines(case):
    t = as_tensors(case)
    expected = cross_entropy(7.0 * unit(case["image"]) @ unit(case["text"]).T, case["labels"])
    got = losses.cross_modal_loss(t["image"], t["text"], t["labels"], logit_scale=7.0)
    assert float(got) == pytest.approx(expected, rel=1e-12)


def test_anti_visual_loss_takes_any_rows_as_prototypes(case):
    t = as_tensors(case)
    indices = np.random.default_rng(1).integers(0, len(case["image"]), case["way"])
    image = unit(case["image"])
    expected = cross_entropy(100.0 * image @ image[indices].T, case["labels"])
    got = losses.anti_visual_loss(
        t["image"], t["labels"], num_classes=case["way"], prototype_indices=torch.from_numpy(indices)
    )
    assert float(got) == pytest.approx(expected, rel=1e-12)


def test_anti_visual_loss_draws_uniformly_with_replacement_from_all_rows():
    drawn = losses.draw_prototypes(4, 40_000, Generator().manual_seed(3))
    counts = torch.bincount(drawn, minlength=4)
    assert len(counts) == 4
    assert counts.min() > 9_600
    assert counts.max() < 10_400


def test_anti_visual_loss_has_gradient_through_both_factors():
    image = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    labels, indices = torch.tensor([0, 0, 1, 1]), torch.tensor([3, 0])
    loss = losses.anti_visual_loss(image, labels, num_classes=2, prototype_indices=indices, logit_scale=5.0)
    (gradient,) = torch.autograd.grad(loss, image)
    shift = torch.zeros_like(image)
    shift[3, 1] = 1e-6

    def value(x):
        return losses.anti_visual_loss(x, labels, num_classes=2, prototype_indices=indices, logit_scale=5.0)

    numeric = (value(image + shift) - value(image - shift)) / 2e-6
    assert float(gradient[3, 1]) == pytest.approx(float(numeric), rel=1e-5)


def test_visual_loss_takes_the_normalised_mean_of_each_class_as_its_prototype(case):
    t = as_tensors(case)
    plain = case["image"][: len(case["plain_labels"])]
    means = np.stack([unit(plain)[case["plain_labels"] == c].mean(axis=0) for c in range(case["way"])])
    expected = cross_entropy(100.0 * unit(case["image"]) @ unit(means).T, case["labels"])
    got = losses.visual_loss(
        t["image"],
        t["labels"],
        num_classes=case["way"],
        plain_features=torch.from_numpy(plain),
        plain_labels=t["plain_labels"],
    )
    assert float(got) == pytest.approx(expected, rel=1e-12)


def test_visual_loss_says_which_class_has_no_plain_row():
    features = torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"\[1\]"):
        losses.visual_loss(features, torch.tensor([0, 0]), num_classes=2)


def test_noise_prototypes_are_drawn_anew_and_carry_no_gradient_of_the_images():
    image, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    generator = Generator().manual_seed(0)
    first, second = (losses.noise_prototype_loss(image, labels, num_classes=3, generator=generator) for _ in range(2))
    again = losses.noise_prototype_loss(image, labels, num_classes=3, generator=Generator().manual_seed(0))
    assert first != second
    assert first == again


def test_relations_and_their_fusion(case):
    t = as_tensors(case)
    plain = t["image"][: len(case["plain_labels"])]
    visual = losses.visual_relations(t["image"], plain)
    text = losses.text_relations(t["text"], t["labels"], t["plain_labels"])
    expected_text = (unit(case["text"]) @ unit(case["text"]).T)[case["labels"]][:, case["plain_labels"]]
    np.testing.assert_allclose(visual.numpy(), unit(case["image"]) @ unit(plain.numpy()).T, rtol=1e-12)
    np.testing.assert_allclose(text.numpy(), expected_text, rtol=1e-12)
    fused = losses.fuse_relations(visual, text, 0.3)
    np.testing.assert_allclose(fused.numpy(), 0.7 * visual.numpy() + 0.3 * expected_text, rtol=1e-12)


def test_cosine_form_has_the_gradient_that_does_not_depend_on_the_relations():
    relations = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    fused = torch.randn(5, 4, dtype=torch.float64)
    loss = losses.relation_alignment_loss(relations, fused, form="cosine")
    torch.testing.assert_close(torch.autograd.grad(loss, relations)[0], -fused.exp() / 20)


def test_cosine_form_is_torchs_kl_div_loss_with_its_default_mean():
    relations, fused = torch.randn(5, 4), torch.randn(5, 4)
    with pytest.warns(UserWarning, match="batchmean"):
        expected = torch.nn.KLDivLoss(log_target=True)(relations, fused)
    torch.testing.assert_close(losses.relation_alignment_loss(relations, fused), expected)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_softmax_form_is_the_divergence_from_the_fused_relations(temperature):
    rng = np.random.default_rng(2)
    relations, fused = rng.normal(size=(6, 3)), rng.normal(size=(6, 3))
    p, q = log_softmax(relations / temperature), log_softmax(fused / temperature)
    expected = (np.exp(p) * (p - q)).sum(axis=1).mean()
    got = losses.relation_alignment_loss(
        torch.from_numpy(relations), torch.from_numpy(fused), form="softmax", temperature=temperature
    )
    assert float(got) == pytest.approx(expected, rel=1e-12)
    assert expected > 0
    same = losses.relation_alignment_loss(
        torch.from_numpy(fused), torch.from_numpy(fused), form="softmax", temperature=temperature
    )
    assert float(same) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_float32_even_under_autocast(dtype):
    image, text = torch.randn(10, 32).to(dtype), torch.randn(5, 32).to(dtype)
    labels = torch.arange(10) % 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = losses.cross_modal_loss(image, text, labels)
    expected = losses.cross_modal_loss(image.double(), text.double(), labels)
    assert got.dtype == torch.float32
    assert float(got) == pytest.approx(float(expected), rel=1e-4)


def test_the_scale_of_the_features_does_not_matter(case):
    t = as_tensors(case)
    scaled = losses.anti_visual_loss(
        t["image"] * 50, t["labels"], num_classes=case["way"], generator=Generator().manual_seed(1)
    )
    plain = losses.anti_visual_loss(
        t["image"], t["labels"], num_classes=case["way"], generator=Generator().manual_seed(1)
    )
    torch.testing.assert_close(scaled, plain)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: losses.visual_relations(x[0], x), "rows, width"),
        (lambda x: losses.fuse_relations(x, x.T, 0.5), "shape"),
        (lambda x: losses.relation_alignment_loss(x, x, form="kl"), "cosine"),
        (
            lambda x: losses.anti_visual_loss(
                x, torch.tensor([0, 1, 1]), num_classes=2, prototype_indices=torch.tensor([1])
            ),
            "expected \\[2\\], one per class",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(3, 5))
