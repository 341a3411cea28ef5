"""Exported models: loaded by open_clip, transformers and peft alone, and by dtrap again."""

import ast
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.tuners import PEFT, FullFineTuning, LoRA
from exported_runs import draw_pictures, export, pixels_of, predicted, predicted_table, save_run, small_backbones
from safetensors.torch import load_file, save_file


@pytest.fixture(params=["open_clip", "clip", "siglip"])
def library(request):
    return request.param


@pytest.fixture(scope="module")
def backbones(tiny_clip_files, tmp_path_factory):
    """Class and init args of a small backbone of each kind."""
    return small_backbones(tiny_clip_files, tmp_path_factory.mktemp)


@pytest.fixture
def run(backbones, library, tmp_path):
    return save_run(tmp_path / "run", backbones[library], {"encoder": "both", "rank": 4})


@pytest.fixture
def pictures(tmp_path):
    return draw_pictures(tmp_path / "pictures")


START = """
import json, sys
import torch
from PIL import Image
from pathlib import Path
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

pixels, result = load_file("pixels.safetensors")["pixels"], {}
pictures = [Image.open(path) for path in sorted(Path("pictures").glob("*.png"))]
for folder in sys.argv[1:]:
    with safe_open(f"{folder}/class_features.safetensors", "pt") as file:
        classes, metadata = file.get_tensor("class_features"), file.metadata()
    names, scale = json.loads(metadata["class_names"]), float(metadata["logit_scale"])
"""
OPEN_CLIP = """
    import open_clip
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")([f"a photo of a {name}." for name in names])
    with torch.no_grad():
        image, text = model.encode_image(pixels), model.encode_text(tokens)
    own = torch.stack([transform(picture) for picture in pictures])
"""
TRANSFORMERS = """
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
    model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    end = "" if model.config.model_type == "siglip" else "."
    words = [f"a photo of a {name}{end}" for name in names]
    tokens = AutoTokenizer.from_pretrained(folder)(words, padding="max_length", max_length=12, return_tensors="pt")
    with torch.no_grad():
        image, text = model.get_image_features(pixel_values=pixels), model.get_text_features(input_ids=tokens.input_ids)
    image, text = (getattr(features, "pooler_output", features) for features in (image, text))
    own = processor(pictures, return_tensors="pt").pixel_values
"""
END = """
    result[f"{folder}/logits"] = scale * normalize(image, dim=-1) @ classes.T
    result |= {f"{folder}/text": normalize(text, dim=-1), f"{folder}/classes": classes, f"{folder}/own": own}
save_file(result, "alone.safetensors")
assert not {"dtrap", "peft"} & {name.partition(".")[0] for name in sys.modules}
"""


OPEN_CLIP_CASES = [("open_clip", LoRA, "vision"), ("open_clip", LoRA, "text"), ("open_clip", FullFineTuning, "both")]
TRANSFORMERS_CASES = [("clip", LoRA, "text"), ("clip", FullFineTuning, "vision"), ("siglip", LoRA, "both")]


@pytest.mark.parametrize(("script", "cases"), [(OPEN_CLIP, OPEN_CLIP_CASES), (TRANSFORMERS, TRANSFORMERS_CASES)])
def test_the_library_alone_gives_the_logits_of_the_tuned_model(dtrap, backbones, pictures, tmp_path, script, cases):
    """In a process of its own, which imports neither dtrap nor peft."""
    modules = {}
    for library, tuner, encoder in cases:
        name = f"{library}-{tuner.name}-{encoder}"
        modules[name], adapter = save_run(tmp_path / f"run-{name}", backbones[library], {"encoder": encoder}, tuner)
        export(dtrap, adapter, name)
    pixels = pixels_of(pictures, next(iter(modules.values())))
    save_file({"pixels": pixels}, tmp_path / "pixels.safetensors")
    command = [sys.executable, "-c", START + script + END, *modules]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = load_file(tmp_path / "alone.safetensors")
    for name, module in modules.items():
        with torch.no_grad():
            expected = module(pixels)
            with module.zero_shot():
                zero_shot = module(pixels)
        assert (expected - zero_shot).abs().max() > 0.1
        assert (result[f"{name}/logits"] - expected).abs().max() <= 1e-5
        assert (result[f"{name}/text"] - result[f"{name}/classes"]).abs().max() <= 1e-6
        one_level = 1.01 / 255 / min(module.backbone.image_std)
        assert (result[f"{name}/own"] - pixels_of(pictures, module)).abs().max() <= one_level


