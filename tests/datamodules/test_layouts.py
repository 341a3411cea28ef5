"""Data sets as people unpack them: lower than expected, inside themselves, in another case, as another release."""

import os
import shlex
import shutil
from pathlib import Path

import pytest
from coop_layouts import COOP_MAKERS, split_file
from dtrap.datamodules import ChestXDataModule, CropDiseaseDataModule, EuroSATDataModule, FolderDataModule
from dtrap.datamodules import ISICDataModule as ISIC
from dtrap.datamodules.catalog import SETS
from dtrap.datamodules.index import DataNotFound
from dtrap.errors import DtrapError
from layouts import (
    make_chestx,
    make_class_folders,
    make_crop_disease,
    make_eurosat,
    make_isic,
)

INPUT, TRUTH = "ISIC2018_Task3_Training_Input", "ISIC2018_Task3_Training_GroundTruth"
COOP = {name.removeprefix("coop/"): cls for name, cls in SETS.items() if name.startswith("coop/")}


def move(root, old, new):
    """Move a folder, also into itself."""
    aside = root / "aside"
    (root / old).rename(aside)
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    aside.rename(root / new)


def content(index):
    """File name and class of each image."""
    return {(os.path.basename(p), index.class_names[k]) for p, k in zip(index.paths, index.labels, strict=True)}


# What unzip, Kaggle, Windows and people do to the folder of a set.
def within_archive(root, folder):
    move(root, folder, f"archive/{folder}")


def twice(root, folder):
    move(root, folder, f"{folder}/{folder}")


def second_download(root, folder):
    move(root, folder, f"{folder} (1)/{folder}")


def upper_case(root, folder):
    move(root, folder, folder.upper())


def three_down(root, folder):
    move(root, folder, f"data/new/{folder}")


