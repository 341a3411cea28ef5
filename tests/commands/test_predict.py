"""`dtrap predict` and `dtrap.Classifier`: whatever is given, what is said of it, and that both say the same."""

import csv
import json
import os
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from dtrap import Classifier
from dtrap.cli import main
from dtrap.errors import DtrapError
from layouts import make_folder, picture
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

CLASSES = ["cls_00", "cls_01", "cls_02"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_clip_files):
    """Two run folders of the same photos: with held-out images, and without."""
    folder = tmp_path_factory.mktemp("runs")
    photos = make_folder(folder / "photos", counts=(8, 8, 8))
    config, weights = map(str, tiny_clip_files)
    words = ["--config", "folder.yaml", "--data.root", str(photos), "--trainer.max_epochs", "2"]
    words += ["--model.backbone.name", config, "--model.backbone.pretrained", weights]
    for name, more in {"held_out": ["--data.held_out", "0.5"], "all": []}.items():
        with pytest.raises(SystemExit) as stop:
            main(["fit", *words, *more, "--protocol.folder", str(folder / name)])
        assert stop.value.code == 0
    return folder


@pytest.fixture
def photos(runs, tmp_path, monkeypatch):
    """A copy of the photos in the current folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(runs / "photos", tmp_path / "photos"))


def card_of(run):
    (file,) = run.glob("adapters/*.json")
    return json.loads(file.read_text())


def with_card(path, **changes):
    """Write an adapter again with a changed card."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    content = json.loads(metadata["dtrap_card"]) | changes
    save_file(load_file(path), path, metadata={**metadata, "dtrap_card": json.dumps(content)})
    return path


def copied(run, tmp_path):
    (file,) = run.glob("adapters/*.safetensors")
    return Path(shutil.copy(file, tmp_path / "x.safetensors"))


def written(path="predictions.csv"):
    return pd.read_csv(path)


def test_the_classifier_returns_what_the_command_writes(dtrap, runs, photos):
    for run, options in (
        ("held_out", {}),
        ("held_out", {"unsure": 0.5, "reject": 0.2}),
        ("all", {"reject": 0.2, "reject_by": "zero_shot"}),
    ):
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        status, _, err = dtrap("predict", "--adapter", runs / run, "--images", "photos", "--overwrite", *words)
        assert status == 0, err
        frame = Classifier.load(runs / run).predict("photos", **options)
        pd.testing.assert_frame_equal(frame, written(), check_exact=True)
        kind = "confidence" if run == "held_out" else "score"
        start = ["path", "label", *(["most_likely"] if options else []), kind, "runner_up", f"runner_up_{kind}"]
        assert list(frame) == [*start, *(["similarity"] if "reject" in options else []), *CLASSES]
        assert len(frame) == 24


def test_columns_say_what_the_probabilities_say(runs, photos):
    frame = Classifier.load(runs / "held_out").predict("photos")
    probabilities = frame[CLASSES].to_numpy()
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(24), abs=3e-6)
    ranked = np.sort(probabilities, axis=1)
    assert frame["confidence"].tolist() == ranked[:, -1].tolist()
    assert frame["runner_up_confidence"].tolist() == ranked[:, -2].tolist()
    assert frame["label"].tolist() == [CLASSES[number] for number in probabilities.argmax(axis=1)]
    assert (frame["runner_up"] != frame["label"]).all()


def test_the_temperature_of_the_card_flattens_the_probabilities(runs, photos, tmp_path):
    adapter = copied(runs / "held_out", tmp_path)
    card = card_of(runs / "held_out")
    assert card["temperature"] > 0
    assert card["calibration"]["images"] == 12
    assert card["rejection"]["source"] == "held-out"
    tables = {
        value: Classifier.load(with_card(adapter, temperature=value)).predict("photos") for value in (None, 1.0, 4.0)
    }
    assert "score" in tables[None]
    assert "confidence" in tables[4.0]
    assert np.array_equal(tables[None][CLASSES], tables[1.0][CLASSES])
    # softmax(s / 4), from softmax(s)
    wanted = tables[1.0][CLASSES].to_numpy().clip(1e-6) ** 0.25
    found = tables[4.0][CLASSES].to_numpy()
    clear = tables[1.0][CLASSES].to_numpy().min(axis=1) > 1e-3
    assert clear.sum() > 3
    assert found[clear] == pytest.approx((wanted / wanted.sum(axis=1, keepdims=True))[clear], abs=2e-3)
    assert tables[4.0]["label"].tolist() == tables[None]["label"].tolist()


