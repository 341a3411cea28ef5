"""Models of the hub and of folders in open_clip's layout, also with a text tower of the BERT family, as BiomedCLIP."""

import json
import shutil
from string import ascii_lowercase

import open_clip
import pytest
import torch
import transformers
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import ShapesDataModule
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.backbones.bert_tower import SeparateBertAttention
from dtrap.lightning_modules.backbones.export import save_plain
from dtrap.lightning_modules.backbones.local_files import describe_backbone, missing_files
from huggingface_hub.file_download import repo_folder_name
from lightning.pytorch import Callback, Trainer
from safetensors.torch import save_file
from small_tuners import TUNERS
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer

from .conftest import assert_close, disturb, write_config

REPO, TEXT_REPO = "owner/MedCLIP", "owner/MedBERT"
pytestmark = pytest.mark.filterwarnings("ignore:The backbone has random weights")


@register_model
def vit_small_class_token(num_classes=0, **_):
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=num_classes)
    model.default_cfg = {}
    return model


def med_config():
    """What the open_clip_config.json of BiomedCLIP has, made small."""
    vision = {"timm_model_name": "vit_small_class_token", "timm_model_pretrained": False, "timm_pool": ""}
    text = {"hf_model_name": TEXT_REPO, "hf_tokenizer_name": TEXT_REPO, "hf_proj_type": "mlp"}
    text |= {"hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": 32}
    return {"embed_dim": 24, "vision_cfg": vision | {"timm_proj": "linear", "image_size": 32}, "text_cfg": text}


def write_tokenizer(folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "x", ".", "river", "forest", "high"]
    words += ["##way", "pasture", "sea", "or", "lake", "annual", "crop", "land", "industrial", "buildings"]
    words += ["residential", "permanent", "herbaceous", "vegetation", "road", "centered", "satellite"]
    words += [start + letter for start in ("", "##") for letter in ascii_lowercase if start + letter not in words]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return len(words)


