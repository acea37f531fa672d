"""The world goes on between rounds: what one long round plays, many short ones on the same state play too."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest

from elsa_ray.world.player import Phase, play
from elsa_ray.world.timeline import Outcome, Timeline, WorldState
from tests.network.networks import random_network
from tests.world.stories import Scene, Story, assert_equal, make_network

Times = dict[str, tuple[float, float]]


class Long:
    """A set of activities that ends in one upload to a hub; the rounds are cut by the hub's gathers.

    All of it is one work item, which is late at each cut and goes on.
    """

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.network = random_network(rng, ["tree", "mesh", "asymmetric", "shared", "directed"][seed % 5])
        self.names = self.network.node_names
        self.speeds = {name: rng.choice([1.0, 2.0, 7.0, 30.0]) for name in self.names}
        self.slots = {name: rng.choice([1, 1, 2]) for name in self.names}
        self.seed = seed

    def scene(self) -> Scene:
        return Scene(self.network, speeds=self.speeds, slots=self.slots)

    def story(self) -> tuple[Story, list[int]]:
        rng, story = random.Random(self.seed), Story(self.network, keep_late=True)
        item = story.work(client=0)
        rows: list[int] = []
        for number in range(24):
            after = rng.sample(rows, min(len(rows), rng.choice([0, 1, 1, 2])))
            if rng.random() < 0.4:
                row = story.compute(f"c{number}", rng.choice(self.names), rng.randint(1, 90), after=after, work=item)
            else:
                size, ends = rng.randint(1, 5000), (rng.choice(self.names), rng.choice(self.names))
                row = story.send(f"t{number}", *ends, size, after=after, work=item)
            rows.append(row)
        return story, [story.send("result", self.names[-1], self.names[0], 100, after=rows, work=item)]


def in_one_round(long: Long) -> Times:
    scene, (story, result) = long.scene(), long.story()
    story.gather("end", long.names[0], result)
    return scene.times(scene.play(story))


def in_rounds(long: Long, deadlines: list[float]) -> tuple[Times, list[Timeline], set[Phase]]:
    """Cut the round by deadlines, each counted from the cut before."""
    scene, hub = long.scene(), long.names[0]
    story, result = long.story()
    story.gather("cut0", hub, result, deadline=deadlines[0])
    timelines, phases = [scene.play(story)], set[Phase]()
    for number, deadline in enumerate([*deadlines[1:], None], start=1):
        phases |= {Phase(phase) for phase in scene.state.phase.tolist()}
        later = Story(long.network, round_index=number, keep_late=True)
        later.gather(f"cut{number}", hub, deadline=deadline)
        timelines.append(scene.play(later))
    assert len(scene.state.activities) == 0, "the last round waits for the late upload"
    return scene.times(*timelines), timelines, phases


ALL_PHASES = {Phase.WAITING, Phase.QUEUED, Phase.LATENCY, Phase.FLOWING, Phase.COMPUTING}


def test_interrupted_rounds_have_the_times_of_one_long_round() -> None:
    seen: set[Phase] = set()
    for seed in range(40):
        long = Long(seed)
        whole = in_one_round(long)
        end = whole["end"][1]
        cuts = sorted(long.rng.random() * end for _ in range(long.rng.randint(1, 6)))
        parts, _, phases = in_rounds(long, np.diff([0.0, *cuts]).tolist())
        seen |= phases
        for name, times in whole.items():
            if name != "end":
                assert parts[name] == pytest.approx(times, rel=1e-12, abs=0.0), (seed, name)
    assert seen == ALL_PHASES, "every phase was interrupted somewhere"


def test_a_row_is_reported_pending_until_it_ends_and_its_bytes_count_once() -> None:
    long = Long(3)
    end = in_one_round(long)["end"][1]
    _, timelines, _ = in_rounds(long, [end / 5] * 4)
    done = [timeline.outcome == Outcome.DONE for timeline in timelines]
    transfers = sum(
        int((rows & (timeline.activities.num_bytes > 0)).sum()) for timeline, rows in zip(timelines, done, strict=True)
    )
    story, _ = long.story()
    sizes = [name for name in story.names if name.startswith(("t", "result"))]
    assert transfers == len(sizes)
    for timeline, rows in zip(timelines, done, strict=True):
        assert (timeline.carried_bytes[rows] == timeline.activities.num_bytes[rows]).all()
        assert not timeline.carried_bytes[~rows].any()
        assert np.isnan(timeline.finish_seconds[~rows]).all()


CHAIN = make_network(("a", "m", 8.0, 0.5), ("m", "b", 16.0, 0.25))


def chain_story(scene: Scene) -> tuple[Story, int]:
    """Two chains over separate halves of the clock: each activity is alone on its links, one waits for a slot."""
    story = Story(scene.network, keep_late=True)
    item = story.work(client=0)
    up = story.send("up", "a", "b", 24, work=item)
    train = story.compute("train", "b", 4, after=[up], work=item)
    queued = story.compute("queued", "b", 2, after=[up], work=item)
    return story, story.send("down", "b", "a", 32, after=[train, queued], work=item)


@pytest.mark.parametrize("eighths", range(1, 16 * 8))
def test_with_no_other_traffic_an_interruption_changes_no_bit(eighths: int) -> None:
    """The figures are exact in binary, so each interruption is too, wherever it falls."""
    whole = {"up": (0.0, 3.75), "train": (3.75, 7.75), "queued": (7.75, 9.75), "down": (9.75, 14.5)}
    scene = Scene(CHAIN)
    story, last = chain_story(scene)
    story.gather("cut", "a", [last], deadline=eighths / 8)
    timelines = [scene.play(story)]
    later = Story(CHAIN, round_index=1, keep_late=True)
    later.gather("end", "a")
    timelines.append(scene.play(later))
    times = scene.times(*timelines)
    cut = min(eighths / 8, 14.5)
    assert times == {**whole, "cut": (cut, cut), "end": (14.5, 14.5) if cut < 14.5 else (cut, cut)}


def test_a_queue_keeps_its_order_over_the_end_of_a_round() -> None:
    """Who waited before the cut comes before who arrives after it, and they in the order of their arrival."""
    network = make_network(("a", "b", 8.0, 1.0), ("c", "b", 8.0, 3.0))
    scene = Scene(network)
    first = Story(network, keep_late=True)
    for name, source in (("third", "c"), ("second", "a")):
        first.compute(f"{name}", "b", 4, after=[first.send(f"to {name}", source, "b", 0)])
    first.compute("first", "b", 8)
    first.gather("cut", "a", [first.compute("pause", "a", 4)])
    log = scene.log(scene.play(first))
    assert ("second pending", None, None) in log and ("third pending", None, None) in log
    second = Story(network, round_index=1)
    fourth = second.compute("fourth", "b", 4)
    second.gather("end", "b", [fourth])
    times = scene.times(scene.play(second))
    assert {name: times[name] for name in ("first", "second", "third", "fourth")} == {
        "first": (0.0, 8.0),
        "second": (8.0, 12.0),
        "third": (12.0, 16.0),
        "fourth": (16.0, 20.0),
    }


def test_playing_is_a_function_of_its_arguments_and_leaves_them_alone() -> None:
    long = Long(8)
    end = in_one_round(long)["end"][1]
    scene, (story, result) = long.scene(), long.story()
    story.gather("cut", long.names[0], result, deadline=end / 3)
    scene.play(story)
    state = scene.state
    assert len(state.activities) > 3
    later = Story(long.network, round_index=1, keep_late=True)
    later.send("more", long.names[0], long.names[-1], 500)
    later.gather("cut1", long.names[0], deadline=end / 3)
    plan = later.build()
    before = copy.deepcopy((plan, state))
    first, second = play(plan, state, scene.field), play(plan, state, scene.field)
    assert_equal(first, second)
    assert_equal((plan, state), before)
    assert first[1].clock_seconds == end / 3 + end / 3


def test_the_first_state_is_empty_and_begins_at_zero() -> None:
    state: WorldState = Scene(CHAIN).state
    assert state.clock_seconds == 0.0
    assert len(state.activities) == len(state.work) == 0
    assert state.busy_clients == frozenset()
