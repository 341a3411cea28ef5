"""Adapters of peft of every kind: zero-shot, reset, merging and saving against the untouched backbone."""

import copy

import pytest
import torch
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import ShapesDataModule
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.backbones.peft_layers import adapter_layers, merge_adapters
from dtrap.lightning_modules.tuners import FWT, PEFT, LoRA
from lightning.pytorch import Callback, Trainer
from peft import LoHaConfig
from small_backbones import SMALL

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def peft(name, encoder="both", targets=("q", "v", "mlp"), **arguments):
    return PEFT({"class_path": f"peft.{name}Config", "init_args": arguments}, encoder, targets)


KINDS = {
    "lora": lambda: peft("Lora", r=2, lora_dropout=0.2),
    "dora": lambda: peft("Lora", r=2, use_dora=True, lora_dropout=0.2),
    "pissa": lambda: peft("Lora", r=2, init_lora_weights="pissa"),
    "pissa by iterations": lambda: peft("Lora", r=2, init_lora_weights="pissa_niter_4"),
    "olora": lambda: peft("Lora", r=2, init_lora_weights="olora"),
    "vera": lambda: peft("Vera", r=8),
    "oft": lambda: peft("OFT", r=0, oft_block_size=8),
    "ia3": lambda: peft("IA3"),
    "loha": lambda: peft("LoHa", r=2),
    "lokr": lambda: peft("LoKr", r=2),
    "hra": lambda: peft("HRA", r=2),
    "fourierft": lambda: peft("FourierFT", n_frequency=8, init_weights=True),
    "vblora": lambda: peft("VBLoRA", r=2, vector_length=8, num_vectors=8),
}
# What the start of these adds to the features is rounding: the start is added and subtracted.
ROUNDED = {"pissa", "pissa by iterations", "olora", "hra"}
# Their start is not the frozen model: peft draws it so.
STARTS_ELSEWHERE = {"vblora"}
# Nothing in their start is random.
SAME_START = {"pissa", "olora", "oft", "ia3", "fourierft"}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def make(tiny_clip_files):
    def made(tuner):
        module = FewShotClassifier(OpenCLIP(*map(str, tiny_clip_files)), tuner)
        module.set_classes(["cat", "dog"])
        return module

    return made


@pytest.fixture
def frozen(make):
    """The untouched model, its weights and features."""
    module = make(LoRA(rank=1))
    merge_adapters(module.backbone)
    weights = {name: value.clone() for name, value in module.backbone.state_dict().items()}
    with torch.no_grad(), module.zero_shot():
        return weights, module.image_features(IMAGES), module.text_features()


def features(module):
    with torch.no_grad():
        return module.image_features(IMAGES), module.text_features()


def train(module, steps=2):
    module.train()
    optimizer = torch.optim.SGD(module.tuner.trained_parameters(), 0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = module.image_features(IMAGES).square().mean() + module.text_features().square().mean()
        loss.backward()
        assert all(parameter.grad is not None for parameter in module.tuner.trained_parameters())
        optimizer.step()
    module.eval()


def values(module):
    return {name: value.detach().clone() for name, value in module.tuner.adapter_state().items()}


def base_weights(module):
    added = tuple(f"{name}." for name in adapter_layers(module.backbone))
    state = module.backbone.state_dict().items()
    return {
        name.replace(".base_layer.", "."): value
        for name, value in state
        if ".base_layer." in name or not name.startswith(added)
    }


def test_zero_shot_is_the_untouched_backbone_and_reset_restores_it_bit_by_bit(kind, make, frozen):
    weights, *expected = frozen
    module = make(KINDS[kind]())
    module.start_task(1)
    start, at_start = values(module), features(module)
    if kind in ROUNDED:
        assert all(torch.allclose(a, b, atol=2e-6) for a, b in zip(at_start, expected, strict=True))
    elif kind not in STARTS_ELSEWHERE:
        assert torch.equal(at_start[0], expected[0])
        torch.testing.assert_close(at_start[1], expected[1])  # a trained tower encodes all prompts in one pass
    train(module)
    moved = features(module)
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(moved, at_start, strict=True))
    with module.zero_shot():
        assert all(torch.equal(a, b) for a, b in zip(features(module), expected, strict=True))
    # The adapters are on again, and what is trained can go on.
    assert all(torch.equal(a, b) for a, b in zip(features(module), moved, strict=True))
    assert all(parameter.requires_grad for parameter in module.tuner.trained_parameters())
    module.start_task(1)
    again = values(module)
    assert again.keys() == start.keys()
    assert all(torch.equal(again[name], value) for name, value in start.items())
    assert all(torch.equal(a, b) for a, b in zip(features(module), at_start, strict=True))
    found = base_weights(module)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_the_start_depends_on_the_seed_alone(kind, make):
    module = make(KINDS[kind]())
    module.start_task(1)
    start = values(module)
    train(module)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    module.start_task(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(start[name], value) for name, value in values(module).items())
    module.start_task(2)
    same = all(torch.equal(start[name], value) for name, value in values(module).items())
    assert same == (kind in SAME_START)


