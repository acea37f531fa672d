"""Assign clients to edges by the estimated round trip of one training step, under capacity (methods.md 1.7, 1.9).

Shapes: N clients, K edges.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from elsa_ray.network.graph import Network
from elsa_ray.network.routes import Router

PARKED = -1
"""Stands for the edge of a client that can reach none."""


def step_round_trip_seconds(
    network: Network,
    router: Router,
    *,
    up_bytes_N: npt.NDArray[np.float64],
    down_bytes_N: npt.NDArray[np.float64],
    compute_seconds_NK: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Estimate one split training step of each client through each edge, on idle links.

    A step is two messages up and two down: 2 (latency up + latency down) + bytes / bottleneck of each direction +
    the computation on both sides. Infinite where there is no way.

    Args:
        network: its clients and edges give the order of N and K.
        router: of that network.
        up_bytes_N, down_bytes_N: of both messages of a direction together.
        compute_seconds_NK: client and edge computation of a step.
    """
    seconds_NK = np.full((len(network.clients), len(network.edges)), np.inf)
    for k, edge in enumerate(network.edges.tolist()):
        for n, client in enumerate(network.clients.tolist()):
            up, down = router.route(client, edge), router.route(edge, client)
            if up is None or down is None:
                continue
            waiting = 2 * (up.latency_seconds + down.latency_seconds)
            sending = (
                up_bytes_N[n] / up.bottleneck_bytes_per_second + down_bytes_N[n] / down.bottleneck_bytes_per_second
            )
            seconds_NK[n, k] = waiting + sending + compute_seconds_NK[n, k]
    return seconds_NK


def assign(cost_NK: npt.NDArray[np.float64], capacity: int | None) -> npt.NDArray[np.int64]:
    """Return each client's edge in an assignment of least total cost, ``PARKED`` where none is free or reachable.

    Without capacity it is each client's cheapest edge (of equal ones the first). With it, the assignment problem is
    solved exactly, each edge standing for ``capacity`` places; nobody is parked whom a free place could take.
    """
    num_clients = len(cost_NK)
    reachable_NK = np.isfinite(cost_NK)
    if capacity is None:
        nearest = np.argmin(cost_NK, axis=1)
        return np.where(reachable_NK.any(axis=1), nearest, PARKED)
    # Parking costs more than any assignment of all clients, so the fewest possible are parked.
    parking = float(cost_NK[reachable_NK].max(initial=0.0)) * num_clients + 1.0
    places = np.repeat(np.where(reachable_NK, cost_NK, 2 * parking), min(capacity, num_clients), axis=1)
    parking_places = np.full((num_clients, num_clients), parking)
    clients, chosen = linear_sum_assignment(np.concatenate([places, parking_places], axis=1))
    edges = np.full(num_clients, PARKED, np.int64)
    is_place = chosen < places.shape[1]
    edges[clients[is_place]] = chosen[is_place] // min(capacity, num_clients)
    edges[(edges != PARKED) & ~reachable_NK[np.arange(num_clients), edges]] = PARKED
    return edges
