import numpy as np
import pytest
from dtrap.datamodules import ChestXDataModule, EuroSATDataModule, ISICDataModule, Preprocessing
from dtrap.datamodules.inspection.contact_sheet import (
    PIXELS,
    ClassImages,
    Sheet,
    fitted,
    make_sheet,
    sheet_figure,
    show,
)
from dtrap.datamodules.views import draw_views
from dtrap.errors import DtrapError
from layouts import make_chestx, make_eurosat, make_isic, picture, truncate
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from rich.console import Console

NAMES = ["short", "W" * 80, "Tomato___a_rather_long_name_of_a_disease_of_the_lower_side_of_older_leaves", "$x_{$", "雲"]


def sheet(classes, images=4, size=(24, 18)):
    shown = [ClassImages(NAMES[n % len(NAMES)], n, [picture(n, size)] * images) for n in range(classes)]
    return Sheet("A set · classes", "notes " * 60, shown, [picture(0, (30, 30))] * 5, "The five views of " + "W" * 99)


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def overlaps(figure):
    """Pairs of texts, or of a text and an image, that lie over each other, and texts outside the picture."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    axes = figure.axes[0]
    words = [(text.get_text(), text.get_window_extent(renderer)) for text in axes.texts if text.get_text()]
    images = [("image", image.get_window_extent(renderer)) for image in axes.images]
    page = figure.bbox
    outside = [text for text, box in words if box.x0 < 0 or box.x1 > page.x1 or box.y0 < 0 or box.y1 > page.y1]
    both = [
        (text, other)
        for number, (text, box) in enumerate(words)
        for other, second in [*words[number + 1 :], *images]
        if min(box.x1, second.x1) - max(box.x0, second.x0) > 1 and min(box.y1, second.y1) - max(box.y0, second.y0) > 1
    ]
    return outside + both


@pytest.mark.parametrize("classes", [1, 2, 10, 38, 102])
@pytest.mark.filterwarnings("ignore:Glyph")
def test_nothing_lies_over_anything_else_or_outside(classes):
    figure = sheet_figure(sheet(classes, size=(18, 24)))
    assert overlaps(figure) == []
    assert len(figure.axes[0].images) == 5 + 4 * classes


@pytest.mark.parametrize(("classes", "parts"), [(40, 0), (41, 2), (102, 3)])
def test_more_than_forty_classes_stand_in_parts(classes, parts):
    headings = [text for text in texts(sheet_figure(sheet(classes, images=0))) if text.startswith("classes ")]
    assert len(headings) == parts
    if parts:
        assert headings[0] == f"classes 1 to 40 of {classes}"
        assert headings[-1] == f"classes {40 * parts - 39} to {classes} of {classes}"


@pytest.mark.parametrize("text", NAMES)
def test_a_name_is_shortened_in_the_middle_only_where_it_has_to_be(text):
    short = fitted(text, 2.0, 8)
    assert (short == text) == (len(text) < 30)
    assert short[:3] == text[:3]
    assert short[-3:] == text[-3:]
    assert fitted(text, 100.0, 8) == text


@pytest.mark.parametrize(
    ("make", "cls", "names"),
    [
        (make_isic, ISICDataModule, ["Melanoma", "Vascular Lesion"]),
        (make_eurosat, EuroSATDataModule, ["Annual Crop Land", "Sea or Lake"]),
        (make_chestx, ChestXDataModule, ["Atelectasis", "Pneumothorax"]),
    ],
)
def test_classes_images_and_views_are_those_of_the_set(tmp_path, make, cls, names):
    data = cls(make(tmp_path), bad_images="skip", small_classes="skip")
    made = make_sheet(data, seed=3)
    assert [made.classes[0].name, made.classes[-1].name] == names
    for label, shown in enumerate(made.classes):
        assert (shown.count, len(shown.images)) == (4, 4)
        own = {data.load_image(int(position)).tobytes() for position in data.positions[label]}
        if cls is not ChestXDataModule:  # whose pictures of 256 pixels are made smaller
            assert {image.tobytes() for image in shown.images} == own
    assert [view.size for view in made.views] == [(PIXELS, PIXELS)] * 5
    plain = draw_views(support_of(made, data), Preprocessing(PIXELS), 1, np.random.default_rng(0))[0]
    assert np.array_equal(np.asarray(made.views[0]), np.asarray(plain))
    assert texts(sheet_figure(made))[3:6] == ["plain", "rotation + jitter + flip", "rotation"]


def support_of(made, data):
    """The image that the sheet says its views are of."""
    file = made.views_title.rsplit(", ")[-1]
    (position,) = [n for n, path in enumerate(data.index.paths) if path.endswith(f"/{file}")]
    name = data.index.class_names[data.index.labels[position]]
    assert made.views_title == f"The five views of a support image: {name}, {file}"
    return data.load_image(position)


def test_the_seed_decides(tmp_path):
    root = make_eurosat(tmp_path, per_class=9)

    def views(seed):
        made = make_sheet(EuroSATDataModule(root), seed)
        return [image.tobytes() for shown in made.classes for image in shown.images] + [
            view.tobytes() for view in made.views
        ]

    assert views(1) == views(1)
    assert views(1) != views(2)


def test_a_flip_that_does_nothing_is_told():
    content = sheet(1)
    turned = [*content.views[:4], content.views[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    assert "flip (not flipped)" in texts(sheet_figure(content))
    other = Sheet(content.title, content.notes, content.classes, turned, content.views_title)
    assert "flip" in texts(sheet_figure(other))


def test_unreadable_and_absent_images_are_told(tmp_path, dtrap):
    root = make_isic(tmp_path / "isic")
    images = root / "ISIC2018_Task3_Training_Input"
    truncate(images / "ISIC_0001002.jpg")
    for path in images.glob("ISIC_0002*.jpg"):
        path.unlink()
    made = make_sheet(ISICDataModule(root, bad_images="skip", small_classes="skip"), seed=1)
    assert [image is None for image in made.classes[1].images].count(True) == 1
    found = texts(sheet_figure(made))
    assert found.count("unreadable") == 1
    assert found.count("no image") == 1
    assert "4 images named but missing" in found[1]
    status, out, err = dtrap("data", "show", "isic", root)
    assert (status, err) == (0, "")
    assert out == "ISIC · 7 classes · 24 images: isic.png\n"


def test_no_readable_image_is_an_error(tmp_path):
    root = make_eurosat(tmp_path, per_class=1)
    for path in root.rglob("*.jpg"):
        path.write_text("no image")
    with pytest.raises(DtrapError, match="no image can be read"):
        make_sheet(EuroSATDataModule(root, bad_images="skip"), seed=1)


def test_the_command_writes_a_png_file(tmp_path, dtrap):
    root = make_eurosat(tmp_path / "eurosat")
    status, out, err = dtrap("data", "show", "eurosat", root, "--output", tmp_path / "new" / "a.png", "--seed", 3)
    assert (status, err) == (0, "")
    assert str(tmp_path / "new" / "a.png") in out
    with Image.open(tmp_path / "new" / "a.png") as image:
        image.load()
        assert image.format == "PNG"
        assert image.width > 900


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    root = make_eurosat(tmp_path / "data")
    with pytest.raises(DtrapError, match=r"cannot write .*name another file with --output"):
        show("eurosat", root, tmp_path / "file" / "a.png", 1, Console())
