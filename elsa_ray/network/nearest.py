"""The edge server that each client is nearest to, by latency alone."""

from __future__ import annotations

import math

from elsa_ray.network.graph import Network
from elsa_ray.network.routes import Router


def nearest_edges(network: Network) -> dict[str, str]:
    """Return the name of each client's nearest edge server; of equal ones the first. Who reaches none is missing."""
    router = Router(network)
    nearest = {}
    for client in network.clients.tolist():
        best, name = math.inf, None
        for edge in network.edges.tolist():
            route = router.route(client, edge)
            if route is not None and route.latency_seconds < best:
                best, name = route.latency_seconds, network.node_names[edge]
        if name is not None:
            nearest[network.node_names[client]] = name
    return nearest
