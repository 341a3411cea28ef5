"""A small EuroSAT, the words of a run on it, and a clock, for the tests of the protocol."""

import pytest
from layouts import make_eurosat


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_eurosat(tmp_path_factory.mktemp("data") / "eurosat", per_class=4)


@pytest.fixture
def words(root, tiny_model):
    return [
        "fit", "--config", "eurosat_1shot.yaml", "--data.root", str(root), "--data.query", "2", *tiny_model,
        "--trainer.max_epochs", "5", "--protocol.episodes", "3", "--protocol.compare", "methods/baseline.yaml",
    ]  # fmt: skip


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()