CHANGES = [within_archive, twice, second_download, upper_case, three_down]
MAKERS = {
    "isic": lambda root: make_isic(root / "ISIC"),
    "eurosat": lambda root: make_eurosat(root, layout="EuroSAT/2750"),
    "crop_disease": lambda root: make_crop_disease(root, layout="CropDisease/dataset/train"),
    "chestx": lambda root: make_chestx(root / "ChestX"),
    **{f"coop/{name}": maker for name, maker in COOP_MAKERS.items()},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", MAKERS)
def test_a_set_in_another_place_is_the_same_set(tmp_path, name, change):
    MAKERS[name](tmp_path)
    before = SETS[name](tmp_path).scan()
    (folder,) = os.listdir(tmp_path)
    change(tmp_path, folder)
    after = SETS[name](tmp_path).scan()
    assert after.fingerprint() == before.fingerprint()
    assert after.class_names == before.class_names


@pytest.mark.parametrize("name", COOP)
@pytest.mark.parametrize("change", ["inside itself", "second download", "upper case"])
@pytest.mark.parametrize("with_split_file", [True, False])
def test_the_image_folder_of_a_coop_set(tmp_path, name, change, with_split_file):
    cls, root = COOP[name], COOP_MAKERS[name](tmp_path)
    (folder,) = tmp_path.iterdir()
    if not (with_split_file or cls.split_file):
        pytest.skip("the release has the split of CoOp")
    if not with_split_file:
        split_file(root).unlink()
    before = cls(root).scan()
    for images in [cls.image_folder] if cls.image_folder else ["cars_train", "cars_test"]:
        target = {"inside itself": f"{images}/{images}", "second download": f"{images} (1)"}
        move(folder, images, target.get(change, images.upper()))
    after = cls(root).scan()
    assert content(after) == content(before)
    assert after.splits == before.splits
    assert after.missing == ()


RELEASES = {
    "eurosat/2750 of torchvision": ("eurosat", "eurosat/2750"),
    "EuroSAT_RGB of Zenodo": ("eurosat", "EuroSAT_RGB/EuroSAT_RGB"),
    "PlantVillage, color": ("crop_disease", "PlantVillage-Dataset-master/raw/color"),
    "PlantVillage of Kaggle": ("crop_disease", "plantvillage dataset/color"),
    "PlantVillage, train and val": ("crop_disease", "PlantVillage/PlantVillage/train"),
    "PlantVillage of Mendeley": ("crop_disease", "Plant_leave_diseases_dataset_without_augmentation"),
}
NEXT_TO = {"color": ["grayscale", "segmented"], "train": ["val"]}


@pytest.mark.parametrize("release", RELEASES)
def test_class_folders_of_another_release(tmp_path, release):
    name, layout = RELEASES[release]
    maker = {"eurosat": make_eurosat, "crop_disease": make_crop_disease}[name]
    maker(tmp_path, layout=layout)
    others = [str(Path(layout).with_name(other)) for other in NEXT_TO.get(Path(layout).name, ())]
    for other in others:
        maker(tmp_path, per_class=1, layout=other)
    index = SETS[name](tmp_path).scan()
    assert index.roots == (str(tmp_path / layout),)
    assert len(index.paths) == 4 * len(index.class_names)
    assert all(any(str(tmp_path / other) in note for note in index.notes) for other in others)
    assert any(f"read from {tmp_path / layout}" in note for note in index.notes) == (release[:12] != "eurosat/2750")


def test_an_augmented_release_is_said(tmp_path):
    folder = "New Plant Diseases Dataset(Augmented)"
    for part in ("train", "valid"):
        make_crop_disease(tmp_path, layout=f"{folder}/{folder}/{part}")
    index = CropDiseaseDataModule(tmp_path).scan()
    assert index.roots == (str(tmp_path / folder / folder / "train"),)
    assert any("augmented release" in note for note in index.notes)


def test_plantvillage_with_other_class_folders(tmp_path):
    """As a release on Kaggle has it: 15 classes in other spellings, all of them once more inside."""
    folders = ["Tomato_Early_blight", "Tomato__Tomato_YellowLeaf__Curl_Virus", "Pepper__bell___healthy", "Potato___x"]
    make_class_folders(tmp_path / "PlantVillage", folders, 3)
    make_class_folders(tmp_path / "PlantVillage/PlantVillage", folders, 3)
    make_class_folders(tmp_path / "PlantVillage", ["Background_without_leaves"], 2)
    index = CropDiseaseDataModule(tmp_path).scan()
    assert index.class_names == [
        "Pepper,_bell___healthy",
        "Potato___x",
        "Tomato___Early_blight",
        "Tomato___Tomato_Yellow_Leaf_Curl_Virus",
    ]
    assert len(index.paths) == 12
    assert any("Background_without_leaves: 2 image(s)" in note for note in index.notes)


def test_two_folders_of_one_class_are_two_classes(tmp_path):
    make_class_folders(tmp_path, ["Tomato___Early_blight", "Tomato_Early_blight", "Tomato___healthy"], 2)
    index = CropDiseaseDataModule(tmp_path).scan()
    assert index.class_names == ["Tomato___Early_blight", "Tomato___healthy"]
    assert any("Tomato_Early_blight: 2 image(s)" in note for note in index.notes)


def test_class_folders_in_lower_case(tmp_path):
    before = content(EuroSATDataModule(make_eurosat(tmp_path, layout="EuroSAT")).scan())
    for path in list((tmp_path / "EuroSAT").iterdir()):
        path.rename(path.with_name(path.name.lower()))
    assert content(EuroSATDataModule(tmp_path).scan()) == before


def test_several_places_that_fit_are_named(tmp_path):
    for place in ("first/2750", "second/2750"):
        make_eurosat(tmp_path, layout=place)
    with pytest.raises(DtrapError, match=r"first/2750, .*second/2750\. Give one: --data\.root .*first/2750$"):
        EuroSATDataModule(tmp_path).scan()
    assert len(EuroSATDataModule(tmp_path / "second").scan().paths) == 40


def test_the_release_of_13_bands_is_named(tmp_path):
    make_eurosat(tmp_path, layout="x/EuroSATallBands")
    with pytest.raises(DtrapError, match=r"EuroSATallBands is the release with 13 bands .*Expected the RGB release"):
        EuroSATDataModule(tmp_path).scan()
    make_eurosat(tmp_path, layout="x/EuroSAT")
    assert EuroSATDataModule(tmp_path).scan().roots == (str(tmp_path / "x/EuroSAT"),)


@pytest.mark.parametrize(
    ("truth", "images"),
    [
        (TRUTH, f"{INPUT}/{INPUT}"),
        (f"{TRUTH} (1)/{TRUTH}", f"{INPUT} (1)/{INPUT}"),
        (f"archive/{TRUTH}", f"archive/{INPUT}"),
        (TRUTH, INPUT.lower()),
        ("a/b", "a/b"),
    ],
)
def test_isic_folders(tmp_path, truth, images):
    before = ISIC(make_isic(tmp_path)).scan()
    move(tmp_path, TRUTH, truth if truth != "a/b" else "a/table")
    move(tmp_path, INPUT, images)
    index = ISIC(tmp_path).scan()
    assert index.fingerprint() == before.fingerprint()
    assert any(str(tmp_path / images) in note for note in index.notes)


def test_ham10000_as_kaggle_and_dataverse_have_it(tmp_path):
    root = make_isic(tmp_path)
    before = content(ISIC(root).scan())
    lines = (root / TRUTH / f"{TRUTH}.csv").read_text().split()
    columns = lines[0].lower().split(",")[1:]
    rows = [row.split(",") for row in lines[1:]]
    metadata = ["lesion_id,image_id,dx,age", *(f"HAM_1,{name},{columns[ones.index('1.0')]}," for name, *ones in rows)]
    shutil.rmtree(root / TRUTH)
    for number, path in enumerate(sorted((root / INPUT).iterdir())):
        part = root / f"HAM10000_images_part_{1 + number % 2}"
        part.mkdir(exist_ok=True)
        path.rename(part / path.name)
    for name, separator in (
        ("HAM10000_metadata.csv", ","),
        ("HAM10000_metadata.tab", "\t"),
        ("HAM10000_metadata", ","),
    ):
        table = root / name
        table.write_text("\n".join(metadata).replace(",", separator))
        index = ISIC(root).scan()
        assert content(index) == before
        assert any(f"the labels are those of {name}" in note for note in index.notes)
        table.unlink()
    (root / "HAM10000_metadata.csv").write_text("\n".join(metadata).replace(",mel,", ",melanoma,", 1))
    with pytest.raises(DtrapError, match=r"line 2 .*no such diagnosis 'melanoma'"):
        ISIC(root).scan()


def test_an_image_in_two_folders_is_refused(tmp_path):
    root = make_isic(tmp_path)
    shutil.copytree(root / INPUT, root / "small")
    move(root, INPUT, "large")
    with pytest.raises(DtrapError, match=r"ISIC_0000000 is in two folders: .*large and .*small\. Remove one"):
        ISIC(root).scan()
    move(root, "large", INPUT)
    assert len(ISIC(root).scan().paths) == 28  # the official folder is the set's


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("ISIC_2019_Training_GroundTruth.csv", "the table of ISIC 2019, another set with 8 classes"),
        ("ISIC2018_Task3_Test_GroundTruth.csv", "the table of the test images"),
    ],
)
def test_another_table_of_isic_is_named(tmp_path, name, told):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / name).write_text("image,MEL\n")
    with pytest.raises(DtrapError, match=rf"{name} is {told}\. Expected {TRUTH}\.csv"):
        ISIC(tmp_path).scan()


