"""MaPLe: the prompt tokens of each block, their start, and the authors' run."""

import prompt_learning_runs as runs
import pytest
import torch
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.backbones.attention import SeparateTimmAttention
from dtrap.lightning_modules.tuners.coop import find_placeholder
from dtrap.lightning_modules.tuners.maple import MaPLe
from prompt_learning_runs import Golden, assert_same_run, in_double
from small_backbones import SMALL, open_clip_resnet, open_clip_vit
from torch import nn

NAMES = ["cat", "dog_bird", "sea or lake"]
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TRANSFORMERS = [name for name in SMALL if "ResNet" not in name]


@pytest.fixture(params=TRANSFORMERS, scope="module")
def backbone(request, tmp_path_factory):
    return SMALL[request.param](tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return open_clip_vit(tmp_path_factory.mktemp("clip"))


def tuned(backbone, tuner, names=NAMES, **settings):
    return runs.tuned(backbone, tuner, names, **settings)


def randomize(tuner, seed=1):
    runs.randomize(tuner, 0.3, seed)


def rename(name):
    kind, *rest = name.split(".")
    names = {
        "ctx": "context",
        "proj": "projection",
        "compound_prompts_text": "deep_context",
        "compound_prompt_projections": "deep_projections",
    }
    return ".".join([names[kind], *rest])


class Probe:
    """Record inputs and outputs [B, T, C] of modules, after all hooks on the inputs."""

    def __init__(self, modules):
        self.inputs, self.outputs = [None] * len(modules), [None] * len(modules)
        self.handles = [
            module.register_forward_hook(lambda _, inputs, output, number=number: self.take(number, inputs, output))
            for number, module in enumerate(modules)
        ]

    def take(self, number, inputs, output):
        self.inputs[number] = inputs[0].detach()
        self.outputs[number] = (output[0] if isinstance(output, tuple) else output).detach()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()


def test_the_authors_run_is_repeated(tmp_path):
    golden = Golden("maple_d3c2_w5s3", tmp_path)
    settings = golden.settings
    module = golden.module(MaPLe(settings["n_ctx"], settings["ctx_init"], settings["prompt_depth"]))
    seen = golden.fit(module, golden.values("start.", rename))
    assert_same_run(golden, module, seen, rename)


@pytest.mark.parametrize("depth", [1, 3, 4, 20])
def test_image_prompts_stand_after_the_patches_and_are_replaced_in_the_first_blocks(backbone, depth):
    tuner = MaPLe(depth=depth)
    tuner.attach(backbone)
    randomize(tuner)
    modules = [backbone.image_entrance, *backbone.blocks("vision")]
    with Probe(modules) as plain:
        backbone.encode_image(IMAGES)
    with Probe(modules) as probe:
        tuner.image_features(backbone, IMAGES)
    patches = plain.inputs[0].shape[1]
    assert torch.equal(probe.inputs[0][:, :patches], plain.inputs[0])
    assert torch.equal(probe.inputs[0][:, patches:], tuner.projection(tuner.context).expand(3, -1, -1))
    assert torch.equal(probe.inputs[1], probe.outputs[0])
    for number in range(1, len(modules) - 1):
        got, before = probe.inputs[number + 1], probe.outputs[number]
        assert got.shape == before.shape == (3, patches + 2, got.shape[2])
        assert torch.equal(got[:, :patches], before[:, :patches])
        expected = before[:, patches:]
        if number < depth:
            prompt = tuner.deep_projections[number - 1](tuner.deep_context[number - 1])
            expected = prompt.expand(3, -1, -1)
        assert torch.equal(got[:, patches:], expected)


@pytest.mark.parametrize("depth", [1, 3, 20])
@pytest.mark.parametrize("words", ["a photo of a", None])
def test_text_prompts_stand_in_place_of_the_first_words(backbone, depth, words):
    module = tuned(backbone, MaPLe(initial_words=words, depth=depth))
    tuner = module.tuner
    blocks = backbone.blocks("text")
    beginning = words or " ".join([find_placeholder(backbone).word] * 2)
    tokens = backbone.tokenize([f"{beginning} {name.replace('_', ' ')}." for name in NAMES])
    first = int(len(set(backbone.tokenize(["cat", "dog"])[:, 0].tolist())) == 1)
    randomize(tuner)
    with Probe(blocks) as plain:
        tokens = backbone.cut_text(tokens)
        backbone.encode_text(tokens)
    with Probe(blocks) as probe:
        module.text_features()
    words_before = backbone.token_embedding(tokens)[:, first : first + 2]
    change = probe.inputs[0] - plain.inputs[0]
    torch.testing.assert_close(change[:, first : first + 2], tuner.context - words_before)
    assert not change[:, :first].any()
    assert not change[:, first + 2 :].any()
    for number in range(1, len(blocks)):
        expected = probe.outputs[number - 1].clone()
        if number < depth:
            expected[:, first : first + 2] = tuner.deep_context[number - 1]
        assert torch.equal(probe.inputs[number], expected)


def test_no_prompt_token_enters_the_pool(backbone):
    tuner = MaPLe()
    tuner.attach(backbone)
    last = backbone.blocks("vision")[-1]
    lengths = []
    for encode in (backbone.encode_image, lambda images: tuner.image_features(backbone, images)):
        outputs = []
        handle = last.register_forward_hook(lambda _, inputs, output: lengths.append(inputs[0].shape[1]))
        norms = [module for module in backbone.modules() if isinstance(module, nn.LayerNorm)]
        handles = [n.register_forward_hook(lambda _, i, o, outputs=outputs: outputs.append(o.shape[1])) for n in norms]
        encode(IMAGES)
        for each in (handle, *handles):
            each.remove()
        lengths.append(outputs[-1])
    assert lengths[2] == lengths[0] + 2
    assert lengths[3] == lengths[1]


def test_the_backbone_and_other_tuners_see_nothing_of_it(backbone):
    module = tuned(backbone, MaPLe())
    tokens = module.prompts.tokens
    before = backbone.encode_image(IMAGES), backbone.encode_text(tokens)
    randomize(module.tuner)
    assert not torch.allclose(module.image_features(IMAGES), before[0], atol=1e-3)
    assert not torch.allclose(module.text_features(), before[1], atol=1e-3)
    with pytest.raises(Exception, match=r"."):
        module.tuner.image_features(backbone, IMAGES[:, :2])
    assert torch.equal(backbone.encode_image(IMAGES), before[0])
    assert torch.equal(backbone.encode_text(tokens), before[1])
    with module.zero_shot():
        assert torch.equal(module.image_features(IMAGES), before[0])
        torch.testing.assert_close(module.text_features(), before[1])


def test_every_parameter_gets_a_gradient_and_only_these_change(backbone):
    """Also where the depth is beyond the blocks of one tower, or of both."""
    for depth in (2, 6, 12):
        module = tuned(backbone, MaPLe(depth=depth))
        tuner, state = module.tuner, module.tuner.adapter_state()
        assert tuner.trains == {"vision", "text"}
        assert {id(p) for p in module.parameters() if p.requires_grad} == {id(value) for value in state.values()}
        vision, text = (min(depth, len(backbone.blocks(tower))) - 1 for tower in ("vision", "text"))
        assert len(state) == 3 + max(vision, text) + 2 * vision
        module.train()
        optimizer = tuner.optimizer(tuner.trained_parameters(), 0.1)
        before = {name: value.detach().clone() for name, value in state.items()}
        nn.functional.cross_entropy(module(IMAGES), torch.arange(3)).backward()
        optimizer.step()
        for name, value in state.items():
            assert value.grad is not None, name
            assert not torch.equal(value, before[name]), name
        assert all(p.grad is None for p in backbone.parameters())


def test_a_state_with_prompts_for_blocks_that_no_tower_has_is_loaded_without_them(backbone):
    tuner = tuned(backbone, MaPLe(depth=12)).tuner
    state = {name: torch.randn_like(value) for name, value in tuner.adapter_state().items()}
    earlier = dict(state)
    for number in range(11):
        earlier.setdefault(f"deep_context.{number}", state["context"])
        for part in ("weight", "bias"):
            earlier.setdefault(f"deep_projections.{number}.{part}", state[f"projection.{part}"])
    tuner.load_adapter_state(earlier)
    assert all(torch.equal(value, state[name]) for name, value in tuner.adapter_state().items())
    with pytest.raises(DtrapError, match="does not fit the tuner maple"):
        tuner.load_adapter_state(earlier | {"deep_context.11": state["context"]})


def test_chunks_are_the_same_as_the_whole(backbone):
    results = []
    for chunk in (None, 2):
        module = tuned(backbone, MaPLe(), image_chunk=chunk, text_chunk=chunk)
        randomize(module.tuner)
        logits = module(IMAGES)
        logits.square().sum().backward()
        gradients = [value.grad for value in module.tuner.trained_parameters() if value.grad is not None]
        results.append([logits.detach(), *gradients])
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))


