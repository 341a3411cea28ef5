"""Values that are not finite: refused where they are read, saved or chosen from, and named where they come up."""

import copy
import warnings

import pytest
import torch
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import ShapesDataModule
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.backbones import OpenCLIP, Transformers
from dtrap.lightning_modules.divergence import DivergenceWatch
from dtrap.lightning_modules.finite import DivergedError, predicted_classes
from dtrap.lightning_modules.tuners import (
    LDC,
    CLIPAdapter,
    CoOp,
    FullFineTuning,
    LinearHead,
    LoRA,
    StepSPT,
    TipAdapter,
)
from lightning.pytorch import Trainer
from quiet import QUIET
from safetensors.torch import load_file, save_file
from small_backbones import clip_config, clip_tokenizer, save_transformers
from transformers import CLIPModel

NOT_FINITE = [float("nan"), float("inf"), -float("inf")]


@pytest.fixture
def data():
    return ShapesDataModule(way=2, shot=1, query=2, views=2)


def fit(module, data, **trainer):
    trainer = Trainer(**{**QUIET, "max_epochs": 6, "callbacks": [StageSwitch()], **trainer})
    trainer.fit(module, datamodule=data)
    return trainer


@pytest.mark.parametrize("make", [LoRA, FullFineTuning, lambda: CoOp(4), CLIPAdapter, LinearHead, StepSPT])
def test_a_training_that_diverges_is_stopped_with_its_step_and_the_rate(tiny_backbone, data, make):
    module = FewShotClassifier(tiny_backbone, make(), learning_rate=1e30)
    with pytest.raises(DivergedError, match=r"lower --model\.learning_rate \(now 1e\+30\)") as stop:
        fit(module, data)
    assert "not finite" in str(stop.value)


def test_the_first_bad_step_is_named(tiny_backbone, data):
    class Breaks(LoRA):
        steps = 0

        def classification_loss(self, *arguments):
            self.steps += 1
            return super().classification_loss(*arguments) * (float("nan") if self.steps >= 3 else 1)

    with pytest.raises(DtrapError, match=r"the loss is not finite from step 3; lower --model\.learning_rate"):
        fit(FewShotClassifier(tiny_backbone, Breaks()), data)


def test_the_first_bad_step_is_named_where_losses_are_read_late(tiny_backbone):
    class Late:
        """A module whose losses lie on a device that is not the CPU."""

        _trainer, own_optimizer, learning_rate, global_step = None, None, 1.0, 0
        tuner = LoRA()

    class Loss(torch.Tensor):
        device = torch.device("meta")

    module = Late()
    watch = DivergenceWatch(module, every=4)
    for step, value in enumerate((1.0, 2.0, float("inf"), 4.0)):
        module.global_step = step
        loss = torch.tensor(value).as_subclass(Loss)
        if step < 3:
            watch.add(loss)
    with pytest.raises(DivergedError, match="from step 3"):
        watch.add(loss)
    watch.reset()
    module.global_step = 0
    watch.add(torch.tensor(float("nan")).as_subclass(Loss))
    with pytest.raises(DivergedError, match="from step 1"):
        watch.check_trained()


def test_a_loss_that_is_bad_before_any_update_does_not_blame_the_rate(tiny_backbone, data):
    objective = Objective(relation_weight=3.0e38, anti_visual_weight=3.0e38, relation_source="current")
    with pytest.raises(DtrapError, match="from step 1; nothing was trained yet, so the cause is not the rate"):
        fit(FewShotClassifier(tiny_backbone, objective=objective), data)


def test_half_precision_is_named_as_the_cause(tiny_backbone, data):
    with pytest.raises(DtrapError, match=r"use --trainer\.precision 32-true.* \(now 16-true\)"):
        fit(FewShotClassifier(tiny_backbone), data, precision="16-true")


def test_parameters_that_break_in_the_last_step_are_found(tiny_backbone, data):
    class Breaks(LoRA):
        def optimizer(self, parameters, learning_rate):
            optimizer = super().optimizer(parameters, learning_rate)
            optimizer.register_step_post_hook(lambda *_: parameters[0].data.fill_(float("inf")))
            return optimizer

    with pytest.raises(DtrapError, match=r"lora_A' of the tuner lora is not finite after step 1; lower"):
        fit(FewShotClassifier(tiny_backbone, Breaks()), data, max_epochs=1)


def test_gradients_too_large_for_the_optimizer_are_found_though_losses_and_parameters_are_finite(tiny_backbone, data):
    module = FewShotClassifier(tiny_backbone, LoRA(dropout=0.0), Objective(relation_weight=1e30))
    with pytest.raises(DivergedError, match=r"'exp_avg_sq.*' of the optimizer is not finite after step 6"):
        fit(module, data)


