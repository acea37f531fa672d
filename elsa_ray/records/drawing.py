"""Draws a topology: cloud, routers and edge servers by their distances, clients around where they attach."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from elsa_ray.network.graph import Network
from elsa_ray.records.charts import FAINT, INK, PAPER, SERIES, blank_axes, svg_text

MOST_CLIENTS_DRAWN = 300
_MOST_LABELLED = 24
_MOST_BY_DISTANCES = 200
_RING = 18
Position = tuple[float, float]


def topology_svg(network: Network, edge_of_client: Mapping[str, str] | None = None) -> str:
    """Return a drawing of the network as SVG.

    Args:
        network: the topology; with more than ``MOST_CLIENTS_DRAWN`` clients only their numbers are drawn.
        edge_of_client: names of clients and of the edges that they train through; decides the clients' colours.
    """
    graph = nx.Graph(network.graph)
    clients = [network.node_names[node] for node in network.clients]
    core = _core(graph)
    positions = _core_layout(core)
    attached = _attached(graph, clients, positions)
    figure, axes = blank_axes(7.2, 5.0)
    _draw_links(axes, core.edges, positions, 1.2)
    reach = _room(positions) * 0.42
    if len(clients) > MOST_CLIENTS_DRAWN:
        _write_counts(axes, network, attached, positions)
    else:
        placed = {name: spot for at, names in attached.items() for name, spot in _rings(positions[at], names, reach)}
        links = [link for link in graph.edges if link[0] in placed or link[1] in placed]
        _draw_links(axes, links, {**positions, **placed}, 0.5)
        _draw_clients(axes, placed, edge_of_client or {}, _edge_colors(network))
    _draw_core(axes, network, positions)
    axes.margins(0.06)
    return svg_text(figure, "topology")


def _core(graph: nx.Graph) -> nx.Graph:
    """Return the graph without its clients; in the topology's order, on which a layout depends."""
    core = nx.Graph()
    core.add_nodes_from(name for name in graph if graph.nodes[name]["kind"] != "client")
    core.add_edges_from(link for link in graph.edges if link[0] in core and link[1] in core)
    return core


def _core_layout(core: nx.Graph) -> dict[str, Position]:
    # By distances the drawing is clear, but its cost grows with the square of the nodes.
    by_distances = len(core) <= _MOST_BY_DISTANCES and nx.is_connected(core)
    layout = nx.kamada_kawai_layout(core, weight=None) if by_distances else nx.spring_layout(core, seed=0)
    return {name: (float(x), float(y)) for name, (x, y) in layout.items()}


def _attached(graph: nx.Graph, clients: list[str], positions: Mapping[str, Position]) -> dict[str, list[str]]:
    """Return the clients by the node of the core that they hang on; one without any hangs on the first node."""
    attached = defaultdict(list)
    for client in clients:
        at = next((name for name in graph[client] if name in positions), next(iter(positions)))
        attached[at].append(client)
    return attached


def _room(positions: Mapping[str, Position]) -> float:
    """Return the smallest distance between two nodes, within sensible bounds."""
    points = np.array(list(positions.values()))[:1000]
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    apart[np.diag_indices(len(points))] = np.inf
    return float(np.clip(apart.min(initial=1.0), 0.05, 0.6))


def _rings(center: Position, names: list[str], reach: float) -> list[tuple[str, Position]]:
    """Return places on rings around a node, the outer ones with more room."""
    num_rings = math.ceil(len(names) / _RING)
    placed = []
    for ring in range(num_rings):
        members = names[ring::num_rings]
        radius = reach * (1 - 0.28 * ring / num_rings * min(num_rings, 2))
        for number, name in enumerate(members):
            angle = 2 * math.pi * (number + 0.5 * (ring % 2)) / len(members) + 0.3
            placed.append((name, (center[0] + radius * math.cos(angle), center[1] + radius * math.sin(angle))))
    return placed


def _edge_colors(network: Network) -> dict[str, str]:
    """Give each edge server a colour of its own, as far as there are colours."""
    names = [network.node_names[node] for node in network.edges]
    return {name: SERIES[number % len(SERIES)] for number, name in enumerate(names)}


def _draw_links(axes: Axes, links: Iterable[tuple[str, str]], positions: Mapping[str, Position], width: float) -> None:
    segments = [(positions[first], positions[second]) for first, second in links]
    axes.add_collection(LineCollection(segments, colors=FAINT, linewidths=width, zorder=1))


def _draw_clients(
    axes: Axes, placed: Mapping[str, Position], edge_of_client: Mapping[str, str], colors: Mapping[str, str]
) -> None:
    size = 26 if len(placed) <= 60 else 10
    by_color: dict[str, list[Position]] = defaultdict(list)
    for name, spot in placed.items():
        by_color[colors.get(edge_of_client.get(name, ""), INK if not edge_of_client else FAINT)].append(spot)
    for color, spots in by_color.items():
        x, y = zip(*spots, strict=True)
        axes.scatter(x, y, s=size, color=color, linewidths=0, zorder=3)


def _write_counts(
    axes: Axes, network: Network, attached: Mapping[str, list[str]], positions: Mapping[str, Position]
) -> None:
    """Write the number of clients over the router that they hang on, or below another kind of node."""
    frame = {"boxstyle": "round,pad=0.35", "facecolor": PAPER, "edgecolor": INK, "linewidth": 0.9}
    for at, names in attached.items():
        below = 0 if network.node_kinds[network.index(at)] == "router" else -16
        axes.annotate(
            f"{len(names):,}",
            positions[at],
            xytext=(0, below),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7,
            color=INK,
            bbox=frame,
            zorder=6,
        )


def _draw_core(axes: Axes, network: Network, positions: Mapping[str, Position]) -> None:
    colors = _edge_colors(network)
    looks = {"cloud": ("s", 130), "edge": ("D", 70), "router": ("o", 34)}
    for kind, (marker, size) in looks.items():
        nodes = [name for name, found in zip(network.node_names, network.node_kinds, strict=True) if found == kind]
        if not nodes:
            continue
        x, y = zip(*(positions[name] for name in nodes), strict=True)
        fill = [colors.get(name, INK if kind == "cloud" else PAPER) for name in nodes]
        axes.scatter(x, y, marker=marker, s=size, color=fill, edgecolors=INK, linewidths=0.9, zorder=4)
        if len(positions) <= _MOST_LABELLED and kind != "router":
            for name in nodes:
                _write_above(axes, positions[name], name)


def _write_above(axes: Axes, spot: Position, text: str) -> None:
    style: dict[str, Any] = {"ha": "center", "fontsize": 8, "color": INK, "zorder": 5}
    axes.annotate(text, spot, xytext=(0, 8), textcoords="offset points", **style)
