"""Charts as inline SVG that takes its colours and fonts from the page, so that it follows light and dark.

Drawn on matplotlib's ``Figure`` objects alone, without its global state. Colours are drawn as placeholders, and become
CSS variables in the text of the SVG.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK, FAINT, PAPER = "#010203", "#040506", "#070809"
SERIES = tuple(f"#{number:02x}0b0c" for number in range(0x10, 0x18))
"""Placeholders of the page's colours: text, lines in the background, background, and the series."""

_VARIABLES = {INK: "--ink", FAINT: "--line", PAPER: "--card"} | {
    color: f"--c{number}" for number, color in enumerate(SERIES)
}
Formatter = Callable[[float], str]


def line_chart(
    name: str,
    x: Sequence[float],
    y: Sequence[float],
    *,
    x_label: str,
    y_label: str,
    x_format: Formatter | None = None,
    whole_x: bool = False,
    color: str = SERIES[0],
) -> str:
    """Return a curve with a mark at each point as SVG.

    Args:
        name: unique on the page; begins the ids inside the SVG.
        x, y: the points.
        x_label, y_label: the axes'.
        x_format: writes a number on the x axis.
        whole_x: only whole numbers on the x axis.
        color: one of SERIES.
    """
    figure, axes = new_figure(4.4, 2.7)
    axes.plot(x, y, color=color, linewidth=1.8, marker="o", markersize=3.2 if len(x) <= 60 else 0)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.margins(y=0.12)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=whole_x))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if x_format is not None:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: x_format(value)))
    return svg_text(figure, name)


def bar_chart(name: str, values: Mapping[str, float], value_format: Formatter, *, color: str = SERIES[0]) -> str:
    """Return horizontal bars, from top to bottom in the given order, each with its value and share, as SVG.

    Args:
        name: unique on the page.
        values: length of each bar by its label.
        value_format: writes a value.
        color: one of SERIES.
    """
    total = sum(values.values())
    figure, axes = new_figure(4.4, 0.55 + 0.3 * max(len(values), 1))
    labels = [label.replace("_", " ") for label in values]
    axes.barh(labels, list(values.values()), color=color, height=0.62)
    axes.invert_yaxis()
    longest = max(values.values(), default=0.0) or 1.0
    for row, value in enumerate(values.values()):
        share = f"  {100 * value / total:.0f} %" if total else ""
        axes.text(value + longest * 0.02, row, value_format(value) + share, va="center", fontsize=8, color=INK)
    axes.set_xlim(0, longest * 1.42)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return svg_text(figure, name)


def blank_axes(width_inches: float, height_inches: float) -> tuple[Figure, Axes]:
    """Return a figure whose axes show nothing but what is drawn into them, with equal units in both directions."""
    figure, axes = new_figure(width_inches, height_inches)
    axes.set_axis_off()
    axes.set_aspect("equal", adjustable="datalim")
    return figure, axes


def svg_text(figure: Figure, name: str) -> str:
    """Return a figure as an SVG element: ids begin with ``name``, colours are the page's, the width is its frame's."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:xmlns(?::\w+)?|version)="[^"]*"', "", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'(?:xlink:)?href="#([^"]*)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r"font: [^;\"]*", _page_font, text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, f"var({variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{name}"', 1)


def _page_font(match: re.Match[str]) -> str:
    """Keep size and weight of a font in short notation, and leave the family to the page."""
    size = re.search(r"[\d.]+px", match[0])
    bold = "bold" if re.search(r"\b(?:bold|700)\b", match[0]) else "normal"
    return f"font-size: {size[0] if size else '10px'}; font-weight: {bold}"


def new_figure(width_inches: float, height_inches: float) -> tuple[Figure, Axes]:
    """Return a figure with axes in the page's colours."""
    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8, length=2, color=FAINT)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(INK)
        axis.label.set_fontsize(8.5)
    return figure, axes
