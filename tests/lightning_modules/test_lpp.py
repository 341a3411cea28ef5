"""LP++: the authors' run, the formulas in NumPy, the steps, identities, saving."""

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
from dtrap.lightning_modules.tuners.lpp import BlockDescent, LPPlusPlus
from feature_backbone import FeatureBackbone
from lightning.pytorch import Callback, Trainer
from reference_files import assert_golden, golden
from torch import nn
from torch.utils.data import DataLoader

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
QUIET = quiet.QUIET | {"num_sanity_val_steps": 0}


class Seen(Callback):
    """Set the start of the bias; record every number of each iteration."""

    def __init__(self, bias, test):
        self.bias, self.test = bias, test
        self.start, self.losses, self.train_accuracies, self.steps = {}, [], [], []

    def on_fit_start(self, trainer, pl_module):
        with torch.no_grad():
            pl_module.tuner.bias.copy_(self.bias)
        self.start = {name: value.detach().clone() for name, value in pl_module.tuner.adapter_state().items()}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        with torch.no_grad():
            right = pl_module(batch["images"]).argmax(dim=1) == batch["labels"]
        self.train_accuracies.append(100 * float(right.double().mean()))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        tuner = pl_module.tuner
        self.losses.append(float(outputs["loss"]))
        values = [tuner.weight, tuner.bias, tuner.alpha, trainer.optimizers[0].state[tuner.alpha]["velocity"]]
        self.steps.append([value.detach().clone() for value in values])
        with torch.no_grad():
            self.last_logits = pl_module(self.test)


def split(arrays, name):
    return {"images": arrays[f"in.{name}_features"].double(), "labels": arrays[f"in.{name}_labels"].long()}


def test_the_authors_run_is_repeated():
    settings, arrays = golden("lpp_w7s4")
    tuner, keep = LPPlusPlus(settings["alpha_every"]), KeepBest(ties="last")
    module = FewShotClassifier(FeatureBackbone(arrays["in.text_features"]), tuner, Objective(0.0, 0.0))
    module.set_classes([str(number) for number in range(settings["way"])])
    train, validation, test = (split(arrays, name) for name in ("train", "val", "test"))
    seen = Seen(arrays["in.bias_start"], test["images"])
    trainer = Trainer(precision="64-true", max_epochs=settings["iterations"], callbacks=[seen, keep], **QUIET)
    trainer.fit(module, *(DataLoader([batch], batch_size=None) for batch in (train, validation)))

    assert_golden(seen.start["weight"], arrays["out.weight_start"])
    assert_golden(seen.start["alpha"], arrays["out.alpha_start"])
    for name, expected in (("weight_step", "lr_w"), ("alpha_step", "lr_alpha")):
        assert float(seen.start[name]) == pytest.approx(settings[expected], rel=1e-12)
    got = {"loss": seen.losses, "train_accuracy": seen.train_accuracies, "val_accuracy": keep.accuracies}
    for key, values in got.items():
        # Validation accuracies are computed in float32.
        tolerance = 1e-8 if key == "loss" else 1e-6
        assert values == pytest.approx([step[key] for step in settings["steps"]], rel=tolerance, abs=0)
    weights, biases, alphas, alpha_gradients = map(torch.stack, zip(*seen.steps, strict=True))
    assert_golden(weights, arrays["out.weights_after"])
    assert_golden(biases, arrays["out.biases_after"])
    assert_golden(alphas, torch.tensor([step["alpha_after"] for step in settings["steps"]], dtype=torch.float64))
    assert_golden(alpha_gradients, arrays["out.alpha_grad_accumulated"])
    for name, last in (("weight", weights), ("bias", biases), ("alpha", alphas)):
        assert_golden(last[-1], arrays[f"out.{name}_last"])
    assert_golden(seen.last_logits, arrays["out.test_logits_last"])

    assert keep.best == settings["selected_iteration"]
    assert keep.accuracies[keep.best] == pytest.approx(settings["selected_val_accuracy"])
    with torch.no_grad():
        selected = module(test["images"])
    assert_golden(selected, arrays["out.test_logits_selected"])
    accuracy = 100 * float((selected.argmax(dim=1) == test["labels"]).double().mean())
    assert accuracy == pytest.approx(settings["selected_test_accuracy"])


def unbalanced(width=16, seed=0):
    """Support of 3, 1 and 4 rows, not sorted by class."""
    labels = torch.tensor([0, 2, 1, 2, 0, 2, 2, 0])
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(rows, width, generator=generator, dtype=torch.float64) for rows in (8, 3, 6)]
    return TaskData(labels, draw[1], encoded=draw[0]), draw[2]


