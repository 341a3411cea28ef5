"""The official layouts of CoOp's eleven sets, each with its split file and its release's own lists, at small scale."""

import json
from pathlib import Path

import numpy as np
from layouts import picture
from scipy.io import savemat

# Class folders (or what stands for them) and the class names of the split file.
CALTECH101 = {
    "Faces": "face",
    "airplanes": "airplane",
    "Leopards": "leopard",
    "yin_yang": "yin_yang",
    "water_lilly": "water_lilly",
    "ant": "ant",
}
PETS = ["Abyssinian", "american_bulldog", "Bengal", "British_Shorthair", "pug", "yorkshire_terrier"]
CARS = [
    "AM General Hummer SUV 2000",
    "Acura TL Type-S 2008",
    "Ram C/V Cargo Van Minivan 2012",
    "smart fortwo Convertible 2012",
    "Mercedes-Benz 300-Class Convertible 1993",
    "Bugatti Veyron 16.4 Coupe 2009",
]
FLOWERS = ["pink primrose", "colt's foot", "black-eyed susan", "globe-flower", 'the "queen"', "fleur de Mālia"]
FOOD = ["apple_pie", "crème_brûlée", "fish_and_chips", "macaroni_and_cheese", "pho", "waffles"]
AIRCRAFT = ["707-320", "F/A-18", "MD-11", "An-12", "Cessna 172", "Spitfire"]
SUN = {
    "a/abbey": "abbey",
    "a/apse/indoor": "indoor apse",
    "a/athletic_field/outdoor": "outdoor athletic_field",
    "b/bar": "bar",
    "y/yard": "yard",
    "c/church/indoor": "indoor church",
}
DTD = ["banded", "blotchy", "polka-dotted", "lacelike", "veined", "zigzagged"]
EUROSAT = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "Highway": "Highway or Road",
    "Pasture": "Pasture Land",
    "River": "River",
    "SeaLake": "Sea or Lake",
}
UCF101 = ["Apply_Eye_Makeup", "Archery", "Handstand_Pushups", "Playing_Daf", "Tai_Chi", "Yo_Yo"]
IMAGENET = {
    "n01440764": "tench",
    "n01491361": "tiger shark",
    "n02834778": "tandem bicycle",
    "n03627232": "knot",
    "n04355933": "sunglasses",
    "n04356056": "sunglasses",
}
# Sets with class names that leave no room for their template in the 16 tokens of the tiny model.
LONG_NAMES = ("stanford_cars", "flowers102", "food101", "fgvc_aircraft")
PARTS = ("train", "val", "test")


def _save(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number).save(path)


def _write_split(folder, file, images, classes, counts):
    """Images under a folder, and the split file; a class is a path of a number (test images: below 0) and a name."""
    split = {part: [] for part in PARTS}
    for label, (path_of, name) in enumerate(classes):
        number = 0
        for part, count in zip(PARTS, counts, strict=True):
            for _ in range(count):
                number += 1
                path = path_of(number) if part != "test" else path_of(-number)
                _save(folder / images / path, 1000 * label + number)
                split[part].append([path, label, name])
    (folder / file).write_text(json.dumps(split))
    return split


def _folders(classes, ending="jpg"):
    names = dict.fromkeys(classes) if isinstance(classes, list) else classes
    return [(lambda n, f=folder: f"{f}/image_{abs(n):04d}.{ending}", name or folder) for folder, name in names.items()]


def make_imagenet(root, counts=(3, 0, 3)):
    """ImageFolder under `images/train` and `images/val`, and CLIP's class names."""
    folder = root / "imagenet"
    for label, wnid in enumerate(IMAGENET):
        for number in range(counts[0]):
            _save(folder / "images" / "train" / wnid / f"{wnid}_{number}.JPEG", 1000 * label + number)
        for number in range(counts[2]):
            _save(folder / "images" / "val" / wnid / f"ILSVRC2012_val_{number:08d}.JPEG", 1000 * label + 500 + number)
    (folder / "classnames.txt").write_text("".join(f"{wnid} {name}\n" for wnid, name in IMAGENET.items()))
    return root


def make_caltech101(root, counts=(3, 1, 3)):
    """Class folders in `101_ObjectCategories`, with the two that are no classes."""
    folder = root / "caltech-101"
    _write_split(folder, "split_zhou_Caltech101.json", "101_ObjectCategories", _folders(CALTECH101), counts)
    for name in ("BACKGROUND_Google", "Faces_easy"):
        _save(folder / "101_ObjectCategories" / name / "image_0001.jpg", 1)
    return root


def make_oxford_pets(root, counts=(3, 1, 3)):
    """All images in one folder, breeds in their names."""
    folder = root / "oxford_pets"
    classes = [(lambda n, b=breed: f"{b}_{abs(n)}.jpg", breed.lower()) for breed in PETS]
    split = _write_split(folder, "split_zhou_OxfordPets.json", "images", classes, counts)
    (folder / "annotations").mkdir()
    for file, parts in (("trainval", ("train", "val")), ("test", ("test",))):
        lines = [f"{path[:-4]} {label + 1} 1 1\n" for part in parts for path, label, _ in split[part]]
        (folder / "annotations" / f"{file}.txt").write_text("".join(lines))
    return root


