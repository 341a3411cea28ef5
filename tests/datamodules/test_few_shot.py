import hashlib
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from dtrap.datamodules import EuroSATDataModule, ImageIndex, Preprocessing
from dtrap.errors import DtrapError
from layouts import make_eurosat, picture, truncate
from lightning.pytorch import LightningModule, Trainer

SMALL = Preprocessing(image_size=16)


def episodes(root, **options):
    options = {"way": 3, "shot": 2, "query": 2, "preprocessing": SMALL, **options}
    return EuroSATDataModule(root, **options)


def content(data):
    return {**{f"support_{k}": v for k, v in data.support().items()}, **data.query()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_rows_are_ordered_by_view_class_and_shot(eurosat_root):
    data = episodes(eurosat_root, views=4)
    batch = data.support()
    assert batch["images"].shape == (4 * 3 * 2, 3, 16, 16)
    assert batch["images"].dtype == torch.float32
    assert batch["view"].tolist() == np.repeat(range(4), 6).tolist()
    assert batch["labels"].tolist() == [0, 0, 1, 1, 2, 2] * 4
    assert batch["sample_id"].tolist() == data.support_ids * 4
    for sample_id, label in zip(data.support_ids, batch["labels"].tolist(), strict=False):
        assert data.index.class_names[data.index.labels[sample_id]] == data.class_names[label]


def test_queries_are_plain_and_disjoint_from_the_support(eurosat_root):
    data = episodes(eurosat_root)
    query = data.query()
    assert query["view"].unique().tolist() == [0]
    assert query["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    assert len(set(data.support_ids) | set(data.query_ids)) == 3 * 4
    opened = SMALL.to_tensor(data.load_image(data.query_ids[0]))
    assert torch.equal(query["images"][0], opened)


def test_an_episode_depends_on_seed_and_number_only(eurosat_root):
    alone = content(episodes(eurosat_root, episode=3))
    walked = episodes(eurosat_root)
    for episode in (7, 0, 3):
        walked.set_episode(episode)
        np.random.seed(episode)
        torch.manual_seed(episode)
        last = content(walked)
    assert same(alone, last)
    assert not same(alone, content(episodes(eurosat_root, episode=4)))
    assert not same(alone, content(episodes(eurosat_root, episode=3, seed=2)))


@pytest.mark.parametrize("num_workers", [1, 3])
def test_an_episode_does_not_depend_on_workers(eurosat_root, num_workers):
    assert same(content(episodes(eurosat_root)), content(episodes(eurosat_root, num_workers=num_workers)))


def test_an_episode_is_the_same_in_another_process(eurosat_root):
    code = (
        "import hashlib, sys\n"
        "from dtrap.datamodules import EuroSATDataModule, Preprocessing\n"
        "sizes = dict(way=3, shot=2, query=2, preprocessing=Preprocessing(16))\n"
        "data = EuroSATDataModule(sys.argv[1], episode=5, **sizes)\n"
        "print(hashlib.sha256(data.support()['images'].numpy().tobytes()).hexdigest(), data.query_ids)"
    )
    arguments = [sys.executable, "-c", code, str(eurosat_root)]
    other = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.strip()
    here = episodes(eurosat_root, episode=5)
    digest = hashlib.sha256(here.support()["images"].numpy().tobytes()).hexdigest()
    assert other == f"{digest} {here.query_ids}"


def test_views_of_an_image_do_not_depend_on_the_number_of_views(eurosat_root):
    every, two = episodes(eurosat_root).support(), episodes(eurosat_root, views=2).support()
    assert torch.equal(every["images"][: len(two["images"])], two["images"])


def test_classes_are_drawn_uniformly(eurosat_root):
    data = episodes(eurosat_root, way=5)
    drawn = np.zeros(10)
    for episode in range(200):
        data.set_episode(episode)
        assert len(set(data.task.classes)) == 5
        drawn[data.task.classes] += 1
    assert drawn.min() > 70
    assert drawn.max() < 130


def test_an_image_is_decoded_once_per_episode_and_never_by_the_scan(eurosat_root, monkeypatch):
    data = episodes(eurosat_root)
    opened = []
    load = data.load_image
    monkeypatch.setattr(data, "load_image", lambda position: opened.append(position) or load(position))
    data.setup()
    assert opened == []
    for _ in range(3):
        list(data.train_dataloader())
        list(data.test_dataloader())
    assert sorted(opened) == sorted(data.support_ids + data.query_ids)


def test_the_fingerprint_tells_files_but_not_where_they_are(tmp_path):
    first = episodes(make_eurosat(tmp_path / "here")).index
    second = episodes(make_eurosat(tmp_path / "elsewhere" / "deep")).index
    assert first.paths != second.paths
    assert first.fingerprint() == second.fingerprint()
    assert first.fingerprint() != episodes(make_eurosat(tmp_path / "more", 5)).index.fingerprint()
    names = ["a", "b"]
    relabelled = [ImageIndex(names, labels, ["x", "y"]).fingerprint() for labels in ([0, 1], [1, 0])]
    assert relabelled[0] != relabelled[1]


class Watcher(LightningModule):
    """Keeps what it is given."""

    class backbone:
        image_size, image_mean, image_std = 20, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.train_batches, self.test_batches = [], []

    def training_step(self, batch):
        self.train_batches.append(batch)
        return self.weight * batch["images"].mean().to(self.weight.dtype)

    def test_step(self, batch):
        self.test_batches.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_a_plain_trainer_gets_one_support_batch_shot_times_an_epoch(eurosat_root, precision):
    data, module = episodes(eurosat_root), Watcher()
    trainer = Trainer(max_epochs=3, accelerator="cpu", precision=precision, logger=False,
                      enable_checkpointing=False, enable_progress_bar=False)  # fmt: skip
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert len(module.train_batches) == 3 * data.shot
    assert len({id(batch) for batch in module.train_batches}) == 1
    assert module.train_batches[0]["images"].shape == (30, 3, 20, 20)
    assert [len(batch["labels"]) for batch in module.test_batches] == [6]


def test_the_support_is_moved_once_per_episode_and_device(eurosat_root):
    data = episodes(eurosat_root)
    device = torch.device("meta")
    (first, second) = (data.transfer_batch_to_device(batch, device, 0) for batch in data.train_dataloader())
    assert first is second
    assert first["images"].device.type == "meta"
    assert data.support()["images"].device.type == "cpu"
    query = data.query()
    assert data.transfer_batch_to_device(query, device, 0) is not data.transfer_batch_to_device(query, device, 0)
    data.set_episode(1)
    assert data.transfer_batch_to_device(data.support(), device, 0) is not first


def test_without_queries_there_is_nothing_to_test(eurosat_root):
    data = episodes(eurosat_root, query=0)
    assert not data.has_query
    assert data.test_dataloader() == []
    assert data.query_ids == []


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"way": 1}, "way is 1; expected at least 2"),
        ({"shot": 0}, "shot is 0; expected at least 1"),
        ({"query": -1}, "query is -1"),
        ({"views": 6}, "views is 6"),
        ({"seed": -3}, "seed is -3"),
        ({"episode": -1}, "episode is -1"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"bad_images": "ignore"}, "bad_images is 'ignore'; expected one of error, skip"),
        ({"template": "a photo"}, "template is 'a photo'"),
    ],
)
def test_arguments_are_checked(tmp_path, option, message):
    with pytest.raises(DtrapError, match=message):
        episodes(tmp_path, **option)


