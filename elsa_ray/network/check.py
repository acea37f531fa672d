"""What ``elsa-ray topology check`` finds wrong in a network, and what ``topology show`` says about it."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from elsa_ray.network.graph import Network
from elsa_ray.network.links import KINDS
from elsa_ray.network.routes import Router

_TWO_KINDS = "{} - {}"


def check_network(network: Network, *, edge_capacity: int | None = None) -> list[str]:
    """Return one line for each reason why training over the network could not work; none for a sound one.

    It checks the roles, the figures, that each client reaches an edge and the cloud, and each edge the cloud, and is
    reached from there, that nothing else is cut off, and that the edges have room for all clients.

    Args:
        network: the topology.
        edge_capacity: most clients of one edge server; None for no limit.
    """
    return [
        *_role_findings(network),
        *_figure_findings(network),
        *_reach_findings(network),
        *_part_findings(network),
        *_capacity_findings(network, edge_capacity),
    ]


def describe(network: Network) -> dict[str, Any]:
    """Return the network's counts, and by tier its least, median and greatest figures.

    A tier is the directed links from nodes of one kind to nodes of another: ``client - router`` is upward,
    ``router - client`` downward. Bandwidths are in bytes per second, latencies in seconds.
    """
    tiers: dict[str, list[int]] = {}
    for link, (source, target) in enumerate(zip(network.link_source, network.link_target, strict=True)):
        tier = _TWO_KINDS.format(network.node_kinds[source], network.node_kinds[target])
        tiers.setdefault(tier, []).append(link)
    return {
        "where": network.where,
        "source": network.figures,
        "nodes": {kind: network.node_kinds.count(kind) for kind in KINDS},
        "directed_links": len(network.link_source),
        "shared_media": len(network.link_source) - len(network.capacity_bytes_per_second),
        "tiers": {
            tier: {
                "directed_links": len(links),
                "bandwidth_bytes_per_second": _spread(network.link_bandwidth_bytes_per_second[links]),
                "latency_seconds": _spread(network.link_latency_seconds[links]),
            }
            for tier, links in sorted(tiers.items())
        },
    }


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    return {"min": float(values.min()), "median": float(np.median(values)), "max": float(values.max())}


def _role_findings(network: Network) -> list[str]:
    findings = []
    for kind, least, most in (("client", 1, None), ("edge", 1, None), ("cloud", 1, 1)):
        count = network.node_kinds.count(kind)
        if count < least or (most is not None and count > most):
            needed = "exactly one" if most == 1 else "at least one"
            findings.append(f"{count} nodes of kind {kind}; needed: {needed}")
    return findings


def _figure_findings(network: Network) -> list[str]:
    bandwidth, latency = network.link_bandwidth_bytes_per_second, network.link_latency_seconds
    findings = []
    for column, values, is_sound in (
        ("bandwidth_bytes_per_second", bandwidth, np.isfinite(bandwidth) & (bandwidth > 0)),
        ("latency_seconds", latency, np.isfinite(latency) & (latency >= 0)),
    ):
        for link in np.flatnonzero(~is_sound):
            source = network.node_names[network.link_source[link]]
            target = network.node_names[network.link_target[link]]
            findings.append(f"link {source}-{target}: {column} is {float(values[link])!r}")
    return findings


def _reach_findings(network: Network) -> list[str]:
    router = Router(network)
    findings = []

    def is_joined(node: int, others: NDArray[np.int32]) -> bool:
        return any(_both_ways(router, node, other) for other in others.tolist())

    for client in network.clients.tolist():
        for kind, others in (("edge", network.edges), ("cloud", network.clouds)):
            if len(others) and not is_joined(client, others):
                findings.append(f"client {network.node_names[client]} has no way to and from any {kind}")
    for edge in network.edges.tolist():
        if len(network.clouds) and not is_joined(edge, network.clouds):
            findings.append(f"edge {network.node_names[edge]} has no way to and from any cloud")
    return findings


def _both_ways(router: Router, first: int, second: int) -> bool:
    return router.route(first, second) is not None and router.route(second, first) is not None


def _part_findings(network: Network) -> list[str]:
    """Tell of routers that nothing leads to; clients, edges and the cloud are told of by their routes."""
    ends = [*network.link_source.tolist(), *network.link_target.tolist()]
    linked = set(ends)
    alone = [
        network.node_names[node]
        for node, kind in enumerate(network.node_kinds)
        if kind == "router" and node not in linked
    ]
    findings = [f"router {name} has no link" for name in alone]
    graph = nx.Graph(zip(network.link_source.tolist(), network.link_target.tolist(), strict=True))
    parts = sorted(nx.connected_components(graph), key=len, reverse=True)
    for part in parts[1:]:
        first = network.node_names[min(part)]
        findings.append(f"{len(part)} nodes, {first} among them, are joined to each other only")
    return findings


def _capacity_findings(network: Network, edge_capacity: int | None) -> list[str]:
    if edge_capacity is None or len(network.clients) <= edge_capacity * len(network.edges):
        return []
    room = f"{len(network.edges)} edges with {edge_capacity} clients each"
    return [f"{len(network.clients)} clients and room for {edge_capacity * len(network.edges)}: {room}"]
