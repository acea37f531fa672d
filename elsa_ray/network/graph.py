"""The topology as arrays: nodes with their kinds, directed links, and the capacities that the links draw from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from elsa_ray.config.errors import InputError, unknown_name
from elsa_ray.network.geography import Coordinates
from elsa_ray.network.links import MAX_LATENCY_SECONDS, Link, read_coordinates, read_link, read_node
from elsa_ray.network.schedule import Steps
from elsa_ray.network.schedule_csv import read_schedule

SOURCE_NODE = "source_node"
"""Edge attribute of an undirected networkx graph: the end that the edge's figures call the source."""


@dataclass(frozen=True, slots=True)
class LinkSchedule:
    """The file of a link's bandwidths over time, and after how many seconds it starts anew (None: never)."""

    file: str
    repeat_seconds: float | None

    def stated(self) -> dict[str, Any]:
        """Return the attributes of a topology file that say so."""
        again = {} if self.repeat_seconds is None else {"repeat_seconds": self.repeat_seconds}
        return {"bandwidth_schedule": self.file, **again}


@dataclass(frozen=True, eq=False)
class Network:
    """A topology: nodes, and one row a *directed* link.

    An undirected link is two rows next to each other: row 2i from its source to its target, row 2i + 1 back. Each
    direction draws from a capacity of its own; the two directions of a shared medium draw from the same one.
    Bandwidths are in bytes per second, latencies in seconds, one way.
    """

    where: str
    """The file or object that it came from, for error messages."""
    figures: str
    """Where the figures come from, in the words of the file; may be empty."""
    directed: bool
    """Whether the file stated each direction by itself."""
    node_names: tuple[str, ...]
    node_kinds: tuple[str, ...]
    """For each node: ``client``, ``edge``, ``cloud`` or ``router``."""
    link_source: NDArray[np.int32]
    link_target: NDArray[np.int32]
    link_bandwidth_bytes_per_second: NDArray[np.float64]
    link_latency_seconds: NDArray[np.float64]
    link_capacity: NDArray[np.int32]
    """For each directed link: the index of the capacity that it draws from."""
    capacity_bytes_per_second: NDArray[np.float64]
    bandwidths: Mapping[int, Steps] = field(default_factory=dict)
    """For the capacities whose links have a schedule: bytes per second over time, instead of the fixed figure."""
    schedules: Mapping[int, LinkSchedule] = field(default_factory=dict)
    """Where these come from, by directed link; of an undirected link, by that from its source."""
    coordinates: Mapping[str, Coordinates] = field(default_factory=dict)
    """Where nodes are, latitude and longitude in degrees, of those that say it."""

    def index(self, name: str) -> int:
        """Return the node's index.

        Raises:
            KeyError: there is no node of that name.
        """
        return self._index_of_name[name]

    def __contains__(self, name: object) -> bool:
        """Tell whether there is a node of that name."""
        return name in self._index_of_name

    @cached_property
    def clients(self) -> NDArray[np.int32]:
        """Indices of the clients, sorted by name with numbers compared as numbers."""
        return self._nodes_of_kind("client")

    @cached_property
    def edges(self) -> NDArray[np.int32]:
        """Indices of the edge servers, sorted by name with numbers compared as numbers."""
        return self._nodes_of_kind("edge")

    @cached_property
    def clouds(self) -> NDArray[np.int32]:
        """Indices of the clouds, sorted by name with numbers compared as numbers."""
        return self._nodes_of_kind("cloud")

    @cached_property
    def graph(self) -> nx.Graph | nx.DiGraph:
        """The same as a networkx graph, for its algorithms and its drawings.

        Nodes carry ``kind``; links the attributes of a topology file, and undirected ones ``source_node``, because an
        undirected networkx graph does not remember which end was named first.
        """
        graph = nx.DiGraph(source=self.figures) if self.directed else nx.Graph(source=self.figures)
        for name, kind in zip(self.node_names, self.node_kinds, strict=True):
            latitude, longitude = self.coordinates.get(name, (None, None))
            place = {} if latitude is None else {"latitude": latitude, "longitude": longitude}
            graph.add_node(name, kind=kind, **place)
        for link in self.stated_links():
            source, target = link.pop("source"), link.pop("target")
            orientation = {} if self.directed else {SOURCE_NODE: source}
            graph.add_edge(source, target, **link, **orientation)
        return graph

    def with_client_bandwidths(self, bytes_per_second_N: NDArray[np.float64]) -> Network:
        """Return the network with each client's own links, both ways, at another bandwidth [N]."""
        of_node = np.full(len(self.node_names), np.nan)
        of_node[self.clients] = bytes_per_second_N
        of_link = np.fmin(of_node[self.link_source], of_node[self.link_target])
        is_own = ~np.isnan(of_link)
        bandwidth, capacity = self.link_bandwidth_bytes_per_second.copy(), self.capacity_bytes_per_second.copy()
        bandwidth[is_own] = of_link[is_own]
        capacity[self.link_capacity[is_own]] = of_link[is_own]
        return replace(self, link_bandwidth_bytes_per_second=bandwidth, capacity_bytes_per_second=capacity)

    def stated_links(self) -> Iterable[dict[str, Any]]:
        """Yield each link as a topology file states it: once if undirected, with what differs from the default."""
        shared = np.bincount(self.link_capacity, minlength=len(self.capacity_bytes_per_second)) > 1
        bandwidth = self.link_bandwidth_bytes_per_second
        for row in range(0, len(self.link_source), 1 if self.directed else 2):
            link: dict[str, Any] = {
                "source": self.node_names[self.link_source[row]],
                "target": self.node_names[self.link_target[row]],
                "bandwidth_bytes_per_second": float(bandwidth[row]),
                "latency_seconds": float(self.link_latency_seconds[row]),
            }
            if not self.directed and bandwidth[row + 1] != bandwidth[row]:
                link["reverse_bandwidth_bytes_per_second"] = float(bandwidth[row + 1])
            if shared[self.link_capacity[row]]:
                link["shared_medium"] = True
            if row in self.schedules:
                link |= self.schedules[row].stated()
            yield link

    @cached_property
    def _index_of_name(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.node_names)}

    def _nodes_of_kind(self, kind: str) -> NDArray[np.int32]:
        nodes = [index for index, found in enumerate(self.node_kinds) if found == kind]
        return np.array(sorted(nodes, key=lambda node: natural_key(self.node_names[node])), dtype=np.int32)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Return the key that sorts names with their numbers compared as numbers: ``edge2`` before ``edge10``."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def build_network(graph: nx.Graph | nx.DiGraph, where: str, *, roles_required: bool) -> Network:
    """Build the network of a networkx graph whose nodes and edges carry the attributes of a topology file.

    Node ids become texts. In an undirected graph the edge attribute ``source_node`` says which end is the source;
    without it, it is the end that comes first in ``graph.nodes`` (it matters only with a reverse bandwidth).

    Args:
        graph: undirected (both directions of a link have the full bandwidth), or directed (each stated by itself).
        where: what to call the graph in error messages, such as its file.
        roles_required: each node must have a kind, with at least one client, one edge, and exactly one cloud;
            otherwise a node without a kind is a router.

    Raises:
        InputError: parallel links, a link from a node to itself, a missing or wrong attribute, or missing roles.
    """
    nodes = [{**attributes, "id": _text(node)} for node, attributes in graph.nodes(data=True)]
    links = []
    for first, second, attributes in graph.edges(data=True):
        source, target = _text(first), _text(second)
        link = {key: value for key, value in attributes.items() if key != SOURCE_NODE}
        if not graph.is_directed() and str(attributes.get(SOURCE_NODE, source)) == target:
            source, target = target, source
        links.append({**link, "source": source, "target": target})
    figures = str(graph.graph.get("source", ""))
    return assemble(nodes, links, where, directed=graph.is_directed(), figures=figures, roles_required=roles_required)


