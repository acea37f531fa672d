"""A client pool: many clients, simulated by one worker. It holds the texts; nothing of them leaves it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from elsa_ray.aggregation.weighted import is_finite
from elsa_ray.config.protocol import ProtocolConfig
from elsa_ray.model.adapters import Adapters, AdapterTensor
from elsa_ray.model.split import Part, Split
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.protocols.wall_time import WallStage
from elsa_ray.runtime.failure import naming
from elsa_ray.runtime.stopwatch import Stopwatch
from elsa_ray.tasks.task import Task
from elsa_ray.training.batches import calibration_examples, examples_of_steps
from elsa_ray.training.client import ClientResult, EdgeRequest, train_clients
from elsa_ray.training.cohort import ByteMeter, Cohort, Member
from elsa_ray.training.cuts import logits_over_cuts
from elsa_ray.training.evaluation import Score, evaluation_pieces, score_piece
from elsa_ray.training.evidence import encode_report, evidence_of, report_num_bytes, told_evidence
from elsa_ray.training.failure import Doing, Whereabouts
from elsa_ray.training.memory import ClientMemory, CutMemory
from elsa_ray.training.messages import Payloads
from elsa_ray.training.misbehaviour import needs_memory, sent_adapters
from elsa_ray.training.recipe import Recipe
from elsa_ray.world.plan import WorkKey
from elsa_ray.world.roles import Role


@dataclass(frozen=True)
class TrainedCohort:
    """What the clients of a cohort give back, in the order of the members.

    Attributes:
        reports: fingerprint payloads, where clients report their answers to the probes themselves; else None.
        losses: mean training losses.
        memories: what the clients remember.
        meter: what was encoded.
        diverged: members whose loss or adapters are not finite.
    """

    reports: list[bytes | None]
    losses: dict[WorkKey, float]
    memories: list[ClientMemory]
    meter: ByteMeter
    diverged: tuple[WorkKey, ...] = ()


Uploads = list[bytes | None]
"""adapter_up payloads in the order of the members; None of members that have failed before."""
AskEdge = Callable[[EdgeRequest], Awaitable[Payloads]]


class ClientPool:
    """Trains cohorts and scores pieces of the test set.

    Args:
        model: the frozen backbone.
        recipe: seed, optimiser, chains.
        task: texts and their partition.
        watch: of the actor.
    """

    def __init__(self, model: TripartiteModel, recipe: Recipe, task: Task, watch: Stopwatch | None = None) -> None:
        self.watch = watch if watch is not None else Stopwatch(alone=False)
        self._model, self._recipe, self._task = model, recipe, task
        self._pieces = evaluation_pieces(task.test)
        self._under_way: dict[tuple[str, int], Whereabouts] = {}

    async def train(
        self,
        cohort: Cohort,
        adapter_down: Sequence[bytes | None],
        memories: Sequence[ClientMemory],
        ask_edge: AskEdge,
    ) -> tuple[TrainedCohort, Uploads]:
        """Train a cohort, and return what came of it with the members' adapter_up payloads.

        Other cohorts may be worked on while ``ask_edge`` waits.

        Args:
            cohort: whose training.
            adapter_down: the members' models; None of members that have failed.
            memories: what the members remember.
            ask_edge: carries a request to the cohort's edge.

        Raises:
            ClientError: the computation of a member, or of all, failed.
            WorkerError: something failed that no client can help.
        """
        meter, where = ByteMeter(), Whereabouts(cohort.active_keys)
        self._under_way[cohort.ticket] = where
        try:
            with naming("training", cohort.active_keys), where.at("training"):
                held = self._model.layout.part(cohort.split, Part.FRONT, Part.BACK)
                with self.watch.spend(WallStage.CODEC):
                    received = [
                        self._receive(held, *pair, where) for pair in zip(cohort.members, adapter_down, strict=True)
                    ]
                trained = await self._drive(cohort, received, memories, ask_edge, meter, where)
            with self.watch.spend(WallStage.COMPUTE):
                return self._send(cohort, held, received, trained, memories, meter, where)
        finally:
            del self._under_way[cohort.ticket]

    def doing(self, ticket: tuple[str, int]) -> Doing | None:
        """Return what a cohort is doing right now; None if it is not here. Safe to ask from another thread."""
        where = self._under_way.get(ticket)
        return where.now() if where is not None else None

    def _send(
        self,
        cohort: Cohort,
        held: Sequence[AdapterTensor],
        received: Sequence[Adapters],
        trained: Sequence[ClientResult],
        memories: Sequence[ClientMemory],
        meter: ByteMeter,
        where: Whereabouts,
    ) -> tuple[TrainedCohort, Uploads]:
        """Return what the members send after their training."""
        uploads: Uploads = []
        reports: list[bytes | None] = []
        remembered: list[ClientMemory] = []
        losses, diverged = {}, []
        for member, own_received, result, memory in zip(cohort.members, received, trained, memories, strict=True):
            if member.key in cohort.failed:
                uploads.append(None)
                reports.append(None)
                remembered.append(memory)
                continue
            with naming("adapter_up", [member.key]), where.at("adapter_up"), where.of_member(member.key, "encoding"):
                with self.watch.coding():
                    payload, after = self._upload(held, member, own_received, result, memory)
                exact, planned = self._recipe.chains.of_upload.size_is_exact, member.planned_adapter_bytes[1]
                meter.charge(Role.ADAPTER_UP, payload, planned, exact=exact, who=str(member.key))
                uploads.append(payload)
                remembered.append(after)
                reports.append(self._report(member, result, meter))
            losses[member.key] = result.mean_loss
            if not (math.isfinite(result.mean_loss) and is_finite(result.adapters)):
                diverged.append(member.key)
        return TrainedCohort(reports, losses, remembered, meter, tuple(diverged)), uploads

    def _receive(
        self, held: Sequence[AdapterTensor], member: Member, payload: bytes | None, where: Whereabouts
    ) -> Adapters:
        if payload is None:
            return {tensor.name: torch.zeros(tensor.shape, dtype=self._recipe.adapter_dtype) for tensor in held}
        context = self._recipe.context(member.key, Role.ADAPTER_DOWN)
        with where.of_member(member.key, "adapter_down"):
            return self._recipe.unpack(Role.ADAPTER_DOWN, held, payload, context)

    def _upload(
        self,
        held: Sequence[AdapterTensor],
        member: Member,
        received: Adapters,
        result: ClientResult,
        memory: ClientMemory,
    ) -> tuple[bytes, ClientMemory]:
        """Encode what a client sends, honest or not; returns the payload and what the client then remembers."""
        recipe = self._recipe
        deed = recipe.misbehaviour_of(member.key)
        sent = sent_adapters(deed, received, result.adapters, memory.first_sent, member.key, recipe.seed)
        context = recipe.context(member.key, Role.ADAPTER_UP)
        payload, errors = recipe.pack_upload(held, received, sent, context, memory.errors)
        first_sent = memory.first_sent if memory.first_sent is not None else sent
        calibration = result.calibration if recipe.chains.remembers else CutMemory()
        return payload, ClientMemory(calibration, errors, first_sent if needs_memory(deed) else None)

    def _report(self, member: Member, result: ClientResult, meter: ByteMeter) -> bytes | None:
        """Encode the client's own answers to the probes, true or not."""
        if result.answers is None:
            return None
        recipe = self._recipe
        true = evidence_of(result.answers, recipe)
        told = told_evidence(recipe.misbehaviour_of(member.key), true, member.key, recipe)
        payload = encode_report(told, recipe.context(member.key, Role.FINGERPRINT))
        assert recipe.inquiry is not None
        planned = report_num_bytes(recipe.inquiry.report_shapes(self._model.shape.hidden_size))
        meter.charge(Role.FINGERPRINT, payload, planned, exact=True, who=str(member.key))
        return payload

    def score(self, adapters: Adapters, piece: int, split: Split | None = None) -> Score:
        """Score a global model on one piece of the test set: as a whole, or cut, with codecs at its cuts."""
        task, recipe, model = self._task, self._recipe, self._model

        def over_cuts(ids_NS: Tensor, mask_NS: Tensor, stacked: Adapters) -> Tensor:
            assert split is not None
            return logits_over_cuts(model, stacked, recipe, split, ids_NS, mask_NS, piece)

        logits_of = None if split is None else over_cuts
        indices = self._pieces[piece]
        with self.watch.spend(WallStage.COMPUTE):
            return score_piece(model, adapters, task.test, indices, recipe.pad_id, task.num_labels, logits_of)

    @property
    def num_pieces(self) -> int:
        """Pieces of the test set."""
        return len(self._pieces)

    async def _drive(
        self,
        cohort: Cohort,
        received: Sequence[Adapters],
        memories: Sequence[ClientMemory],
        ask_edge: AskEdge,
        meter: ByteMeter,
        where: Whereabouts,
    ) -> list[ClientResult]:
        recipe, task, computing = self._recipe, self._task, partial(self.watch.spend, WallStage.COMPUTE)
        with computing():
            examples = [
                self._examples(member, where, is_masked=member.key in cohort.failed) for member in cohort.members
            ]
            calibrations = [memory.calibration for memory in memories]
            training = train_clients(
                self._model,
                cohort,
                recipe,
                task.train,
                examples,
                received,
                meter,
                memories=calibrations,
                calibration_examples_of_members=self._calibration_examples(cohort, where),
                where=where,
                coding=self.watch.coding,
            )
        try:
            with computing():
                request = next(training)
            while True:
                with where.waiting(f"the edge's answer to {request.call.value} of step {request.step}"):
                    answer = await ask_edge(request)
                with computing():
                    request = training.send(answer)
        except StopIteration as end:
            results: list[ClientResult] = end.value
            return results

    def _calibration_examples(self, cohort: Cohort, where: Whereabouts) -> list[npt.NDArray[np.int64]]:
        """Return the examples that each member's new keys and bases are made of, where texts are set apart for it."""
        num_texts, examples = self._recipe.chains.calibration_texts, []
        for member in cohort.members:
            own = np.zeros(0, np.int64)
            if num_texts is not None and member.calibrates and member.key not in cohort.failed:
                with where.of_member(member.key, "its examples"):
                    indices = self._task.partition[member.key.client]
                    own = calibration_examples(member.key, indices, num_texts, self._recipe.seed)
            examples.append(own)
        return examples

    def _examples(self, member: Member, where: Whereabouts, *, is_masked: bool) -> npt.NDArray[np.int64]:
        """Return the member's examples [T, B] by step; of a masked one no step."""
        protocol: ProtocolConfig = self._recipe.protocol
        if is_masked:
            return np.zeros((0, protocol.batch_size), np.int64)
        with where.of_member(member.key, "its examples"):
            return examples_of_steps(member.key, self._task.partition[member.key.client], protocol, self._recipe.seed)
