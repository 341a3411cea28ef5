"""LDC: what it taps, trains, chooses, saves and refuses."""

import json
from math import pi, sqrt

import pytest
import torch
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.backbones import OpenCLIP, Transformers
from dtrap.lightning_modules.tuners.ldc import LDC, tapped_modules
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.filterwarnings("ignore:The backbone has random weights")

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def backbone_of(tmp_path, **vision):
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 4} | vision
    config = tmp_path / "model.json"
    config.write_text(json.dumps({"embed_dim": 16, "quick_gelu": True, "vision_cfg": vision, "text_cfg": TEXT}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OpenCLIP(str(config), None)


def started(backbone, classes=("cat", "dog", "bird"), **settings):
    module = FewShotClassifier(backbone, LDC(**settings), Objective(0.0, 0.0))
    module.set_classes(list(classes))
    module.start_task(3)
    return module


RESNET = {"layers": [1, 1, 1, 1], "width": 12, "image_size": 64, "head_width": 64, "patch_size": None}
TOWERS = {"vit": {}, "resnet": RESNET}


@pytest.fixture(params=list(TOWERS))
def module(request, tmp_path):
    return started(backbone_of(tmp_path, **TOWERS[request.param]))


@pytest.fixture
def images(module):
    size = module.backbone.image_size
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("blocks", "tapped"),
    [(4, [0, 1, 2, 3]), (6, [2, 3, 4, 5]), (7, [0, 2, 4, 6]), (8, [1, 3, 5, 7]), (12, [5, 7, 9, 11])],
)
def test_every_second_block_from_the_end_is_tapped_or_the_last_four(tmp_path, blocks, tapped):
    backbone = backbone_of(tmp_path, layers=blocks)
    every = backbone.blocks("vision")
    assert [every.index(module) for module in tapped_modules(backbone)] == tapped


def test_a_tower_with_too_few_levels_is_refused(tiny_backbone):
    with pytest.raises(DtrapError, match="has 2 blocks or stages; LDC adapts four levels"):
        FewShotClassifier(tiny_backbone, LDC())


def test_maps_without_a_common_shape_are_refused(tmp_path, monkeypatch):
    backbone = backbone_of(tmp_path)
    monkeypatch.setattr(type(backbone), "stages", [backbone.model.visual.conv1, *backbone.blocks("vision")[1:]])
    with pytest.raises(DtrapError, match=r"a level of the image tower has the shape \[32, 2, 2\]"):
        FewShotClassifier(backbone, LDC())


def test_the_tokens_of_blocks_that_give_tuples_are_the_first_entry(tmp_path):
    """Some of transformers' blocks do; here the tower takes the tokens out again."""
    module = started(backbone_of(tmp_path))
    expected = module.encode_images(IMAGES)
    blocks = module.backbone.model.visual.transformer.resblocks
    for number, block in enumerate(blocks):
        if number > 0:
            block.register_forward_pre_hook(lambda _, inputs: (inputs[0][0], *inputs[1:]))
        block.register_forward_hook(lambda _, inputs, output: (output, None))
    module.backbone.model.visual.transformer.register_forward_hook(lambda _, inputs, output: output[0])
    assert torch.equal(module.encode_images(IMAGES), expected)


def siglip_of_timm(folder):
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": "none", "image_size": 224}
    config = {"embed_dim": 192, "vision_cfg": vision, "text_cfg": TEXT, "custom_text": True}
    (folder / "model.json").write_text(json.dumps(config))
    return OpenCLIP(str(folder / "model.json"), None)


def clip_of_transformers(folder):
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    text = tower | {"vocab_size": 60, "max_position_embeddings": 8, "eos_token_id": 59}
    vision = tower | {"image_size": 32, "patch_size": 16}
    config = {"model_type": "clip", "projection_dim": 16, "text_config": text, "vision_config": vision}
    (folder / "config.json").write_text(json.dumps(config))
    return Transformers(str(folder), random_weights=True)


@pytest.mark.parametrize("make", [siglip_of_timm, clip_of_transformers])
def test_towers_of_timm_and_transformers_have_levels_too(tmp_path, make):
    backbone = make(tmp_path)
    tuner = LDC()
    tuner.attach(backbone)
    tuner.reset(0, 3)
    size = backbone.image_size
    encoded = tuner.image_features(backbone, torch.randn(4, 3, size, size))
    adapted = tuner.adapt_image_features(encoded)
    assert torch.equal(tuner.zero_shot_features(encoded), adapted[:, : backbone.feature_dim])
    texts, labels = torch.randn(3, backbone.feature_dim), torch.tensor([0, 1, 2, 0])
    tuner.classification_loss(adapted, texts, labels, 100.0).backward()
    assert all(p.grad.abs().sum() > 0 for p in tuner.parameters())


def test_the_frozen_part_is_the_zero_shot_feature_and_the_levels_and_leaves_no_hooks(module, images):
    encoded = module.encode_images(images)
    expected = module.backbone.encode_image(images)
    torch.testing.assert_close(module.tuner.zero_shot_features(encoded), expected)
    assert not encoded.requires_grad
    assert not any(m._forward_hooks for m in module.backbone.modules())
    with module.zero_shot():
        torch.testing.assert_close(module.image_features(images), expected)
    adapted = module.tuner.adapt_image_features(encoded)
    assert adapted.shape == (4, 32)
    torch.testing.assert_close(adapted[:, :16], expected)
    assert torch.equal(module.tuner.related_features(adapted), adapted[:, 16:])


def test_only_the_adapters_are_trained_and_all_of_them(module, images):
    assert module.tuner.trains == frozenset()
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    state = module.tuner.adapter_state()
    parameters = [value for value in state.values() if isinstance(value, torch.nn.Parameter)]
    assert trained == {id(value) for value in parameters}
    module.train()
    before = {name: value.clone() for name, value in module.backbone.state_dict().items()}
    features, labels = module.image_features(images), torch.tensor([0, 1, 2, 0])
    module.tuner.classification_loss(features, module.text_features(), labels, 100.0).backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in parameters)
    assert all(p.grad is None for p in module.parameters() if id(p) not in trained)
    assert all(torch.equal(before[name], value) for name, value in module.backbone.state_dict().items())


