"""The module in plain Lightning, and with tuners and loaders of strangers."""

import pytest
import torch
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import EuroSATDataModule
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.losses import anti_visual_loss, cosines, cross_modal_loss
from dtrap.lightning_modules.tuners import LoRA, Tuner
from layouts import make_eurosat
from lightning.pytorch import Callback, LightningModule, Trainer
from quiet import QUIET
from torch.utils.data import DataLoader, IterableDataset


@pytest.fixture
def data(tmp_path):
    return EuroSATDataModule(make_eurosat(tmp_path / "eurosat", per_class=4), shot=2, query=2)


def adapter(module):
    return {k: v.detach().clone() for k, v in module.tuner.adapter_state().items()}


def test_one_episode_trains_and_tests_in_a_plain_script(tiny_backbone, data):
    module = FewShotClassifier(tiny_backbone)
    trainer = Trainer(max_epochs=3, callbacks=[StageSwitch()], **QUIET)
    trainer.fit(module, datamodule=data)
    (result,) = trainer.test(module, datamodule=data, verbose=False)
    assert trainer.global_step == 6
    assert 0 <= result["test/accuracy"] <= 100
    assert int(module.confusion.compute().sum()) == 10
    assert module.prompts.prompts[0] == f"a photo of a {data.class_names[0]}."


def test_each_fit_starts_anew_from_the_episode_whatever_was_trained_before(tiny_backbone, data):
    module = FewShotClassifier(tiny_backbone, LoRA(dropout=0.0))

    def fit(episode):
        data.set_episode(episode)
        Trainer(max_epochs=2, callbacks=[StageSwitch()], **QUIET).fit(module, datamodule=data)
        return adapter(module)

    first, other, again = fit(0), fit(1), fit(0)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_one_start_for_all_episodes_on_request(tiny_backbone, data):
    module = FewShotClassifier(tiny_backbone, start_seed=5)
    starts = []
    for seed in (1, 2):
        module.set_classes(["a", "b"])
        module.start_task(seed)
        starts.append(adapter(module))
    assert all(torch.equal(starts[0][k], starts[1][k]) for k in starts[0])


def test_stage_switch_switches_the_terms_of_the_training_steps(tiny_backbone, data):
    terms = []

    class Watched(FewShotClassifier):
        def training_step(self, batch, batch_idx):
            outputs = super().training_step(batch, batch_idx)
            terms.append(set(outputs) - {"loss", "total"})
            return outputs

    Trainer(max_epochs=5, callbacks=[StageSwitch()], **QUIET).fit(Watched(tiny_backbone), datamodule=data)
    assert terms[0] == {"L_vlm", "L_ad"}
    assert terms[1:6] == [{"L_vlm", "L_ad", "L_ra"}] * 5
    assert terms[6:] == [{"L_vlm"}] * 4


def test_plain_views_encoded_again_have_another_dropout_mask(tiny_backbone, data):
    calls = []
    module = FewShotClassifier(tiny_backbone, LoRA(dropout=0.5), plain_views="encode")
    original = module.image_features
    module.image_features = lambda images, ids=None: calls.append(len(images)) or original(images, ids)
    Trainer(max_epochs=5, callbacks=[StageSwitch()], **QUIET).fit(module, datamodule=data)
    assert calls == [50, 10] * 6 + [50] * 4


@pytest.mark.parametrize("plain_views", ["reuse", "encode"])
def test_with_a_frozen_image_tower_each_image_is_encoded_once_per_episode(
    tiny_backbone, data, monkeypatch, plain_views
):
    encoded = []
    original = OpenCLIP.encode_image
    monkeypatch.setattr(OpenCLIP, "encode_image", lambda self, x: encoded.append(len(x)) or original(self, x))
    module = FewShotClassifier(tiny_backbone, LoRA("text", dropout=0.0), plain_views=plain_views)
    trainer = Trainer(max_epochs=5, callbacks=[StageSwitch()], **QUIET)
    with pytest.warns(UserWarning, match="L_ad is constant"):
        trainer.fit(module, datamodule=data)
    assert encoded == [50]
    once = adapter(module)
    data.fixed_views = False
    trainer = Trainer(max_epochs=5, callbacks=[StageSwitch()], **QUIET)
    trainer.fit(module, datamodule=data)
    assert encoded == [50] * 11
    for key, value in adapter(module).items():
        torch.testing.assert_close(value, once[key])


