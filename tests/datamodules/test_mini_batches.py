"""Mini-batches of the support rows, and queries in several views."""

import pytest
import torch
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import FolderDataModule, ShapesDataModule
from dtrap.datamodules.views import Preprocessing
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.tuners import LDC, CLIPAdapter, StepSPT
from layouts import make_folder
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader


def rows(batch):
    return list(zip(batch["sample_id"].tolist(), batch["view"].tolist(), strict=True))


def test_an_epoch_has_every_row_once_in_an_order_of_its_own():
    data = ShapesDataModule(shot=1, query=2, batch_size=6)
    loader = data.train_dataloader()
    assert len(loader) == 4
    epochs = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        batches = list(loader)
        assert [len(batch["labels"]) for batch in batches] == [6] * 4
        epochs.append([row for batch in batches for row in rows(batch)])
        assert len(set(epochs[-1])) == 24
        assert set(epochs[-1]) < set(rows(data.support()))
    assert epochs[0] != epochs[1]
    again = ShapesDataModule(shot=1, query=2, batch_size=6, num_workers=2).train_dataloader()
    torch.manual_seed(7)
    again.set_epoch(1)
    assert [row for batch in again for row in rows(batch)] == epochs[1]


def test_rows_keep_their_image_label_and_view():
    data = ShapesDataModule(shot=2, query=1, batch_size=7)
    whole = {row: (image, label) for row, image, label in zip(
        rows(data.support()), data.support()["images"], data.support()["labels"], strict=True
    )}  # fmt: skip
    for batch in data.train_dataloader():
        for row, image, label in zip(rows(batch), batch["images"], batch["labels"], strict=True):
            assert torch.equal(whole[row][0], image)
            assert whole[row][1] == label


def test_a_support_smaller_than_a_mini_batch_is_one():
    loader = ShapesDataModule(shot=1, query=1, views=1, batch_size=32).train_dataloader()
    (batch,) = loader
    assert len(loader) == 1
    assert len(batch["labels"]) == 5