def test_a_rate_that_grows_too_large_in_the_end_is_named(tiny_backbone, data):
    with pytest.raises(DivergedError, match=r"lower --model\.final_rate \(now 1e\+30\)"):
        fit(FewShotClassifier(tiny_backbone, final_rate=1e30), data)


@pytest.mark.parametrize("precision", ["32-true", "16-true"])
def test_a_rate_beyond_the_type_of_the_parameters_is_named(tiny_backbone, data, precision):
    module = FewShotClassifier(tiny_backbone, CLIPAdapter(), learning_rate=1e300)
    with pytest.raises(DivergedError, match="in step 2 is too large for the type"):
        fit(module, data, precision=precision)


def test_a_finite_training_is_left_alone(tiny_backbone, data):
    trainer = fit(FewShotClassifier(tiny_backbone), data)
    assert trainer.global_step == 6


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_are_not_finite_are_refused_on_read(tiny_clip_files, tmp_path, value, dtype):
    config, checkpoint = tiny_clip_files
    weights = {name: tensor.to(dtype) for name, tensor in load_file(checkpoint).items()}
    weights["visual.proj"][0, 0] = value
    for file, save in (("odd.safetensors", save_file), ("odd.pt", torch.save)):
        save(weights, tmp_path / file)
        with pytest.raises(DtrapError, match=rf"{file}: 1 of 512 values of 'visual\.proj' are NaN or infinite"):
            OpenCLIP(str(config), str(tmp_path / file))


def test_weights_too_large_for_the_model_are_refused_on_read(tiny_clip_files, tmp_path):
    config, checkpoint = tiny_clip_files
    weights = {name: tensor.double() for name, tensor in load_file(checkpoint).items()}
    weights["visual.proj"][0, 0] = 1e300
    save_file(weights, tmp_path / "large.safetensors")
    with pytest.raises(DtrapError, match=r"visual\.proj"):
        OpenCLIP(str(config), str(tmp_path / "large.safetensors"))