def test_a_frozen_text_tower_leaves_the_adapters_of_the_other_switched_on(tiny_backbone):
    module = FewShotClassifier(tiny_backbone)
    module.set_classes(["cat", "dog"])
    module.tuner.disabled = None
    assert module.text_features().shape == (2, 16)


def test_the_rows_of_the_same_batch_are_looked_up_once(tiny_backbone, data, monkeypatch):
    """To look at values of a batch waits for the device, and the full batch is the same in every step."""
    looked, original = [], torch.Tensor.nonzero
    monkeypatch.setattr(torch.Tensor, "nonzero", lambda self: looked.append(1) or original(self))
    module = FewShotClassifier(tiny_backbone)
    for episode in range(2):
        data.set_episode(episode)
        Trainer(max_epochs=5, callbacks=[StageSwitch()], **QUIET).fit(module, datamodule=data)
    assert len(looked) == 2


def test_text_only_tuning_takes_the_small_lambda(tiny_backbone):
    assert FewShotClassifier(tiny_backbone, LoRA("text")).objective.effective_anti_visual_weight == 0.001


def test_several_templates_are_averaged(tiny_backbone):
    module = FewShotClassifier(tiny_backbone, template=["a photo of a {}.", "{} texture."])
    module.set_classes(["sea_lake", "river"], "ignored {}")
    assert module.prompts.prompts == (
        "a photo of a sea lake.", "sea lake texture.", "a photo of a river.", "river texture."
    )  # fmt: skip
    each = torch.nn.functional.normalize(tiny_backbone.encode_text(module.prompts.tokens), dim=1)
    expected = torch.stack([each[:2].mean(0), each[2:].mean(0)])
    torch.testing.assert_close(module.text_features(), expected)


def test_logits_are_the_scaled_cosines(tiny_backbone):
    module = FewShotClassifier(tiny_backbone, objective=Objective(logit_scale=7.0))
    module.set_classes(["cat", "dog", "cow"])
    images = torch.randn(2, 3, 32, 32)
    expected = 7.0 * cosines(tiny_backbone.encode_image(images), module.text_features())
    torch.testing.assert_close(module(images), expected)
    probabilities = torch.cat(Trainer(**QUIET).predict(module, DataLoader([{"images": images}], batch_size=None)))
    torch.testing.assert_close(probabilities, expected.softmax(1))


@pytest.mark.parametrize(
    ("prepare", "told"),
    [
        (lambda m: m.set_classes([]), "no class names"),
        (lambda m: m.set_classes(["a", "b", "a"]), "duplicate class name 'a'"),
        (lambda m: m.set_classes(["a"], "a photo"), "contain {}"),
        (lambda m: m.set_classes(["a " * 40, "b"]), "tokens"),
        (lambda m: m(torch.zeros(1, 3, 32, 32)), "set_classes"),
    ],
)
def test_wrong_classes_are_named(tiny_backbone, prepare, told):
    with pytest.raises(DtrapError, match=told):
        prepare(FewShotClassifier(tiny_backbone))


def test_a_loader_without_class_names_is_told_what_to_do(tiny_backbone):
    batch = {"images": torch.zeros(2, 3, 32, 32), "labels": torch.tensor([0, 1])}
    loader = DataLoader([batch], batch_size=None)
    with pytest.raises(DtrapError, match=r"module\.set_classes"):
        Trainer(max_epochs=1, **QUIET).fit(FewShotClassifier(tiny_backbone), loader)


def test_mini_batches_of_a_stranger_take_the_relations_of_the_current_step(tiny_backbone):
    """A plain loader without `view`: s = f of the batch; relations of the previous step are refused."""
    batches = [{"images": torch.randn(n, 3, 32, 32), "labels": torch.arange(n) % 2} for n in (4, 4, 2)]
    loader = DataLoader(batches, batch_size=None)

    def fit(source):
        module = FewShotClassifier(tiny_backbone, LoRA(), Objective(relation_source=source))
        module.set_classes(["cat", "dog"])
        Trainer(max_epochs=2, callbacks=[StageSwitch(stop=1)], **QUIET).fit(module, loader)

    fit("current")


