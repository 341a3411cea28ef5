import pandas as pd
import pytest
from dtrap.datamodules import ChestXDataModule, CropDiseaseDataModule, EuroSATDataModule, ISICDataModule, Preprocessing
from dtrap.errors import DtrapError
from layouts import CHESTX_FINDINGS, CROP_FOLDERS, ISIC_COLUMNS, make_chestx, make_crop_disease, make_eurosat

SMALL = Preprocessing(image_size=16)
SETS = {
    "isic_root": (ISICDataModule, 7),
    "eurosat_root": (EuroSATDataModule, 10),
    "crop_disease_root": (CropDiseaseDataModule, 6),
    "chestx_root": (ChestXDataModule, 7),
}
SIZES = {"way": 5, "shot": 1, "query": 3, "preprocessing": SMALL}


def isic_table(root):
    return next(root.glob("*GroundTruth/*.csv"))


def edit_table(path, change):
    frame = pd.read_csv(path, dtype=str, index_col=False)
    change(frame).to_csv(path, index=False)


@pytest.mark.parametrize("name", SETS)
def test_official_layout(name, request):
    cls, classes = SETS[name]
    data = cls(request.getfixturevalue(name), **SIZES)
    data.setup()
    assert len(data.index.class_names) == classes
    assert [len(found) for found in data.positions] == [4] * classes
    assert data.description == f"{data.title} 5-way 1-shot"
    assert data.support()["images"].shape == (25, 3, 16, 16)
    assert data.query()["images"].shape == (15, 3, 16, 16)


@pytest.mark.parametrize("name", SETS)
def test_data_in_the_wrong_place(name, tmp_path):
    cls, _ = SETS[name]
    with pytest.raises(DtrapError, match=r"(?s)Looked for: .*Give --data\.root FOLDER, the folder that holds"):
        cls(tmp_path, **SIZES).setup()
    with pytest.raises(DtrapError, match=r"none does not exist\. Give --data\.root"):
        cls(tmp_path / "none", **SIZES).setup()


def test_isic_labels_are_those_of_the_table(isic_root):
    index = ISICDataModule(isic_root).index
    assert index.class_names[1] == "Melanocytic Nevus"
    for path, label in zip(index.paths, index.labels, strict=True):
        assert f"ISIC_00{label:02d}" in path


def test_isic_order_of_rows_and_columns_does_not_matter(isic_root):
    before = ISICDataModule(isic_root).index
    columns = ["image", *reversed(ISIC_COLUMNS)]
    edit_table(isic_table(isic_root), lambda frame: frame.iloc[::-1][columns])
    assert ISICDataModule(isic_root).index == before


def test_isic_upper_case_endings(isic_root):
    for path in list((isic_root / "ISIC2018_Task3_Training_Input").iterdir()):
        path.rename(path.with_suffix(".JPG"))
    assert len(ISICDataModule(isic_root).index.paths) == 28


def test_isic_in_a_sub_folder(tmp_path, isic_root):
    isic_root.rename(tmp_path / "ISIC")
    assert len(ISICDataModule(tmp_path).index.paths) == 28


def _second_label(frame):
    frame.loc[2, "NV"] = "1.0"
    return frame


ISIC_FAULTS = {
    "unknown column": (
        lambda f: f.assign(UNK="0.0"),
        r"\.csv: unknown column 'UNK'\. Expected image, MEL.*Remove",
    ),
    "misspelt column": (
        lambda f: f.rename(columns={"VASC": "VASCC"}),
        r"column 'VASC' is missing\. Did you mean 'VASCC'",
    ),
    "missing column": (lambda f: f.drop(columns="DF"), r"column 'DF' is missing.*official"),
    "duplicate row": (
        lambda f: pd.concat([f, f.iloc[[3]]]),
        r"1 row names an image again: .*\.csv, line 30: ISIC_0000003 is in line 5 already.*Remove",
    ),
    "two labels": (
        _second_label,
        r"1 row has several labels: .*line 4 \(ISIC_0000002\): expected one 1, found MEL and NV\. Correct",
    ),
    "no label": (lambda f: f.replace({"VASC": "1.0"}, "0.0"), r"4 rows have no label, the first: .*line 26 "),
    "no number": (lambda f: f.replace({"VASC": "1.0"}, "yes"), r"line 26 .*expected 0 or 1, found VASC 'yes'"),
    "empty name": (lambda f: f.replace("ISIC_0000000", ""), r"line 2: no image name"),
    "no rows": (lambda f: f.iloc[:0], "has no rows"),
}


@pytest.mark.parametrize("fault", ISIC_FAULTS)
def test_isic_faulty_table(isic_root, fault):
    change, message = ISIC_FAULTS[fault]
    edit_table(isic_table(isic_root), change)
    with pytest.raises(DtrapError, match=message):
        ISICDataModule(isic_root, **SIZES).setup()


def test_isic_empty_or_binary_table(isic_root):
    for content in (b"", b"\xff\xfe\x00\x81" * 50):
        isic_table(isic_root).write_bytes(content)
        with pytest.raises(DtrapError, match=r"GroundTruth\.csv"):
            ISICDataModule(isic_root).setup()