def test_merged_weights_give_the_features_of_the_adapters(kind, make):
    module = make(KINDS[kind]())
    module.start_task(1)
    train(module)
    images, texts = features(module)
    merged = copy.deepcopy(module.backbone)
    merge_adapters(merged)
    assert not adapter_layers(merged)
    with torch.no_grad():
        torch.testing.assert_close(merged.encode_image(IMAGES), images, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(merged.encode_text(module.class_prompts.used_tokens), texts, atol=1e-5, rtol=1e-5)


def test_saved_values_give_the_same_features_in_a_fresh_model(kind, make):
    module = make(KINDS[kind]())
    module.start_task(5)
    train(module)
    saved = values(module)
    torch.manual_seed(77)
    other = make(KINDS[kind]())
    other.tuner.reset(0, 2)
    other.tuner.load_adapter_state(saved)
    assert all(torch.equal(a, b) for a, b in zip(features(other), features(module), strict=True))


def test_only_what_is_trained_and_the_random_matrices_are_saved(make):
    vera = make(KINDS["vera"]())
    shared = {name for name in vera.tuner.adapter_state() if "." not in name}
    assert shared == {"vera_A", "vera_B"}
    trained = {id(parameter) for parameter in vera.tuner.trained_parameters()}
    others = {name for name, value in vera.tuner.adapter_state().items() if id(value) not in trained}
    assert others == shared
    assert {id(p) for p in vera.parameters() if p.requires_grad} == trained
    pissa = make(KINDS["pissa"]())
    fixed = {name for name, value in pissa.tuner.adapter_state().items() if not value.requires_grad}
    assert fixed == {name for name in pissa.tuner.adapter_state() if name.endswith(".start")}


@pytest.mark.parametrize("kind", ["dora", "lora", "ia3"])
def test_chunks_do_not_change_the_gradient(kind, make):
    module = make(KINDS[kind]())
    module.start_task(1)
    train(module, 1)
    gradients = []
    for chunk in (None, 2):
        module.train()
        module.image_chunk = chunk
        module.zero_grad()
        torch.manual_seed(3)
        module.image_features(IMAGES).square().mean().backward()
        of_images = [p.grad for p in module.tuner.trained_parameters() if p.grad is not None and p.grad.any()]
        gradients.append([gradient.clone() for gradient in of_images])
    assert gradients[0]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(("backbone", "mlp"), [("open_clip PE-Core", 2), ("transformers CLIP", 2)])
def test_targets_are_found_in_every_architecture(backbone, mlp, tmp_path):
    tuner = peft("Lora", "vision", ("k", "o", "mlp"), r=2)
    tuner.blocks = [-1]
    made = SMALL[backbone](tmp_path)
    tuner.attach(made)
    names = {name.rpartition(".")[2] for name in adapter_layers(made)}
    assert {"k_proj", "out_proj"} < names
    assert len(adapter_layers(made)) == 2 + mlp


def test_it_works_inside_fwt_and_beside_a_foreign_adapter_it_does_not(make, tiny_backbone):
    module = make(FWT(peft("Lora", "vision", r=2, use_dora=True)))
    module.start_task(1)
    train_features = module.train().image_features(IMAGES)
    assert torch.isfinite(train_features).all()
    FewShotClassifier(tiny_backbone, peft("IA3"))
    with pytest.raises(DtrapError, match="adapted by another tuner"):
        FewShotClassifier(tiny_backbone, LoRA())
    with pytest.raises(DtrapError, match="adapted by another tuner"):
        FewShotClassifier(tiny_backbone, peft("Vera", r=4))


def test_an_object_of_peft_is_kept_as_plain_values(make):
    tuner = PEFT(LoHaConfig(r=4, alpha=2), targets=["v"])
    assert tuner.config == {"class_path": "peft.LoHaConfig", "init_args": {"r": 4, "alpha": 2}}
    assert tuner.name == "peft-loha"
    assert make(tuner).tuner.settings["config"] == tuner.config


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"class_path": "os.system"}, "class_path is 'os.system'; expected one of"),
        ({"class_path": "evil.LoraConfig"}, "class_path is 'evil.LoraConfig'"),
        ({"class_path": "peft.VerraConfig"}, "Did you mean 'VeraConfig'"),
        ("nothing", "class_path is 'nothing'"),
        (3, "config is '3'; expected a config of peft"),
        ({"class_path": "peft.LoraConfig", "init_args": {"rank": 2}}, "no argument 'rank'"),
        ({"class_path": "peft.LoraConfig", "init_args": {"target_modules": ["q"]}}, "`targets` and `blocks`"),
        ({"class_path": "peft.LoraConfig", "init_args": {"bias": "all"}}, "bias is all"),
        ({"class_path": "peft.LoraConfig", "init_args": {"modules_to_save": ["x"]}}, "not supported here"),
        ({"class_path": "peft.LoraConfig", "init_args": {"init_lora_weights": "eva"}}, "training data"),
        ({"class_path": "peft.LoHaConfig", "init_args": {"rank_dropout": 0.1}}, "rank_dropout is 0.1"),
        ({"class_path": "peft.AdaLoraConfig"}, "peft's own training loop"),
        ({"class_path": "peft.PrefixTuningConfig"}, "adds prompts to a language model"),
        ({"class_path": "peft.XLoraConfig"}, "trained already"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_sentence(config, told):
    with pytest.raises(DtrapError) as refused:
        PEFT(config)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("tuner", "told"),
    [
        (lambda: peft("Lora", init_lora_weights="pissa", use_dora=True), "changes the backbone's weights"),
        (lambda: peft("C3A", block_size=7), "cannot put C3AConfig on"),
        (lambda: peft("Lora", targets=("x",)), "an entry of targets is 'x'"),
        (lambda: peft("Lora", targets=()), "targets is empty"),
    ],
)
def test_a_refusal_leaves_the_backbone_as_it_was(tuner, told, tiny_backbone):
    before = {name: value.clone() for name, value in tiny_backbone.state_dict().items()}
    with pytest.raises(DtrapError, match=told):
        tuner().attach(tiny_backbone)
    after = tiny_backbone.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    FewShotClassifier(tiny_backbone, LoRA())