@pytest.fixture(scope="module")
def med(tmp_path_factory):
    """Folder of a small BiomedCLIP with config, weights, tokenizer and config of the text tower; and the model."""
    folder = tmp_path_factory.mktemp("med") / "med"
    bert = transformers.BertConfig(
        vocab_size=write_tokenizer(folder), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=40,
    )  # fmt: skip
    bert.save_pretrained(folder)
    config = med_config()
    built = config | {"text_cfg": config["text_cfg"] | {"hf_model_name": str(folder), "hf_model_pretrained": False}}
    torch.manual_seed(5)
    model = open_clip.CustomTextCLIP(**built).eval()
    disturb(model)
    content = {"model_cfg": config, "preprocess_cfg": {"mean": [0.4] * 3, "std": [0.3] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    state["text.transformer.embeddings.position_ids"] = torch.arange(40)[None]  # as in files of older versions
    save_file(state, folder / "open_clip_model.safetensors")
    return folder, model


def put_into_cache(cache, repo, files):
    """Lay files into a hub cache as a download does."""
    folder = cache / repo_folder_name(repo_id=repo, repo_type="model")
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("1234")
    (folder / "snapshots/1234").mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, folder / "snapshots/1234" / file.name)


class Start(Callback):
    def on_train_start(self, trainer, pl_module):
        self.values = [parameter.detach().clone() for parameter in pl_module.tuner.trained_parameters()]


def prompts():
    return ["a photo of a river .", "a centered satellite photo of highway or road"]


@pytest.mark.parametrize("source", ["hf-hub", "local-dir", "path"])
def test_a_biomedclip_encodes_as_open_clip_does(med, tmp_path, source):
    folder, model = med
    names = {"hf-hub": f"hf-hub:{REPO}", "local-dir": f"local-dir:{folder}", "path": str(folder)}
    if source == "hf-hub":
        put_into_cache(tmp_path, REPO, [folder / "open_clip_config.json", folder / "open_clip_model.safetensors"])
        tokenizer = [folder / name for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")]
        put_into_cache(tmp_path, TEXT_REPO, tokenizer)
    backbone = OpenCLIP(names[source], cache_dir=str(tmp_path))
    images = torch.randn(2, 3, 32, 32)
    assert_close(backbone.encode_image(images), model.encode_image(images))
    tokens = backbone.tokenize(prompts())
    assert tokens.shape == (2, 32)
    assert_close(backbone.encode_text(tokens), model.encode_text(tokens))
    cut = backbone.cut_text(tokens)
    assert cut.shape[1] == 11  # [CLS] a centered satellite photo of high ##way or road [SEP]
    assert_close(backbone.encode_text(cut), model.encode_text(tokens))
    assert (backbone.image_mean, backbone.feature_dim, backbone.context_length) == ((0.4,) * 3, 24, 32)
    expected = f"{REPO}/hf-hub" if source == "hf-hub" else "med/open_clip_model-"
    assert backbone.identifier.startswith(expected)
    layers = [backbone.get_submodule(name) for name in backbone.attention_layers("text")]
    assert len(layers) == 2
    assert all(isinstance(layer, SeparateBertAttention) for layer in layers)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tuner", ["LoRA, text", "LoRA, both", "CoOp", "MaPLe", "full, text"])
def test_tuners_train_a_bert_tower(med, tuner):
    module = FewShotClassifier(OpenCLIP(str(med[0])), TUNERS[tuner](), Objective(), text_chunk=2)
    start = Start()
    trainer = Trainer(
        max_epochs=5, callbacks=[StageSwitch(), start], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = ShapesDataModule(shot=1, query=1, views=2, template="a photo of a {}.")
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    trained = module.tuner.trained_parameters()
    assert all(not torch.equal(before, after) for before, after in zip(start.values, trained, strict=True))


def test_a_tuned_bert_tower_is_exported_for_open_clip(med, tmp_path):
    backbone = OpenCLIP(str(med[0]))
    with torch.no_grad():
        for name in backbone.attention_layers("text"):
            backbone.get_submodule(name).out_proj.weight.add_(torch.randn(32, 32))
    folder = tmp_path / "exported"
    folder.mkdir()
    save_plain(backbone, folder, str(med[0]))
    again = OpenCLIP(f"local-dir:{folder}")
    tokens = backbone.tokenize(prompts())
    assert_close(again.encode_text(again.tokenize(prompts())), backbone.encode_text(tokens))
    assert (backbone.encode_text(tokens) - med[1].encode_text(tokens)).abs().max() > 1e-3


def test_an_adapter_knows_the_folder_of_its_model(med, tmp_path, monkeypatch):
    folder = shutil.copytree(med[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    described, files = describe_backbone(OpenCLIP("local-dir:copy"))
    assert described["init_args"]["name"] == str(folder)
    assert not missing_files(files)
    (folder / "open_clip_model.safetensors").write_bytes(b"other")
    assert list(missing_files(files)) == ["name"]


def test_weights_may_be_a_single_file_of_the_hub(tmp_path):
    config = write_config(tmp_path)
    model = open_clip.CLIP(**json.loads((tmp_path / "tiny.json").read_text())).eval()
    torch.save(model.state_dict(), tmp_path / "RemoteCLIP-ViT-B-32.pt")
    put_into_cache(tmp_path / "hub", "owner/RemoteCLIP", [tmp_path / "RemoteCLIP-ViT-B-32.pt"])
    file = "hf-hub:owner/RemoteCLIP/RemoteCLIP-ViT-B-32.pt"
    backbone = OpenCLIP(config, file, cache_dir=str(tmp_path / "hub"))
    images = torch.randn(1, 3, 32, 32)
    assert_close(backbone.encode_image(images), model.encode_image(images))
    assert backbone.identifier == "tiny/owner/RemoteCLIP/RemoteCLIP-ViT-B-32"
    for wrong in ("hf-hub:owner/RemoteCLIP", "hf-hub:owner/RemoteCLIP/../x.pt", "hf-hub:x"):
        with pytest.raises(DtrapError, match="expected hf-hub:OWNER/NAME/FILE"):
            OpenCLIP(config, wrong)


def test_wrong_names_say_what_is_expected(tmp_path, med, no_network):
    with pytest.raises(DtrapError, match=r"local-dir:.*does not exist. Expected open_clip_config.json and"):
        OpenCLIP(f"local-dir:{tmp_path / 'none'}")
    with pytest.raises(DtrapError, match=r"no open_clip_config.json"):
        OpenCLIP(f"local-dir:{tmp_path}")
    with pytest.raises(DtrapError, match=r"not a repository of the hub. Expected hf-hub:OWNER/NAME"):
        OpenCLIP("hf-hub:alone")
    with pytest.raises(DtrapError, match=r"open_clip_config.json of 'owner/None' is not cached.*local-dir:FOLDER"):
        OpenCLIP("hf-hub:owner/None", cache_dir=str(tmp_path))
    copy = shutil.copytree(med[0], tmp_path / "copy")
    (copy / "open_clip_model.safetensors").unlink()
    with pytest.raises(DtrapError, match=r"no open_clip_model.safetensors or open_clip_pytorch_model.bin"):
        OpenCLIP(str(copy))
    assert OpenCLIP(str(copy), None).identifier == "copy/random"
    (copy / "config.json").write_text('{"model_type": "mt5"}')
    with pytest.raises(DtrapError, match="not cached"):
        OpenCLIP(str(copy), None, cache_dir=str(tmp_path))
    put_into_cache(tmp_path, TEXT_REPO, [copy / "config.json"])
    with pytest.raises(DtrapError, match=r"family 'mt5' in transformers; expected one of bert"):
        OpenCLIP(str(copy), None, cache_dir=str(tmp_path))