def test_the_start_is_drawn_from_the_seed_alone(clip):
    tuner = MaPLe()
    tuner.attach(clip)

    def start(seed):
        tuner.reset(seed, 5)
        return {name: value.detach().clone() for name, value in tuner.adapter_state().items()}

    first, other = start(3), start(4)
    torch.manual_seed(99)
    again = start(3)
    assert all(torch.equal(first[name], again[name]) for name in first)
    words = clip.token_embedding(clip.tokenize(["a photo"]))[0, 1:3]
    assert torch.equal(first["context"], words)
    for kind in ("weight", "bias"):
        copies = [first[f"deep_projections.{number}.{kind}"] for number in range(7)]
        assert all(torch.equal(copies[0], copied) for copied in copies)
        assert not torch.equal(copies[0], first[f"projection.{kind}"])
        assert copies[0].abs().max() <= 32**-0.5
    assert copies[0].data_ptr() != copies[1].data_ptr()
    assert not torch.equal(first["deep_context.0"], first["deep_context.1"])
    assert not torch.equal(first["deep_context.0"], other["deep_context.0"])
    deep = torch.stack([first[f"deep_context.{number}"] for number in range(7)])
    assert deep.std() == pytest.approx(0.02, rel=0.15)
    tuner.double()
    assert all(torch.equal(first[name].double(), value) for name, value in start(3).items())


