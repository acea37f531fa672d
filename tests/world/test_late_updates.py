"""A client that is too late, in real runs: when its adapters arrive, what they started from, and what becomes of them.

Times are computed by hand from bytes, FLOPs and the figures of the town, and whole logs are compared with ``==``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from elsa_ray.aggregation.weighted import weighted_mean
from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.model.adapters import Adapters
from elsa_ray.model.split import Part, cut, whole
from elsa_ray.prepare import make_recipe, prepare
from elsa_ray.protocols.local_work import planned_step_bytes
from elsa_ray.runtime.pool import ClientPool
from elsa_ray.training.client import EdgeRequest
from elsa_ray.training.cohort import STEP_ROLES, ByteMeter, Cohort, Member, VersionKey
from elsa_ray.training.edge import EdgeCohort
from elsa_ray.training.memory import ClientMemory
from elsa_ray.training.messages import Payloads
from elsa_ray.world.plan import WorkKey
from elsa_ray.world.roles import Role
from tests.world.towns import (
    Event,
    Hand,
    TownRun,
    assert_same_timelines,
    end_of,
    events,
    halfway,
    name_event,
    only_plan,
    town_config,
    train,
    unfinished,
    until,
)

FAST = (0, 1)
LATE = WorkKey(0, 0, 2)


def hand_of(config: ExperimentConfig) -> Hand:
    return Hand(prepare(config))


def trained_by_hand(run: TownRun, keys: Sequence[WorkKey], *versions: Adapters) -> list[Adapters]:
    """Train these work items as one cohort, without conductor, hosts or plan.

    ``versions`` are the models that they start from: one for each, or one for all.
    """
    starts = list(versions) * (len(keys) // len(versions))
    assert run.model is not None
    setting, recipe, model = run.prepared.setting, make_recipe(run.prepared), run.model
    config, layout = run.prepared.config.protocol, setting.layout
    is_split = config.name == "elsa"
    split = cut(setting.shape.num_layers, 1, 1) if is_split else whole(setting.shape.num_layers)
    held, middle = layout.part(split, Part.FRONT, Part.BACK), layout.part(split, Part.MIDDLE)
    size = Hand(run.prepared).adapter_bytes(*([Part.FRONT, Part.BACK] if is_split else Part))
    members, down = [], []
    for key, version in zip(keys, starts, strict=True):
        no_steps = np.zeros((0, len(STEP_ROLES)), np.int64)
        steps = planned_step_bytes(setting, config, key) if is_split else no_steps
        version_key = VersionKey(key.round_index, key.edge_round, 0)
        members.append(Member(key, 0, version_key, 1, config.local_steps or 0, steps, (size, size)))
        down.append(recipe.pack(Role.ADAPTER_DOWN, held, version, recipe.context(key, Role.ADAPTER_DOWN)))
    cohort = Cohort("by hand", tuple(members), split)
    copies = [{tensor.name: version[tensor.name] for tensor in middle} for version in starts]
    edge = EdgeCohort(model, cohort, recipe, copies, ByteMeter()) if is_split else None

    async def ask_edge(request: EdgeRequest) -> Payloads:
        assert edge is not None
        return edge.answer(request)

    pool = ClientPool(model, recipe, setting.task)
    _, uploads = asyncio.run(pool.train(cohort, down, [ClientMemory()] * len(keys), ask_edge))
    at_edge = edge.adapters() if edge is not None else [{} for _ in keys]
    trained = []
    for key, payload, own in zip(keys, uploads, at_edge, strict=True):
        received = recipe.unpack(Role.ADAPTER_UP, held, payload, recipe.context(key, Role.ADAPTER_UP))
        trained.append({tensor.name: {**received, **own}[tensor.name] for tensor in layout.tensors})
    return trained


def mean_by_hand(run: TownRun, keys: Sequence[WorkKey], adapters: Sequence[Adapters]) -> Adapters:
    weights = [len(run.prepared.setting.task.partition[key.client]) for key in keys]
    return weighted_mean(adapters, weights)


def assert_adapters(found: Adapters | None, expected: Adapters) -> None:
    assert found is not None and found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


class TestElsa:
    """The slow client misses the edge's deadline in round 0 and arrives while round 1 trains."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("elsa")

    @pytest.fixture(scope="class")
    def deadline(self, folder: Path) -> float:
        hand = hand_of(town_config(folder))
        begin = hand.trunk_seconds
        fast = max(end_of(hand.split_work(WorkKey(0, 0, client), begin)) for client in FAST)
        # The edge round opens, and its deadline begins, when the edge has its model.
        return halfway(fast, end_of(hand.split_work(LATE, begin))) - begin

    @pytest.fixture(scope="class")
    def config(self, folder: Path, deadline: float) -> ExperimentConfig:
        return town_config(folder, world={"round_policy": {"deadline_seconds": deadline, "late": "keep"}})

    @pytest.fixture(scope="class")
    def run(self, config: ExperimentConfig) -> TownRun:
        return train(config)

    def test_the_log_is_as_computed_by_hand(self, run: TownRun, deadline: float) -> None:
        hand = Hand(run.prepared)
        trunk = hand.trunk_seconds
        late = hand.split_work(LATE, trunk)
        logs: list[list[Event]] = []
        begin = 0.0
        for round_index, clients in ((0, FAST), (1, FAST)):
            members = [hand.split_work(WorkKey(round_index, 0, client), begin + trunk) for client in clients]
            arrived = max(end_of(log) for log in members)
            closes = begin + trunk + deadline if round_index == 0 else arrived
            ends = closes + trunk
            carried = late if round_index == 0 else unfinished(late, begin)
            logs.append(
                [
                    (name_event("adapter_down"), begin, begin + trunk),
                    *(event for log in members for event in log),
                    *until(carried, ends),
                    ("gather", closes, closes),
                    (name_event("adapter_up"), closes, ends),
                    ("gather", ends, ends),
                ]
            )
            begin = ends
        assert end_of(late) > logs[0][-1][2], "late even for the end of round 0"  # type: ignore[operator]
        for timeline, log in zip(run.timelines, logs, strict=False):
            assert events(timeline) == sorted(log, key=str)

    def test_the_late_client_is_not_sampled_while_it_is_busy(self, run: TownRun) -> None:
        planned = [sorted(each.plan.work.client.tolist()) for each in run.rounds]
        assert planned == [[0, 1, 2], [0, 1], [0, 1, 2]]
        assert [each.report.late for each in run.rounds] == [(2,), (), (2,)]
        assert [each.report.dropped for each in run.rounds] == [(), (), ()]

    def test_its_adapters_arrive_at_the_next_gather(self, run: TownRun) -> None:
        arrivals = [each.timeline.arrivals[0] for each in run.rounds[:2]]
        assert arrivals == [
            (WorkKey(0, 0, 0), WorkKey(0, 0, 1)),
            (LATE, WorkKey(1, 0, 0), WorkKey(1, 0, 1)),
        ]
        assert LATE in run.rounds[1].results.losses and LATE not in run.rounds[0].results.losses

    def test_they_are_aggregated_with_the_version_that_they_started_from(self, run: TownRun) -> None:
        assert run.first_adapters is not None
        versions = [run.first_adapters]
        keys = [WorkKey(0, 0, client) for client in FAST]
        versions.append(mean_by_hand(run, keys, trained_by_hand(run, keys, versions[0])))
        assert_adapters(run.rounds[0].state.adapters, versions[1])
        keys = [WorkKey(1, 0, client) for client in FAST]
        current, late = trained_by_hand(run, keys, versions[1]), trained_by_hand(run, [LATE], versions[0])
        assert_adapters(run.rounds[1].state.adapters, mean_by_hand(run, [LATE, *keys], [*late, *current]))
        fresh = trained_by_hand(run, [LATE], versions[1])
        wrong = mean_by_hand(run, [LATE, *keys], [*fresh, *current])
        found = run.rounds[1].state.adapters
        assert found is not None
        assert any(not torch.equal(found[name], wrong[name]) for name in wrong), "the version makes a difference"

    def test_old_versions_are_kept_just_as_long_as_somebody_needs_them(self, run: TownRun) -> None:
        edge = int(run.prepared.setting.network.edges[0])
        kept = [sorted(each.state.versions) for each in run.rounds]
        assert kept == [[VersionKey(0, 0, edge)], [], [VersionKey(2, 0, edge)]]

    def test_timing_only_gives_the_identical_timeline(self, run: TownRun, config: ExperimentConfig) -> None:
        assert_same_timelines(run, only_plan(config))

    def test_dropped_instead_it_is_sampled_again_and_never_counts(self, folder: Path, deadline: float) -> None:
        policy = {"deadline_seconds": deadline, "late": "drop"}
        config = town_config(folder, world={"round_policy": policy}, protocol={"rounds": 2})
        run = train(config)
        assert [sorted(each.plan.work.client.tolist()) for each in run.rounds] == [[0, 1, 2], [0, 1, 2]]
        assert [each.report.dropped for each in run.rounds] == [(2,), (2,)]
        version = run.first_adapters
        assert version is not None
        for each in run.rounds:
            keys = [WorkKey(each.report.round_index, 0, client) for client in FAST]
            version = mean_by_hand(run, keys, trained_by_hand(run, keys, version))
            assert_adapters(each.state.adapters, version)
            assert not each.state.versions
        hand = Hand(run.prepared)
        late = hand.split_work(LATE, hand.trunk_seconds)
        closes = hand.trunk_seconds + deadline
        known = [(what, start, closes if finish is None else finish) for what, start, finish in until(late, closes)]
        assert [event for event in events(run.timelines[0]) if "client 2" in event[0]] == sorted(known, key=str)
        assert_same_timelines(run, only_plan(config))