def test_an_adapter_of_before_has_scores(dtrap, runs, photos, tmp_path):
    adapter = copied(runs / "held_out", tmp_path)
    with safe_open(adapter, "pt") as file:
        metadata = file.metadata()
    content = json.loads(metadata["dtrap_card"])
    for name in ("temperature", "calibration", "rejection"):
        del content[name]
    save_file(load_file(adapter), adapter, metadata={**metadata, "dtrap_card": json.dumps(content)})
    status, out, err = dtrap("predict", "--adapter", adapter, "--images", "photos")
    assert status == 0, err
    assert "Scores are not calibrated" in out
    assert "score" in written()
    with pytest.raises(DtrapError, match="no thresholds for --reject"):
        Classifier.load(adapter).predict("photos", reject=0.05)


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["photos/cls_00/0.png"], 1),
        (["photos/cls_00/0.png", "photos/cls_01/1.png", "photos/cls_00/0.png"], 2),
        (["photos/cls_0[01]/*.png"], 16),
        (["photos/*"], 24),
        (["photos/**/1.png"], 3),
        (["photos"], 24),
        (["photos/cls_01", "photos", "./photos/cls_00/0.png"], 24),
        (["list.csv"], 2),
        (["list.tsv", "photos/cls_02"], 9),
        (["[1].png"], 1),
    ],
)
def test_whatever_is_given_is_found_once(dtrap, runs, photos, words, count):
    for name in CLASSES:
        for number, file in enumerate(sorted((photos / name).glob("*.png"))):
            file.rename(file.with_name(f"new{number}.png"))
        for file in (photos / name).glob("new*.png"):
            file.rename(file.with_name(file.name.removeprefix("new")))
    shutil.copy(photos / "cls_00" / "0.png", "[1].png")
    Path("list.csv").write_text("path,label\nphotos/cls_00/0.png,cls_00\nphotos/cls_00/1.png,cls_01\n")
    Path("list.tsv").write_text("Image\tx\nphotos/cls_00/0.png\t1\n")
    status, out, err = dtrap("predict", "--images", *words, "--adapter", runs / "held_out")
    assert status == 0, err
    assert len(written()) == count
    assert f"{count} image{'s' * (count > 1)} labeled" in out
    assert ("more than once" in out) == (len(words) == 3)