@pytest.mark.parametrize(
    "columns",
    [
        [{}, {"labels": torch.tensor([1, 0, 0, 1])}],
        [{"sample_id": torch.arange(4)}, {"sample_id": torch.arange(4, 8)}],
        [
            {"view": torch.zeros(4).long(), "sample_id": torch.arange(4)},
            {"view": torch.zeros(4).long(), "sample_id": torch.arange(4, 8)},
        ],
    ],
    ids=["labels alone", "ids", "ids and views"],
)
def test_previous_relations_on_changing_batches_are_refused(tiny_backbone, columns):
    batches = [{"images": torch.randn(4, 3, 32, 32), "labels": torch.arange(4) % 2, **own} for own in columns]
    module = FewShotClassifier(tiny_backbone)
    module.set_classes(["cat", "dog"])
    trainer = Trainer(max_epochs=2, callbacks=[StageSwitch()], **QUIET)
    with pytest.raises(DtrapError, match="relation_source"):
        trainer.fit(module, DataLoader(batches, batch_size=None))


def test_a_batch_without_plain_rows_takes_the_relations_to_all_rows(tiny_backbone):
    batch = {"images": torch.randn(4, 3, 32, 32), "labels": torch.arange(4) % 2, "view": torch.tensor([1, 2, 1, 2])}
    module = FewShotClassifier(tiny_backbone, objective=Objective(relation_source="current"))
    module.set_classes(["cat", "dog"])
    trainer = Trainer(max_epochs=5, callbacks=[StageSwitch()], **QUIET)
    trainer.fit(module, DataLoader([batch], batch_size=None))
    assert all(torch.isfinite(value).all() for value in adapter(module).values())


def test_a_fit_without_stage_switch_does_not_go_on_in_the_stage_of_the_fit_before(tiny_backbone, data):
    module = FewShotClassifier(tiny_backbone)
    Trainer(max_epochs=1, callbacks=[StageSwitch(stop=1)], **QUIET).fit(module, datamodule=data)
    assert module.objective.progress is not None
    with pytest.warns(UserWarning, match="L_ad and L_ra are off"):
        Trainer(max_epochs=1, **QUIET).fit(module, datamodule=data)
    assert module.objective.progress is None


class Endless(IterableDataset):
    def __iter__(self):
        return iter([{"images": torch.randn(2, 3, 32, 32), "labels": torch.tensor([0, 1])}])


def test_a_run_of_unknown_length_is_told_what_to_set(tiny_backbone):
    module = FewShotClassifier(tiny_backbone)
    module.set_classes(["cat", "dog"])
    with pytest.raises(DtrapError, match="max_steps"):
        Trainer(max_epochs=2, **QUIET).fit(module, DataLoader(Endless(), batch_size=None))


def test_an_unknown_way_of_plain_views_is_named(tiny_backbone):
    with pytest.raises(DtrapError, match="plain_views"):
        FewShotClassifier(tiny_backbone, plain_views="again")


class LinearHead(Tuner):
    """A stranger's tuner: a linear head on frozen features that starts at the class means."""

    name = "linear-head"
    learning_rate = 0.1
    needs_task = True

    @property
    def trains(self):
        return frozenset()

    def attach(self, backbone):
        self.width = backbone.feature_dim

    def reset(self, seed, num_classes):
        self.head = torch.nn.Linear(self.width, num_classes)
        self.prepared = 0

    def prepare_task(self, task):
        self.prepared += 1
        for c in range(len(task.text_features)):
            self.head.weight[c] = task.encoded[task.labels == c].mean(0)

    def adapter_state(self):
        return dict(self.head.named_parameters()) if hasattr(self, "head") else {}

    def logits(self, image_features, text_features, logit_scale):
        return self.head(image_features)


def test_a_tuner_whose_logits_are_no_cosine_works_through_the_same_module(tiny_backbone, data):
    module = FewShotClassifier(tiny_backbone, LinearHead(), Objective(0.1, 0.0))
    trainer = Trainer(max_epochs=3, callbacks=[StageSwitch()], **QUIET)
    with pytest.warns(UserWarning, match="L_ad is constant"):
        trainer.fit(module, datamodule=data)
    assert module.tuner.prepared == 1
    support = data.support()
    with torch.no_grad():
        features = tiny_backbone.encode_image(support["images"])
    torch.testing.assert_close(module(support["images"]), module.tuner.head(features))
    with module.zero_shot():
        expected = 100 * cosines(features, module.text_features())
        torch.testing.assert_close(module(support["images"]), expected, rtol=1e-4, atol=1e-3)
    trainer.test(module, datamodule=data, verbose=False)


def test_checkpoints_leave_the_frozen_backbone_out_and_load_again(tiny_backbone, data, tmp_path):
    module = FewShotClassifier(tiny_backbone)
    trainer = Trainer(max_epochs=2, callbacks=[StageSwitch()], **QUIET)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    trained = adapter(module)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert sum(v.numel() for v in saved.values()) == sum(v.numel() for v in trained.values())
    module.start_task(7)
    module.load_state_dict(saved, strict=False)
    assert all(torch.equal(trained[k], v) for k, v in adapter(module).items())


