"""Planted groups of clients, and how well a clustering finds them.

Shapes: N clients, Q probes, D hidden width, C classes, d projected width, G groups.
"""

from __future__ import annotations

from math import comb

import numpy as np

from elsa_ray.clustering.fingerprints import fingerprint, make_frame, stack


def planted_states(
    num_clients: int, num_groups: int, *, num_probes: int = 40, width: int = 12, apart: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return states [N, Q, D], the group of each client, and the base model's states [Q, D].

    Clients of a group answer as the base model does, shifted by the group's own direction, each with small noise.
    """
    generator = np.random.default_rng(seed)
    base_QD = generator.normal(size=(num_probes, width))
    shift_GD = np.linalg.qr(generator.normal(size=(width, width)))[0][:num_groups] * apart
    group_N = generator.permutation(np.arange(num_clients) % num_groups)
    noise_NQD = 0.3 * generator.normal(size=(num_clients, num_probes, width))
    return base_QD + shift_GD[group_N][:, None] + noise_NQD, group_N, base_QD


def planted_fingerprints(
    num_clients: int, num_groups: int, *, apart: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean [N, d], covariance [N, d, d] in a frame of all 12 dimensions, and the group of each client."""
    states_NQD, group_N, base_QD = planted_states(num_clients, num_groups, apart=apart, seed=seed)
    frame = make_frame(base_QD, base_QD.shape[1])
    return *stack([fingerprint(states_QD, frame) for states_QD in states_NQD]), group_N


def random_gaussians(num_clients: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return means and well-conditioned covariances."""
    generator = np.random.default_rng(seed)
    factor_Ndd = generator.normal(size=(num_clients, d, 2 * d))
    return generator.normal(size=(num_clients, d)), factor_Ndd @ factor_Ndd.transpose(0, 2, 1) / (2 * d)


def adjusted_rand_index(first_N: np.ndarray, second_N: np.ndarray) -> float:
    """Return 1 for the same partition, and 0 on average for unrelated ones (Hubert and Arabie)."""
    table: dict[tuple[int, int], int] = {}
    for pair in zip(first_N.tolist(), second_N.tolist(), strict=True):
        table[pair] = table.get(pair, 0) + 1
    together = sum(comb(count, 2) for count in table.values())
    in_first = sum(comb(int(count), 2) for count in np.unique(first_N, return_counts=True)[1])
    in_second = sum(comb(int(count), 2) for count in np.unique(second_N, return_counts=True)[1])
    expected = in_first * in_second / comb(len(first_N), 2)
    return float((together - expected) / ((in_first + in_second) / 2 - expected))


def softmax(logits: np.ndarray) -> np.ndarray:
    exponential = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponential / exponential.sum(axis=-1, keepdims=True)


def honest_answers(
    num_clients: int, *, alpha: float, seed: int, num_probes: int = 64, num_classes: int = 6, noise: float = 0.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return answers [N, Q, C] of label-skewed clients, the logits [Q, C] that they share, and their biases [N, C].

    A client's bias is the logarithm of its own share of each class, drawn from a Dirichlet distribution.
    """
    generator = np.random.default_rng(seed)
    label_Q = generator.integers(0, num_classes, num_probes)
    shared_QC = 0.7 * generator.normal(size=(num_probes, num_classes))
    shared_QC[np.arange(num_probes), label_Q] += 3 * generator.random(num_probes)
    share_NC = generator.dirichlet([alpha] * num_classes, num_clients)
    bias_NC = np.log((share_NC + 0.02) * num_classes)
    noise_NQC = noise * generator.normal(size=(num_clients, num_probes, num_classes))
    return softmax(shared_QC + bias_NC[:, None] + noise_NQC), shared_QC, bias_NC
