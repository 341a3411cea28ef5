import pytest
import torch
from dtrap.datamodules import ClassFoldersDataModule, FolderDataModule, ISICDataModule, Preprocessing
from dtrap.errors import DtrapError
from layouts import make_class_folders, make_folder, make_isic, picture, truncate

SMALL = Preprocessing(image_size=16)


def folder(root, **options):
    return FolderDataModule(root, preprocessing=SMALL, **options)


def test_every_image_is_support(folder_root):
    data = folder(folder_root)
    data.setup()
    assert data.tasks == 1
    assert data.description == "my_photos 4 classes · 23 images"
    assert data.class_names == ["cls_00", "cls_01", "cls_02", "cls_03"]
    batch = data.support()
    assert batch["images"].shape == (5 * 23, 3, 16, 16)
    assert batch["labels"][:23].tolist() == [0] * 7 + [1] * 5 + [2] * 6 + [3] * 5
    assert len(data.train_dataloader()) == data.steps_per_epoch == 6
    assert not data.has_query
    assert data.test_dataloader() == []


def test_one_image_per_class_is_enough(tmp_path):
    data = folder(make_folder(tmp_path, counts=(1, 1, 1)))
    assert data.steps_per_epoch == 1
    assert len(data.support()["labels"]) == 15


def test_class_names_by_a_mapping_and_a_template(folder_root):
    data = folder(folder_root, class_names={"cls_03": "rust"}, template="a leaf with {}.")
    assert data.class_names == ["cls_00", "cls_01", "cls_02", "rust"]
    assert data.template == "a leaf with {}."
    with pytest.raises(DtrapError, match=r"'cls_3', which is not in .* Did you mean 'cls_03'"):
        folder(folder_root, class_names={"cls_3": "rust"}).setup()
    with pytest.raises(DtrapError, match=r"duplicate class name 'rust'"):
        folder(folder_root, class_names={"cls_03": "rust", "cls_01": "rust"}).setup()


def test_stray_and_hidden_files_and_folders_are_ignored(folder_root, caplog):
    before = folder(folder_root).index
    (folder_root / "notes.txt").touch()
    picture(0).save(folder_root / "cover.png")
    make_class_folders(folder_root, [".cache", "__MACOSX", "@eaDir"], 2)
    (folder_root / "cls_01" / "Thumbs.db").touch()
    index = folder(folder_root).index
    assert (index.paths, index.labels, index.class_names) == (before.paths, before.labels, before.class_names)
    assert "my_photos: 1 file left out: 1 .txt" in caplog.text
    assert "1 image next to the class folders not used" in caplog.text


def test_sub_folders_of_a_class_belong_to_it(folder_root, caplog):
    make_class_folders(folder_root / "cls_00", ["2024-05"], 2)
    make_class_folders(folder_root / "cls_00" / "2024-06", ["morning"], 2)
    data = folder(folder_root)
    assert data.description == "my_photos 4 classes · 27 images"
    assert data.index.labels[:11] == [0] * 11
    assert "4 of 27 images are in sub-folders of the class folders" in caplog.text


def test_a_held_out_share_is_stratified_and_disjoint(folder_root):
    data = folder(folder_root, held_out=0.3)
    assert data.query()["labels"].bincount().tolist() == [2, 2, 2, 2]
    assert data.support()["labels"].bincount().tolist() == [25, 15, 20, 15]
    assert sorted(data.support_ids + data.query_ids) == list(range(23))
    assert folder(folder_root, held_out=0.3).query_ids == data.query_ids
    assert folder(folder_root, held_out=0.3, seed=2).query_ids != data.query_ids


def test_holding_out_leaves_every_class_an_image(tmp_path):
    data = folder(make_folder(tmp_path, counts=(1, 2, 9)), held_out=0.9)
    assert data.support()["labels"][:3].tolist() == [0, 1, 2]
    assert data.query()["labels"].bincount(minlength=3).tolist() == [0, 1, 8]


def test_a_share_that_holds_nothing_out_is_an_error(tmp_path):
    with pytest.raises(DtrapError, match=r"held_out 0\.1 leaves no query image.*2 to 3 images"):
        folder(make_folder(tmp_path, counts=(2, 3)), held_out=0.1).setup()


