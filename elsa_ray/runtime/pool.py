"""A client pool: many clients, simulated by one worker. It holds the texts; nothing of them leaves it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from elsa_ray.config.protocol import ProtocolConfig
from elsa_ray.model.adapters import Adapters, AdapterTensor
from elsa_ray.model.split import Part, Split
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.protocols.protocol import Stage
from elsa_ray.runtime.failure import naming
from elsa_ray.runtime.stopwatch import Stopwatch
from elsa_ray.tasks.task import Task
from elsa_ray.training.batches import calibration_examples, examples_of_steps
from elsa_ray.training.client import ClientResult, EdgeRequest, train_clients
from elsa_ray.training.cohort import ByteMeter, Cohort, Member
from elsa_ray.training.cuts import logits_over_cuts
from elsa_ray.training.evaluation import Score, evaluation_pieces, score_piece
from elsa_ray.training.evidence import encode_report, evidence_of, report_num_bytes, told_evidence
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
        uploads: adapter_up payloads.
        reports: fingerprint payloads, where clients report their answers to the probes themselves; else None.
        losses: mean training losses.
        memories: what the clients remember.
        meter: what was encoded.
    """

    uploads: list[bytes]
    reports: list[bytes | None]
    losses: dict[WorkKey, float]
    memories: list[ClientMemory]
    meter: ByteMeter


AskEdge = Callable[[EdgeRequest], Awaitable[Payloads]]


class ClientPool:
    """Trains cohorts and scores pieces of the test set.

    Args:
        model: the frozen backbone.
        recipe: seed, optimiser, chains.
        task: texts and their partition.
    """

    def __init__(self, model: TripartiteModel, recipe: Recipe, task: Task) -> None:
        self._model, self._recipe, self._task = model, recipe, task
        self._pieces = evaluation_pieces(task.test)
        self.watch = Stopwatch()

    async def train(
        self, cohort: Cohort, adapter_down: Sequence[bytes], memories: Sequence[ClientMemory], ask_edge: AskEdge
    ) -> TrainedCohort:
        """Train a cohort; other cohorts may be worked on while ``ask_edge`` waits.

        Args:
            cohort: whose training.
            adapter_down: the members' models.
            memories: what the members remember.
            ask_edge: carries a request to the cohort's edge.
        """
        meter, keys = ByteMeter(), [member.key for member in cohort.members]
        with naming("training", keys):
            held = self._model.layout.part(cohort.split, Part.FRONT, Part.BACK)
            with self.watch.spend(Stage.CODEC):
                received = [self._receive(held, *pair) for pair in zip(cohort.members, adapter_down, strict=True)]
            trained = await self._drive(cohort, received, memories, ask_edge, meter)
        self.watch.move_to_codec(meter.codec_seconds)
        with self.watch.spend(Stage.CODEC):
            return self._give_back(cohort, held, received, trained, memories, meter)

    def _give_back(
        self,
        cohort: Cohort,
        held: Sequence[AdapterTensor],
        received: Sequence[Adapters],
        trained: Sequence[ClientResult],
        memories: Sequence[ClientMemory],
        meter: ByteMeter,
    ) -> TrainedCohort:
        """Encode what the members send."""
        uploads, reports, remembered = [], [], []
        for member, own_received, result, memory in zip(cohort.members, received, trained, memories, strict=True):
            with naming("adapter_up", [member.key]):
                payload, after = self._upload(held, member, own_received, result, memory)
                exact, planned = self._recipe.chains.of_upload.size_is_exact, member.planned_adapter_bytes[1]
                meter.charge(Role.ADAPTER_UP, payload, planned, exact=exact, who=str(member.key))
                uploads.append(payload)
                remembered.append(after)
                reports.append(self._report(member, result, meter))
        losses = {member.key: result.mean_loss for member, result in zip(cohort.members, trained, strict=True)}
        return TrainedCohort(uploads, reports, losses, remembered, meter)

    def _receive(self, held: Sequence[AdapterTensor], member: Member, payload: bytes) -> Adapters:
        return self._recipe.unpack(
            Role.ADAPTER_DOWN, held, payload, self._recipe.context(member.key, Role.ADAPTER_DOWN)
        )

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
        with self.watch.spend(Stage.COMPUTE):
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
    ) -> list[ClientResult]:
        recipe, task = self._recipe, self._task
        protocol: ProtocolConfig = recipe.protocol
        with self.watch.spend(Stage.COMPUTE):
            examples = [
                examples_of_steps(member.key, task.partition[member.key.client], protocol, recipe.seed)
                for member in cohort.members
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
                calibration_examples_of_members=self._calibration_examples(cohort),
            )
        try:
            with self.watch.spend(Stage.COMPUTE):
                request = next(training)
            while True:
                answer = await ask_edge(request)
                with self.watch.spend(Stage.COMPUTE):
                    request = training.send(answer)
        except StopIteration as end:
            results: list[ClientResult] = end.value
            return results

    def _calibration_examples(self, cohort: Cohort) -> list[npt.NDArray[np.int64]]:
        """Return the examples that each member's new keys and bases are made of, where texts are set apart for it."""
        num_texts = self._recipe.chains.calibration_texts
        return [
            calibration_examples(member.key, self._task.partition[member.key.client], num_texts, self._recipe.seed)
            if num_texts is not None and member.calibrates
            else np.zeros(0, np.int64)
            for member in cohort.members
        ]
