"""StepSPT: the authors' run repeated through Lightning, and what a step changes."""

import json

import open_clip
import pytest
import torch
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import EuroSATDataModule
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.tuners import distribution_alignment, stepspt
from dtrap.lightning_modules.tuners.base import TaskData
from dtrap.lightning_modules.tuners.stepspt import StepSPT
from layouts import make_eurosat
from lightning.pytorch import Callback, LightningDataModule, Trainer
from quiet import QUIET
from reference_files import assert_golden, golden
from safetensors.torch import save_file
from torch import Generator
from torch.utils.data import DataLoader

WAY, SHOT, QUERIES, VIEWS = 3, 2, 4, 2


def random(*shape, seed=0):
    return torch.randn(shape, generator=Generator().manual_seed(seed))


class Task(LightningDataModule):
    """One task with given images, as a data module."""

    has_query = True
    fixed_views = True

    def __init__(self, support, queries, way):
        super().__init__()
        self.given, self.queries = support, queries
        self.class_names = [f"class {number}" for number in range(way)]

    def support(self):
        return self.given

    def query_in_views(self):
        return self.queries

    def train_dataloader(self):
        return DataLoader([self.given], batch_size=None)

    def test_dataloader(self):
        return DataLoader([self.queries], batch_size=None)


def batch_of(images, shots):
    """Rows of images [V, W, K, 3, H, W]."""
    views, way = images.shape[:2]
    return {
        "images": images.flatten(0, 2),
        "labels": torch.arange(way).repeat_interleave(shots).repeat(views),
        "view": torch.arange(views).repeat_interleave(way * shots),
        "sample_id": torch.arange(way * shots).repeat(views),
    }


# The authors' run


@pytest.fixture
def authors_run(tmp_path):
    settings, arrays = golden("stepspt_w5s2")
    config, weights = tmp_path / "golden.json", tmp_path / "golden.safetensors"
    config.write_text(json.dumps(settings["open_clip_config"]))
    model = {k[6:]: v.float().contiguous() for k, v in arrays.items() if k.startswith("model.")}
    save_file(open_clip.model.CLIP(**settings["open_clip_config"]).state_dict() | model, weights)
    return settings, arrays, OpenCLIP(str(config), str(weights))


class Recorder(Callback):
    """Set the start and the permutations of the authors' run; record every epoch."""

    def __init__(self, arrays):
        self.arrays, self.epochs, self.losses = arrays, [], []

    def on_fit_start(self, trainer, pl_module):
        start = pl_module.tuner.adapter_state() | {
            f"head.{name}": self.arrays[f"start.fc.{name}"].double() for name in ("weight", "bias")
        }
        pl_module.tuner.load_adapter_state(start)
        backward = pl_module.manual_backward

        def recorded(loss):
            self.losses.append(float(loss.detach()))
            backward(loss)

        pl_module.manual_backward = recorded

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.tuner.next_permutation = self.arrays["permutations"][trainer.current_epoch].long()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        norm = pl_module.tuner.batch_norm
        values = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        gradient = torch.stack([norm.weight.grad, norm.bias.grad])
        self.epochs.append({**outputs, "bn": torch.stack(values).detach().clone(), "gradient": gradient.clone()})


def watch(monkeypatch, name):
    """Record inputs and outputs of a function that the tuner calls."""
    calls, function = [], getattr(distribution_alignment, name)

    def watched(*inputs):
        calls.append((inputs, function(*inputs)))
        return calls[-1][1]

    monkeypatch.setattr(stepspt, name, watched)
    return calls