def test_queries_from_a_second_folder(tmp_path, folder_root):
    queries = make_class_folders(tmp_path / "test", ["cls_02", "cls_00"], [3, 1])
    data = folder(folder_root, query_root=queries)
    assert data.has_query
    assert data.query()["labels"].tolist() == [0, 2, 2, 2]
    assert len(data.support_ids) == 23
    assert data.path_of(data.query_ids[0]) == queries / "cls_00" / "cls_00_1.jpg"
    moved = make_class_folders(tmp_path / "moved", ["cls_02", "cls_00"], [3, 1])
    fingerprints = {folder(folder_root, query_root=root).index.fingerprint() for root in (queries, moved)}
    assert len(fingerprints) == 1
    assert folder(folder_root).index.fingerprint() not in fingerprints


def test_faulty_query_folders(tmp_path, folder_root):
    with pytest.raises(DtrapError, match=r"clss_00: .* has no class folder 'clss_00'\. Did you mean 'cls_00'"):
        folder(folder_root, query_root=make_class_folders(tmp_path / "a", ["clss_00"], 1)).setup()
    with pytest.raises(DtrapError, match="No images in the class folders of query_root"):
        folder(folder_root, query_root=make_class_folders(tmp_path / "b", ["cls_00"], 0)).setup()
    with pytest.raises(DtrapError, match=r"none does not exist.*data\.query_root"):
        folder(folder_root, query_root=tmp_path / "none").setup()
    with pytest.raises(DtrapError, match="query_root is root itself"):
        folder(folder_root, query_root=folder_root / "." / "cls_00" / "..")
    with pytest.raises(DtrapError, match="both given"):
        folder(folder_root, query_root=tmp_path, held_out=0.5)


@pytest.mark.parametrize("share", [0, 1, -0.2, 3.0])
def test_the_share_is_checked(folder_root, share):
    with pytest.raises(DtrapError, match="expected a share between 0 and 1"):
        folder(folder_root, held_out=share)


def test_faulty_folders(tmp_path, folder_root):
    with pytest.raises(DtrapError, match=r"none does not exist.*data\.root"):
        folder(tmp_path / "none").setup()
    with pytest.raises(DtrapError, match=r"has no folders\. Expected one folder per class"):
        folder(folder_root / "cls_00").setup()
    with pytest.raises(DtrapError, match=r"images of 1 class\(es\); expected 2"):
        folder(make_folder(tmp_path / "one", counts=(3,))).setup()


def test_an_empty_class_folder(tmp_path, folder_root):
    (folder_root / "cls_04").mkdir()
    queries = make_class_folders(tmp_path / "test", ["cls_04", "cls_00"], 1)
    with pytest.raises(DtrapError, match=r"'cls_04' has 0; needed: 1 .*--data.small_classes skip"):
        folder(folder_root, query_root=queries).setup()
    data = folder(folder_root, query_root=queries, small_classes="skip")
    assert data.class_names == ["cls_00", "cls_01", "cls_02", "cls_03"]
    assert data.query()["labels"].tolist() == [0]


def test_a_small_class_is_told_once(folder_root, caplog):
    (folder_root / "cls_04").mkdir()
    data = folder(folder_root, small_classes="skip")
    for _ in range(2):
        data.set_episode(0)
        data.setup()
    assert caplog.text.count("'cls_04' has 0") == 1


def test_a_root_one_too_high_names_the_right_one(folder_root):
    with pytest.raises(DtrapError, match=r"my_photos has folders: cls_00.*--data\.root \S*my_photos;"):
        folder(folder_root.parent).setup()
    with pytest.raises(DtrapError, match="is not a folder"):
        folder(next(folder_root.rglob("*.png"))).setup()


