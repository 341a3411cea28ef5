"""Every shipped config through the real entry point; overlays that add up and do not leak."""

import re
from itertools import permutations

import pytest
import yaml
from dtrap.cli import main
from dtrap.configs import SHIPPED, shipped_configs
from layouts import make_chestx, make_crop_disease, make_eurosat, make_folder, make_isic

MAKERS = {"isic": make_isic, "eurosat": make_eurosat, "crop_disease": make_crop_disease, "chestx": make_chestx}
SETS = [f"{name}_{shot}shot.yaml" for name in MAKERS for shot in (1, 5)]
OVERLAYS = {
    folder: [name for name in shipped_configs() if name.startswith(f"{folder}/")]
    for folder in ("backbones", "batches", "methods", "tuners")
}

# The other overlays of methods decide some options and leave the rest of the method as it is.
WHOLE_METHODS = {"methods/authors_code.yaml", "methods/paper.yaml"}


def set_by(overlay):
    """Options that an overlay sets, as paths of keys."""

    def paths(values, start=()):
        for key, value in values.items():
            yield from paths(value, (*start, key)) if isinstance(value, dict) else [(*start, key)]

    return set(paths(yaml.safe_load((SHIPPED / overlay).read_text())))


def value_at(config, path):
    for key in path:
        config = config[key]
    return config


def resolved(dtrap, *configs):
    words = [word for name in configs for word in ("--config", name)]
    root = [] if configs[-1] == "demo.yaml" else ["--data.root", "somewhere"]
    status, out, err = dtrap("fit", *words, *root, "--print_config")
    assert status == 0, err
    config = yaml.safe_load(out)
    config["model"]["tuner"].setdefault("init_args", {})
    return config


@pytest.mark.parametrize("name", SETS)
def test_every_set_runs_from_its_config(dtrap, tmp_path, tiny_model, name):
    maker = MAKERS[name.rpartition("_")[0]]
    shot = int(name.rpartition("_")[2][0])
    root = maker(tmp_path / "data", per_class=shot + 2)
    status, out, err = dtrap(
        "fit", "--config", name, "--data.root", root, "--data.query", 2, *tiny_model,
        "--protocol.episodes", 1, "--trainer.max_epochs", 1,
    )  # fmt: skip
    assert status == 0, err
    assert f"5-way {shot}-shot · 1 episode · " in out
    assert "zero-shot" in out


@pytest.mark.parametrize("name", SETS)
def test_the_sets_have_the_authors_settings(dtrap, name):
    config = resolved(dtrap, name)
    shot = int(name.rpartition("_")[2][0])
    assert config["protocol"]["episodes"] == {1: 800, 5: 400}[shot]
    assert config["trainer"]["max_epochs"] == (125 if name.startswith("chestx") else 250)
    arguments = config["data"]["init_args"]
    assert (arguments["way"], arguments["shot"], arguments["query"], arguments["views"]) == (5, shot, 15, 5)
    tuner = config["model"]["tuner"]
    assert tuner["class_path"].endswith("LoRA")
    assert tuner["init_args"] == {
        "encoder": "vision", "rank": 16, "alpha": 8.0, "dropout": 0.25, "rslora": True,
        "projections": ["q", "k", "v"], "blocks": None,
    }  # fmt: skip
    assert config["model"]["objective"]["init_args"]["relation_weight"] == 3.0
    assert config["model"]["backbone"]["init_args"]["name"] == "ViT-B-16-quickgelu"


@pytest.mark.parametrize("method", OVERLAYS["methods"])
def test_every_method_runs(dtrap, tmp_path, tiny_model, method):
    root = make_eurosat(tmp_path / "data", per_class=3)
    status, out, err = dtrap(
        "fit", "--config", "eurosat_1shot.yaml", "--config", method, "--data.root", root, "--data.query", 2,
        *tiny_model, "--protocol.episodes", 1, "--trainer.max_epochs", 5,
    )  # fmt: skip
    assert status == 0, err
    assert "EuroSAT 5-way 1-shot · 1 episode · " in out


@pytest.mark.parametrize("tuner", OVERLAYS["tuners"])
def test_every_tuner_runs_saves_and_is_loaded_again(dtrap, tuner):
    short = ["--model.tuner.context_tokens", 4] if tuner == "tuners/coop.yaml" else []
    status, out, err = dtrap(
        "fit", "--config", "demo.yaml", "--config", tuner, *short, "--data.query", 2, "--protocol.episodes", 1,
        "--trainer.max_epochs", 5, "--protocol.save_adapters", "true", "--protocol.folder", "run",
    )  # fmt: skip
    assert status == 0, err
    transductive = tuner == "tuners/stepspt.yaml"
    name = "svl-ra-transductive" if transductive else "svl-ra"
    assert f"Shapes (x-ray) 5-way 1-shot · {name} · 1 episode · " in out
    assert ("transductive" in out) == transductive
    status, out, err = dtrap("test", "--adapter", f"run/adapters/episode_0000_{name}.safetensors")
    assert status == 0, err
    found = re.search(r"([\d.]+) %, ([\d.]+) % when it was saved", out)
    assert found.group(1) == found.group(2)


@pytest.mark.parametrize("batches", OVERLAYS["batches"])
def test_mini_batches_run_from_their_config(dtrap, batches):
    status, out, err = dtrap(
        "fit", "--config", "demo.yaml", "--config", "tuners/maple.yaml", "--config", batches, "--data.query", 2,
        "--protocol.episodes", 1, "--trainer.max_epochs", 2,
    )  # fmt: skip
    assert status == 0, err
    assert "· svl-ra · 1 episode · " in out


