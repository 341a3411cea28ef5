"""The precision of a run: the device decides once, and folder, rows, cards and a rerun keep to it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from dtrap.commands.adapter_arguments import SavedAdapter
from dtrap.commands.parser import parse_methods
from dtrap.datamodules import ShapesDataModule
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.tuners import CLIPAdapter
from dtrap.protocol import precision, run_protocol
from dtrap.protocol.precision import default_precision, device_of, settle_precision, tf32_allowed
from jsonargparse import Namespace
from lightning.pytorch.plugins import MixedPrecision
from run_folders import rows_of
from safetensors import safe_open

RUN = ["--data.query", "2", "--trainer.max_epochs", "2", "--protocol.episodes", "1", "--protocol.folder", "run"]
DEMO = ["fit", "--config", "demo.yaml", "--protocol.compare", "null", "--trainer.callbacks", "null", *RUN]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def on(monkeypatch):
    """Let runs take a device for the one that the Trainer has; the Trainer itself stays on the CPU."""

    def choose(device, capability=(9, 0), *, bf16=False):
        monkeypatch.setattr(precision, "device_of", lambda arguments: device)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA Fake")
        monkeypatch.setattr(precision, "multiplies_bf16", lambda: bf16)

    return choose


@pytest.fixture
def fake_gpus(monkeypatch):
    """What Lightning asks of torch to find two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({}, "cuda"),
        ({"accelerator": "auto", "devices": 1}, "cuda"),
        ({"accelerator": "gpu", "devices": [1]}, "cuda"),
        ({"accelerator": "cuda", "devices": "auto"}, "cuda"),
        ({"accelerator": "gpu", "devices": 2, "strategy": "ddp"}, "cuda"),
        ({"accelerator": "cpu", "devices": 2}, "cpu"),
    ],
)
def test_the_device_is_the_one_that_lightning_chooses(fake_gpus, arguments, kind):
    device = device_of(arguments)
    assert device.type == kind
    assert default_precision(device) == {"cuda": "bf16-mixed", "cpu": "32-true"}[kind]
    if arguments.get("devices") == [1]:
        assert device.index == 1


def test_without_a_gpu_it_is_the_cpu_and_a_missing_gpu_is_no_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device_of({"accelerator": "cpu", "devices": 1}) == CPU
    assert device_of({"accelerator": "gpu", "devices": 1}) is None


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), "bf16-mixed"), ((8, 0), "bf16-mixed"), ((7, 5), "16-mixed")]
)
def test_a_gpu_takes_bf16_where_it_computes_in_it(on, capability, expected):
    on(GPU, capability)
    assert default_precision(GPU) == expected
    assert default_precision(torch.device("mps")) == "32-true"


def test_a_run_holds_what_the_device_chose_in_config_identity_row_and_card(on, dtrap, tmp_path):
    on(GPU)
    status, out, err = dtrap(*DEMO, "--protocol.save_adapters", "true")
    assert status == 0, err
    assert "Precision: bf16-mixed on cuda:0, NVIDIA Fake (--trainer.precision 32-true for full)" in out
    folder = tmp_path / "run"
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["precision"] == "bf16-mixed"
    stored = json.loads((folder / "identity.json").read_text())
    assert stored["methods"]["svl-ra"]["trainer"]["precision"] == "bf16-mixed"
    (row,) = rows_of(folder)
    assert row["precision"] == "bf16-mixed"
    assert "tf32" not in row  # it was computed on a CPU
    (adapter,) = (folder / "adapters").glob("*.safetensors")
    with safe_open(adapter, "pt") as file:
        assert '"precision": "bf16-mixed"' in " ".join(file.metadata().values())
    # The saved adapter is tested in its own precision, also on another device.
    on(CPU)
    trained = row["accuracy"]
    status, out, err = dtrap("test", "--adapter", adapter)
    assert status == 0, err
    assert f"{trained:.1f} %, {trained:.1f} % when it was saved" in out


def test_a_rerun_on_another_device_is_refused_with_what_to_type(on, dtrap, tmp_path):
    on(CPU)
    assert dtrap(*DEMO)[0] == 0
    before = (tmp_path / "run" / "results.jsonl").read_bytes()
    on(GPU)
    status, _, err = dtrap(*DEMO, "--protocol.episodes", "2")
    assert status != 0
    assert "run holds results in 32-true (CPU), but bf16-mixed is used here (cuda:0, NVIDIA Fake)" in err
    assert "--trainer.precision 32-true" in err
    assert (tmp_path / "run" / "results.jsonl").read_bytes() == before
    status, out, err = dtrap(*DEMO, "--protocol.episodes", "2", "--trainer.precision", "32-true")
    assert status == 0, err
    assert [row["precision"] for row in rows_of(tmp_path / "run")] == ["32-true", "32-true"]
    # The config of the folder says it, too.
    status, out, err = dtrap("fit", "--config", "run/config.yaml", "--protocol.episodes", "2")
    assert status == 0, err
    assert "Already finished" in out
    on(CPU)
    assert dtrap(*DEMO, "--protocol.episodes", "2")[0] == 0


