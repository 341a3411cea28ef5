"""What a data module of a stranger may return from `scan`."""

import time
from dataclasses import replace

import pytest
from dtrap.datamodules import FewShotDataModule, ImageIndex
from dtrap.datamodules.index_check import check_index
from dtrap.errors import DtrapError

SOUND = ImageIndex(
    paths=[f"/data/{name}/{i}.png" for name in "ab" for i in range(4)],
    labels=[0] * 4 + [1] * 4,
    class_names=["cat", "dog"],
    roots=("/data",),
    splits=(["train"] * 3 + ["test"]) * 2,
)


class Stranger(FewShotDataModule):
    def __init__(self, index):
        super().__init__("/data", way=2, shot=1, query=1, small_classes="skip")
        self.given = index

    def scan(self):
        return self.given


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"labels": [0] * 4 + [2] * 4}, r"label 2 of /data/b/0\.png has no class name; there are 2 class names"),
        ({"labels": [0] * 4 + [-1] * 4}, r"label -1 of /data/b/0\.png has no class name"),
        ({"labels": [0] * 7}, "8 paths but 7 labels"),
        ({"labels": [0] * 9}, "8 paths but 9 labels"),
        ({"labels": ["0"] * 8}, "labels are not integers"),
        ({"labels": [0.5] * 8}, "labels are not integers but float64"),
        ({"splits": ["training"] * 4 + ["test"] * 4}, "unknown split 'training'"),
        ({"splits": ["train"] * 7}, "8 paths but 7 splits"),
        ({"paths": ["/data/a/0.png", *SOUND.paths[:7]]}, r"duplicate path '/data/a/0\.png'"),
        ({"paths": [*range(8)]}, "paths has a int, expected strings"),
        ({"paths": ["a/0.png", *SOUND.paths[1:]]}, r"path 'a/0\.png' does not start with one of the roots /data"),
        ({"roots": ("/data/",)}, r"path '/data/a/0\.png' does not start with one of the roots /data/\."),
        ({"class_names": ["cat", "cat"]}, "duplicate class name 'cat'"),
        ({"class_names": ["cat", 3]}, "class_names has a int, expected strings"),
    ],
)
def test_an_index_that_breaks_the_contract_is_refused_with_the_contract(change, fault):
    with pytest.raises(DtrapError, match=rf"Stranger\.scan: {fault}.*An ImageIndex has strings as paths"):
        Stranger(replace(SOUND, **change)).setup()


def test_the_root_of_a_disk_is_a_root():
    index = replace(SOUND, roots=("/",))
    check_index(index, "Stranger.scan")
    assert index.relative(0) == f"0{SOUND.paths[0]}"


def test_something_else_than_an_index_is_refused():
    with pytest.raises(DtrapError, match=r"Stranger\.scan: returned tuple instead of an ImageIndex"):
        Stranger(([], [])).setup()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"splits": None},
        {"roots": ()},
        {"class_names": ["cat", "dog", "empty"]},
        {"paths": [f"a/{i}" for i in range(8)], "roots": (".",)},
    ],
)
def test_a_sound_index_is_taken(change):
    module = Stranger(replace(SOUND, **change))
    module.setup()
    assert sorted(module.class_names) == ["cat", "dog"]


def test_an_index_of_imagenet_s_size_is_checked_in_little_time():
    images = 1_281_167
    paths = [f"/data/train/n{i % 1000:08d}/{i}.JPEG" for i in range(images)]
    labels = [i % 1000 for i in range(images)]
    names = [f"class {i}" for i in range(1000)]
    index = ImageIndex(paths, labels, names, roots=("/data",), splits=["train"] * images)
    started = time.process_time()
    check_index(index, "test")
    assert time.process_time() - started < 2  # 0.3 s on an idle core