def test_isic_missing_file_is_known_at_setup(isic_root, caplog):
    (isic_root / "ISIC2018_Task3_Training_Input" / "ISIC_0001002.jpg").unlink()
    with pytest.raises(DtrapError, match=r"1 image is named but .*ISIC_0001002\.jpg.*--data\.bad_images skip"):
        ISICDataModule(isic_root, **SIZES).setup()
    data = ISICDataModule(isic_root, **{**SIZES, "query": 2}, bad_images="skip")
    data.setup()
    assert len(data.index.paths) == 27
    assert [path.endswith("ISIC_0001002.jpg") for path, _ in data.skipped_images] == [True]
    assert "ISIC_0001002.jpg" in caplog.text


@pytest.mark.parametrize("layout", [".", "2750", "source/EuroSAT", "EuroSAT/2750"])
def test_eurosat_layouts(tmp_path, layout):
    data = EuroSATDataModule(make_eurosat(tmp_path, layout=layout))
    assert data.index.class_names[-1] == "Sea or Lake"
    assert len(data.index.paths) == 40


def test_eurosat_missing_class_folder(eurosat_root):
    for path in list((eurosat_root / "2750" / "Pasture").iterdir())[1:]:
        path.unlink()
    with pytest.raises(DtrapError, match="'Pasture Land' has 1; needed: 4"):
        EuroSATDataModule(eurosat_root, **SIZES).setup()
    for path in (eurosat_root / "2750" / "Pasture").iterdir():
        path.unlink()
    with pytest.raises(DtrapError, match=r"1 class folder is empty: 2750/Pasture: .*--data\.small_classes skip"):
        EuroSATDataModule(eurosat_root, **SIZES).setup()
    (eurosat_root / "2750" / "Pasture").rmdir()
    with pytest.raises(DtrapError, match=r"2750/Pasture: no such folder\. .*--data\.small_classes skip"):
        EuroSATDataModule(eurosat_root, **SIZES).setup()
    data = EuroSATDataModule(eurosat_root, **SIZES, small_classes="skip")
    data.setup()
    assert len(data.sampler.usable_classes) == 9


@pytest.mark.parametrize("layout", [".", "train", "dataset/train", "CropDisease/dataset/train"])
def test_crop_disease_layouts(tmp_path, layout):
    data = CropDiseaseDataModule(make_crop_disease(tmp_path, layout=layout))
    (tmp_path / layout / "notes").mkdir()
    assert data.index.class_names == CROP_FOLDERS
    assert len(data.index.paths) == 24


@pytest.mark.parametrize("numbered_folders", [False, True])
def test_chestx_keeps_rows_with_one_of_the_seven_findings(tmp_path, numbered_folders):
    data = ChestXDataModule(make_chestx(tmp_path, numbered_folders=numbered_folders))
    assert data.index.class_names == CHESTX_FINDINGS
    assert data.index.labels == [label for label in range(7) for _ in range(4)]
    assert data.index.notes == (
        "1 row with several findings skipped, as the protocol says",
        "3 rows with a finding outside the 7 skipped: No Finding 2, Hernia 1",
    )


def test_chestx_images_are_rgb_of_256_pixels(chestx_root):
    image = ChestXDataModule(chestx_root).load_image(0)
    assert (image.mode, image.size) == ("RGB", (256, 256))


CHESTX_FAULTS = {
    "unknown finding": (
        lambda f: f.replace("Nodule", "Nodul"),
        r"4 rows have an unknown finding.*line 22 .*no such finding 'Nodul'\. Did you mean 'Nodule'\? Correct",
    ),
    "missing column": (
        lambda f: f.rename(columns={"Finding Labels": "Finding"}),
        r"column 'Finding Labels' is missing\. Did you mean 'Finding'",
    ),
    "duplicate row": (
        lambda f: pd.concat([f, f.iloc[[0]]]),
        r"line 34: 00000000_000\.png is in line 2 already\.",
    ),
}


@pytest.mark.parametrize("fault", CHESTX_FAULTS)
def test_chestx_faulty_table(chestx_root, fault):
    change, message = CHESTX_FAULTS[fault]
    edit_table(chestx_root / "Data_Entry_2017.csv", change)
    with pytest.raises(DtrapError, match=message):
        ChestXDataModule(chestx_root, **SIZES).setup()


def test_chestx_missing_file_or_folder(chestx_root):
    (chestx_root / "images" / "00000003_000.png").unlink()
    with pytest.raises(DtrapError, match=r"1 image is named but does not exist: .*line 5 .*00000003_000\.png"):
        ChestXDataModule(chestx_root, **SIZES).setup()
    (chestx_root / "images").rename(chestx_root.parent / "elsewhere")
    with pytest.raises(DtrapError, match=r"image folder images is missing; .* Looked for: images, images_001/images"):
        ChestXDataModule(chestx_root, **SIZES).setup()
