"""Tip-Adapter and Tip-Adapter-F: the authors' run, the formula in NumPy, identities, search, saving."""

import numpy as np
import pytest
import quiet
import torch
from dtrap.callbacks import KeepBest, StageSwitch
from dtrap.datamodules import ShapesDataModule
from dtrap.datamodules.views import Preprocessing
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.tuners.base import TaskData
from dtrap.lightning_modules.tuners.tip_adapter import TipAdapter, TipAdapterF
from feature_backbone import EpochBatches, FeatureBackbone
from lightning.pytorch import Callback, LightningDataModule, Trainer
from reference_files import assert_golden, golden
from torch import nn
from torch.utils.data import DataLoader

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
QUIET = quiet.QUIET | {"num_sanity_val_steps": 0}


class GoldenData(LightningDataModule):
    """Support of all augmented passes, batches of the file, and its split `validation` for validation."""

    fixed_views = True

    def __init__(self, settings, arrays, validation):
        super().__init__()
        self.arrays, self.validation = arrays, validation
        self.class_names, self.template = [str(k) for k in range(settings["way"])], ["a {}.", "the {}."]
        features, labels = arrays["in.train_f_features"].double(), arrays["in.train_f_labels"].long()
        self.batches = EpochBatches(features, labels, settings["tip_f"]["batch_size"], drop_last=False)

    def episode_seed(self, purpose):
        return 0

    def support_batches(self):
        views = self.arrays["in.train_views"].double()
        count, rows = views.shape[:2]
        batch = {
            "images": views.flatten(0, 1),
            "labels": self.arrays["in.train_labels"].long().repeat(count),
            "view": torch.arange(count).repeat_interleave(rows),
            "sample_id": torch.arange(rows).repeat(count),
        }
        return [batch]

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    def val_dataloader(self):
        images, labels = (self.arrays[f"in.{self.validation}_{what}"] for what in ("features", "labels"))
        return DataLoader([{"images": images.double(), "labels": labels.long()}], batch_size=None)


class Seen(Callback):
    """Set the batches of each epoch; record losses, rates, accuracies, and validation logits of every epoch."""

    def __init__(self, arrays):
        self.arrays = arrays
        self.losses, self.rates, self.accuracies, self.logits = [], [], [], []

    def on_train_epoch_start(self, trainer, pl_module):
        trainer.datamodule.batches.epoch = trainer.current_epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        with torch.no_grad():
            right = pl_module(batch["images"]).argmax(dim=1) == batch["labels"]
        self.accuracies.append(100 * float(right.double().mean()))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        self.last_keys = pl_module.tuner.keys.detach().clone()

    def on_validation_end(self, trainer, pl_module):
        with torch.no_grad():
            self.logits.append(pl_module(self.arrays["in.test_features"].double()))


@pytest.fixture
def authors_run():
    return golden("tip_w6s3")


def golden_fit(tuner, settings, arrays, validation, callbacks=(), epochs=1):
    objective = Objective(0.0, 0.0, logit_scale=settings["clip_scale"])
    module = FewShotClassifier(FeatureBackbone(arrays["in.text_prompts"].flatten(0, 1)), tuner, objective)
    trainer = Trainer(precision="64-true", max_epochs=epochs, callbacks=list(callbacks), **QUIET)
    trainer.fit(module, datamodule=GoldenData(settings, arrays, validation))
    return module


def logits_of(module, arrays, split):
    with torch.no_grad():
        return module(arrays[f"in.{split}_features"].double())


def accuracy(logits, arrays, split):
    return 100 * float((logits.argmax(dim=1) == arrays[f"in.{split}_labels"]).double().mean())


def assert_searched(tuner, expected, got_right, grid, rows):
    assert float(tuner.beta) == pytest.approx(expected["best_beta"], abs=1e-12)
    assert float(tuner.alpha) == pytest.approx(expected["best_alpha"], abs=1e-12)
    assert_golden(100 * got_right.double() / rows, grid)
    assert 100 * float(got_right.max()) / rows == pytest.approx(expected["best_val_accuracy"])