def test_everything_of_the_authors_run_is_repeated(authors_run, monkeypatch):
    settings, arrays, backbone = authors_run
    way, shot, queries = settings["way"], settings["shot"], settings["queries"]
    monkeypatch.setattr(backbone, "tokenize", lambda prompts: torch.zeros(len(prompts), 8, dtype=torch.long))
    mean, std = (torch.tensor(settings[f"image_{k}"], dtype=torch.float64).view(3, 1, 1) for k in ("mean", "std"))
    images = (arrays["images"].double() / 255 - mean) / std
    task = Task(batch_of(images[:, :, :shot], shot), batch_of(images[:, :, shot:], queries), way)
    confident, partners = watch(monkeypatch, "confident_rows"), watch(monkeypatch, "find_partners")
    recorder, logits = Recorder(arrays), []

    class Watched(StepSPT):
        def logits(self, image_features, text_features, logit_scale):
            logits.append(super().logits(image_features, text_features, logit_scale))
            return logits[-1]

    module = FewShotClassifier(backbone, Watched(), Objective(0.0, 0.0))
    trainer = Trainer(precision="64-true", max_epochs=settings["epochs"], callbacks=[recorder], **QUIET)
    trainer.fit(module, datamodule=task)

    # Our episode batch has all support rows before the queries; the authors' is sorted by class, support first.
    rows = torch.arange(way * (shot + queries)).view(way, -1)
    ours = torch.cat([rows[:, :shot].flatten(), rows[:, shot:].flatten()])
    assert torch.equal(torch.stack([found for _, found in confident]), arrays["confident"][:, ours] == 1)
    assert torch.equal(torch.stack([ours[found] for _, found in partners]).int(), arrays["partner"][:, ours])
    bank = partners[0][0][1]
    theirs = ours.argsort()
    first_external = logits[1 + settings["steps_per_epoch"]].detach()
    assert_golden(bank[theirs], arrays["start.features"])
    assert_golden(logits[0][theirs], arrays["start.logits"])
    assert_golden(first_external[theirs], arrays["first_external.logits"])
    assert_golden(recorder.epochs[0]["gradient"], arrays["first_grad.bn"])

    losses = torch.tensor(recorder.losses, dtype=torch.float64).view(settings["epochs"], -1)
    entropies, external, information = (
        torch.tensor(settings[name], dtype=torch.float64) for name in ("ce", "external_loss", "iid_loss")
    )
    torch.testing.assert_close(losses[:, :-1], entropies, rtol=1e-8, atol=0)
    torch.testing.assert_close(losses[:, -1], external, rtol=1e-8, atol=0)
    terms = {name: torch.stack([epoch[name] for epoch in recorder.epochs]) for name in recorder.epochs[0]}
    torch.testing.assert_close(terms["L_vlm"], external, rtol=1e-8, atol=0)
    assert_golden(terms["L_iid"], information)
    assert_golden(terms["L_internal"], entropies.mean(dim=1))
    assert_golden(terms["bn"], arrays["bn_after_epoch"])
    assert_golden(module.tuner.head.weight.detach(), arrays["end.fc.weight"])
    assert_golden(module.tuner.head.bias.detach(), arrays["end.fc.bias"])

    module.eval()
    views = task.queries["images"].unflatten(0, (settings["views"], -1))
    with torch.no_grad():
        features = torch.stack([module.image_features(view) for view in views])
        query_logits = torch.stack([module(view) for view in views])
    assert_golden(features, arrays["end.query_features"])
    assert_golden(query_logits, arrays["end.query_logits"])
    assert_golden(query_logits.softmax(dim=-1).sum(dim=0), arrays["end.scores"])
    trainer.test(module, datamodule=task, verbose=False)
    assert torch.equal(torch.cat(module.test_predictions), arrays["end.scores"].argmax(dim=1))
    assert float(100 * module.confusion.compute().diag().sum() / (way * queries)) == pytest.approx(settings["accuracy"])


# The tuner


def support_and_queries():
    images = random(VIEWS, WAY, SHOT + QUERIES, 3, 32, 32) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    return batch_of(images[:, :, :SHOT], SHOT), batch_of(images[:, :, SHOT:], QUERIES)


def fitted(backbone, *, support=None, queries=None, epochs=2, precision="64-true", objective=None, **settings):
    """Train; return the module and the terms of every step."""
    given = support_and_queries()
    task = Task(support or given[0], queries or given[1], WAY)
    steps = []

    class Watched(FewShotClassifier):
        def training_step(self, batch, batch_idx):
            steps.append(super().training_step(batch, batch_idx))
            return steps[-1]

    module = Watched(backbone, StepSPT(), objective or Objective(0.0, 0.0), start_seed=3, **settings)
    trainer = Trainer(max_epochs=epochs, precision=precision, callbacks=[StageSwitch()], **QUIET)
    trainer.fit(module, datamodule=task)
    return module.eval(), steps


def state_of(module):
    return {name: value.detach().clone() for name, value in module.tuner.adapter_state().items()}


