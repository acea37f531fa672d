"""A sweep's plots: SVG files that need no page around them, drawn as the reports are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from elsa_ray.config.sweep import Condition, Grid, value_text
from elsa_ray.records import human
from elsa_ray.records.charts import FAINT, INK, SERIES, Formatter, blank_axes, svg_text
from elsa_ray.records.sweep_table import CellRecord, TableLine, metric_text, metric_title, table_metrics

_COLORS = {"--ink": "#1c2430", "--line": "#d5dae1", "--card": "#ffffff"} | {
    f"--c{number}": color
    for number, color in enumerate(
        ("#1f6feb", "#0d8a72", "#b7791f", "#7a5bc7", "#c2415a", "#2b8cad", "#6b8e23", "#a0522d")
    )
}
"""A file has no page to take its colours from: these, on a white ground, are readable on any."""
_DASHES = ("-", "--", ":", "-.")
_WIDTH_INCHES = 6.4


def sweep_plots(grid: Grid, lines: Sequence[TableLine]) -> dict[str, tuple[str, str]]:
    """Return file name and SVG of each plot, by its title; without figures there is no plot.

    Args:
        grid: what was to run.
        lines: the table.
    """
    plots: dict[str, tuple[str, str]] = {}
    for metric in table_metrics(grid.config):
        svg = _metric_plot(grid, lines, metric)
        if svg:
            plots[f"{metric_title(metric).capitalize()} by row"] = (f"{metric.replace('.', '-')}.svg", svg)
    if {"accuracy", "bytes_total"} <= set(grid.config.metrics):
        svg = _pareto_plot(grid, lines)
        if svg:
            plots["Accuracy against bytes"] = ("pareto.svg", svg)
    score = "accuracy" if any(point["accuracy"] is not None for point in _all_points(lines)) else "loss"
    for field, title in (("round", "round"), ("simulated_seconds", "simulated time")):
        svg = _curve_plot(grid, lines, score, field)
        if svg:
            plots[f"{score.capitalize()} by {title}"] = (f"{score}-by-{field.replace('_', '-')}.svg", svg)
    return plots


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the points (cost, gain) that no other beats: none is as cheap and better, or cheaper and as good.

    They are sorted by cost; of equal points all are kept.
    """
    return sorted(
        (
            i
            for i, (cost, gain) in enumerate(points)
            if not any(
                other_cost <= cost and other_gain >= gain and (other_cost, other_gain) != (cost, gain)
                for other_cost, other_gain in points
            )
        ),
        key=lambda i: (points[i][0], i),
    )


def mean_curve(cells: Sequence[CellRecord], score: str, x_field: str) -> list[tuple[float, float]]:
    """Return the mean of x and of the score over the finished runs, at each round that all of them have tested.

    A round that only some have is left out: a mean over fewer runs than the one before would jump.
    """
    curves = [
        {point["round"]: point for point in cell.curve if point[score] is not None}
        for cell in cells
        if cell.is_finished
    ]
    if not curves:
        return []
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    # Rounds are shown as they are counted by people.
    shift = 1 if x_field == "round" else 0
    return [
        (_mean([curve[index][x_field] for curve in curves]) + shift, _mean([curve[index][score] for curve in curves]))
        for index in common
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _all_points(lines: Sequence[TableLine]) -> list[Mapping[str, object]]:
    return [point for line in lines for cell in line.cells for point in cell.curve]


def _metric_plot(grid: Grid, lines: Sequence[TableLine], metric: str) -> str:
    """Return each condition's mean with its interval, from top to bottom; nothing without a value."""
    shown = [(line.condition, line.means[metric]) for line in lines if line.means[metric].mean is not None]
    if not shown:
        return ""
    figure, axes = _axes(0.8 + 0.32 * len(shown))
    for position, (condition, mean) in enumerate(shown):
        assert mean.mean is not None
        color = _color(grid, condition)
        axes.errorbar(mean.mean, position, xerr=mean.half_width, fmt="o", color=color, markersize=4, capsize=3)
    axes.set_yticks(range(len(shown)), [_label(grid, condition) for condition, _ in shown])
    axes.invert_yaxis()
    axes.margins(y=0.5 / len(shown))
    axes.grid(axis="x", color=FAINT, linewidth=0.7)
    axes.set_xlabel(f"{metric_title(metric)}, mean and 95 % interval")
    _format_x(axes, lambda value: metric_text(metric, value))
    return _svg(figure, metric.replace(".", "-"))


def _pareto_plot(grid: Grid, lines: Sequence[TableLine]) -> str:
    """Return the conditions over the bytes that they sent, and the line of those that no other beats."""
    points, shown = [], []
    for line in lines:
        num_bytes, accuracy = line.means["bytes_total"].mean, line.means["accuracy"].mean
        # A logarithmic axis has no place for nothing.
        if num_bytes and accuracy is not None:
            points.append((num_bytes, accuracy))
            shown.append(line.condition)
    if not points:
        return ""
    figure, axes = _axes(3.8)
    axes.set_xscale("log")
    cheapest, dearest = min(points)[0], max(points)[0]
    front = [points[i] for i in pareto_front(points)]
    axes.plot(*zip(*front, strict=True), color=FAINT, linewidth=1.2, drawstyle="steps-post", zorder=1)
    for (num_bytes, accuracy), condition in zip(points, shown, strict=True):
        axes.plot([num_bytes], [accuracy], "o", color=_color(grid, condition), markersize=5)
        # Towards the middle, where there is room; the axes keep their width.
        is_left = num_bytes**2 <= cheapest * dearest
        label = axes.annotate(
            _label(grid, condition),
            (num_bytes, accuracy),
            (5 if is_left else -5, 4),
            textcoords="offset points",
            ha="left" if is_left else "right",
            fontsize=7.5,
            color=INK,
        )
        label.set_in_layout(False)
    axes.margins(x=0.1, y=0.15)
    axes.set_xlabel("bytes sent (logarithmic)")
    axes.set_ylabel("accuracy")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human.human_bytes(value)))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if dearest < 1e3 * cheapest else (1,)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: human.human_share(value)))
    return _svg(figure, "pareto")


