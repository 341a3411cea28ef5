"""Chunks bound the memory of a step and change nothing else, dropout included."""

import pytest
import torch
from dtrap.lightning_modules import FewShotClassifier, chunking, losses
from dtrap.lightning_modules.chunking import RowDropout, encode_in_chunks, pass_seed
from dtrap.lightning_modules.tuners import LoRA
from torch import Generator, nn

ROWS, WAY = 12, 3
LABELS = torch.arange(ROWS) % WAY


def random(*shape, seed=0):
    return torch.randn(shape, generator=Generator().manual_seed(seed))


IMAGES = random(ROWS, 3, 32, 32)


@pytest.fixture
def module(tiny_backbone):
    """In training mode, float64, with adapters that do something."""
    module = FewShotClassifier(tiny_backbone, LoRA(rank=4, dropout=0.25)).double()
    module.set_classes([f"class {number}" for number in range(WAY)])
    module.start_task(0)
    for name, value in module.tuner.adapter_state().items():
        if name.endswith("lora_B"):
            nn.init.normal_(value, std=0.5)
    return module.train()


def gradient(module, chunk, seed=1):
    module.image_chunk = chunk
    torch.manual_seed(seed)
    features = module.image_features(IMAGES.double())
    loss = losses.cross_modal_loss(features, random(WAY, 16, seed=5).double(), LABELS)
    loss = loss + losses.anti_visual_loss(
        features, LABELS, num_classes=WAY, prototype_indices=torch.arange(WAY), logit_scale=1.0
    )
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, module.tuner.trained_parameters())])


def relative_difference(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("chunk", [1, 3, 4, 5, 7, 11, 12, 50])
def test_the_gradient_does_not_depend_on_the_chunks(module, chunk):
    assert relative_difference(gradient(module, chunk), gradient(module, None)) < 1e-9


def test_dropout_takes_part_in_that_gradient(module):
    with_dropout = gradient(module, 5)
    assert relative_difference(gradient(module, 5, seed=2), with_dropout) > 1e-2
    module.tuner.train(False)
    assert relative_difference(gradient(module, 5), with_dropout) > 1e-2


@pytest.mark.parametrize("training", [True, False])
def test_the_features_do_not_depend_on_the_chunks_without_gradients_either(module, training):
    module.train(training)

    def features(chunk):
        module.image_chunk = chunk
        torch.manual_seed(3)
        with torch.no_grad():
            return module.image_features(IMAGES.double())

    whole = features(None)
    torch.testing.assert_close(features(5), whole)
    assert not features(5).requires_grad


def test_what_is_drawn_after_a_pass_does_not_depend_on_the_chunks(module):
    draws = []
    for chunk in (None, 5):
        gradient(module, chunk)
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


def saved_bytes(module, chunk):
    """Bytes that the graph of a forward pass keeps for its backward pass, besides parameters and images."""
    images, storages = IMAGES.double(), {}
    known = {value.untyped_storage().data_ptr() for value in (images, *module.parameters())}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    module.image_chunk = chunk
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module.image_features(images)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in storages.items() if place not in known)


def test_chunks_keep_no_activations_for_the_backward_pass(module):
    assert saved_bytes(module, 4) < 0.05 * saved_bytes(module, None)


def test_no_more_than_a_chunk_is_encoded_at_a_time_and_once_more_for_the_backward_pass():
    layer, sizes = nn.Linear(6, 2), []

    def encode(part):
        sizes.append(len(part))
        return layer(part).relu()

    features = encode_in_chunks(encode, random(7, 6), 3)
    assert sizes == [3, 3, 1]
    features.sum().backward()
    assert sorted(sizes) == [1, 1, 3, 3, 3, 3]


def test_without_gradients_nothing_is_encoded_twice():
    calls = []
    with torch.no_grad():
        encode_in_chunks(lambda part: calls.append(len(part)) or part, random(7, 6), 3)
    assert calls == [3, 3, 1]


def masks(*layers, rows=40, chunk=None, seed=0):
    """The layers' outputs for ones, from one pass."""
    torch.manual_seed(seed)
    ones = torch.ones(rows, 50, 20)
    return encode_in_chunks(lambda part: torch.stack([layer(part) for layer in layers], dim=1), ones, chunk).unbind(1)


def test_row_dropout_keeps_its_share_and_scales_what_it_keeps():
    (output,) = masks(RowDropout(0.25, 0))
    assert set(output.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.75)}
    share = (output > 0).float()
    assert share.mean() == pytest.approx(0.75, abs=0.01)
    assert (share.mean(dim=(1, 2)) - 0.75).abs().max() < 0.07
    assert output.mean() == pytest.approx(1.0, abs=0.02)


def test_masks_of_layers_passes_and_rows_are_independent():
    first, second = masks(RowDropout(0.5, 0), RowDropout(0.5, 1))
    (other_pass,) = masks(RowDropout(0.5, 0), seed=1)
    for other in (second, other_pass, first.roll(1, dims=0), first.roll(5, dims=0)):
        agreement = ((first > 0) == (other > 0)).float().mean()
        assert agreement == pytest.approx(0.5, abs=0.02)


def test_a_later_pass_draws_other_masks():
    layer = RowDropout(0.5, 0)
    torch.manual_seed(0)
    passes = [encode_in_chunks(layer, torch.ones(4, 100)) for _ in range(2)]
    assert not torch.equal(*passes)