@pytest.mark.parametrize("backbone", OVERLAYS["backbones"])
def test_every_backbone_is_a_published_one(dtrap, backbone):
    import open_clip

    chosen = resolved(dtrap, "isic_1shot.yaml", backbone)["model"]["backbone"]
    arguments = chosen["init_args"]
    name = arguments["name"]
    if chosen["class_path"].endswith("Transformers"):
        assert name in ("openai/clip-vit-base-patch16", "google/siglip2-base-patch16-224", "geolocal/StreetCLIP")
    elif backbone == "backbones/tiny.yaml":
        assert name == "tiny_clip.json"
    elif name.startswith("hf-hub:"):
        assert arguments["pretrained"] == "own"
    elif arguments["pretrained"].startswith("hf-hub:"):
        assert name in open_clip.list_models()
        assert arguments["pretrained"].endswith(f"-{name}.pt")
    else:
        assert (name, arguments["pretrained"]) in open_clip.list_pretrained()


def pairs_of(folder):
    """Pairs of overlays; of a folder with many, each one after and before its neighbor in the list."""
    names = OVERLAYS[folder]
    around = [*zip(names, [*names[1:], names[0]], strict=True)]
    return list(permutations(names, 2)) if len(names) < 12 else [*around, *(pair[::-1] for pair in around)]


@pytest.mark.parametrize(("first", "second"), [pair for folder in OVERLAYS for pair in pairs_of(folder)], ids=str)
def test_a_later_overlay_leaves_nothing_of_an_earlier_one(dtrap, first, second):
    """Most overlays of methods are a part: `baseline.yaml` is the plain form of what stands before it."""
    alone = resolved(dtrap, "isic_1shot.yaml", second)
    both = resolved(dtrap, "isic_1shot.yaml", first, second)
    part = second.startswith("methods/") and second not in WHOLE_METHODS
    if part and not set_by(first) <= set_by(second):
        for path in set_by(second):
            assert value_at(both, path) == value_at(alone, path)
    else:
        assert both == alone


@pytest.mark.parametrize(("first", "second"), permutations(["isic_5shot.yaml", "folder.yaml", "demo.yaml"], 2))
def test_a_later_set_replaces_an_earlier_one(dtrap, first, second):
    both, alone = resolved(dtrap, first, second)["data"], resolved(dtrap, second)["data"]
    assert both["class_path"] == alone["class_path"]
    for name, value in yaml.safe_load((SHIPPED / second).read_text())["data"].get("init_args", {}).items():
        assert both["init_args"][name] == value
    assert both["init_args"].get("shot") == alone["init_args"].get("shot")


@pytest.mark.parametrize("name", ["coop/dtd_1shot.yaml", "coop/imagenet_5shot.yaml", "isic_5shot.yaml"])
def test_a_shipped_config_is_listed_printed_and_may_be_copied(dtrap, tmp_path, name):
    shipped = resolved(dtrap, name)
    (line,) = [line for line in dtrap("configs")[1].splitlines() if line.startswith(f"{name} ")]
    status, text, err = dtrap("configs", name)
    assert (status, err) == (0, "")
    assert text.splitlines()[0] == f"# {line.removeprefix(name).strip()}"
    (tmp_path / "mine.yaml").write_text(text)
    assert resolved(dtrap, "mine.yaml") == shipped
    assert resolved(dtrap, name.removesuffix(".yaml")) == shipped
    status, _, err = dtrap("configs", name.replace("shot", "shots"))
    assert status == 2
    assert f"Did you mean '{name}'?" in err


def test_a_mistake_next_to_a_shipped_config_does_not_name_its_file(dtrap):
    status, _, err = dtrap("fit", "--config", "coop/dtd_1shot.yaml", "--data.root", "x", "--data.shot", "many")
    assert status == 2
    assert "data.shot" in err
    assert ".yaml" not in err


def test_a_local_file_goes_before_the_shipped_one_of_its_name(dtrap, tmp_path):
    (tmp_path / "isic_5shot.yaml").write_text(
        (SHIPPED / "isic_5shot.yaml").read_text().replace("query: 15", "query: 7")
    )
    assert resolved(dtrap, "isic_5shot.yaml")["data"]["init_args"]["query"] == 7


def test_the_folder_config_serves_a_practitioner(dtrap, tmp_path, tiny_model):
    root = make_folder(tmp_path / "my_photos", counts=(3, 2, 4))
    status, out, err = dtrap(
        "fit", "--config", "folder.yaml", "--data.root", root, *tiny_model, "--trainer.max_epochs", 1
    )
    assert status == 0, err
    assert "my_photos 3 classes · 9 images" in out
    assert "no held-out images, so no accuracy" in out
    assert "%)" not in out.splitlines()[-2]
    adapters = list(tmp_path.glob("runs/*/adapters/*.safetensors"))
    assert len(adapters) == 1

    new = make_folder(tmp_path / "new", counts=(2,))
    (new / "broken.jpg").write_bytes(b"no image")
    status, out, err = dtrap("predict", "--adapter", adapters[0], "--images", new)
    assert status == 0, err
    assert "broken.jpg" in out
    rows = (tmp_path / "predictions.csv").read_text().splitlines()
    assert rows[0] == "path,label,score,runner_up,runner_up_score,cls_00,cls_01,cls_02"
    assert len(rows) == 3
    for row in rows[1:]:
        _, label, _, _, _, *probabilities = row.split(",")
        assert sum(map(float, probabilities)) == pytest.approx(1, abs=1e-5)
        assert label == f"cls_0{max(range(3), key=lambda c: float(probabilities[c]))}"


def test_main_is_the_console_command():
    from importlib.metadata import entry_points

    (command,) = entry_points(group="console_scripts", name="dtrap")
    assert command.load() is main
