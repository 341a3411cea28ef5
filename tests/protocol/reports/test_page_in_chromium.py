"""Pages in headless Chromium: nothing is fetched, nothing is said in the console, nothing sticks out."""

import functools
import io

import numpy as np
import pytest
from chromium import NEEDS_CHROMIUM, Chromium, Page
from dtrap.cli import main
from dtrap.protocol.reports import charts
from PIL import Image
from run_writer import full_row, write_run

pytestmark = NEEDS_CHROMIUM

WIDTHS = [1280, 400]
SMALLEST_TEXT = 6.0  # CSS pixels on the narrow screen; the page's own text is larger


@pytest.fixture(scope="module")
def browser():
    with Chromium() as found:
        yield found


@functools.cache
def chart_page():
    """Every kind of chart on one page, with the rules that come with them."""
    generator = np.random.default_rng(0)
    names = ["Melanoma", "Melanocytic Nevus", "Basal Cell Carcinoma", "Actinic Keratosis", "Benign Keratosis"]
    values = {name: generator.normal(mean, 8, 600) for name, mean in (("svl-ra", 56), ("baseline", 55))}
    shifts = np.linspace(-1, 1, 41)
    curve = {"shifts": shifts, "distance": 0.8 - shifts, "loss": 1 + (shifts - 0.3) ** 2, "accuracy": 0.5 + 0 * shifts}
    steps = np.arange(0, 250, 5)
    terms = {"step": steps, "total": np.exp(-steps / 50), "L_vlm": np.exp(-steps / 50), "stage": [0, 150]}
    images, labels = generator.normal(size=(80, 16)), np.arange(80) % 5
    panels = {
        f"Set {i}": {method: ([1, 2, 4, 8, 16], [60, 64, 66, 70, 74], [2, 2, 1, 1, 1]) for method in values}
        for i in range(11)
    }
    mean = {"mean": 5.0, "half_width": 1.0, "count": 9, "low": 4.0, "high": 6.0}
    all_charts = [
        charts.accuracy_per_episode({name: (range(600), own) for name, own in values.items()}),
        charts.difference_distribution({"svl-ra minus baseline": values["svl-ra"] - values["baseline"]}),
        charts.gap_shift_curves({"svl-ra": curve, "baseline": curve}),
        charts.loss_curves({"svl-ra": terms}),
        charts.per_class_accuracy({"svl-ra": dict.fromkeys(names, 50.0)}),
        charts.confusion_matrix(generator.integers(0, 50, (5, 5)), names),
        charts.heat_map("lambda", [0, 0.01, 0.1, 1], "beta", [0, 1, 3], generator.uniform(50, 60, (3, 4)), (0.1, 3)),
        charts.measure_panels({"cross-entropy": {"svl-ra": mean, "baseline": mean}}),
        charts.feature_map(images, images, labels > 0, labels, images[:5], images[:5], names, method="pca"),
        charts.coop_panels(panels, dict.fromkeys(panels, 55.0)),
    ]
    drawn = "\n".join(chart.html() for chart in all_charts)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Charts</title>'
        '<meta name="viewport" content="width=device-width">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<style>body {{ font-family: sans-serif; margin: 1rem }} {charts.CHART_RULES}</style>"
        f'<h1>Charts</h1><div class="charts">{drawn}</div></html>'
    )


def check(page, path):
    """What holds for each page at each width."""
    assert page.requests == [path.as_uri()]
    assert page.errors == []
    assert page.evaluate("document.scripts.length") == 0
    width, room = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width <= room, f"the page is {width} wide on {room} pixels"
    assert page.evaluate("[...document.images].filter(image => !image.naturalWidth || !image.alt).length") == 0
    unnamed = page.evaluate("[...document.querySelectorAll('svg')].filter(s => !s.getAttribute('aria-label')).length")
    assert unnamed == 0
    sizes = page.evaluate(
        "[...document.querySelectorAll('svg')].flatMap(svg => { const scale = svg.getBoundingClientRect().width / "
        "svg.viewBox.baseVal.width; return [...svg.querySelectorAll('text')].map(text => "
        "parseFloat(getComputedStyle(text).fontSize) * scale) })"
    )
    assert min(sizes) > SMALLEST_TEXT
    # A picture of the page that is not empty.
    assert page.evaluate("document.documentElement.scrollHeight") > 500