def test_pictures_of_a_kind_that_pillow_cannot_read_are_not_passed_over(folder_root):
    (folder_root / "cls_01" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(DtrapError, match=r"IMG_1\.HEIC cannot be read"):
        folder(folder_root).support()


def test_unreadable_images(folder_root):
    truncate(folder_root / "cls_01" / "cls_01_2.png")
    with pytest.raises(DtrapError, match=r"cls_01_2\.png cannot be read.*--data.bad_images skip"):
        folder(folder_root).train_dataloader()
    data = folder(folder_root, bad_images="skip")
    assert data.support()["labels"][:22].bincount().tolist() == [7, 4, 6, 5]
    assert len(data.skipped_images) == 1
    for path in (folder_root / "cls_01").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DtrapError, match="too few readable images of class 'cls_01'"):
        folder(folder_root, bad_images="skip").support()


def test_many_queries_come_in_several_batches(tmp_path):
    queries = make_class_folders(tmp_path / "test", ["cls_00", "cls_01"], 100)
    data = folder(make_folder(tmp_path / "train", counts=(2, 2)), query_root=queries)
    batches = list(data.test_dataloader())
    assert len(batches) > 1
    assert torch.equal(torch.cat([batch["labels"] for batch in batches]), data.query()["labels"])


def test_episodes_and_one_task_are_two_uses_of_one_class(folder_root):
    one, several = folder(folder_root), folder(folder_root, shot=2, query=1, way=3)
    assert one.index == several.index
    assert (one.protocol, several.protocol) == ("one task", "3-way 2-shot")
    assert (one.tasks, several.tasks) == (1, None)
    assert several.description == "my_photos 3-way 2-shot"
    former = ClassFoldersDataModule(folder_root, query=1, way=2, preprocessing=SMALL, small_classes="skip")
    assert former.description == "my_photos 2-way 5-shot"
    same = folder(folder_root, shot=5, query=1, way=2, small_classes="skip")
    assert (former.support_ids, former.query_ids) == (same.support_ids, same.query_ids)
    for given in ({"held_out": 0.5}, {"query_root": "elsewhere"}):
        with pytest.raises(DtrapError, match="are for one task over all images"):
            folder(folder_root, shot=2, **given)
    with pytest.raises(DtrapError, match="shot is 0; expected at least 1"):
        folder(folder_root, shot=0)


def test_class_folders_are_measured_in_both_protocols(dtrap, tmp_path, tiny_model):
    root = make_folder(tmp_path / "photos", counts=(6, 6, 6, 6, 6))
    words = ["--config", "class_folders_1shot.yaml", "--data.root", root, *tiny_model]
    status, out, err = dtrap("fit", *words, "--data.query", 2, "--protocol.episodes", 1, "--trainer.max_epochs", 1)
    assert status == 0, err
    assert "photos 5-way 1-shot · 1 episode · " in out
    assert list((tmp_path / "runs").glob("photos_5way_1shot_*"))
    status, out, err = dtrap("fit", *words, "--config", "all_way/clip_lora.yaml", "--trainer.max_epochs", 1)
    assert status == 0, err
    assert "photos all-way 1-shot · 3 seeds · " in out
    assert list((tmp_path / "runs").glob("photos-all-way_1shot_*"))


def test_a_class_without_a_test_image_is_said(tmp_path, folder_root, caplog):
    queries = make_class_folders(tmp_path / "test", ["cls_02", "cls_00"], [3, 1])
    data = folder(folder_root, query_root=queries)
    data.setup()
    assert caplog.text.count("no test image, so the accuracy does not cover them: cls_01, cls_03") == 1
    assert data.untested_classes == ["cls_01", "cls_03"]
    caplog.clear()
    truncate(queries / "cls_00" / "cls_00_1.jpg")
    folder(folder_root, query_root=queries, bad_images="skip").query()
    assert "no readable test image, so the accuracy does not cover them: cls_00" in caplog.text
    assert folder(folder_root, held_out=0.5).untested_classes == []


def test_two_files_for_one_row_of_a_table_are_said(tmp_path, caplog):
    root = make_isic(tmp_path / "isic", per_class=2)
    name = "ISIC2018_Task3_Training_Input/ISIC_0000000"
    picture(99).save(root / f"{name}.png")
    index = ISICDataModule(root).index
    assert index.paths[0] == str(root / f"{name}.jpg")
    assert f"1 file has the name of another image: {name}.png: not used" in caplog.text