@pytest.mark.parametrize("chunk", [1, 4, 5, 17])
def test_masks_do_not_depend_on_the_chunks(chunk):
    layer = RowDropout(0.3, 2)
    assert torch.equal(masks(layer, chunk=chunk)[0], masks(layer)[0])


SEEDED = [(11, 7), (22, 10), (33, 3)]


def in_passes(layer, passes, chunk=None):
    """The layer's output for ones, for batches that follow each other."""
    ones = torch.ones(sum(count for _, count in passes), 9, 4)
    return encode_in_chunks(layer, ones, chunk, passes=passes)


@pytest.mark.parametrize("block", [3, 128])
@pytest.mark.parametrize("chunk", [None, 1, 4, 9, 17])
def test_a_batch_has_the_masks_that_it_has_alone(monkeypatch, chunk, block):
    monkeypatch.setattr(chunking, "_CPU_BLOCK", block)
    layer = RowDropout(0.3, 2)
    alone = torch.cat([in_passes(layer, [one]) for one in SEEDED])
    assert torch.equal(in_passes(layer, SEEDED, chunk), alone)
    assert len({tuple((part > 0).flatten().tolist()) for part in alone}) == len(alone)


def test_a_batch_of_one_pass_has_the_masks_of_its_drawn_seed():
    layer = RowDropout(0.5, 1)
    torch.manual_seed(0)
    seed = int(torch.randint(2**62, ()))
    torch.manual_seed(0)
    assert torch.equal(
        encode_in_chunks(layer, torch.ones(8, 9)), encode_in_chunks(layer, torch.ones(8, 9), passes=[(seed, 8)])
    )


def test_passes_draw_nothing_from_the_global_generator_and_must_cover_the_batch():
    torch.manual_seed(0)
    in_passes(RowDropout(0.5, 0), SEEDED, 4)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3))
    with pytest.raises(ValueError, match="do not add up to 7 images"):
        encode_in_chunks(nn.Identity(), torch.ones(7, 2), passes=[(0, 3), (1, 3)])


def test_the_seed_of_a_pass_is_not_that_of_several():
    def seeds(passes):
        found = []
        encode_in_chunks(lambda part: found.append(pass_seed()) or part, torch.ones(6, 2), 2, passes=passes)
        return found

    assert seeds([(5, 6)]) == [5, 5, 5]
    with pytest.raises(ValueError, match="2 passes"):
        seeds([(5, 3), (6, 3)])


@pytest.mark.parametrize("p", [0.1, 0.5, 1 / 3, 0.9, 0.00390625, 0.999])
def test_any_probability_is_exact_and_the_mean_is_kept(p):
    layer, count = RowDropout(p, 0), 2_000_000
    x = torch.ones(20, count // 20, requires_grad=True)
    output = encode_in_chunks(layer, x, passes=[(3, 20)])
    zeros = int((output == 0).sum())
    assert abs(zeros - p * count) < 4 * (p * (1 - p) * count) ** 0.5 + count * 2**-16
    kept = float(output.detach().max())
    assert kept == pytest.approx(1 / (1 - p), rel=2**-16 / (1 - p))
    (gradient,) = torch.autograd.grad(output.sum(), x)
    assert torch.equal(gradient, output)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_row_dropout_keeps_the_type(dtype):
    assert encode_in_chunks(RowDropout(0.25, 0), torch.ones(3, 8, dtype=dtype)).dtype == dtype


def test_masks_follow_the_images_of_a_tower_with_windows():
    layer = RowDropout(0.5, 0)

    def encode(part):
        return layer(part.unflatten(1, (4, -1)).flatten(0, 1)).unflatten(0, (-1, 4)).flatten(1)

    passes = []
    for chunk in (None, 3):
        torch.manual_seed(0)
        passes.append(encode_in_chunks(encode, torch.ones(8, 40), chunk))
    assert torch.equal(*passes)


def test_row_dropout_does_nothing_in_evaluation():
    assert torch.equal(masks(RowDropout(0.5, 0).eval())[0], torch.ones(40, 50, 20))


def test_outside_of_an_image_pass_it_is_ordinary_dropout():
    torch.manual_seed(0)
    got = RowDropout(0.25, 0)(torch.ones(30, 40))
    torch.manual_seed(0)
    assert torch.equal(got, nn.functional.dropout(torch.ones(30, 40), 0.25))


def malloc_options(monkeypatch, *chunks, grad=True):
    """What passes with these chunks set of glibc's malloc."""
    options = []
    monkeypatch.setattr(chunking, "_set_malloc", options.append)
    for once in (chunking._give_freed_memory_back, chunking._keep_freed_memory):
        once.cache_clear()
    for chunk in chunks:
        with torch.set_grad_enabled(grad):
            encode_in_chunks(nn.Linear(2, 2), torch.ones(6, 2), chunk)
    for once in (chunking._give_freed_memory_back, chunking._keep_freed_memory):
        once.cache_clear()
    return options


def test_malloc_is_set_once_by_training_passes_and_chunks_win(monkeypatch):
    kept, given_back = {-4: 0, -1: -1}, {-3: 2**20, -4: 65536}
    assert malloc_options(monkeypatch, None, 2, grad=False) == []
    assert malloc_options(monkeypatch, None, None) == [kept]
    assert malloc_options(monkeypatch, 2, None, 2) == [given_back]
    assert malloc_options(monkeypatch, None, 2, None) == [kept, given_back]
