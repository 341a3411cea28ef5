"""The look of the charts: sizes, colors, axes, legends, and the finished SVG text."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps, rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Affine2D
from PIL import Image

from ....drawing import fitted

# Widths in points of 1/72 inch; a page shows 3 points as 4 pixels.
NARROW, WIDE = 330.0, 640.0
TEXT, SMALL = 9.0, 7.5
LEGEND_ROW = 14.0

# Okabe and Ito's colors that can be seen on white and on black; markers and dashes differ, too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)), (0, (8, 3)), (0, (3, 1, 1, 1, 1, 1)))

# Stand-ins that become CSS colors in the finished text, and a gray for lines that can be seen on white and on black.
INK, MUTED, PAPER, GRAY = "#1b1c1d", "#5b5c5d", "#fefdfc", "#767676"
CSS_COLORS = {
    INK: "currentColor",
    MUTED: "currentColor; fill-opacity: 0.72",
    PAPER: "var(--chart-paper, #fff)",
}
CARD = "background: var(--chart-paper, #fff); color: var(--chart-ink, #1b1c1d)"
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"

SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"

STYLE: dict[str, Any] = {
    "font.size": TEXT,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "dtrap",  # else the ids differ from call to call
    "text.parse_math": False,  # a $ in a name is a dollar sign
    "axes.unicode_minus": True,
    "axes.linewidth": 0.8,
    "axes.edgecolor": GRAY,
    "axes.labelcolor": INK,
    "axes.labelsize": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.formatter.use_mathtext": False,
    "grid.color": GRAY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": TEXT,
    "ytick.labelsize": TEXT,
    "text.color": INK,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "figure.dpi": 160,
}
# What a user's matplotlibrc says about looks does not count here.
PREFIXES = (
    *("axes", "figure", "font", "grid", "hatch", "image", "lines", "mathtext", "patch", "path", "savefig", "scatter"),
    *("svg", "text", "xtick", "ytick"),
)
LOOK: dict[str, Any] = {key: value for key, value in rcParamsDefault.items() if key.startswith(PREFIXES)}

F = TypeVar("F", bound=Callable[..., Any])


def styled(function: F) -> F:
    """Draw with the look of this module, and restore matplotlib's settings afterwards."""

    @functools.wraps(function)
    def draw(*args: Any, **options: Any) -> Any:
        settings: Any = {**LOOK, **STYLE}  # the names are a literal type in matplotlib 3.11 only
        with rc_context(settings):
            return function(*args, **options)

    return draw  # type: ignore[return-value]


class Look(NamedTuple):
    """How one method's points and lines are drawn."""

    color: str
    marker: str
    dashes: Any

    @property
    def line(self) -> dict[str, Any]:
        """Color and dashes as arguments of matplotlib."""
        return {"color": self.color, "linestyle": self.dashes}

    @property
    def point(self) -> dict[str, Any]:
        """Color and marker as arguments of matplotlib."""
        return {"color": self.color, "marker": self.marker, "linestyle": "none", "markeredgewidth": 0}


def looks(names: Iterable[str], order: Sequence[str] | None = None) -> dict[str, Look]:
    """Return the look of each name by its place in `order`, so that it is the same in all charts of a page."""
    names = list(names)
    places = list(dict.fromkeys([*(order or ()), *names]))
    return {name: _look(places.index(name)) for name in names}


def _look(place: int) -> Look:
    color, turn = COLORS[place % len(COLORS)], place // len(COLORS)
    return Look(color, MARKERS[place % len(MARKERS)], DASHES[(place + turn) % len(DASHES)])


class Sheet:
    """A figure whose parts are placed in points from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / 72, height / 72))
        # An SVG file is drawn with 72 dots per inch; figure.dpi is the sharpness of pictures within it.
        self.place = Affine2D().scale(1, -1).translate(0, height)

    def axes(self, left: float, top: float, width: float, height: float, **options: Any) -> Axes:
        """Add axes whose inner rectangle has its upper left corner at (left, top)."""
        bottom = self.height - top - height
        place = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(place, **options)

    def text(self, x: float, y: float, words: str, width: float | None = None, **style: Any) -> None:
        """Write one line with its upper left corner at (x, y), shortened to `width` points."""
        size = style.setdefault("size", TEXT)
        if width is not None:
            words = fitted_line(words, width, size)
        self.figure.text(x, y, words, **{"va": "top", "transform": self.place, **style})

    def line(self, x: Sequence[float], y: Sequence[float], **style: Any) -> None:
        """Draw a line or markers outside of all axes."""
        self.figure.add_artist(Line2D(x, y, **{"transform": self.place, **style}))

    def legend(
        self,
        entries: Mapping[str, Look],
        notes: Mapping[str, str],
        lines: bool = True,
        points: bool = True,
    ) -> float:
        """Draw one row per name with its line, its marker and a note; return the lower end."""
        top = 4.0
        for name, look in entries.items():
            middle = top + LEGEND_ROW / 2
            if lines:
                self.line([8, 32], [middle] * 2, **look.line)
            if points:
                self.line([20], [middle], **look.point)
            note = notes.get(name, "")
            room = self.width - 46 - text_width(note)
            shown = fitted_line(name, max(room, 60))
            self.text(38, middle, shown, va="center")
            self.text(38 + text_width(shown) + 8, middle, note, va="center", color=MUTED)
            top += LEGEND_ROW
        return top

    def svg(self, alt: str) -> Drawing:
        """Return the finished drawing."""
        content = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # the page's font has what this one lacks
            FigureCanvasSVG(self.figure).print_svg(content, metadata={"Date": None})
        drawing = Drawing(finished(content.getvalue(), alt))
        drawing.figure = self.figure
        return drawing


class Drawing(str):
    """The text of an SVG drawing that remembers its figure, so that it can become a PNG picture, too."""

    figure: Figure

    @styled
    def png(self, dots: int = 144) -> bytes:
        """Return the drawing as the content of a PNG file.

        Args:
            dots: Dots per inch.
        """
        content = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")
            self.figure.savefig(content, format="png", dpi=dots, facecolor="white")
        return content.getvalue()


def say_empty(axes: Axes) -> None:
    """Write into axes that there is nothing to draw, without numbers on their sides that mean nothing."""
    axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", va="center", color=MUTED)
    axes.set_xticks([])
    axes.set_yticks([])


@functools.lru_cache(maxsize=4096)
def text_width(text: str, size: float = TEXT) -> float:
    """Return the width of a line in points, in matplotlib's own font, which is wider than most of a page's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return float(width)


