"""The contract of torchmetrics: batches, halves and processes are joined, and the classes can be copied and plotted."""

import copy
import pickle
import sys

import pytest
import torch
from dtrap import metrics
from matplotlib import pyplot
from torch import distributed, multiprocessing
from torchmetrics import Metric, MetricCollection

CLASSES = [
    "ModalityGap", "CentroidGap", "DistributionGap", "RelativeModalityGap", "GapShift", "Alignment", "Uniformity",
    "ScatterRatio", "NearestPrototypeAccuracy", "RelationAgreement", "FittedScale",
]  # fmt: skip
VISUAL = {"Uniformity", "ScatterRatio", "NearestPrototypeAccuracy"}
each_class = pytest.mark.parametrize("name", CLASSES)


def make_data(seed=0, count=24):
    """Images [count, 6], texts [4, 6] and labels."""
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randn(4, 6, generator=generator)
    labels = torch.randint(4, (count,), generator=generator)
    return texts[labels] + torch.randn(count, 6, generator=generator) + 1, texts, labels


def make_metric(name, texts, **options):
    metric = getattr(metrics, name)(**options)
    metric.set_texts(texts)
    return metric


def values(result):
    """A result as one vector: a scalar, or all tensors of a tuple."""
    parts = [result] if isinstance(result, torch.Tensor) else list(result)
    return torch.cat([torch.as_tensor(part, dtype=torch.float64).flatten() for part in parts])


def same(first, second):
    torch.testing.assert_close(values(first), values(second), atol=1e-9, rtol=1e-9)


def expected(name, images, texts, labels):
    """The functions, as the classes should call them."""
    shifts = [step / 20 for step in range(-20, 21)]
    return {
        "ModalityGap": lambda: metrics.modality_gap(images, texts),
        "CentroidGap": lambda: metrics.centroid_gap(images, texts[labels]),
        "DistributionGap": lambda: metrics.distribution_gap(images, texts[labels]),
        "RelativeModalityGap": lambda: metrics.relative_modality_gap(images, texts, labels),
        "GapShift": lambda: metrics.gap_shift_curve(images, texts, labels, shifts),
        "Alignment": lambda: metrics.alignment(images, texts, labels),
        "Uniformity": lambda: metrics.uniformity(images),
        "ScatterRatio": lambda: metrics.scatter_ratio(images, labels),
        "NearestPrototypeAccuracy": lambda: metrics.nearest_prototype_accuracy(images, labels),
        "RelationAgreement": lambda: metrics.relation_agreement(images, texts, labels),
        "FittedScale": lambda: torch.tensor(metrics.fitted_scale(images, texts, labels)),
    }[name]()


def test_all_classes_are_tested():
    found = {name for name in metrics.__all__ if isinstance(getattr(metrics, name), type)}
    assert {name for name in found if issubclass(getattr(metrics, name), Metric)} == {*CLASSES, "FeatureMetric"}


@each_class
def test_the_value_is_that_of_the_function_over_all_batches(name):
    images, texts, labels = make_data()
    metric = make_metric(name, texts)
    for start in (0, 5, 23):
        end = {0: 5, 5: 23, 23: 24}[start]
        metric.update(images[start:end], labels[start:end])
    same(metric.compute(), expected(name, images, texts, labels))


@each_class
def test_class_flags_are_set(name):
    metric = getattr(metrics, name)
    assert metric.higher_is_better is None if name == "FittedScale" else isinstance(metric.higher_is_better, bool)
    assert metric.is_differentiable is False
    assert metric.full_state_update is False


@each_class
def test_two_halves_equal_the_whole(name):
    images, texts, labels = make_data()
    whole, first, second = (make_metric(name, texts) for _ in range(3))
    whole.update(images, labels)
    first.update(images[:7], labels[:7])
    second.update(images[7:20], labels[7:20])
    second.update(images[20:], labels[20:])
    first.merge_state(second)
    same(first.compute(), whole.compute())


@each_class
def test_forward_gives_the_value_of_the_batch_and_keeps_all(name):
    images, texts, labels = make_data()
    metric, batch = make_metric(name, texts), make_metric(name, texts)
    metric(images[:10], labels[:10])
    batch.update(images[10:], labels[10:])
    same(metric(images[10:], labels[10:]), batch.compute())
    same(metric.compute(), expected(name, images, texts, labels))