def test_an_exported_folder_has_the_card_and_the_config(dtrap, run, tmp_path):
    _, adapter = run
    assert "lora on" in export(dtrap, adapter, "exported")
    card = json.loads((tmp_path / "exported" / "dtrap.json").read_text())
    assert card == json.loads(adapter.with_suffix(".json").read_text())
    config = yaml.safe_load((tmp_path / "exported" / "config.yaml").read_text())
    assert config["model"]["tuner"]["init_args"]["rank"] == 4
    assert not {"adapter", "output", "form"} & config.keys()
    assert not list(tmp_path.glob(".exported*"))


def test_predictions_from_every_form_are_those_of_the_adapter(dtrap, run, pictures, tmp_path):
    _, adapter = run
    export(dtrap, adapter, "plain")
    export(dtrap, adapter, tmp_path / "elsewhere" / "peft", "--form", "peft")
    export(dtrap, tmp_path / "elsewhere" / "peft", "again")
    (tmp_path / "plain" / "config.yaml").unlink()
    expected = predicted(dtrap, adapter, pictures, tmp_path)
    for saved in (tmp_path / "run", "plain", "elsewhere/peft", "again"):
        assert (predicted(dtrap, saved, pictures, tmp_path) - expected).abs().max() <= 1e-5


def test_peft_loads_the_adapter_into_the_library_model(dtrap, run, library, pictures, backbones, tmp_path):
    from peft import PeftModel
    from transformers import AutoModel

    module, adapter = run
    export(dtrap, adapter, "peft", "--form", "peft")
    assert (tmp_path / "peft" / "adapter_config.json").is_file()
    pixels, tokens = pixels_of(pictures, module), module.class_prompts.tokens
    with torch.no_grad():
        expected = module.backbone.encode_image(pixels), module.backbone.encode_text(tokens)
    if library == "open_clip":
        model = PeftModel.from_pretrained(OpenCLIP(**backbones[library][1]).model, tmp_path / "peft").base_model.model
        encode = model.encode_image, model.encode_text
    else:
        plain = AutoModel.from_pretrained(backbones[library][1]["name"]).eval()
        model = PeftModel.from_pretrained(plain, tmp_path / "peft").base_model.model
        encode = model.get_image_features, lambda tokens: model.get_text_features(input_ids=tokens)
    with torch.no_grad():
        results = encode[0](pixels), encode[1](tokens)
    for features, right in zip(results, expected, strict=True):
        assert (getattr(features, "pooler_output", features) - right).abs().max() <= 1e-6 * right.abs().max()


def test_a_text_adapter_in_the_form_of_peft_stays_out_of_the_image_tower(dtrap, backbones, tmp_path):
    """CLIP's text blocks are called "transformer...", its image blocks "visual.transformer..."."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    _, adapter = save_run(tmp_path / "run", backbones["open_clip"], {"encoder": "text"})
    export(dtrap, adapter, "peft", "--form", "peft")
    model = PeftModel.from_pretrained(OpenCLIP(**backbones["open_clip"][1]).model, tmp_path / "peft").base_model.model
    adapted = {name for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    assert len(adapted) == 6
    assert not any(name.startswith("visual") for name in adapted)


def test_described_classes_need_no_descriptions_file_afterwards(dtrap, backbones, pictures, tmp_path):
    sentences = {"dog": ["a dog that barks.", "an animal."], "cat": ["a {} on a mat."], "photo": ["a print."]}
    module, adapter = save_run(tmp_path / "run", backbones["open_clip"], {}, descriptions=sentences)
    card = json.loads(adapter.with_suffix(".json").read_text())
    assert card["prompts"] == {**sentences, "cat": ["a cat on a mat."]}
    export(dtrap, adapter, "plain")
    with torch.no_grad():
        expected = module(pixels_of(pictures, module)).softmax(dim=-1)
    for saved in (adapter, "plain"):
        assert (predicted(dtrap, saved, pictures, tmp_path) - expected).abs().max() <= 1e-5


@pytest.fixture
def saved(backbones, tmp_path):
    """An adapter of open_clip's tiny CLIP."""
    return save_run(tmp_path / "run", backbones["open_clip"], {})[1]


