"""`dtrap cite`: BibTeX of runs, studies and adapters."""

import json
import re

import pytest
from dtrap.datamodules.catalog import SETS
from dtrap.lightning_modules import tuners
from dtrap.lightning_modules.backbones import OpenCLIP, Transformers
from dtrap.protocol.citations import read_references
from layouts import make_class_folders

KEY = re.compile(r"^@\w+\{([^,]+),", re.MULTILINE)


def run_folder(path, *methods, versions=None):
    """The two files of a run that say what it used."""
    path.mkdir(parents=True)
    names = {f"method-{number}": settings for number, settings in enumerate(methods)}
    (path / "identity.json").write_text(json.dumps({"main": "method-0", "methods": names}))
    if versions:
        (path / "summary.json").write_text(json.dumps({"versions": versions}))
    return path


def settings(tuner="LoRA", name="ViT-B-16-quickgelu", pretrained="openai", data="ISICDataModule", **arguments):
    return {
        "model": {
            "tuner": {"class_path": f"dtrap.lightning_modules.tuners.{tuner}", "init_args": arguments},
            "backbone": {
                "class_path": "dtrap.lightning_modules.backbones.OpenCLIP",
                "init_args": {"name": name, "pretrained": pretrained},
            },
        },
        "data": {"class_path": f"dtrap.datamodules.{data}", "init_args": {"root": "somewhere"}},
    }


def test_every_key_that_a_class_names_has_an_entry():
    known = read_references()
    assert len(known) > 30
    named = set()
    for name in tuners.__all__:
        component = getattr(tuners, name)
        if isinstance(component, type) and hasattr(component, "cited"):
            named |= set(component.cited({}))
    for module in SETS.values():
        assert module.references, module
        named |= set(module.references)
    assert len(named) > 20
    assert named <= set(known)
    for entry in known.values():
        assert entry.count("{") == entry.count("}")
        assert re.search(r"^  title = \{.+\},$", entry, re.MULTILINE), entry
        assert re.search(r"^  author = \{.+\},$", entry, re.MULTILINE), entry


@pytest.mark.parametrize(
    ("name", "pretrained", "keys"),
    [
        ("ViT-B-16-quickgelu", "openai", {"radford2021clip"}),
        ("ViT-B-16-SigLIP2", "webli", {"tschannen2025siglip2"}),
        ("PE-Core-B-16", "meta", {"bolya2025perception"}),
        ("ViT-B-32", "laion2b_s34b_b79k", {"cherti2023scaling", "radford2021clip"}),
        ("ViT-B-16", "dfn2b", set()),
        ("openai/clip-vit-base-patch16", None, {"radford2021clip"}),
        ("google/siglip2-base-patch16-224", None, {"tschannen2025siglip2"}),
    ],
)
def test_weights(name, pretrained, keys):
    for backbone in (OpenCLIP, Transformers):
        assert set(backbone.cited({"name": name, "pretrained": pretrained})) == keys
    assert keys <= set(read_references())


def test_runs_and_studies(dtrap, tmp_path):
    first = run_folder(tmp_path / "study" / "isic", settings(), settings("CoOp"), versions={"torch": "2.8.0"})
    run_folder(tmp_path / "study" / "dtd", settings("MaPLe", data="coop.DTDDataModule"))
    status, out, err = dtrap("cite", first)
    assert (status, err) == (0, "")
    keys = KEY.findall(out)
    assert {"zhang2026trap", "hu2022lora", "zhou2022coop", "radford2021clip", "tschandl2018ham10000"} <= set(keys)
    assert {"dtrap", "paszke2019pytorch", "falcon2019lightning", "ilharco2021openclip", "mangrulkar2022peft"} <= set(
        keys
    )
    assert not {"khattak2023maple", "cimpoi2014dtd", "wolf2020transformers"} & set(keys)
    assert "note = {Version 2.8.0}" in out
    assert out.count("{") == out.count("}")
    both = KEY.findall(dtrap("cite", tmp_path / "study", first)[1])
    assert {*keys, "khattak2023maple", "cimpoi2014dtd"} == set(both)
    assert len(both) == len(set(both))
    assert "kalajdzievski2023rslora" in keys
    plain = run_folder(tmp_path / "plain", settings(rslora=False))
    assert "kalajdzievski2023rslora" not in dtrap("cite", plain)[1]


def test_what_has_no_reference_is_a_comment(dtrap, tmp_path):
    own = settings(pretrained="dfn2b", data="FolderDataModule")
    own["model"]["tuner"]["class_path"] = "mine.Probe@home"
    status, out, _ = dtrap("cite", run_folder(tmp_path / "run", own))
    assert status == 0
    comments = [line for line in out.splitlines() if line.startswith("%")]
    assert any("mine.Probe at home (tuner) is not a class of dtrap" in line for line in comments)
    assert any("images are your own" in line for line in comments)
    assert any("weights ViT-B-16-quickgelu dfn2b: no reference" in line for line in comments)
    assert not any("@" in line for line in comments)


def test_a_real_run_and_its_adapter_cite_the_same(dtrap, tmp_path, tiny_model):
    root = make_class_folders(tmp_path / "photos", ["maple", "oak"], 2)
    run = tmp_path / "run"
    words = ["--config", "folder.yaml", "--data.root", root, *tiny_model, "--trainer.max_epochs", 1]
    status, _, err = dtrap("fit", *words, "--protocol.folder", run)
    assert status == 0, err
    (adapter,) = (run / "adapters").glob("*.safetensors")
    of_run, of_adapter, of_folder = (KEY.findall(dtrap("cite", path)[1]) for path in (run, adapter, run / "adapters"))
    assert of_run == of_adapter == of_folder
    assert "hu2022lora" in of_run


def test_mistakes(dtrap, tmp_path):
    (tmp_path / "empty").mkdir()
    damaged = run_folder(tmp_path / "damaged", settings())
    (damaged / "identity.json").write_text("[1, 2]")
    for words, told in (
        ([tmp_path / "empty"], "has no run and no adapter"),
        ([tmp_path / "nowhere"], "does not exist"),
        ([damaged], "not the file of a run"),
        ([], "required: RUN"),
    ):
        status, out, err = dtrap("cite", *words)
        assert (status, out) == (2, "")
        assert told in err
