"""When clients are clustered anew, and the edges that they then get (methods.md 1.7, a reconstruction).

Shapes: N clients, K edges, d projected width, Q probes, D hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from elsa_ray.clustering.assignment import PARKED
from elsa_ray.clustering.cluster import Clusters, cluster_and_assign, cluster_and_assign_exact
from elsa_ray.clustering.fingerprints import stack
from elsa_ray.clustering.trust import TrustState
from elsa_ray.config.clustering import ClusteringConfig
from elsa_ray.protocols.setting import Setting
from elsa_ray.training.tables import fingerprint_of_row
from elsa_ray.world.plan import Floats


class Known(Protocol):
    """What of a protocol's state clustering reads."""

    @property
    def round_index(self) -> int:
        """Rounds so far."""

    @property
    def fingerprints(self) -> Mapping[int, npt.NDArray[np.float32]]:
        """Rows by client."""

    @property
    def trust(self) -> Mapping[int, TrustState]:
        """Standings by client."""

    @property
    def clustered_round(self) -> int | None:
        """Rounds at the last clustering."""

    @property
    def clustered(self) -> frozenset[int]:
        """Clients that were members then."""

    @property
    def away_since(self) -> Mapping[int, int]:
        """The round at whose end a client was missed first, of those that were away at the end of each since."""


def members(config: ClusteringConfig, state: Known) -> frozenset[int]:
    """Return the clients that clusters are made of: whose behaviour is known, and that have not left.

    Who was away at the end of ``every`` rounds on end has left, and joins again when it comes back.
    """
    left = {client for client, since in state.away_since.items() if state.round_index - since >= config.every}
    return frozenset(state.fingerprints) - left


def is_due(config: ClusteringConfig, num_clients: int, state: Known, own: frozenset[int]) -> bool:
    """Return whether clients are clustered now: first as soon as there is a member, then every so many rounds.

    It comes earlier where more than the share ``moved`` of all clients has joined or left since the last.

    Args:
        config: how often.
        num_clients: of all.
        state: what is known.
        own: the members now.
    """
    if not own:
        return False
    if state.clustered_round is None or state.round_index - state.clustered_round >= config.every:
        return True
    return len(own ^ state.clustered) > config.moved * num_clients


def new_edges(
    setting: Setting, config: ClusteringConfig, state: Known, own: frozenset[int], latency_NK: Floats
) -> tuple[int, ...]:
    """Return the node of each client's edge, PARKED for a client that no free edge serves in time.

    Who is none of the members ``own`` keeps a place by latency alone.
    """
    clusters = _clusters(setting, config, state, own, latency_NK)
    edges = clusters.edge_of_client_N
    nodes = np.where(edges == PARKED, PARKED, setting.network.edges[edges])
    return tuple(int(node) for node in nodes)


def _clusters(
    setting: Setting, config: ClusteringConfig, state: Known, own: frozenset[int], latency_NK: Floats
) -> Clusters:
    num_clients = setting.num_clients
    trust_N = np.array([state.trust.get(client, TrustState()).score for client in range(num_clients)])
    capacity = setting.config.world.edges.capacity
    rows = {client: state.fingerprints[client] for client in sorted(own)}
    if config.form == "exact":
        width = setting.shape.hidden_size
        states = [rows[c].reshape(-1, width).astype(np.float64) if c in rows else None for c in range(num_clients)]
        return cluster_and_assign_exact(states, latency_NK, trust_N, capacity, config, setting.seed, state.round_index)
    known_N = np.array([client in rows for client in range(num_clients)])
    mean_Nd = np.full((num_clients, config.dimensions), np.nan)
    covariance_Ndd = np.full((num_clients, config.dimensions, config.dimensions), np.nan)
    fingerprints = [fingerprint_of_row(rows[client], config.dimensions) for client in np.flatnonzero(known_N).tolist()]
    mean_Nd[known_N], covariance_Ndd[known_N] = stack(fingerprints)
    return cluster_and_assign(
        mean_Nd, covariance_Ndd, known_N, latency_NK, trust_N, capacity, config, setting.seed, state.round_index
    )
