"""Label inference: the gradient at the second cut points where the label is, and GRADIENT_UP shows it.

Attack (e) of methods.md 1.15 (I). Shapes: T tokens, N texts, M public texts, D hidden width, K classes.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from elsa_ray.privacy.linear_probe import fitted_ridge
from elsa_ray.privacy.rows import summed_by_text
from elsa_ray.privacy.success import Success, success
from elsa_ray.tasks.seeds import numpy_generator

_STARTS, _ITERATIONS = 8, 50


def gradient_directions(rows_TD: Tensor, text_T: Tensor, num_texts: int) -> Tensor:
    """Return the direction [N, D] of the sum of each text's gradient rows; its length depends on the batch's size."""
    return F.normalize(summed_by_text(rows_TD.double(), text_T, num_texts), dim=1)


def label_inference_from_public_texts(
    public_MD: Tensor, public_label_M: Tensor, seen_ND: Tensor, true_label_N: Tensor
) -> Success:
    """Learn labels from the gradients of public texts, computed with the head that the attacker knows, and tell others.

    Args:
        public_MD: gradient directions of public texts.
        public_label_M: their labels.
        seen_ND: gradient directions of the private texts, as seen.
        true_label_N: their labels.
    """
    return success(fitted_ridge(public_MD, public_label_M).classes(seen_ND), true_label_N)


def label_inference_by_clusters(seen_ND: Tensor, true_label_N: Tensor, num_classes: int, seed: int) -> Success:
    """Cluster gradient directions, and name the clusters by the one-to-one match that makes the most hits.

    An upper bound: the attacker needs no public text and no key, but the names of the clusters are given to it.

    Args:
        seen_ND: gradient directions of the private texts, as seen.
        true_label_N: their labels.
        num_classes: K, also the number of clusters.
        seed: of the clusters' first centres.
    """
    cluster_N = spherical_clusters(seen_ND, num_classes, seed)
    hits_KK = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    hits_KK.index_put_((cluster_N, true_label_N), torch.ones_like(cluster_N), accumulate=True)
    _, label_of_cluster = linear_sum_assignment(hits_KK.numpy(), maximize=True)
    return success(torch.from_numpy(np.asarray(label_of_cluster))[cluster_N], true_label_N)


def spherical_clusters(directions_ND: Tensor, num_clusters: int, seed: int) -> Tensor:
    """Return the cluster [N] of each direction: k-means by cosine, the tightest of a few seeded starts."""
    directions_ND = F.normalize(directions_ND.double(), dim=1)
    generator = numpy_generator(seed, "privacy", "clusters")
    runs = [_lloyd(directions_ND, _spread_centres(directions_ND, num_clusters, generator)) for _ in range(_STARTS)]
    _, best = max(enumerate(runs), key=lambda run: (run[1][1], -run[0]))
    return best[0]


def _lloyd(directions_ND: Tensor, centres_KD: Tensor) -> tuple[Tensor, float]:
    """Return the clusters [N] that k-means comes to, and their summed cosines to their centres."""
    for _ in range(_ITERATIONS):
        cosine_N, cluster_N = (directions_ND @ centres_KD.T).max(dim=1)
        sums_KD = summed_by_text(directions_ND, cluster_N, len(centres_KD))
        is_empty_K1 = cluster_N.bincount(minlength=len(centres_KD))[:, None] == 0
        moved_KD = torch.where(is_empty_K1, centres_KD, F.normalize(sums_KD, dim=1))
        if torch.equal(moved_KD, centres_KD):
            break
        centres_KD = moved_KD
    return cluster_N, float(cosine_N.sum())


def _spread_centres(directions_ND: Tensor, num_clusters: int, generator: np.random.Generator) -> Tensor:
    """Return first centres as k-means++ draws them: far ones are likelier."""
    chosen = [int(generator.integers(len(directions_ND)))]
    for _ in range(num_clusters - 1):
        distance_N = (1 - (directions_ND @ directions_ND[chosen].T).max(dim=1).values).clamp(min=0).numpy()
        total = distance_N.sum()
        likely_N = distance_N / total if total > 0 else np.full(len(distance_N), 1 / len(distance_N))
        chosen.append(int(generator.choice(len(directions_ND), p=likely_N)))
    return directions_ND[chosen]
