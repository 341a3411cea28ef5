"""The eight shipped configs on real images of the four sets, with the demo's tiny CLIP, through the entry point."""

import json

import pytest
from reference_files import NO_SAMPLES, REAL_IMAGES

FOLDERS = {"isic": "ISIC", "eurosat": "EuroSAT", "crop_disease": "CropDisease", "chestx": "ChestX"}


@pytest.mark.skipif(not REAL_IMAGES.is_dir(), reason=NO_SAMPLES)
@pytest.mark.parametrize("shot", [1, 5])
@pytest.mark.parametrize("name", FOLDERS)
def test_real_images_run_through_the_paper_setting(dtrap, tmp_path, name, shot):
    """With a short template: the tiny CLIP has room for 16 tokens, one of CropDisease's names has 12."""
    status, out, err = dtrap(
        "fit", "--config", f"{name}_{shot}shot.yaml", "--config", "backbones/tiny.yaml",
        "--data.root", REAL_IMAGES / FOLDERS[name], "--protocol.episodes", 2, "--trainer.max_epochs", 2,
        "--protocol.pictures", 1, "--protocol.folder", "run", "--data.template", "{}.",
    )  # fmt: skip
    assert status == 0, err
    assert f"5-way {shot}-shot · 2 episodes · " in out
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert [sum(map(sum, row["confusion"])) for row in rows] == [75, 75]
    assert (tmp_path / "run" / "pictures" / "episode_0000_svl-ra.png").stat().st_size > 50_000
