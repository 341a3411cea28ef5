"""Class weights in the loss of every tuner, balanced mini-batches, and the warning of imbalanced classes."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from dtrap.datamodules import FolderDataModule, Preprocessing
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.class_balance import class_weights
from dtrap.lightning_modules.tuners import LoRA, TipAdapterF
from layouts import make_folder
from lightning.pytorch import Trainer
from small_backbones import SMALL
from small_tuners import TUNERS

COUNTS = (12, 4, 2)


def test_balanced_weights():
    assert class_weights([12, 4, 2], "balanced").tolist() == pytest.approx([18 / 36, 18 / 12, 18 / 6])
    assert class_weights([5, 5], "balanced").tolist() == [1.0, 1.0]
    assert class_weights([6, 0, 2], "balanced").tolist() == pytest.approx([8 / 12, 0.0, 8 / 4])


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.999])
def test_weights_by_the_effective_number(beta):
    found = class_weights(COUNTS, beta).tolist()
    effective = [sum(beta**power for power in range(count)) for count in COUNTS]  # 1 + beta + beta^2 + ...
    assert [weight * number / found[0] for weight, number in zip(found, effective, strict=True)] == pytest.approx(
        [effective[0]] * 3
    )
    assert sum(weight * count for weight, count in zip(found, COUNTS, strict=True)) == pytest.approx(18)
    assert found[0] < found[1] < found[2]


def test_the_ends_of_the_effective_number():
    assert class_weights(COUNTS, 1e-9).tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert class_weights(COUNTS, 1 - 1e-9).tolist() == pytest.approx(
        class_weights(COUNTS, "balanced").tolist(), rel=1e-5
    )


@pytest.fixture(scope="module")
def backbone_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("backbone")


@pytest.fixture
def photos(tmp_path):
    return make_folder(tmp_path / "photos", counts=COUNTS)


def fitted(backbone, root, tuner, weights, **options):
    data = FolderDataModule(root, views=1, preprocessing=Preprocessing.of(backbone), held_out=0.2, **options)
    module = FewShotClassifier(backbone, tuner, class_weights=weights)
    trainer = Trainer(
        max_steps=-1, max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return data


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in TUNERS if name != "Tip-Adapter"])
def test_every_tuner_weighs_its_cross_entropy(name, backbone_folder, photos, monkeypatch):
    seen = []
    plain = torch.nn.functional.cross_entropy

    def record(logits, labels, weight=None, **others):
        loss = plain(logits, labels, weight=weight, **others)
        seen.append((logits.detach().double(), labels, weight, float(loss)))
        return loss

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", record)
    tuner = TUNERS[name]()
    data = fitted(SMALL["open_clip CLIP ViT"](backbone_folder), photos, tuner, "balanced")
    counts = [len(positions) for positions in data.task.support]
    expected = [sum(counts) / (3 * count) for count in counts]
    assert tuner.class_weights.tolist() == pytest.approx(expected)
    weighed = [call for call in seen if call[2] is not None]
    assert weighed
    for logits, labels, weight, loss in weighed:
        rows = [
            expected[label] * -math.log(row[label])
            for row, label in zip(logits.softmax(1).tolist(), labels, strict=True)
        ]
        assert weight.tolist() == pytest.approx(expected)
        assert loss == pytest.approx(sum(rows) / sum(expected[label] for label in labels), rel=1e-4)


def test_lpp_steps_are_those_of_the_weighed_loss():
    from dtrap.lightning_modules.tuners import LPPlusPlus
    from dtrap.lightning_modules.tuners.base import TaskData

    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(9, 4, generator=generator), dim=1)
    texts = torch.nn.functional.normalize(torch.randn(2, 4, generator=generator), dim=1)
    labels = torch.tensor([0] * 7 + [1] * 2)

    def steps(weights, rows):
        tuner = LPPlusPlus()
        tuner.weight, tuner.bias, tuner.alpha = (torch.nn.Parameter(torch.zeros(n)) for n in ((2, 4), 2, 2))
        tuner.class_weights = weights
        tuner.prepare_task(TaskData(labels[rows], texts, encoded=features[rows]))
        return [float(tuner.weight_step), float(tuner.alpha_step)]

    every = list(range(9))
    assert steps(torch.ones(2), every) == pytest.approx(steps(None, every))
    # A weight of 3 is as three copies of the row: of 7 and 2 images to 7 and 6, with a mean weight of 1.
    copies = [*range(7), *[7, 8] * 3]
    scale = 9 / 13
    assert steps(torch.tensor([1.0, 3.0]) * scale, every) == pytest.approx(steps(None, copies), rel=1e-5)


def test_the_options_are_checked(backbone_folder, photos):
    backbone = SMALL["open_clip CLIP ViT"](backbone_folder)
    for value in ("equal", 0, 1.0, -0.5, True):
        with pytest.raises(DtrapError, match=r"expected 'balanced', or a number between 0 and 1 such as 0\.99"):
            FewShotClassifier(backbone, TipAdapterF(), class_weights=value)

    class OwnLoss(LoRA):
        def classification_loss(self, image_features, text_features, labels, logit_scale):
            return super().classification_loss(image_features, text_features, labels, logit_scale).square()

    with pytest.raises(DtrapError, match=r"loss of its own without class weights.*weighs_classes = True"):
        FewShotClassifier(backbone, OwnLoss(), class_weights="balanced")
    with pytest.raises(DtrapError, match=r"balanced_batches is for mini-batches.*--data\.batch_size 32"):
        FolderDataModule(photos, balanced_batches=True)


def test_balanced_batches_have_all_classes_alike(photos):
    data = FolderDataModule(
        photos, views=1, batch_size=6, balanced_batches=True, preprocessing=Preprocessing(image_size=16)
    )
    loader, counts = data.train_dataloader(), np.zeros(3)
    for epoch in range(120):
        loader.set_epoch(epoch)
        batches = [batch["labels"] for batch in loader]
        assert [len(batch) for batch in batches] == [6, 6, 6]
        counts += torch.cat(batches).bincount(minlength=3).numpy()
    share = counts / counts.sum()  # 2,160 draws: four standard errors are 0.04
    assert np.abs(share - 1 / 3).max() < 0.04
    loader.set_epoch(5)
    first = [batch["sample_id"].tolist() for batch in loader]
    loader.set_epoch(5)
    assert [batch["sample_id"].tolist() for batch in loader] == first
    plain = FolderDataModule(photos, views=1, batch_size=6, preprocessing=Preprocessing(image_size=16))
    assert sorted(i for batch in plain.train_dataloader() for i in batch["sample_id"].tolist()) == list(range(18))


def test_rows_and_identity_say_the_weights_and_a_run_without_them_warns(dtrap, tmp_path, tiny_model):
    root = make_folder(tmp_path / "photos", counts=COUNTS)
    words = ["--config", "folder.yaml", "--config", "tuners/linear_head.yaml", "--data.root", root, *tiny_model]
    words += ["--trainer.max_epochs", 1, "--data.views", 1, "--protocol.folder", "run"]
    with pytest.warns(UserWarning, match=r"'cls_00' has 12 training images, 'cls_02' 2\..*--model\.class_weights bal"):
        status, _, err = dtrap("fit", *words)
    assert status == 0, err
    assert "class_weights" not in (tmp_path / "run" / "results.jsonl").read_text()
    status, _, err = dtrap("fit", *words, "--model.class_weights", "0.9")
    assert status == 2
    assert "model.class_weights" in err
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="strongly imbalanced")
        status, _, err = dtrap("fit", *words, "--model.class_weights", "0.9", "--protocol.overwrite", "true")
    assert status == 0, err
    row = json.loads((tmp_path / "run" / "results.jsonl").read_text())
    assert list(row["class_weights"].values()) == pytest.approx(class_weights(COUNTS, 0.9).tolist())
    batches = [
        "--data.batch_size",
        6,
        "--data.balanced_batches",
        "true",
        "--model.objective.relation_source",
        "current",
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="strongly imbalanced")
        status, _, err = dtrap("fit", *words, *batches, "--protocol.overwrite", "true")
    assert status == 0, err
    assert json.loads((tmp_path / "run" / "results.jsonl").read_text())["balanced_batches"] is True
