"""Few-shot draws of 2SFS and CoOp as `--data.subset`."""

import json
import pickle
import re
import runpy
import sys
import types
from pathlib import Path

import pytest
from dtrap.datamodules import AllWay, FolderDataModule
from dtrap.errors import DtrapError
from layouts import make_class_folders

SHOT = 2


@pytest.fixture
def root(tmp_path):
    return make_class_folders(tmp_path / "dtd" / "images", ["banded", "blotchy", "braided"], 8)


def row(path, label, name):
    return {"_impath": path, "_label": label, "_domain": -1, "_classname": name}


def write_draw(folder, root, shot=SHOT, seed=1, start="dtd/images", repeat=False):
    """The files as 2SFS writes them: paths below the folder of all sets."""
    folder.mkdir(exist_ok=True)
    for part, first, count in (("train", 0, shot), ("val", 4, min(shot, 4))):
        rows = []
        for label, of_class in enumerate(sorted(root.iterdir())):
            files = sorted(of_class.iterdir())[first + seed - 1 :][:count]
            rows += [row(f"{start}/{of_class.name}/{file.name}", label, of_class.name) for file in files]
        rows += rows[:1] if repeat and part == "train" else []
        lines = "".join(json.dumps(item) + "\n" for item in rows)
        (folder / f"shot_{shot}-seed_{seed}_{part}.jsonl").write_text(lines)
    return folder


def data_with(root, subset, shot=SHOT, seeds=(1,)):
    return FolderDataModule(root, shot=shot, all_way=AllWay(seeds=list(seeds)), subset=subset)


def names(data, positions):
    return [[Path(data.index.paths[position]).name for position in of_class] for of_class in positions]


@pytest.mark.parametrize("start", ["dtd/images", "/home/me/data/dtd/images", "DTD\\Images"])
def test_the_images_of_a_draw(root, tmp_path, start):
    folder = write_draw(tmp_path / "split_fewshot", root, start=start.replace("\\", "/"))
    write_draw(folder, root, seed=2)
    data = data_with(root, folder, seeds=(1, 2))
    first, second = data.subset_of(1), data.subset_of(2)
    assert names(data, first.train)[0] == ["banded_1.jpg", "banded_2.jpg"]
    assert names(data, first.val)[1] == ["blotchy_5.jpg", "blotchy_6.jpg"]
    assert names(data, second.train)[2] == ["braided_2.jpg", "braided_3.jpg"]
    assert [len(of_class) for of_class in first.test] == [4, 4, 4]
    one_file = data_with(root, folder / "shot_2-seed_1_train.jsonl")
    assert one_file.subset_of(1) == first


def test_an_image_that_a_draw_repeats_counts_once(root, tmp_path, caplog):
    data = data_with(root, write_draw(tmp_path / "split_fewshot", root, repeat=True))
    assert [len(of_class) for of_class in data.subset_of(1).train] == [2, 2, 2]
    assert "count once: banded" in caplog.text


def test_without_validation_images(root, tmp_path, caplog):
    folder = write_draw(tmp_path / "split_fewshot", root)
    (folder / "shot_2-seed_1_val.jsonl").unlink()
    assert data_with(root, folder).subset_of(1).val == [[], [], []]
    assert "no validation images" in caplog.text


def test_what_is_wrong_with_a_draw(root, tmp_path):
    folder = write_draw(tmp_path / "split_fewshot", root)
    file = folder / "shot_2-seed_1_train.jsonl"
    sound = file.read_text()
    cases = {
        sound.replace('"_label": 1', '"_label": 0'): r"line 3: .*blotchy.*but label 0 is 'banded' in a line before",
        sound.replace("banded_1.jpg", "gone.jpg"): "gone.jpg.*is not under",
        sound.replace('"_impath"', '"path"'): "line 1: expected an object with _impath",
        "not json\n" + sound: "line 1: expected an object with _impath",
    }
    for text, told in cases.items():
        file.write_text(text)
        with pytest.raises(DtrapError, match=told):
            data_with(root, folder).subset_of(1)
    with pytest.raises(DtrapError, match=r"has no shot_2-seed_3_train.jsonl; found: 2 shots seed 1"):
        data_with(root, folder, seeds=(3,)).subset_of(3)
    with pytest.raises(DtrapError, match="is a draw of 2 shots; this run uses 1"):
        data_with(root, file, shot=1).subset_of(1)


def pickled_draw(path, root):
    """A draw as CoOp writes it; the modules go away again."""
    parts = ["dassl", "dassl.data", "dassl.data.datasets", "dassl.data.datasets.base_dataset"]
    modules = {name: types.ModuleType(name) for name in parts}
    module = modules[parts[-1]]

    class Datum:
        pass

    Datum.__module__, Datum.__qualname__ = module.__name__, "Datum"
    module.Datum = Datum
    sys.modules.update(modules)
    draw = {"train": [], "val": []}
    for label, of_class in enumerate(sorted(root.iterdir())):
        for number, file in enumerate(sorted(of_class.iterdir())[:4]):
            item = Datum()
            vars(item).update(row(str(file), label, of_class.name))
            draw["train" if number < SHOT else "val"].append(item)
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(draw, protocol=pickle.HIGHEST_PROTOCOL))
    for name in parts:
        del sys.modules[name]


def test_a_pickle_is_refused_and_the_script_of_the_page_converts_it(root, tmp_path, monkeypatch):
    path = tmp_path / "split_fewshot" / "shot_2-seed_1.pkl"
    pickled_draw(path, root)
    renamed = tmp_path / "subset.json"
    renamed.write_bytes(path.read_bytes())
    for given in (path, path.parent, renamed):
        with pytest.raises(DtrapError, match=r"is a pickle.*can run any program.*train-on-all-classes\.md"):
            data_with(root, given).subset_of(1)
    page = Path(__file__).parents[2] / "docs" / "how-to" / "train-on-all-classes.md"
    script = tmp_path / "convert_draws.py"
    script.write_text(re.search(r'title="convert_draws.py"\n(.*?)^```', page.read_text(), re.DOTALL | re.MULTILINE)[1])
    monkeypatch.setattr(sys, "argv", [str(script), str(path)])
    runpy.run_path(str(script), run_name="__main__")
    data = data_with(root, path.parent)
    assert names(data, data.subset_of(1).train)[1] == ["blotchy_1.jpg", "blotchy_2.jpg"]
    assert names(data, data.subset_of(1).val)[1] == ["blotchy_3.jpg", "blotchy_4.jpg"]
    path.write_bytes(pickle.dumps({"train": [print]}))
    with pytest.raises(pickle.UnpicklingError, match="print is not part of a draw"):
        runpy.run_path(str(script), run_name="__main__")
