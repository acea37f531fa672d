"""Random networks and transfers for the comparisons."""

from __future__ import annotations

import random
from typing import Any

import networkx as nx

from elsa_ray.network.graph import Network, build_network


def random_network(rng: random.Random, shape: str) -> Network:
    """Make a tree, mesh, asymmetric, shared-medium or directed network of a dozen nodes; none of them is a client."""
    num_nodes = rng.randint(3, 12)
    tree = [(rng.randrange(node), node) for node in range(1, num_nodes)]
    extra = [] if shape == "tree" else [tuple(rng.sample(range(num_nodes), 2)) for _ in range(num_nodes)]
    graph = nx.DiGraph() if shape == "directed" else nx.Graph()
    for first, second in [*tree, *extra]:
        for source, target in ((first, second), (second, first)) if shape == "directed" else ((first, second),):
            if graph.has_edge(source, target):
                continue
            link: dict[str, Any] = {
                "bandwidth_bytes_per_second": rng.choice([rng.randint(1, 1000), 100, 300]),
                "latency_seconds": rng.choice([0.0, 0.5, 1.0, rng.random()]),
            }
            if shape == "asymmetric":
                link["reverse_bandwidth_bytes_per_second"] = rng.randint(1, 1000)
            if shape == "shared":
                link["shared_medium"] = rng.random() < 0.6
            graph.add_edge(f"n{source}", f"n{target}", **link)
    return build_network(graph, "random", roles_required=False)


def random_transfers(rng: random.Random, network: Network, count: int) -> list[dict[str, Any]]:
    """Make transfers with staggered and equal starts; some of zero bytes, some from a node to itself."""
    return [
        {
            "id": f"t{number}",
            "src": rng.choice(network.node_names),
            "dst": rng.choice(network.node_names),
            "num_bytes": rng.choice([0, 100, 100, rng.randint(1, 5000), rng.randint(1, 5000)]),
            "start_seconds": rng.choice([0.0, 1.0, rng.random() * 20]),
        }
        for number in range(count)
    ]