def test_the_prediction_lies_between_both_branches_by_beta(module, images):
    module.eval()
    features, texts = module.image_features(images), module.text_features()
    branches = module.tuner.branch_logits(features, texts, 100.0)
    for beta, expected in ((0.0, branches.deconfused), (1.0, branches.mlp)):
        module.tuner.beta.fill_(beta)
        torch.testing.assert_close(module(images), expected)


def test_beta_is_chosen_on_validation_and_forgotten_with_the_next_task(module):
    texts, features = torch.eye(3, 16), torch.zeros(2, 32)
    tuner = module.tuner.eval()
    mlp, deconfused = torch.tensor([[0.0, 1.0, 0.0]] * 2), torch.tensor([[0.61, 0.0, 0.0]] * 2)
    tuner.branch_logits = lambda *_: type("Branches", (), {"mlp": mlp, "deconfused": deconfused})
    tuner.choose(features, texts, torch.tensor([1, 1]), 100.0)
    assert float(tuner.beta) == pytest.approx(0.38)
    tuner.choose(features, texts, torch.tensor([2, 2]), 100.0)
    assert float(tuner.beta) == 0
    module.start_task(1)
    assert float(tuner.beta) == 0.5


def test_the_start_depends_on_the_seed_alone_and_is_torchs(module):
    tuner = module.tuner

    def start(seed, classes=3):
        tuner.reset(seed, classes)
        return {name: value.detach().clone() for name, value in tuner.adapter_state().items()}

    first = start(3)
    with torch.no_grad():
        for value in tuner.adapter_state().values():
            value.add_(1.0)
    torch.manual_seed(5)
    random_state = torch.get_rng_state()
    start(3, classes=5)
    assert tuner.mlp[-1].out_features == 5
    again, other = start(3), start(4)
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    for name in ("levels.0.0.weight", "mlp.0.weight", "correction.3.weight"):
        bound = 1 / sqrt(first[name][0].numel())
        assert not torch.equal(first[name], other[name])
        assert first[name].abs().max() <= bound
        assert first[name].std() == pytest.approx(bound / sqrt(3), rel=0.2)
    module.double()
    doubled = start(3)
    assert all(value.dtype == torch.float64 and torch.equal(first[k].double(), value) for k, value in doubled.items())


@pytest.mark.parametrize("tower", list(TOWERS))
def test_saved_and_loaded_is_the_same_bit_for_bit(tmp_path, tower):
    first, second = (started(backbone_of(tmp_path, **TOWERS[tower]), names) for names in ("abc", "abcde"))
    size = first.backbone.image_size
    images = torch.randn(4, 3, size, size)
    first.train()
    for _ in range(2):
        first.tuner.adapt_image_features(first.encode_images(images))
    first.tuner.beta.fill_(0.3)
    first.eval()
    file = tmp_path / "adapter.safetensors"
    save_file({name: value.detach() for name, value in first.tuner.adapter_state().items()}, file)
    second.set_classes(list("abc"))
    second.tuner.load_adapter_state(load_file(file))
    assert torch.equal(first(images), second(images))


def test_the_chunks_of_a_batch_do_not_matter(module, images):
    module.eval()
    whole = module(images)
    module.image_chunk = 3
    torch.testing.assert_close(module(images), whole)


def test_it_runs_under_autocast(module, images):
    module.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, texts = module.image_features(images), module.text_features()
        loss = module.tuner.classification_loss(features, texts, torch.tensor([0, 1, 2, 0]), 100.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in module.tuner.parameters())


def test_one_image_alone_in_a_training_batch_is_refused(tmp_path):
    module = started(backbone_of(tmp_path))
    module.train()
    features = module.image_features(IMAGES[:1])
    with pytest.raises(DtrapError, match="1 image"):
        module.tuner.classification_loss(features, module.text_features(), torch.tensor([0]), 100.0)
    module.eval()
    assert module(IMAGES[:1]).shape == (1, 3)


def test_the_rate_falls_to_zero_over_all_steps(module):
    tuner = module.tuner
    optimizer = tuner.optimizer(tuner.trained_parameters(), tuner.learning_rate)
    scheduler = tuner.scheduler(optimizer, 10, 5)
    rates = []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected = 0.5e-4 * (1 + torch.cos(torch.arange(11) * pi / 10))
    torch.testing.assert_close(torch.tensor(rates), expected, atol=1e-11, rtol=1e-5)
    assert (optimizer.defaults["eps"], optimizer.defaults["weight_decay"]) == (1e-4, 1e-4)


def test_other_mistakes_are_named(tmp_path, module):
    with pytest.raises(DtrapError, match=r"beta is 1\.5"):
        LDC(beta=1.5)
    with pytest.raises(DtrapError, match="another backbone"):
        module.tuner.attach(backbone_of(tmp_path))
