"""The edge's side of a cohort's training: the middle blocks, with one copy of their adapters per member.

Shapes: C members, B texts, S tokens, N = C·B, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from elsa_ray.model.adapters import Adapters
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.training.client import EdgeCall, EdgeRequest, stack_adapters, unstack_adapters
from elsa_ray.training.cohort import CALIBRATION, ByteMeter, Cohort
from elsa_ray.training.failure import Whereabouts
from elsa_ray.training.memory import CutMemory
from elsa_ray.training.messages import Coding, CohortMessenger, Payloads
from elsa_ray.training.optimizer import CohortOptimizer
from elsa_ray.training.probing import decode_probe_states, encode_probe_states, probe_batch, probe_pieces
from elsa_ray.training.recipe import Recipe
from elsa_ray.world.roles import Role


class EdgeCohort:
    """Answers the requests of one cohort; SplitFed-V1: each member has its own middle adapters (methods.md 1.8).

    Args:
        model: the frozen backbone, of which only the middle blocks are used.
        cohort: whose.
        recipe: seed, optimiser, chains.
        adapters_of_members: the middle part's tensors of each member.
        meter: counts what the edge encodes.
        memories: the keys and bases that the edge holds of each member; nothing by default.
        coding: opened around all encoding and decoding, by whoever measures it.
    """

    def __init__(
        self,
        model: TripartiteModel,
        cohort: Cohort,
        recipe: Recipe,
        adapters_of_members: Sequence[Adapters],
        meter: ByteMeter,
        memories: Sequence[CutMemory] | None = None,
        coding: Coding = nullcontext,
    ) -> None:
        self._model, self._cohort, self._recipe, self._meter = model, cohort, recipe, meter
        self._where = Whereabouts(cohort.active_keys)
        width = model.shape.hidden_size
        self._messenger = CohortMessenger(cohort, recipe, width, meter, memories, self._where, coding)
        self._parameters = stack_adapters(adapters_of_members, model.device)
        round_index = cohort.members[0].key.round_index
        learning_rate = recipe.learning_rate(round_index)
        self._optimizer = CohortOptimizer(self._parameters, recipe.protocol.optimizer, learning_rate)
        self._between: tuple[Tensor, Tensor, tuple[tuple[int, int], ...], Tensor] | None = None

    def answer(self, request: EdgeRequest) -> Payloads:
        """Run the middle blocks forward or backward and return the members' payloads.

        Raises:
            ClientError: what a member has sent cannot be worked with.
        """
        with self._where.at(f"edge {request.call.value}, step {request.step}"):
            return self._answer(request)

    def _answer(self, request: EdgeRequest) -> Payloads:
        if request.call is EdgeCall.FORWARD:
            return self._forward(request.step, request.payloads)
        if request.call is EdgeCall.PROBE:
            return self._probe(request.step, request.payloads)
        if request.call is EdgeCall.CALIBRATE:
            return self._calibrate(request.payloads)
        return self._backward(request.step, request.payloads)

    def adapters(self) -> list[Adapters]:
        """Return each member's middle adapters as they are now."""
        return unstack_adapters(self._parameters, len(self._cohort.members))

    def memories(self) -> list[CutMemory]:
        """Return the keys and bases that the edge now holds of each member."""
        return self._messenger.memories

    @torch.no_grad()
    def _probe(self, ordinal: int, payloads: Payloads) -> Payloads:
        model, recipe, cohort = self._model, self._recipe, self._cohort
        assert recipe.inquiry is not None
        probes = recipe.inquiry.probes
        h1_NSD = decode_probe_states(cohort, recipe, ordinal, payloads, model)
        piece = probe_pieces(len(probes))[ordinal]
        _, mask_NS = probe_batch(probes, piece, len(cohort.members), recipe.pad_id)
        h2_NSD = model.middle(h1_NSD, mask_NS.to(model.device), self._parameters, cohort.split)
        return encode_probe_states(cohort, recipe, ordinal, h2_NSD, self._meter)

    @torch.no_grad()
    def _calibrate(self, payloads: Payloads) -> Payloads:
        """Take the clients' keys and bases; make those of the second cut of the states that came along, if any did."""
        if self._recipe.chains.edge_calibrates:
            _, h2_NSD, sizes, lengths_CB = self._through_middle(CALIBRATION, payloads)
            return self._messenger.encode(Role.ACTIVATION_DOWN, CALIBRATION, h2_NSD, sizes, lengths_CB)
        for position, message in enumerate(payloads):
            if message is not None:
                self._messenger.take_calibrations(Role.ACTIVATION_UP, CALIBRATION, position, message)
        return [None] * len(payloads)

    def _forward(self, step: int, payloads: Payloads) -> Payloads:
        h1_NSD, h2_NSD, sizes, lengths_CB = self._through_middle(step, payloads)
        self._between = (h1_NSD, h2_NSD, sizes, lengths_CB)
        return self._messenger.encode(Role.ACTIVATION_DOWN, step, h2_NSD, sizes, lengths_CB)

    def _through_middle(
        self, step: int, payloads: Payloads
    ) -> tuple[Tensor, Tensor, tuple[tuple[int, int], ...], Tensor]:
        """Return the decoded states, those behind the middle blocks, each member's (B_c, S_c), and lengths [C, B]."""
        model = self._model
        h1_NSD, lengths_CB, sizes = self._messenger.decode(
            Role.ACTIVATION_UP, step, payloads, model.dtype, model.device
        )
        position_S = torch.arange(h1_NSD.shape[1])
        mask_NS = position_S < lengths_CB.reshape(-1, 1)
        mask_NS[:, 0] = True
        h1_NSD.requires_grad_(torch.is_grad_enabled())
        h2_NSD = model.middle(h1_NSD, mask_NS.to(model.device), self._parameters, self._cohort.split)
        return h1_NSD, h2_NSD, sizes, lengths_CB

    def _backward(self, step: int, payloads: Payloads) -> Payloads:
        assert self._between is not None, "a backward request without a forward one"
        h1_NSD, h2_NSD, sizes, lengths_CB = self._between
        self._between = None
        g2_NSD, _, _ = self._messenger.decode(Role.GRADIENT_UP, step, payloads, h2_NSD.dtype, h2_NSD.device)
        h2_NSD.backward(self._messenger.through_codec(Role.ACTIVATION_DOWN, step, h2_NSD, g2_NSD, sizes))
        assert h1_NSD.grad is not None
        answer = self._messenger.encode(Role.GRADIENT_DOWN, step, h1_NSD.grad, sizes, lengths_CB)
        self._optimizer.step(torch.tensor([payload is not None for payload in payloads]))
        return answer