@pytest.mark.parametrize("table", ["Data_Entry_2017_v2020.csv", "Data_Entry_2017 (1).csv", "data_entry_2017.csv"])
@pytest.mark.parametrize("images", ["images", "images/images", "images-224/images-224", "IMAGES", "x/images_001"])
def test_chestx_tables_and_folders(tmp_path, table, images):
    before = content(ChestXDataModule(make_chestx(tmp_path)).scan())
    move(tmp_path, "images", images)
    (tmp_path / "Data_Entry_2017.csv").rename(tmp_path / table)
    assert content(ChestXDataModule(tmp_path).scan()) == before


def dicom(folder, count=3):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.dcm").touch()


def test_dicom_files_are_named_with_what_to_do(tmp_path):
    told = r"3 DICOM files, and no image .* dcmj2pnm --write-png"
    root = make_isic(tmp_path / "isic")
    shutil.rmtree(root / INPUT)
    dicom(root / INPUT)
    with pytest.raises(DtrapError, match=told) as error:
        ISIC(root).scan()
    assert "Complete the download" not in str(error.value)
    dicom(tmp_path / "chestx" / "images")
    with pytest.raises(DataNotFound, match=told):
        ChestXDataModule(tmp_path / "chestx").scan()
    dicom(tmp_path / "own" / "cat", 1)
    dicom(tmp_path / "own" / "dog", 2)
    with pytest.raises(DtrapError, match=told):
        FolderDataModule(tmp_path / "own").scan()


