"""Joules by a closed form, and times that do not depend on the order in which independent things are written down."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from elsa_ray.network.graph import assemble
from elsa_ray.network.routes import Router
from elsa_ray.world.devices import Device
from elsa_ray.world.energy import energy_joules
from elsa_ray.world.fleet import Fleet
from elsa_ray.world.plan import ActivityKind
from elsa_ray.world.world import World
from tests.world.stories import Scene, Story, make_network
from tests.world.towns import CLIENT_FLOPS, EDGE_FLOPS, only_plan, town_config


def test_energy_is_watts_times_busy_seconds_and_the_radio_of_each_byte(tmp_path: Path) -> None:
    """The town's clients draw 4 W and 0.25 J a byte, its edge 64 W; routers, links and the cloud draw nothing."""
    run = only_plan(town_config(tmp_path, protocol={"rounds": 2, "edge_rounds": 2}))
    setting = run.prepared.setting
    for timeline in run.timelines:
        activities = timeline.activities
        at_client = np.isin(activities.source, setting.network.clients)
        client_flops = int(activities.flops[at_client].sum())
        edge_flops = int(activities.flops[~at_client].sum())
        is_radio = (activities.kind == ActivityKind.TRANSFER) & (activities.client >= 0)
        radio_bytes = int(activities.num_bytes[is_radio].sum())
        assert client_flops > 0 and edge_flops > 0
        expected = 4 * client_flops / CLIENT_FLOPS + 64 * edge_flops / EDGE_FLOPS + 0.25 * radio_bytes
        found = energy_joules(timeline, setting.network, setting.fleet)
        assert found == pytest.approx(expected, rel=1e-12)


def test_work_that_spans_rounds_is_paid_once_and_dropped_work_until_it_is_dropped() -> None:
    network = assemble(
        [{"id": "phone", "kind": "client"}, {"id": "edge", "kind": "edge"}, {"id": "cloud", "kind": "cloud"}],
        [
            {"source": "phone", "target": "edge", "bandwidth_bytes_per_second": 8.0, "latency_seconds": 0.0},
            {"source": "edge", "target": "cloud", "bandwidth_bytes_per_second": 8.0, "latency_seconds": 0.0},
        ],
        "story",
        directed=False,
        roles_required=True,
    )
    fleet = Fleet((Device("phone", 1.0, 2.0, 0.5),), Device("edge", 1.0, 16.0, 0.0))
    world = World(network, Router(network), fleet=fleet, edge_slots=1)

    story = Story(network, keep_late=True)
    item = story.work(0)
    trained = story.compute("long", "phone", 8, work=item)
    up = story.send("up", "phone", "edge", 16, after=[trained], work=item)
    story.compute("aggregate", "edge", 2)
    story.send("trunk", "edge", "cloud", 8)
    story.gather("gather", "edge", [up], deadline=4.0)
    first, state = world.play(story.build(), world.start())
    assert energy_joules(first, network, fleet) == 2 * 16.0

    # The long computation ends at 8 s and is paid whole. From 4 s to 8 s two messages of 16 bytes share the link; then
    # the upload flows until the deadline at 9 s. The edge has computed for 5 s when its work is dropped too.
    story = Story(network, round_index=1, keep_late=False)
    story.send("one", "phone", "edge", 16)
    story.send("other", "phone", "edge", 16)
    gone = story.work(1)
    slow = story.compute("slow", "edge", 100, work=gone)
    note = story.send("note", "edge", "edge", 1, after=[slow], work=gone)
    story.gather("gather'", "edge", [note], deadline=5.0)
    second, state = world.play(story.build(), state)
    assert second.carried_bytes.tolist() == [0, 8, 16, 16, 0, 0, 0]
    assert energy_joules(second, network, fleet) == 8 * 2.0 + (16 + 16 + 8) * 0.5 + 5 * 16.0
    assert len(state.activities) == 0


GROUPS = 5


def independent_groups(seed: int) -> list[list[tuple[str, str, str, int, list[int]]]]:
    """Return groups of (name, source, target, amount, predecessors within the group); each has a pair of nodes."""
    rng, groups = random.Random(seed), []
    for group in range(GROUPS):
        rows: list[tuple[str, str, str, int, list[int]]] = []
        for number in range(10):
            ends = rng.sample([f"a{group}", f"b{group}"], 2)
            source, target = ends if rng.random() < 0.6 else (ends[0], ends[0])
            after = sorted(rng.sample(range(number), min(number, rng.choice([0, 1, 2]))))
            rows.append((f"{group}.{number}", source, target, rng.choice([10, rng.randint(1, 300)]), after))
        groups.append(rows)
    return groups


def times_of_order(seed: int, order: list[int]) -> dict[str, tuple[float, float]]:
    """Play the groups with their rows interleaved as ``order`` says: each entry takes the next row of that group."""
    rng = random.Random(seed)
    network = make_network(
        *((f"a{group}", f"b{group}", rng.randint(1, 90), rng.random()) for group in range(GROUPS)),
        *((f"a{group}", f"a{group + 1}", 1.0, 1.0) for group in range(GROUPS - 1)),
    )
    groups, story = independent_groups(seed), Story(network)
    rows: dict[str, int] = {}
    position = [0] * GROUPS
    for group in order:
        name, source, target, amount, after = groups[group][position[group]]
        before = [rows[f"{group}.{number}"] for number in after]
        if source == target:
            rows[name] = story.compute(name, source, amount, after=before)
        else:
            rows[name] = story.send(name, source, target, amount, after=before)
        position[group] += 1
    story.gather("end", "a0", list(rows.values()))
    scene = Scene(network, speeds={name: 13.0 for name in network.node_names})
    return scene.times(scene.play(story))


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_rows_of_independent_groups_does_not_change_a_bit(seed: int) -> None:
    order = [group for group in range(GROUPS) for _ in range(10)]
    plain = times_of_order(seed, order)
    assert len(plain) == 10 * GROUPS + 1
    for shuffle in range(3):
        mixed = list(order)
        random.Random(1000 * seed + shuffle).shuffle(mixed)
        assert times_of_order(seed, mixed) == plain
