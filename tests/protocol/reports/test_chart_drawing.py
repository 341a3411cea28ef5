"""What holds for all charts: one safe SVG element, the same bytes, names and values of any kind, no torch."""

import functools
import hashlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from dtrap.protocol.reports import charts
from dtrap.protocol.reports.charts.drawing import looks
from dtrap.protocol.reports.charts.words import clean, number, numbers, unique

HOSTILE = "</svg><script>$\\frac{1}{2}$alert(1)</script>&amp;\"' \x00\x1b[31m\ud800\u202e ]]> --> \n 猫"
SHOWN = "$\\frac{1}{2}$"


def features():
    images = np.random.default_rng(0).normal(size=(12, 8))
    return images, np.arange(12) % 3, images[:3], np.arange(12) > 2


@functools.cache
def every_chart(first="svl-ra", second="plain"):
    """One chart of each kind, with two names from outside."""
    images, labels, class_texts, is_query = features()
    curve = {"shifts": [-1, 0, 1], "distance": [1, 0.5, 0], "loss": [3, 2, 4], "accuracy": [0.1, 0.2, 0.1]}
    terms = {"step": [0, 5, 9], "total": [3, 2, 1], "L_ad": [1, 1, None], "stage": [0, 6]}
    interval = {"mean": 5.0, "half_width": 1.0, "count": 9, "low": 4.0, "high": 6.0}
    return {
        "accuracy": charts.accuracy_per_episode({first: ([0, 1, 2], [50, 60, 70]), second: ([0], [50])}),
        "differences": charts.difference_distribution({first: [1, 2, 0], second: [-1, -1]}),
        "gap": charts.gap_shift_curves({first: curve, second: curve}),
        "losses": charts.loss_curves({first: terms, second: terms}),
        "classes": charts.per_class_accuracy({first: {second: 50, "b": 60}}),
        "confusion": charts.confusion_matrix([[3, 1], [0, 4]], [first, second]),
        "large confusion": charts.confusion_matrix(np.eye(20), [first, second, *map(str, range(18))]),
        "heat map": charts.heat_map(first, [0, second], "beta", [1, 2], [[1, 2], [3, None]], (second, 2)),
        "coop": charts.coop_panels({second: {first: ([1, 2], [50, 60], [1, None])}}, {second: 40}),
        "features": charts.feature_map(
            images, images, is_query, labels, class_texts, class_texts, [first, second, "c"], method="pca"
        ),
        "measures": charts.measure_panels({second: {first: interval}}, zero=True),
    }


KINDS = list(every_chart())


