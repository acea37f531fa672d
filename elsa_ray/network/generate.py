"""Makes networks: by a generator, or whatever else the ``topology`` section asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from elsa_ray.config.errors import unknown_name
from elsa_ray.config.topology import FileTopology, GeneratedTopology, HierarchicalTopology, NamedTopology
from elsa_ray.network.attach import Group, attached
from elsa_ray.network.backbones import backbone
from elsa_ray.network.draws import generator_of
from elsa_ray.network.files import load_network, named_topologies
from elsa_ray.network.graph import Network, assemble, stated, undirected_network


def make_network(
    config: GeneratedTopology | FileTopology | NamedTopology, seed: int, base_folder: str | Path
) -> Network:
    """Return the network that the ``topology`` section of a config describes.

    Args:
        config: the section.
        seed: the run's seed, for what is generated or attached.
        base_folder: what a relative ``file`` is relative to.

    Raises:
        InputError: the file or name is unknown or wrong, or the network lacks clients, edges or its one cloud.
    """
    if isinstance(config, GeneratedTopology):
        return generated(config, seed)
    if isinstance(config, FileTopology):
        return load_network(Path(base_folder) / config.file, roles_required=True, attach=config.attach, seed=seed)
    named = named_topologies()
    if config.name not in named:
        raise unknown_name("topology.name", config.name, named)
    return load_network(named[config.name], roles_required=True, attach=config.attach, seed=seed)


def generated(config: GeneratedTopology, seed: int) -> Network:
    """Make routers as the generator says, and attach clients, edge servers and the cloud to them.

    Raises:
        InputError: a configured figure makes no link, or a name or number no network.
    """
    if isinstance(config, HierarchicalTopology) and config.access is None:
        return hierarchical(config, seed)
    routers = backbone(config, seed)
    group = Group(config.clients, config.edges, config, routers.sites)
    nodes, links = attached(routers.nodes, routers.links, [group], seed, cloud_at=routers.cloud_at)
    figures = f"generated: {config.kind}, {config.clients} clients, {config.edges} edges, seed {seed}"
    return assemble(nodes, links, "topology", directed=False, figures=figures, roles_required=True)


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
    counts = {"client": config.clients, "edge": config.edges, "router": config.edges + 1, "cloud": 1}
    kinds = tuple(kind for kind, count in counts.items() for _ in range(count))
    names = (*client_names, *edge_names, *router_names, "core", "cloud")
    first_edge, first_router = config.clients, config.clients + config.edges
    core = first_router + config.edges

    draws = generator_of(seed, "topology").standard_normal((config.clients, 2))
    with np.errstate(over="ignore"):  # an infinite factor is refused with its link's name
        factors = np.exp(config.spread * draws)
        bandwidth_factor, latency_factor = factors[:, 0], factors[:, 1]
        number = np.arange(config.clients)
        access = stated(
            number,
            first_router + number % config.edges,
            config.access_up * bandwidth_factor,
            config.access_latency * latency_factor,
            reverse_bandwidth=config.access_down * bandwidth_factor,
        )
    router = first_router + np.arange(config.edges)
    edge = first_edge + np.arange(config.edges)
    cells = stated(
        np.repeat(router, 2),
        np.stack([edge, np.full_like(edge, core)], axis=1).ravel(),
        np.tile([config.edge_bandwidth, config.core_bandwidth], config.edges),
        np.tile([config.edge_latency, config.core_latency], config.edges),
    )
    trunk = stated([core], [core + 1], [config.core_bandwidth], [config.cloud_latency])
    figures = f"generated: hierarchical, {config.clients} clients, {config.edges} edges, seed {seed}"
    return undirected_network(names, kinds, [access, cells, trunk], "topology", figures)


def _numbered(word: str, count: int, width: int = 1) -> list[str]:
    """Return ``word0``, ``word1``, …, padded with zeros so that they sort alike as texts and as numbers."""
    width = max(width, len(str(count - 1)))
    return [f"{word}{number:0{width}d}" for number in range(count)]