def test_a_finished_folder_of_a_gpu_is_shown_where_its_accelerator_is_missing(on, dtrap, tmp_path):
    on(GPU)
    assert dtrap(*DEMO)[0] == 0
    on(None)
    status, out, err = dtrap(*DEMO)
    assert status == 0, err
    assert "Already finished" in out


def test_a_folder_of_a_gpu_without_bf16_says_that_a_cpu_cannot_go_on(on, dtrap, tmp_path):
    on(CPU)
    assert dtrap(*DEMO)[0] == 0
    path = tmp_path / "run" / "identity.json"
    path.write_text(path.read_text().replace("32-true", "16-mixed"))
    for words in ([], ["--trainer.precision", "16-mixed"]):
        status, _, err = dtrap(*DEMO, *words)
        assert status != 0
        assert "A CPU has no 16-mixed: resume on a GPU with --trainer.precision 16-mixed" in err


def test_a_folder_of_an_earlier_version_goes_on_in_32_true_on_any_device(on, dtrap, tmp_path):
    on(CPU)
    assert dtrap(*DEMO)[0] == 0
    path = tmp_path / "run" / "identity.json"
    stored = json.loads(path.read_text())
    del stored["default_precision"]
    path.write_text(json.dumps(stored))
    on(GPU)
    assert "Already finished" in dtrap(*DEMO)[1]
    del stored["methods"]["svl-ra"]["trainer"]["precision"]
    path.write_text(json.dumps(stored))
    status, _, err = dtrap(*DEMO, "--protocol.episodes", "2")
    assert status == 0, err
    assert "default_precision" not in json.loads(path.read_text())
    assert {row["precision"] for row in rows_of(tmp_path / "run")} == {"32-true"}
    status, _, err = dtrap(*DEMO, "--trainer.precision", "bf16-mixed")
    assert status != 0
    assert "trainer.precision: 32-true in the folder, bf16-mixed now" in err


