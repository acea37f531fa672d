"""Draws a topology: routers by their places or distances; edge servers, cells, the cloud and clients around them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from elsa_ray.config.errors import InputError
from elsa_ray.network.graph import Network
from elsa_ray.records.charts import FAINT, INK, PAPER, SERIES, blank_axes, svg_text

MOST_CLIENTS_DRAWN = 300
_MOST_LABELLED, _MOST_LEAVES_LABELLED = 40, 24
_MOST_BY_DISTANCES = 80
_NEAR, _FAR = 0.40, 1.0
"""Where leaves of the core stand around their router and where the last row of clients does, in the router's room."""
_LEAST_GAP = 2.0
"""Radians; where all gaps between a router's links are narrower, what surrounds it stands over its links."""
Position = tuple[float, float]


@dataclass(frozen=True)
class Colors:
    """What a drawing is drawn in: text and outlines, links, background, and one an edge server."""

    ink: str = INK
    faint: str = FAINT
    paper: str = PAPER
    series: tuple[str, ...] = SERIES


ON_PAPER = Colors(
    ink="#1c2430",
    faint="#b4bdc9",
    paper="#ffffff",
    series=("#1f6feb", "#0d8a72", "#b7791f", "#7a5bc7", "#c2415a", "#2b8cad", "#6b8e23", "#a0522d"),
)
"""For a picture that stands alone."""


def topology_svg(network: Network, edge_of_client: Mapping[str, str] | None = None) -> str:
    """Return a drawing of the network as SVG that takes its colours from the page.

    Args:
        network: the topology; with more than ``MOST_CLIENTS_DRAWN`` clients only their numbers are drawn.
        edge_of_client: names of clients and of the edges that they train through; decides the clients' colours.
    """
    figure, axes = blank_axes(7.2, 5.0)
    _draw(axes, network, edge_of_client or {}, Colors())
    return svg_text(figure, "topology")


