"""Figures for a page: charts as SVG, each once for a light page and once for a dark one, and
pictures as PNG with their boxes as outlines to be drawn over them.

    Froc, TrainingRun --matplotlib--> Chart (two data URIs)      Picture -> Tile (one data URI)

The same input gives the same bytes. Nothing here trusts a name: labels are never read as maths.
"""

import base64
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from synthoma.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colours of set-ups and terms on light and on dark paper (Okabe and Ito's, adapted): each reaches
#: a contrast of 3:1. Dashes and marks say the same without colour.
LIGHT = ("#0b62a8", "#c04a00", "#00795a", "#8a3f8f", "#8a6a00", "#1f7f99", "#b3264a", "#5a6470")
DARK = ("#62b0f0", "#f58c4a", "#3fc79c", "#d393dc", "#e0bb4a", "#6fd0e8", "#f57f9c", "#aab4c0")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2), (9, 2, 2, 2, 2, 2))
MARKS = "o^sDPvXp"
#: Below this many false positives a case the axis is linear, so that 0 has a place.
LINEAR_BELOW = 1 / 8
#: Points a line: more cannot be seen at this size.
POINTS = 240
#: All pictures of a page together, in bytes before base64, at the worst case of a byte a value.
PICTURE_BYTES = 1_500_000


class Picture(NamedTuple):
    """An image and the boxes to draw on it."""

    image: UInt8[np.ndarray, "c h w"]
    """One channel is grey, three are RGB; of any other number the first is shown."""
    boxes: Float[np.ndarray, "m 4"]
    """y0, x0, y1, x1 in pixels, half-open."""
    name: str = ""


class Detected(NamedTuple):
    """A test slice and what each set-up's detector found in it."""

    image: UInt8[np.ndarray, "c h w"]
    truth: Float[np.ndarray, "m 4"]
    found: Mapping[str, tuple[Float[np.ndarray, "d 4"], Float[np.ndarray, " d"]]]
    """By set-up: boxes and scores."""
    name: str = ""


@dataclass(frozen=True, eq=False)
class Curve:
    """One set-up's FROC curve."""

    setup: str
    false_positives: Float[np.ndarray, " p"]
    """Per case, rising, as `metrics.detection.froc` gives them."""
    sensitivity: Float[np.ndarray, " p"]
    low: Float[np.ndarray, " p"] | None = None
    high: Float[np.ndarray, " p"] | None = None
    """The band of the sensitivity, if known."""
    operating_point: tuple[float, float] | None = None
    """(false positives, sensitivity) at the threshold of the table."""

    def __post_init__(self) -> None:
        lengths = {len(a) for a in (self.false_positives, self.sensitivity)}
        lengths |= {len(a) for a in (self.low, self.high) if a is not None}
        if len(lengths) > 1 or lengths == {0} or (self.low is None) != (self.high is None):
            raise DataError(f"the FROC curve of {self.setup!r} has columns of lengths {lengths}")


@dataclass(frozen=True, eq=False)
class Froc:
    """The FROC curves of one matching, one chart."""

    title: str
    """Such as "IoU 0.25"."""
    curves: Sequence[Curve]
    per: str = "slice"


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """The rows of one run's log.jsonl."""

    name: str
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Chart:
    """A figure for light and for dark paper, as data URIs."""

    title: str
    light: str
    dark: str
    alt: str
    legend: tuple[tuple[str, "Series"], ...] = ()
    """Names of the lines, where the page has no legend for all charts."""


@dataclass(frozen=True)
class Mark:
    """A box to draw: x, y, width, height in pixels of its tile's image."""

    x: float
    y: float
    width: float
    height: float
    score: float | None = None


@dataclass(frozen=True)
class Tile:
    """A picture as a PNG data URI, its size in pixels, and the boxes over it."""

    uri: str
    width: int
    height: int
    marks: tuple[Mark, ...]
    name: str

    @property
    def stroke(self) -> float:
        """A pleasant unit for text and corners: a fortieth of the picture."""
        return max(self.width, self.height) / 40


