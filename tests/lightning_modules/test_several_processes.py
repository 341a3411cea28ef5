"""A fit and a test in two processes are those of one process, in plain Lightning."""

import copy
import warnings

import pytest
import quiet
import torch
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import ShapesDataModule
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.tuners import FWT, CoOp, LoRA, MaPLe, TipAdapter, TipAdapterF
from lightning.pytorch import Callback, Trainer
from several_processes import in_two_processes

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
        lambda: CoOp(4), lambda: Objective(relation_source="current"), {"batch_size": 7, "drop_last": False}, {},
    ),
    "chunks": (lambda: FWT(LoRA(rank=2)), Objective, {}, {"image_chunk": 3}),
    "Tip-Adapter": (TipAdapter, Objective, {}, {}),
    "Tip-Adapter-F": (TipAdapterF, Objective, {}, {}),
}  # fmt: skip


def fit_and_test(backbone, case, **trainer):
    tuner, objective, data, module = CASES[case]
    made = FewShotClassifier(copy.deepcopy(backbone), tuner(), objective(), **module)
    images = ShapesDataModule(way=4, shot=2, query=5, views=2, **data)
    steps = Steps()
    made.kept_scores.wanted = True
    done = Trainer(max_epochs=3, precision="64-true", callbacks=[StageSwitch(), steps], **QUIET, **trainer)
    torch.manual_seed(0)
    done.fit(made, datamodule=images)
    (numbers,) = done.test(made, datamodule=images, verbose=False)
    tested = {
        "numbers": numbers, "confusion": made.confusion.compute(), "predictions": torch.cat(made.test_predictions),
        "ids": torch.cat(made.kept_scores.sample_ids), "scores": torch.cat(made.kept_scores.scores),
        "tuner": {name: value.detach() for name, value in made.tuner.adapter_state().items()},
    }  # fmt: skip
    return {"terms": steps.terms, "values": steps.values, **tested}


def one_of_two(rank, folder, backbone):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {case: fit_and_test(backbone, case, strategy="ddp", devices=2) for case in CASES}
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.mark.filterwarnings("ignore")
def test_two_processes_train_and_test_as_one(tiny_backbone, tmp_path):
    in_two_processes(one_of_two, tmp_path, tiny_backbone)
    for case in CASES:
        whole = fit_and_test(tiny_backbone, case)
        for rank in range(2):
            found = torch.load(tmp_path / f"{rank}.pt")[case]
            assert len(found["terms"]) == len(whole["terms"]), case
            torch.testing.assert_close(
                found, whole, atol=1e-9, rtol=1e-9, msg=lambda text, case=case: f"{case}: {text}"
            )
