"""The whole chain from fingerprints to edges (methods.md 1.16, 2, 4 and 5).

Shapes: N clients, K edges, d projected width.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from elsa_ray.clustering.assignment import PARKED, default_capacity
from elsa_ray.clustering.cluster import NONE, Clusters, cluster_and_assign, cluster_and_assign_exact
from elsa_ray.clustering.divergence import symmetric_kl
from elsa_ray.clustering.fingerprints import fingerprint, make_frame, shrink, stack
from elsa_ray.config.clustering import ClusteringConfig

from .groups import adjusted_rand_index, planted_fingerprints, planted_states, random_gaussians

BEHAVIOUR_ONLY = {"behaviour_weight": 1.0, "latency_weight": 0.0}


def latencies(num_clients: int, num_edges: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.1, 1.0, (num_clients, num_edges))


def clustered(mean_Nd: np.ndarray, covariance_Ndd: np.ndarray, latency_NK: np.ndarray, **fields: Any) -> Clusters:
    """Run the chain with everybody known and trusted, unless ``fields`` say otherwise; the rest goes to the config."""
    num_clients = len(mean_Nd)
    return cluster_and_assign(
        mean_Nd,
        covariance_Ndd,
        fields.pop("known_N", np.ones(num_clients, bool)),
        latency_NK,
        fields.pop("trust_N", np.ones(num_clients)),
        fields.pop("capacity", None),
        config=ClusteringConfig(**fields.pop("config", {}), **fields),
        seed=0,
        round_index=0,
    )


@pytest.mark.parametrize("seed", range(5))
def test_four_planted_groups_are_found_and_get_an_edge_each(seed: int) -> None:
    mean_Nd, covariance_Ndd, group_N = planted_fingerprints(80, 4, apart=3.0, seed=seed)
    divergence_NN = symmetric_kl(mean_Nd, shrink(covariance_Ndd, 0.1))
    same_NN = group_N[:, None] == group_N[None]
    assert divergence_NN[~same_NN].min() > 10 * np.median(divergence_NN[same_NN]), "a gap of ten times"
    clusters = clustered(mean_Nd, covariance_Ndd, latencies(80, 4))
    assert adjusted_rand_index(clusters.cluster_of_client_N, group_N) == 1.0
    assert adjusted_rand_index(clusters.edge_of_client_N, group_N) == 1.0
    assert clusters.edge_of_client_N.tolist() == clusters.cluster_of_client_N.tolist()
    assert (clusters.cluster_of_client_N[clusters.medoid_of_cluster_K] == np.arange(4)).all()
    np.testing.assert_allclose(
        clusters.divergence_NK, divergence_NN[:, clusters.medoid_of_cluster_K], rtol=1e-9, atol=1e-12
    )


def test_the_exact_form_finds_them_too() -> None:
    states_NQD, group_N, _ = planted_states(32, 4, num_probes=10, apart=2.0)
    states_N = [None if n == 3 else states_QD for n, states_QD in enumerate(states_NQD)]
    latency_NK = latencies(32, 4)
    clusters = cluster_and_assign_exact(states_N, latency_NK, np.ones(32), None, ClusteringConfig(), 0, 0)
    others = np.arange(32) != 3
    assert adjusted_rand_index(clusters.cluster_of_client_N[others], group_N[others]) == 1.0
    assert clusters.cluster_of_client_N[3] == NONE and clusters.edge_of_client_N[3] != PARKED
    states_N[5] = np.full_like(states_NQD[5], np.nan)
    clusters = cluster_and_assign_exact(states_N, latency_NK, np.ones(32), None, ClusteringConfig(), 0, 0)
    assert clusters.cluster_of_client_N[5] == NONE


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), spare=st.integers(0, 3))
def test_without_behaviour_it_is_the_assignment_of_least_latency_under_capacity(seed: int, spare: int) -> None:
    generator = np.random.default_rng(seed)
    latency_NK, capacity = latencies(30, 5, seed), 6 + spare
    clusters = clustered(
        *random_gaussians(30, 3, seed),
        latency_NK,
        capacity=capacity,
        behaviour_weight=0.0,
        trust_N=generator.random(30),
    )
    clients, places = linear_sum_assignment(np.repeat(latency_NK, capacity, axis=1))
    assert clusters.edge_of_client_N.tolist() == (places // capacity)[np.argsort(clients)].tolist()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), capacity=st.integers(1, 5), unknown=st.sampled_from([0.0, 0.5, 1.0]))
def test_capacity_holds_and_everybody_has_one_edge_or_a_reason(seed: int, capacity: int, unknown: float) -> None:
    generator = np.random.default_rng(seed)
    latency_NK = np.where(generator.random((12, 3)) < 0.3, np.inf, latencies(12, 3, seed))
    known_N = generator.random(12) >= unknown
    clusters = clustered(*random_gaussians(12, 3, seed), latency_NK, capacity=capacity, known_N=known_N)
    edge_N = clusters.edge_of_client_N
    seated = edge_N != PARKED
    assert np.bincount(edge_N[seated], minlength=3).max(initial=0) <= capacity
    assert np.isfinite(latency_NK[np.flatnonzero(seated), edge_N[seated]]).all()
    full_K = np.bincount(edge_N[seated], minlength=3) == capacity
    assert all(full_K[np.isfinite(latency_NK[n])].all() for n in np.flatnonzero(~seated))
    assert ((clusters.cluster_of_client_N == NONE) == ~known_N).all()


def test_without_any_known_behaviour_latency_decides() -> None:
    latency_NK = latencies(10, 3)
    nothing = (np.full((10, 4), np.nan), np.full((10, 4, 4), np.nan))
    clusters = clustered(*nothing, latency_NK, known_N=np.zeros(10, bool), capacity=10)
    assert clusters.edge_of_client_N.tolist() == latency_NK.argmin(axis=1).tolist()
    assert (clusters.medoid_of_cluster_K == NONE).all() and (clusters.cluster_of_client_N == NONE).all()
    assert np.isnan(clusters.divergence_NK).all()


def test_a_fingerprint_that_is_not_finite_is_not_known_and_disturbs_nobody() -> None:
    mean_Nd, covariance_Ndd, _ = planted_fingerprints(20, 2, apart=2.0)
    latency_NK = latencies(20, 2)
    known_N = np.arange(20) < 18
    expected = clustered(mean_Nd, covariance_Ndd, latency_NK, known_N=known_N)
    mean_Nd[18], covariance_Ndd[19, 0, 0] = np.inf, np.nan
    found = clustered(mean_Nd, covariance_Ndd, latency_NK)
    assert found.edge_of_client_N.tolist() == expected.edge_of_client_N.tolist()
    np.testing.assert_array_equal(found.divergence_NK, expected.divergence_NK)


def test_fewer_known_clients_than_edges_give_as_many_medoids_as_there_are() -> None:
    mean_Nd, covariance_Ndd, _ = planted_fingerprints(9, 3, apart=2.0)
    clusters = clustered(mean_Nd, covariance_Ndd, latencies(9, 4), known_N=np.arange(9) < 2)
    assert sorted(clusters.medoid_of_cluster_K.tolist()) == [NONE, NONE, 0, 1]
    assert (clusters.edge_of_client_N != PARKED).all()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_order_of_the_clients_does_not_matter(seed: int) -> None:
    mean_Nd, covariance_Ndd, _ = planted_fingerprints(40, 4, apart=1.0, seed=seed)
    latency_NK, order = latencies(40, 4, seed), np.random.default_rng(seed).permutation(40)
    reference = clustered(mean_Nd, covariance_Ndd, latency_NK)
    permuted = clustered(mean_Nd[order], covariance_Ndd[order], latency_NK[order])
    assert permuted.edge_of_client_N.tolist() == reference.edge_of_client_N[order].tolist()
    assert permuted.cluster_of_client_N.tolist() == reference.cluster_of_client_N[order].tolist()
    assert order[permuted.medoid_of_cluster_K].tolist() == reference.medoid_of_cluster_K.tolist()


def test_clients_too_slow_for_every_edge_are_parked() -> None:
    mean_Nd, covariance_Ndd, _ = planted_fingerprints(12, 2, apart=2.0)
    latency_NK = latencies(12, 2)
    latency_NK[4] = 3.0
    clusters = clustered(mean_Nd, covariance_Ndd, latency_NK, max_latency_seconds=2.0)
    assert (clusters.edge_of_client_N == PARKED).nonzero()[0].tolist() == [4]
    assert clusters.cluster_of_client_N[4] != NONE, "it behaves like the others all the same"


def test_where_places_are_scarce_who_is_least_trusted_is_parked() -> None:
    mean_Nd, covariance_Ndd = random_gaussians(1, 3)
    alike = (np.repeat(mean_Nd, 6, axis=0), np.repeat(covariance_Ndd, 6, axis=0))
    trust_N = np.array([0.9, 0.4, 0.8, 0.5, 1.0, 0.7])
    clusters = clustered(*alike, np.ones((6, 2)), capacity=2, trust_N=trust_N)
    assert (clusters.edge_of_client_N == PARKED).nonzero()[0].tolist() == [1, 3]


@pytest.mark.parametrize("form", ["projected", "exact"])
def test_of_clients_that_are_alike_a_trusted_one_stands_for_the_cluster(form: str) -> None:
    states_NQD, _, base_QD = planted_states(12, 2, apart=3.0)
    states_NQD = np.repeat(states_NQD, 2, axis=0)  # clients 2i and 2i + 1 answer alike
    latency_NK, even_N = latencies(24, 2), np.arange(24) % 2 == 0

    def medoids(trust_N: np.ndarray) -> np.ndarray:
        if form == "exact":
            arguments = (list(states_NQD), latency_NK, trust_N, None, ClusteringConfig(), 0, 0)
            return cluster_and_assign_exact(*arguments).medoid_of_cluster_K
        frame = make_frame(base_QD, base_QD.shape[1])
        gaussians = stack([fingerprint(states_QD, frame) for states_QD in states_NQD])
        return clustered(*gaussians, latency_NK, trust_N=trust_N).medoid_of_cluster_K

    plain = medoids(np.ones(24))
    assert (plain % 2 == 0).all()
    assert medoids(np.where(even_N, 0.4, 1.0)).tolist() == (plain + 1).tolist()


def test_random_clusters_know_nothing_of_behaviour_but_are_as_large() -> None:
    mean_Nd, covariance_Ndd, group_N = planted_fingerprints(200, 4, apart=2.0)
    arguments = (mean_Nd, covariance_Ndd, latencies(200, 4))
    meant = clustered(*arguments, capacity=100, config=BEHAVIOUR_ONLY)
    random = clustered(*arguments, capacity=100, config=BEHAVIOUR_ONLY, medoids="random")
    assert adjusted_rand_index(meant.cluster_of_client_N, group_N) == 1.0
    assert abs(adjusted_rand_index(random.cluster_of_client_N, group_N)) < 0.05
    assert sorted(np.bincount(random.cluster_of_client_N)) == sorted(np.bincount(meant.cluster_of_client_N))
    own = random.divergence_NK[np.arange(200), random.cluster_of_client_N].mean()
    assert own > 5 * meant.divergence_NK[np.arange(200), meant.cluster_of_client_N].mean(), "what is told is true"


def test_a_sample_finds_the_groups_of_all() -> None:
    mean_Nd, covariance_Ndd, group_N = planted_fingerprints(400, 4, apart=2.0)
    clusters = clustered(mean_Nd, covariance_Ndd, latencies(400, 4), sample=40)
    assert adjusted_rand_index(clusters.cluster_of_client_N, group_N) == 1.0
    again = clustered(mean_Nd, covariance_Ndd, latencies(400, 4), sample=40)
    assert again.medoid_of_cluster_K.tolist() == clusters.medoid_of_cluster_K.tolist()
    assert clusters.medoid_of_cluster_K.max() >= 40, "the sample is not just the first clients"


def test_2000_clients_and_20_edges_take_seconds() -> None:
    mean_Nd, covariance_Ndd = random_gaussians(2000, 32)
    group_N = np.arange(2000) % 20
    mean_Nd += 5 * np.random.default_rng(1).normal(size=(20, 32))[group_N]
    begin = time.process_time()
    clusters = clustered(mean_Nd, covariance_Ndd, latencies(2000, 20))
    assert time.process_time() - begin < 30
    assert adjusted_rand_index(clusters.cluster_of_client_N, group_N) > 0.99
    assert np.bincount(clusters.edge_of_client_N, minlength=20).max() <= default_capacity(2000, 20)