@each_class
def test_copies_and_pickles_go_on_alone(name):
    images, texts, labels = make_data()
    metric = make_metric(name, texts)
    metric.update(images[:12], labels[:12])
    for copied in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric), metric.clone()):
        copied.update(images[12:], labels[12:])
        same(copied.compute(), expected(name, images, texts, labels))
    same(metric.compute(), expected(name, images[:12], texts, labels[:12]))


@each_class
def test_reset_forgets_the_images_and_keeps_the_texts(name):
    images, texts, labels = make_data()
    metric = make_metric(name, texts)
    metric.update(torch.randn(9, 6), torch.arange(9) % 4)
    metric.reset()
    metric.update(images, labels)
    same(metric.compute(), expected(name, images, texts, labels))


@each_class
def test_one_value_and_several_are_plotted(name):
    images, texts, labels = make_data()
    metric = make_metric(name, texts)
    found = [metric(images[:12], labels[:12]), metric(images[12:], labels[12:])]
    for arguments in ((), (found[0],), (found,)):
        figure, axes = metric.plot(*arguments)
        assert axes.get_figure() is figure
        assert axes.lines or axes.collections
    own = pyplot.subplots()[1]
    assert metric.plot(ax=own)[1] is own
    pyplot.close("all")


def test_the_curve_is_plotted_over_the_distance():
    images, texts, labels = make_data()
    metric = make_metric("GapShift", texts)
    curve = metric(images, labels)
    [line] = metric.plot()[1].lines
    assert line.get_xdata().tolist() == curve.distance.tolist()
    assert line.get_ydata().tolist() == curve.loss.tolist()
    pyplot.close("all")


def test_options_of_the_curve():
    images, texts, labels = make_data()
    options = {"sides": "image", "direction": torch.arange(6.0), "logit_scale": 7.0}
    metric = make_metric("GapShift", texts, shifts=[0.0, 0.3], **options)
    metric.update(images, labels)
    same(metric.compute(), metrics.gap_shift_curve(images, texts, labels, [0.0, 0.3], **options))


def test_a_collection_shares_the_features():
    images, texts, labels = make_data()
    collection = MetricCollection([getattr(metrics, name)() for name in CLASSES])
    for metric in collection.values():
        metric.set_texts(texts)
    collection.update(images[:9], labels[:9])
    collection.update(images[9:], labels[9:])
    found = collection.compute()
    for name in CLASSES:
        same(found[name], expected(name, images, texts, labels))
    assert len(collection.compute_groups) == 1


def test_texts_set_after_the_value_was_computed_count():
    images, texts, labels = make_data()
    metric = make_metric("ModalityGap", texts)
    metric.update(images, labels)
    metric.compute()
    metric.set_texts(texts + 1)
    same(metric.compute(), metrics.modality_gap(images, texts + 1))


def test_half_precision_is_measured_and_no_graph_is_kept():
    images, texts, labels = make_data()
    metric = make_metric("Alignment", texts.half())
    metric.update(images.half().requires_grad_(), labels)
    metric.update(images.requires_grad_(), labels)
    assert not any(features.requires_grad for features in metric.image_features)
    both = torch.cat([images.detach().half().float(), images.detach()])
    same(metric.compute(), metrics.alignment(both, texts.half(), labels.repeat(2)))


def test_a_module_moves_and_converts_its_metric():
    images, texts, labels = make_data()
    module = torch.nn.Module()
    module.metric = make_metric("Alignment", texts)
    module.to(torch.float64).to("cpu")
    module.metric.update(images, labels)
    same(module.metric.compute(), metrics.alignment(images, texts, labels))
    assert not module.state_dict(), "checkpoints of the module stay the same"


@each_class
def test_an_empty_batch_changes_nothing_and_no_image_at_all_is_an_error(name):
    images, texts, labels = make_data()
    metric = make_metric(name, texts)
    metric.update(images[:0], labels[:0])
    with pytest.raises(ValueError, match=rf"{name} has no images; call update\(image_features, labels\) first"):
        metric.compute()
    metric.update(images, labels)
    same(metric.compute(), expected(name, images, texts, labels))


@each_class
def test_an_empty_batch_in_forward_has_no_value_and_forgets_nothing(name):
    images, texts, labels = make_data()
    metric = make_metric(name, texts)
    metric(images, labels)
    assert metric(images[:0], labels[:0]) is None
    same(metric.compute(), expected(name, images, texts, labels))