def assemble(
    nodes: Sequence[Mapping[str, Any]],
    links: Sequence[Mapping[str, Any]],
    where: str,
    *,
    directed: bool,
    figures: str = "",
    roles_required: bool,
    strict: bool = False,
) -> Network:
    """Build the network from the nodes and links of a topology file, in the file's order.

    Args:
        nodes: mappings with ``id`` and ``kind``.
        links: mappings with ``source``, ``target`` and the attributes of a link.
        where: the file's name, for error messages.
        directed: each direction is stated by itself.
        figures: where the figures come from.
        roles_required: as for ``build_network``.
        strict: refuse unknown attributes, rather than only those that are surely misspelt.

    Raises:
        InputError: as for ``build_network``; also duplicate nodes and links to unknown nodes.
    """
    named = [
        read_node(raw, number, where, strict=strict, kind_required=roles_required)
        for number, raw in enumerate(nodes, start=1)
    ]
    index: dict[str, int] = {}
    for name, _ in named:
        if name in index:
            raise InputError(f"{where}: node {name}", "its id twice", "one node of each id")
        index[name] = len(index)
    stated = [
        read_link(raw, number, where, strict=strict, directed=directed) for number, raw in enumerate(links, start=1)
    ]
    _check_ends(stated, index, where, directed=directed)
    names, kinds = tuple(name for name, _ in named), tuple(kind for _, kind in named)
    if roles_required:
        _check_roles(kinds, where)
    columns = _directed_columns(stated, index) if directed else _undirected_columns(stated, index)
    if directed:
        columns = _share_media(columns, stated, names, where)
    network = Network(where, figures, directed, names, kinds, *columns, coordinates=_coordinates(nodes, names, where))
    if not any(link.bandwidth_schedule for link in stated):
        return network
    return replace(network, **_schedules(network, stated))