def prepared(task, **settings):
    tuner = LPPlusPlus(**settings)
    tuner.attach(FeatureBackbone(torch.zeros(1, task.encoded.shape[1])))
    tuner.double().reset(0, len(task.text_features))
    with torch.no_grad():
        tuner.prepare_task(task)
    return tuner


def test_start_step_sizes_and_logits_are_those_of_the_formulas_in_numpy():
    task, queries = unbalanced()
    tuner = prepared(task)

    def unit(value):
        return value / np.sqrt((value**2).sum(axis=-1, keepdims=True))

    f, t, x = (unit(np.array(value)) for value in (task.encoded, task.text_features, queries))
    members = [[0, 4, 7], [2], [1, 3, 5, 6]]
    weight = np.stack([sum(f[i] for i in rows) for rows in members])
    alpha = 250 * np.mean([np.mean([f[i] @ t[k] for i in rows]) for k, rows in enumerate(members)])
    weight_step = 4 * 8 / np.linalg.svd(f)[1].max() ** 2
    alpha_step = 8 / (4 * max(sum((f[i] @ t[k]) ** 2 for i in range(8)) for k in range(3)))
    bias = tuner.bias.detach().numpy()
    np.testing.assert_allclose(tuner.weight.detach().numpy(), weight, rtol=0, atol=1e-12)
    np.testing.assert_allclose(tuner.alpha.detach().numpy(), [alpha] * 3, rtol=1e-12)
    np.testing.assert_allclose(float(tuner.weight_step), weight_step, rtol=1e-12)
    np.testing.assert_allclose(float(tuner.alpha_step), alpha_step, rtol=1e-12)
    assert 0 < np.abs(bias).max() <= 16**-0.5

    spread = alpha * np.array([1.0, -2.0, 0.5])
    with torch.no_grad():
        tuner.alpha.copy_(torch.tensor(spread))
    expected = [[x[q] @ weight[k] + bias[k] + spread[k] * (x[q] @ t[k]) for k in range(3)] for q in range(6)]
    got = tuner.logits(queries, task.text_features, 7.0).detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_a_class_without_images_leaves_the_start_finite():
    task, _ = unbalanced()
    few = TaskData(task.labels.clamp(max=1), task.text_features, encoded=task.encoded)
    state = prepared(few).adapter_state()
    assert all(value.isfinite().all() for value in state.values())
    assert state["weight"][2].abs().sum() == 0


def test_steps_are_those_of_descent_with_momentum_and_alpha_rests_between_its_own():
    task, _ = unbalanced()
    tuner, rate = prepared(task, alpha_every=3), 0.5
    optimizer = tuner.optimizer(tuner.trained_parameters(), rate)
    values = [value.detach().clone() for value in (tuner.weight, tuner.bias, tuner.alpha)]
    velocity = [torch.zeros_like(value) for value in values]
    for step in range(7):
        optimizer.zero_grad()
        tuner.classification_loss(task.encoded, task.text_features, task.labels, 100.0).backward()
        gradients = [value.grad.clone() for value in (tuner.weight, tuner.bias, tuner.alpha)]
        optimizer.step()
        for number in (0, 1):
            velocity[number] = 0.9 * velocity[number] + gradients[number]
            values[number] = values[number] - rate * float(tuner.weight_step) * velocity[number]
        velocity[2] = velocity[2] + gradients[2]
        if step in (2, 5):
            values[2] = values[2] - rate * float(tuner.alpha_step) * velocity[2]
        for got, expected in zip((tuner.weight, tuner.bias, tuner.alpha), values, strict=True):
            torch.testing.assert_close(got.detach(), expected, rtol=1e-12, atol=1e-12)


def test_block_descent_goes_on_from_its_state():
    def optimizer(parameter):
        return BlockDescent([{"params": [parameter], "lr": 0.1, "momentum": 1.0, "every": 2}])

    parameter = nn.Parameter(torch.tensor([1.0]))
    first = optimizer(parameter)
    assert first.step(lambda: parameter.square().sum().backward() or 5.0) == 5.0
    assert parameter.item() == 1.0
    second = optimizer(parameter)
    second.load_state_dict(first.state_dict())
    second.zero_grad()
    second.step(lambda: parameter.square().sum().backward())
    assert parameter.item() == pytest.approx(1.0 - 0.1 * (2.0 + 2.0))


def started(backbone, seed=0, classes=("cat", "dog")):
    module = FewShotClassifier(backbone, LPPlusPlus())
    module.set_classes(list(classes))
    module.start_task(seed)
    return module


