"""A client pool: many clients, simulated by one worker. It holds the texts; nothing of them leaves it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from elsa_ray.config.protocol import ProtocolConfig
from elsa_ray.model.adapters import Adapters
from elsa_ray.model.split import Part
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.runtime.failure import naming
from elsa_ray.tasks.task import Task
from elsa_ray.training.batches import examples_of_steps
from elsa_ray.training.client import ClientResult, EdgeRequest, train_clients
from elsa_ray.training.cohort import ByteMeter, Cohort
from elsa_ray.training.evaluation import Score, evaluation_pieces, score_piece
from elsa_ray.training.messages import Payloads
from elsa_ray.training.recipe import Recipe
from elsa_ray.world.plan import WorkKey
from elsa_ray.world.roles import Role

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

    async def train(
        self, cohort: Cohort, adapter_down: Sequence[bytes], ask_edge: AskEdge
    ) -> tuple[list[bytes], dict[WorkKey, float], ByteMeter]:
        """Train a cohort; returns the members' adapter_up payloads, their mean losses, and the bytes encoded here.

        Other cohorts may be worked on while ``ask_edge`` waits.
        """
        meter = ByteMeter()
        keys = [member.key for member in cohort.members]
        with naming("training", keys):
            trained = await self._drive(cohort, adapter_down, ask_edge, meter)
        held = self._model.layout.part(cohort.split, Part.FRONT, Part.BACK)
        payloads = []
        for member, result in zip(cohort.members, trained, strict=True):
            with naming("adapter_up", [member.key]):
                context = self._recipe.context(member.key, Role.ADAPTER_UP)
                payload = self._recipe.pack(Role.ADAPTER_UP, held, result.adapters, context)
                exact, planned = self._recipe.chains.adapter.size_is_exact, member.planned_adapter_bytes[1]
                meter.charge(Role.ADAPTER_UP, payload, planned, exact=exact, who=str(member.key))
            payloads.append(payload)
        return payloads, {key: result.mean_loss for key, result in zip(keys, trained, strict=True)}, meter

    def score(self, adapters: Adapters, piece: int) -> Score:
        """Score a global model on one piece of the test set."""
        task = self._task
        return score_piece(self._model, adapters, task.test, self._pieces[piece], self._recipe.pad_id, task.num_labels)

    @property
    def num_pieces(self) -> int:
        """Pieces of the test set."""
        return len(self._pieces)

    async def _drive(
        self, cohort: Cohort, adapter_down: Sequence[bytes], ask_edge: AskEdge, meter: ByteMeter
    ) -> list[ClientResult]:
        protocol: ProtocolConfig = self._recipe.protocol
        held = self._model.layout.part(cohort.split, Part.FRONT, Part.BACK)
        adapters, examples = [], []
        for member, payload in zip(cohort.members, adapter_down, strict=True):
            context = self._recipe.context(member.key, Role.ADAPTER_DOWN)
            adapters.append(self._recipe.unpack(Role.ADAPTER_DOWN, held, payload, context))
            indices = self._task.partition[member.key.client]
            examples.append(examples_of_steps(member.key, indices, protocol, self._recipe.seed))
        training = train_clients(self._model, cohort, self._recipe, self._task.train, examples, adapters, meter)
        try:
            request = next(training)
            while True:
                request = training.send(await ask_edge(request))
        except StopIteration as end:
            results: list[ClientResult] = end.value
            return results