def draw_topology(network: Network, path: str | Path, title: str, edge_of_client: Mapping[str, str]) -> None:
    """Write a picture of the network that stands alone, with a title and a legend: SVG or PNG by the file's ending.

    Args:
        network: the topology.
        path: the picture.
        title: its first line; the second one tells the numbers of nodes.
        edge_of_client: as for ``topology_svg``.

    Raises:
        InputError: the ending is another one, or the file cannot be written.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in ("svg", "png"):
        raise InputError("--out", str(path), "a name ending in .svg or .png")
    figure, axes = blank_axes(9.6, 6.8)
    _draw(axes, network, edge_of_client, ON_PAPER)
    names = {"client": "clients", "edge": "edge servers", "router": "routers", "cloud": "cloud"}
    numbers = ", ".join(f"{network.node_kinds.count(kind):,} {name}" for kind, name in names.items())
    figure.suptitle(f"{title}\n{numbers}", fontsize=11, color=ON_PAPER.ink)
    _legend(axes, network, bool(edge_of_client))
    try:
        _save(figure, path, kind)
    except OSError as error:
        raise InputError("--out", f"{path} ({error.strerror})", "a file that can be written") from error


def _save(figure: Figure, path: str | Path, kind: str) -> None:
    if kind == "png":
        FigureCanvasAgg(figure)
    metadata = {"Date": None} if kind == "svg" else None
    with mpl.rc_context({"svg.hashsalt": "topology"}):
        figure.savefig(path, format=kind, dpi=150, facecolor=ON_PAPER.paper, metadata=metadata)


def _draw(axes: Axes, network: Network, edge_of_client: Mapping[str, str], colors: Colors) -> None:
    layout = _Layout.of(network)
    graph, spots = layout.graph, layout.spots
    drawn = len(network.clients) <= MOST_CLIENTS_DRAWN
    inner = [link for link in graph.edges if link[0] not in layout.clients and link[1] not in layout.clients]
    _draw_links(axes, graph, inner, spots, colors, widths=True)
    if drawn:
        outer = [link for link in graph.edges if link[0] in layout.clients or link[1] in layout.clients]
        _draw_links(axes, graph, outer, spots, colors, widths=False)
        _draw_clients(axes, layout, edge_of_client, _edge_colors(network, colors), colors)
    else:
        _write_counts(axes, network, layout, colors)
    _draw_core(axes, network, layout, colors)
    axes.margins(0.06)


@dataclass
class _Layout:
    """Where everything is drawn.

    Attributes:
        graph: the topology, undirected.
        trunk: nodes that join others; where they are decides everything else.
        clients: all clients.
        spots: of each node that is drawn.
        attached: clients by the node that they hang on.
    """

    graph: nx.Graph
    trunk: list[str]
    clients: set[str]
    spots: dict[str, Position] = field(default_factory=dict)
    attached: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(cls, network: Network) -> _Layout:
        graph = nx.Graph(network.graph)
        clients = [network.node_names[node] for node in network.clients]
        own = set(clients)
        core = nx.Graph()
        core.add_nodes_from(name for name in graph if name not in own)
        core.add_edges_from(link for link in graph.edges if link[0] in core and link[1] in core)
        trunk = [name for name in core if core.degree(name) != 1] or list(core)
        layout = cls(graph, trunk, own)
        for client in clients:
            at = next((name for name in graph[client] if name not in own), next(iter(core)))
            layout.attached[at].append(client)
        layout.spots |= _trunk_spots(core.subgraph(trunk), core, trunk, network)
        leaves: dict[str, list[str]] = defaultdict(list)
        for name in core:
            if name not in layout.spots:
                leaves[next(iter(core[name]))].append(name)
        room = _room(list(layout.spots.values()), 0.5 if trunk[0] in network.coordinates else 0.25)
        for name in trunk:
            layout._surround(name, leaves[name], [layout.spots[other] for other in core[name] if other in trunk], room)
        return layout

    def parent(self, leaf: str) -> str:
        """Return the node of the core that a leaf hangs on."""
        return next((name for name in self.graph[leaf] if name not in self.clients), leaf)

    def _surround(self, name: str, leaves: Sequence[str], neighbours: Sequence[Position], room: float) -> None:
        """Place a router's leaves, and all clients that hang on it or on them, where it has no links."""
        here = self.spots[name]
        # Each leaf takes as much of the circle as its clients need; the router's own clients are one more share.
        owners = list(leaves)
        if self.attached[name]:
            owners.insert(len(owners) // 2, name)
        shares = [(owner, 1.0 + len(self.attached[owner]) ** 0.75) for owner in owners]
        least = 0.06 * sum(share for _, share in shares)
        shares = [(owner, max(share, least)) for owner, share in shares]
        total = sum(share for _, share in shares)
        begin, width = _widest_gap(here, neighbours)
        for owner, share in shares:
            span = width * share / total
            middle, own = begin + span / 2, self.attached[owner]
            if owner != name:
                self.spots[owner] = _polar(here, _NEAR * room if own else 0.55 * room, middle)
            inside = 0.3 if owner == name else _NEAR
            self.spots |= _rows(here, own, middle, 0.86 * span, (inside + 0.3) * room, _FAR * room)
            begin += span


def _trunk_spots(trunk: nx.Graph, core: nx.Graph, names: Sequence[str], network: Network) -> dict[str, Position]:
    """Return where the nodes of the trunk are: on the map if all of them say it, else by the hops between them."""
    if all(name in network.coordinates for name in names):
        latitudes = [network.coordinates[name][0] for name in names]
        shrink = math.cos(math.radians(sum(latitudes) / len(latitudes)))
        places = {name: (network.coordinates[name][1] * shrink, network.coordinates[name][0]) for name in names}
        size = max(max(axis) - min(axis) for axis in zip(*places.values(), strict=True)) or 1.0
        return {name: (2 * x / size, 2 * y / size) for name, (x, y) in places.items()}
    # In the topology's order, on which a layout depends.
    ordered = nx.Graph()
    ordered.add_nodes_from(names)
    ordered.add_edges_from(link for link in core.edges if link[0] in trunk and link[1] in trunk)
    # By distances the drawing is clear, but its cost grows with the square of the nodes.
    by_distances = len(ordered) <= _MOST_BY_DISTANCES and nx.is_connected(ordered)
    layout = nx.kamada_kawai_layout(ordered, weight=None) if by_distances else nx.spring_layout(ordered, seed=0)
    return {name: (float(x), float(y)) for name, (x, y) in layout.items()}


def _room(spots: Sequence[Position], quantile: float) -> float:
    """Return the radius that is free around most nodes of the trunk, within sensible bounds."""
    points = np.array(spots)[:1000]
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    apart[np.diag_indices(len(points))] = np.inf
    nearest = np.sort(apart.min(axis=1, initial=1.6))
    # Pairs that are nearer than usual may overlap a little, so that not everything else is small.
    return float(np.clip(0.5 * nearest[int(len(nearest) * quantile)], 0.06, 0.5))


def _widest_gap(here: Position, neighbours: Sequence[Position]) -> tuple[float, float]:
    """Return where the widest angle without a link begins, and how wide it is; a little is left on both sides."""
    angles = sorted(math.atan2(y - here[1], x - here[0]) for x, y in neighbours)
    if not angles:
        return -math.pi / 2, 2 * math.pi
    gaps = [
        (after - before, before) for before, after in zip(angles, [*angles[1:], angles[0] + 2 * math.pi], strict=True)
    ]
    width, begin = max(gaps, key=lambda gap: round(gap[0], 9))
    if width < _LEAST_GAP:
        return begin, 2 * math.pi
    side = min(0.35, 0.15 * width)
    return begin + side, width - 2 * side


def _rows(
    center: Position, names: Sequence[str], middle: float, span: float, nearest: float, farthest: float
) -> dict[str, Position]:
    """Return places in arcs around a direction, the outer ones with more room, about as far apart as the arcs are."""
    num_rows = 1
    while True:
        radii = np.linspace(farthest, nearest, num_rows) if num_rows > 1 else np.array([farthest])
        apart = span * radii.sum() / max(len(names), 1)
        if apart >= min(0.06 * farthest, (farthest - nearest) / num_rows):
            break
        num_rows += 1
    counts = np.floor(len(names) * radii / radii.sum()).astype(int)
    counts[: len(names) - counts.sum()] += 1
    placed, rest = {}, list(names)
    for radius, count in zip(radii.tolist(), counts.tolist(), strict=True):
        row, rest = rest[:count], rest[count:]
        for place, name in enumerate(row):
            placed[name] = _polar(center, radius, middle + span * ((place + 0.5) / count - 0.5))
    return placed


def _polar(center: Position, radius: float, angle: float) -> Position:
    return center[0] + radius * math.cos(angle), center[1] + radius * math.sin(angle)


def _edge_colors(network: Network, colors: Colors) -> dict[str, str]:
    """Give each edge server a colour of its own, as far as there are colours."""
    names = [network.node_names[node] for node in network.edges]
    return {name: colors.series[number % len(colors.series)] for number, name in enumerate(names)}


def _draw_links(
    axes: Axes,
    graph: nx.Graph,
    links: Iterable[tuple[str, str]],
    spots: Mapping[str, Position],
    colors: Colors,
    *,
    widths: bool,
) -> None:
    """Draw links; with widths a link of more bandwidth is thicker, by its logarithm."""
    links = list(links)
    width = [
        1.0 + 0.6 * max(0.0, math.log10(graph.edges[link]["bandwidth_bytes_per_second"]) - 6) if widths else 0.5
        for link in links
    ]
    segments = [(spots[first], spots[second]) for first, second in links]
    axes.add_collection(LineCollection(segments, colors=colors.faint, linewidths=width or 1.0, zorder=1))


def _draw_clients(
    axes: Axes, layout: _Layout, edge_of_client: Mapping[str, str], of_edges: Mapping[str, str], colors: Colors
) -> None:
    size = 26 if len(layout.clients) <= 60 else 11
    by_color: dict[str, list[Position]] = defaultdict(list)
    for names in layout.attached.values():
        for name in names:
            without = colors.ink if not edge_of_client else colors.faint
            by_color[of_edges.get(edge_of_client.get(name, ""), without)].append(layout.spots[name])
    for color, spots in by_color.items():
        x, y = zip(*spots, strict=True)
        axes.scatter(x, y, s=size, color=color, linewidths=0, zorder=3)


def _write_counts(axes: Axes, network: Network, layout: _Layout, colors: Colors) -> None:
    """Write the number of clients over the router that they hang on, or below another kind of node."""
    frame = {"boxstyle": "round,pad=0.35", "facecolor": colors.paper, "edgecolor": colors.ink, "linewidth": 0.9}
    for at, names in layout.attached.items():
        below = 0 if network.node_kinds[network.index(at)] == "router" else -16
        if names:
            axes.annotate(
                f"{len(names):,}",
                layout.spots[at],
                xytext=(0, below),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=7,
                color=colors.ink,
                bbox=frame,
                zorder=6,
            )


def _draw_core(axes: Axes, network: Network, layout: _Layout, colors: Colors) -> None:
    of_edges = _edge_colors(network, colors)
    looks = {"cloud": ("s", 130), "edge": ("D", 70), "router": ("o", 34)}
    trunk = set(layout.trunk)
    leaves = [name for name in layout.spots if name not in layout.clients and name not in trunk]
    # A cell is called after its router.
    told = [name for name in leaves if not name.startswith(f"{layout.parent(name)}.")]
    for kind, (marker, size) in looks.items():
        nodes = [name for name, found in zip(network.node_names, network.node_kinds, strict=True) if found == kind]
        if not nodes:
            continue
        x, y = zip(*(layout.spots[name] for name in nodes), strict=True)
        fill = [of_edges.get(name, colors.ink if kind == "cloud" else colors.paper) for name in nodes]
        axes.scatter(x, y, marker=marker, s=size, color=fill, edgecolors=colors.ink, linewidths=0.9, zorder=4)
    if len(trunk) + len(told) <= _MOST_LABELLED:
        for name in told if len(told) <= _MOST_LEAVES_LABELLED else ():
            _write_beside(axes, layout.spots[name], name, layout.spots[layout.parent(name)], colors)
        for name in layout.trunk:
            _write_beside(axes, layout.spots[name], name, None, colors)


def _write_beside(axes: Axes, spot: Position, text: str, away_from: Position | None, colors: Colors) -> None:
    """Write a name above a node, or on the side that is turned away from its router."""
    x, y = (0.0, 1.0) if away_from is None else (spot[0] - away_from[0], spot[1] - away_from[1])
    length = math.hypot(x, y) or 1.0
    x, y = x / length, y / length
    axes.annotate(
        text,
        spot,
        xytext=(9 * x, 9 * y),
        textcoords="offset points",
        ha="center" if abs(x) < 0.4 else ("left" if x > 0 else "right"),
        va="center" if abs(y) < 0.4 else ("bottom" if y > 0 else "top"),
        fontsize=8 if away_from is None else 7,
        color=colors.ink,
        bbox={"boxstyle": "round,pad=0.1", "facecolor": colors.paper, "edgecolor": "none", "alpha": 0.7},
        zorder=5,
    )


def _legend(axes: Axes, network: Network, is_colored: bool) -> None:
    def mark(marker: str, size: float, fill: str, label: str) -> Line2D:
        look = {"marker": marker, "markersize": size, "markerfacecolor": fill, "markeredgecolor": ON_PAPER.ink}
        return Line2D([], [], ls="", label=label, **look)  # type: ignore[arg-type]

    of_client = ON_PAPER.series[0] if is_colored else ON_PAPER.ink
    marks = [
        mark("s", 9, ON_PAPER.ink, "cloud"),
        mark("D", 7, ON_PAPER.series[0], "edge server"),
        mark("o", 6, ON_PAPER.paper, "router or cell"),
    ]
    if len(network.clients) <= MOST_CLIENTS_DRAWN:
        told = "client, in its nearest edge's colour" if is_colored else "client"
        marks.append(Line2D([], [], marker="o", markersize=4.5, color=of_client, ls="", label=told))
    else:
        marks.append(Line2D([], [], ls="", label="numbers: clients"))
    marks.append(Line2D([], [], color=ON_PAPER.faint, lw=3, label="link, wider for more bandwidth"))
    figure = axes.get_figure()
    assert figure is not None
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False, fontsize=8)
