"""A learned inverter: a small network that is trained to tell the token from what is seen of it.

Attack (b) of methods.md 1.15 (I). Shapes: T tokens, V candidate tokens, D hidden width, H hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from elsa_ray.privacy.rows import TokenRows, joined
from elsa_ray.privacy.success import Success, success
from elsa_ray.tasks.seeds import derive_seed

Channel = Callable[[Tensor, int], Tensor]
"""What the attacker would see of rows [T, D] sent through the codec with its own key of some number."""


@dataclass(frozen=True)
class InverterBudget:
    """How large the network is and how long it trains; the same for every codec."""

    hidden_units: int = 256
    steps: int = 800
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.01


@dataclass(frozen=True)
class Inverter:
    """A trained network with one hidden layer.

    Attributes:
        mean_D, scale_D: standardise the input.
        weights: hidden weights [D, H] and biases [H], output weights [H, V] and biases [V].
        ids_V: the tokens that it can tell.
    """

    mean_D: Tensor
    scale_D: Tensor
    weights: tuple[Tensor, Tensor, Tensor, Tensor]
    ids_V: Tensor

    def tokens(self, seen_TD: Tensor) -> Tensor:
        """Return the most likely token [T] of each row."""
        standard_TD = (seen_TD.float() - self.mean_D) / self.scale_D
        return self.ids_V[_scores(standard_TD, self.weights).argmax(dim=1)]


def own_pairs(public: TokenRows, channel: Channel, num_keys: int) -> TokenRows:
    """Return public rows as they would be seen under keys of the attacker's own choosing, once for each key.

    The client's key is unknown, so what is learned from these pairs must hold for any key.
    """
    return joined(
        [TokenRows(channel(public.rows_TD, number), public.ids_T, public.text_T) for number in range(num_keys)]
    )


def trained_inverter(pairs: TokenRows, seed: int, budget: InverterBudget | None = None) -> Inverter:
    """Train a network on pairs of what is seen and the token, all of them the attacker's own.

    Args:
        pairs: from ``own_pairs``.
        seed: of the first weights and the batches.
        budget: size and length of the training.
    """
    budget = budget or InverterBudget()
    generator = torch.Generator().manual_seed(derive_seed(seed, "privacy", "inverter") % 2**63)
    ids_V, target_T = pairs.ids_T.unique(return_inverse=True)
    mean_D, scale_D = pairs.rows_TD.float().mean(dim=0), pairs.rows_TD.float().std(dim=0, unbiased=False)
    scale_D = torch.where(scale_D > 0, scale_D, torch.ones_like(scale_D))
    standard_TD = (pairs.rows_TD.float() - mean_D) / scale_D
    sizes = (standard_TD.shape[1], budget.hidden_units, len(ids_V))
    weights = _first_weights(sizes, generator)
    optimizer = torch.optim.AdamW(weights, lr=budget.learning_rate, weight_decay=budget.weight_decay)
    for step in range(budget.steps):
        for group in optimizer.param_groups:
            group["lr"] = budget.learning_rate * (1 - step / budget.steps)
        batch_B = torch.randint(len(pairs), (budget.batch_size,), generator=generator)
        loss = F.cross_entropy(_scores(standard_TD[batch_B], weights), target_T[batch_B])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    first, first_bias, second, second_bias = (tensor.detach() for tensor in weights)
    return Inverter(mean_D, scale_D, (first, first_bias, second, second_bias), ids_V)


def learned_inversion(inverter: Inverter, seen_TD: Tensor, true_ids_T: Tensor) -> Success:
    """Test an inverter on what it sees of a client; tokens that no public text has are missed."""
    return success(inverter.tokens(seen_TD), true_ids_T)


def _scores(standard_TD: Tensor, weights: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    first_DH, first_bias_H, second_HV, second_bias_V = weights
    return F.relu(standard_TD @ first_DH + first_bias_H) @ second_HV + second_bias_V


def _first_weights(sizes: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width, hidden, outputs = sizes
    first_DH = torch.randn(width, hidden, generator=generator) * math.sqrt(2 / width)
    second_HV = torch.randn(hidden, outputs, generator=generator) / math.sqrt(hidden)
    leaves = (first_DH, torch.zeros(hidden), second_HV, torch.zeros(outputs))
    for leaf in leaves:
        leaf.requires_grad_()
    return leaves