class TestElsaWithTwoEdgeRounds:
    """The slow client misses the first edge round, sits out the second, and arrives in it."""

    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory: pytest.TempPathFactory) -> TownRun:
        folder = tmp_path_factory.mktemp("two")
        protocol = {"edge_rounds": 2, "rounds": 1}
        hand = hand_of(town_config(folder, protocol=protocol))
        fast = max(end_of(hand.split_work(WorkKey(0, 0, client), hand.trunk_seconds)) for client in FAST)
        deadline = halfway(fast, end_of(hand.split_work(LATE, hand.trunk_seconds))) - hand.trunk_seconds
        policy = {"deadline_seconds": deadline, "late": "keep"}
        return train(town_config(folder, protocol=protocol, world={"round_policy": policy}))

    def test_the_log_is_as_computed_by_hand(self, run: TownRun) -> None:
        hand, policy = Hand(run.prepared), run.prepared.config.world.round_policy
        deadline, trunk = policy.deadline_seconds, hand.trunk_seconds
        assert deadline is not None
        first_closes = trunk + deadline
        logs = [hand.split_work(WorkKey(0, 0, client), trunk) for client in (0, 1, 2)]
        logs += [hand.split_work(WorkKey(0, 1, client), first_closes) for client in FAST]
        closes = max(end_of(log) for log in logs)
        skipped = [(what, None, first_closes) for what, _, _ in hand.split_work(WorkKey(0, 1, 2), 0.0)]
        assert events(run.timelines[0]) == sorted(
            [
                ("adapter_down", 0.0, trunk),
                *(event for log in logs for event in log),
                *skipped,
                ("gather", first_closes, first_closes),
                ("gather", closes, closes),
                ("adapter_up", closes, closes + trunk),
                ("gather", closes + trunk, closes + trunk),
            ],
            key=str,
        )

    def test_the_model_is_as_composed_by_hand(self, run: TownRun) -> None:
        assert run.first_adapters is not None
        assert run.timelines[0].skipped == (WorkKey(0, 1, 2),)
        keys = [WorkKey(0, 0, client) for client in FAST]
        edge_model = mean_by_hand(run, keys, trained_by_hand(run, keys, run.first_adapters))
        # Clients of one global round form a cohort: the late one trains beside those of the second edge round.
        keys = [LATE, *(WorkKey(0, 1, client) for client in FAST)]
        trained = trained_by_hand(run, keys, run.first_adapters, edge_model, edge_model)
        assert_adapters(run.rounds[0].state.adapters, mean_by_hand(run, keys, trained))

    def test_timing_only_gives_the_identical_timeline(self, run: TownRun) -> None:
        assert_same_timelines(run, only_plan(run.prepared.config))