def test_weights_of_transformers_are_checked_too(tmp_path):
    save_transformers(tmp_path, clip_config(), CLIPModel)
    clip_tokenizer(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["visual_projection.weight"][0, 0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DtrapError, match=r"model\.safetensors: 1 of .* 'visual_projection\.weight'"):
        Transformers(str(tmp_path))


def test_finite_weights_whose_scores_are_not_are_found_at_the_score(tiny_backbone, data):
    with torch.no_grad():
        tiny_backbone.model.visual.ln_post.weight.fill_(1e30)
        tiny_backbone.model.visual.proj.fill_(1e30)
    module = FewShotClassifier(tiny_backbone)
    module._checked.add("image")  # as if the first images were fine
    trainer = Trainer(**QUIET)
    with pytest.raises(DtrapError, match="zero-shot: the scores of 4 of 4 images are not finite"), module.zero_shot():
        trainer.test(module, datamodule=data, verbose=False)


@pytest.mark.parametrize("value", [*NOT_FINITE, 1e38])
def test_a_score_that_is_not_finite_is_no_class(tiny_backbone, data, value):
    module = FewShotClassifier(tiny_backbone, LinearHead())
    module.set_classes(["dots", "frame"])
    module.start_task(0)
    with torch.no_grad():
        module.tuner.weight.fill_(value)
    with pytest.raises(DtrapError, match=r"the scores of 4 of 4 images are not finite; check the adapter"):
        Trainer(**QUIET).test(module, datamodule=data, verbose=False)
    with pytest.raises(DtrapError, match=r"the scores of 4 of 4 images are not finite"):
        Trainer(**QUIET).predict(module, dataloaders=data.test_dataloader())
    assert module.confusion.compute().sum() == 0


def test_one_bad_row_has_no_class():
    scores = torch.tensor([[0.0, 1.0], [float("nan"), 1.0], [2.0, float("inf")], [3.0, 1.0]])
    assert predicted_classes(scores).tolist() == [1, -1, -1, 0]


@pytest.mark.parametrize("make", [lambda: TipAdapter(search_scale=(5.0, 5.0), search_step=(2, 2)), LDC])
def test_hyperparameters_are_not_chosen_on_scores_that_are_not_finite(make):
    tuner = make()
    if isinstance(tuner, TipAdapter):
        tuner.keys, tuner.values = torch.eye(2), torch.eye(2)
        features = torch.full((2, 2), float("nan"))
        counts = tuner.search(features, torch.eye(2), torch.zeros(2).long(), 100.0)
        assert counts.sum() == 0
    else:
        nan = torch.full((2, 2), float("nan"))
        tuner.branch_logits = lambda *_: type("Branches", (), {"mlp": nan, "deconfused": nan})
        tuner.choose(nan, nan, torch.zeros(2).long(), 100.0)
        assert tuner.beta == 0


def test_a_checkpoint_is_neither_written_nor_read_with_values_that_are_not_finite(tiny_backbone, data, tmp_path):
    module = FewShotClassifier(tiny_backbone)
    trainer = fit(module, data)
    trainer.save_checkpoint(tmp_path / "good.ckpt", weights_only=True)
    content = torch.load(tmp_path / "good.ckpt", weights_only=True)
    with torch.no_grad():
        next(iter(module.tuner.adapter_state().values())).fill_(float("inf"))
    with pytest.raises(DtrapError, match="is not finite after step 6"):
        trainer.save_checkpoint(tmp_path / "odd.ckpt")
    assert not (tmp_path / "odd.ckpt").exists()
    broken = copy.deepcopy(content)
    next(iter(broken["state_dict"].values()))[0, 0] = float("nan")
    torch.save(broken, tmp_path / "broken.ckpt")
    with pytest.raises(DtrapError, match=r"the checkpoint: 1 of .* are NaN or infinite"):
        Trainer(**QUIET).test(module, datamodule=data, ckpt_path=tmp_path / "broken.ckpt", weights_only=True)


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize(
    "make",
    [
        lambda value: Objective(anti_visual_weight=value),
        lambda value: Objective(relation_weight=value),
        lambda value: Objective(relation_temperature=value),
        lambda value: Objective(logit_scale=value),
        lambda value: LoRA(alpha=value),
        lambda value: LoRA(dropout=value),
        lambda value: TipAdapter(alpha=value),
        lambda value: TipAdapter(beta=value),
        lambda value: TipAdapter(search_scale=(value, 3.0)),
        lambda value: CLIPAdapter(ratio=value),
        lambda value: LDC(beta=value),
        lambda value: StageSwitch(stop=value),
        lambda value: LoRA(rank=value),
    ],
)
def test_options_that_are_no_finite_numbers_are_refused_at_construction(make, value):
    with pytest.raises(DtrapError, match=r"is -?'?(nan|inf)"):
        make(value)


@pytest.mark.parametrize("value", [*NOT_FINITE, 0.0, -1.0])
def test_rates_that_are_no_finite_numbers_are_refused_at_construction(tiny_backbone, value):
    with pytest.raises(DtrapError, match=r"learning_rate is .*; expected a finite number, more than 0"):
        FewShotClassifier(tiny_backbone, CLIPAdapter(), learning_rate=value)
    if value != 0:
        with pytest.raises(DtrapError, match="final_rate is "):
            FewShotClassifier(tiny_backbone, CLIPAdapter(), final_rate=value)
    with pytest.raises(DtrapError, match="optimizer"):
        FewShotClassifier(tiny_backbone, CLIPAdapter(), optimizer=lambda p: torch.optim.SGD(p, lr=value))
    with pytest.raises(DtrapError, match="Objective: logit_scale is"):
        Objective(logit_scale=value)


@pytest.mark.parametrize("name", ["weight_decay", "eps"])
def test_other_numbers_of_an_optimizer_are_checked(tiny_backbone, name):
    with pytest.raises(DtrapError, match=rf"optimizer: {name} is inf"):
        FewShotClassifier(
            tiny_backbone, CLIPAdapter(), optimizer=lambda p: torch.optim.AdamW(p, **{name: float("inf")})
        )


def test_a_module_without_a_fit_has_numbers(tiny_backbone):
    assert all(value.isfinite().all() for value in FewShotClassifier(tiny_backbone, CLIPAdapter()).tuner.parameters())


def test_a_highest_score_that_classes_share_is_told_once(tiny_backbone, data):
    class Equal(CLIPAdapter):
        def logits(self, *arguments):
            return super().logits(*arguments) * 0 + 1

    module = FewShotClassifier(tiny_backbone, Equal())
    trainer = fit(module, data, max_epochs=1)
    with pytest.warns(UserWarning, match="the highest score of 4 of 4 images is that of several classes"):
        trainer.test(module, datamodule=data, verbose=False)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["test/accuracy"] == 50
    assert (logged["test/accuracy_low"], logged["test/accuracy_high"]) == pytest.approx((6.759, 93.241), abs=1e-3)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the highest score")
        trainer.test(module, datamodule=data, verbose=False)
