"""Attaches clients, edge servers and a cloud to routers, whether these are generated or stand in a file."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np

from elsa_ray.config.errors import InputError, unknown_name
from elsa_ray.config.topology import Figures
from elsa_ray.network.access import AccessProfile, access_of_clients
from elsa_ray.network.draws import generator_of

Nodes = list[dict[str, Any]]
Links = list[dict[str, Any]]


@dataclass(frozen=True)
class Group:
    """Clients and edge servers that are attached alike.

    Attributes:
        clients: how many, dealt to the sites in turn.
        edges: how many, far from each other; None for none of this group's own.
        figures: of their links.
        sites: the routers that get them; None: all that are joined to most others.
        where: what to call this in error messages.
    """

    clients: int
    edges: int | None
    figures: Figures
    sites: Sequence[str] | None = None
    where: str = "topology"


def attached(
    nodes: Sequence[Mapping[str, Any]],
    links: Sequence[Mapping[str, Any]],
    groups: Sequence[Group],
    seed: int,
    *,
    cloud_at: str | None = None,
    directed: bool = False,
) -> tuple[Nodes, Links]:
    """Return the nodes and links of a network with clients, edge servers and a cloud attached, as its file would.

    Clients that are there leave; so do edge servers if others come. The same client has the same factors in a larger
    network. With an access profile whose clients share anything, a router a cell comes between them and their site.

    Args:
        nodes, links: with all figures that are needed; routers at least.
        groups: who is attached, one at least.
        seed: of the clients' factors and profiles.
        cloud_at: router of the cloud, where there is no cloud yet; None: the site with most links.
        directed: links state one direction each.

    Raises:
        InputError: there is no router, no such router, no edge server, or no access profile of a name.
    """
    brings_edges = any(group.edges is not None for group in groups)
    leaving = {"client", "edge"} if brings_edges else {"client"}
    kept = [dict(node) for node in nodes if node.get("kind") not in leaving]
    names = {str(node["id"]) for node in kept}
    stay = [dict(link) for link in links if str(link["source"]) in names and str(link["target"]) in names]
    kinds = Counter(node.get("kind") or "router" for node in kept)
    where = groups[0].where
    if not brings_edges and not kinds["edge"]:
        raise InputError(f"{where}.edges", "nothing", "a number: the network has no edge server of its own")
    graph = _latencies(kept, stay)
    sites = [_sites(graph, kept, group) for group in groups]
    clouds = [str(node["id"]) for node in kept if node.get("kind") == "cloud"]
    center = clouds[0] if clouds else _cloud_site(graph, kept, sites[0], cloud_at, where)
    at_cloud = []
    if not clouds:
        figures = groups[0].figures
        at_cloud = [_link(center, "cloud", figures.core_bandwidth, figures.cloud_latency)]

    edge_names = _numbered("edge", sum(group.edges or 0 for group in groups))
    edge_links: Links = []
    for group, own in zip(groups, sites, strict=True):
        for at in _spread_out(graph, own, group.edges or 0, center):
            name = edge_names[len(edge_links)]
            edge_links.append(_link(at, name, group.figures.edge_bandwidth, group.figures.edge_latency))
    client_names = _numbered("client", sum(group.clients for group in groups), width=3)
    draws = generator_of(seed, "topology").standard_normal((len(client_names), 2))
    cells, access = _Cells(), Links()
    for group, own in zip(groups, sites, strict=True):
        numbers = slice(len(access), len(access) + group.clients)
        access += _access(client_names[numbers], own, group, draws[numbers], seed, cells)
    both = _each_direction if directed else list
    return (
        [
            *({"id": name, "kind": "client"} for name in client_names),
            *({"id": name, "kind": "edge"} for name in edge_names),
            *({**node, "kind": node.get("kind") or "router"} for node in kept),
            *({"id": name, "kind": "router"} for name in cells.names),
            *({"id": "cloud", "kind": "cloud"} for _ in at_cloud),
        ],
        [*both([*access, *cells.links(), *edge_links]), *stay, *both(at_cloud)],
    )


def _access(names: Sequence[str], sites: Sequence[str], group: Group, draws: Any, seed: int, cells: _Cells) -> Links:
    """Return the links of so many clients; who shares a cell joins one."""
    figures = group.figures
    with np.errstate(over="ignore"):  # an infinite factor is refused with its link's name
        factors = np.exp(figures.spread * draws).tolist()
    profiles: Sequence[AccessProfile | None] = [None] * len(names)
    if figures.access is not None:
        profiles = access_of_clients(figures.access, len(names), seed, f"{group.where}.access")
    most = figures.cell_clients if figures.cell_clients is not None else len(names)
    links = []
    for number, (name, profile, (bandwidth_factor, latency_factor)) in enumerate(
        zip(names, profiles, factors, strict=True)
    ):
        at = sites[number % len(sites)]
        up, down, latency = figures.access_up, figures.access_down, figures.access_latency
        if profile is not None:
            up, down = profile.up_bytes_per_second, profile.down_bytes_per_second
            latency = profile.round_trip_seconds / 2
        up, down = up * bandwidth_factor, down * bandwidth_factor
        if profile is not None and profile.has_cells:
            at = cells.join(at, profile, up, down, most)
        link = _link(name, at, up, latency * latency_factor)
        links.append({**link, "reverse_bandwidth_bytes_per_second": down})
    return links


class _Cells:
    """The cells of all sites and profiles, filled one after the other."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], int] = {}
        self._counts: dict[tuple[str, str], int] = defaultdict(int)
        self._cells: list[tuple[str, str, AccessProfile]] = []
        self._members: list[tuple[int, float, float]] = []

    def join(self, site: str, profile: AccessProfile, up: float, down: float, most: int) -> str:
        """Give a client of these own bandwidths a place in a cell of at most so many, and return the cell's name."""
        key = (site, profile.name)
        cell = self._open.get(key)
        if cell is None or self._members[cell][0] >= most:
            cell = self._open[key] = len(self._cells)
            self._cells.append((f"{site}.{profile.name}.{self._counts[key]}", site, profile))
            self._counts[key] += 1
            self._members.append((0, 0.0, 0.0))
        count, ups, downs = self._members[cell]
        self._members[cell] = (count + 1, ups + up, downs + down)
        return self._cells[cell][0]

    @property
    def names(self) -> list[str]:
        """Of all cells."""
        return [name for name, _, _ in self._cells]

    def links(self) -> Links:
        """Return each cell's link to its site: what is not shared has more room than its clients together can fill."""
        links = []
        for (name, site, profile), (_, ups, downs) in zip(self._cells, self._members, strict=True):
            if profile.medium_bytes_per_second is not None:
                links.append({**_link(name, site, profile.medium_bytes_per_second, 0.0), "shared_medium": True})
                continue
            up, down = profile.cell_up_bytes_per_second, profile.cell_down_bytes_per_second
            link = _link(name, site, up if up is not None else 2 * ups, 0.0)
            links.append({**link, "reverse_bandwidth_bytes_per_second": down if down is not None else 2 * downs})
        return links


