"""The interface of a protocol: a round is a value-to-value function; what must be remembered is in the state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from elsa_ray.clustering.trust import TrustEvent, TrustState
from elsa_ray.config.protocol import ProtocolConfig
from elsa_ray.model.adapters import Adapters
from elsa_ray.protocols.sampling import sample_clients, sampled_share
from elsa_ray.protocols.setting import Setting
from elsa_ray.training.cohort import VersionKey
from elsa_ray.training.evaluation import Score
from elsa_ray.training.failure import ClientFailure
from elsa_ray.training.memory import MemoriesOfClients
from elsa_ray.world.plan import ActivityKind, Ints, Plan, WorkKey
from elsa_ray.world.roles import Role
from elsa_ray.world.timeline import Outcome, Timeline, WorldState


@dataclass(frozen=True)
class ProtocolState:
    """What a protocol knows between two rounds.

    Attributes:
        round_index: of the next round.
        adapters: the global model's; None in a timing-only run.
        versions: older models that work still under way has started from.
        edge_of_client: node index of each client's edge, -1 for a parked one; empty where edges play no part.
        loaded_clients: those that hold their frozen blocks already.
        loaded_nodes: edges to which theirs were sent.
        simulated_seconds, num_bytes: spent so far.
        memories: what clients, and their edges of them, remember.
        trust: standings of clients.
    """

    round_index: int = 0
    adapters: Adapters | None = None
    versions: Mapping[VersionKey, Adapters] = field(default_factory=dict)
    edge_of_client: tuple[int, ...] = ()
    loaded_clients: frozenset[int] = frozenset()
    loaded_nodes: frozenset[int] = frozenset()
    simulated_seconds: float = 0.0
    num_bytes: int = 0
    memories: MemoriesOfClients = field(default_factory=dict)
    trust: Mapping[int, TrustState] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundResults:
    """What an executor gives back.

    Attributes:
        adapters: the new global model's; None if nothing was trained.
        versions: the models that pending work has started from.
        losses: mean training loss of each work item that was aggregated.
        failed: work whose computation failed or whose numbers are not finite; it had no weight.
        encoded_bytes: lengths of the payloads that were really encoded, by role.
        score: the global model on the test set, when this round was evaluated.
        score_over_cuts: the same with codecs at its cuts, where that is asked for.
        memories: of all clients that have any.
        trust: new standings of the clients that were judged.
        decisions: what changed in the standings, and why.
        fingerprints: as the cloud was told them, a row of numbers a client.
        cohort_sizes: members of each cohort that was trained.
        failures: work that was left out because its client's computation failed; it stands in ``failed`` too.
    """

    adapters: Adapters | None = None
    versions: Mapping[VersionKey, Adapters] = field(default_factory=dict)
    losses: Mapping[WorkKey, float] = field(default_factory=dict)
    failed: tuple[WorkKey, ...] = ()
    encoded_bytes: Mapping[str, int] = field(default_factory=dict)
    score: Score | None = None
    score_over_cuts: Score | None = None
    memories: MemoriesOfClients = field(default_factory=dict)
    trust: Mapping[int, TrustState] = field(default_factory=dict)
    decisions: tuple[TrustEvent, ...] = ()
    fingerprints: Mapping[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    cohort_sizes: tuple[int, ...] = ()
    failures: tuple[ClientFailure, ...] = ()


@dataclass(frozen=True)
class RoundReport:
    """One line of ``rounds.jsonl``: a round in numbers.

    Attributes:
        round_index: which.
        simulated_seconds, num_bytes: of the run, up to the round's end.
        participated, dropped, late, failed: clients, by what became of their work.
        train_loss: mean over the work that arrived.
        score: of the new global model.
        score_over_cuts: the same with codecs at its cuts.
        excluded: clients whose work does not count in the next round.
        decisions: what changed in the clients' standings in this round, and why.
        moved: clients that were given another edge at the round's end, and its node (-1: parked).
        cohort_sizes: members of each cohort that was trained.
    """

    round_index: int
    simulated_seconds: float
    num_bytes: int
    participated: tuple[int, ...]
    dropped: tuple[int, ...]
    late: tuple[int, ...]
    failed: tuple[int, ...]
    train_loss: float | None
    score: Score | None
    excluded: tuple[int, ...] = ()
    decisions: tuple[TrustEvent, ...] = ()
    moved: tuple[tuple[int, int], ...] = ()
    cohort_sizes: tuple[int, ...] = ()
    score_over_cuts: Score | None = None


class Protocol(ABC):
    """A federated method. Subclass it, give it a ``Config`` derived from ProtocolConfig, and name it in the config.

    Args:
        config: its section.
        setting: the circumstances.

    Raises:
        InputError: the section does not fit the model or the topology.
    """

    Config: ClassVar[type[ProtocolConfig]]

    def __init__(self, config: Any, setting: Setting) -> None:
        self.config = config
        self.setting = setting

    @abstractmethod
    def start(self, adapters: Adapters | None) -> ProtocolState:
        """Return the state before the first round, with the first global adapters (None in a timing-only run)."""

    @abstractmethod
    def plan(self, state: ProtocolState, world_state: WorldState) -> Plan:
        """Return who computes what and who sends what in the next round, in exact FLOPs and bytes."""

    def sample(self, state: ProtocolState, world_state: WorldState, parked: Sequence[int]) -> Ints:
        """Return the clients of the next round, in order: as configured, of those that can take part.

        Neither parked nor busy clients can, nor those that are not there.
        """
        return sample_clients(
            self.setting.num_clients,
            sampled_share(self.config.participation, self.setting.config.world.round_policy.over_sample),
            seed=self.setting.seed,
            round_index=state.round_index,
            absent={*parked, *world_state.unavailable_clients},
        )

    def quorum(self, num_members: int, num_sampled: int) -> int:
        """Return how many of a gather's members close it by their arrival; 0 for all.

        Where more are sampled than wanted, it is the gather's part of the wanted number, rounded up.
        """
        policy = self.setting.config.world.round_policy
        share = policy.quorum
        if policy.over_sample is not None and num_sampled > 0:
            share = min(1.0, max(1, round(self.config.participation * self.setting.num_clients)) / num_sampled)
        # Rounded, because 0.1 * 30 is more than 3 in binary.
        return 0 if share is None else math.ceil(round(num_members * share, 9))

    def conclude(
        self, state: ProtocolState, results: RoundResults, plan: Plan, timeline: Timeline
    ) -> tuple[ProtocolState, RoundReport]:
        """Return the state after the round, and the round in numbers."""
        arrived = sorted(key for keys in timeline.arrivals for key in keys)
        is_transfer = timeline.activities.kind == ActivityKind.TRANSFER
        num_bytes = state.num_bytes + int(timeline.carried_bytes[is_transfer].sum())
        losses = [results.losses[key] for key in arrived if key in results.losses]
        after = replace(
            state,
            round_index=state.round_index + 1,
            adapters=results.adapters if results.adapters is not None else state.adapters,
            versions={**results.versions},
            memories={**results.memories},
            trust={**state.trust, **results.trust},
            simulated_seconds=timeline.end_seconds,
            num_bytes=num_bytes,
            loaded_clients=state.loaded_clients | _newly_loaded(timeline),
            loaded_nodes=state.loaded_nodes | ({int(node) for node in plan.gathers.node} - timeline.lost_nodes),
        )
        report = RoundReport(
            round_index=state.round_index,
            simulated_seconds=timeline.end_seconds,
            num_bytes=num_bytes,
            participated=_clients(arrived),
            dropped=_clients(timeline.dropped),
            late=_clients(timeline.pending),
            failed=_clients(results.failed),
            train_loss=float(np.mean(losses)) if losses else None,
            score=results.score,
            score_over_cuts=results.score_over_cuts,
            decisions=results.decisions,
            cohort_sizes=results.cohort_sizes,
        )
        return after, report

    def finished(self, state: ProtocolState) -> str | None:
        """Return why the run is over, or None: all rounds done, or a budget reached."""
        stop = self.config.stop
        if state.round_index >= self.config.rounds:
            return "rounds"
        if stop.simulated_seconds is not None and state.simulated_seconds >= stop.simulated_seconds:
            return "simulated_seconds"
        if stop.num_bytes is not None and state.num_bytes >= stop.num_bytes:
            return "num_bytes"
        return None


def _newly_loaded(timeline: Timeline) -> set[int]:
    """Return the clients whose frozen blocks have arrived."""
    activities = timeline.activities
    is_weights = (activities.kind == ActivityKind.TRANSFER) & (activities.label == Role.WEIGHTS_DOWN)
    loaded = activities.client[is_weights & (timeline.outcome == Outcome.DONE)]
    return {int(client) for client in loaded if client >= 0}


def _clients(keys: Any) -> tuple[int, ...]:
    return tuple(sorted({key.client for key in keys}))