@pytest.mark.parametrize("kind", ["pissa", "vera", "dora"])
@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_makes_the_module_again_and_a_resumed_fit_goes_on_alike(kind, make, tmp_path):
    def trainer(epochs):
        return Trainer(
            max_epochs=epochs, callbacks=[StageSwitch()], accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip

    def data():
        return ShapesDataModule(shot=1, query=1, views=2)

    whole, first, second = make(KINDS[kind]()), make(KINDS[kind]()), make(KINDS[kind]())
    stop = trainer(4)
    stop.callbacks.append(_SaveAt(2, tmp_path / "at_2.ckpt"))
    torch.manual_seed(7)
    stop.fit(first, datamodule=data())
    torch.manual_seed(7)
    trainer(4).fit(whole, datamodule=data())
    trainer(4).fit(second, datamodule=data(), ckpt_path=tmp_path / "at_2.ckpt", weights_only=True)
    for name, value in whole.tuner.adapter_state().items():
        assert torch.equal(second.tuner.adapter_state()[name], value), name
    again = FewShotClassifier.load_from_checkpoint(tmp_path / "at_2.ckpt", weights_only=True)
    assert again.tuner.config == whole.tuner.config
    assert again.tuner.adapter_state().keys() == whole.tuner.adapter_state().keys()


class _SaveAt(Callback):
    """Save a checkpoint behind an epoch."""

    def __init__(self, epoch, path):
        self.epoch, self.path = epoch, path

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch - 1:
            trainer.save_checkpoint(self.path)
