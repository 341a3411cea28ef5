"""FWT: the authors' layer, its place in a tower, and the tuner inside."""

import json
from contextlib import contextmanager

import open_clip
import pytest
import torch
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective, losses
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.tuners import LoRA, Tuner
from dtrap.lightning_modules.tuners.fwt import FWT, FeatureWiseTransformation
from dtrap.lightning_modules.tuners.stepspt import StepSPT
from lightning.pytorch import Trainer
from reference_files import assert_golden, golden
from safetensors.torch import save_file
from torch import Generator, nn
from torch.utils.data import DataLoader

WAY = 3
CLASSES = ["cat", "dog", "bird"]
LABELS = torch.arange(WAY).repeat(4)


def random(*shape, seed=0):
    return torch.randn(shape, generator=Generator().manual_seed(seed))


IMAGES = random(len(LABELS), 3, 32, 32)


def classifier(backbone, tuner=None):
    module = FewShotClassifier(backbone, tuner or FWT(), Objective(0.0, 0.0))
    module.set_classes(CLASSES)
    module.start_task(0)
    return module


@pytest.fixture
def resnet(tmp_path):
    """A random ResNet CLIP."""
    config = tmp_path / "resnet.json"
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="random weights"):
        return OpenCLIP(str(config), None)


class Projection(Tuner):
    """Train one matrix after the image tower's blocks; record which methods were called."""

    name = "projection"
    learning_rate = 0.5
    query_views = 2
    needs_task = True

    def __init__(self, parameter="model.visual.proj"):
        super().__init__()
        self.parameter, self.called, self.backbone = parameter, [], []

    @property
    def trains(self):
        return frozenset({"vision"})

    def attach(self, backbone):
        self.backbone = [backbone]

    def reset(self, seed, num_classes):
        self.called.append("reset")

    def adapter_state(self):
        return {"matrix": self.backbone[0].get_parameter(self.parameter)}

    @contextmanager
    def disabled(self):
        self.called.append("disabled")
        yield

    def related_features(self, image_features):
        return image_features + 1

    def adapt_image_features(self, features):
        return features + 2

    def zero_shot_features(self, features):
        return features + 3

    def logits(self, image_features, text_features, logit_scale):
        return image_features + 4

    def classification_loss(self, image_features, text_features, labels, logit_scale):
        return image_features + 5

    def text_features(self, backbone, prompts, chunk=None):
        return prompts + chunk

    def make_room(self, state):
        self.called.append(sorted(state))

    def prepare_task(self, task):
        self.called.append(task)

    def choose(self, image_features, text_features, labels, logit_scale):
        self.called.append(logit_scale)

    def optimizer(self, parameters, learning_rate):
        return parameters, learning_rate

    def scheduler(self, optimizer, total_steps, steps_per_epoch):
        return optimizer, total_steps, steps_per_epoch


# The layer


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_layer_is_that_of_the_authors(mode):
    _, arrays = golden("fwt_w5s1")
    given = {name.removeprefix("layer.in."): v.double() for name, v in arrays.items() if name.startswith("layer.in.")}
    norm, layer = nn.BatchNorm2d(8).double(), FeatureWiseTransformation(8).double()
    norm.load_state_dict({k: given[k] for k in ("weight", "bias", "running_mean", "running_var")}, strict=False)
    layer.gamma, layer.beta = given["gamma"].requires_grad_(), given["beta"].requires_grad_()
    layer.next_noise = given["noise_gamma"], given["noise_beta"]
    x = given["x"].requires_grad_()
    output = nn.Sequential(norm, layer).train(mode == "train")(x)
    assert_golden(output, arrays[f"layer.out.{mode}"])
    if mode == "eval":
        return
    (output * given["cotangent"]).sum().backward()
    assert_golden(x.grad, arrays["layer.out.grad_x"])
    for name in ("gamma", "beta"):
        assert_golden(getattr(layer, name).grad, arrays[f"layer.out.grad_{name}"])
    for name in ("weight", "bias"):
        assert_golden(getattr(norm, name).grad, arrays[f"layer.out.grad_{name}"])
    for name in ("running_mean", "running_var"):
        assert_golden(getattr(norm, name), arrays[f"layer.out.{name}"])


def test_the_noise_has_the_authors_size_and_is_shared_by_images_and_positions():
    layer = FeatureWiseTransformation(20000)
    torch.manual_seed(0)
    zero, one = (layer(torch.full((3, 20000, 2, 2), value)) for value in (0.0, 1.0))
    for output in (zero, one):
        assert torch.equal(output, output[:1, :, :1, :1].expand_as(output))
    assert zero.std() == pytest.approx(0.5, rel=0.03)
    assert one.std() == pytest.approx((0.3**2 + 0.5**2) ** 0.5, rel=0.03)
    assert one.mean() == pytest.approx(1.0, abs=0.02)