def assert_same(first, second, **tolerance):
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], **tolerance)


def test_the_order_of_the_queries_does_not_matter_nor_do_their_labels(tiny_backbone):
    _, queries = support_and_queries()
    order = torch.randperm(WAY * QUERIES, generator=Generator().manual_seed(1))
    shuffled = {name: column.unflatten(0, (VIEWS, -1))[:, order].flatten(0, 1) for name, column in queries.items()}
    shuffled["labels"] = torch.zeros_like(shuffled["labels"])
    expected = state_of(fitted(tiny_backbone)[0])
    assert_same(state_of(fitted(tiny_backbone, queries=shuffled)[0]), expected, rtol=0, atol=1e-10)


def test_only_the_last_view_of_the_queries_takes_part(tiny_backbone):
    _, queries = support_and_queries()
    expected = state_of(fitted(tiny_backbone)[0])
    changed = queries["images"].clone()
    changed[: WAY * QUERIES] = 0
    assert_same(state_of(fitted(tiny_backbone, queries=queries | {"images": changed})[0]), expected, rtol=0, atol=0)
    changed[WAY * QUERIES] = 0
    other = state_of(fitted(tiny_backbone, queries=queries | {"images": changed})[0])
    assert not torch.allclose(other["batch_norm.weight"], expected["batch_norm.weight"], rtol=0, atol=1e-8)


def test_rows_without_views_take_part_as_they_are(tiny_backbone):
    support, queries = support_and_queries()
    one = {name: column[: WAY * SHOT] for name, column in support.items()}
    one_query = {name: column[: WAY * QUERIES] for name, column in queries.items()}
    expected = state_of(fitted(tiny_backbone, support=one, queries=one_query)[0])
    bare = {name: one[name] for name in ("images", "labels")}
    bare_query = {name: one_query[name] for name in ("images", "labels")}
    assert_same(state_of(fitted(tiny_backbone, support=bare, queries=bare_query)[0]), expected, rtol=0, atol=0)


@pytest.mark.parametrize("chunk", [1, 7])
def test_chunks_change_nothing(tiny_backbone, chunk):
    expected = state_of(fitted(tiny_backbone)[0])
    got = state_of(fitted(tiny_backbone, image_chunk=chunk)[0])
    assert_same(got, expected, rtol=0, atol=1e-12)


def test_a_run_depends_on_its_seed_alone(tiny_backbone):
    first = state_of(fitted(tiny_backbone)[0])
    torch.manual_seed(17)
    assert_same(state_of(fitted(tiny_backbone)[0]), first, rtol=0, atol=0)
    tuner = StepSPT()
    tuner.attach(tiny_backbone)
    starts = []
    for seed in (1, 1, 2):
        tuner.reset(seed, 4)
        starts.append({name: value.detach().clone() for name, value in tuner.adapter_state().items()})
    assert starts[0]["head.weight"].abs().max() <= 1 / 4
    assert starts[0]["head.weight"].std() == pytest.approx(1 / 4 / 3**0.5, rel=0.2)
    assert torch.equal(starts[0]["head.weight"], starts[1]["head.weight"])
    assert not torch.equal(starts[0]["head.weight"], starts[2]["head.weight"])
    assert not torch.equal(starts[0]["head.bias"], starts[2]["head.bias"])


def test_a_second_task_of_other_classes_starts_from_scratch(tiny_backbone):
    module, _ = fitted(tiny_backbone)
    module.set_classes(["a", "b", "c", "d"])
    module.start_task(0)
    state = module.tuner.adapter_state()
    assert state["head.weight"].shape == (4, 16)
    assert torch.equal(state["batch_norm.running_mean"], torch.zeros_like(state["batch_norm.running_mean"]))
    assert torch.equal(state["batch_norm.weight"], torch.ones_like(state["batch_norm.weight"]))


def test_gradients_reach_the_style_prompt_and_the_head_and_nothing_frozen(tiny_backbone):
    module, _ = fitted(tiny_backbone)
    trained = module.tuner.trained_parameters()
    assert [tuple(parameter.shape) for parameter in trained] == [(3,), (3,), (3, 16), (3,)]
    assert all(parameter.grad.abs().sum() > 0 for parameter in trained)
    ids = {id(parameter) for parameter in trained}
    assert all(p.grad is None and not p.requires_grad for p in module.parameters() if id(p) not in ids)