def test_dicom_files_without_an_ending_are_known_by_their_mark(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
        (tmp_path / label / "1.2.840.3").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(DtrapError, match=r"4 DICOM files, and no image"):
        FolderDataModule(tmp_path).scan()


@pytest.mark.parametrize("above", ["wrap", "wrap/wrap", "a b/c"])
def test_class_folders_some_levels_down_are_named_by_every_command(dtrap, tmp_path, above):
    make_class_folders(tmp_path / "root" / above, ["cat", "dog"], 2)
    where = tmp_path / "root" / above
    for words in (["fit", "--config", "folder.yaml", "--data.root", "root"], ["data", "check", tmp_path / "root"]):
        status, _, err = dtrap(*words)
        assert status == 2
        assert shlex.split(err.partition("--data.root ")[2].partition(";")[0])[0].endswith(str(Path("root", above)))
    assert len(FolderDataModule(where).scan().paths) == 4


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("EuroSAT.zip", r"There is an archive, .*EuroSAT\.zip: if it is this set, unpack it there"),
        ("data/train-00000-of-00001.parquet", r"tables of pictures such as .*\.parquet, which are not read"),
    ],
)
def test_what_is_there_instead(tmp_path, file, told):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    with pytest.raises(DataNotFound, match=told):
        EuroSATDataModule(tmp_path).scan()


@pytest.mark.parametrize("name", ["isic", "eurosat", "coop/stanford_cars", "coop/dtd"])
def test_a_root_that_is_too_low_names_the_right_one(tmp_path, name):
    MAKERS[name](tmp_path)
    (folder,) = tmp_path.iterdir()
    low = {"isic": INPUT, "eurosat": "2750/Forest", "coop/stanford_cars": "cars_train", "coop/dtd": "images/banded"}
    with pytest.raises(DataNotFound, match=r"It is in a folder above: --data\.root (\S+)\.$") as error:
        SETS[name](folder / low[name]).scan()
    right = str(error.value).rpartition("--data.root ")[2].rstrip(".")
    assert content(SETS[name](right).scan()) == content(SETS[name](tmp_path).scan())


def test_a_check_of_one_set_says_what_its_folder_holds(dtrap, tmp_path):
    (tmp_path / "stanford_cars" / "car_data").mkdir(parents=True)
    status, out, err = dtrap("data", "check", tmp_path, "--set", "coop/stanford_cars")
    assert (status, out.strip()) == (2, "")
    assert f"{tmp_path / 'stanford_cars'} holds car_data/" in err
    assert "No known data set" not in err
    COOP_MAKERS["stanford_cars"](tmp_path / "x")
    status, out, err = dtrap("data", "check", tmp_path, "--set", "coop/stanford_cars")
    assert (status, err) == (1, "")
    assert "train 18 / 6,509 · val 6 / 1,635 · test 18 / 8,041" in out


def test_images_of_a_split_that_are_elsewhere_are_named(tmp_path):
    COOP_MAKERS["dtd"](tmp_path)
    images = tmp_path / "dtd" / "images"
    (images / "more").mkdir()
    for path in list((images / "veined").iterdir())[:2]:
        path.rename(images / "more" / path.name.replace("image", "image"))
    for path in (images / "banded").iterdir():
        path.unlink()
    (images / "banded").rmdir()
    with pytest.raises(DtrapError, match=r"files with their names are in .*images/more: move them to"):
        COOP["dtd"](tmp_path).scan()


def test_a_folder_that_only_looks_like_it_is_not_taken(tmp_path):
    """One class folder is no set, and a set that is complete is not looked for elsewhere."""
    make_class_folders(tmp_path / "photos", ["Forest", "Harbor"], 2)
    make_eurosat(tmp_path, layout="EuroSAT/2750")
    assert EuroSATDataModule(tmp_path).scan().roots == (str(tmp_path / "EuroSAT/2750"),)
    with pytest.raises(DataNotFound):
        CropDiseaseDataModule(tmp_path).scan()


def test_folders_of_systems_and_links_in_a_circle_are_not_searched(tmp_path):
    make_eurosat(tmp_path, layout="x/__MACOSX/EuroSAT")
    make_eurosat(tmp_path, layout="x/.cache/EuroSAT")
    (tmp_path / "x" / "loop").symlink_to(tmp_path)
    (tmp_path / "x" / "self").symlink_to("self")
    with pytest.raises(DataNotFound):
        EuroSATDataModule(tmp_path).scan()


def test_a_class_may_be_called_train(tmp_path):
    make_class_folders(tmp_path, ["bus", "train", "test bench"], 2)
    make_class_folders(tmp_path / "train", ["2024-05", "2024-06"], 2)
    assert FolderDataModule(tmp_path).scan().class_names == ["bus", "test bench", "train"]
