import pytest
from dtrap.datamodules import ChestXDataModule, CropDiseaseDataModule, EuroSATDataModule, ISICDataModule, Preprocessing

SETS = [
    (ISICDataModule, "ISIC", 7, 210),
    (EuroSATDataModule, "EuroSAT", 10, 300),
    (CropDiseaseDataModule, "CropDisease", 20, 420),
    (ChestXDataModule, "ChestX", 7, 154),
]


@pytest.mark.parametrize(("cls", "folder", "classes", "images"), SETS)
@pytest.mark.parametrize("from_parent", [False, True])
def test_an_episode_of_real_images(real_images, cls, folder, classes, images, from_parent):
    root = real_images if from_parent else real_images / folder
    data = cls(root, preprocessing=Preprocessing(image_size=32))
    data.setup()
    assert len(data.index.class_names) == classes
    assert len(data.index.paths) == images
    assert data.support()["images"].shape == (125, 3, 32, 32)
    assert data.query()["images"].shape == (75, 3, 32, 32)
    assert data.support()["images"].std() > 0.1
    assert data.skipped_images == []
    assert data.description == f"{folder} 5-way 5-shot"


def test_isic_agrees_with_the_metadata_of_the_sample(real_images):
    rows = (real_images / "ISIC" / "HAM10000_metadata.csv").read_text().split()
    diagnosis = {row.split(",")[1]: row.split(",")[2] for row in rows if row.startswith("HAM_")}
    names = {
        "mel": "Melanoma",
        "nv": "Melanocytic Nevus",
        "bcc": "Basal Cell Carcinoma",
        "akiec": "Actinic Keratosis",
        "bkl": "Benign Keratosis",
        "df": "Dermatofibroma",
        "vasc": "Vascular Lesion",
    }
    index = ISICDataModule(real_images / "ISIC").index
    for position, label in enumerate(index.labels):
        image = index.paths[position].rsplit("/", 1)[1].removesuffix(".jpg")
        assert index.class_names[label] == names[diagnosis[image]]