def test_a_resumed_fit_ends_like_an_uninterrupted_one(tiny_backbone, data, tmp_path):
    module = FewShotClassifier(tiny_backbone, LoRA(dropout=0.0), Objective(0.0, relation_source="current"))

    def trainer(epochs):
        return Trainer(max_epochs=epochs, callbacks=[StageSwitch()], **QUIET)

    class Stopped(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    whole = trainer(5)
    whole.callbacks.append(Stopped())
    whole.fit(module, datamodule=data)
    expected = adapter(module)
    trainer(5).fit(module, datamodule=data, ckpt_path=tmp_path / "middle.ckpt", weights_only=True)
    assert all(torch.equal(expected[k], v) for k, v in adapter(module).items())


def test_a_checkpoint_of_another_tuner_is_refused(tiny_backbone, tiny_clip_files, data, tmp_path):
    trainer = Trainer(max_epochs=1, callbacks=[StageSwitch()], **QUIET)
    trainer.fit(FewShotClassifier(tiny_backbone), datamodule=data)
    trainer.save_checkpoint(tmp_path / "vision.ckpt")
    settings = {"map_location": "cpu", "weights_only": True}
    backbone = OpenCLIP(*map(str, tiny_clip_files))
    with pytest.raises(DtrapError, match="does not fit the tuner lora"):
        FewShotClassifier.load_from_checkpoint(
            tmp_path / "vision.ckpt", backbone=backbone, tuner=LoRA("text"), **settings
        )
    backbone = OpenCLIP(*map(str, tiny_clip_files))
    loaded = FewShotClassifier.load_from_checkpoint(tmp_path / "vision.ckpt", backbone=backbone, **settings)
    assert all(torch.equal(v, adapter(loaded)[k]) for k, v in adapter(trainer.lightning_module).items())


class Cache(LinearHead):
    """Keeps class means that are no parameters, as Tip-Adapter keeps its keys."""

    def reset(self, seed, num_classes):
        super().reset(seed, num_classes)
        self.register_buffer("means", torch.zeros(num_classes, self.width))

    def adapter_state(self):
        return {**super().adapter_state(), **({"means": self.means} if hasattr(self, "means") else {})}


def test_checkpoints_hold_all_that_a_tuner_saves(tiny_backbone, data, tmp_path):
    trainer = Trainer(max_epochs=1, **QUIET)
    trainer.fit(FewShotClassifier(tiny_backbone, Cache(), Objective(0, 0)), datamodule=data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert saved.keys() == {"tuner.head.weight", "tuner.head.bias", "tuner.means"}


class Foreign(LightningModule):
    """A stranger's module that uses only the losses, StageSwitch and a data module of dtrap."""

    class Stage:
        progress = None

        def set_stage(self, progress):
            self.progress = progress

    def __init__(self):
        super().__init__()
        self.objective = self.Stage()
        self.image = torch.nn.Linear(3 * 16 * 16, 8)
        self.text = torch.nn.Embedding(5, 8)
        self.stages = []

    def training_step(self, batch, batch_idx):
        features, labels = self.image(batch["images"].flatten(1)), batch["labels"]
        loss = cross_modal_loss(features, self.text.weight, labels)
        self.stages.append(self.objective.progress)
        if self.objective.progress is not None:
            loss = loss + 0.1 * anti_visual_loss(features, labels, num_classes=5)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_the_pieces_plug_into_a_foreign_lightning_project(tmp_path):
    from dtrap.datamodules import Preprocessing

    root = make_eurosat(tmp_path / "eurosat", per_class=2)
    data = EuroSATDataModule(root, shot=1, query=1, preprocessing=Preprocessing(image_size=16))
    module = Foreign()
    Trainer(max_epochs=5, callbacks=[StageSwitch()], **QUIET).fit(module, datamodule=data)
    assert [stage is not None for stage in module.stages] == [True] * 3 + [False] * 2


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precision_is_lightnings(tiny_backbone, data, precision):
    module = FewShotClassifier(tiny_backbone)
    trainer = Trainer(max_epochs=2, precision=precision, callbacks=[StageSwitch()], **QUIET)
    trainer.fit(module, datamodule=data)
    assert all(torch.isfinite(v).all() for v in adapter(module).values())
    trainer.test(module, datamodule=data, verbose=False)
