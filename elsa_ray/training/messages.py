"""Between a cohort's padded tensor and its members' payloads: each member's own batch, its own padding, no more.

Where a member's codecs are calibrated in this work item, the first message of each cut carries the calibration too: the
sender makes it of the real tokens of that very message. Where texts are set apart for calibrations, that is the message
of a forward pass of their own, in front of the first step.
Shapes: C members, B texts, S tokens of the cohort; B_c, S_c of a member; D hidden width; N = C·B.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from elsa_ray.codecs.chain import CodecChain, Memory, matching_memory
from elsa_ray.codecs.codec import CodecContext, Maker
from elsa_ray.codecs.wire import decode_calibrations, decode_hidden, encode_calibrations, encode_hidden
from elsa_ray.training.cohort import CALIBRATION, STEP_ROLES, ByteMeter, Cohort
from elsa_ray.training.failure import Whereabouts
from elsa_ray.training.memory import CutMemory
from elsa_ray.training.recipe import Recipe
from elsa_ray.world.roles import Role

Payloads = list[tuple[bytes, ...] | None]
"""One message a member: its payloads, calibrations first; None for a member without a batch."""

Coding = Callable[[], AbstractContextManager[None]]
"""Opened around encoding and decoding."""

FIRST_CUT = (Role.ACTIVATION_UP, Role.GRADIENT_DOWN)
MAKERS = {
    Role.ACTIVATION_UP: frozenset({Maker.CLIENT, Maker.SENDER}),
    Role.ACTIVATION_DOWN: frozenset({Maker.SENDER}),
}
"""Who makes a calibration at the first message of each cut."""


class CohortMessenger:
    """Encodes and decodes the step messages of one cohort at one of its ends.

    Args:
        cohort: whose.
        recipe: seed and chains.
        width: D.
        meter: counts what this end encodes.
        memories: what this end holds of each member; nothing by default.
        where: is told for whom this end computes.
        coding: opened around all encoding and decoding, by whoever measures it.
    """

    def __init__(
        self,
        cohort: Cohort,
        recipe: Recipe,
        width: int,
        meter: ByteMeter,
        memories: Sequence[CutMemory] | None = None,
        where: Whereabouts | None = None,
        coding: Coding = nullcontext,
    ) -> None:
        self._cohort, self._recipe, self._width, self._meter = cohort, recipe, width, meter
        self._coding = coding
        self._where = where if where is not None else Whereabouts()
        self.memories = list(memories) if memories is not None else [CutMemory()] * len(cohort.members)

    def encode(
        self, role: Role, step: int, values_NSD: Tensor, sizes: Sequence[tuple[int, int]], lengths_CB: Tensor
    ) -> Payloads:
        """Encode each member's rows of ``values_NSD``; ``sizes`` are (B_c, S_c), (0, 0) for none.

        Of the pass ``CALIBRATION`` states go up only where the edge needs them for calibrations of its own, and none
        come back.
        """
        values_CBSD = values_NSD.detach().reshape(len(sizes), -1, *values_NSD.shape[1:])
        with self._coding():
            return [
                self._encode_member(role, step, position, values_CBSD[position, :batch, :length], lengths_CB[position])
                if batch
                else None
                for position, (batch, length) in enumerate(sizes)
            ]

    def _encode_member(
        self, role: Role, step: int, position: int, own_BSD: Tensor, lengths_B: Tensor
    ) -> tuple[bytes, ...]:
        with self._of_member(role, step, position):
            return self._encoded(role, step, position, own_BSD, lengths_B)

    def _encoded(self, role: Role, step: int, position: int, own_BSD: Tensor, lengths_B: Tensor) -> tuple[bytes, ...]:
        member, chain = self._cohort.members[position], self._recipe.chains.of_step(role)
        context = self._recipe.context(member.key, role, step)
        lengths_B = lengths_B[: len(own_BSD)]
        calibrations: list[bytes] = []
        if self._calibrates(role, step, position):
            calibrations = self._calibrate(role, position, own_BSD, lengths_B, context)
        if step == CALIBRATION and not (role is Role.ACTIVATION_UP and self._recipe.chains.edge_calibrates):
            return tuple(calibrations)
        sent_lengths = lengths_B if role is Role.ACTIVATION_UP else None
        payload = encode_hidden(chain, role, own_BSD, context, sent_lengths, self._memory(role, position))
        planned = (
            member.planned_calibration_states
            if step == CALIBRATION
            else int(member.planned_step_bytes[step, STEP_ROLES.index(role)])
        )
        self._meter.charge(role, payload, planned, exact=chain.size_is_exact, who=f"{member.key} step {step}")
        return (*calibrations, payload)

    def decode(
        self, role: Role, step: int, payloads: Payloads, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor, tuple[tuple[int, int], ...]]:
        """Decode the members' payloads into one tensor, zero outside of each member's own batch.

        Returns:
            values_NSD, the texts' lengths_CB (zeros but for activation_up), and each member's (B_c, S_c).
        """
        with self._coding():
            decoded = [
                None if message is None else self._decode_member(role, step, position, message)
                for position, message in enumerate(payloads)
            ]
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

    def _decode_member(
        self, role: Role, step: int, position: int, message: tuple[bytes, ...]
    ) -> tuple[Tensor, Tensor | None]:
        with self._of_member(role, step, position):
            return self._decoded(role, step, position, message)

    def _decoded(
        self, role: Role, step: int, position: int, message: tuple[bytes, ...]
    ) -> tuple[Tensor, Tensor | None]:
        member, chain = self._cohort.members[position], self._recipe.chains.of_step(role)
        context = self._recipe.context(member.key, role, step)
        *calibrations, payload = message
        if self._calibrates(role, step, position):
            self.take_calibrations(role, step, position, calibrations)
        return decode_hidden(chain, role, payload, context, self._memory(role, position))

    def take_calibrations(self, role: Role, step: int, position: int, calibrations: Sequence[bytes]) -> None:
        """Remember the keys and bases that have come from the other end, in front of the first message of a cut."""
        chain = self._recipe.chains.of_step(role)
        context = self._recipe.context(self._cohort.members[position].key, role, step)
        held = self.memories[position].second if role is Role.ACTIVATION_DOWN else ()
        with self._of_member(role, step, position):
            memory = decode_calibrations(chain, calibrations, held, self._width, MAKERS[role], context)
        self._remember(role, position, memory)

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
            with self._of_member(role, step, position), self._coding():
                passed_TD = chain.backward(rows_TD, gradient_TD, context, self._memory(role, position))
            result_CBSD[own] = passed_TD.reshape(batch, length, -1).to(result_CBSD.dtype)
        return result_CBSD.reshape(gradient_NSD.shape)

    def _of_member(self, role: Role, step: int, position: int) -> AbstractContextManager[None]:
        when = "calibration" if step == CALIBRATION else f"step {step}"
        return self._where.of_member(self._cohort.members[position].key, f"{role.label} of {when}")

    def _calibrates(self, role: Role, step: int, position: int) -> bool:
        first = 0 if self._recipe.chains.calibration_texts is None else CALIBRATION
        is_first_message = step == first and role in MAKERS
        return is_first_message and self._cohort.members[position].calibrates

    def _calibrate(
        self, role: Role, position: int, own_BSD: Tensor, lengths_B: Tensor, context: CodecContext
    ) -> list[bytes]:
        """Make the calibrations of real tokens, remember them, and return the payloads that carry them."""
        chain, makers = self._recipe.chains.of_step(role), MAKERS[role]
        is_real_BS = torch.arange(own_BSD.shape[1]) < lengths_B[:, None]
        held = self.memories[position].second if role is Role.ACTIVATION_DOWN else ()
        memory = chain.calibrate(own_BSD.cpu()[is_real_BS], context, held, makers)
        self._remember(role, position, memory)
        payloads = encode_calibrations(chain, memory, self._width, makers, context)
        member = self._cohort.members[position]
        planned = member.planned_calibrations[role is Role.ACTIVATION_DOWN]
        for payload, (own_role, num_bytes) in zip(payloads, planned, strict=True):
            self._meter.charge(own_role, payload, num_bytes, exact=True, who=f"{member.key}")
        return payloads

    def _remember(self, role: Role, position: int, memory: Memory) -> None:
        if role is Role.ACTIVATION_UP:
            shared = made_by_client(self._recipe.chains.activation, memory)
            self.memories[position] = CutMemory(memory, shared)
        else:
            self.memories[position] = replace(self.memories[position], second=memory)

    def _memory(self, role: Role, position: int) -> Memory:
        memories, chains = self.memories[position], self._recipe.chains
        memory = memories.first if role in FIRST_CUT else memories.second
        return memory if role in MAKERS else matching_memory(chains.activation, chains.gradient, memory)


def made_by_client(chain: CodecChain, memory: Memory) -> Memory:
    """Return what of the first cut's calibrations serves the second cut too."""
    return tuple(
        own if stage.calibration is not None and stage.calibration.maker is Maker.CLIENT else ()
        for stage, own in zip(chain.stages, memory, strict=True)
    )