class TestFedAvg:
    """The same without an edge's help: the cloud's deadline, the cloud's late client."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("fedavg")

    @pytest.fixture(scope="class")
    def fast_and_slow(self, folder: Path) -> tuple[float, float]:
        hand = hand_of(town_config(folder, protocol={"name": "fedavg"}))
        fast = max(end_of(hand.whole_work(WorkKey(0, 0, client), 0.0)) for client in FAST)
        return fast, end_of(hand.whole_work(LATE, 0.0))

    def config(self, folder: Path, deadline: float, rounds: int) -> ExperimentConfig:
        policy = {"deadline_seconds": deadline, "late": "keep"}
        config: ExperimentConfig = town_config(
            folder, protocol={"name": "fedavg", "rounds": rounds}, world={"round_policy": policy}
        )
        return config

    def test_a_late_client_arrives_in_the_next_round(self, folder: Path, fast_and_slow: tuple[float, float]) -> None:
        deadline = halfway(*fast_and_slow)
        config = self.config(folder, deadline, rounds=2)
        run = train(config)
        hand = Hand(run.prepared)
        late = hand.whole_work(LATE, 0.0)
        first = [event for client in FAST for event in hand.whole_work(WorkKey(0, 0, client), 0.0)]
        assert events(run.timelines[0]) == sorted(
            [*first, *until(late, deadline), ("gather", deadline, deadline)], key=str
        )
        second = [hand.whole_work(WorkKey(1, 0, client), deadline) for client in FAST]
        closes = max(end_of(log) for log in second)
        assert end_of(late) < closes <= 2 * deadline
        carried = unfinished(late, deadline)
        logs = [*(event for log in second for event in log), *carried, ("gather", closes, closes)]
        assert events(run.timelines[1]) == sorted(logs, key=str)

        assert run.first_adapters is not None
        keys = [WorkKey(0, 0, client) for client in FAST]
        version = mean_by_hand(run, keys, trained_by_hand(run, keys, run.first_adapters))
        assert_adapters(run.rounds[0].state.adapters, version)
        keys = [WorkKey(1, 0, client) for client in FAST]
        late_one, fresh = trained_by_hand(run, [LATE], run.first_adapters), trained_by_hand(run, keys, version)
        assert_adapters(run.rounds[1].state.adapters, mean_by_hand(run, [LATE, *keys], [*late_one, *fresh]))
        assert_same_timelines(run, only_plan(config))

    def test_a_round_in_which_all_are_busy_waits_for_them_until_its_deadline(
        self, folder: Path, fast_and_slow: tuple[float, float]
    ) -> None:
        """The deadline is less than half of what a fast client takes: round after round closes without anybody."""
        deadline = halfway(fast_and_slow[0] / 4, fast_and_slow[0] / 2)
        empty = int(fast_and_slow[0] // deadline)
        config = self.config(folder, deadline, rounds=empty + 2)
        run = train(config)
        assert empty >= 2
        for number, each in enumerate(run.rounds[:empty]):
            assert each.plan.work.client.tolist() == ([0, 1, 2] if number == 0 else [])
            assert each.report.participated == () and each.report.late == (0, 1, 2)
            assert each.timeline.end_seconds == (number + 1) * deadline
            assert_adapters(each.state.adapters, run.first_adapters or {})
        arrives = next(each for each in run.rounds if each.report.participated)
        assert arrives.report.round_index >= empty
        assert set(arrives.report.participated) <= set(FAST)
        assert arrives.timeline.arrivals[0][0].round_index == 0
        assert_same_timelines(run, only_plan(config))


def test_an_elsa_round_in_which_all_are_busy_waits_for_the_first_deadline_or_the_last_arrival(tmp_path: Path) -> None:
    hand = Hand(prepare(town_config(tmp_path, slower_last=1.0)), slower_last=1.0)
    trunk = hand.trunk_seconds
    arrivals = {client: end_of(hand.split_work(WorkKey(0, 0, client), trunk)) for client in (0, 1, 2)}
    last = max(arrivals.values())
    # Round 0 ends, a trunk after its deadline, before anybody arrives; round 1's deadline is after the last arrival.
    # Both deadlines begin when the edge has the round's model: a trunk after the round's start.
    deadline = halfway((last - 3 * trunk) / 2, min(arrivals.values()) - 2 * trunk)
    policy = {"deadline_seconds": deadline, "late": "keep"}
    config = town_config(tmp_path, slower_last=1.0, world={"round_policy": policy}, protocol={"rounds": 2})
    run = train(config)
    assert (trunk + deadline + trunk) + trunk + deadline > last, "the second gather closes because all have arrived"
    first, second = run.timelines
    assert first.arrivals == ((), ()) and first.end_seconds == trunk + deadline + trunk
    assert len(run.rounds[1].plan.work) == 0
    assert second.arrivals == (tuple(WorkKey(0, 0, client) for client in (0, 1, 2)), ())
    assert second.gather_seconds.tolist() == [last, last + trunk]
    keys = [WorkKey(0, 0, client) for client in (0, 1, 2)]
    assert run.first_adapters is not None
    assert_adapters(run.rounds[0].state.adapters, run.first_adapters)
    expected = mean_by_hand(run, keys, trained_by_hand(run, keys, run.first_adapters))
    assert_adapters(run.rounds[1].state.adapters, expected)
    assert_same_timelines(run, only_plan(config))