def fitted(backbone, objective=None, **trainer):
    module = FewShotClassifier(backbone, LPPlusPlus(alpha_every=2), objective, start_seed=0)
    data = ShapesDataModule(shot=1, query=2, preprocessing=Preprocessing.of(backbone))
    settings = QUIET | {"max_epochs": 5, "callbacks": [StageSwitch()]} | trainer
    Trainer(**settings).fit(module, datamodule=data)
    return module.eval()


def test_without_probe_and_bias_and_with_alpha_100_it_is_zero_shot(tiny_backbone):
    module = fitted(tiny_backbone)
    with module.zero_shot():
        expected = module(IMAGES)
    assert not torch.allclose(module(IMAGES), expected, atol=1e-2)
    with torch.no_grad():
        for value, constant in ((module.tuner.weight, 0), (module.tuner.bias, 0), (module.tuner.alpha, 100)):
            value.fill_(constant)
    torch.testing.assert_close(module(IMAGES), expected, rtol=1e-6, atol=1e-5)


def test_the_bias_depends_on_the_seed_alone(tiny_backbone):
    first, again, other = (started(tiny_backbone, seed).tuner.bias.detach() for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_gradients_reach_the_probe_and_alpha_and_nothing_else(tiny_backbone):
    module = started(tiny_backbone)
    nn.functional.cross_entropy(module(IMAGES), torch.tensor([0, 1, 1])).backward()
    assert all(value.grad.abs().sum() > 0 for value in module.tuner.trained_parameters())
    reached = {name for name, value in module.named_parameters() if value.grad is not None}
    assert reached == {"tuner.weight", "tuner.bias", "tuner.alpha"}
    assert reached == {name for name, value in module.named_parameters() if value.requires_grad}


def test_constant_terms_are_warned_about_once_and_training_goes_on(tiny_backbone, recwarn):
    module = fitted(tiny_backbone, Objective())
    warned = [str(w.message) for w in recwarn if "is constant here" in str(w.message)]
    assert sorted(message.split()[0] for message in warned) == ["L_ad", "L_ra"]
    plain = fitted(tiny_backbone, Objective(0.0, 0.0))
    for name, value in module.tuner.adapter_state().items():
        assert torch.equal(value, plain.tuner.adapter_state()[name])


def test_mixed_precision_gives_nearly_the_same(tiny_backbone):
    expected, got = (fitted(tiny_backbone, precision=p).tuner.weight.detach() for p in ("32-true", "bf16-mixed"))
    torch.testing.assert_close(got, expected, rtol=0, atol=5e-2 * float(expected.abs().max()))


def test_saved_and_reloaded_it_predicts_the_same_bit_for_bit(tiny_backbone):
    module = fitted(tiny_backbone)
    state = {name: value.detach().clone() for name, value in module.tuner.adapter_state().items()}
    fresh = FewShotClassifier(tiny_backbone, LPPlusPlus())
    fresh.set_classes(module.prompts.class_names, module.trainer.datamodule.template)
    fresh.tuner.load_adapter_state(state)
    assert torch.equal(fresh(IMAGES), module(IMAGES))
    with pytest.raises(DtrapError, match="names differ"):
        fresh.tuner.load_adapter_state({"weight": state["weight"]})


def test_a_resumed_run_ends_as_the_undivided_one(tiny_backbone, tmp_path):
    class Save(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    whole = fitted(tiny_backbone, Objective(0.0, 0.0), callbacks=[StageSwitch(), Save()])
    module = FewShotClassifier(tiny_backbone, LPPlusPlus(alpha_every=2), Objective(0.0, 0.0), start_seed=1)
    data = ShapesDataModule(shot=1, query=2, preprocessing=Preprocessing.of(tiny_backbone))
    trainer = Trainer(max_epochs=5, callbacks=[StageSwitch()], **QUIET)
    trainer.fit(module, datamodule=data, ckpt_path=tmp_path / "half.ckpt")
    assert trainer.global_step == 5
    for name, value in whole.tuner.adapter_state().items():
        assert torch.equal(value, module.tuner.adapter_state()[name])


def test_mistakes_are_named(tiny_backbone):
    with pytest.raises(DtrapError, match="alpha_every is 0"):
        LPPlusPlus(alpha_every=0)
    tuner = LPPlusPlus()
    tuner.attach(tiny_backbone)
    with pytest.raises(DtrapError, match="features of width 16, but features has 8"):
        tuner.attach(FeatureBackbone(torch.zeros(2, 8)))
