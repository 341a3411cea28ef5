import pytest
import torch
from dtrap.datamodules import Preprocessing, UnlabeledImages
from dtrap.errors import DtrapError
from layouts import make_class_folders, picture, truncate
from lightning.pytorch import LightningModule, Trainer

SMALL = Preprocessing(image_size=16)


@pytest.fixture
def new_images(tmp_path):
    root = make_class_folders(tmp_path / "new", ["a", "b/c"], 0)
    for number in range(7):
        picture(number, (80, 60)).save(root / ("a" if number % 2 else "b/c") / f"{number}.PNG")
    (root / "a" / "notes.txt").touch()
    return root


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_are_left_out_and_listed(new_images, num_workers):
    truncate(new_images / "a" / "1.PNG")
    truncate(new_images / "a" / "3.PNG")
    truncate(new_images / "b" / "c" / "4.PNG")
    data = UnlabeledImages(new_images, SMALL)
    batches = data.batches(batch_size=2, num_workers=num_workers)
    for _ in range(2):
        found = list(batches)
        names = [[data.paths[i][-5:] for i in batch["index"].tolist()] for batch in found]
        assert names == [["5.PNG", "0.PNG"], ["2.PNG"], ["6.PNG"]]
        assert [len(batch["images"]) for batch in found] == [2, 1, 1]
        assert sorted(path[-5:] for path, _ in data.unreadable) == ["1.PNG", "3.PNG", "4.PNG"]
        assert all("cannot be read" in reason for _, reason in data.unreadable)


def test_items_are_the_preprocessed_images_in_the_order_of_their_paths(new_images):
    data = UnlabeledImages(new_images, SMALL)
    assert [path[-5:] for path in data.paths] == [f"{i}.PNG" for i in (1, 3, 5, 0, 2, 4, 6)]
    (batch,) = data.batches()
    assert torch.equal(batch["images"][3], SMALL.to_tensor(picture(0, (80, 60))))
    assert batch["index"].tolist() == list(range(7))


def test_a_trainer_predicts_past_unreadable_images(new_images):
    class Mean(LightningModule):
        def predict_step(self, batch):
            return batch["index"]

    for path in (new_images / "a").glob("*.PNG"):
        truncate(path)
    data = UnlabeledImages(new_images, SMALL)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    assert torch.cat(trainer.predict(Mean(), data.batches(batch_size=3))).tolist() == [3, 4, 5, 6]
    assert len(data.unreadable) == 3


def test_a_folder_without_images(tmp_path):
    with pytest.raises(DtrapError, match="No image files in"):
        UnlabeledImages(tmp_path, SMALL)
    with pytest.raises(DtrapError, match="none does not exist"):
        UnlabeledImages(tmp_path / "none", SMALL)