def test_methods_with_a_precision_of_their_own_keep_it_and_names_follow_the_device(on, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full.yaml").write_text("trainer: {precision: 32-true}")
    words = [*DEMO[1:], "--protocol.compare", "[methods/paper.yaml, methods/authors_code.yaml, full.yaml]"]
    on(GPU)
    methods = parse_methods(words)
    settle_precision(methods)
    settled = {method.name: method.parsed.trainer.precision for method in methods}
    assert settled == {
        "svl-ra": "bf16-mixed", "paper": "32-true", "authors_code": "16-mixed", "svl-ra-precision_32-true": "32-true",
    }  # fmt: skip


def test_without_fp16_on_a_cpu_the_folder_says_what_is_run_instead(on, dtrap, tmp_path):
    on(CPU)
    with pytest.warns(UserWarning, match="'authors_code': a CPU has no 16-mixed; bf16-mixed is used instead"):
        status, _, err = dtrap(*DEMO, "--config", "methods/authors_code.yaml")
    assert status == 0, err
    (row,) = rows_of(tmp_path / "run")
    assert row["precision"] == "bf16-mixed"
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["trainer"]["precision"] == "bf16-mixed"
    assert "Already finished" in dtrap(*DEMO, "--config", "methods/authors_code.yaml")[1]


def test_bf16_is_offered_on_a_processor_that_has_it(on, dtrap):
    on(CPU, bf16=True)
    assert dtrap(*DEMO)[1].count("--trainer.precision bf16-mixed is faster") == 1
    methods = parse_methods(DEMO[1:])
    assert len(precision.lines_about(methods)) == 1
    assert precision.lines_about(parse_methods([*DEMO[1:], "--trainer.precision", "32-true"])) == []
    on(CPU, bf16=False)
    assert precision.lines_about(methods) == []


def test_torch_says_whether_the_processor_has_bf16(monkeypatch):
    assert callable(torch.cpu._is_avx512_bf16_supported)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not precision.multiplies_bf16()
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert precision.multiplies_bf16()


def python_run(tiny_backbone, folder, trainer=None, episodes=1):
    chosen = {"max_epochs": 2, "accelerator": "cpu", "logger": False, **(trainer or {})}
    methods = {"svl-ra": lambda: FewShotClassifier(tiny_backbone, CLIPAdapter())}
    return run_protocol(methods, ShapesDataModule(query=1), trainer=chosen, episodes=episodes, folder=str(folder))


def test_the_python_interface_settles_a_null_and_takes_what_is_given(on, tiny_backbone, tmp_path):
    on(GPU)
    assert python_run(tiny_backbone, tmp_path / "null").rows[0]["precision"] == "bf16-mixed"
    assert python_run(tiny_backbone, tmp_path / "int", {"precision": 32}).rows[0]["precision"] == "32-true"
    on(CPU)
    with pytest.raises(precision.DtrapError, match=r"--trainer\.precision bf16-mixed"):
        python_run(tiny_backbone, tmp_path / "null", episodes=2)
    plugin = {"plugins": [MixedPrecision("bf16-mixed", "cpu")]}  # with a precision, Lightning refuses it
    assert python_run(tiny_backbone, tmp_path / "plugin", plugin).rows[0]["precision"] == "bf16-mixed"


STUDY = """# Two seeds
sets: [demo.yaml]
seeds: [1, 2]
arms: {plain: methods/baseline.yaml}
episodes: 1
options: [--trainer.max_epochs, 1, --data.query, 2, --trainer.callbacks, "null"]
"""


def test_a_study_has_one_default_for_all_cells(on, dtrap, tmp_path):
    (tmp_path / "small.yaml").write_text(STUDY)
    on(CPU, bf16=True)
    status, out, err = dtrap("study", "small.yaml", "--only", "demo_seed1")
    assert status == 0, err
    assert out.count("bf16-mixed") == 1
    on(GPU)
    status, _, err = dtrap("study", "small.yaml")
    assert status != 0
    assert "Give --trainer.precision 32-true for all cells" in err
    status, out, err = dtrap("study", "small.yaml", "--trainer.precision", "32-true")
    assert status == 0, err
    assert "1 of 2 runs are finished." in out
    for path in (tmp_path / "runs" / "study_small").glob("*/identity.json"):  # as an earlier version wrote it
        content = json.loads(path.read_text())
        del content["default_precision"]
        path.write_text(json.dumps(content))
    status, out, err = dtrap("study", "small.yaml", "--episodes", "2", "--only", "demo_seed1")
    assert status == 0, err
    # What is finished is shown on any device.
    assert dtrap("study", "small.yaml")[0] == 0
    assert "another config" not in dtrap("study", "small.yaml", "--plan")[1]


@pytest.mark.parametrize(
    ("chosen", "kind", "expected"),
    [("bf16-mixed", "cuda", True), ("32-true", "cuda", False), ("16-mixed", "cpu", False)],
)
def test_tf32_is_allowed_in_a_mixed_precision_on_a_gpu_alone(chosen, kind, expected):
    trainer = SimpleNamespace(precision=chosen, strategy=SimpleNamespace(root_device=torch.device(kind)))
    assert torch.get_float32_matmul_precision() == "highest"
    with tf32_allowed(trainer) as allowed:
        assert allowed is expected
        assert torch.get_float32_matmul_precision() == ("high" if expected else "highest")
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("given", "of_card", "expected"),
    [
        (None, "bf16-mixed", "bf16-mixed"), (None, None, "32-true"), (None, "16-mixed", "32-true"),
        ("64", "bf16-mixed", "64-true"), ("16", None, "32-true"),
    ],
)  # fmt: skip
def test_a_saved_adapter_is_used_in_its_precision_as_far_as_the_device_has_it(on, given, of_card, expected):
    on(CPU)
    config = Namespace(trainer=Namespace(precision=given, accelerator="cpu", devices=1))
    card = SimpleNamespace(precision=of_card)
    assert SavedAdapter(Path("a.safetensors"), card, SimpleNamespace(config=config)).precision == expected


def test_lost_updates_are_in_row_summary_and_result(on, tiny_backbone, monkeypatch, tmp_path):
    on(CPU)
    monkeypatch.setattr("dtrap.lightning_modules.loss_scale.LossScale.end", lambda self: setattr(self, "skipped", 2))
    result = python_run(tiny_backbone, tmp_path / "run", episodes=2)
    assert [row["skipped_updates"] for row in result.rows] == [2, 2]
    assert result.summary["methods"]["svl-ra"]["skipped_updates"] == 4
    assert "4 updates lost to overflows in 16-mixed" in repr(result)