@pytest.mark.parametrize(
    ("output", "words", "told"),
    [
        ("full", [], ["full", "not empty", "--output"]),
        ("file.txt", [], ["file.txt is a file"]),
        ("file.txt/deeper", [], ["deeper", "cannot write", "--output"]),
        ("new", ["--form", "torch"], ["form", "torch", "plain", "peft", "onnx"]),
        (
            "new",
            ["--model.tuner", "dtrap.lightning_modules.tuners.CoOp"],
            ["coop", "cannot be exported", "prompt", "--form onnx"],
        ),
        ("new", ["--model.tuner.rank", "3"], ["trained with rank", "here it is 3"]),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(dtrap, saved, tmp_path, output, words, told):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file.txt").touch()
    (tmp_path / "file.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    status, _, err = dtrap("export", "--adapter", saved, "--output", output, *words)
    assert status == 2
    assert "Traceback" not in err
    for part in told:
        assert part in err
    assert sorted(tmp_path.rglob("*")) == before


def test_full_fine_tuning_has_no_form_of_peft_and_predicts_alike(dtrap, backbones, pictures, tmp_path):
    module, adapter = save_run(tmp_path / "run", backbones["open_clip"], {"encoder": "both"}, FullFineTuning)
    status, _, err = dtrap("export", "--adapter", adapter, "--output", "peft", "--form", "peft")
    assert status == 2
    assert "changes the weights themselves" in err
    assert not (tmp_path / "peft").exists()
    export(dtrap, adapter, "plain")
    with torch.no_grad():
        expected = module(pixels_of(pictures, module)).softmax(dim=-1)
    for saved in (adapter, "plain"):
        assert (predicted(dtrap, saved, pictures, tmp_path) - expected).abs().max() <= 1e-5


def test_several_adapters_and_a_plain_checkpoint_are_refused(dtrap, saved):
    export(dtrap, saved, "plain")
    status, _, err = dtrap("export", "--adapter", "plain", "--output", "again")
    assert status == 2
    assert "already" in err
    saved.with_name("second.safetensors").write_bytes(saved.read_bytes())
    saved.with_name("second.json").write_bytes(saved.with_suffix(".json").read_bytes())
    status, _, err = dtrap("export", "--adapter", saved.parent, "--output", "again")
    assert status == 2
    assert "holds 2 adapters" in err


def test_an_empty_folder_is_filled_and_a_failure_leaves_none(dtrap, saved, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    (tmp_path / "empty").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("dtrap.commands.export.save_plain", fail)
        status, _, err = dtrap("export", "--adapter", saved, "--output", "new")
    assert status == 2
    assert "No space left" in err
    assert {path.name for path in tmp_path.iterdir()} == {"run", "empty"}
    export(dtrap, saved, "empty")
    assert (tmp_path / "empty" / "open_clip_model.safetensors").is_file()


def test_files_of_different_exports_are_not_mixed(dtrap, saved, pictures, tmp_path):
    export(dtrap, saved, "plain")
    card = tmp_path / "plain" / "dtrap.json"
    card.write_text(card.read_text().replace('"cat"', '"cow"'))
    status, _, err = dtrap("predict", "--adapter", "plain", "--images", pictures)
    assert status == 2
    assert "differs from the card inside" in err
    card.write_text(card.read_text().replace('"cow"', '"cat"'))
    (tmp_path / "plain" / "class_features.safetensors").unlink()
    status, _, err = dtrap("predict", "--adapter", "plain", "--images", pictures)
    assert status == 2
    assert "class_features.safetensors" in err


def test_help_tells_the_forms(dtrap):
    status, out, _ = dtrap("export", "--help")
    assert status == 0
    assert "--form" in out


PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "take-a-model-along.md").read_text(encoding="utf-8")
(SNIPPET,) = re.findall(r"```python[^\n]*\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("library", ["clip", "siglip"])
def test_ten_lines_of_transformers_classify_a_picture(dtrap, run, library, pictures, tmp_path, monkeypatch, capsys):
    _, adapter = run
    export(dtrap, adapter, "exported")
    monkeypatch.setattr(sys, "argv", ["classify.py", "exported", str(pictures / "2.png")])
    capsys.readouterr()
    exec(SNIPPET, {})
    probabilities = ast.literal_eval(capsys.readouterr().out)
    expected = predicted_table(dtrap, adapter, pictures, tmp_path).iloc[-1].to_dict()
    assert probabilities == pytest.approx(expected, abs=1e-4)


PEFT_CASES = [
    ("open_clip", "both", {"class_path": "peft.LoraConfig", "init_args": {"r": 2, "use_dora": True}}),
    ("clip", "vision", {"class_path": "peft.LoraConfig", "init_args": {"r": 2, "init_lora_weights": "pissa"}}),
    ("siglip", "both", {"class_path": "peft.VeraConfig", "init_args": {"r": 4}}),
    ("clip", "text", {"class_path": "peft.IA3Config", "init_args": {}}),
    ("open_clip", "text", {"class_path": "peft.OFTConfig", "init_args": {"r": 0, "oft_block_size": 8}}),
]


@pytest.mark.parametrize(("library", "encoder", "config"), PEFT_CASES)
def test_every_kind_of_adapter_is_exported_as_lora_is(dtrap, backbones, pictures, tmp_path, library, encoder, config):
    from peft import PeftModel
    from transformers import AutoModel

    settings = {"config": config, "encoder": encoder, "targets": ["q", "v", "mlp"]}
    module, adapter = save_run(tmp_path / "run", backbones[library], settings, PEFT)
    export(dtrap, adapter, "plain")
    export(dtrap, adapter, "peft", "--form", "peft")
    export(dtrap, "peft", "again")
    expected = predicted(dtrap, adapter, pictures, tmp_path)
    pixels, tokens = pixels_of(pictures, module), module.class_prompts.tokens
    with torch.no_grad():
        own, zero_shot = module(pixels), None
        with module.zero_shot():
            zero_shot = module(pixels)
    assert (own.softmax(dim=-1) - expected).abs().max() <= 1e-5
    assert (own - zero_shot).abs().max() > 0.01
    for saved in ("plain", "peft", "again"):
        assert (predicted(dtrap, saved, pictures, tmp_path) - expected).abs().max() <= 1e-5
    if library == "open_clip":
        base = OpenCLIP(**backbones["open_clip"][1]).model
    else:
        base = AutoModel.from_pretrained(backbones[library][1]["name"]).eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing.*|.*unexpected.*|.*not load.*")
        model = PeftModel.from_pretrained(base, tmp_path / "peft").base_model.model
    with torch.no_grad():
        if library == "open_clip":
            found, right = (model.encode_image(pixels), model.encode_text(tokens)), None
        else:
            found = model.get_image_features(pixel_values=pixels), model.get_text_features(input_ids=tokens)
        right = module.backbone.encode_image(pixels), module.backbone.encode_text(tokens)
    for a, b in zip(found, right, strict=True):
        assert (getattr(a, "pooler_output", a) - b).abs().max() <= 2e-6 * b.abs().max()


def test_a_card_names_no_class_but_those_of_peft(dtrap, backbones, pictures, tmp_path):
    """The class path in a card comes from a stranger: it is looked up in peft's table, never imported."""
    settings = {"config": {"class_path": "peft.VeraConfig", "init_args": {"r": 4}}}
    _, adapter = save_run(tmp_path / "run", backbones["open_clip"], settings, PEFT)
    card = json.loads(adapter.with_suffix(".json").read_text())
    assert card["model"]["tuner"]["init_args"]["config"] == settings["config"]
    content = adapter.read_bytes()
    adapter.write_bytes(content.replace(b"peft.VeraConfig", b"os.VeraConfig  "))
    adapter.with_suffix(".json").unlink()
    (tmp_path / "run" / "config.yaml").unlink()
    status, _, err = dtrap("predict", "--adapter", adapter, "--images", pictures)
    assert status == 2
    assert "os.VeraConfig" in err
    assert "Traceback" not in err
