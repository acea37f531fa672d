"""Assign clients to edges by behaviour and the round trip of a training step, under capacity (methods.md 1.7, 1.9).

The paper's objective is not known: costs, weights and the matching of clusters to edges are the card's reconstruction.

Shapes: N clients, K edges, G gateways.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from elsa_ray.clustering.medoids import typical
from elsa_ray.clustering.transport import PARKED, least_cost, near_least_cost
from elsa_ray.config.clustering import ClusteringConfig
from elsa_ray.network.graph import Network
from elsa_ray.network.routes import Route, Router

__all__ = [
    "PARKED",
    "RoundTrips",
    "assign",
    "default_capacity",
    "edge_costs",
    "edges_of_clusters",
    "step_round_trip_seconds",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

EXACT_SIZE = 2_000_000
"""Clients times edges up to which the assignment is exact."""
SPARE_PLACES = (6, 5)
"""Places of all edges to clients, as a fraction, where no capacity is configured."""
MISSING_WAY = 10.0
"""Times the longest latency: what no way at all counts, where clusters are matched to edges."""


def step_round_trip_seconds(
    network: Network,
    router: Router,
    *,
    up_bytes_N: Floats,
    down_bytes_N: Floats,
    compute_seconds_NK: Floats,
) -> Floats:
    """Estimate one split training step of each client through each edge, on idle links.

    A step is two messages up and two down: 2 (latency up + latency down) + bytes / bottleneck of each direction +
    the computation on both sides. Infinite where there is no way.

    Args:
        network: its clients and edges give the order of N and K.
        router: of that network.
        up_bytes_N, down_bytes_N: of both messages of a direction together.
        compute_seconds_NK: client and edge computation of a step.
    """
    round_trips = RoundTrips(network, router, up_bytes_N=up_bytes_N, down_bytes_N=down_bytes_N)
    return round_trips.seconds(slice(None)) + compute_seconds_NK


class RoundTrips:
    """The network's part of a training step of each client through each edge, on idle links.

    Clients times edges may be more than the memory holds; so what is kept is the clients' own links and the ways
    between gateways and edges, and ``seconds`` gives as many rows as are asked for.

    Args:
        network, router, up_bytes_N, down_bytes_N: as for ``step_round_trip_seconds``.
    """

    def __init__(self, network: Network, router: Router, *, up_bytes_N: Floats, down_bytes_N: Floats) -> None:
        self._up, self._down = (_Ways(network, router, upward=upward) for upward in (True, False))
        self._up_bytes_N, self._down_bytes_N = up_bytes_N, down_bytes_N
        self.shape = len(network.clients), len(network.edges)

    def seconds(self, clients: Ints | slice) -> Floats:
        """Return the seconds of some clients, a row each; infinite where there is no way."""
        up_bytes_N1, down_bytes_N1 = self._up_bytes_N[clients, None], self._down_bytes_N[clients, None]
        return _seconds(self._up.of(clients), self._down.of(clients), up_bytes_N1, down_bytes_N1)

    def seconds_through(self, clients: Ints, edges: Ints) -> Floats:
        """Return the seconds of some clients, each through one edge, by its position among the edges."""
        up, down = self._up.of_pairs(clients, edges), self._down.of_pairs(clients, edges)
        return _seconds(up, down, self._up_bytes_N[clients], self._down_bytes_N[clients])


def _seconds(up: tuple[Floats, Floats], down: tuple[Floats, Floats], up_bytes: Floats, down_bytes: Floats) -> Floats:
    """Return what two messages up and two down take, from latency and bottleneck of each direction."""
    (up_seconds, up_rate), (down_seconds, down_rate) = up, down
    sending: Floats = up_bytes / up_rate + down_bytes / down_rate
    return 2 * (up_seconds + down_seconds) + sending


class _Ways:
    """Latency and bottleneck of each client's way to each edge, or back; an infinite latency is no way.

    A client with one link in that direction has no choice but the node behind it, its gateway: routes are looked up
    between gateways and edges, of which there are few, and the client's own link is added. Any other client is its
    own gateway.
    """

    def __init__(self, network: Network, router: Router, *, upward: bool) -> None:
        near_end, far_end = network.link_source, network.link_target
        if not upward:
            near_end, far_end = far_end, near_end
        link_of_node = np.full(len(network.node_names), -1)
        link_of_node[near_end] = np.arange(len(near_end))
        num_links_N = np.bincount(near_end, minlength=len(network.node_names))[network.clients]
        single = np.flatnonzero(num_links_N == 1)
        link = link_of_node[network.clients[single]]
        is_client = np.zeros(len(network.node_names), bool)
        is_client[network.clients] = True
        forwards = ~is_client[far_end[link]]
        single, link = single[forwards], link[forwards]
        gateway_N = network.clients.copy()
        self._own_seconds_N, self._own_rate_N = np.zeros(len(gateway_N)), np.full(len(gateway_N), np.inf)
        gateway_N[single] = far_end[link]
        self._own_seconds_N[single] = network.link_latency_seconds[link]
        self._own_rate_N[single] = network.link_bandwidth_bytes_per_second[link]

        self._gateways_G, self._gateway_of_client_N = np.unique(gateway_N, return_inverse=True)
        self._edges_K, self._router, self._upward = network.edges, router, upward

    def of(self, clients: Ints | slice) -> tuple[Floats, Floats]:
        """Return the rows of some clients."""
        gateway_N = self._gateway_of_client_N[clients]
        seconds_GK, rate_GK = self._ways_GK
        return (
            self._own_seconds_N[clients, None] + seconds_GK[gateway_N],
            np.minimum(self._own_rate_N[clients, None], rate_GK[gateway_N]),
        )

    def of_pairs(self, clients: Ints, edges: Ints) -> tuple[Floats, Floats]:
        """Return those of some clients, each to one edge. Looks up no other ways: there may be a thousand edges."""
        pairs = np.stack([self._gateways_G[self._gateway_of_client_N[clients]], self._edges_K[edges]], axis=1)
        different_P2, pair_N = np.unique(pairs, axis=0, return_inverse=True)
        seconds_P, rate_P = self._routed(different_P2[:, 0].tolist(), different_P2[:, 1].tolist())
        own_seconds_N, own_rate_N = self._own_seconds_N[clients], self._own_rate_N[clients]
        return own_seconds_N + seconds_P[pair_N], np.minimum(own_rate_N, rate_P[pair_N])

    @cached_property
    def _ways_GK(self) -> tuple[Floats, Floats]:
        """Latency and bottleneck between each gateway and each edge."""
        pairs = [(gateway, edge) for gateway in self._gateways_G.tolist() for edge in self._edges_K.tolist()]
        seconds, rate = self._routed([gateway for gateway, _ in pairs], [edge for _, edge in pairs])
        shape = (len(self._gateways_G), len(self._edges_K))
        return seconds.reshape(shape), rate.reshape(shape)

    def _routed(self, gateways: list[int], edges: list[int]) -> tuple[Floats, Floats]:
        routes = self._router.routes(gateways, edges) if self._upward else self._router.routes(edges, gateways)
        seconds = np.array([_latency_seconds(route) for route in routes], np.float64)
        rates = [1.0 if route is None else route.bottleneck_bytes_per_second for route in routes]
        return seconds, np.array(rates, np.float64)


def _latency_seconds(route: Route | None) -> float:
    return np.inf if route is None else route.latency_seconds


def edge_costs(divergence_NK: Floats, latency_NK: Floats, trust_N: Floats, config: ClusteringConfig) -> Floats:
    """Return what each edge costs each client; infinite where it cannot be reached, or not within the longest latency.

    behaviour_weight * divergence / median divergence + latency_weight * latency / longest latency
    + trust_weight * (1 - trust).

    Args:
        divergence_NK: from the medoid of each edge's cluster, in nats. NaN is not known: a client without any known
            divergence is as near to one edge as to the other; an edge without a medoid counts as the median.
        latency_NK: of a training step; infinite where there is no way.
        trust_N: in [0, 1].
        config: the ``clustering`` section.
    """
    limit = np.inf if config.max_latency_seconds is None else config.max_latency_seconds
    admitted_NK = np.isfinite(latency_NK) & (latency_NK <= limit)
    longest = latency_NK[admitted_NK].max(initial=0.0)
    latency_share_NK = np.where(admitted_NK, latency_NK, 0.0) / (longest if longest > 0 else 1.0)
    known_NK = np.isfinite(divergence_NK)
    behaviour_NK = np.where(known_NK, divergence_NK, np.nan) / typical(divergence_NK)
    behaviour_NK = np.where(known_NK, behaviour_NK, known_NK.any(axis=1, keepdims=True) * 1.0)
    cost_NK = config.behaviour_weight * behaviour_NK + config.latency_weight * latency_share_NK
    cost_NK += config.trust_weight * (1.0 - trust_N)[:, None]
    return np.where(admitted_NK, cost_NK, np.inf)


def edges_of_clusters(cluster_of_client_N: Ints, latency_NK: Floats) -> Ints:
    """Return the edge of each of K clusters, one to one, of least total mean latency of the members.

    Clusters without members come last in the choice. A missing way counts as ten times the longest latency.
    """
    num_edges = latency_NK.shape[1]
    longest = latency_NK[np.isfinite(latency_NK)].max(initial=0.0)
    seconds_NK = np.where(np.isfinite(latency_NK), latency_NK, MISSING_WAY * longest)
    mean_KK = np.zeros((num_edges, num_edges))
    for cluster in range(num_edges):
        members = cluster_of_client_N == cluster
        if members.any():
            mean_KK[cluster] = seconds_NK[members].mean(axis=0)
    _, edge_of_cluster_K = linear_sum_assignment(mean_KK)
    return edge_of_cluster_K.astype(np.int64)


def default_capacity(num_clients: int, num_edges: int) -> int:
    """Return ceil(1.2 N / K): the places of an edge where none are configured."""
    more, than = SPARE_PLACES
    return -(-more * num_clients // (than * num_edges))


def assign(cost_NK: Floats, capacity: int | None, handicap_N: Floats | None = None) -> Ints:
    """Return each client's edge in an assignment of least total cost, ``PARKED`` where none is free or reachable.

    Without capacity it is each client's cheapest edge (of equal ones the first). With it, nobody is parked whom a free
    place could take; the total is the least one for N K up to two million, and beyond that nearly.

    Args:
        cost_NK: infinite where an edge cannot serve a client.
        capacity: places of each edge; None for no limit.
        handicap_N: who has more of it gives way to clients of equal costs; lack of trust, say.
    """
    if capacity is None:
        nearest = np.argmin(cost_NK, axis=1)
        return np.where(np.isfinite(cost_NK).any(axis=1), nearest, PARKED)
    if cost_NK.size <= EXACT_SIZE:
        return least_cost(cost_NK, capacity, handicap_N)
    return near_least_cost(cost_NK, capacity, handicap_N)