def _latencies(nodes: Nodes, links: Links) -> nx.Graph:
    """Return how far nodes are from each other, without clients; both directions as the nearer one."""
    graph = nx.Graph()
    graph.add_nodes_from(str(node["id"]) for node in nodes)
    for link in links:
        ends = str(link["source"]), str(link["target"])
        seconds = float(link["latency_seconds"])
        if not graph.has_edge(*ends) or graph.edges[ends]["seconds"] > seconds:
            graph.add_edge(*ends, seconds=seconds)
    return graph


def _sites(graph: nx.Graph, nodes: Nodes, group: Group) -> list[str]:
    routers = _routers(nodes)
    if not routers:
        raise InputError(group.where, "no router in the network", "one at least, to attach clients to")
    if group.sites is not None:
        for name in group.sites:
            if name not in routers:
                raise unknown_name(f"{group.where}.sites", name, routers)
        return list(dict.fromkeys(group.sites))
    parts = [[name for name in routers if name in part] for part in nx.connected_components(graph)]
    return max(parts, key=len)  # of equals the first


def _cloud_site(graph: nx.Graph, nodes: Nodes, sites: Sequence[str], cloud_at: str | None, where: str) -> str:
    if cloud_at is None:
        return max(sites, key=graph.degree)  # of equals the first
    routers = _routers(nodes)
    if cloud_at not in routers:
        raise unknown_name(f"{where}.cloud_at", cloud_at, routers)
    return cloud_at


def _routers(nodes: Nodes) -> list[str]:
    return [str(node["id"]) for node in nodes if (node.get("kind") or "router") == "router"]


def _spread_out(graph: nx.Graph, sites: Sequence[str], count: int, start: str) -> list[str]:
    """Return sites for so many edge servers in the sites' order: each as far as can be from those before it.

    The first is the nearest one to ``start``. Where there are more servers than sites, sites have several.
    """
    rounds, left = divmod(count, len(sites))
    chosen = list(sites) * rounds
    if left:
        distance = nx.single_source_dijkstra_path_length(graph, start, weight="seconds")
        first = min(sites, key=lambda name: distance.get(name, math.inf))
        extra, nearest = [first], _from(graph, first)
        while len(extra) < left:
            farthest = max((name for name in sites if name not in extra), key=lambda name: nearest.get(name, math.inf))
            extra.append(farthest)
            for name, seconds in _from(graph, farthest).items():
                nearest[name] = min(nearest.get(name, math.inf), seconds)
        chosen += extra
    order = {name: place for place, name in enumerate(sites)}
    return sorted(chosen, key=order.__getitem__)


def _from(graph: nx.Graph, name: str) -> dict[str, float]:
    distances: dict[str, float] = nx.single_source_dijkstra_path_length(graph, name, weight="seconds")
    return distances


def _each_direction(links: Links) -> Links:
    """Return two directed links for each undirected one."""
    directed = []
    for link in links:
        back = link.pop("reverse_bandwidth_bytes_per_second", link["bandwidth_bytes_per_second"])
        ends = {"source": link["target"], "target": link["source"]}
        directed += [link, {**link, **ends, "bandwidth_bytes_per_second": back}]
    return directed


def _link(source: str, target: str, bandwidth_bytes_per_second: float, latency_seconds: float) -> dict[str, Any]:
    return {
        "source": source,
        "target": target,
        "bandwidth_bytes_per_second": bandwidth_bytes_per_second,
        "latency_seconds": latency_seconds,
    }


def _numbered(word: str, count: int, width: int = 1) -> list[str]:
    """Return ``word0``, ``word1``, …, padded with zeros so that they sort alike as texts and as numbers."""
    width = max(width, len(str(count - 1)))
    return [f"{word}{number:0{width}d}" for number in range(count)]