def _schedules(network: Network, links: Sequence[Link]) -> dict[str, Any]:
    """Read the links' schedules; files are relative to the topology's. Each file is read once."""
    read = cache(read_schedule)
    schedules: dict[int, LinkSchedule] = {}
    bandwidths: dict[int, Steps] = {}
    for number, link in enumerate(links):
        if not link.bandwidth_schedule:
            continue
        row = number if network.directed else 2 * number
        path = Path(network.where).parent / link.bandwidth_schedule
        place = f"{network.where}: link {link.source}-{link.target}: bandwidth_schedule"
        table = read(path)
        schedules[row] = LinkSchedule(str(path.absolute()), link.repeat_seconds)
        forward = int(network.link_capacity[row])
        if forward in bandwidths:
            raise InputError(place, link.bandwidth_schedule, "one schedule for both directions of a shared medium")
        bandwidths[forward] = table.steps(table.forward, link.bandwidth_bytes_per_second, link.repeat_seconds)
        if table.reverse is not None and (network.directed or link.shared_medium):
            raise InputError(f"{table.where}: columns", "a reverse bandwidth", f"one bandwidth, for {place}")
        # Without figures of its own the way back is as the way there; a link that states its reverse keeps that.
        back = table.forward if table.reverse is None and not link.has_own_reverse else table.reverse
        if not network.directed and not link.shared_medium and back is not None:
            before = link.reverse_bandwidth_bytes_per_second
            bandwidths[int(network.link_capacity[row + 1])] = table.steps(back, before, link.repeat_seconds)
    return {"bandwidths": bandwidths, "schedules": schedules}


StatedLinks = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]
"""Undirected links as columns: source and target (node indices), both directions' bandwidths, latency."""


def stated(
    source: ArrayLike,
    target: ArrayLike,
    bandwidth: ArrayLike,
    latency: ArrayLike,
    *,
    reverse_bandwidth: ArrayLike | None = None,
) -> StatedLinks:
    """Return undirected links as columns, for ``undirected_network``.

    Args:
        source, target: node indices.
        bandwidth: bytes per second, from source to target.
        latency: seconds.
        reverse_bandwidth: from target to source; None for the same.
    """
    reverse = bandwidth if reverse_bandwidth is None else reverse_bandwidth
    ends = (np.asarray(end, np.int32) for end in (source, target))
    return (*ends, *(np.asarray(figure, np.float64) for figure in (bandwidth, reverse, latency)))  # type: ignore[return-value]


def undirected_network(
    names: tuple[str, ...], kinds: tuple[str, ...], links: Sequence[StatedLinks], where: str, figures: str
) -> Network:
    """Build a network of columns that are made rather than read: a million links need no object each.

    Args:
        names, kinds: of the nodes.
        links: in order; no two join the same nodes.
        where: as for ``assemble``.
        figures: as for ``assemble``.

    Raises:
        InputError: a figure makes no link.
    """
    source, target, forward, backward, latency = (np.concatenate(column) for column in zip(*links, strict=True))
    usable = np.isfinite(forward) & (forward > 0) & np.isfinite(backward) & (backward > 0)
    usable &= (latency >= 0) & (latency <= MAX_LATENCY_SECONDS)
    for row in np.flatnonzero(~usable)[:1].tolist():
        raw = {
            "source": names[source[row]],
            "target": names[target[row]],
            "bandwidth_bytes_per_second": float(forward[row]),
            "reverse_bandwidth_bytes_per_second": float(backward[row]),
            "latency_seconds": float(latency[row]),
        }
        read_link(raw, row + 1, where, strict=True, directed=False)  # says what is wrong
    shared = np.zeros(len(source), bool)
    return Network(
        where, figures, False, names, kinds, *_two_directions(source, target, forward, backward, latency, shared)
    )


_Columns = tuple[
    NDArray[np.int32],
    NDArray[np.int32],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.int32],
    NDArray[np.float64],
]


