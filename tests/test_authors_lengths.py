"""The overlays in batches/ train each method as long as its authors: steps, batch sizes and rates of a real run."""

import pytest
from dtrap.lightning_modules import FewShotClassifier

# Method: (overlay of the tuner, shot, steps, rows of the batches of an epoch, first rate, rate after the warm-up).
# A support set has 5 classes, in 5 views.
LENGTHS = {
    "coop": ("coop", 1, 50, [25], 1e-5, 2e-3),
    "coop_2shot": ("coop", 2, 100, [32], 1e-5, 2e-3),
    "coop_8shot": ("coop", 8, 200 * 6, [32] * 6, 1e-5, 2e-3),
    "maple": ("maple", 1, 5 * 6, [4] * 6, 1e-5, 3.5e-3),
    "clip_adapter": ("clip_adapter", 2, 200, [32], 1e-5, 2e-3),
    "tip_adapter_f": ("tip_adapter_f", 12, 20 * 2, [256, 44], 1e-3, None),
    "tip_adapter_f_eurosat": ("tip_adapter_f", 1, 100, [25], 1e-3, None),
    "ldc": ("ldc", 4, 50 * 2, [64, 36], 1e-4, None),
    "lpp": ("lpp", 4, 300, [100], None, None),
    "stepspt": ("stepspt", 2, 100, [50], 1e-2, 1e-2),
}


class Stop(Exception):
    """Ends a run that has shown enough."""


@pytest.mark.parametrize("name", LENGTHS)
def test_an_overlay_gives_a_method_its_authors_schedule(dtrap, monkeypatch, name):
    tuner, shot, steps, sizes, first, full = LENGTHS[name]
    seen, rates, found = [], [], {}
    original = FewShotClassifier.on_train_batch_start

    def watch(self, batch, batch_idx):
        seen.append(len(batch["labels"]))
        rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        found["steps"] = self.trainer.max_epochs * self.trainer.num_training_batches
        if len(seen) > len(sizes):
            raise Stop
        return original(self, batch, batch_idx)

    monkeypatch.setattr(FewShotClassifier, "on_train_batch_start", watch)
    tokens = ["--model.tuner.context_tokens", 4] if tuner == "coop" else []
    with pytest.raises(Stop):
        dtrap(
            "fit", "--config", "demo.yaml", "--config", f"tuners/{tuner}.yaml", "--config", f"batches/{name}.yaml",
            "--config", "methods/baseline.yaml", *tokens, "--data.shot", shot, "--data.query", 1,
            "--protocol.compare", "null", "--protocol.episodes", 1,
        )  # fmt: skip
    assert found["steps"] == steps
    assert seen[: len(sizes)] == sizes
    assert first is None or rates[0] == pytest.approx(first)
    assert full is None or rates[len(sizes)] == pytest.approx(full)
