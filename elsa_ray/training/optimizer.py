"""AdamW and SGD over a whole cohort at once: each tensor has the client first, and masked clients stand still."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from elsa_ray.config.protocol import OptimizerConfig

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # torch's defaults


class CohortOptimizer:
    """The members' optimisers; the update of each client is torch's own AdamW or SGD.

    A client is active in consecutive steps from the first on, so all active ones share one step count.

    Args:
        parameters: leaves [C, ...] by name; updated in place.
        config: kind and weight decay.
        learning_rate: of this round.
    """

    def __init__(self, parameters: Mapping[str, Tensor], config: OptimizerConfig, learning_rate: float) -> None:
        self._parameters = list(parameters.values())
        self._config = config
        self._learning_rate = learning_rate
        self._num_steps = 0
        if config.kind == "adamw":
            self._means = [torch.zeros_like(parameter) for parameter in self._parameters]
            self._squares = [torch.zeros_like(parameter) for parameter in self._parameters]

    @torch.no_grad()
    def step(self, active_C: Tensor) -> None:
        """Update the active members by their gradients, and clear all gradients."""
        self._num_steps += 1
        kept = None if bool(active_C.all()) else [parameter.clone() for parameter in self._parameters]
        gradients = [_gradient(parameter) for parameter in self._parameters]
        torch._foreach_mul_(self._parameters, self._decay_factor())
        if self._config.kind == "adamw":
            self._adamw(gradients)
        else:
            torch._foreach_add_(self._parameters, gradients, alpha=-self._learning_rate)
        if kept is not None:
            for parameter, before in zip(self._parameters, kept, strict=True):
                active = active_C.to(parameter.device).reshape(-1, *[1] * (parameter.dim() - 1))
                parameter.copy_(torch.where(active, parameter, before))
        for parameter in self._parameters:
            parameter.grad = None

    def _decay_factor(self) -> float:
        """Decoupled decay for both kinds: the weights shrink before the update."""
        return 1 - self._learning_rate * self._config.weight_decay

    def _adamw(self, gradients: list[Tensor]) -> None:
        torch._foreach_lerp_(self._means, gradients, 1 - BETA_1)
        torch._foreach_mul_(self._squares, BETA_2)
        torch._foreach_addcmul_(self._squares, gradients, gradients, 1 - BETA_2)
        correction_1 = 1 - BETA_1**self._num_steps
        correction_2 = 1 - BETA_2**self._num_steps
        roots = torch._foreach_sqrt(self._squares)
        torch._foreach_div_(roots, correction_2**0.5)
        torch._foreach_add_(roots, EPSILON)
        torch._foreach_addcdiv_(self._parameters, self._means, roots, -self._learning_rate / correction_1)


def _gradient(parameter: Tensor) -> Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
