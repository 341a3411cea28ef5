"""What is frozen is computed once, and a trained text tower goes in chunks."""

import pytest
import torch
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import EuroSATDataModule, ShapesDataModule
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.image_cache import FrozenImageFeatures
from dtrap.lightning_modules.tuners import LoRA, StepSPT, TipAdapterF
from layouts import make_eurosat
from lightning.pytorch import Trainer
from quiet import QUIET

PLAIN = {"anti_visual_weight": 0.0, "relation_weight": 0.0}


@pytest.fixture
def encoded(monkeypatch):
    """Number of images of every call of the image tower."""
    calls = []
    original = OpenCLIP.encode_image
    monkeypatch.setattr(OpenCLIP, "encode_image", lambda self, x: calls.append(len(x)) or original(self, x))
    return calls


def adapter(module):
    return {k: v.detach().clone() for k, v in module.tuner.adapter_state().items()}


def run(module, data, epochs=2):
    trainer = Trainer(max_epochs=epochs, callbacks=[StageSwitch()], **QUIET)
    with module.zero_shot():
        trainer.test(module, datamodule=data, verbose=False)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)


def test_supports_and_queries_are_encoded_once_per_episode_and_never_again(tiny_backbone, tmp_path, encoded):
    data = EuroSATDataModule(make_eurosat(tmp_path / "eurosat", per_class=4), shot=2, query=2)
    module = FewShotClassifier(tiny_backbone, LoRA("text", dropout=0.0), Objective(**PLAIN))
    run(module, data)
    assert encoded == [10, 50]
    data.set_episode(1)
    run(module, data)
    assert encoded == [10, 50, 10, 50]


def test_mini_batches_of_a_frozen_tower_encode_every_row_once(tiny_backbone, encoded):
    data = ShapesDataModule(shot=2, query=2, batch_size=16)
    module = FewShotClassifier(tiny_backbone, LoRA("text", dropout=0.0), Objective(**PLAIN))
    trainer = Trainer(max_epochs=3, **QUIET)
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 9
    assert 48 <= sum(encoded) <= 50
    once = adapter(module)
    data.fixed_views = False
    Trainer(max_epochs=3, **QUIET).fit(module, datamodule=data)
    for key, value in adapter(module).items():
        torch.testing.assert_close(value, once[key], rtol=1e-3, atol=1e-6)


def test_rows_are_known_by_their_ids_alone():
    cache, asked = FrozenImageFeatures(), []

    def encode(missing):
        asked.append(missing.tolist())
        return ids[missing].float() * 10

    for ids in (torch.tensor([[3, 0], [4, 0]]), torch.tensor([[4, 0], [3, 1], [3, 0]])):
        assert torch.equal(cache(ids, encode), ids.float() * 10)
        assert torch.equal(cache(ids, encode), ids.float() * 10)
    assert asked == [[0, 1], [1]]
    cache.of("another episode")(ids, encode)
    assert asked[2:] == [[0, 1, 2]]


def test_rows_of_a_test_are_kept_only_while_there_is_room():
    cache, asked = FrozenImageFeatures(most_bytes=2 * 4 * 2), []

    def encode(missing):
        asked.append(missing.tolist())
        return ids[missing].float()

    training = torch.tensor([[1, 0], [2, 0], [3, 0]])
    for ids, while_room in ((training, False), (torch.tensor([[7, 0]]), True), (training.clone(), True)):
        assert torch.equal(cache(ids, encode, while_room=while_room), ids.float())
    ids = torch.tensor([[7, 0], [1, 0]])
    assert torch.equal(cache(ids, encode), ids.float())
    assert asked == [[0, 1, 2], [0], [0]]


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_a_trained_text_tower_in_chunks_has_the_same_gradients_and_masks(tiny_backbone, chunk):
    names = [f"class {number}" for number in range(5)]

    def gradients(text_chunk):
        module = FewShotClassifier(tiny_backbone, tuner, text_chunk=text_chunk)
        module.set_classes(names)
        module.start_task(0)
        with torch.no_grad():
            for name, value in tuner.adapter_state().items():
                if name.endswith("lora_B"):
                    value.copy_(torch.ones_like(value) * 0.01)
        module.train()
        torch.manual_seed(3)
        features = module.text_features()
        return features, torch.autograd.grad(features.square().sum(), tuner.trained_parameters())

    tuner = LoRA("text", dropout=0.5)
    whole, parts = gradients(None), gradients(chunk)
    torch.testing.assert_close(parts[0], whole[0])
    for part, reference in zip(parts[1], whole[1], strict=True):
        torch.testing.assert_close(part, reference, rtol=1e-4, atol=1e-5)


def test_a_chunk_of_nothing_is_refused(tiny_backbone):
    with pytest.raises(DtrapError, match="text_chunk is 0"):
        FewShotClassifier(tiny_backbone, text_chunk=0)


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("tuner", [TipAdapterF, StepSPT])
@pytest.mark.filterwarnings("ignore")
def test_a_task_is_prepared_in_every_precision(tiny_backbone, tuner, precision):
    """The images are drawn in their own type, whatever the precision's context makes of new tensors."""
    module = FewShotClassifier(tiny_backbone, tuner())
    trainer = Trainer(max_epochs=2, precision=precision, callbacks=[StageSwitch()], **QUIET)
    data = ShapesDataModule(shot=1, query=2)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    assert data.support()["images"].dtype == torch.float32
    assert all(torch.isfinite(value).all() for value in module.tuner.adapter_state().values())