class Tags(HTMLParser):
    """The tags and attributes that a browser would see."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_any_kind_are_text(kind):
    chart = every_chart(HOSTILE, "x" * 500)[kind]
    root = ElementTree.fromstring(chart.svg.encode())  # also: no half of a surrogate pair
    found = Tags()
    found.feed(chart.html())
    assert "script" not in found.tags
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert found.tags.count("svg") == 1
    said = [chart.alt, chart.title, *(text for row in chart.table.rows for text in row)] if chart.table else [chart.alt]
    assert any(SHOWN in text for text in said) or kind == "large confusion"
    for bad in ("\x00", "\x1b", "\u202e", "\ud800"):
        assert bad not in chart.html()
    texts = [element.text for element in root.iter() if element.tag.endswith("}text")]
    assert all(len(text) < 150 for text in texts)
    # A formula would be drawn in parts.
    assert any("$" in text or "…" in text for text in texts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_drawing_is_one_element_that_refers_to_itself_only(kind):
    chart = every_chart()[kind]
    root = ElementTree.fromstring(chart.svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == chart.alt
    assert chart.svg.startswith("<svg ")
    # a rule of its own would apply to the whole page
    assert not re.search(r"<(style|script|metadata|!DOCTYPE|\?xml|foreignObject)", chart.svg)
    assert set(re.findall(r"https?://[^\"')\s]+", chart.svg)) == {"http://www.w3.org/2000/svg"}
    assert "font-family:" not in chart.svg
    ids = re.findall(r' id="([^"]+)"', chart.svg)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([\w-]+)', chart.svg)) == set(ids)
    # what is dark on light or light on dark is the page's to say
    assert "#1b1c1d" not in chart.svg.replace("var(--chart-ink, #1b1c1d)", "")
    assert "#000000" not in chart.svg


def test_charts_of_one_page_share_no_id():
    ids = [name for chart in every_chart().values() for name in set(re.findall(r' id="([^"]+)"', chart.svg))]
    assert ids
    assert len(ids) == len(set(ids))


def test_the_same_numbers_give_the_same_bytes_whatever_the_users_settings_are():
    before = every_chart()  # drawn with matplotlib's own settings
    mine = {"font.size": 30, "text.parse_math": True, "svg.fonttype": "path", "axes.grid": False, "figure.dpi": 50}
    with matplotlib.rc_context(mine):
        assert every_chart.__wrapped__() == before
        assert matplotlib.rcParams["font.size"] == 30
        assert matplotlib.rcParams["svg.fonttype"] == "path"


def test_charts_need_neither_torch_nor_pyplot_and_are_the_same_in_another_process():
    code = (
        "import sys, hashlib\n"
        "from dtrap.protocol.reports import charts\n"
        "chart = charts.accuracy_per_episode({'a': (range(900), [50 + i % 7 for i in range(900)])})\n"
        "print([name for name in ('torch', 'lightning', 'matplotlib.pyplot') if name in sys.modules])\n"
        "print(hashlib.sha256(chart.svg.encode()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    chart = charts.accuracy_per_episode({"a": (range(900), [50 + i % 7 for i in range(900)])})
    assert done.stdout == f"[]\n{hashlib.sha256(chart.svg.encode()).hexdigest()}\n"
    assert done.stderr == ""


NOTHING = [
    charts.accuracy_per_episode({}),
    charts.accuracy_per_episode({"a": ([], []), "b": ([0, 1], [None, float("nan")])}),
    charts.difference_distribution({}),
    charts.difference_distribution({"a": [], "b": [None, float("inf")]}),
    charts.gap_shift_curves({}),
    charts.gap_shift_curves({"a": {}, "b": {"shifts": [0], "distance": [None], "loss": [None]}}),
    charts.loss_curves({}),
    charts.loss_curves({"a": {}, "b": {"step": [0, 1], "total": [None, None], "stage": [0, 0]}}),
    charts.per_class_accuracy({}),
    charts.per_class_accuracy({"a": {}, "b": {"x": None, "y": {"mean": None, "episodes": 0}}}),
    charts.confusion_matrix([], []),
    charts.confusion_matrix([[0, 0], [None, 0]], ["a", "b"]),
    charts.heat_map("x", [], "y", [], []),
    charts.heat_map("x", [1, 2], "y", [1], [[None, None]], (1, 1)),
    charts.coop_panels({}, {}),
    charts.coop_panels({"a": {"m": ([1], [None], [None])}, "b": {}}, {"a": None}),
    charts.feature_map([], [], [], [], [], [], [], method="pca"),
    charts.measure_panels({}),
    charts.measure_panels({"a": {"m": None}}),
]


@pytest.mark.parametrize("chart", NOTHING, ids=lambda chart: chart.title)
def test_a_chart_without_values_says_so(chart):
    assert ">no values</text>" in chart.svg
    assert "nan" not in (chart.svg + chart.alt + chart.note + str(chart.table)).lower()


@pytest.mark.parametrize(
    "chart",
    [
        charts.accuracy_per_episode({"one": ([4], [50.0]), "equal": ([0, 1, 2], [50.0] * 3)}),
        charts.difference_distribution({"one": [0.0], "equal": [0.0] * 5}),
        charts.gap_shift_curves({"one": {"shifts": [0], "distance": [0.5], "loss": [1.0]}}),
        charts.loss_curves({"one": {"step": [0], "total": [0.5]}, "zero": {"step": [0, 1], "total": [0, 0]}}),
        charts.per_class_accuracy({"one": {"a": 0.0}}),
        charts.confusion_matrix([[1]], ["one"]),
        charts.heat_map("x", [1], "y", [1], [[50]], (1, 1)),
        charts.coop_panels({"a": {"m": ([1], [50], None)}}, {}),
        charts.feature_map([[1, 0]], [[1, 0]], [False], [0], [[1, 0]], [[1, 0]], ["a"], method="pca"),
        charts.measure_panels({"a": {"m": {"mean": 1.0, "half_width": None, "count": 1}}}),
    ],
    ids=lambda chart: chart.title,
)
def test_single_and_equal_values_are_drawn(chart):
    assert ">no values</text>" not in chart.svg
    assert "nan" not in (chart.svg + chart.alt + chart.note).lower()


def test_single_and_equal_values_are_named():
    chart = charts.difference_distribution({"one": [0.0], "equal": [0.0] * 5, "two": [1.0, 2.0]})
    assert "+0.00 (1 pair, no interval)" in chart.alt
    assert "+0.00 (identical in 5 pairs)" in chart.alt
    assert "(2 pairs, too few)" in chart.alt


def test_a_method_has_the_same_look_in_all_charts():
    order = ["a", "b", "c"]
    assert looks(["c"], order)["c"] == looks(order)["c"]
    found = looks(map(str, range(40)))
    assert len({(look.color, look.marker, str(look.dashes)) for look in found.values()}) == 40


def test_more_methods_than_can_be_told_apart_are_said():
    series = {f"method {i}": ([0, 1], [50, 60]) for i in range(15)}
    chart = charts.accuracy_per_episode(series)
    assert "The first 12 of 15 methods are drawn." in chart.note
    assert "method 14: mean 55.0" in chart.alt


def test_words():
    assert clean("a\x00b\n c\u202ed") == "a\ufffdb c\ufffdd"
    assert clean("") == "(no name)"
    assert clean("\u06a9\u200c\u06af 👩\u200d🔬") == "\u06a9\u200c\u06af 👩\u200d🔬"
    assert clean("x" * 200, 21) == f"{'x' * 10}…{'x' * 10}"
    assert unique(["a", "a", "a\x00", "a\x01"]) == ["a", "a (2)", "a\ufffd", "a\ufffd (2)"]
    assert number(-0.001, 2) == "0.00"
    assert number(-0.001, 2, sign=True) == "+0.00"
    assert number(-1234.5) == "−1,234.5"
    assert number(None) == number(float("inf")) == "–"
    assert np.isnan(numbers([None, "x", float("inf"), True])).tolist() == [True, True, True, False]