def test_layers_and_calls_draw_independently_and_the_seed_decides():
    layers = [FeatureWiseTransformation(10, -1, position) for position in range(2)]
    x = torch.zeros(2, 4, 10)

    def draws():
        torch.manual_seed(3)
        return [layer(x)[0, 0] for layer in layers for _ in range(2)]

    first, again = draws(), draws()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({tuple(draw.tolist()) for draw in first}) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_type_of_the_features_is_kept(dtype):
    assert FeatureWiseTransformation(4)(torch.ones(2, 4, dtype=dtype)).dtype == dtype


# The place


def vit_of_the_proposal(settings, arrays, folder):
    config, weights = folder / "golden.json", folder / "golden.safetensors"
    config.write_text(json.dumps(settings["open_clip_config"]))
    model = {k[6:]: v.float().contiguous() for k, v in arrays.items() if k.startswith("model.")}
    save_file(open_clip.model.CLIP(**settings["open_clip_config"]).state_dict() | model, weights)
    return OpenCLIP(str(config), str(weights)).double()


def test_the_form_for_a_vit_is_the_proposed_one(tmp_path):
    settings, arrays = golden("fwt_vit_proposal_w5")
    backbone = vit_of_the_proposal(settings, arrays, tmp_path)
    module = FewShotClassifier(backbone, FWT(LoRA(dropout=0.0)))
    module.tuner.reset(0, settings["way"])
    watched = {name: backbone.get_parameter(f"model.visual.{name}") for name in ("proj", "class_embedding")}
    for parameter in watched.values():
        parameter.requires_grad_(True)
    for layer, *values in zip(
        module.tuner.layers, *(arrays[k].double() for k in ("gamma", "beta", "noise_gamma", "noise_beta")), strict=True
    ):
        layer.gamma, layer.beta = values[0].requires_grad_(), values[1].requires_grad_()
        layer.next_noise = values[2], values[3]
    mean, std = (torch.tensor(settings[f"image_{k}"], dtype=torch.float64).view(3, 1, 1) for k in ("mean", "std"))
    images = (arrays["images"].double() / 255 - mean) / std
    module.eval()
    assert_golden(module.image_features(images), arrays["eval_features"])
    module.train()
    features = module.image_features(images)
    assert_golden(features, arrays["train_features"])
    labels, scale = torch.tensor(settings["labels"]), settings["logit_scale"]
    texts = arrays["text_features"].double()
    assert_golden(module.tuner.logits(features, texts, scale), arrays["train_logits"])
    loss = module.tuner.classification_loss(features, texts, labels, scale)
    assert float(loss.detach()) == pytest.approx(settings["loss"], rel=1e-8)
    loss.backward()
    for name, parameter in watched.items():
        assert_golden(parameter.grad, arrays[f"grad_{name}"])
    for name in ("gamma", "beta"):
        assert_golden(torch.stack([getattr(layer, name).grad for layer in module.tuner.layers]), arrays[f"grad_{name}"])


def test_in_a_resnet_the_channels_of_the_maps_are_transformed(resnet):
    tuner = FWT(Projection("model.visual.attnpool.c_proj.weight"))
    module = classifier(resnet, tuner).train()
    assert [len(layer.gamma) for layer in tuner.layers] == [32, 32, 64, 64, 128, 128, 256, 256]
    seen = {}
    for norm in resnet.last_norms:
        norm.register_forward_hook(lambda norm, _, output: seen.setdefault(norm, []).append(output))
    module.image_features(IMAGES)
    norm, shortcut = resnet.last_norms[:2]
    for layer, watched in zip(tuner.layers[:2], (norm, shortcut), strict=True):
        plain = seen[watched][0]
        layer.next_noise = torch.arange(32.0), torch.ones(32)
        transformed = layer(plain)
        factor = (1 + 0.3 * torch.arange(32.0)).view(32, 1, 1)
        torch.testing.assert_close(transformed, factor * plain + 0.5)
    assert not torch.equal(*(module.image_features(IMAGES) for _ in range(2)))
    module.eval()
    torch.testing.assert_close(module.image_features(IMAGES), resnet.encode_image(IMAGES) + 2)


def test_at_the_start_it_is_the_frozen_model_but_in_training(tiny_backbone, tiny_clip_files):
    frozen = OpenCLIP(*map(str, tiny_clip_files))
    expected = frozen.encode_image(IMAGES)
    module = classifier(tiny_backbone, FWT(LoRA(dropout=0.0)))
    assert torch.equal(module.image_features(IMAGES), expected)
    module.train()
    assert not torch.allclose(module.image_features(IMAGES), expected, atol=1e-2)
    with module.zero_shot():
        assert torch.equal(module.image_features(IMAGES), expected)
    with module.tuner.disabled():
        assert torch.equal(module.tuner.image_features(tiny_backbone, IMAGES), expected)
    assert torch.equal(tiny_backbone.encode_image(IMAGES), expected), "the layers act within the tuner's call only"


def test_the_layers_leave_after_an_error(tiny_backbone):
    module = classifier(tiny_backbone).train()
    with pytest.raises(RuntimeError):
        module.image_features(IMAGES[:, :2])
    assert not any(norm._forward_hooks for norm in tiny_backbone.last_norms)