def searched_right(module, arrays, scale):
    with torch.no_grad():
        features = module.image_features(arrays["in.val_features"].double())
        return module.tuner.search(features, module.text_features(), arrays["in.val_labels"].long(), scale)


def test_the_authors_cache_logits_and_search_are_repeated(authors_run):
    settings, arrays = authors_run
    start = {"alpha": settings["init_alpha"], "beta": settings["init_beta"]}
    module = golden_fit(TipAdapter(**start), settings, arrays, "val")
    assert_golden(module.tuner.keys.T, arrays["out.cache_keys"])
    assert_golden(module.tuner.values, arrays["out.cache_values"])
    initial = logits_of(module, arrays, "val")
    assert_golden(initial, arrays["out.val_tip_logits_init"])
    assert accuracy(initial, arrays, "val") == pytest.approx(settings["tip"]["val_accuracy_init"])
    with module.zero_shot():
        for split in ("val", "test"):
            plain = logits_of(module, arrays, split)
            assert_golden(plain, arrays[f"out.{split}_clip_logits"])
            assert accuracy(plain, arrays, split) == pytest.approx(settings["tip"][f"{split}_accuracy_zero_shot"])

    tuner = TipAdapter(**start, search_scale=settings["search_scale"], search_step=settings["search_step"])
    module = golden_fit(tuner, settings, arrays, "val")
    assert tuner.grids() == (settings["beta_grid"], settings["alpha_grid"])
    right = searched_right(module, arrays, settings["clip_scale"])
    rows = len(arrays["in.val_labels"])
    assert_searched(tuner, settings["tip"], right, arrays["out.val_accuracy_grid"], rows)
    best = logits_of(module, arrays, "test")
    assert_golden(best, arrays["out.test_tip_logits"])
    assert accuracy(best, arrays, "test") == pytest.approx(settings["tip"]["test_accuracy"])


def test_the_authors_training_of_the_keys_is_repeated(authors_run):
    settings, arrays = authors_run
    expected, seen, keep = settings["tip_f"], Seen(arrays), KeepBest()
    tuner = TipAdapterF(alpha=settings["init_alpha"], beta=settings["init_beta"], search_step=settings["search_step"])
    # The authors choose the best epoch on the test set.
    module = golden_fit(tuner, settings, arrays, "test", [seen, keep], expected["epochs"])
    for key, got, tolerance in (
        ("loss", seen.losses, 1e-8),
        ("lr", seen.rates, 1e-12),
        ("accuracy", seen.accuracies, 0),
    ):
        assert got == pytest.approx([step[key] for step in settings["steps"]], rel=tolerance, abs=0)
    assert_golden(torch.stack(seen.logits), arrays["out.f_test_logits_per_epoch"])
    assert keep.best == expected["best_epoch"]
    assert keep.accuracies == pytest.approx(expected["test_accuracy_per_epoch"])
    assert_golden(seen.last_keys, arrays["out.f_keys_last"])
    assert_golden(tuner.keys.detach(), arrays["out.f_keys_best"])

    tuner.search_scale = tuple(settings["search_scale"])
    scale, labels = settings["clip_scale"], arrays["in.val_labels"].long()
    tuner.choose(module.image_features(arrays["in.val_features"].double()), module.text_features(), labels, scale)
    right = searched_right(module, arrays, scale)
    assert_searched(tuner, expected, right, arrays["out.f_val_accuracy_grid"], len(labels))
    after = logits_of(module, arrays, "test")
    assert_golden(after, arrays["out.f_test_logits"])
    assert accuracy(after, arrays, "test") == pytest.approx(expected["test_accuracy_after_search"])