def names_width(names: Iterable[str], most: float, size: float = TEXT) -> float:
    """Return the room in points that the longest of these names needs, or `most` if that is less."""
    widest = max(map(functools.partial(text_width, size=size), names), default=0.0)
    return min(most, widest / 0.95 + 4)  # fitted() keeps a small reserve


def finished(content: bytes, alt: str) -> str:
    """Return matplotlib's file as one element for an HTML page, which may hold many of them.

    The prolog is left out, and the style sheet, which would apply to the whole page, and ids that nothing refers to.
    The other ids get a beginning that depends on the drawing.
    """
    root = ElementTree.fromstring(content)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith("}metadata") or child.tag == f"{SVG}style":
                parent.remove(child)
    width, height = (float(root.attrib[side].removesuffix("pt")) / 72 * 96 for side in ("width", "height"))
    referred = {name.decode() for name in re.findall(rb'(?:url\(|href=")#([\w-]+)', content)}
    beginning = f"c{hashlib.sha256(content + alt.encode()).hexdigest()[:8]}-"
    for element in root.iter():
        _shorten(element, referred, beginning)
    view = root.attrib["viewBox"]
    root.attrib.clear()
    size = {"width": f"{width:.0f}", "height": f"{height:.0f}"}
    root.attrib.update({"xmlns": SVG[1:-1], "viewBox": view, **size, "role": "img", "aria-label": alt})
    fit = f"width: 100%; max-width: {1.2 * width:.0f}px; height: auto"
    root.attrib.update({"font-family": FONTS, "stroke-linejoin": "round", "style": f"{CARD}; {fit}"})
    return ElementTree.tostring(root, encoding="unicode")


def _shorten(element: ElementTree.Element, referred: set[str], beginning: str) -> None:
    # Without its prefix, which would have to be registered for the whole process.
    element.tag = element.tag.removeprefix(SVG)
    attributes = element.attrib
    if "id" in attributes:
        name = attributes.pop("id")
        if name in referred:
            attributes["id"] = beginning + name
    if LINK in attributes:
        link = attributes.pop(LINK)
        attributes["href"] = f"#{beginning}{link[1:]}" if link.startswith("#") else _small(link)
    for key in ("clip-path", "style"):
        if key in attributes:
            attributes[key] = attributes[key].replace("url(#", f"url(#{beginning}")
    if "style" in attributes:
        attributes["style"] = _css(attributes["style"])
    for key in ("d", "points", "x", "y"):
        if key in attributes:
            attributes[key] = re.sub(r"(\.\d\d)\d+", r"\1", attributes[key]).replace("\n", "").strip()
    if element.text is not None and not element.text.strip():
        element.text = None
    element.tail = None


def _small(link: str) -> str:
    """A picture in the drawing with at most 128 colors, which takes a fifth of the bytes."""
    head, comma, content = link.partition(",")
    small = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    picture.convert("RGBA").quantize(128, method=Image.Quantize.FASTOCTREE).save(small, "png")
    return f"{head}{comma}{base64.b64encode(small.getvalue()).decode()}"


def _css(style: str) -> str:
    for color, css in CSS_COLORS.items():
        style = style.replace(color, css)
    # The font is the page's, by its name; older releases of matplotlib write one `font: bold 9px names`.
    style = re.sub(r"font-family: [^;]*;? ?", "", style)
    old = re.search(r"font: ([^;']*?)([\d.]+px) [^;]*", style)
    if old:
        words = old[1].split()
        weights = [f"font-weight: {word}" for word in words if word == "bold" or word.isdigit()]
        slants = ["font-style: italic"] if "italic" in words else []
        style = style.replace(old[0], "; ".join([f"font-size: {old[2]}", *weights, *slants]))
    return style


@functools.lru_cache(maxsize=4096)
def fitted_line(name: str, width: float, size: float = TEXT) -> str:
    """Return a name that takes up at most `width` points, its middle replaced by … if it is too long."""
    return fitted(name, width / 72, size)


def shades(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the colors [..., 4] of numbers from 0 to 1, light to dark; NaN is transparent."""
    colors = np.asarray(colormaps["Blues"](np.ma.masked_invalid(0.03 + 0.94 * shares)), dtype=np.float64)
    colors[~np.isfinite(shares)] = 0.0
    return colors


def shade_text(color: npt.NDArray[np.float64]) -> str:
    """Return black or white, whatever has more contrast to a color by WCAG's relative luminance."""
    linear = np.where(color[:3] <= 0.04045, color[:3] / 12.92, ((color[:3] + 0.055) / 1.055) ** 2.4)
    return "#111111" if float(linear @ [0.2126, 0.7152, 0.0722]) > 0.179 else "#ffffff"