def test_parquet_tables_are_read(runs, photos):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    paths = sorted(map(str, photos.rglob("*.png")))[:3]
    pd.DataFrame({"path": [*paths, None], "label": "cls_01"}).to_parquet("list.parquet")
    with pytest.warns(UserWarning, match="line 4: it has no path"):
        assert Classifier.load(runs / "all").predict("list.parquet")["path"].tolist() == paths


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--images", "nowhere/*.png"], "No file or folder matches nowhere/*.png"),
        (["--images", "nowhere.png"], "nowhere.png does not exist"),
        (["--images", "none.csv"], "expected a column 'path'"),
        (["--images", "empty"], "No image files in empty"),
        ([], "--images is missing"),
        (["--images", "photos", "--unsure", "60"], "unsure is 60.0; expected a confidence from 0 to 1"),
        (["--images", "photos", "--unsure", ".nan"], "unsure is nan"),
        (["--images", "photos", "--reject", "0.3"], "reject is 0.3; expected one of 0.01, 0.02, 0.05, 0.1, 0.2"),
        (["--images", "photos", "--sort-into", "photos/sorted"], "is in photos, whose images are sorted"),
        (["--images", "photos", "--sort-into", "none.csv"], "--sort-into none.csv is a file"),
        (["--images", "photos", "--output", "empty"], "empty is a folder"),
        (["--images", "none.csv", "--output", "none.csv", "--overwrite"], "is one of the --images"),
    ],
)
def test_mistakes_have_a_message(dtrap, runs, photos, words, told):
    Path("none.csv").write_text("a,b\n1,2\n")
    Path("empty").mkdir()
    status, _, err = dtrap("predict", "--adapter", runs / "held_out", *words)
    assert status == 2
    assert told in err
    assert "Traceback" not in err
    assert not Path("predictions.csv").exists()


def test_an_existing_table_is_replaced_only_when_asked(dtrap, runs, photos):
    words = ["predict", "--adapter", runs / "held_out", "--images", "photos/cls_00"]
    Path("predictions.csv").write_text("mine")
    status, _, err = dtrap(*words)
    assert status == 2
    assert "predictions.csv exists. Replace it with --overwrite" in err
    assert Path("predictions.csv").read_text() == "mine"
    assert dtrap(*words, "--overwrite", "false")[0] == 2
    for more in (["--overwrite"], ["--overwrite", "true"]):
        assert dtrap(*words, *more)[0] == 0
        assert len(written()) == 8


def test_the_accuracy_of_folders_that_are_classes(dtrap, runs, photos):
    (photos / "cls_02").rename(photos / "Cls 02")
    (photos / "others").mkdir()
    picture(77).save(photos / "others" / "x.png")
    status, out, err = dtrap("predict", "--adapter", runs / "held_out", "--images", "photos")
    assert status == 0, err
    table = written()
    truth = table["path"].str.split("/").str[1].str.replace(" ", "_").str.lower()
    right = (truth == table["label"])[truth != "others"]
    accuracy = f"Accuracy: {100 * right.mean():.1f} % (95 % "
    assert accuracy in out
    assert f"{right.sum()} of 24 images right by folder or label; 1 image without a known class not counted" in out
    for name in CLASSES:
        own = right[truth[truth != "others"] == name]
        assert f"  {name}: {own.sum()} of 8 right ({100 * own.mean():.1f} %)" in out
    # The expected calibration error, 15 bins of equal width
    shown = table[truth != "others"]
    bins = np.ceil(shown["confidence"] * 15).clip(1, 15)
    gaps = [
        abs(right[bins == number].mean() - shown["confidence"][bins == number].mean()) * (bins == number).mean()
        for number in bins.unique()
    ]
    (error,) = re.findall(r"calibration error of the confidences: ([\d.]+) %", out)
    assert float(error) == pytest.approx(100 * sum(gaps), abs=0.1)


def test_the_labels_of_a_table_count_and_those_of_predictions_do_not(dtrap, runs, photos):
    words = ["predict", "--adapter", runs / "held_out", "--images"]
    status, out, err = dtrap(*words, "photos/cls_00", "--output", "first.csv")
    assert status == 0, err
    table = written("first.csv")
    table[["path", "label"]].to_csv("own.csv", index=False)
    status, out, _ = dtrap(*words, "own.csv")
    assert status == 0
    assert "Accuracy: 100.0 %" in out
    assert "8 of 8 images right" in out
    status, out, _ = dtrap(*words, "first.csv", "--overwrite")
    assert status == 0
    assert "is a table of predictions" in out
    assert "8 of 8 images right" not in out or (table["label"] == "cls_00").all()


def test_unsure_and_rejected_images_keep_their_likely_class(dtrap, runs, photos, tmp_path):
    adapter = copied(runs / "held_out", tmp_path)
    rejection = card_of(runs / "held_out")["rejection"]
    similar = Classifier.load(adapter).predict("photos", reject=0.05)["similarity"]
    middle = float(similar.median())
    rejection["tuned"] = [middle] * len(rejection["rates"])
    with_card(adapter, rejection=rejection)
    words = ["--unsure", "0.45", "--reject", "0.05"]
    status, out, err = dtrap("predict", "--adapter", adapter, "--images", "photos", *words)
    assert status == 0, err
    table = written()
    rejected = table["label"] == "rejected"
    assert rejected.sum() == (similar < middle).sum() > 5
    unsure = table["label"] == "unsure"
    assert (unsure == ((table["confidence"] < 0.45) & ~rejected)).all()
    others = ~unsure & ~rejected
    assert (table["label"] == table["most_likely"])[others].all()
    assert set(table["most_likely"]) <= set(CLASSES)
    assert f"{rejected.sum()} images labeled 'rejected'" in out
    assert f"  labeled: {others.sum()} of 24" in out


def test_a_class_may_be_called_as_a_label_or_a_column(runs, photos, tmp_path):
    adapter = with_card(copied(runs / "held_out", tmp_path), class_names=["unsure", "label", "rejected"])
    frame = Classifier.load(adapter).predict("photos", unsure=1.0, reject=0.2)
    assert set(frame["label"]) <= {"unsure_", "rejected_"}
    assert list(frame)[-3:] == ["unsure", "label (class)", "rejected"]
    assert set(frame["most_likely"]) <= {"unsure", "label", "rejected"}


def test_pictures_in_memory_are_labeled_as_their_files(runs, photos):
    paths = sorted(map(str, photos.rglob("*.png")))[:5]
    classifier = Classifier.load(runs / "held_out", device="cpu")
    wanted = classifier.predict(paths)
    opened = [Image.open(path) for path in paths]
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    for given in (opened, arrays, [paths[0], *opened[1:3], *arrays[3:]]):
        found = classifier.predict(given)
        assert np.array_equal(found[CLASSES], wanted[CLASSES])
    assert found["path"].tolist() == [paths[0], "image 2", "image 3", "image 4", "image 5"]
    assert classifier.predict(opened[0]).loc[0, "label"] == wanted.loc[0, "label"]
    small = classifier.predict(paths, batch_size=2)
    assert small[CLASSES].to_numpy() == pytest.approx(wanted[CLASSES].to_numpy(), abs=2e-6)
    for wrong in (arrays[0].astype(float), arrays[0][..., :2], 3, torch.zeros(3, 8, 8)):
        with pytest.raises(DtrapError, match="expected"):
            classifier.predict([wrong])


def test_unreadable_images_have_no_row_and_a_warning(runs, photos):
    (photos / "cls_00" / "bad.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"1 images could not be read .*bad\.png"):
        frame = Classifier.load(runs / "held_out").predict("photos")
    assert len(frame) == 24
    ((path, reason),) = frame.attrs["unreadable"]
    assert path.endswith("bad.png")
    assert "cannot be read" in reason


def test_exported_folders_and_missing_files(dtrap, runs, photos, tmp_path, tiny_clip_files):
    adapter = copied(runs / "held_out", tmp_path)
    wanted = Classifier.load(adapter).predict("photos")
    for form in ("plain", "peft"):
        status, _, err = dtrap("export", "--adapter", adapter, "--output", form, "--form", form)
        assert status == 0, err
        found = Classifier.load(form).predict("photos")
        assert found["confidence"].to_numpy() == pytest.approx(wanted["confidence"].to_numpy(), abs=1e-5)
    with pytest.raises(DtrapError, match="no zero-shot similarity"):
        Classifier.load("plain").predict("photos", reject=0.05, reject_by="zero_shot")
    files = card_of(runs / "held_out")["files"]
    gone = {name: entry | {"path": f"/nowhere/{name}"} for name, entry in files.items()}
    with_card(adapter, files=gone)
    with pytest.raises(DtrapError, match=r"are not here: .*Give files=\{'name': FILE, 'pretrained': FILE\}"):
        Classifier.load(adapter)
    named = dict(zip(("name", "pretrained"), map(str, tiny_clip_files), strict=True))
    assert Classifier.load(adapter, files=named).predict("photos").equals(wanted)
    with pytest.raises(DtrapError, match="no such adapter"):
        Classifier.load("nowhere.safetensors")
    with pytest.raises(DtrapError, match="device is 'cuda:77'"):
        Classifier.load(runs / "all", device="cuda:77")


def test_nothing_is_overwritten_and_nothing_leaves_the_folder(dtrap, runs, photos, tmp_path):
    names = ["../../etc", "a/b", "..", "CON"]
    adapter = copied(runs / "held_out", tmp_path)
    with_card(adapter, class_names=names[:3])
    for folder in ("one", "two"):
        (photos / folder).mkdir()
        picture(5).save(photos / folder / "same.png")
    words = ["predict", "--adapter", adapter, "--images", "photos", "--sort-into", "out", "--overwrite"]
    status, out, err = dtrap(*words)
    assert status == 0, err
    assert "26 images copied into out" in out
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert len(before) == 26
    assert sum(path.name.startswith("same") for path in before) == 2
    assert {path.parts[1] for path in before} <= {"__.._etc", "a_b", "_"}
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "out", "x.safetensors", "predictions.csv"}
    status, out, _ = dtrap(*words)
    assert "0 images copied into out, 26 there from before" in out
    victim = next(iter(before))
    victim.write_bytes(b"mine")
    assert dtrap(*words)[0] == 0
    assert victim.read_bytes() == b"mine"
    assert sum(path.is_file() for path in Path("out").rglob("*")) == 27
    # A folder that is a link to somewhere else
    shutil.rmtree("out")
    Path("out").mkdir()
    Path("elsewhere").mkdir()
    for name in ("__.._etc", "a_b", "_"):
        Path("out", name).symlink_to(tmp_path / "elsewhere")
    status, _, err = dtrap(*words)
    assert status == 2
    assert "is a link to" in err
    assert not list(Path("elsewhere").iterdir())


def test_workers_do_the_same(dtrap, runs, photos):
    pytest.importorskip("ray", reason="Ray is not installed")
    words = ["predict", "--adapter", runs / "all", "--images", "photos/cls_00", "photos/*", "--unsure", "0.5"]
    words += ["--reject", "0.1", "--reject_by", "zero_shot", "--output"]
    assert dtrap(*words, "alone.csv")[0] == 0
    status, _, err = dtrap(*words, "together.csv", "--protocol.workers", "1")
    assert status == 0, err
    assert Path("together.csv").read_bytes() == Path("alone.csv").read_bytes()


def test_formulas_are_escaped_in_every_column_of_names(dtrap, runs, photos, tmp_path):
    adapter = with_card(copied(runs / "held_out", tmp_path), class_names=["=1", "@2", "c"])
    status, _, err = dtrap("predict", "--adapter", adapter, "--images", "photos", "--unsure", "0.5")
    assert status == 0, err
    header, *rows = csv.reader(Path("predictions.csv").read_text().splitlines())
    assert header[-3:] == ["'=1", "'@2", "c"]
    assert {row[2] for row in rows} | {row[4] for row in rows} <= {"'=1", "'@2", "c"}


def test_a_config_may_name_the_images(dtrap, runs, photos):
    for value in ("photos/cls_00", "[photos/cls_00, photos/cls_01]"):
        Path("mine.yaml").write_text(f"images: {value}\noverwrite: true\nunsure: 0.5\n")
        status, _, err = dtrap("predict", "--config", "mine.yaml", "--adapter", runs / "held_out", *MODEL(runs))
        assert status == 0, err
    assert len(written()) == 16


def MODEL(run):
    model = card_of(run / "held_out")["model"]["backbone"]["init_args"]
    return ["--model.backbone.name", model["name"], "--model.backbone.pretrained", model["pretrained"]]


def test_the_import_of_the_package_alone_stays_light():
    import dtrap as package

    assert "Classifier" in dir(package)
    with pytest.raises(AttributeError, match="Nothing"):
        package.Nothing  # noqa: B018
    assert os.path.basename(package.__file__) == "__init__.py"


def test_a_prediction_says_nothing_else(runs, photos):
    classifier = Classifier.load(runs / "held_out")
    assert classifier.class_names == CLASSES
    assert classifier.temperature == card_of(runs / "held_out")["temperature"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier.predict("photos")
