"""Makes networks: the hierarchical generator, and whichever of the three the ``topology`` section asks for."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from elsa_ray.config.errors import unknown_name
from elsa_ray.config.topology import FileTopology, HierarchicalTopology, NamedTopology
from elsa_ray.network.files import load_network, named_topologies
from elsa_ray.network.graph import Network, assemble


def make_network(
    config: HierarchicalTopology | FileTopology | NamedTopology, seed: int, base_folder: str | Path
) -> Network:
    """Return the network that the ``topology`` section of a config describes.

    Args:
        config: the section.
        seed: the run's seed, for generated networks.
        base_folder: what a relative ``file`` is relative to.

    Raises:
        InputError: the file or name is unknown or wrong, or the network lacks clients, edges or its one cloud.
    """
    if isinstance(config, HierarchicalTopology):
        return hierarchical(config, seed)
    if isinstance(config, FileTopology):
        return load_network(Path(base_folder) / config.file, roles_required=True)
    named = named_topologies()
    if config.name not in named:
        raise unknown_name("topology.name", config.name, named)
    return load_network(named[config.name], roles_required=True)


def hierarchical(config: HierarchicalTopology, seed: int) -> Network:
    """Make clients at access routers, an edge server at each router, and a core between the routers and the cloud.

    Clients are dealt to the routers in turn. A client's two bandwidths are the configured medians times one
    log-normal factor, its latency the median times another; the same client has the same factors in a larger network.

    Raises:
        InputError: a configured figure makes no link, such as a bandwidth of zero.
    """
    client_names = _numbered("client", config.clients, width=3)
    edge_names = _numbered("edge", config.edges)
    router_names = _numbered("router", config.edges)
    nodes = [{"id": name, "kind": "client"} for name in client_names]
    nodes += [{"id": name, "kind": "edge"} for name in edge_names]
    nodes += [{"id": name, "kind": "router"} for name in [*router_names, "core"]]
    nodes.append({"id": "cloud", "kind": "cloud"})

    draws = _generator(seed, "topology").standard_normal((config.clients, 2))
    with np.errstate(over="ignore"):  # an infinite factor is refused with its link's name
        factors = np.exp(config.spread * draws).tolist()
    links = []
    for number, (client, (bandwidth_factor, latency_factor)) in enumerate(zip(client_names, factors, strict=True)):
        access = _link(client, router_names[number % config.edges], config.access_up, config.access_latency)
        access["bandwidth_bytes_per_second"] *= bandwidth_factor
        access["reverse_bandwidth_bytes_per_second"] = config.access_down * bandwidth_factor
        access["latency_seconds"] *= latency_factor
        links.append(access)
    for router, edge in zip(router_names, edge_names, strict=True):
        links.append(_link(router, edge, config.edge_bandwidth, config.edge_latency))
        links.append(_link(router, "core", config.core_bandwidth, config.core_latency))
    links.append(_link("core", "cloud", config.core_bandwidth, config.cloud_latency))
    figures = f"generated: hierarchical, {config.clients} clients, {config.edges} edges, seed {seed}"
    return assemble(nodes, links, "topology", directed=False, figures=figures, roles_required=True)


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


def _generator(seed: int, purpose: str) -> np.random.Generator:
    """Return random numbers that depend on the run's seed and the purpose only."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
