"""Sources of the data sets: addresses, checksums, licenses, folders, and instructions for downloads by hand.

The addresses and md5 checksums of Caltech101, DTD, EuroSAT, Flowers102, Food101, OxfordPets and SUN397 and the address
of FGVCAircraft come from torchvision's dataset classes (0.29). Its downloader is not used: it cannot resume, has no
timeout, falls back from https to http, and unpacks tar archives without a filter. The md5 checksum of FGVCAircraft
comes from public code. The sizes, and the checksum of SUN397's partitions, come from TensorFlow Datasets. No checksum
of ISIC's images is published; their number of bytes is pinned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import PurePosixPath

COOP_PAGE = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
_ISIC = "https://isic-challenge-data.s3.amazonaws.com/2018/"
_VGG = "https://www.robots.ox.ac.uk/~vgg/data/"
_SUN = "vision.princeton.edu/projects/2010/SUN/"


@dataclass(frozen=True)
class RemoteFile:
    """A file to download, and the file or folder that it becomes.

    Attributes:
        url: Address; its last part is the file's name.
        makes: File or folder under the root that exists once this file is downloaded and unpacked.
        checksum: `md5:...` or `sha256:...`; None if none is published.
        size: Number of bytes; None if it is not known exactly.
        archive: Whether to unpack it: the contents of `inside` go to the folder that holds `makes`.
        inside: Folder of the archive; the whole archive by default.
        nested: Archive within the archive to unpack instead.
    """

    url: str
    makes: str
    checksum: str | None = None
    size: int | None = None
    archive: bool = True
    inside: str = ""
    nested: str = ""

    @property
    def name(self) -> str:
        """Name of the file."""
        return PurePosixPath(self.url).name


@dataclass(frozen=True)
class Source:
    """The source of a data set.

    Attributes:
        title: Name of the set.
        page: Address of its home page.
        license: License as the home page states it.
        size: Size of the download, as text.
        folder: Folder of the set under the root.
        files: Files to download; empty if the set has to be downloaded by hand.
        present: Paths under the root, for a set without files; if one of them exists, the set does.
        by_hand: Instructions for a download by hand; `{root}` is replaced by the root.
        companions: Small files to download from CoOp's page into the folder.
    """

    title: str
    page: str
    license: str
    size: str
    folder: str
    files: tuple[RemoteFile, ...] = ()
    present: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()
    companions: tuple[str, ...] = ()


_CROSS_DOMAIN = {
    "isic": Source(
        "ISIC 2018 task 3 (HAM10000)",
        "https://challenge.isic-archive.com/data/#2018",
        "CC BY-NC 4.0 (not for commercial use; attribution)",
        "2.8 GB",
        "ISIC",
        (
            RemoteFile(
                _ISIC + "ISIC2018_Task3_Training_GroundTruth.zip",
                "ISIC/ISIC2018_Task3_Training_GroundTruth",
                "md5:8302427e4ce0c107559531b9f444abe9",
            ),
            RemoteFile(
                _ISIC + "ISIC2018_Task3_Training_Input.zip",
                "ISIC/ISIC2018_Task3_Training_Input",
                size=2771732744,
            ),
        ),
    ),
    "eurosat": Source(
        "EuroSAT (RGB)",
        "https://github.com/phelber/EuroSAT",
        "MIT; Copernicus Sentinel data terms",
        "94 MB",
        "eurosat",
        (
            RemoteFile(
                "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                "eurosat/2750",
                "md5:c8fa014336c82ac7804f0398fcb19387",
                94280567,
            ),
        ),
    ),
    "crop_disease": Source(
        "CropDisease (PlantVillage)",
        "https://www.kaggle.com/datasets/saroz014/plant-disease",
        "usually given as CC BY-SA 3.0 or CC0; see the page",
        "see the page",
        "CropDisease",
        present=("CropDisease/dataset/train",),
        by_hand=(
            "Kaggle requires an account. Download the archive from the page above and unpack it into "
            "{root}/CropDisease, or use Kaggle's command:",
            "  kaggle datasets download saroz014/plant-disease --path {root}/CropDisease --unzip",
            "{root}/CropDisease/dataset/train must hold 38 folders such as Apple___Apple_scab.",
        ),
    ),
    "chestx": Source(
        "ChestX (NIH ChestX-ray14)",
        "https://nihcc.app.box.com/v/ChestXray-NIHCC",
        "free use with attribution to the NIH Clinical Center",
        "about 45 GB",
        "ChestX",
        present=("ChestX/Data_Entry_2017.csv", "ChestX/Data_Entry_2017_v2020.csv"),
        by_hand=(
            "The file addresses of NIH's Box change, so they cannot be listed here. Download from the page above "
            "Data_Entry_2017_v2020.csv (or Data_Entry_2017.csv) and, from its folder images, the twelve archives "
            "images_001.tar.gz .. images_012.tar.gz with their checksums into {root}/ChestX. Then run:",
            "  cd {root}/ChestX && for archive in images_*.tar.gz; do tar -xzf $archive; done",
            "{root}/ChestX/images must hold 112,120 PNG files, next to the table.",
            "The twelve folders images_001/images .. images_012/images of Kaggle's nih-chest-xrays/data can be used "
            "without merging them.",
        ),
    ),
}

_BY_HAND = {
    "coop/imagenet": Source(
        "ImageNet (ILSVRC 2012)",
        "https://image-net.org/download.php",
        "non-commercial research and teaching, after signing the terms",
        "about 145 GB",
        "imagenet",
        present=("imagenet/images/train",),
        by_hand=(
            "Sign in at the page above and download ILSVRC2012_img_train.tar (which holds one archive for each of the "
            "1,000 classes) and ILSVRC2012_img_val.tar. Unpack them to",
            "  {root}/imagenet/images/train/n01440764/*.JPEG   (1,000 folders)",
            "  {root}/imagenet/images/val/n01440764/*.JPEG     (the 50,000 images, sorted into the same 1,000 folders)",
        ),
        companions=("classnames.txt",),
    ),
    "coop/stanford_cars": Source(
        "StanfordCars",
        "https://github.com/pytorch/vision/issues/7545",
        "not stated; the original page offered it for research",
        "about 2 GB",
        "stanford_cars",
        present=("stanford_cars/cars_train",),
        by_hand=(
            "The original address (ai.stanford.edu/~jkrause/cars) is gone, and torchvision no longer downloads the "
            "set. The thread above names mirrors. Download these files from one of them:",
            "  {root}/stanford_cars/cars_train/*.jpg                  (8,144 images)",
            "  {root}/stanford_cars/cars_test/*.jpg                   (8,041 images)",
            "  {root}/stanford_cars/devkit/cars_train_annos.mat, cars_meta.mat",
            "  {root}/stanford_cars/cars_test_annos_withlabels.mat",
        ),
        companions=("split_zhou_StanfordCars.json",),
    ),
    "coop/ucf101": Source(
        "UCF101 (middle frames)",
        f"{COOP_PAGE}#ucf101",
        "not stated; videos from YouTube",
        "see the page",
        "ucf101",
        present=("ucf101/UCF-101-midframes",),
        by_hand=(
            "CoOp extracted the frames and keeps them on Google Drive. Download UCF-101-midframes.zip from the page "
            "above, then run:",
            "  unzip UCF-101-midframes.zip -d {root}/ucf101",
            "{root}/ucf101/UCF-101-midframes must hold 101 folders such as Apply_Eye_Makeup.",
        ),
        companions=("split_zhou_UCF101.json",),
    ),
}

_TORCHVISION = {
    "coop/caltech101": Source(
        "Caltech101",
        "https://data.caltech.edu/records/mzrjq-6wc02",
        "CC BY 4.0",
        "137 MB",
        "caltech-101",
        (
            RemoteFile(
                "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                "caltech-101/101_ObjectCategories",
                "md5:3138e1922a9193bfa496528edbbc45d0",
                nested="caltech-101/101_ObjectCategories.tar.gz",
            ),
        ),
        companions=("split_zhou_Caltech101.json",),
    ),
    "coop/oxford_pets": Source(
        "OxfordPets (Oxford-IIIT Pet)",
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
        "CC BY-SA 4.0",
        "811 MB",
        "oxford_pets",
        (
            RemoteFile(
                _VGG + "pets/data/annotations.tar.gz",
                "oxford_pets/annotations",
                "md5:95a8c909bbe2e81eed6a22bccdf3f68f",
                19173078,
            ),
            RemoteFile(
                _VGG + "pets/data/images.tar.gz",
                "oxford_pets/images",
                "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c",
                791918971,
            ),
        ),
        companions=("split_zhou_OxfordPets.json",),
    ),
    "coop/flowers102": Source(
        "Flowers102 (Oxford 102 flowers)",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        "not stated; images from the web, for research",
        "345 MB",
        "oxford_flowers",
        (
            RemoteFile(
                _VGG + "flowers/102/imagelabels.mat",
                "oxford_flowers/imagelabels.mat",
                "md5:e0620be6f572b9609742df49c70aed4d",
                502,
                archive=False,
            ),
            RemoteFile(
                _VGG + "flowers/102/102flowers.tgz",
                "oxford_flowers/jpg",
                "md5:52808999861908f626f3c1f4e79d11fa",
                344862509,
            ),
        ),
        companions=("split_zhou_OxfordFlowers.json", "cat_to_name.json"),
    ),
    "coop/food101": Source(
        "Food101",
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        "images from Foodspotting; ask their owners for uses beyond scientific fair use",
        "5.0 GB",
        "food-101",
        (
            RemoteFile(
                "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                "food-101/images",
                "md5:85eeb15f3717b99a5da872d97d918f87",
                4996278331,
                inside="food-101",
            ),
        ),
        companions=("split_zhou_Food101.json",),
    ),
    "coop/fgvc_aircraft": Source(
        "FGVCAircraft (2013b)",
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        "non-commercial research only",
        "2.75 GB",
        "fgvc_aircraft",
        (
            RemoteFile(
                _VGG + "fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                "fgvc_aircraft/images",
                "md5:d4acdd33327262359767eeaa97a4f732",
                inside="fgvc-aircraft-2013b/data",
            ),
        ),
    ),
    "coop/sun397": Source(
        "SUN397",
        "https://vision.princeton.edu/projects/2010/SUN/",
        "not stated; images from the web, for research",
        "39 GB",
        "sun397",
        (
            RemoteFile(
                f"http://{_SUN}SUN397.tar.gz",
                "sun397/SUN397",
                "md5:8ca2778205c41d23104230ba66911c7a",
                39077296924,
            ),
            RemoteFile(
                f"https://{_SUN}download/Partitions.zip",
                "sun397/ClassName.txt",
                "sha256:e3311ea5f812d4cc6faef194688343d1111f6cd6f70f2c62f393c2b8d6ba1ec9",
                18293705,
            ),
        ),
        companions=("split_zhou_SUN397.json",),
    ),
    "coop/dtd": Source(
        "DTD (describable textures)",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        "for research purposes",
        "625 MB",
        "dtd",
        (
            RemoteFile(
                _VGG + "dtd/download/dtd-r1.0.1.tar.gz",
                "dtd/images",
                "md5:fff73e5086ae6bdbea199a49dfb8a4c1",
                625239812,
                inside="dtd",
            ),
        ),
        companions=("split_zhou_DescribableTextures.json",),
    ),
    "coop/eurosat": replace(_CROSS_DOMAIN["eurosat"], companions=("split_zhou_EuroSAT.json",)),
}

SOURCES: dict[str, Source] = {**_CROSS_DOMAIN, **_BY_HAND, **_TORCHVISION}
