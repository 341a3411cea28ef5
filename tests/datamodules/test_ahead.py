"""The next episode is decoded in threads while the current one trains; nothing else may change."""

import gc
import logging
import pickle
import threading

import numpy as np
import pytest
import torch
from dtrap.datamodules import FolderDataModule
from dtrap.datamodules.few_shot import FewShotDataModule
from dtrap.datamodules.images import ImageError
from dtrap.datamodules.index import ImageIndex
from dtrap.errors import DtrapError
from PIL import Image

MAIN = threading.main_thread()


def decoding_threads():
    return [thread for thread in threading.enumerate() if "decodes-ahead" in thread.name]


class Counted(FewShotDataModule):
    """Ten small pictures in each of four classes, which remember where and how often they were decoded."""

    title = "Counted"
    opens_files = True
    bad: frozenset = frozenset()

    def __init__(self, root, **options):
        self.decoded = []
        self.gate = threading.Event()
        self.gate.set()
        super().__init__(root, **{"way": 3, "shot": 2, "query": 3, "views": 3, **options})

    def scan(self):
        paths = [f"{label}/{number}" for label in range(4) for number in range(10)]
        return ImageIndex(paths, [label for label in range(4) for _ in range(10)], list("abcd"))

    def load_image(self, position):
        if threading.current_thread() is not MAIN:
            self.gate.wait(20)
        self.decoded.append((position, threading.current_thread() is MAIN))
        if position in self.bad:
            raise ImageError(f"Image {position} cannot be read: broken.")
        if position % 2:
            self.warn_once("an odd image", str(position))
        pixels = np.random.default_rng(position).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        return Image.fromarray(pixels)


def batches_of(data, episodes, *, ahead):
    found = []
    for number, episode in enumerate(episodes):
        data.set_episode(episode)
        if ahead:
            data.expect(episodes[number + 1] if number + 1 < len(episodes) else None)
        query = data.query()
        list(data.train_dataloader())
        found += [query, data.support()]
    return found


def same(first, second):
    return all(torch.equal(one[name], other[name]) for one, other in zip(first, second, strict=True) for name in one)


@pytest.mark.parametrize("options", [{}, {"num_workers": 3}, {"bad_images": "skip"}])
def test_an_episode_is_the_same_and_each_picture_is_decoded_once(tmp_path, options):
    plain, early = Counted(tmp_path, **options), Counted(tmp_path, **options)
    expected = batches_of(plain, [0, 1, 5], ahead=False)
    found = batches_of(early, [0, 1, 5], ahead=True)
    assert same(found, expected)
    assert sorted(p for p, _ in early.decoded) == sorted(p for p, _ in plain.decoded)
    assert any(not in_main for _, in_main in early.decoded)


def test_the_next_episode_is_complete_before_it_is_asked_for(tmp_path):
    data = Counted(tmp_path)
    data.set_episode(0)
    data.expect(1)
    data.query()
    assert not decoding_threads()  # the current episode is decoded first
    list(data.train_dataloader())
    for thread in decoding_threads():
        thread.join(20)
    before = len(data.decoded)
    data.set_episode(1)
    data.query(), data.support()
    assert len(data.decoded) == before


def test_faults_and_warnings_come_out_when_the_episode_is_used(tmp_path, caplog):
    data = Counted(tmp_path)
    data.bad = frozenset(data.sampler.images_of(1) - data.sampler.images_of(0))
    assert data.bad
    caplog.set_level(logging.WARNING)
    odd = any(p % 2 for p in data.support_ids + data.query_ids)
    data.expect(1)
    data.query()
    told = len(caplog.messages)
    assert told == odd
    list(data.train_dataloader())
    for thread in decoding_threads():
        thread.join(20)
    assert len(caplog.messages) == told
    data.set_episode(1)
    with pytest.raises(DtrapError, match="episode 1 of Counted"):
        data.query()


def test_a_replacement_is_the_same_image(tmp_path):
    found = []
    for ahead in (False, True):
        data = Counted(tmp_path, bad_images="skip")
        data.bad = frozenset(sorted(data.sampler.images_of(1) - data.sampler.images_of(0))[:2])
        found.append((batches_of(data, [0, 1], ahead=ahead), data.skipped_images))
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert len(found[0][1]) == 2


def test_held_back_warnings_are_given_once_and_name_the_first_image(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    data = Counted(tmp_path)
    data.set_episode(0)
    data._warned.add("an odd image")
    data.expect(1)
    list(data.train_dataloader())
    for thread in decoding_threads():
        thread.join(20)
    data._warned.clear()
    assert not caplog.messages
    data.set_episode(1)
    data.support()
    first = next(p for p in data.support_ids if p % 2)
    assert caplog.messages == [f"Counted: an odd image (found in {first})"]


@pytest.mark.parametrize("end", ["no more", "another episode"])
def test_what_nobody_waits_for_is_not_decoded(tmp_path, end):
    data = Counted(tmp_path)
    data.set_episode(0)
    data.expect(1)
    list(data.train_dataloader())
    data.query()
    data.gate.clear()
    before = len(data.decoded)
    data.set_episode(1)
    data.set_episode(0)
    data.expect(2)
    list(data.train_dataloader())
    before = len(data.decoded)
    data.decode_no_more() if end == "no more" else data.set_episode(7)
    data.gate.set()
    for thread in decoding_threads():
        thread.join(20)
    assert len(data.decoded) <= before + 1  # the one that had begun


def test_a_picture_that_has_not_begun_is_decoded_by_the_one_who_needs_it(tmp_path):
    data = Counted(tmp_path, num_workers=0)
    data.set_episode(0)
    data.expect(1)
    list(data.train_dataloader())
    data.gate.clear()
    data.set_episode(1)
    threading.Timer(0.2, data.gate.set).start()
    expected = Counted(tmp_path)
    expected.set_episode(1)
    assert same([data.query()], [expected.query()])


def test_own_loaders_streams_and_huge_episodes_are_left_alone(tmp_path, monkeypatch):
    class Own(Counted):
        opens_files = False

    own = Own(tmp_path)
    batches_of(own, [0, 1], ahead=True)
    assert all(in_main for _, in_main in own.decoded)
    monkeypatch.setattr("dtrap.datamodules.episode.MOST_BYTES", 1000)
    huge = Counted(tmp_path)
    batches_of(huge, [0, 1], ahead=True)
    assert all(in_main for _, in_main in huge.decoded)


def test_an_error_of_an_own_loader_is_raised_as_it_is(tmp_path):
    class Broken(Counted):
        def load_image(self, position):
            if threading.current_thread() is not MAIN:
                raise ZeroDivisionError
            return super().load_image(position)

        opens_files = True

    data = Broken(tmp_path)
    data.set_episode(0)
    data.expect(1)
    list(data.train_dataloader())
    for thread in decoding_threads():
        thread.join(20)
    data.set_episode(1)
    with pytest.raises(ZeroDivisionError):
        data.support()


def test_a_data_module_is_pickled_without_what_is_decoded_ahead(tmp_path):
    root = tmp_path / "photos"
    for label in "ab":
        (root / label).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (8, 8), (number * 40, 0, 200 * (label == "a"))).save(root / label / f"{number}.png")
    data = FolderDataModule(root, way=2, shot=2, query=2)
    data.set_episode(0)
    data._ahead = data._draw(0)
    data._ahead.decode_ahead()
    copied = pickle.loads(pickle.dumps(data))
    assert same([copied.support()], [data.support()])
    gc.collect()