def test_saved_and_loaded_is_the_same_bit_for_bit(tmp_path):
    first = tuned(open_clip_vit(tmp_path), MaPLe(depth=3))
    randomize(first.tuner)
    state = {k: v.detach().clone() for k, v in first.tuner.adapter_state().items()}
    second = FewShotClassifier(open_clip_vit(tmp_path), MaPLe(depth=3))
    second.set_classes(NAMES)
    second.tuner.load_adapter_state(state)
    assert torch.equal(first(IMAGES), second(IMAGES))
    with pytest.raises(DtrapError, match="names differ"):
        FewShotClassifier(open_clip_vit(tmp_path), MaPLe(depth=2)).tuner.load_adapter_state(state)


def test_double_agrees_with_single_precision(backbone):
    double, module = tuned(in_double(backbone), MaPLe()), tuned(backbone, MaPLe())
    torch.testing.assert_close(double.text_features().float(), module.text_features(), rtol=1e-4, atol=1e-4)
    features = double.image_features(IMAGES.double())
    torch.testing.assert_close(features.float(), module.image_features(IMAGES), rtol=1e-4, atol=1e-4)


def test_autocast_agrees_with_single_precision(backbone):
    module = tuned(backbone, MaPLe())
    single = module(IMAGES).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = module(IMAGES)
    half.float().sum().backward()
    assert all(value.grad is None or value.grad.isfinite().all() for value in module.tuner.trained_parameters())
    torch.testing.assert_close(half.float(), single, rtol=0.2, atol=5.0)


def test_what_cannot_be_tuned_is_named(clip, tmp_path):
    with pytest.raises(DtrapError, match=r"small_rn/.* has no transformer blocks for prompt tokens"):
        MaPLe().attach(open_clip_resnet(tmp_path))
    with pytest.raises(DtrapError, match="context_tokens is 5, but the initial words 'a photo of a' have 4 tokens"):
        MaPLe(context_tokens=5).attach(clip)
    tuner = MaPLe(context_tokens=5, initial_words=None)
    tuner.attach(clip)
    tuner.attach(clip)
    assert tuner.context.shape == (5, 32)
    with pytest.raises(DtrapError, match=r"another backbone; create a new MaPLe\(\)"):
        tuner.attach(open_clip_vit(tmp_path))


def test_too_long_a_prompt_names_the_class(clip):
    module = FewShotClassifier(clip, MaPLe(), descriptions={"dog": ["short"], "cat " * 40: ["short"]})
    module.set_classes(["dog", "cat " * 40])
    with pytest.raises(DtrapError, match="class 'cat cat"):
        module.text_features()


@pytest.mark.parametrize("settings", [{"context_tokens": 0}, {"depth": 0}, {"initial_words": " "}])
def test_unknown_settings_are_named(settings):
    with pytest.raises(DtrapError, match=next(iter(settings))):
        MaPLe(**settings)


@pytest.mark.parametrize("prefix", [0, 1])
def test_appended_tokens_are_not_rotated(prefix):
    layers = tuple(nn.Linear(16, 16) for _ in range(4))
    attention = SeparateTimmAttention(layers, num_heads=2)
    attention.rotated_from = prefix
    tokens, angles = torch.randn(2, prefix + 6 + 2, 16), torch.randn(6, 8)
    rope = torch.cat([angles.sin(), angles.cos()], dim=-1)
    none = torch.cat([torch.zeros(2, 8), torch.ones(2, 8)], dim=-1)
    expected = attention(tokens, rope=torch.cat([rope, none]))
    torch.testing.assert_close(attention(tokens, rope=rope), expected)
    torch.testing.assert_close(attention(tokens, rope=rope[None, None].expand(2, 1, -1, -1)), expected)
    assert not torch.allclose(attention(tokens, rope=rope.roll(1, 0)), expected, atol=1e-3)
