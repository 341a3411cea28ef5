"""Runs with `--model.random_words`: their names, their identity, and their adapters."""

import csv
import json

import pytest
from run_folders import rows_of

SENTENCES = """\
Annual Crop Land: ["a satellite photo of {}.", fields in rows]
Forest: many trees
Herbaceous Vegetation Land: [grass and low plants]
Highway or Road: a gray line for cars
Industrial Buildings: large flat roofs
Pasture Land: green grass for cows
Permanent Crop Land: vineyards and orchards
Residential Buildings: small roofs with gardens
River: a blue band with banks
Sea or Lake: water
"""


@pytest.fixture
def described(words, tmp_path):
    (tmp_path / "texts.yaml").write_text(SENTENCES)
    return [*words[:-2], "--model.descriptions", "texts.yaml", "--protocol.episodes", "1", "--protocol.folder", "run"]


def test_names_say_it_and_adapters_keep_the_words(dtrap, described, root, tmp_path):
    (tmp_path / "control.yaml").write_text("model: {random_words: 1}\n")
    status, out, err = dtrap(*described, "--protocol.compare", "control.yaml", "--protocol.save_adapters", "true")
    assert status == 0, err
    assert [row["method"] for row in rows_of(tmp_path / "run")] == ["svl-ra", "svl-ra-random_words_1"]
    assert "svl-ra-random_words_1" in out
    adapter = tmp_path / "run" / "adapters" / "episode_0000_svl-ra-random_words_1.safetensors"
    card = json.loads(adapter.with_suffix(".json").read_text())
    assert "fields in rows" not in str(card["prompts"])
    (tmp_path / "texts.yaml").unlink()
    for config in ([], ["--config", tmp_path / "run" / "config.svl-ra-random_words_1.yaml"]):
        status, _, err = dtrap(
            "predict", *config, "--adapter", adapter, "--images", root / "2750" / "Forest", "--overwrite"
        )
        assert status == 0, err
        with (tmp_path / "predictions.csv").open() as file:
            assert len(list(csv.reader(file))) > 1
    status, out, err = dtrap("test", "--adapter", adapter, "--data.root", root)
    assert status == 0, err


def test_it_is_part_of_the_identity_also_of_a_main_method(dtrap, described, tmp_path):
    status, _, err = dtrap(*described, "--model.random_words", 1, "--protocol.compare", "methods/baseline.yaml")
    assert status == 0, err
    names = [row["method"] for row in rows_of(tmp_path / "run")]
    assert names == ["svl-ra-random_words_1", "baseline-random_words_1"]
    status, _, err = dtrap(*described, "--model.random_words", 2, "--protocol.method", names[0])
    assert status == 2
    assert "model.random_words: 1 in the folder, 2 now" in err


@pytest.mark.parametrize("value", ["true", "many", "1.5", "0", "-3"])
def test_a_value_that_is_no_number_of_a_control_is_refused(dtrap, described, value):
    status, _, err = dtrap(*described, "--model.random_words", value)
    assert status == 2
    assert "random_words" in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 5


def test_a_control_without_descriptions_is_refused(dtrap, words):
    status, _, err = dtrap(*words, "--model.random_words", 1)
    assert status == 2
    assert "no descriptions whose words" in err
    assert "--model.descriptions FILE" in err