def test_lightning_tells_the_epochs_and_a_folder_has_mini_batches_too(tiny_backbone, tmp_path):
    data = FolderDataModule(make_folder(tmp_path / "photos", counts=(2, 2)), batch_size=5)
    seen = []

    class Module(FewShotClassifier):
        def training_step(self, batch, batch_idx):
            seen.append(rows(batch))
            return super().training_step(batch, batch_idx)

    module = Module(tiny_backbone, objective=Objective(relation_source="current"))
    trainer = Trainer(
        max_epochs=2, callbacks=[StageSwitch()], accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 8
    first, second = ({row for step in epoch for row in step} for epoch in (seen[:4], seen[4:]))
    assert first == second
    assert len(first) == 20
    assert seen[:4] != seen[4:]


def fit_and_see(module, **source):
    """Fit for 2 epochs in the stage; return rows, plain rows and L_ra of every step."""
    seen = []

    def see(objective, positional, named, terms):
        plain = named["plain"]
        seen.append((len(positional[0]), None if plain is None else len(plain.labels), float(terms["L_ra"].detach())))

    module.objective.register_forward_hook(see, with_kwargs=True)
    trainer = Trainer(
        max_epochs=2, callbacks=[StageSwitch(stop=1)], accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, **source)
    return seen


@pytest.mark.parametrize("size", [5, 7])
@pytest.mark.parametrize("form", ["softmax", "cosine"])
def test_relations_of_a_mini_batch_are_those_of_all_its_rows(tiny_backbone, size, form):
    objective = Objective(relation_source="current", relation_form=form)
    module = FewShotClassifier(tiny_backbone, objective=objective)
    seen = fit_and_see(module, datamodule=ShapesDataModule(way=2, shot=2, query=1, batch_size=size))
    assert len(seen) == 2 * (20 // size)
    assert all(rows == plain == size for rows, plain, _ in seen)
    assert all(term != 0 for _, _, term in seen[1:])


def test_relations_of_the_full_batch_are_those_with_its_plain_rows(tiny_backbone):
    data = ShapesDataModule(way=2, shot=2, query=1)
    module = FewShotClassifier(tiny_backbone, objective=Objective(relation_source="current"))
    assert [row[:2] for row in fit_and_see(module, datamodule=data)] == [(20, 4)] * 4
    # The loader says it where the data module takes no part.
    module.set_classes(data.class_names)
    assert [row[:2] for row in fit_and_see(module, train_dataloaders=data.train_dataloader())][:4] == [(20, 4)] * 4


def test_a_loader_that_does_not_say_what_its_batches_are_has_mini_batches(tiny_backbone):
    data = ShapesDataModule(way=2, shot=2, query=1, preprocessing=Preprocessing.of(tiny_backbone))
    module = FewShotClassifier(tiny_backbone, objective=Objective(relation_source="current"))
    module.set_classes(data.class_names)
    loader = DataLoader([data.support()], batch_size=None)
    with pytest.warns(UserWarning, match="has the attribute `full_batch`"):
        assert fit_and_see(module, train_dataloaders=loader)[0][:2] == (20, 20)
    loader.full_batch = True
    assert fit_and_see(module, train_dataloaders=loader)[0][:2] == (20, 4)


@pytest.mark.parametrize("term", ["visual", "negated_visual"])
def test_prototypes_of_every_class_are_refused_with_mini_batches(tiny_backbone, term):
    objective = Objective(relation_source="current", visual_term=term)
    with pytest.raises(DtrapError, match=f"visual_term is '{term}', which needs a prototype of every class"):
        fit_and_see(
            FewShotClassifier(tiny_backbone, objective=objective), datamodule=ShapesDataModule(shot=1, batch_size=5)
        )


def test_a_tuner_with_batch_norms_refuses_batches_of_one_row(tiny_backbone):
    class NeedsTwo(CLIPAdapter):
        least_rows = 2

    module = FewShotClassifier(tiny_backbone, NeedsTwo(), objective=Objective(0.0, 0.0))
    with pytest.raises(DtrapError, match=r"data\.batch_size is 1, but the tuner clip-adapter needs 2 rows or more"):
        fit_and_see(module, datamodule=ShapesDataModule(shot=1, query=1, batch_size=1))
    assert LDC.least_rows == 2


def test_relations_of_the_step_before_are_refused_with_mini_batches(tiny_backbone):
    trainer = Trainer(max_epochs=2, callbacks=[StageSwitch()], accelerator="cpu", logger=False,
                      enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)  # fmt: skip
    with pytest.raises(DtrapError, match=r"For mini-batches give --model.objective.relation_source current"):
        trainer.fit(FewShotClassifier(tiny_backbone), datamodule=ShapesDataModule(shot=1, query=1, batch_size=5))


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(DtrapError, match="batch_size is 0"):
        ShapesDataModule(batch_size=0)


def test_queries_in_views_keep_the_plain_ones_first_and_in_one_batch(tiny_backbone):
    data = ShapesDataModule(shot=1, query=3, preprocessing=Preprocessing.of(tiny_backbone))
    plain = data.query()
    module = FewShotClassifier(tiny_backbone)
    module.tuner.query_views = 5
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    with module.zero_shot():
        trainer.test(module, datamodule=data, verbose=False)
    zero_shot = module.confusion.compute().clone()
    assert data.query_views == 5
    assert torch.equal(data.query()["images"], plain["images"])
    batch = data.query_in_views()
    assert batch["view"].tolist() == [view for view in range(5) for _ in range(15)]
    trainer.test(module, datamodule=data, verbose=False)
    module.set_classes(data.class_names, data.template)
    module.eval()
    with torch.no_grad():
        probabilities = module(batch["images"]).softmax(-1).unflatten(0, (5, 15)).sum(0)
        expected_zero_shot = module(plain["images"]).argmax(-1)
    assert torch.equal(torch.cat(module.test_predictions), probabilities.argmax(-1))
    counts = torch.zeros(5, 5, dtype=torch.long)
    for label, predicted in zip(plain["labels"], expected_zero_shot, strict=True):
        counts[label, predicted] += 1
    assert torch.equal(zero_shot, counts)


def test_a_tuner_with_batches_of_its_own_refuses_others(tiny_backbone):
    module = FewShotClassifier(tiny_backbone, StepSPT())
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(DtrapError, match="batch_size is 5, but the tuner stepspt makes several optimizer steps"):
        trainer.fit(module, datamodule=ShapesDataModule(shot=1, query=1, batch_size=5))


@pytest.mark.parametrize("form", ["softmax", "cosine"])
def test_a_single_row_has_no_relations(tiny_backbone, form):
    data = ShapesDataModule(shot=1, query=1, batch_size=1)
    trainer = Trainer(
        max_epochs=1, callbacks=[StageSwitch()], accelerator="cpu", logger=False, enable_checkpointing=False
    )
    objective = Objective(relation_form=form, relation_source="current")
    with pytest.raises(DtrapError, match=r"--data.batch_size 2 or more, or --model.objective.relation_weight 0"):
        trainer.fit(FewShotClassifier(tiny_backbone, CLIPAdapter(), objective), datamodule=data)
    trainer.fit(FewShotClassifier(tiny_backbone, CLIPAdapter(), Objective(relation_weight=0)), datamodule=data)
