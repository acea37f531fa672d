"""Training in this process as in any run, with a tap on what passes between clients and their edges.

Shapes: T rows, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from elsa_ray.codecs.chain import CodecChain, Memory
from elsa_ray.codecs.codec import CodecContext
from elsa_ray.model.adapters import Adapters
from elsa_ray.model.split import Split
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.protocols.protocol import ProtocolState, RoundResults
from elsa_ray.protocols.setting import Setting
from elsa_ray.runtime.conductor import Conductor
from elsa_ray.runtime.executor import InlineExecutor, InlineWorkers
from elsa_ray.runtime.pool import AskEdge, ClientPool, TrainedCohort, Uploads
from elsa_ray.tasks.task import Task
from elsa_ray.training.client import EdgeCall, EdgeRequest
from elsa_ray.training.cohort import CALIBRATION, Cohort, Member
from elsa_ray.training.memory import ClientMemory
from elsa_ray.training.messages import Payloads
from elsa_ray.training.recipe import Recipe
from elsa_ray.world.plan import Plan, WorkKey
from elsa_ray.world.roles import Role
from elsa_ray.world.timeline import Timeline

_ROLES_OF_CALL = {
    EdgeCall.FORWARD: (Role.ACTIVATION_UP, Role.ACTIVATION_DOWN),
    EdgeCall.BACKWARD: (Role.GRADIENT_UP, Role.GRADIENT_DOWN),
    EdgeCall.CALIBRATE: (Role.ACTIVATION_UP, Role.ACTIVATION_DOWN),
}


@dataclass(frozen=True)
class Message:
    """One of the four messages of a split step, as it was sent.

    Attributes:
        work: whose.
        step: which.
        role: of the payload.
        calibrations: the payloads of keys and bases that went in front of it.
        payload: the message itself; empty where keys and bases travel alone.
    """

    work: WorkKey
    step: int
    role: Role
    calibrations: tuple[bytes, ...]
    payload: bytes


@dataclass(frozen=True)
class Plain:
    """What a client put into its codecs: rows [T, D], padding included, and the keys and bases that it held."""

    rows_TD: Tensor
    memory: Memory


@dataclass
class Tap:
    """What was written down of the first clients that took part, at most so many; in the order in which it happened.

    Attributes:
        num_clients: at most.
        edge_calibrates: whether states go up with the keys and bases of a calibration's own forward pass.
        members: their work items, with the split of each.
        messages: by work item.
        plain: by work item and step, what became ``activation_up``.
        models: the global model that each round started from.
    """

    num_clients: int
    edge_calibrates: bool
    members: dict[WorkKey, tuple[Member, Split]] = field(default_factory=dict)
    messages: dict[WorkKey, list[Message]] = field(default_factory=dict)
    plain: dict[tuple[WorkKey, int], Plain] = field(default_factory=dict)
    models: dict[int, Adapters] = field(default_factory=dict)

    def begin(self, cohort: Cohort) -> None:
        """Take note of a cohort's members."""
        for member in cohort.members:
            clients = {key.client for key in self.members}
            if member.key.client in clients or len(clients) < self.num_clients:
                self.members[member.key] = (member, cohort.split)
                self.messages[member.key] = []

    def keep(self, cohort: Cohort, step: int, role: Role, payloads: Payloads) -> None:
        """Write down the messages of a cohort's members."""
        for member, message in zip(cohort.members, payloads, strict=True):
            if message is not None and member.key in self.members:
                has_states = step != CALIBRATION or (role is Role.ACTIVATION_UP and self.edge_calibrates)
                calibrations, payload = (message[:-1], message[-1]) if has_states else (message, b"")
                self.messages[member.key].append(Message(member.key, step, role, calibrations, payload))


class TappedChain(CodecChain):
    """A chain that works as another one; a tap is told what the client encodes at the first cut."""

    def __init__(self, chain: CodecChain, tap: Tap) -> None:
        super().__init__(chain.stages, chain.wire_dtype)
        self.chain_id = chain.chain_id
        self._tap = tap

    def encode(self, x_TD: Tensor, context: CodecContext, memory: Memory = ()) -> bytes:
        """Return the body, as the other chain does."""
        work = WorkKey(context.round_index, context.edge_round, context.client)
        if context.role == Role.ACTIVATION_UP.label and work in self._tap.members:
            self._tap.plain[work, context.step] = Plain(x_TD.detach().cpu().clone(), memory)
        return super().encode(x_TD, context, memory)


class TappedPool(ClientPool):
    """A pool whose talk with the edges is written down.

    Args:
        model: the frozen backbone.
        recipe: seed, optimiser, chains.
        task: texts and their partition.
        tap: where to.
    """

    def __init__(self, model: TripartiteModel, recipe: Recipe, task: Task, tap: Tap) -> None:
        chains = replace(recipe.chains, activation=TappedChain(recipe.chains.activation, tap))
        super().__init__(model, replace(recipe, chains=chains), task)
        self._tap = tap

    async def train(
        self,
        cohort: Cohort,
        adapter_down: Sequence[bytes | None],
        memories: Sequence[ClientMemory],
        ask_edge: AskEdge,
    ) -> tuple[TrainedCohort, Uploads]:
        """Train a cohort as any pool."""
        self._tap.begin(cohort)

        async def ask(request: EdgeRequest) -> Payloads:
            answer = await ask_edge(request)
            # Probes are public and travel in the clear: there is nothing to attack.
            if request.call in _ROLES_OF_CALL:
                up, down = _ROLES_OF_CALL[request.call]
                self._tap.keep(cohort, request.step, up, request.payloads)
                self._tap.keep(cohort, request.step, down, answer)
            return answer

        return await super().train(cohort, adapter_down, memories, ask)


class TappedExecutor(InlineExecutor):
    """Computes as the inline executor, bit for bit, and never evaluates; what was sent is in ``tap``.

    Args:
        setting: the run's circumstances.
        model: the frozen backbone.
        recipe: seed, optimiser, chains.
        num_clients: how many clients are written down, at most.
    """

    def __init__(self, setting: Setting, model: TripartiteModel, recipe: Recipe, num_clients: int) -> None:
        super().__init__(setting, model, recipe)
        self.tap = Tap(num_clients, recipe.chains.edge_calibrates)
        self._conductor = Conductor(_TappedWorkers(setting, model, recipe, self.tap), setting)

    def run(self, plan: Plan, timeline: Timeline, state: ProtocolState, *, evaluate: bool) -> RoundResults:
        """Train and aggregate."""
        assert state.adapters is not None, "a run that trains starts from adapters"
        self.tap.models[state.round_index] = state.adapters
        return super().run(plan, timeline, state, evaluate=False)


class _TappedWorkers(InlineWorkers):
    """The inline executor's workers, but for the pool."""

    def __init__(self, setting: Setting, model: TripartiteModel, recipe: Recipe, tap: Tap) -> None:
        super().__init__(setting, model, recipe)
        self._pool = TappedPool(model, recipe, setting.task, tap)