def _curve_plot(grid: Grid, lines: Sequence[TableLine], score: str, x_field: str) -> str:
    """Return the mean score of each condition over rounds or simulated time."""
    curves = [(line.condition, mean_curve(line.cells, score, x_field)) for line in lines]
    curves = [(condition, curve) for condition, curve in curves if curve]
    if not curves:
        return ""
    figure, axes = _axes(3.4 + 0.14 * len(curves))
    for condition, curve in curves:
        axes.plot(
            *zip(*curve, strict=True),
            color=_color(grid, condition),
            linestyle=_dash(grid, condition),
            linewidth=1.6,
            marker="o",
            markersize=2.6,
            label=_label(grid, condition),
        )
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_ylabel(f"{score}, mean over seeds")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: metric_text(score, value)))
    axes.legend(fontsize=7.5, labelcolor=INK, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    if x_field == "round":
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.set_xlabel("rounds")
    else:
        axes.set_xlabel("simulated time")
        _format_x(axes, human.human_seconds)
    return _svg(figure, f"{score}-by-{x_field.replace('_', '-')}")


def _axes(height_inches: float) -> tuple[Figure, Axes]:
    figure, axes = blank_axes(_WIDTH_INCHES, height_inches)
    axes.set_axis_on()
    axes.set_aspect("auto")
    return figure, axes


def _format_x(axes: Axes, write: Formatter) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def _label(grid: Grid, condition: Condition) -> str:
    """Return row and values, keys by their last part where that is enough."""
    last = {key: key.rpartition(".")[2] for key in grid.config.vary}
    short = last if len(set(last.values())) == len(last) else {key: key for key in last}
    return ", ".join([condition.row, *(f"{short[key]}={value_text(value)}" for key, value in condition.values.items())])


def _color(grid: Grid, condition: Condition) -> str:
    """Return the row's colour."""
    return SERIES[list(grid.config.rows).index(condition.row) % len(SERIES)]


def _dash(grid: Grid, condition: Condition) -> str:
    """Return the values' way to draw a line."""
    number = [other for other in grid.conditions if other.row == condition.row].index(condition)
    return _DASHES[number % len(_DASHES)]


def _svg(figure: Figure, name: str) -> str:
    """Return a figure as a file's content: with the namespace, colours, ground and font that a page would have."""
    text = re.sub(r"var\((--\w+)\)", lambda match: _COLORS[match[1]], svg_text(figure, name))
    text = text.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif"', 1)
    ground = f'<rect width="100%" height="100%" fill="{_COLORS["--card"]}"/>'
    return re.sub(r"(<svg[^>]*>)", lambda match: match[1] + ground, text, count=1)
