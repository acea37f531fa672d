"""Under every fault and policy each work item ends exactly once, and costs what the links have carried."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_ray.config.faults import CloudOutage, Corruption, Dropout, EdgeCrash, FaultsConfig, LinkFault, ParetoSlowdown
from elsa_ray.world.availability import CoinAvailability, MarkovAvailability
from elsa_ray.world.disturbances import Disturbances, slowdowns, troubles_of
from elsa_ray.world.faults import begins_in_round, down_nodes, make_faults, spells_of
from elsa_ray.world.plan import ActivityKind, Plan, PlanBuilder, Stage, WorkKey
from elsa_ray.world.roles import Role
from elsa_ray.world.timeline import Outcome, Timeline, WorldState
from tests.world.stories import Scene, assert_equal
from tests.world.test_fault_logs import CLIENTS, TOWN

ROUNDS = 4
HOMES = {0: "e0", 1: "e0", 2: "e1"}
CLIENT_NODES = np.array([TOWN.index(name) for name in CLIENTS])


@dataclass(frozen=True)
class Policy:
    edge_rounds: int
    keep_late: bool
    deadline: float | None
    quorum: int


def plan_of(round_index: int, state: WorldState, policy: Policy, numbers: np.random.Generator) -> Plan:
    """Plan a global round of split training: two edges, each with its free clients, and the cloud."""
    builder, cloud, told = PlanBuilder(round_index), TOWN.index("cloud"), []
    for name in ("e0", "e1"):
        edge = TOWN.index(name)
        free = [c for c, home in HOMES.items() if home == name and c not in state.busy_clients]
        free = [client for client in free if state.present is None or state.present[client]]
        if edge in state.down_nodes or not (free or edge in state.work.edge):
            continue
        message = {"num_bytes": 8, "uncompressed_bytes": 8}
        (opener,) = builder.transfers(source=cloud, target=edge, label=Role.ADAPTER_DOWN, client=-1, **message)
        for edge_round in range(policy.edge_rounds):
            uploads = []
            for client in free:
                items = builder.work_items(
                    edge_round=edge_round,
                    client=client,
                    edge=edge,
                    num_examples=1,
                    num_steps=1,
                    front=1,
                    middle=1,
                    back=1,
                    gather=builder.num_gathers,
                )
                node = int(CLIENT_NODES[client])
                own = {"client": client, "work": items}
                last = builder.transfers(
                    source=edge, target=node, label=Role.ADAPTER_DOWN, after=opener, **message, **own
                )
                for place in (node, edge, node):
                    flops = int(numbers.integers(1, 6))
                    last = builder.computations(node=place, label=Stage.BACK, flops=flops, after=last, **own)
                uploads += builder.transfers(
                    source=node, target=edge, label=Role.ADAPTER_UP, after=last, **message, **own
                ).tolist()
            gather = builder.gather(
                edge,
                uploads,
                edge_round=edge_round,
                opener=opener,
                deadline_seconds=policy.deadline,
                quorum=min(policy.quorum, len(free)),
            )
            builder.depend(gather, opener)
            opener = gather
        told += builder.transfers(
            source=edge, target=cloud, label=Role.ADAPTER_UP, client=-1, after=opener, **message
        ).tolist()
    builder.gather(cloud, told, edge_round=0, opener=-1, deadline_seconds=None)
    return builder.build(keep_late=policy.keep_late)


@dataclass
class Books:
    """What has become of each work item so far."""

    planned: list[WorkKey] = field(default_factory=list)
    ends: Counter[WorkKey] = field(default_factory=Counter)
    pending: set[WorkKey] = field(default_factory=set)

    def add(self, plan: Plan, timeline: Timeline, inbox: set[WorkKey]) -> None:
        self.planned += [plan.work.key(row) for row in range(len(plan.work))]
        ended = [key for keys in timeline.arrivals for key in keys]
        ended += [*timeline.dropped, *timeline.skipped]
        self.ends.update(ended)
        self.pending = {*timeline.pending, *inbox}
        assert len(timeline.causes) == len(timeline.dropped) == len(timeline.dropped_seconds)
        assert ((timeline.dropped_seconds >= 0) & (timeline.dropped_seconds <= timeline.end_seconds)).all()


def check_costs(timeline: Timeline, max_tries: int) -> None:
    activities, done = timeline.activities, timeline.outcome == Outcome.DONE
    sent = activities.kind == ActivityKind.TRANSFER
    assert (timeline.carried_bytes >= 0).all() and (timeline.carried_bytes[~sent] == 0).all()
    times = timeline.carried_bytes[sent & done] / activities.num_bytes[sent & done]
    assert (times == np.round(times)).all() and (times >= 1).all() and (times <= max_tries).all()
    assert (timeline.carried_bytes[timeline.outcome == Outcome.PENDING] == 0).all()
    started = np.isfinite(timeline.start_seconds)
    assert (timeline.carried_bytes[~started] == 0).all()
    ended = started & np.isfinite(timeline.finish_seconds)
    assert (timeline.start_seconds[ended] <= timeline.finish_seconds[ended]).all()


PROBABILITIES = st.sampled_from([0.0, 0.2, 0.33])


@st.composite
def faults_of(draw: st.DrawFn) -> FaultsConfig:
    spans = st.builds(
        dict,
        start_seconds=st.integers(0, 120).map(lambda quarters: quarters / 4),
        duration_seconds=st.integers(1, 60).map(lambda quarters: quarters / 4),
        round=st.sampled_from([None, 0, 1, 2]),
    )
    return FaultsConfig(
        dropout=draw(st.builds(Dropout, before=PROBABILITIES, during=PROBABILITIES, after=PROBABILITIES)),
        stragglers=draw(st.sampled_from([None, ParetoSlowdown(kind="pareto", shape=1.0, max_factor=20.0)])),
        corruption=draw(st.sampled_from([None, Corruption(probability=0.4, max_tries=3)])),
        links=[
            LinkFault(share=0.5, factor=draw(st.sampled_from([0.0, 0.25])), **span)
            for span in draw(st.lists(spans, max_size=2))
        ],
        edges=[EdgeCrash(edge=draw(st.sampled_from(["e0", "e1"])), **s) for s in draw(st.lists(spans, max_size=2))],
        cloud=[CloudOutage(**span) for span in draw(st.lists(spans, max_size=1))],
    )


POLICIES = st.builds(
    Policy,
    edge_rounds=st.integers(1, 2),
    keep_late=st.booleans(),
    deadline=st.sampled_from([None, 9.0, 14.5]),
    quorum=st.integers(0, 2),
)


def play_all(faults: FaultsConfig, policy: Policy, seed: int, presence: str) -> tuple[Books, list[Timeline]]:
    availability = {
        "always": None,
        "coin": CoinAvailability(len(CLIENTS), 0.6, seed),
        "comes and goes": MarkovAvailability(len(CLIENTS), 12.0, 6.0, seed),
    }[presence]
    own, books, timelines, begins = Scene(TOWN, clients=CLIENTS), Books(), [], ()
    fixed, numbers = make_faults(faults, TOWN, seed), np.random.default_rng(seed)
    for round_index in range(ROUNDS):
        state, clock = own.state, own.state.clock_seconds
        present = availability.present(clock, round_index) if availability is not None else None
        known = WorldState(
            **{
                **vars(state),
                "present": present,
                "down_nodes": down_nodes(spells_of(fixed, begins, round_index), clock),
            }
        )
        plan = plan_of(round_index, known, policy, numbers)
        begins = begins_in_round(fixed, begins, round_index, clock)
        slow = None
        if faults.stragglers is not None:
            slow = slowdowns(faults.stragglers, len(CLIENTS), seed, round_index)
        disturbances = Disturbances(
            troubles_of(faults, plan, CLIENT_NODES, seed, slow),
            availability.off_seconds(clock) if availability is not None else None,
            spells_of(fixed, begins, round_index),
        )
        timeline = own.play_plan(plan, disturbances)
        check_costs(timeline, faults.corruption.max_tries + 1 if faults.corruption else 1)
        books.add(plan, timeline, {key for _, key in own.state.inbox})
        timelines.append(timeline)
    return books, timelines


@settings(max_examples=60, deadline=None)
@given(
    faults=faults_of(),
    policy=POLICIES,
    seed=st.integers(0, 1000),
    presence=st.sampled_from(["always", "coin", "comes and goes"]),
)
def test_each_work_item_ends_exactly_once(faults: FaultsConfig, policy: Policy, seed: int, presence: str) -> None:
    books, _ = play_all(faults, policy, seed, presence)
    assert len(set(books.planned)) == len(books.planned)
    assert set(books.ends) <= set(books.planned) and set(books.ends.values()) <= {1}
    assert set(books.ends) | books.pending == set(books.planned)
    assert not set(books.ends) & books.pending


def test_the_same_seed_gives_the_same_timelines() -> None:
    faults = FaultsConfig(
        dropout=Dropout(before=0.1, during=0.2, after=0.1),
        stragglers=ParetoSlowdown(kind="pareto", shape=1.0),
        corruption=Corruption(probability=0.3, max_tries=2),
        links=[LinkFault(share=0.5, start_seconds=3, duration_seconds=20, factor=0.25)],
        edges=[EdgeCrash(edge="e0", round=1, start_seconds=5, duration_seconds=10)],
        cloud=[CloudOutage(round=2, duration_seconds=3)],
    )
    policy = Policy(edge_rounds=2, keep_late=True, deadline=9.0, quorum=1)
    (_, first), (_, again), (_, other) = (play_all(faults, policy, seed, "comes and goes") for seed in (1, 1, 2))
    for one, two in zip(first, again, strict=True):
        assert_equal(one, two)
    assert [timeline.end_seconds for timeline in first] != [timeline.end_seconds for timeline in other]
