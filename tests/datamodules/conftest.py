from pathlib import Path

import pytest
from layouts import make_chestx, make_crop_disease, make_eurosat, make_folder, make_isic

REAL = Path(__file__).parents[2].parent / "shared" / "real" / "images"


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
    if not REAL.is_dir():
        pytest.skip(f"no real samples at {REAL}")
    return REAL
