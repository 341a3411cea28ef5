"""Shares of several processes, the validation loader, and what a data module takes from its sampler."""

import pickle
import warnings

import pytest
import torch
from all_way_runs import data
from dtrap.datamodules import EuroSATDataModule, Preprocessing
from dtrap.datamodules.batches import Share
from dtrap.errors import DtrapError
from layouts import make_eurosat
from lightning.pytorch import Callback, LightningModule, Trainer

SMALL = Preprocessing(image_size=16)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_eurosat(tmp_path_factory.mktemp("samplers") / "eurosat", per_class=8)


def shares(make, loader, world_size):
    """Batches of a loader in each process."""
    found = []
    for rank in range(world_size):
        module = make()
        module.sampler.rank, module.sampler.world_size = rank, world_size
        found.append(list(getattr(module, loader)()))
    return found


def rows(batches):
    """Every row: image, label and view by position and view."""
    return {
        (int(batch["sample_id"][i]), int(batch["view"][i])): (batch["images"][i], int(batch["labels"][i]))
        for batch in batches
        for i in range(len(batch["labels"]))
    }


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[key][0], second[key][0]) and first[key][1] == second[key][1] for key in first
    )


def all_way(root):
    return data(root, seeds=[1], batch_size=7, validation=True)


def episodes(root):
    return EuroSATDataModule(root, way=4, shot=2, query=3, preprocessing=SMALL)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize(
    ("make", "loader"),
    [
        (all_way, "train_dataloader"),
        (all_way, "val_dataloader"),
        (all_way, "test_dataloader"),
        (episodes, "test_dataloader"),
    ],
)
def test_the_shares_of_all_processes_are_the_whole(root, make, loader, world_size):
    whole = list(getattr(make(root), loader)())
    parts = shares(lambda: make(root), loader, world_size)
    for step, batch in enumerate(whole):
        own = [part[step : step + 1] for part in parts]
        assert max(map(len, (b[0]["labels"] for b in own))) - min(map(len, (b[0]["labels"] for b in own))) <= 1
        assert sum(len(b[0]["labels"]) for b in own) == len(batch["labels"])
        assert same(rows([b[0] for b in own]), rows([batch]))


def test_every_process_gets_the_whole_support(root):
    for make in (all_way, episodes):
        whole = rows(make(root).support_batches())
        assert all(same(rows(part), whole) for part in shares(lambda make=make: make(root), "support_batches", 2))


@pytest.mark.parametrize(("size", "lengths"), [(39, [20]), (7, [6, 7, 7]), (19, [10, 10])])
def test_every_process_has_as_many_batches_of_a_test(root, monkeypatch, size, lengths):
    """A process with a batch more would wait for the others in a validation, where DDP exchanges buffers."""
    monkeypatch.setattr("dtrap.datamodules.streams.TEST_BATCH", size)
    found = shares(lambda: all_way(root), "test_dataloader", 2)
    assert [[len(batch["labels"]) for batch in part] for part in found] == [lengths, lengths]


@pytest.mark.parametrize("rows", range(3, 40))
def test_shares_are_disjoint_and_of_equal_length(rows):
    for processes, size in ((2, 4), (3, 4), (3, 2), (2, 128)):
        parts = [Share(rank, processes).batches(rows, size) for rank in range(processes)]
        assert len({len(part) for part in parts}) == 1
        assert all(0 < len(batch) <= size for part in parts for batch in part)
        flat = [[number for batch in part for number in batch] for part in parts]
        assert all(part == list(range(rank, rows, processes)) for rank, part in enumerate(flat))


def test_fewer_rows_than_processes_are_refused(root):
    with pytest.raises(DtrapError, match="3 devices cannot share 2 images of a test"):
        Share(0, 3).batches(2, 128)
    module = data(root, seeds=[1], batch_size=1)
    module.sampler.world_size = 2
    with pytest.raises(DtrapError, match=r"2 devices cannot share 1 images of --data.all_way.batch_size"):
        module.train_dataloader()
    module = EuroSATDataModule(
        root, way=3, shot=1, query=1, views=1, batch_size=2, drop_last=False, preprocessing=SMALL
    )
    module.sampler.world_size = 2
    with pytest.raises(DtrapError, match="2 devices cannot share 1 rows of a mini-batch"):
        module.train_dataloader()


class Validates(LightningModule):
    """Has a validation step, and counts what it validates."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.validated = 0

    def training_step(self, batch):
        return self.weight * batch["images"].mean()

    def validation_step(self, batch):
        self.validated += len(batch["labels"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Sanity(Callback):
    started = False

    def on_sanity_check_start(self, trainer, pl_module):
        self.started = True


def fit(module_data):
    module, sanity = Validates(), Sanity()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = Trainer(
            max_epochs=1, callbacks=[sanity], accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, datamodule=module_data)
    return module, trainer, sanity, " ".join(str(w.message) for w in caught)


def test_lightning_does_not_validate_where_nothing_asks_for_it(root):
    for module_data in (data(root, seeds=[1]), episodes(root)):
        module, trainer, sanity, told = fit(module_data)
        assert (module.validated, sanity.started, trainer.enable_validation) == (0, False, False)
        assert not trainer.val_dataloaders
        assert "Total length" not in told


def test_lightning_validates_where_it_is_asked_for(root):
    module, trainer, sanity, _ = fit(data(root, seeds=[1], validation=True))
    assert sanity.started
    assert trainer.enable_validation
    assert module.validated == 40  # the sanity check and one epoch


def test_both_samplers_describe_their_tasks(root):
    first, second = episodes(root), data(root, seeds=[4, 2])
    assert (first.description, first.unit, first.tasks, first.streams) == (
        "EuroSAT 4-way 2-shot",
        "episode",
        None,
        False,
    )
    assert (second.description, second.unit, second.tasks) == ("EuroSAT all-way 2-shot", "seed", 2)
    assert (first.fixed_views, second.fixed_views) == (True, False)
    assert (first.streams, second.streams) == (False, True)
    second.set_episode(1)
    assert second.seed == 2
    assert second.episode_seed("tuner") == data(root, seeds=[2]).episode_seed("tuner")
    assert first.subsets == {}
    assert list(second.subsets) == [4, 2]


def test_a_data_module_with_decoded_images_goes_to_a_spawned_process(root):
    for module in (episodes(root), all_way(root)):
        whole = rows(module.support_batches())
        module.setup()
        module.support()
        sent = pickle.loads(pickle.dumps(module))
        assert same(rows(sent.support_batches()), whole)
        module.set_episode(0)
        sent.set_episode(0)
        assert torch.equal(sent.support()["images"], module.support()["images"])