def make_stanford_cars(root, counts=(3, 1, 3)):
    """`cars_train/`, `cars_test/` and the MATLAB files of the devkit."""
    folder = root / "stanford_cars"
    classes = []
    for label, name in enumerate(CARS):
        *model, year = name.split(" ")

        def path_of(number, label=label):
            return f"cars_{'train' if number > 0 else 'test'}/{100 * label + abs(number):05d}.jpg"

        classes.append((path_of, " ".join([year, *model])))
    split = _write_split(folder, "split_zhou_StanfordCars.json", "", classes, counts)
    (folder / "devkit").mkdir()
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(CARS, dtype=object)[None]})
    for file, parts in (
        ("devkit/cars_train_annos.mat", ("train", "val")),
        ("cars_test_annos_withlabels.mat", ("test",)),
    ):
        rows = [(label + 1, path.split("/")[1]) for part in parts for path, label, _ in split[part]]
        savemat(folder / file, {"annotations": np.array([rows], dtype=[("class", object), ("fname", object)])})
    return root


def make_flowers102(root, counts=(3, 1, 3)):
    """Numbered images, `imagelabels.mat` and `cat_to_name.json`; labels in no order."""
    folder = root / "oxford_flowers"
    total = sum(counts)
    classes = [
        (lambda n, k=label: f"image_{k + 1 + len(FLOWERS) * (abs(n) - 1):05d}.jpg", n)
        for label, n in enumerate(FLOWERS)
    ]
    _write_split(folder, "split_zhou_OxfordFlowers.json", "jpg", classes, counts)
    labels = np.tile(np.arange(1, len(FLOWERS) + 1, dtype=np.uint8), total)[None]
    savemat(folder / "imagelabels.mat", {"labels": labels})
    names = {str(label + 1): name for label, name in reversed(list(enumerate(FLOWERS)))}
    (folder / "cat_to_name.json").write_text(json.dumps(names))
    return root


def make_food101(root, counts=(3, 1, 3)):
    """Class folders in `images`."""
    _write_split(root / "food-101", "split_zhou_Food101.json", "images", _folders(FOOD), counts)
    return root


def make_fgvc_aircraft(root, counts=(3, 1, 3)):
    """Numbered images and the lists of the release."""
    folder = root / "fgvc_aircraft"
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("".join(f"{name}\n" for name in AIRCRAFT))
    number = 34308
    for part, count in zip(PARTS, counts, strict=True):
        lines = []
        for name in AIRCRAFT * count:
            number += 1
            _save(folder / "images" / f"{number:07d}.jpg", number)
            lines.append(f"{number:07d} {name}\n")
        (folder / f"images_variant_{part}.txt").write_text("".join(lines))
    return root


def make_sun397(root, counts=(3, 1, 3)):
    """Class folders by first letter, and the partitions of the release."""
    folder = root / "sun397"
    split = _write_split(folder, "split_zhou_SUN397.json", "SUN397", _folders(SUN), counts)
    (folder / "ClassName.txt").write_text("".join(f"/{name}\n" for name in SUN))
    for file, parts in (("Training", ("train", "val")), ("Testing", ("test",))):
        lines = [f"/{path}\n" for part in parts for path, _, _ in split[part]]
        (folder / f"{file}_01.txt").write_text("".join(lines))
    return root


def make_dtd(root, counts=(3, 1, 3)):
    """Class folders in `images`."""
    _write_split(root / "dtd", "split_zhou_DescribableTextures.json", "images", _folders(DTD), counts)
    return root


def make_coop_eurosat(root, counts=(3, 1, 3)):
    """Class folders in `2750`."""
    _write_split(root / "eurosat", "split_zhou_EuroSAT.json", "2750", _folders(EUROSAT), counts)
    return root


def make_ucf101(root, counts=(3, 1, 3)):
    """Middle frames in class folders; the test images are those of groups 1 to 7."""

    def path_of(number, folder):
        group = 7 + number if number > 0 else 1 + abs(number) % 7
        return f"{folder}/v_{folder.replace('_', '')}_g{group:02d}_c{abs(number):02d}.jpg"

    classes = [(lambda n, f=folder: path_of(n, f), folder) for folder in UCF101]
    _write_split(root / "ucf101", "split_zhou_UCF101.json", "UCF-101-midframes", classes, counts)
    return root


COOP_MAKERS = {
    "imagenet": make_imagenet,
    "caltech101": make_caltech101,
    "oxford_pets": make_oxford_pets,
    "stanford_cars": make_stanford_cars,
    "flowers102": make_flowers102,
    "food101": make_food101,
    "fgvc_aircraft": make_fgvc_aircraft,
    "sun397": make_sun397,
    "dtd": make_dtd,
    "eurosat": make_coop_eurosat,
    "ucf101": make_ucf101,
}


def split_file(root: Path) -> Path:
    """The one split file under a root."""
    (path,) = root.rglob("split_zhou_*.json")
    return path