def support(classes=3, width=16, seed=0):
    """Rows that are not sorted by image; image 7 has three views, image 2 one."""
    sample_id = torch.tensor([5, 7, 2, 9, 7, 5, 9, 7])
    labels = torch.tensor([0, 1, 2, 2, 1, 0, 2, 1])
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(rows, width, generator=generator, dtype=torch.float64) for rows in (8, classes, 6)]
    return TaskData(labels, draw[1], encoded=draw[0], sample_id=sample_id), draw[2]


def prepared(tuner, task):
    tuner.attach(FeatureBackbone(torch.zeros(1, task.encoded.shape[1])))
    tuner.reset(0, len(task.text_features))
    with torch.no_grad():
        tuner.prepare_task(task)
    return tuner


@pytest.mark.parametrize("cls", [TipAdapter, TipAdapterF])
def test_logits_are_those_of_the_formula_in_numpy(cls):
    task, queries = support()
    rows, texts, x = (np.array(value) for value in (task.encoded, task.text_features, queries))

    def unit(value):
        return value / np.sqrt((value**2).sum(axis=-1, keepdims=True))

    groups = [([2], 2), ([0, 5], 0), ([1, 4, 7], 1), ([3, 6], 2)]
    expected = np.zeros((6, 3))
    for query in range(6):
        for c in range(3):
            expected[query, c] = 100 * unit(x[query]) @ unit(texts[c])
        for members, c in groups:
            key = unit(sum(rows[member] for member in members) / len(members))
            expected[query, c] += 2.5 * np.exp(-4.0 * (1 - unit(x[query]) @ key))
    got = prepared(cls(alpha=2.5, beta=4.0), task).logits(queries, task.text_features, 100.0)
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=0, atol=1e-10)


def test_without_sample_ids_each_row_is_a_key():
    task, _ = support()
    tuner = prepared(TipAdapter(), TaskData(task.labels, task.text_features, encoded=task.encoded))
    torch.testing.assert_close(tuner.keys, nn.functional.normalize(task.encoded))
    assert torch.equal(tuner.values.argmax(dim=1), task.labels)


def test_the_first_of_equal_pairs_is_chosen():
    task, queries = support()
    tuner = prepared(TipAdapter(search_scale=(5.0, 3.0), search_step=(4, 3)), task)
    betas, alphas = tuner.grids()
    pairs = [(beta, alpha) for beta in betas for alpha in alphas]
    predicted = [
        prepared(TipAdapter(alpha, beta), task).logits(queries, task.text_features, 3.0).argmax(dim=1)
        for beta, alpha in pairs
    ]
    for seed in range(20):
        labels = torch.randint(3, (6,), generator=torch.Generator().manual_seed(seed))
        tuner.choose(queries, task.text_features, labels, 3.0)
        right = [int((classes == labels).sum()) for classes in predicted]
        assert (float(tuner.beta), float(tuner.alpha)) == pytest.approx(pairs[right.index(max(right))])


def fitted(backbone, tuner, objective=None, **trainer):
    module = FewShotClassifier(backbone, tuner, objective)
    data = ShapesDataModule(shot=2, query=2, preprocessing=Preprocessing.of(backbone))
    settings = QUIET | {"max_epochs": 3, "callbacks": [StageSwitch()]} | trainer
    Trainer(**settings).fit(module, datamodule=data)
    return module.eval()


@pytest.mark.parametrize("cls", [TipAdapter, TipAdapterF])
def test_with_alpha_0_and_within_zero_shot_it_is_the_backbone(tiny_backbone, cls):
    module = fitted(tiny_backbone, cls(alpha=0.0), max_epochs=1)
    with_cache = fitted(tiny_backbone, cls(alpha=5.0), max_epochs=1)
    with module.zero_shot():
        expected = module(IMAGES)
    with with_cache.zero_shot():
        assert torch.equal(with_cache(IMAGES), expected)
    assert torch.equal(module(IMAGES), expected)
    assert not torch.allclose(with_cache(IMAGES), expected, atol=1e-3)


