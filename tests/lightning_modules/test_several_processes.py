"""A fit and a test in two processes are those of one process, in plain Lightning."""

import copy
import os
import warnings

import pytest
import quiet
import torch
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import ShapesDataModule
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.batch_checks import check_tuner_batches
from dtrap.lightning_modules.finite import DivergedError
from dtrap.lightning_modules.tuners import FWT, LDC, CoOp, LoRA, MaPLe, StepSPT, TipAdapter, TipAdapterF
from lightning.pytorch import Callback, Trainer
from several_processes import in_two_processes
from torch.utils.data import DataLoader, Dataset, DistributedSampler

QUIET = quiet.QUIET | {"num_sanity_val_steps": 0}


class Steps(Callback):
    """The terms and the trained values after every step."""

    def __init__(self):
        self.terms, self.values = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.terms.append({name: value.double() for name, value in outputs.items()})
        self.values.append(
            {name: value.detach().double().clone() for name, value in pl_module.tuner.adapter_state().items()}
        )


CASES = {
    "LoRA, full batch": (lambda: LoRA("both", rank=2, dropout=0.0), Objective, {}, {}),
    "dropout, encoded twice": (lambda: LoRA("both", rank=2), Objective, {}, {"plain_views": "encode"}),
    "ratio": (
        lambda: MaPLe(), lambda: Objective(gradient_ratio=0.5, relation_form="softmax", relation_source="current"), {},
        {},
    ),
    "CoOp, mini-batches": (
        lambda: CoOp(4), lambda: Objective(relation_source="current"), {"batch_size": 5, "drop_last": False}, {},
    ),
    "chunks": (lambda: FWT(LoRA(rank=2)), Objective, {}, {"image_chunk": 3}),
    "Tip-Adapter": (TipAdapter, Objective, {}, {}),
    "Tip-Adapter-F": (TipAdapterF, Objective, {}, {}),
}  # fmt: skip


def fit_and_test(backbone, case, **trainer):
    tuner, objective, data, module = CASES[case]
    made = FewShotClassifier(copy.deepcopy(backbone), tuner(), objective(), **module)
    images = ShapesDataModule(way=3, shot=2, query=5, views=2, **data)
    steps = Steps()
    made.kept_scores.wanted = True
    done = Trainer(max_epochs=2, precision="64-true", callbacks=[StageSwitch(), steps], **QUIET, **trainer)
    torch.manual_seed(0)
    done.fit(made, datamodule=images)
    (numbers,) = done.test(made, datamodule=images, verbose=False)
    tested = {
        "numbers": numbers, "confusion": made.confusion.compute(), "predictions": torch.cat(made.test_predictions),
        "ids": torch.cat(made.kept_scores.sample_ids), "scores": torch.cat(made.kept_scores.scores),
        "tuner": {name: value.detach() for name, value in made.tuner.adapter_state().items()},
    }  # fmt: skip
    return {"terms": steps.terms, "values": steps.values, **tested}


class Pictures(Dataset):
    """Random images with labels, as a stranger's data set has them."""

    def __init__(self, seed, rows, order=None):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(rows, 3, 32, 32, generator=generator, dtype=torch.float64)
        self.order = list(range(rows)) if order is None else order

    def __len__(self):
        return len(self.order)

    def __getitem__(self, number):
        row = self.order[number]
        return self.images[row], row % 3


def foreign(backbone, tuner, training, size, **trainer):
    """Fit and test with loaders of a stranger; the test has 7 images, which two processes cannot halve."""
    made = FewShotClassifier(copy.deepcopy(backbone), tuner, Objective(relation_source="current"))
    made.set_classes(["circle", "square", "star"])
    steps = Steps()
    done = Trainer(max_epochs=2, precision="64-true", callbacks=[StageSwitch(), steps], **QUIET, **trainer)
    rank = int(os.environ.get("LOCAL_RANK", 0))
    sampler = DistributedSampler(training, 2, rank, shuffle=False) if trainer else None  # Lightning's own shuffles
    loader = DataLoader(training, batch_size=size, sampler=sampler)
    torch.manual_seed(rank)  # the start and the prototypes are those of process 0
    done.fit(made, loader, DataLoader(Pictures(2, 7), batch_size=2))
    (numbers,) = done.test(made, DataLoader(Pictures(2, 7), batch_size=2), verbose=False)
    state = {name: value.detach() for name, value in made.tuner.adapter_state().items()}
    predicted = torch.cat(made.test_predictions)
    return {"numbers": numbers, "predictions": predicted, "terms": steps.terms, "values": steps.values, "tuner": state}


def one_of_two(rank, folder, backbone):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        two = {"strategy": "ddp", "devices": 2}
        found = {case: fit_and_test(backbone, case, **two) for case in CASES}
        found["foreign LoRA"] = foreign(backbone, LoRA("both", rank=2, dropout=0.0), Pictures(1, 11), 2, **two)
        found["foreign Tip-Adapter"] = foreign(backbone, TipAdapter(), Pictures(1, 11), 2, **two)
    torch.save(found, f"{folder}/{rank}.pt")
    refusals(rank, backbone, two)


def refusals(rank, backbone, two):
    """An error of one process is raised in both: the other one would wait for ever."""
    images = ShapesDataModule(way=3, shot=1, query=2, views=1)
    with pytest.raises(DtrapError, match="makes optimizer steps of its own"):
        Trainer(max_epochs=1, **QUIET, **two).fit(FewShotClassifier(copy.deepcopy(backbone), StepSPT()), images)
    module = FewShotClassifier(copy.deepcopy(backbone), TipAdapter())
    if rank == 1:
        module.finite_scores = lambda scores: (_ for _ in ()).throw(DivergedError("two scores are lost", "look"))
    with pytest.raises(DivergedError, match="two scores are lost; look"), module.zero_shot():
        Trainer(**QUIET, **two).test(module, images, verbose=False)


@pytest.mark.filterwarnings("ignore")
def test_two_processes_train_and_test_as_one(tiny_backbone, tmp_path):
    in_two_processes(one_of_two, tmp_path, tiny_backbone)
    # A DistributedSampler repeats the first row of 11 in the training, so that each process has 6.
    repeated = Pictures(1, 11, [*range(11), 0])
    whole = {case: fit_and_test(tiny_backbone, case) for case in CASES}
    whole["foreign LoRA"] = foreign(tiny_backbone, LoRA("both", rank=2, dropout=0.0), repeated, 4)
    whole["foreign Tip-Adapter"] = foreign(tiny_backbone, TipAdapter(), Pictures(1, 11), 4)
    assert len(whole["LoRA, full batch"]["terms"]) == 4
    assert whole["foreign LoRA"]["numbers"]["test/images"] == 7
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for case, expected in whole.items():
            torch.testing.assert_close(
                found[case], expected, atol=1e-9, rtol=1e-9, msg=lambda text, case=case: f"{case}: {text}"
            )


def test_a_tuner_needs_its_rows_on_each_device():
    images = ShapesDataModule(way=3, shot=1, query=2, views=2, batch_size=3)
    check_tuner_batches(LDC(), images)
    images.sampler.world_size = 2
    with pytest.raises(
        DtrapError, match=r"3, but the tuner ldc needs 2 rows .* on each of 2 devices. Set .* 4 or more"
    ):
        check_tuner_batches(LDC(), images)
