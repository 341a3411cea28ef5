"""Parts that are described by plain values and made again, without importing what a description names."""

import copy
import json
import pickle
import sys

import pytest
from dtrap.errors import DtrapError
from dtrap.lightning_modules import Objective, tuners
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.backbones.base import Backbone
from dtrap.lightning_modules.parts import describe, rebuild
from dtrap.lightning_modules.tuners import FWT, LoRA, TipAdapter, Tuner

TUNERS = [getattr(tuners, name) for name in tuners.__all__ if name not in ("TaskData", "Tuner")]


@pytest.mark.parametrize("tuner", [each() for each in TUNERS] + [FWT(LoRA("both", rank=3)), TipAdapter(2.0, 3.0)])
def test_every_tuner_is_made_again_from_values_of_json(tuner):
    described = json.loads(json.dumps(describe(tuner)))
    again = rebuild(described, Tuner, "model.tuner")
    assert type(again) is type(tuner)
    assert describe(again) == describe(copy.deepcopy(tuner)) == describe(pickle.loads(pickle.dumps(tuner))) == described


def test_arguments_have_their_values():
    assert rebuild(describe(FWT(LoRA("both", rank=3))), Tuner, "model.tuner").inner.settings["rank"] == 3
    assert rebuild(describe(TipAdapter(2.0, beta=3.0)), Tuner, "model.tuner").start == (2.0, 3.0)
    assert rebuild(describe(Objective(logit_scale=50.0)), Objective, "model.objective").logit_scale == 50.0


def test_a_backbone_is_made_again(tiny_clip_files):
    config, weights = map(str, tiny_clip_files)
    described = describe(OpenCLIP(config, pretrained=weights))
    assert described["class_path"] == "dtrap.lightning_modules.backbones.OpenCLIP"
    assert described["init_args"] == {"name": config, "pretrained": weights, "tokenizer": None, "cache_dir": None}
    assert rebuild(described, Backbone, "model.backbone").identifier.startswith("random/random-")


class Own(LoRA):
    """A tuner from another project."""


def test_a_class_of_another_project_has_to_be_given():
    described = describe(Own(rank=2))
    with pytest.raises(DtrapError, match=r"--model\.tuner CLASS_PATH"):
        rebuild(described, Tuner, "model.tuner")
    again = rebuild(described, Tuner, "model.tuner", given=[Own])
    assert (type(again), again.rank) == (Own, 2)


LORA = {"class_path": "LoRA"}


@pytest.mark.parametrize(
    "described",
    [
        "payload.Tuner",
        "os.system",
        {"class_path": "payload.Tuner", "init_args": {}},
        {"class_path": "dtrap.payload.LoRA"},
        {"class_path": "dtrap.lightning_modules.parts.own_class"},
        {"class_path": ["payload"]},
        {"class_path": "Tuner"},
        {"class_path": "OpenCLIP"},
        LORA | {"dict_kwargs": {"rank": 3}},
        LORA | {"init_args": {"rank": "payload.call"}},
        LORA | {"init_args": {"rank": {"class_path": "payload.Tuner"}}},
        LORA | {"init_args": {"projections": ["q", {"class_path": "payload.Tuner"}]}},
        LORA | {"init_args": {"projections": ["payload.call"]}},
        LORA | {"init_args": "payload.yaml"},
        LORA | {"init_args": {"nothing": 3}},
        LORA | {"init_args": {"rank": -3}},
        {"class_path": "FWT", "init_args": {"tuner": "payload.Tuner"}},
        {"class_path": "FWT", "init_args": {"tuner": {"class_path": "payload.Tuner"}}},
        {"class_path": "FWT", "init_args": {"tuner": 3}},
        {"class_path": "TipAdapter", "init_args": {"search_step": [[[[1]]]]}},
        {},
        [],
        None,
        3,
    ],
)
def test_nothing_else_is_imported_or_called(described, tmp_path, monkeypatch):
    (tmp_path / "payload.py").write_text("from pathlib import Path\nPath('executed').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DtrapError, match=r"^model\.tuner") as error:
        rebuild(described, Tuner, "model.tuner")
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "executed").exists()
    assert "payload" not in sys.modules
