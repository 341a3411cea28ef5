"""Arguments that a constructor passes on: offered by the command, checked in Python."""

import pytest
import yaml
from dtrap.datamodules import AllWay, ClassFoldersDataModule, EuroSATDataModule, FolderDataModule, ShapesDataModule
from dtrap.errors import DtrapError


@pytest.mark.parametrize("kind", [EuroSATDataModule, ClassFoldersDataModule, FolderDataModule])
def test_a_misspelled_keyword_names_the_nearest(tmp_path, kind):
    with pytest.raises(
        DtrapError, match=rf"{kind.__name__}: unknown argument 'bad_image'; expected one of root, .*'bad_images'"
    ):
        kind(tmp_path, bad_image="skip")


@pytest.mark.parametrize("name", ["wey", "all_way", "bad_images"])
def test_drawn_images_have_no_options_of_files(name):
    with pytest.raises(DtrapError, match=f"ShapesDataModule: unknown argument '{name}'"):
        ShapesDataModule(**{name: None})


@pytest.mark.parametrize("options", [{"way": 3}, {"query": 5}, {"episode": 1}, {"all_way": AllWay()}])
def test_one_task_refuses_options_of_episodes(tmp_path, options):
    (name,) = options
    with pytest.raises(DtrapError, match=rf"{name} has no effect on one task over all images\. Give --data\.shot"):
        FolderDataModule(tmp_path, **options)


def test_the_command_offers_them_with_default_and_help(dtrap):
    status, out, _ = dtrap("fit", "--config", "class_folders_5shot.yaml", "--data.root", "x", "--print_config")
    assert status == 0
    arguments = yaml.safe_load(out)["data"]["init_args"]
    assert (arguments["way"], arguments["num_workers"], arguments["bad_images"]) == (5, 0, "error")
    status, out, _ = dtrap("fit", "--data.help=ClassFoldersDataModule")
    assert "Classes per episode W. (type: int, default: 5)" in out
    assert "Class prompt with `{}`" in out


def test_the_command_lists_them_where_one_is_misspelled(dtrap):
    status, _, err = dtrap("fit", "--config", "eurosat_1shot.yaml", "--data.root", "x", "--data.num_worker", 1)
    assert status == 2
    assert "Did you mean --data.num_workers? EuroSATDataModule accepts: root, way, shot" in err
    assert "small_classes" in err