def test_zero_shot_is_the_plain_tower(tiny_backbone, tiny_clip_files):
    images = random(4, 3, 32, 32)
    module = fitted(tiny_backbone, precision="32-true")[0]
    expected = OpenCLIP(*map(str, tiny_clip_files)).encode_image(images)
    assert not torch.allclose(module.image_features(images), expected, atol=1e-3)
    with module.zero_shot():
        assert torch.equal(module.image_features(images), expected)
    with module.tuner.disabled():
        assert torch.equal(module.tuner.image_features(tiny_backbone, images), expected)
    assert torch.equal(tiny_backbone.encode_image(images), expected)


def test_saved_and_loaded_is_the_same_bit_for_bit(tiny_backbone, tiny_clip_files):
    module, _ = fitted(tiny_backbone, precision="32-true")
    images = random(4, 3, 32, 32)
    other = FewShotClassifier(OpenCLIP(*map(str, tiny_clip_files)), StepSPT())
    other.set_classes(module.class_prompts.class_names)
    other.tuner.load_adapter_state(state_of(module))
    assert torch.equal(other(images), module(images))
    assert other(images).shape == (4, WAY)


def test_suppression_acts_on_the_style_prompt(tiny_backbone):
    plain, _ = fitted(tiny_backbone, epochs=5)
    module, steps = fitted(tiny_backbone, epochs=5, objective=Objective())
    names = [set(step) - {"loss", "total", "L_iid", "L_internal"} for step in steps]
    assert names == [{"L_vlm", "L_ad"}] + 2 * [{"L_vlm", "L_ad", "L_ra"}] + 2 * [{"L_vlm"}]
    for step in steps:
        expected = step["L_vlm"] + 0.1 * step.get("L_ad", 0) + 3.0 * step.get("L_ra", 0)
        torch.testing.assert_close(step["total"], expected)
    got, without = state_of(module), state_of(plain)
    assert not torch.allclose(got["batch_norm.weight"], without["batch_norm.weight"], rtol=0, atol=1e-6)


def test_under_autocast_the_losses_are_float32(tiny_backbone):
    _, steps = fitted(tiny_backbone, precision="bf16-mixed", objective=Objective(), epochs=4)
    assert all(value.dtype == torch.float32 and value.isfinite() for step in steps for value in step.values())
    exact = fitted(tiny_backbone, precision="32-true", epochs=1)[1][0]
    for name in ("L_vlm", "L_internal"):
        torch.testing.assert_close(steps[0][name], exact[name], rtol=0.05, atol=0)


def test_it_runs_on_a_data_module_of_the_package(tiny_backbone, tmp_path):
    data = EuroSATDataModule(make_eurosat(tmp_path / "eurosat", per_class=4), shot=1, query=2)
    module = FewShotClassifier(tiny_backbone, StepSPT())
    trainer = Trainer(max_epochs=2, callbacks=[StageSwitch()], **QUIET)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    assert int(module.confusion.compute().sum()) == 10
    assert len(data.query_in_views()["images"]) == 5 * 10


def test_a_task_without_fitting_queries_is_refused(tiny_backbone):
    tuner = StepSPT()
    tuner.attach(tiny_backbone)
    support, _ = support_and_queries()
    task = {"labels": support["labels"], "text_features": random(WAY, 16), "view": support["view"]}
    with pytest.raises(DtrapError, match="has no query images"):
        tuner.prepare_task(TaskData(**task))
    with pytest.raises(DtrapError, match="has 5 query images; expected 2 views"):
        tuner.prepare_task(TaskData(**task, query_images=random(5, 3, 32, 32)))


def test_a_head_of_other_classes_is_made_when_loaded_and_one_of_another_width_refused(tiny_backbone):
    tuner = StepSPT()
    tuner.attach(tiny_backbone)
    tuner.reset(0, 3)
    seven = tuner.adapter_state() | {"head.weight": random(7, 16), "head.bias": random(7)}
    tuner.load_adapter_state(seven)
    assert torch.equal(tuner.head.weight, seven["head.weight"])
    with pytest.raises(DtrapError, match=r"head.weight is \[7, 8\], expected \[7, 16\]"):
        tuner.load_adapter_state(seven | {"head.weight": random(7, 8)})