def test_way_larger_than_the_number_of_classes(eurosat_root):
    with pytest.raises(DtrapError, match=r"way is 11, but only 10 classes .* Use --data.way 10"):
        episodes(eurosat_root, way=11).setup()


def test_a_small_class_is_an_error_at_setup(eurosat_root):
    (eurosat_root / "2750" / "River" / "River_2.jpg").unlink()
    with pytest.raises(DtrapError, match=r"'River' has 3; needed: 4 \(shot 2 \+ query 2\).*--data.small_classes skip"):
        episodes(eurosat_root).setup()


def test_small_and_empty_classes_are_left_out_on_request_and_listed_once(eurosat_root, caplog):
    (eurosat_root / "2750" / "River" / "River_2.jpg").unlink()
    for path in (eurosat_root / "2750" / "Forest").iterdir():
        path.unlink()
    data = episodes(eurosat_root, way=8, small_classes="skip")
    for episode in range(5):
        data.set_episode(episode)
        data.setup()
        assert {"River", "Forest"}.isdisjoint(data.class_names)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "2 small class(es)" in warnings[0]
    assert "'River' has 3" in warnings[0]
    assert "'Forest' has 0" in warnings[0]


def test_a_truncated_image_is_an_error_that_names_file_episode_and_remedy(eurosat_root):
    data = episodes(eurosat_root)
    path = data.path_of(data.support_ids[0])
    truncate(path)
    with pytest.raises(DtrapError, match=rf"{path.name} cannot be read.*episode 0 of EuroSAT.*--data.bad_images skip"):
        data.train_dataloader()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_truncated_image_is_replaced_on_request(tmp_path, caplog, num_workers):
    root = make_eurosat(tmp_path, per_class=6)
    untouched = episodes(root)
    support, query, spare = (untouched.task.support[1], untouched.task.query[1], untouched.task.spare[1])
    for position in (support[0], query[1]):
        truncate(untouched.path_of(position))
    data = episodes(root, bad_images="skip", num_workers=num_workers)
    assert data.query_ids[2:4] == [query[0], spare[1]]
    assert data.support_ids[2:4] == [spare[0], support[1]]
    assert data.support_ids[:2] == untouched.support_ids[:2]
    assert data.query_ids[4:] == untouched.query_ids[4:]
    left_out = {str(untouched.path_of(position)) for position in (support[0], query[1])}
    assert {path for path, _ in data.skipped_images} == left_out
    assert len(caplog.records) == 2
    data.set_episode(1)
    data.set_episode(0)
    assert data.support_ids[2] == spare[0]
    assert len(data.skipped_images) == 2


def test_too_few_readable_images_are_an_error(eurosat_root):
    data = episodes(eurosat_root, bad_images="skip")
    path = data.path_of(data.task.support[0][0])
    truncate(path)
    with pytest.raises(DtrapError, match=rf"too few readable images of class .* {path}"):
        data.support()


def test_images_in_odd_formats_take_part(eurosat_root):
    folder = eurosat_root / "2750" / "Forest"
    for path in folder.iterdir():
        path.unlink()
    picture(0).convert("L").save(folder / "grey.PNG")
    picture(1).convert("CMYK").save(folder / "cmyk.jpg")
    picture(2).convert("P").save(folder / "palette.gif")
    picture(3).convert("I;16").save(folder / "deep.tiff")
    data = episodes(eurosat_root, way=10)
    assert len({*data.support_ids, *data.query_ids}) == 40
    assert data.support()["images"].isfinite().all()
    assert data.query()["images"].isfinite().all()
