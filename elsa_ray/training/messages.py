"""Between a cohort's padded tensor and its members' payloads: each member's own batch, its own padding, no more.

Shapes: C members, B texts, S tokens of the cohort; B_c, S_c of a member; D hidden width; N = C·B.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from elsa_ray.codecs.wire import decode_hidden, encode_hidden
from elsa_ray.training.cohort import STEP_ROLES, ByteMeter, Cohort
from elsa_ray.training.recipe import Recipe
from elsa_ray.world.roles import Role

Payloads = list[bytes | None]
"""One payload a member, None for a member without a batch."""


class CohortMessenger:
    """Encodes and decodes the step messages of one cohort at one of its ends.

    Args:
        cohort: whose.
        recipe: seed and chains.
        meter: counts what this end encodes.
    """

    def __init__(self, cohort: Cohort, recipe: Recipe, meter: ByteMeter) -> None:
        self._cohort, self._recipe, self._meter = cohort, recipe, meter

    def encode(
        self,
        role: Role,
        step: int,
        values_NSD: Tensor,
        sizes: Sequence[tuple[int, int]],
        lengths_CB: Tensor | None = None,
    ) -> Payloads:
        """Encode each member's rows of ``values_NSD``; ``sizes`` are (B_c, S_c), (0, 0) for none."""
        values_CBSD = values_NSD.detach().reshape(len(sizes), -1, *values_NSD.shape[1:])
        payloads: Payloads = []
        for position, ((batch, length), member) in enumerate(zip(sizes, self._cohort.members, strict=True)):
            if batch == 0:
                payloads.append(None)
                continue
            own_BSD = values_CBSD[position, :batch, :length]
            own_lengths = lengths_CB[position, :batch] if lengths_CB is not None else None
            context = self._recipe.context(member.key, role, step)
            payload = encode_hidden(self._recipe.chains.of_step(role), role, own_BSD, context, own_lengths)
            planned = int(member.planned_step_bytes[step, STEP_ROLES.index(role)])
            exact = self._recipe.chains.of_step(role).size_is_exact
            self._meter.charge(role, payload, planned, exact=exact, who=f"{member.key} step {step}")
            payloads.append(payload)
        return payloads

    def decode(
        self, role: Role, step: int, payloads: Payloads, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor, tuple[tuple[int, int], ...]]:
        """Decode the members' payloads into one tensor, zero outside of each member's own batch.

        Returns:
            values_NSD, the texts' lengths_CB (zeros but for activation_up), and each member's (B_c, S_c).
        """
        decoded: list[tuple[Tensor, Tensor | None] | None] = []
        for payload, member in zip(payloads, self._cohort.members, strict=True):
            if payload is None:
                decoded.append(None)
                continue
            context = self._recipe.context(member.key, role, step)
            decoded.append(decode_hidden(self._recipe.chains.of_step(role), role, payload, context))
        present = [item[0] for item in decoded if item is not None]
        batch, length = max(len(item) for item in present), max(item.shape[1] for item in present)
        values_CBSD = torch.zeros(len(payloads), batch, length, present[0].shape[-1], dtype=dtype)
        lengths_CB = torch.zeros(len(payloads), batch, dtype=torch.int64)
        sizes = []
        for position, item in enumerate(decoded):
            if item is None:
                sizes.append((0, 0))
                continue
            own_BSD, own_lengths = item
            values_CBSD[position, : own_BSD.shape[0], : own_BSD.shape[1]] = own_BSD.to(dtype)
            if own_lengths is not None:
                lengths_CB[position, : len(own_lengths)] = own_lengths
            sizes.append((own_BSD.shape[0], own_BSD.shape[1]))
        return values_CBSD.flatten(0, 1).to(device), lengths_CB, tuple(sizes)

    def through_codec(
        self,
        role: Role,
        step: int,
        sent_NSD: Tensor,
        gradient_NSD: Tensor,
        sizes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Return the gradient at the values that were sent from the one at their reconstruction.

        Args:
            role: of the message whose sender this end was.
            step: which.
            sent_NSD: the values before encoding.
            gradient_NSD: the gradient that came back.
            sizes: each member's (B_c, S_c).
        """
        chain = self._recipe.chains.of_step(role)
        if chain.is_straight_through:
            return gradient_NSD
        shape_CBSD = (len(sizes), -1, *sent_NSD.shape[1:])
        sent_CBSD, gradient_CBSD = sent_NSD.detach().reshape(shape_CBSD), gradient_NSD.reshape(shape_CBSD)
        result_CBSD = torch.zeros_like(gradient_CBSD)
        for position, ((batch, length), member) in enumerate(zip(sizes, self._cohort.members, strict=True)):
            own = (position, slice(batch), slice(length))
            rows_TD = sent_CBSD[own].reshape(batch * length, -1)
            gradient_TD = gradient_CBSD[own].reshape(batch * length, -1)
            context = self._recipe.context(member.key, role, step)
            passed_TD = chain.backward(rows_TD, gradient_TD, context)
            result_CBSD[own] = passed_TD.reshape(batch, length, -1).to(result_CBSD.dtype)
        return result_CBSD.reshape(gradient_NSD.shape)
