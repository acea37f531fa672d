"""Pictures of a round: what clients did when, and how busy links were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from elsa_ray.records.charts import FAINT, INK, SERIES, new_figure, svg_text
from elsa_ray.records.human import human_seconds, human_share
from elsa_ray.records.intervals import ClientsOfRound, Doing, Interval

_COLORS = {
    Doing.CLIENT: SERIES[0],
    Doing.EDGE: SERIES[3],
    Doing.UP: SERIES[1],
    Doing.DOWN: SERIES[2],
    Doing.QUEUE: SERIES[4],
    Doing.WAIT: FAINT,
}
_MOST_BARS = 400
"""Of a client: more would be narrower than what a screen shows."""


def gantt_svg(shown: ClientsOfRound) -> str:
    """Return what clients did in a round as SVG: a row a client, the time from the round's start to the right."""
    figure, axes = new_figure(9.2, 0.9 + 0.27 * len(shown.names))
    span = shown.end - shown.begin
    for row, intervals in enumerate(shown.intervals):
        for doing, color in _COLORS.items():
            bars = [(begin - shown.begin, end - begin) for begin, end in _drawn(intervals, doing, shown)]
            height = 0.12 if doing is Doing.WAIT else 0.72
            axes.broken_barh(bars, (row - height / 2, height), facecolors=color, linewidth=0)
        times = np.array(shown.given_up[row]) - shown.begin
        axes.plot(times, np.full(len(times), row), linestyle="", marker="x", markersize=7, color=INK, clip_on=False)
    axes.set_yticks(range(len(shown.names)), shown.names)
    axes.invert_yaxis()
    _time_axis(axes, span)
    patches: list[Any] = [Patch(color=color, label=doing.value) for doing, color in _COLORS.items()]
    if any(shown.given_up):
        patches.append(Line2D([], [], linestyle="", marker="x", markersize=7, color=INK, label="is given up"))
    figure.legend(handles=patches, loc="outside upper center", ncols=len(patches), frameon=False, fontsize=8,
                  labelcolor=INK, handlelength=1.0, columnspacing=1.4)  # fmt: skip
    return svg_text(figure, "gantt")


def _drawn(intervals: Sequence[Interval], doing: Doing, shown: ClientsOfRound) -> list[tuple[float, float]]:
    """Return begin and end of a row's bars of one kind; of very many, what most of each narrow slice of time is."""
    if len(intervals) <= _MOST_BARS:
        return [(own.begin, own.end) for own in intervals if own.doing is doing and own.end > own.begin]
    kinds = list(_COLORS)
    edges = np.linspace(shown.begin, shown.end, _MOST_BARS + 1)
    seconds = np.zeros((len(kinds), _MOST_BARS))
    begins, ends = (np.array([getattr(own, end) for own in intervals]) for end in ("begin", "end"))
    kind_of = np.array([kinds.index(own.doing) for own in intervals])
    for slice_, (low, high) in enumerate(pairwise(edges.tolist())):
        overlap = np.clip(np.minimum(ends, high) - np.maximum(begins, low), 0, None)
        seconds[:, slice_] = np.bincount(kind_of, weights=overlap, minlength=len(kinds))
    is_own = np.concatenate([[False], seconds.argmax(axis=0) == kinds.index(doing), [False]])
    changes = np.flatnonzero(np.diff(is_own.astype(int)))
    return [(float(edges[begin]), float(edges[end])) for begin, end in zip(changes[::2], changes[1::2], strict=True)]


def links_svg(links: Sequence[Mapping[str, Any]], span: float) -> str:
    """Return how busy links were over a round as SVG: a band a link, its height the share of the capacity.

    Args:
        links: as in a line of ``rounds.jsonl``, busiest first.
        span: seconds of the round.
    """
    figure, axes = new_figure(9.2, 0.55 + 0.52 * len(links))
    for row, link in enumerate(links):
        profile = np.array(link["profile"], float)
        edges = np.linspace(0, span, len(profile) + 1)
        base = len(links) - 1 - row
        height = 0.82 * np.clip(profile, 0, 1)
        axes.stairs(base + height, edges, baseline=base, fill=True, color=SERIES[5], linewidth=0)
        axes.plot([0, span], [base + 0.82, base + 0.82], color=FAINT, linewidth=0.7, linestyle=(0, (2, 3)))
        axes.plot([0, span], [base, base], color=FAINT, linewidth=0.7)
        axes.annotate(human_share(link["utilisation"]), (span, base + 0.35), xytext=(6, 0), textcoords="offset points",
                      fontsize=8, color=INK, va="center")  # fmt: skip
    axes.set_yticks([len(links) - 1 - row + 0.35 for row in range(len(links))], [link["name"] for link in links])
    axes.set_ylim(-0.05, len(links))
    _time_axis(axes, span)
    return svg_text(figure, "links")


def _time_axis(axes: Axes, span: float) -> None:
    axes.set_xlim(0, span)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_seconds(value) if value else "0"))
