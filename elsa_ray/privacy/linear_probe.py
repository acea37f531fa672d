"""A linear probe: what a ridge regression tells of a text from vectors that were seen of it.

Attack (d) of methods.md 1.15 (I). Shapes: N texts, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from elsa_ray.privacy.success import Success, success
from elsa_ray.tasks.seeds import numpy_generator

PENALTY = 0.1
"""Of the squared weights of standardised features, relative to the mean squared error."""


@dataclass(frozen=True)
class RidgeClassifier:
    """One linear score a class; the greatest wins, of equals the lowest class.

    Attributes:
        mean_D, scale_D: standardise the features.
        weights_DK, bias_K: of the scores.
    """

    mean_D: Tensor
    scale_D: Tensor
    weights_DK: Tensor
    bias_K: Tensor

    def classes(self, features_ND: Tensor) -> Tensor:
        """Return the class [N] of each row."""
        standard_ND = (features_ND.double() - self.mean_D) / self.scale_D
        return (standard_ND @ self.weights_DK + self.bias_K).argmax(dim=1)


def fitted_ridge(features_ND: Tensor, class_N: Tensor) -> RidgeClassifier:
    """Fit one score a class against the rest, in closed form."""
    features_ND = features_ND.double()
    mean_D, scale_D = features_ND.mean(dim=0), features_ND.std(dim=0, unbiased=False)
    scale_D = torch.where(scale_D > 0, scale_D, torch.ones_like(scale_D))
    standard_ND = (features_ND - mean_D) / scale_D
    target_NK = F.one_hot(class_N).double()
    bias_K = target_NK.mean(dim=0)
    count, width = standard_ND.shape
    gram_DD = standard_ND.T @ standard_ND + PENALTY * count * torch.eye(width, dtype=torch.float64)
    weights_DK = torch.linalg.solve(gram_DD, standard_ND.T @ (target_NK - bias_K))
    return RidgeClassifier(mean_D, scale_D, weights_DK, bias_K)


def linear_probe(features_ND: Tensor, attribute_N: Tensor, seed: int, *, train_share: float = 0.5) -> Success:
    """Learn a sensitive attribute from some of the texts and tell it of the others.

    The attacker is granted the attribute of the texts that it learns from: an upper bound on what it learns without.

    Args:
        features_ND: such as the mean of each text's seen states.
        attribute_N: label, source or length class of each text, as whole numbers >= 0.
        seed: of the random division.
        train_share: of the texts, rounded; at least one text on each side.
    """
    order_N = torch.from_numpy(numpy_generator(seed, "privacy", "probe").permutation(len(attribute_N)))
    num_train = min(max(round(train_share * len(order_N)), 1), len(order_N) - 1)
    train, test = order_N[:num_train], order_N[num_train:]
    classifier = fitted_ridge(features_ND[train], attribute_N[train])
    return success(classifier.classes(features_ND[test]), attribute_N[test])