def test_gradients_reach_the_inner_tuners_parameters_and_no_others(tiny_backbone):
    module = classifier(tiny_backbone).train()
    for name, value in module.tuner.adapter_state().items():
        if name.endswith("lora_B"):
            nn.init.normal_(value)
    module.image_features(IMAGES).square().sum().backward()
    trained = {id(value) for value in module.tuner.adapter_state().values()}
    assert all(value.grad.abs().sum() > 0 for value in module.tuner.adapter_state().values())
    assert all(p.grad is None for p in module.parameters() if id(p) not in trained)


def step(module, chunk, seed=1):
    module.image_chunk = chunk
    torch.manual_seed(seed)
    features = module.image_features(IMAGES.double())
    loss = losses.cross_modal_loss(features, random(WAY, 16, seed=5).double(), LABELS)
    gradients = torch.autograd.grad(loss, module.tuner.trained_parameters())
    return features, torch.cat([part.flatten() for part in gradients])


@pytest.mark.parametrize("chunk", [1, 5, 7, 50])
def test_the_draw_and_the_gradient_do_not_depend_on_the_chunks(tiny_backbone, chunk):
    module = classifier(tiny_backbone).double().train()
    whole, other_pass = step(module, None), step(module, None, seed=2)
    for got, expected, other in zip(step(module, chunk), whole, other_pass, strict=True):
        torch.testing.assert_close(got, expected)
        assert not torch.allclose(got, other, rtol=1e-2)


# The tuner inside


def test_everything_else_is_the_inner_tuners(tiny_backbone):
    inner = Projection()
    tuner = FWT(inner)
    tuner.attach(tiny_backbone)
    assert (tuner.name, tuner.learning_rate, tuner.query_views, tuner.needs_task) == ("fwt-projection", 0.5, 2, True)
    assert tuner.trains == {"vision"}
    assert not tuner.transductive
    assert tuner.adapter_state().keys() == {"matrix"}
    assert tuner.trained_parameters() == inner.trained_parameters() != []
    assert tuner.adapt_image_features(10) == 12
    assert tuner.related_features(10) == 11
    assert tuner.zero_shot_features(10) == 13
    assert tuner.logits(10, 0, 1.0) == 14
    assert tuner.classification_loss(10, 0, 0, 1.0) == 15
    assert tuner.text_features(None, 7, 3) == 10
    assert tuner.optimizer(["p"], 0.1) == (["p"], 0.1)
    assert tuner.scheduler("o", 5, 2) == ("o", 5, 2)
    tuner.reset(0, 3)
    tuner.prepare_task("task")
    tuner.choose(0, 0, 0, 9.0)
    tuner.make_room({"inner.matrix": 0})
    with tuner.disabled():
        pass
    assert inner.called == ["reset", "task", 9.0, ["matrix"], "disabled"]


def test_nothing_of_a_tuner_is_left_to_the_base_class():
    """What the base class gains would otherwise be the default here, whatever the inner tuner does."""
    left = {name for name in vars(Tuner) if not name.startswith("_")}
    assert left - vars(FWT).keys() == set()


def test_saved_and_loaded_is_the_same_bit_for_bit(tiny_backbone, tiny_clip_files):
    first = classifier(tiny_backbone)
    state = {k: random(*v.shape, seed=n) for n, (k, v) in enumerate(first.tuner.adapter_state().items())}
    first.tuner.load_adapter_state(state)
    second = classifier(OpenCLIP(*map(str, tiny_clip_files)))
    second.tuner.load_adapter_state(first.tuner.adapter_state())
    assert torch.equal(first.image_features(IMAGES), second.image_features(IMAGES))
    third = classifier(OpenCLIP(*map(str, tiny_clip_files)), LoRA())
    third.tuner.load_adapter_state(first.tuner.adapter_state())
    assert torch.equal(first.image_features(IMAGES), third.image_features(IMAGES))


def test_tuners_that_the_layers_would_not_act_on_are_refused():
    with pytest.raises(DtrapError, match="the tuner lora does not train the image tower"):
        FWT(LoRA("text"))
    with pytest.raises(DtrapError, match="the tuner stepspt makes its own steps"):
        FWT(StepSPT())


def test_a_run_trains_the_inner_tuner_through_the_noise(tiny_backbone):
    module = FewShotClassifier(tiny_backbone, FWT(), Objective(0.0, 0.0), learning_rate=1e-3, image_chunk=5)
    module.set_classes(CLASSES)
    trainer = Trainer(
        precision="64-true", accelerator="cpu", max_steps=3, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader([{"images": IMAGES, "labels": LABELS}] * 3, batch_size=None))
    moved = [value for name, value in module.tuner.adapter_state().items() if name.endswith("lora_B")]
    assert all(value.abs().sum() > 0 for value in moved)
    assert all(layer.gamma.dtype == torch.float64 for layer in module.tuner.layers)
    assert all(torch.equal(layer.beta, torch.full_like(layer.beta, 0.5)) for layer in module.tuner.layers)
