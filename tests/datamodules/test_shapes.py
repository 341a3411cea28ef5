import math
from pathlib import Path

import dtrap
import numpy as np
import open_clip
import pytest
import torch
from dtrap.datamodules.shape_images import COLORS, DOMAINS, SHAPES, render
from dtrap.datamodules.shapes import ShapesDataModule
from dtrap.errors import DtrapError
from lightning.pytorch import LightningModule, Trainer
from safetensors import safe_open

ASSETS = Path(dtrap.__file__).parent / "assets"
CONFIG, WEIGHTS = ASSETS / "tiny_clip.json", ASSETS / "tiny_clip.safetensors"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tiny_clip():
    open_clip.add_model_config(CONFIG)
    model, _, preprocess = open_clip.create_model_and_transforms("tiny_clip", pretrained=str(WEIGHTS))
    return model.eval(), preprocess


def five_way_zero_shot(tiny_clip, domain, per_class=6):
    """Mean accuracy over all tasks of five classes: k of 29 wrong classes above the true one."""
    model, preprocess = tiny_clip
    data = ShapesDataModule(domain, images_per_class=per_class, shot=1, query=0)
    images = torch.stack([preprocess(data.load_image(i)) for i in range(len(data.index.paths))])
    tokens = open_clip.SimpleTokenizer()([data.template.format(s) for s in SHAPES], context_length=16)
    with torch.no_grad():
        similarity = model.encode_image(images, normalize=True) @ model.encode_text(tokens, normalize=True).T
    labels = torch.tensor(data.index.labels)[:, None]
    above = (similarity > similarity.gather(1, labels)).sum(1).tolist()
    return sum(math.comb(29 - k, 4) for k in above) / math.comb(29, 4) / len(above)


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_domain_draws_every_class(domain):
    images = render(torch.arange(len(SHAPES)), domain, generator())
    assert images.shape == (30, 3, 48, 48)
    assert images.dtype == torch.uint8
    assert (images.float().flatten(1).std(1) > 4).all()
    assert images.flatten(1).unique(dim=0).shape[0] == 30


@pytest.mark.parametrize("domain", DOMAINS)
def test_same_generator_same_image(domain):
    labels = torch.tensor([3, 17])
    first = render(labels, domain, generator(5))
    assert torch.equal(first, render(labels, domain, generator(5)))
    assert not torch.equal(first, render(labels, domain, generator(6)))


@pytest.mark.parametrize("domain", DOMAINS)
def test_classes_differ_in_the_same_pose(domain):
    images = [render(torch.tensor([label]), domain, generator(1)) for label in range(len(SHAPES))]
    for i, image in enumerate(images):
        for other in images[:i]:
            assert (image.int() - other.int()).abs().max() > 15


def test_only_the_source_domain_is_coloured_on_demand():
    labels = torch.zeros(1, dtype=torch.int64)
    red, blue = (
        render(labels, "source", generator(2), torch.tensor([list(COLORS).index(colour)]))[0].float()
        for colour in ("red", "blue")
    )
    centre = (slice(None), slice(18, 30), slice(18, 30))
    assert (red[centre][0] - red[centre][2]).mean() > 80
    assert (blue[centre][2] - blue[centre][0]).mean() > 80
    x_rays = render(torch.arange(30), "xray", generator())
    assert torch.equal(x_rays[:, 0], x_rays[:, 2])


def test_unknown_domain_names_the_nearest():
    with pytest.raises(DtrapError, match="Did you mean 'satellite'"):
        render(torch.tensor([0]), "satelite")
    with pytest.raises(DtrapError, match="Did you mean 'xray'"):
        ShapesDataModule("x-ray")


def test_image_depends_on_domain_class_and_number_only():
    few, many = ShapesDataModule(images_per_class=20), ShapesDataModule(images_per_class=50, seed=3)
    name = "xray/heart/17"
    one, same = (data.load_image(data.index.paths.index(name)) for data in (few, many))
    assert one.size == (48, 48)
    assert one.mode == "RGB"
    assert np.array_equal(one, same)
    neighbour = few.load_image(few.index.paths.index("xray/heart/18"))
    assert not np.array_equal(one, neighbour)


def test_random_state_of_the_process_is_left_alone():
    data = ShapesDataModule(images_per_class=20)
    before = torch.get_rng_state()
    data.load_image(0)
    assert torch.equal(before, torch.get_rng_state())


def test_an_episode_is_drawn_and_is_the_same_with_threads():
    data, threaded = (ShapesDataModule(shot=2, query=3, episode=7, num_workers=n) for n in (0, 2))
    assert data.description == "Shapes (x-ray) 5-way 2-shot"
    assert len(set(data.class_names)) == 5
    assert set(data.class_names) <= set(SHAPES)
    support, query = data.support(), data.query()
    assert support["images"].shape == (5 * 5 * 2, 3, 48, 48)
    assert query["images"].shape == (5 * 3, 3, 48, 48)
    for key in support:
        assert torch.equal(support[key], threaded.support()[key])
        assert torch.equal(query[key], threaded.query()[key])
    for row, label in zip(query["sample_id"].tolist(), query["labels"].tolist(), strict=True):
        assert data.index.class_names[data.index.labels[row]] == data.class_names[label]


def test_too_few_images_are_reported():
    with pytest.raises(DtrapError, match=r"images_per_class is 10; expected at least 17"):
        ShapesDataModule(images_per_class=10, shot=2)


class LinearHead(LightningModule):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3 * 48 * 48, 5)

    def training_step(self, batch):
        return torch.nn.functional.cross_entropy(self.head(batch["images"].flatten(1)), batch["labels"])

    def test_step(self, batch):
        assert batch["images"].shape[2:] == (48, 48)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-4)


def test_works_in_a_plain_trainer(tmp_path):
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    data = ShapesDataModule("stain", shot=2, query=2)
    module = LinearHead()
    trainer.fit(module, data)
    assert trainer.global_step == 2
    trainer.test(module, data, verbose=False)


def test_shipped_weights_fit_the_shipped_config(tiny_clip):
    model, _ = tiny_clip
    assert WEIGHTS.stat().st_size <= 8e6
    with safe_open(WEIGHTS, "pt") as stored:
        assert set(stored.keys()) == set(model.state_dict())
        for name, value in model.state_dict().items():
            assert torch.equal(stored.get_tensor(name).float(), value.float())


def test_words_never_seen_in_pretraining_have_different_features(tiny_clip):
    model, _ = tiny_clip
    tokens = open_clip.SimpleTokenizer()(["a photo of a melanoma.", "a photo of a river."], context_length=16)
    with torch.no_grad():
        first, second = model.encode_text(tokens, normalize=True)
    assert first @ second < 0.999


def test_target_domains_are_a_real_shift(tiny_clip):
    source = five_way_zero_shot(tiny_clip, "source")
    assert source > 0.8
    for domain in ("xray", "satellite", "stain"):
        target = five_way_zero_shot(tiny_clip, domain)
        assert 0.27 < target < source - 0.2, domain
