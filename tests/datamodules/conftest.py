import pytest
from layouts import make_chestx, make_crop_disease, make_eurosat, make_folder, make_isic
from reference_files import NO_SAMPLES, REAL_IMAGES


@pytest.fixture
def isic_root(tmp_path):
    return make_isic(tmp_path / "isic")


@pytest.fixture
def eurosat_root(tmp_path):
    return make_eurosat(tmp_path / "eurosat")


@pytest.fixture
def crop_disease_root(tmp_path):
    return make_crop_disease(tmp_path / "crop")


@pytest.fixture
def chestx_root(tmp_path):
    return make_chestx(tmp_path / "chestx")


@pytest.fixture
def folder_root(tmp_path):
    return make_folder(tmp_path / "my_photos")


@pytest.fixture(scope="session")
def real_images():
    if not REAL_IMAGES.is_dir():
        pytest.skip(NO_SAMPLES)
    return REAL_IMAGES
