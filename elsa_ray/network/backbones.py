"""The routers of generated networks: stars, rings, grids, and the graphs of Barabási and Albert, and of Waxman."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import networkx as nx

from elsa_ray.config.errors import InputError
from elsa_ray.config.topology import (
    BarabasiAlbertTopology,
    GeneratedTopology,
    GridTopology,
    HierarchicalTopology,
    RoutedTopology,
    StarTopology,
    WaxmanTopology,
)
from elsa_ray.network.draws import number_of
from elsa_ray.network.geography import fibre_seconds


@dataclass(frozen=True)
class Backbone:
    """Routers and the links between them.

    Attributes:
        nodes, links: as a topology file states them.
        sites: the routers that clients and edge servers are attached to.
        cloud_at: the cloud's; None lets the number of links decide.
    """

    nodes: list[dict[str, Any]]
    links: list[dict[str, Any]]
    sites: list[str]
    cloud_at: str | None = field(default=None)


def backbone(config: GeneratedTopology, seed: int) -> Backbone:
    """Return the routers of a generator, numbered, with the configured figures.

    Raises:
        InputError: the generator can not make so few routers.
    """
    if isinstance(config, HierarchicalTopology):
        return _around_a_core(config)
    if isinstance(config, StarTopology):
        return _of_graph(nx.empty_graph(1), config)
    assert isinstance(config, RoutedTopology)
    count = config.routers if config.routers is not None else config.edges
    if isinstance(config, BarabasiAlbertTopology):
        if count <= config.links_per_router:
            allowed = f"less than the number of routers, which is {count}"
            raise InputError("topology.links_per_router", config.links_per_router, allowed)
        links, drawn = config.links_per_router, number_of(seed, "barabasi_albert")
        return _of_graph(nx.barabasi_albert_graph(count, links, seed=drawn), config)
    if isinstance(config, WaxmanTopology):
        return _waxman(config, count, number_of(seed, "waxman"))
    if isinstance(config, GridTopology):
        return _of_graph(_grid(count), config)
    return _of_graph(nx.cycle_graph(count) if count > 2 else nx.path_graph(count), config)


def _around_a_core(config: HierarchicalTopology) -> Backbone:
    sites = _names(config.edges)
    links = [_link(site, "core", config, config.core_latency) for site in sites]
    return Backbone([{"id": name, "kind": "router"} for name in [*sites, "core"]], links, sites, "core")


def _grid(count: int) -> nx.Graph:
    """Return rows of equal length, the last of which may be shorter."""
    width = math.ceil(math.sqrt(count))
    graph = nx.empty_graph(count)
    graph.add_edges_from((here, here + 1) for here in range(count - 1) if (here + 1) % width)
    graph.add_edges_from((here, here + width) for here in range(count - width))
    return graph


def _waxman(config: WaxmanTopology, count: int, seed: int) -> Backbone:
    graph = nx.waxman_graph(count, beta=config.beta, alpha=config.alpha, seed=seed)
    place = nx.get_node_attributes(graph, "pos")

    def apart(first: int, second: int) -> float:
        return math.dist(place[first], place[second])

    parts = sorted(nx.connected_components(graph), key=lambda part: (-len(part), min(part)))
    joined = set(parts[0])
    for part in parts[1:]:
        graph.add_edge(*min(((a, b) for a in sorted(joined) for b in sorted(part)), key=lambda ends: apart(*ends)))
        joined |= part
    names = _names(count)
    metres = 1000 * config.side_kilometres
    links = [
        _link(names[first], names[second], config, fibre_seconds(metres * apart(first, second)))
        for first, second in sorted(map(sorted, graph.edges))
    ]
    return Backbone([{"id": name, "kind": "router"} for name in names], links, names)


def _of_graph(graph: nx.Graph, config: GeneratedTopology) -> Backbone:
    names = _names(len(graph))
    links = [
        _link(names[first], names[second], config, config.core_latency)
        for first, second in sorted(map(sorted, graph.edges))
    ]
    return Backbone([{"id": name, "kind": "router"} for name in names], links, names)


def _names(count: int) -> list[str]:
    width = len(str(count - 1))
    return [f"router{number:0{width}d}" for number in range(count)]


def _link(source: str, target: str, config: GeneratedTopology, latency_seconds: float) -> dict[str, Any]:
    return {
        "source": source,
        "target": target,
        "bandwidth_bytes_per_second": config.core_bandwidth,
        "latency_seconds": latency_seconds,
    }