@dataclass(frozen=True)
class Series:
    """How a set-up is drawn in every chart and in the legend."""

    index: int

    @property
    def dashes(self) -> tuple[float, ...]:
        """On and off lengths in points; () is a solid line."""
        return DASHES[self.index % len(DASHES)]

    @property
    def mark(self) -> str:
        """Matplotlib's letter."""
        return MARKS[self.index % len(MARKS)]

    @property
    def colour(self) -> int:
        """Place in `LIGHT` and `DARK`; with the mark it tells 64 apart."""
        return (self.index + self.index // len(MARKS)) % len(LIGHT)

    @property
    def outline(self) -> str:
        """The mark as points of an SVG polygon around (0, 0), about 2 wide."""
        from matplotlib.markers import MarkerStyle  # noqa: PLC0415

        style = MarkerStyle(self.mark)
        path = style.get_path().transformed(style.get_transform())
        points = np.asarray(path.to_polygons(closed_only=False)[0], np.float64)
        points = points[:: max(1, len(points) // 40)] / np.abs(points).max()
        return " ".join(f"{x:.2f},{-y:.2f}" for x, y in points)


def froc_chart(froc: Froc, series: Mapping[str, Series]) -> Chart:
    """Sensitivity against false positives a case; step functions, nothing interpolated."""
    curves = [_thinned(curve) for curve in froc.curves]
    largest = max([1.0, *(float(curve.false_positives[-1]) for curve in curves)])
    ticks = [0.0, *(2.0**k for k in range(-3, 12) if 2.0**k <= 1.01 * largest)]

    def draw(axes: "Axes", colours: Sequence[str]) -> None:
        for curve in curves:
            look = series[curve.setup]
            colour = colours[look.colour]
            x, y = curve.false_positives, curve.sensitivity
            if curve.low is not None and curve.high is not None:
                axes.fill_between(
                    x, curve.low, curve.high, step="post", color=colour, alpha=0.13, linewidth=0
                )
            axes.plot(x, y, drawstyle="steps-post", color=colour, linewidth=1.7, dashes=look.dashes)
            if curve.operating_point is not None:
                axes.plot(
                    *curve.operating_point, look.mark, color=colour, markersize=7.5,
                    markeredgecolor=axes.figure.get_facecolor(), clip_on=False, zorder=5,
                )  # fmt: skip
        axes.set_xscale("symlog", base=2, linthresh=LINEAR_BELOW, linscale=1)
        axes.set_xlim(0, largest * 1.08)
        axes.set_xticks(ticks, [_fraction(tick) for tick in ticks])
        axes.xaxis.set_minor_locator(no_ticks())
        axes.set_ylim(0, 1)
        axes.set_xlabel(f"False positives per {froc.per}")
        axes.set_ylabel("Sensitivity")

    ends = "; ".join(
        f"{curve.setup} ends at sensitivity {curve.sensitivity[-1]:.2f} with "
        f"{curve.false_positives[-1]:.2f} false positives per {froc.per}"
        for curve in froc.curves
    )
    return chart(f"FROC, {froc.title}", f"FROC curves, {froc.title}: {ends}.", draw, (5.2, 3.9))


def chart(
    title: str,
    alt: str,
    draw: Callable[["Axes", Sequence[str]], None],
    inches: tuple[float, float],
) -> Chart:
    """A figure: `draw` is called with axes and colours, once for either paper."""
    light = _svg(draw, inches, LIGHT, paper="#ffffff", ink="#1c2126", faint="#d8dde3")
    dark = _svg(draw, inches, DARK, paper="#171b20", ink="#e6e9ec", faint="#3a424b")
    return Chart(title, light, dark, alt)


def _svg(
    draw: Callable[["Axes", Sequence[str]], None],
    inches: tuple[float, float],
    colours: Sequence[str],
    *,
    paper: str,
    ink: str,
    faint: str,
) -> str:
    """Draw into an SVG data URI whose bytes depend on the arguments alone."""
    import matplotlib  # noqa: PLC0415
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    style: Any = {
        "svg.hashsalt": "synthoma", "svg.fonttype": "none", "text.parse_math": False,
        "axes.unicode_minus": True, "font.family": ["sans-serif"], "font.size": 10.5,
        "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"], "text.color": ink,
        "axes.labelcolor": ink, "axes.edgecolor": ink, "axes.linewidth": 0.8,
        "xtick.color": ink, "ytick.color": ink, "axes.facecolor": "none",
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "figure.dpi": 160, "grid.color": faint, "grid.linewidth": 0.7, "axes.axisbelow": True,
    }  # fmt: skip
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the browser has it
        figure = Figure(figsize=inches, layout="constrained", facecolor=paper)
        draw(figure.subplots(), colours)
        content = io.StringIO()
        FigureCanvasSVG(figure).print_svg(
            content, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return f"data:image/svg+xml;base64,{base64.b64encode(content.getvalue().encode()).decode()}"


def no_ticks() -> Any:
    """What a logarithmic axis needs so that it has no minor ticks."""
    from matplotlib.ticker import NullLocator  # noqa: PLC0415

    return NullLocator()


def _fraction(rate: float) -> str:
    return f"1/{round(1 / rate)}" if 0 < rate < 1 else f"{rate:g}"


def _thinned(curve: Curve) -> Curve:
    """The points where the curve or its band moves, at most `POINTS` of them, evenly in x."""
    x = np.asarray(curve.false_positives, np.float64)
    place = np.where(x < LINEAR_BELOW, x / LINEAR_BELOW, 1 + np.log2(np.maximum(x, 1e-9) * 8))
    columns = np.round(place / max(float(place[-1]), 1e-9) * POINTS)
    last_of_column = np.append(np.diff(columns) != 0, True)
    keep = np.flatnonzero(last_of_column)
    keep = np.unique(np.concatenate([[0], keep]))

    def of(column: np.ndarray | None) -> np.ndarray | None:
        return None if column is None else np.asarray(column)[keep]

    return Curve(
        curve.setup,
        x[keep],
        np.asarray(curve.sensitivity)[keep],
        of(curve.low),
        of(curve.high),
        curve.operating_point,
    )


def side_limit(shapes: Sequence[tuple[int, ...]]) -> int:
    """The largest side at which pictures of these shapes (c, h, w) fit in `PICTURE_BYTES`."""
    for limit in (384, 320, 256, 224, 192, 160, 128, 96, 64):
        total = 0.0
        for c, h, w in shapes:
            shrink = min(1.0, limit / max(h, w))
            total += (3 if c == 3 else 1) * h * w * shrink * shrink
        if total <= PICTURE_BYTES:
            return limit
    return 48


def marks_of(
    boxes: Float[np.ndarray, "m 4"], scores: Float[np.ndarray, " m"] | None = None
) -> tuple[Mark, ...]:
    """Boxes (y0, x0, y1, x1) as a page draws them."""
    known = [None] * len(boxes) if scores is None else np.asarray(scores, np.float64).tolist()
    return tuple(
        Mark(round(x0, 2), round(y0, 2), round(x1 - x0, 2), round(y1 - y0, 2), score)
        for (y0, x0, y1, x1), score in zip(boxes.tolist(), known, strict=True)
    )


def tile(picture: Picture, *, limit: int, synthetic: bool = False) -> Tile:
    """A picture for the page, shrunk by areas if a side exceeds `limit`; the page enlarges it.

    Boxes are not in the pixels. A synthetic image says so in a text chunk of its PNG.
    """
    import cv2  # noqa: PLC0415
    from PIL import Image as Pil  # noqa: PLC0415
    from PIL.PngImagePlugin import PngInfo  # noqa: PLC0415

    image, boxes = np.asarray(picture.image), np.asarray(picture.boxes, np.float64)
    if image.ndim != 3 or image.dtype != np.uint8 or boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(
            f"picture {picture.name!r}: image {image.dtype} {image.shape}, boxes {boxes.shape}; "
            "allowed: uint8 (c, h, w) and (m, 4)"
        )
    _, h, w = image.shape
    shown = np.ascontiguousarray(np.moveaxis(image, 0, 2) if len(image) == 3 else image[0])
    shrink = min(1.0, limit / max(h, w))
    if shrink < 1:
        size = (max(1, round(w * shrink)), max(1, round(h * shrink)))
        shown = cv2.resize(shown, size, interpolation=cv2.INTER_AREA)
    about = PngInfo()
    if synthetic:
        about.add_text("Synthetic", "yes: drawn by a generator, not a patient")
    content = io.BytesIO()
    Pil.fromarray(shown).save(content, "PNG", optimize=True, pnginfo=about)
    uri = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    return Tile(uri, w, h, marks_of(boxes), picture.name)