@pytest.mark.parametrize("width", WIDTHS)
def test_all_charts_on_a_page(browser, tmp_path, width):
    path = tmp_path / "charts.html"
    path.write_text(chart_page(), encoding="utf-8")
    page = Page(browser, path, width)
    check(page, path)
    assert page.evaluate("document.querySelectorAll('svg').length") == 10
    page.screenshot(tmp_path / "page.png", 1200)
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == (width, 1200)
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_words_of_a_drawing_stay_inside_of_it(browser, tmp_path):
    path = tmp_path / "charts.html"
    path.write_text(chart_page(), encoding="utf-8")
    page = Page(browser, path, 1280)
    outside = page.evaluate(
        "[...document.querySelectorAll('svg')].flatMap(svg => { const b = svg.getBoundingClientRect(); "
        "return [...svg.querySelectorAll('text')].filter(text => { const t = text.getBoundingClientRect(); "
        "return t.left < b.left - 1 || t.right > b.right + 1 || t.top < b.top - 1 || t.bottom > b.bottom + 1 })"
        ".map(text => svg.getAttribute('aria-label').slice(0, 30) + ': ' + text.textContent) })"
    )
    assert outside == []


def test_text_is_light_on_a_dark_page(browser, tmp_path):
    path = tmp_path / "charts.html"
    dark = ":root { --chart-ink: #eeeeee; --chart-paper: #101010; background: #101010 }"
    path.write_text(chart_page().replace("<style>", f"<style>{dark}"), encoding="utf-8")
    page = Page(browser, path, 1280, dark=True)
    fill = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    assert fill == "rgb(238, 238, 238)"
    page.screenshot(tmp_path / "dark.png", 400)
    with Image.open(io.BytesIO((tmp_path / "dark.png").read_bytes())) as picture:
        colors = sorted(picture.convert("L").getcolors(256), reverse=True)
    assert colors[0][1] == 0x10


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of two runs: one that was trained here in a few steps, and one of rows with all that is drawn."""
    folder = tmp_path_factory.mktemp("report")
    words = ["--protocol.episodes=3", "--trainer.max_steps=4", "--protocol.pictures=1", "--data.query=4"]
    words += ["--protocol.save_predictions=true", f"--protocol.folder={folder / 'trained'}"]
    main_words = ["fit", "--config", "demo.yaml", *words]
    with pytest.raises(SystemExit) as stop:
        main(main_words)
    assert not stop.value.code
    accuracies = {"svl-ra": [60.0, 62.0, 70.0, 55.0], "a method with quite a long name": [50.0, 61.0, 64.0, 58.0]}
    written = write_run(folder / "written", "ISIC 5-way 5-shot", accuracies, 4, more=full_row)
    with pytest.raises(SystemExit) as stop:
        main(["report", str(folder / "trained"), str(written), "--html", str(folder / "page.html")])
    assert not stop.value.code
    return folder / "page.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_of_a_report(browser, report, tmp_path, width, dark):
    page = Page(browser, report, width, dark=dark)
    check(page, report)
    assert page.evaluate("document.querySelectorAll('h1').length") == 1
    headings = page.evaluate("[...document.querySelectorAll('h2')].map(h => h.textContent).join()")
    assert "Accuracy per episode" in headings
    assert "is left out" not in page.evaluate("document.body.textContent")
    assert "Left out" not in page.evaluate("document.body.textContent")
    assert page.evaluate("document.querySelectorAll('svg').length") >= 6
    page.screenshot(tmp_path / "page.png", 2000)
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.width == width
        ground = max(picture.convert("L").getcolors(256))[1]
    assert ground < 60 if dark else ground > 230
