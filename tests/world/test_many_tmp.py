"""Random plans on random networks: the player against the slow obvious one, and laws that every timeline keeps."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest

from elsa_ray.network.graph import Network
from elsa_ray.world.plan import ActivityKind
from elsa_ray.world.timeline import Outcome, Timeline
from tests.network.networks import random_network
from tests.world.slow_player import SlowPlayer
from tests.world.stories import Scene, Story

SEEDS = range(60,1500)
SHAPES = ["tree", "mesh", "asymmetric", "shared", "directed"]


class Sample:
    """A random plan with the network, speeds and slots that it is played with."""

    def __init__(self, seed: int, *, keep_late: bool = False) -> None:
        self.rng = rng = random.Random(seed)
        self.network: Network = random_network(rng, SHAPES[seed % len(SHAPES)])
        names = self.network.node_names
        self.speeds = {name: rng.choice([1, 2, 7, 30]) for name in names}
        self.slots = {name: rng.choice([1, 1, 2, 3]) for name in names}
        self.story = Story(self.network, keep_late=keep_late)

    def scene(self) -> Scene:
        return Scene(self.network, speeds={name: float(speed) for name, speed in self.speeds.items()}, slots=self.slots)

    def slow(self) -> SlowPlayer:
        names = self.network.node_names
        speeds, slots = [self.speeds[name] for name in names], [self.slots[name] for name in names]
        return SlowPlayer(self.story.build(), self.network, speeds, slots).play()

    def row(self, after: list[int], work: int = -1) -> int:
        """Add a transfer or a computation somewhere; small numbers make many ties."""
        rng, names, number = self.rng, self.network.node_names, len(self.story.names)
        if rng.random() < 0.4:
            flops = rng.choice([0, 10, 10, rng.randint(1, 60)])
            return self.story.compute(f"c{number}", rng.choice(names), flops, after=after, work=work)
        size = rng.choice([0, 100, 100, rng.randint(1, 5000)])
        return self.story.send(f"t{number}", rng.choice(names), rng.choice(names), size, after=after, work=work)


def random_dag(seed: int, count: int = 30) -> Sample:
    sample = Sample(seed)
    rows: list[int] = []
    for _ in range(count):
        rows.append(sample.row(sample.rng.sample(rows, min(len(rows), sample.rng.choice([0, 1, 1, 2, 3])))))
    sample.story.gather("end", sample.network.node_names[0], rows)
    return sample


def random_rounds(seed: int, *, keep_late: bool) -> Sample:
    """Members train for an edge in up to three edge rounds with deadlines, beside background traffic."""
    sample = Sample(seed, keep_late=keep_late)
    rng, story, names = sample.rng, sample.story, sample.network.node_names
    for _ in range(4):
        sample.row([])
    ends = []
    for edge in rng.sample(names, 2):
        opener = -1
        for edge_round in range(rng.randint(1, 3)):
            ordinal = story.num_gathers
            uploads = []
            # The first member has no time to be late for, so that no gather waits for late work alone.
            for client in range(rng.randint(1, 4)):
                item = story.work(100 * names.index(edge) + client, gather=ordinal, edge_round=edge_round)
                last = [opener] if opener >= 0 else []
                for _ in range(rng.randint(0, 3) if client else 0):
                    last = [sample.row(last, item)]
                size = rng.choice([100, rng.randint(1, 3000)]) if client else 0
                source = rng.choice(names) if client else edge
                uploads.append(story.send(f"up{len(story.names)}", source, edge, size, after=last, work=item))
            deadline = rng.choice([None, 5.0, rng.random() * 40])
            opener = story.gather(
                f"gather{ordinal}", edge, uploads, edge_round=edge_round, opener=opener, deadline=deadline
            )
        ends.append(opener)
    story.gather("end", names[0], [*ends, sample.row(ends)])
    return sample


def assert_same(sample: Sample) -> Timeline:
    timeline, slow = sample.scene().play(sample.story), sample.slow()
    names = sample.story.names
    for row, expected in enumerate(slow.rows):
        assert Outcome(int(timeline.outcome[row])).label == expected.outcome, names[row]
        for found, exact in (
            (timeline.start_seconds[row], expected.start),
            (timeline.finish_seconds[row], expected.end),
        ):
            if exact is None:
                assert np.isnan(found), names[row]
            else:
                assert float(found) == pytest.approx(float(exact), rel=1e-9, abs=0.0), names[row]
        if expected.outcome != "pending":  # half a byte may be rounded either way
            assert abs(timeline.carried_bytes[row] - expected.carried) <= (expected.outcome == "dropped"), names[row]
    keys = [[timeline.work.key(work) for work in slow.taken[gather]] for gather in sorted(slow.taken)]
    assert [list(arrived) for arrived in timeline.arrivals] == [sorted(taken) for taken in keys]
    return timeline


@pytest.mark.parametrize("seed", SEEDS)
def test_any_dag_is_played_as_by_the_slow_player(seed: int) -> None:
    sample = random_dag(seed)
    timeline = assert_same(sample)
    assert_lawful(sample, timeline)
    assert (timeline.outcome == Outcome.DONE).all()
    assert (timeline.carried_bytes == timeline.activities.num_bytes).all()


@pytest.mark.parametrize("keep_late", [False, True], ids=["drop", "keep"])
@pytest.mark.parametrize("seed", SEEDS)
def test_any_round_with_deadlines_is_played_as_by_the_slow_player(seed: int, keep_late: bool) -> None:
    sample = random_rounds(seed, keep_late=keep_late)
    assert_lawful(sample, assert_same(sample))


def test_the_random_rounds_have_everything_that_they_should_compare() -> None:
    seen = {True: set[int](), False: set[int]()}
    for keep_late in (True, False):
        for seed in SEEDS:
            sample = random_rounds(seed, keep_late=keep_late)
            seen[keep_late] |= set(sample.scene().play(sample.story).outcome.tolist())
    assert seen[True] == {Outcome.DONE, Outcome.PENDING, Outcome.SKIPPED}
    assert seen[False] == {Outcome.DONE, Outcome.PENDING, Outcome.DROPPED}


def assert_lawful(sample: Sample, timeline: Timeline) -> None:
    plan = sample.story.build()
    start, finish = timeline.start_seconds, timeline.finish_seconds
    started = np.isfinite(start)
    assert (start[started] >= timeline.begin_seconds).all() and (start[started] <= timeline.end_seconds).all()
    ended = np.isfinite(start) & np.isfinite(finish)
    assert (finish[ended] >= start[ended]).all()
    is_gather = plan.activities.kind == ActivityKind.GATHER
    for before, after in zip(plan.predecessors.tolist(), plan.successors.tolist(), strict=True):
        if started[after] and not is_gather[after]:
            assert finish[before] <= start[after], "an activity starts when all before it have ended"
    assert_no_node_computes_more_than_its_slots(sample, timeline)
    assert_links_carry_no_more_than_they_can(sample, timeline)
    transfers = plan.activities.kind == ActivityKind.TRANSFER
    done = transfers & (timeline.outcome == Outcome.DONE)
    assert (timeline.carried_bytes[done] == plan.activities.num_bytes[done]).all()
    assert (timeline.carried_bytes >= 0).all() and (timeline.carried_bytes <= plan.activities.num_bytes).all()
    assert (timeline.carried_bytes[~transfers] == 0).all()


def assert_no_node_computes_more_than_its_slots(sample: Sample, timeline: Timeline) -> None:
    computes = (timeline.activities.kind == ActivityKind.COMPUTE) & np.isfinite(timeline.start_seconds)
    for node, name in enumerate(sample.network.node_names):
        rows = np.flatnonzero(computes & (timeline.activities.source == node))
        ends = np.where(np.isfinite(timeline.finish_seconds), timeline.finish_seconds, np.inf)
        for instant in timeline.start_seconds[rows]:
            running = (timeline.start_seconds[rows] <= instant) & (ends[rows] > instant)
            assert running.sum() <= sample.slots[name]


def assert_links_carry_no_more_than_they_can(sample: Sample, timeline: Timeline) -> None:
    """Between any two moments no capacity carries more than its bandwidth times the time between them."""
    find_path, activities = sample.scene().field.find_path, timeline.activities
    carried: dict[int, list[tuple[float, float, int]]] = {}
    for row in np.flatnonzero((timeline.outcome == Outcome.DONE) & (activities.num_bytes > 0)).tolist():
        path = find_path(int(activities.source[row]), int(activities.target[row]))
        flows_from = float(timeline.start_seconds[row]) + path.latency_seconds
        for capacity in path.capacities:
            entry = (flows_from, float(timeline.finish_seconds[row]), int(activities.num_bytes[row]))
            carried.setdefault(capacity, []).append(entry)
    for capacity, entries in carried.items():
        rate = Fraction(float(sample.network.capacity_bytes_per_second[capacity]))
        for begin, _, _ in entries:
            for _, end, _ in entries:
                within = sum(size for first, last, size in entries if first >= begin and last <= end)
                assert within <= rate * Fraction(max(0.0, end - begin)) * Fraction(1 + 1e-9)