def _check_ends(links: Sequence[Link], index: Mapping[str, int], where: str, *, directed: bool) -> None:
    seen: set[tuple[str, str]] = set()
    for link in links:
        place = f"{where}: link {link.source}-{link.target}"
        for end, name in (("source", link.source), ("target", link.target)):
            if name not in index:
                error = unknown_name(f"{place}: {end}", name, index)
                raise InputError(error.where, name, "the id of a node", nearest=error.nearest)
        if link.source == link.target:
            raise InputError(place, "a link from a node to itself", "two different nodes")
        ends = (link.source, link.target)
        if ends in seen or (not directed and ends[::-1] in seen):
            raise InputError(place, "a second link between these nodes", "one link (a direction, in a directed graph)")
        seen.add(ends)


def _coordinates(nodes: Sequence[Mapping[str, Any]], names: Sequence[str], where: str) -> dict[str, Coordinates]:
    found = {}
    for raw, name in zip(nodes, names, strict=True):
        if "latitude" in raw or "longitude" in raw:
            place = read_coordinates(raw, f"{where}: node {name}")
            if place is not None:
                found[name] = place
    return found


def _check_roles(kinds: Sequence[str], where: str) -> None:
    for kind, allowed in (("client", "at least one"), ("edge", "at least one"), ("cloud", "exactly one")):
        found = kinds.count(kind)
        if found == 0 or (found > 1 and allowed == "exactly one"):
            raise InputError(f"{where}: nodes", f"{found} of kind {kind}", f"{allowed} of kind {kind}")


def _undirected_columns(links: Sequence[Link], index: Mapping[str, int]) -> _Columns:
    source = np.array([index[link.source] for link in links], dtype=np.int32)
    target = np.array([index[link.target] for link in links], dtype=np.int32)
    forward = np.array([link.bandwidth_bytes_per_second for link in links], dtype=np.float64)
    backward = np.array([link.reverse_bandwidth_bytes_per_second for link in links], dtype=np.float64)
    latency = np.array([link.latency_seconds for link in links], dtype=np.float64)
    shared = np.array([link.shared_medium for link in links], dtype=bool)
    return _two_directions(source, target, forward, backward, latency, shared)


def _two_directions(
    source: NDArray[np.int32],
    target: NDArray[np.int32],
    forward: NDArray[np.float64],
    backward: NDArray[np.float64],
    latency: NDArray[np.float64],
    shared: NDArray[np.bool_],
) -> _Columns:
    """Return each undirected link as two rows, one a direction; those of a shared medium draw from one capacity."""
    bandwidth = _interleave(forward, backward)
    has_own = _interleave(np.ones_like(shared), ~shared)
    capacity = np.cumsum(has_own, dtype=np.int32) - np.int32(1)
    return (
        _interleave(source, target),
        _interleave(target, source),
        bandwidth,
        np.repeat(latency, 2),
        capacity.astype(np.int32),
        bandwidth[has_own],
    )


def _interleave(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    return np.stack([first, second], axis=1).reshape(-1)


def _directed_columns(links: Sequence[Link], index: Mapping[str, int]) -> _Columns:
    bandwidth = np.array([link.bandwidth_bytes_per_second for link in links], dtype=np.float64)
    return (
        np.array([index[link.source] for link in links], dtype=np.int32),
        np.array([index[link.target] for link in links], dtype=np.int32),
        bandwidth,
        np.array([link.latency_seconds for link in links], dtype=np.float64),
        np.arange(len(links), dtype=np.int32),
        bandwidth.copy(),
    )


def _share_media(columns: _Columns, links: Sequence[Link], names: Sequence[str], where: str) -> _Columns:
    """Join the capacities of a directed pair of links of which at least one says that the medium is shared."""
    row_of = {(link.source, link.target): row for row, link in enumerate(links)}
    source, target, bandwidth, latency, _, _ = columns
    owner = np.arange(len(links))
    for row, link in enumerate(links):
        opposite = row_of.get((link.target, link.source))
        if not link.shared_medium or opposite is None:
            continue
        if bandwidth[opposite] != bandwidth[row]:
            place = f"{where}: link {link.target}-{link.source}: bandwidth_bytes_per_second"
            allowed = f"{bandwidth[row]:.17g}, as its other direction: a shared medium has one bandwidth"
            raise InputError(place, float(bandwidth[opposite]), allowed)
        owner[max(row, opposite)] = min(row, opposite)
    owners, capacity = np.unique(owner, return_inverse=True)
    return source, target, bandwidth, latency, capacity.astype(np.int32), bandwidth[owners]


def _text(node: object) -> str:
    """Return a networkx node as the text that names it; ids of any kind are texts from here on."""
    return node if isinstance(node, str) else str(node)
