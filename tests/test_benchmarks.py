"""The benchmark suite on the tiny model: every figure is measured, kept and shown, and a bar that is missed is said."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def suite(monkeypatch):
    """Import a module of the suite, which is found from the project's root only."""
    monkeypatch.syspath_prepend(str(ROOT))
    yield lambda name: importlib.import_module(f"benchmarks.{name}")
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


def run(*words):
    """Run the suite as a user does."""
    command = [sys.executable, "-m", "benchmarks", "--model", "tiny", "--repeats", "1", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_parts_are_measured_kept_and_shown(tmp_path):
    file = tmp_path / "figures.json"
    done = run(
        "step.vision", "step.coop", "terms", "query.picture", "start.import", "gpu.precision", "--json", str(file)
    )
    assert done.returncode in (0, 1), done.stderr
    content = json.loads(file.read_text())
    found = {name: figure["value"] for name, figure in content["figures"].items()}
    assert content["conditions"]["model"] == "tiny"
    assert len(content["runs"]) == 1
    # The authors' form encodes 30 images, with a product of full size for each adapter, and freezes nothing.
    assert found["step.vision.authors_gflop"] > 1.5 * found["step.vision.gflop"]
    assert found["step.coop.authors_gflop"] > 10 * found["step.coop.gflop"]
    assert {"terms.share", "query.picture.plain", "start.import", "gpu.bf16.rate"} <= set(found)
    assert "step.vision.before" not in found
    assert "times as fast as the earlier commit: not run" in done.stdout
    assert "beyond bare Python" in done.stdout


@pytest.mark.parametrize("method", ["vision", "text", "both", "coop", "maple"])
def test_the_authors_form_has_our_loss_and_gradient(suite, method):
    models, settings = suite("models"), suite("settings").Settings(model="tiny")
    module = models.module(settings, method)
    module.set_classes(models.CLASSES)
    module.start_task(0)
    plain = models.plain_training(settings, method)
    weights = {name.removeprefix("model."): value for name, value in module.backbone.named_parameters()}
    state = module.tuner.adapter_state()
    with torch.no_grad():
        for name, value in plain.model.model.named_parameters():
            if ".lora_" in name:
                ours = state[f"model.{name}"]
                value.copy_(ours.normal_(std=0.05))
            elif "in_proj_" in name:
                kind = name.rpartition("in_proj_")[2]
                stem = name.removesuffix(f"in_proj_{kind}")
                value.copy_(torch.cat([weights[f"{stem}{part}_proj.{kind}"] for part in "qkv"]))
            else:
                base = name.replace("_proj.", "_proj.base_layer.")
                value.copy_(weights[base if base in weights else name])
        for name, value in plain.model.named_parameters():
            if name in state:
                value.copy_(state[name])
        for layer in plain.model.modules():
            layer.dropout = 0.0 if hasattr(layer, "lora_A") else getattr(layer, "dropout", None)
    module.train()
    if hasattr(module.tuner, "_layers"):
        for layer in module.tuner._layers.values():
            layer.lora_dropout.train(False)
    plain.prototypes = module.objective.next_prototypes = torch.tensor([3, 0, 24, 7, 7])
    module.objective.set_stage(0.5)
    module._full_batch = True
    plain.done, plain.steps = 500, 1000
    batch = models.batch(settings)
    module.terms(batch), plain.loss()  # L_ra takes the relations of the step before
    module.objective.next_prototypes = plain.prototypes
    terms, theirs = module.terms(batch), plain.loss()
    assert {"L_vlm", "L_ad", "L_ra"} < set(terms)
    assert terms["total"].item() == pytest.approx(theirs.item(), rel=1e-5)
    terms["total"].backward()
    theirs.backward()
    trained = {name: value for name, value in plain.model.trained().items() if value.grad is not None}
    assert trained
    for name, value in trained.items():  # a prompt of a block that the tower does not have has no gradient
        own = state[name]
        assert torch.allclose(own.grad, value.grad, rtol=1e-3, atol=1e-5 * float(value.grad.abs().max())), name


def test_files_of_runs_are_merged_and_bars_compared(suite, tmp_path):
    figures = suite("figures")
    bars = figures.Figure("a.b", "something", "s", most=2), figures.Figure("a.c", "other", "times", least=3)
    conditions = {"machine": "M", "device": "cpu", "model": "vit", "threads": 1, "precision": "32-true"}
    run = {"date": "today", "commit": "abc", "before": None, "versions": {"torch": "2"}}
    first, second = (figures.Report(conditions, [run | {"date": date}]) for date in ("today", "tomorrow"))
    first.add("a.b", [1.0, 2.5, 9.0])
    second.add_ratios("a.c", [6.0, 6.0], [2.0, 2.0])
    first.merge(second)
    first.write(tmp_path / "file.json")
    kept = figures.Report.read(tmp_path / "file.json")
    assert [figures.line(bar, kept) for bar in bars] == [
        "something: 2.50 s (at most 2): FAIL",
        "other: 3.00 times (at least 3): PASS",
    ]
    assert figures.failed(bars, kept) == ["a.b"]
    part = figures.Part("a", None, (*bars, figures.Figure("a.d", "third")))
    table = figures.markdown([part], [kept])
    assert "| something | s | at most 2 | 2.50 FAIL |" in table
    assert "| third |  |  |  |" in table
    assert "tomorrow" in table
    other = figures.Report({**conditions, "threads": 2}, [run])
    with pytest.raises(ValueError, match="threads 1 and of 2"):
        kept.merge(other)
