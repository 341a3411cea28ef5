"""CoOp: the position of its vectors, its start, what it does not change, and the authors' run."""

import prompt_learning_runs as runs
import pytest
import torch
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.text_head import class_prompts
from dtrap.lightning_modules.tuners.coop import CoOp
from prompt_learning_runs import Golden, assert_same_run, in_double
from reference_files import assert_golden
from small_backbones import SMALL, open_clip_vit

NAMES = ["cat", "the_dog", "zebra dog"]


@pytest.fixture(params=SMALL, scope="module")
def backbone(request, tmp_path_factory):
    return SMALL[request.param](tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return open_clip_vit(tmp_path_factory.mktemp("clip"))


def tuned(backbone, tuner, names=NAMES, **settings):
    return runs.tuned(backbone, tuner, names, **settings)


def randomize(tuner, seed=1):
    runs.randomize(tuner, 0.1, seed)


def images(backbone):
    size = backbone.image_size
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


def rename(name):
    return {"ctx": "context"}[name]


def test_the_authors_run_is_repeated(tmp_path):
    golden = Golden("coop_end_w5s4", tmp_path)
    tuner = CoOp(golden.settings["n_ctx"])
    module = golden.module(tuner)
    own = tuner.context_prompts(golden.backbone, module.prompts.class_names)
    assert own.tokens.tolist() == golden.arrays["tokens"].tolist()
    seen = golden.fit(module, golden.values("start.", rename))
    assert_same_run(golden, module, seen, rename)


@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize("position", ["end", "front", "middle"])
def test_the_context_is_assembled_like_the_authors(tmp_path, position, count):
    golden = Golden("coop_end_w5s4", tmp_path)
    backbone = golden.backbone.double()
    tuner = CoOp(count, class_position=position)
    module = golden.module(tuner)
    context = golden.arrays["start.ctx"][:count].double()
    tuner.load_adapter_state({"context": context})
    tokens = backbone.tokenize([f"{'X ' * count}{name.replace('_', ' ')}." for name in golden.settings["class_names"]])
    rows = []
    for embedded, length in zip(backbone.token_embedding(tokens), golden.settings["name_lens"], strict=True):
        start, _, name, rest = embedded.split([1, count, length, len(embedded) - 1 - count - length])
        parts = {
            "end": [context, name],
            "front": [name, context],
            "middle": [context[: count // 2], name, context[count // 2 :]],
        }
        rows.append(torch.cat([start, *parts[position], rest]))
    expected = backbone.encode_text_embeddings(torch.stack(rows), tokens)
    torch.testing.assert_close(module.text_features(), expected, rtol=0, atol=1e-12)
    key = f"start_text_features_if_{position}"
    if key in golden.arrays and count == golden.settings["n_ctx"]:
        assert_golden(expected, golden.arrays[key])


@pytest.mark.parametrize("double", [False, True])
def test_started_from_the_words_of_a_template_it_is_zero_shot(backbone, double):
    backbone = in_double(backbone) if double else backbone
    module = tuned(backbone, CoOp(initial_words="a photo of a"))
    expected = backbone.encode_text(module.prompts.tokens)
    torch.testing.assert_close(module.text_features(), expected, atol=1e-12 if double else 1e-6, rtol=1e-6)
    with module.zero_shot():
        torch.testing.assert_close(module.text_features(), expected)
    randomize(module.tuner)
    assert not torch.allclose(module.text_features(), expected, atol=1e-2)


@pytest.mark.parametrize("position", ["end", "front", "middle"])
def test_its_vectors_are_what_the_tower_gets(backbone, position):
    module = tuned(backbone, CoOp(3, class_position=position))
    randomize(module.tuner)
    got = []
    handle = backbone.blocks("text")[0].register_forward_pre_hook(lambda block, inputs: got.append(inputs[0]))
    module.text_features()
    module.tuner.context.data.add_(1)
    module.text_features()
    handle.remove()
    moved = ((got[1] - got[0]).abs() > 0.5).all(dim=-1)
    own = module.tuner.context_prompts(backbone, module.prompts.class_names)
    assert moved.sum(dim=1).tolist() == [3] * len(NAMES)
    assert torch.equal(moved.nonzero()[:, 1].view(-1, 3), own.places)
    assert torch.equal((got[1] - got[0]).abs() > 1e-4, moved[..., None].expand_as(got[0]))


def test_the_backbone_and_other_tuners_see_nothing_of_it(backbone):
    first, second = tuned(backbone, CoOp(2)), tuned(backbone, CoOp(2))
    before = backbone.encode_text(first.prompts.tokens), second.text_features()
    randomize(first.tuner)
    first.text_features()
    assert torch.equal(backbone.encode_text(first.prompts.tokens), before[0])
    assert torch.equal(second.text_features(), before[1])


@pytest.mark.parametrize("specific", [False, True])
def test_the_context_and_nothing_else_gets_a_gradient(backbone, specific):
    module = tuned(backbone, CoOp(2, class_specific=specific))
    context = module.tuner.context
    assert [p for p in module.parameters() if p.requires_grad] == [context]
    assert module.tuner.trained_parameters() == [context]
    assert context.shape == ((3, 2) if specific else (2,)) + context.shape[-1:]
    module(images(module.backbone)).square().sum().backward()
    assert (context.grad.abs().sum(dim=-1) > 0).all()
    assert all(p.grad is None for p in module.parameters() if p is not context)


def test_many_classes_in_chunks_are_the_same(clip):
    names = [f"kind {number}" for number in range(1000)]
    module = tuned(clip, CoOp(4), names)
    sizes, results = [], []
    handle = clip.blocks("text")[0].register_forward_pre_hook(lambda block, inputs: sizes.append(len(inputs[0])))
    weights = torch.randn(1000, clip.feature_dim, generator=torch.Generator().manual_seed(0))
    for chunk in (None, 96):
        sizes.clear()
        module.text_chunk, module.tuner.context.grad = chunk, None
        features = module.text_features()
        (features * weights).sum().backward()
        results.append((features.detach(), module.tuner.context.grad))
    handle.remove()
    assert max(sizes) == 96
    assert sum(sizes) == 2 * 1000
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("specific", [False, True])
def test_saved_and_loaded_is_the_same_bit_for_bit(tmp_path, specific):
    first = tuned(open_clip_vit(tmp_path), CoOp(3, class_specific=specific))
    randomize(first.tuner)
    state = {k: v.detach().clone() for k, v in first.tuner.adapter_state().items()}
    second = FewShotClassifier(open_clip_vit(tmp_path), CoOp(3, class_specific=specific))
    second.set_classes(NAMES)
    second.tuner.load_adapter_state(state)
    assert torch.equal(first(images(first.backbone)), second(images(first.backbone)))
    with pytest.raises(DtrapError, match="expected"):
        second.tuner.load_adapter_state({"context": state["context"][..., :2, :]})


def test_a_class_specific_context_acts_on_its_class_alone(clip):
    module = tuned(clip, CoOp(2, class_specific=True))
    before = module.text_features().detach()
    module.tuner.context.data[1] *= -10
    changed = (module.text_features() - before).abs().amax(dim=1) > 1e-4
    assert changed.tolist() == [False, True, False]
    module.set_classes(["cat", "dog"])
    with pytest.raises(DtrapError, match="specific to 3 classes, but the task has 2"):
        module.text_features()


def test_class_specific_contexts_all_start_from_the_words(clip):
    module = tuned(clip, CoOp(initial_words="a photo of a", class_specific=True))
    torch.testing.assert_close(module.text_features(), clip.encode_text(module.prompts.tokens), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("words", "count"), [("a photo of a", 4), ("a_photo", 2), (" a  photo ", 2)])
def test_initial_words_decide_the_number_of_vectors(backbone, words, count):
    tuner = CoOp(7, initial_words=words)
    tuner.attach(backbone)
    assert tuner.context.shape[0] == tuner.context_tokens == count
    first = tuner.context.detach().clone()
    tuner.reset(5, 3)
    assert torch.equal(tuner.context, first)


def test_the_random_start_depends_on_the_seed_alone(clip):
    tuner = CoOp(16)
    tuner.attach(clip)

    def start(seed):
        tuner.reset(seed, 5)
        return tuner.context.detach().clone()

    first, other = start(3), start(4)
    torch.manual_seed(99)
    assert torch.equal(start(3), first)
    assert not torch.equal(other, first)
    assert first.std() == pytest.approx(0.02, rel=0.15)
    tuner.double()
    assert torch.equal(start(3), first.double())


def test_templates_and_descriptions_have_no_effect(clip):
    tuner = CoOp(4)
    tuner.attach(clip)
    one = class_prompts(NAMES, "a photo of a {}.", clip)
    several = class_prompts(NAMES, ["{} texture.", "a {}."], clip)
    assert torch.equal(tuner.text_features(clip, one), tuner.text_features(clip, several))


def test_too_long_a_prompt_names_the_class_and_what_would_fit(backbone):
    count = backbone.context_length - 4
    module = tuned(backbone, CoOp(count, class_position="middle"), ["cat", "photo of the dog", "the dog"])
    expected = rf"class 'photo of the dog': .* {count} context tokens .* has room for {backbone.context_length} tokens"
    with pytest.raises(DtrapError, match=expected) as caught:
        module.text_features()
    fitting = int(str(caught.value).partition(" would fit")[0].rpartition(" ")[2])
    assert len(tuned(backbone, CoOp(fitting), list(module.prompts.class_names)).text_features()) == 3
    with pytest.raises(DtrapError, match=f"{fitting} would fit"):
        tuned(backbone, CoOp(fitting + 1), list(module.prompts.class_names)).text_features()


def test_a_name_that_leaves_no_room_at_all_is_named_too(clip):
    module = FewShotClassifier(clip, CoOp(2), descriptions={"cat " * 40: ["short"], "dog": ["short"]})
    module.set_classes(["cat " * 40, "dog"])
    with pytest.raises(DtrapError, match=r"class 'cat cat .* 0 would fit\. Shorten the class name\.$"):
        module.text_features()


def test_predicting_first_does_not_hinder_training(clip):
    module = tuned(clip, CoOp(2))
    with torch.inference_mode():
        module(images(module.backbone))
    module(images(module.backbone)).sum().backward()
    assert module.tuner.context.grad is not None


@pytest.mark.parametrize("settings", [{}, {"initial_words": "a photo of a", "class_position": "middle"}])
def test_double_agrees_with_single_precision(backbone, settings):
    double, module = tuned(in_double(backbone), CoOp(2, **settings)), tuned(backbone, CoOp(2, **settings))
    assert double.tuner.context.dtype == torch.float64
    torch.testing.assert_close(double.text_features().float(), module.text_features(), rtol=1e-4, atol=1e-4)


def test_autocast_agrees_with_single_precision(backbone):
    module = tuned(backbone, CoOp(2))
    single = module(images(module.backbone)).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = module(images(module.backbone))
    half.float().sum().backward()
    assert module.tuner.context.grad.isfinite().all()
    torch.testing.assert_close(half.float(), single, rtol=0.2, atol=3.0)


def test_an_unfit_tokenizer_or_backbone_is_refused(tmp_path, monkeypatch):
    backbone = open_clip_vit(tmp_path)
    tuner = CoOp()
    tuner.attach(backbone)
    tuner.attach(backbone)
    with pytest.raises(DtrapError, match=r"another backbone; create a new CoOp\(\)"):
        tuner.attach(open_clip_vit(tmp_path))
    monkeypatch.setattr(OpenCLIP, "tokenize", lambda self, prompts: torch.ones(len(prompts), 32, dtype=torch.long))
    with pytest.raises(DtrapError, match="splits the words X, a; expected one of them to be one token"):
        CoOp().attach(backbone)


@pytest.mark.parametrize("settings", [{"context_tokens": 0}, {"class_position": "start"}, {"initial_words": " "}])
def test_unknown_settings_are_named(settings):
    with pytest.raises(DtrapError, match=next(iter(settings))):
        CoOp(**settings)
