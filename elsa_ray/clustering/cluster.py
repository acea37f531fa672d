"""From fingerprints, trust and latencies to clusters and edges: the whole chain of methods.md 1.7 (reconstruction).

Medoids are sought among the clients, or a sample of them; clusters are matched to edges by latency; then each client
gets an edge by behaviour and latency, under capacity.

Shapes: N clients, K edges and as many clusters, S clients of the sample, Q probes, D hidden width, d projected width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from elsa_ray.clustering.assignment import assign, default_capacity, edge_costs, edges_of_clusters
from elsa_ray.clustering.divergence import symmetric_kl, to_medoids
from elsa_ray.clustering.fingerprints import LowRankGaussians, low_rank_gaussians, low_rank_symmetric_kl, shrink
from elsa_ray.clustering.medoids import k_medoids, nearest_medoid
from elsa_ray.config.clustering import ClusteringConfig
from elsa_ray.tasks.seeds import numpy_generator

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NONE = -1
"""Stands for the cluster of a client whose behaviour is not known, and for the medoid of a cluster without one."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """Who belongs where. Cluster k is the one that is matched to edge k.

    Attributes:
        edge_of_client_N: position of the edge, PARKED (-1) for a client that no free edge serves in time.
        cluster_of_client_N: the cluster of the nearest medoid, whatever edge the client got; -1 for unknown behaviour.
        medoid_of_cluster_K: the client that stands for the cluster; -1 where fewer clients than edges are known.
        divergence_NK: of each client from each medoid, in nats; NaN where either is not known.
        cost_NK: what was minimised; infinite where an edge could not serve a client.
    """

    edge_of_client_N: Ints
    cluster_of_client_N: Ints
    medoid_of_cluster_K: Ints
    divergence_NK: Floats
    cost_NK: Floats


def cluster_and_assign(
    mean_Nd: Floats,
    covariance_Ndd: Floats,
    known_N: Bools,
    latency_NK: Floats,
    trust_N: Floats,
    capacity: int | None,
    config: ClusteringConfig,
    seed: int,
    round_index: int,
) -> Clusters:
    """Group clients by their fingerprints, and give them to edges.

    Args:
        mean_Nd, covariance_Ndd: the fingerprints as they were received; they are shrunk here.
        known_N: whose fingerprint is known. The others, and those whose numbers are not finite, go by latency alone.
        latency_NK: seconds of a training step of each client through each edge; infinite where there is no way.
        trust_N: in [0, 1].
        capacity: places of each edge; None for ceil(1.2 N / K).
        config: the ``clustering`` section.
        seed: of the run; with ``round_index`` it determines the sample.
        round_index: the global round.
    """
    finite_N = np.isfinite(mean_Nd).all(axis=1) & np.isfinite(covariance_Ndd).all(axis=(1, 2))
    known = np.flatnonzero(known_N & finite_N)
    if len(known) < len(mean_Nd):  # indexing copies, and the covariances of 100,000 clients are 800 MB
        mean_Nd, covariance_Ndd = mean_Nd[known], covariance_Ndd[known]
    behaviour = _Projected(mean_Nd, covariance_Ndd, config.shrinkage)
    return _cluster_and_assign(behaviour, known, latency_NK, trust_N, capacity, config, seed, round_index)


def cluster_and_assign_exact(
    states_N: Sequence[Floats | None],
    latency_NK: Floats,
    trust_N: Floats,
    capacity: int | None,
    config: ClusteringConfig,
    seed: int,
    round_index: int,
) -> Clusters:
    """Do the same by the clients' whole states [Q, D]; None, or numbers that are not finite, for who is not known.

    The time grows with the square of the clients (or of ``config.sample``): for some hundred.
    """
    finite = [(n, states) for n, states in enumerate(states_N) if states is not None and np.isfinite(states).all()]
    known = np.array([n for n, _ in finite], np.int64)
    states_NQD = np.stack([states for _, states in finite]) if finite else np.zeros((0, 1, 1))
    behaviour = _Exact(low_rank_gaussians(states_NQD, config.shrinkage))
    return _cluster_and_assign(behaviour, known, latency_NK, trust_N, capacity, config, seed, round_index)


class _Behaviour(Protocol):
    """What the known clients do, and how differently."""

    def among(self, clients: Ints) -> Floats:
        """Return the divergence between each two of some clients."""

    def from_medoids(self, medoids: Ints) -> Floats:
        """Return the divergence of every client from each medoid."""

    def shuffled(self, order: Ints) -> _Behaviour:
        """Return the same behaviours, dealt to other clients."""


@dataclass(frozen=True, eq=False)
class _Projected:
    """Fingerprints in the common basis."""

    mean_Nd: Floats
    covariance_Ndd: Floats
    shrinkage: float

    def among(self, clients: Ints) -> Floats:
        return symmetric_kl(self.mean_Nd[clients], shrink(self.covariance_Ndd[clients], self.shrinkage))

    def from_medoids(self, medoids: Ints) -> Floats:
        return to_medoids(self.mean_Nd, self.covariance_Ndd, medoids, shrinkage=self.shrinkage)

    def shuffled(self, order: Ints) -> _Projected:
        return _Projected(self.mean_Nd[order], self.covariance_Ndd[order], self.shrinkage)


@dataclass(frozen=True, eq=False)
class _Exact:
    """Whole states."""

    gaussians: LowRankGaussians

    def among(self, clients: Ints) -> Floats:
        some, divergence_SS = self.gaussians.of(clients), np.zeros((len(clients), len(clients)))
        for i in range(1, len(clients)):
            before = slice(0, i)
            divergence_SS[i, before] = low_rank_symmetric_kl(some.of(slice(i, i + 1)), some.of(before))
        return divergence_SS + divergence_SS.T

    def from_medoids(self, medoids: Ints) -> Floats:
        columns = [low_rank_symmetric_kl(self.gaussians.of(slice(m, m + 1)), self.gaussians) for m in medoids.tolist()]
        divergence_NK = np.stack(columns, axis=1)
        divergence_NK[medoids, np.arange(len(medoids))] = 0.0
        return divergence_NK

    def shuffled(self, order: Ints) -> _Exact:
        return _Exact(self.gaussians.of(order))


def _cluster_and_assign(
    behaviour: _Behaviour,
    known: Ints,
    latency_NK: Floats,
    trust_N: Floats,
    capacity: int | None,
    config: ClusteringConfig,
    seed: int,
    round_index: int,
) -> Clusters:
    """Run the chain; ``behaviour`` is that of the clients ``known``."""
    num_clients, num_edges = latency_NK.shape
    cluster_N, medoid_K = np.full(num_clients, NONE), np.full(num_edges, NONE)
    divergence_NK, told_NK = np.full(latency_NK.shape, np.nan), np.full(latency_NK.shape, np.nan)
    if len(known):
        acting = behaviour
        if config.medoids == "random":
            acting = behaviour.shuffled(numpy_generator(seed, "random clusters", round_index).permutation(len(known)))
        medoids = _medoids(acting, trust_N[known], num_edges, config, seed, round_index)
        from_medoids = acting.from_medoids(medoids)
        cluster_N[known] = nearest_medoid(from_medoids)
        edge_of_cluster_K = edges_of_clusters(cluster_N, latency_NK)
        cluster_N[known] = edge_of_cluster_K[cluster_N[known]]
        edge_of_medoid = edge_of_cluster_K[: len(medoids)]
        medoid_K[edge_of_medoid] = known[medoids]
        divergence_NK[np.ix_(known, edge_of_medoid)] = from_medoids
        told_NK = divergence_NK
        if config.medoids == "random":
            told_NK = np.full_like(divergence_NK, np.nan)
            told_NK[np.ix_(known, edge_of_medoid)] = behaviour.from_medoids(medoids)
    cost_NK = edge_costs(divergence_NK, latency_NK, trust_N, config)
    places = default_capacity(num_clients, num_edges) if capacity is None else capacity
    edge_N = assign(cost_NK, places, config.trust_weight * (1.0 - trust_N))
    return Clusters(edge_N, cluster_N, medoid_K, told_NK, cost_NK)


def _medoids(
    behaviour: _Behaviour, trust_N: Floats, num_medoids: int, config: ClusteringConfig, seed: int, round_index: int
) -> Ints:
    """Return the medoids among the known clients: of all, or of a sample drawn by seed."""
    num_clients, size = len(trust_N), max(config.sample, num_medoids)
    sample = np.arange(num_clients)
    if num_clients > size:
        generator = numpy_generator(seed, "medoid sample", round_index)
        sample = np.sort(generator.choice(num_clients, size, replace=False))
    return sample[k_medoids(behaviour.among(sample), num_medoids, trust_N[sample])]