@each_class
@pytest.mark.parametrize("convert", ["half", "set_dtype", "later"])
def test_another_precision_of_the_module_rounds_nothing(name, convert):
    images, texts, labels = make_data()
    module = torch.nn.Module()
    module.metric = make_metric(name, texts)
    if convert == "half":
        module.half()
    module.metric.update(images[:10], labels[:10])
    if convert == "set_dtype":
        module.metric.set_dtype(torch.float16)
    if convert == "later":
        module.to(torch.bfloat16)
    module.metric.update(images[10:], labels[10:])
    same(module.metric.compute(), expected(name, images, texts, labels))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@each_class
def test_a_metric_without_texts_takes_those_of_the_one_that_it_merges(name):
    images, texts, labels = make_data()
    empty, full = getattr(metrics, name)(), make_metric(name, texts)
    full.update(images, labels)
    empty.merge_state(full)
    same(empty.compute(), expected(name, images, texts, labels))


@each_class
def test_only_the_visual_measures_need_no_texts(name):
    images, texts, labels = make_data()
    metric = getattr(metrics, name)()
    metric.update(images, labels)
    if name in VISUAL:
        same(metric.compute(), expected(name, images, texts, labels))
    else:
        with pytest.raises(ValueError, match=rf"{name} has no texts; call set_texts\(text_features\) first"):
            metric.compute()


def test_mistakes_are_named_where_they_are_made():
    images, texts, labels = make_data()
    metric = metrics.ModalityGap()
    with pytest.raises(ValueError, match=r"text_features has the shape \[6\]; expected \[rows, width\]"):
        metric.set_texts(texts[0])
    metric.set_texts(texts)
    with pytest.raises(ValueError, match=r"shape \[24, 5\]; expected \[rows, 6\], as the texts"):
        metric.update(images[:, :5], labels)
    with pytest.raises(ValueError, match=r"labels has the shape \[3\]; expected \[24\]"):
        metric.update(images, labels[:3])
    visual = metrics.Uniformity()
    visual.update(images, labels)
    with pytest.raises(ValueError, match=r"shape \[24, 5\]; expected \[rows, 6\], as the features before"):
        visual.update(images[:, :5], labels)
    other = make_metric("ModalityGap", texts + 1)
    with pytest.raises(ValueError, match="two ModalityGap with different texts"):
        metric.merge_state(other)


def measure_in_a_process(rank, folder):
    """Save what a process finds where both have images, the second in two batches, and where the second has none."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    images, texts, labels = make_data()
    found = {}
    for name in CLASSES:
        uneven = make_metric(name, texts)
        for start, end in [(0, 9)] if rank == 0 else [(9, 11), (11, 24)]:
            uneven.update(images[start:end], labels[start:end])
        idle = make_metric(name, texts)
        if rank == 0:
            idle.update(images, labels)
        found[name] = [values(uneven.compute()), values(idle.compute())]
        found[name].append(torch.tensor(sum(map(len, uneven.image_features))))
        mixed = getattr(metrics, name)() if name in VISUAL else make_metric(name, texts)  # no texts tell the width
        if rank == 0:
            mixed.update(images[:9], labels[:9])
            mixed.update(images[9:].double(), labels[9:])
        elif name not in VISUAL:
            mixed.update(images[:1].half(), labels[:1])
            mixed.reset()
        found[name].append(values(mixed.compute()))
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_processes_measure_all_images(tmp_path):
    # A forked process need not import torch, which takes longer than all tests of this file.
    method = "fork" if sys.platform == "linux" else "spawn"
    multiprocessing.start_processes(measure_in_a_process, args=(str(tmp_path),), nprocs=2, start_method=method)
    images, texts, labels = make_data()
    for rank, own in enumerate((9, 15)):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name in CLASSES:
            whole = values(expected(name, images, texts, labels))
            torch.testing.assert_close(found[name][0], whole, atol=1e-9, rtol=1e-9)
            torch.testing.assert_close(found[name][1], whole, atol=1e-9, rtol=1e-9)
            torch.testing.assert_close(found[name][3], whole, atol=1e-9, rtol=1e-9)
            assert found[name][2] == own, "afterwards each process has its own images again"
