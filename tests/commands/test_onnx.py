"""The ONNX form: the same probabilities as torch, for images alone, with what a program needs to know inside."""

import json
import re

import numpy as np
import onnxruntime
import pytest
import torch
from dtrap.datamodules import ShapesDataModule
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.tuners import CoOp, LoRA, Tuner
from dtrap.protocol import onnx_graph
from dtrap.protocol.adapters import AdapterCard
from dtrap.protocol.onnx_graph import save_onnx
from dtrap.protocol.preprocessing import preprocessing_of
from exported_runs import CLASSES, draw_pictures, export, predicted, save_run, small_backbones
from lightning.pytorch import Trainer
from PIL import Image
from small_backbones import SMALL
from small_tuners import TUNERS


@pytest.fixture(scope="module")
def backbones(tiny_clip_files, tmp_path_factory):
    return small_backbones(tiny_clip_files, tmp_path_factory.mktemp)


def card_of(module, **values):
    names = list(module.class_prompts.class_names)
    return AdapterCard(
        module.backbone.identifier, module.tuner.name, names, "a photo of a {}.", "test", 1, 0, "svl", **values
    )


def session_of(folder):
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


# Each architecture, and each way in which a tuner changes features or logits.
PAIRS = [
    ("open_clip CLIP ViT", "MaPLe"),
    ("open_clip CLIP ResNet", "Tip-Adapter-F"),
    ("open_clip SigLIP2", "LDC"),
    ("open_clip PE-Core", "linear head"),
    ("transformers CLIP", "LoRA, vision"),
    ("transformers SigLIP2", "full, vision"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("backbone", "tuner"), PAIRS)
def test_a_trained_tuner_gives_the_probabilities_of_torch_for_any_number_of_images(backbone, tuner, tmp_path):
    module = FewShotClassifier(SMALL[backbone](tmp_path / "backbone"), TUNERS[tuner](), Objective(), image_chunk=4)
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=ShapesDataModule(shot=1, query=1, views=2))
    module.eval()
    size = module.backbone.image_size
    images = torch.rand(5, 3, size, size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = (module(images) / 3.5).softmax(dim=-1)
    assert save_onnx(module, tmp_path, card_of(module, temperature=3.5), preprocessing_of(module.backbone)) <= 1e-4
    session = session_of(tmp_path)
    for count in (5, 1):
        (found,) = session.run(None, {"images": images[:count].numpy()})
        assert np.abs(found - expected[:count].numpy()).max() <= 1e-4


@pytest.fixture
def exported(dtrap, backbones, pictures, tmp_path):
    """A text-side tuner's adapter and its ONNX folder."""
    _, adapter = save_run(tmp_path / "run", backbones["open_clip"], {"context_tokens": 2}, CoOp, temperature=2.5)
    said = export(dtrap, adapter, "graph", "--form", "onnx")
    assert "within" in said
    return adapter, tmp_path / "graph"


@pytest.fixture
def pictures(tmp_path):
    return draw_pictures(tmp_path / "pictures")


def test_the_lines_of_the_model_card_give_what_predict_gives(dtrap, exported, pictures, tmp_path, monkeypatch, capsys):
    adapter, folder = exported
    expected = predicted(dtrap, adapter, pictures, tmp_path)
    (lines,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    for number, row in enumerate(expected):
        Image.open(pictures / f"{number}.png").save(folder / "photo.jpg", "PNG")  # without loss, whatever its name
        capsys.readouterr()
        exec(lines, {})
        printed = eval(capsys.readouterr().out)
        assert list(printed) == CLASSES
        assert list(printed.values()) == pytest.approx(row.tolist(), abs=1e-4)


def test_the_metadata_says_what_a_program_needs(exported):
    _, folder = exported
    session = session_of(folder)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == CLASSES
    images = json.loads(about["preprocessing"])
    assert images["image_size"] == 32
    assert images["resize_mode"] == "squash"
    assert images["interpolation"] == "bilinear"
    assert len(images["mean"]) == len(images["std"]) == 3
    assert images["value_range"] is None
    assert json.loads(about["logit_scale"]) == 50.0
    assert json.loads(about["temperature"]) == 2.5
    assert json.loads(about["dtrap_card"])["tuner"] == "coop"
    (given,) = session.get_inputs()
    assert isinstance(given.shape[0], str)
    assert given.shape[1:] == [3, 32, 32]
    # The text tower is not part of it.
    assert (folder / "model.onnx").stat().st_size < 1_000_000
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "README.md", "config.yaml"}


class Odd(Tuner):
    """A stranger's tuner whose logits depend on a value that a graph does not have."""

    name = "odd"
    trains = frozenset()

    def attach(self, backbone):
        pass

    def reset(self, seed, num_classes):
        pass

    def logits(self, image_features, text_features, logit_scale):
        scores = super().logits(image_features, text_features, logit_scale)
        return scores if float(scores[0, 0]) > 0 else -scores


@pytest.fixture
def module(tiny_backbone):
    found = FewShotClassifier(tiny_backbone, LoRA(rank=2))
    found.set_classes(CLASSES)
    found.start_task(0)
    return found


def test_a_tuner_that_cannot_be_a_graph_is_refused_in_one_sentence(tiny_backbone, tmp_path):
    module = FewShotClassifier(tiny_backbone, Odd())
    module.set_classes(CLASSES)
    with pytest.raises(DtrapError, match=r"odd on .* cannot be written as an ONNX graph"):
        save_onnx(module, tmp_path, card_of(module), preprocessing_of(module.backbone))


def test_other_probabilities_than_those_of_torch_are_refused(dtrap, backbones, tmp_path, monkeypatch):
    _, adapter = save_run(tmp_path / "run", backbones["open_clip"], {"context_tokens": 2}, CoOp)
    forward = onnx_graph.ClassifierGraph.forward
    monkeypatch.setattr(onnx_graph.ClassifierGraph, "forward", lambda graph, images: forward(graph, images) * 0.99)
    status, _, err = dtrap("export", "--adapter", adapter, "--output", "graph", "--form", "onnx")
    assert status == 2
    assert "gives other probabilities than torch" in err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_missing_package_is_named_with_the_remedy(dtrap, backbones, tmp_path, monkeypatch):
    _, adapter = save_run(tmp_path / "run", backbones["open_clip"], {"rank": 2})
    monkeypatch.setattr(onnx_graph, "find_spec", lambda name: None if name == "onnxscript" else True)
    status, _, err = dtrap("export", "--adapter", adapter, "--output", "graph", "--form", "onnx")
    assert status == 2
    assert "onnxscript" in err
    assert "pip install 'dtrap[onnx]'" in err
    assert not (tmp_path / "graph").exists()


def test_predict_says_what_a_graph_is(dtrap, exported, pictures):
    _, folder = exported
    status, _, err = dtrap("predict", "--adapter", folder, "--images", pictures)
    assert status == 2
    assert "onnxruntime" in err
