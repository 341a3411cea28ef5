"""What the two terms cost: counted FLOPs against their formula, an interval against its definition, and no effect."""

import json

import numpy as np
import pytest
from dtrap.callbacks import CostMonitor
from dtrap.callbacks.cost_monitor import median_interval
from dtrap.errors import DtrapError
from lightning.pytorch import LightningModule
from scipy import stats

SHORT = ["--trainer.max_epochs", 3, "--protocol.episodes", 1, "--data.query", 2]


def rows(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.fixture
def measured(dtrap, tmp_path):
    def run(*words, folder="measured", pairs=6):
        monitor = ["--trainer.callbacks+=CostMonitor", f"--trainer.callbacks.pairs={pairs}"]
        options = [*SHORT, "--protocol.folder", folder, *words]
        status, _, err = dtrap("fit", "--config", "demo.yaml", *options, *(monitor if pairs else []))
        assert status == 0, err
        return rows(tmp_path / folder)

    return run


def test_the_terms_cost_their_products_of_matrices_and_nothing_changes(measured):
    both, plain = measured()
    width, views, way = 96, 5, 5
    batch, supports = views * way, way
    # Forward once; backward once for each factor with a gradient. The text features of LoRA on images have none.
    visual = 3 * 2 * batch * way * width
    relations = 3 * 2 * batch * supports * width + 2 * way * way * width
    cost = both["cost"]
    assert round((cost["gflops"] - cost["gflops_without"]) * 1e9) == visual + relations
    assert cost["flops_added"] == pytest.approx(100 * (visual + relations) / 1e9 / cost["gflops_without"], rel=1e-9)
    assert plain["cost"]["flops_added"] == 0
    assert cost["trained_parameters"] == plain["cost"]["trained_parameters"] == 4 * 3 * 2 * 16 * 96
    low, high = cost["step_ratio_interval"]
    assert 0 < low <= cost["step_ratio"] <= high
    for with_cost, without in zip((both, plain), measured(folder="without", pairs=0), strict=True):
        differing = {key for key in with_cost.keys() | without.keys() if with_cost.get(key) != without.get(key)}
        assert differing <= {"cost", "seconds"}


@pytest.mark.parametrize("tuner", ["tip_adapter", "stepspt"])
def test_without_steps_of_the_objective_there_is_no_cost(measured, tuner):
    for row in measured("--config", f"tuners/{tuner}.yaml"):
        assert "cost" not in row


@pytest.mark.parametrize("count", [6, 7, 20, 21])
def test_the_interval_of_the_median_holds_at_least_95_percent(count):
    values = np.random.default_rng(0).normal(size=count)
    low, high = median_interval(values.tolist())
    ordered = np.sort(values)
    first, last = int(np.searchsorted(ordered, low)), int(np.searchsorted(ordered, high))
    assert first == count - 1 - last
    binomial = stats.binom(count, 0.5)
    assert binomial.cdf(count - 1 - first) - binomial.cdf(first) >= 0.95
    assert binomial.cdf(count - 2 - first) - binomial.cdf(first + 1) < 0.95


def test_too_few_pairs_and_other_modules_are_refused():
    with pytest.raises(DtrapError, match="at least 6"):
        CostMonitor(pairs=5)
    with pytest.raises(DtrapError, match="expected a FewShotClassifier"):
        CostMonitor().setup(None, LightningModule(), "fit")