def test_without_training_each_fit_has_the_cache_of_its_own_support(tiny_backbone):
    module = fitted(tiny_backbone, TipAdapter())
    assert module.trainer.global_step == 0
    assert module.tuner.keys.shape == (10, 16)
    assert torch.equal(module.tuner.values.sum(dim=0), torch.full((5,), 2.0))
    first = module.tuner.keys.clone()
    data = ShapesDataModule(shot=1, query=1, preprocessing=Preprocessing.of(tiny_backbone))
    Trainer(max_epochs=1, **QUIET).fit(module, datamodule=data)
    assert module.tuner.keys.shape == (5, 16)
    assert not torch.equal(module.tuner.keys, first[:5])


def test_the_keys_are_trained_and_nothing_else(tiny_backbone):
    cache, module = fitted(tiny_backbone, TipAdapter()), fitted(tiny_backbone, TipAdapterF())
    assert module.trainer.global_step == 6
    assert not torch.equal(module.tuner.keys, cache.tuner.keys)
    assert torch.equal(module.tuner.values, cache.tuner.values)
    module.zero_grad()
    module(IMAGES).square().sum().backward()
    assert {name for name, value in module.named_parameters() if value.grad is not None} == {"tuner.keys"}
    assert {name for name, value in module.named_parameters() if value.requires_grad} == {"tuner.keys"}


def test_constant_terms_are_warned_about_once_and_training_goes_on(tiny_backbone, recwarn):
    module = fitted(tiny_backbone, TipAdapterF(), Objective())
    warned = [str(w.message) for w in recwarn if "is constant here" in str(w.message)]
    assert sorted(message.split()[0] for message in warned) == ["L_ad", "L_ra"]
    plain = fitted(tiny_backbone, TipAdapterF(), Objective(0.0, 0.0))
    assert torch.equal(module.tuner.keys, plain.tuner.keys)


@pytest.mark.parametrize("cls", [TipAdapter, TipAdapterF])
def test_mixed_precision_gives_nearly_the_same(tiny_backbone, cls):
    expected = fitted(tiny_backbone, cls()).tuner.keys.detach()
    got = fitted(tiny_backbone, cls(), precision="bf16-mixed").tuner.keys.detach()
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize("cls", [TipAdapter, TipAdapterF])
def test_saved_and_reloaded_it_predicts_the_same_bit_for_bit(tiny_backbone, cls):
    module = fitted(tiny_backbone, cls(search_scale=(5.0, 3.0), search_step=(4, 3)))
    module.tuner.beta.fill_(2.5)
    module.tuner.alpha.fill_(7.1)
    state = {name: value.detach().clone() for name, value in module.tuner.adapter_state().items()}
    fresh = FewShotClassifier(tiny_backbone, cls())
    fresh.set_classes(module.prompts.class_names, module.trainer.datamodule.template)
    fresh.tuner.load_adapter_state(state)
    assert torch.equal(fresh(IMAGES), module(IMAGES))
    assert isinstance(fresh.tuner.keys, nn.Parameter) == (cls is TipAdapterF)
    other = cls()
    other.attach(FeatureBackbone(torch.zeros(1, 8)))
    with pytest.raises(DtrapError, match=r"keys is \[10, 16\], expected \[0, 8\]"):
        other.load_adapter_state(state)


def test_mistakes_are_named():
    with pytest.raises(DtrapError, match=r"TipAdapterF: alpha is -1\.0"):
        TipAdapterF(alpha=-1.0)
    with pytest.raises(DtrapError, match="beta is -2"):
        TipAdapter(beta=-2)
    with pytest.raises(DtrapError, match=r"search_scale is \(0\.05, 3\)"):
        TipAdapter(search_scale=(0.05, 3))
    with pytest.raises(DtrapError, match=r"search_step is \(200, 0\)"):
        TipAdapter(search_step=(200, 0))
    with pytest.raises(DtrapError, match="search_scale is null"):
        TipAdapter().grids()
