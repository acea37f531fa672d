"""Parts of transfers, what a round waited for, and loads of links: on timelines computed by hand."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_ray.config.faults import EdgeCrash, FaultsConfig
from elsa_ray.network.graph import Network, build_network
from elsa_ray.records.slowest import merged_slowest, slowest_clients
from elsa_ray.records.work_time import WorkClock
from elsa_ray.world.critical_path import critical_path
from elsa_ray.world.disturbances import Disturbances
from elsa_ray.world.faults import begins_in_round, make_faults, spells_of
from elsa_ray.world.link_load import NUM_BINS, busiest_links
from elsa_ray.world.plan import Plan
from elsa_ray.world.timeline import Timeline
from elsa_ray.world.transfer_parts import TransferParts, transfer_parts
from tests.world.stories import Scene, Story


def cell(*, medium: bool = False) -> Network:
    """Two clients behind a mast, an edge behind a link of 8 bytes a second, and a cloud: 0.25 s a link."""
    graph = nx.Graph()
    for name, kind in (("c0", "client"), ("c1", "client"), ("mast", "router"), ("edge", "edge"), ("cloud", "cloud")):
        graph.add_node(name, kind=kind)
    for source, target in (("c0", "mast"), ("c1", "mast"), ("mast", "edge"), ("edge", "cloud")):
        more = {"shared_medium": True} if medium and target == "edge" else {}
        graph.add_edge(source, target, bandwidth_bytes_per_second=8.0, latency_seconds=0.25, **more)
    return build_network(graph, "cell", roles_required=True)


def played(scene: Scene, story: Story) -> tuple[Plan, Timeline, TransferParts]:
    timeline = scene.play(story)
    return story.build(), timeline, transfer_parts(timeline)


def two_uploads(network: Network, *, deadline: float | None = None, keep_late: bool = False) -> Story:
    """Both clients train (4 s and 3 s), send 16 bytes each to the edge, and the edge tests each (2 s, one slot).

    Client 1's bytes flow from 3.5, client 0's from 4.5 on; they share until 6.5, when client 1 has arrived; client 0
    has at 7.5. The edge tests client 1 from 6.5 to 8.5 and client 0, which has waited 1 s, to 10.5.
    """
    story = Story(network, keep_late=keep_late)
    tests = []
    for client, flops in ((0, 4), (1, 3)):
        item = story.work(client)
        trained = story.compute(f"train{client}", f"c{client}", flops, work=item)
        sent = story.send(f"up{client}", f"c{client}", "edge", 16, after=[trained], work=item)
        tests.append(story.compute(f"test{client}", "edge", 2, after=[sent], work=item))
    story.gather("end", "edge", tests, deadline=deadline)
    return story


def test_parts_of_transfers_that_share() -> None:
    network = cell()
    _, timeline, parts = played(Scene(network), two_uploads(network))
    assert (timeline.finish_seconds - timeline.start_seconds)[parts.rows_T].tolist() == [3.5, 3.5]
    assert parts.seconds_T3.tolist() == [[0.5, 2.0, 1.0], [0.5, 2.0, 1.0]]
    assert parts.of_row(int(parts.rows_T[1])) == (0.5, 2.0, 1.0)
    assert parts.of_row(0) == (0.0, 0.0, 0.0)


def test_a_transfer_alone_has_no_sharing_and_one_at_home_no_time() -> None:
    network = cell()
    story = Story(network)
    rows = [
        story.send("up", "c0", "edge", 12),
        story.send("home", "edge", "edge", 99),
        story.send("n", "c1", "edge", 0),
    ]
    story.gather("end", "edge", rows)
    _, _, parts = played(Scene(network), story)
    assert parts.seconds_T3.tolist() == [[0.5, 1.5, 0.0], [0.0, 0.0, 0.0], [0.5, 0.0, 0.0]]


def test_a_transfer_that_is_broken_off_counts_what_it_carried() -> None:
    """At 6.0 client 1 has carried 8 bytes alone and 6 more at half the rate, client 0 six bytes."""
    network = cell()
    _, timeline, parts = played(Scene(network), two_uploads(network, deadline=6.0))
    assert timeline.carried_bytes[parts.rows_T].tolist() == [6, 14]
    assert parts.seconds_T3.tolist() == [[0.5, 0.75, 0.75], [0.5, 1.75, 0.75]]


def test_what_a_round_waited_for() -> None:
    network = cell()
    plan, timeline, parts = played(Scene(network), two_uploads(network))
    path = critical_path(plan, timeline, parts, network)
    assert path.seconds == {
        "client_compute": 4.0, "edge_compute": 2.0, "edge_queue": 1.0, "latency": 0.5, "bandwidth": 2.0, "sharing": 1.0,
    }  # fmt: skip
    assert sum(path.seconds.values()) == timeline.end_seconds == 10.5
    assert path.rows == (0, 1, 2, 6)


def test_a_round_that_waited_for_its_deadline() -> None:
    network = cell()
    story = two_uploads(network, deadline=8.75)  # client 1 is through at 8.5, client 0 is not
    plan, timeline, parts = played(Scene(network), story)
    assert critical_path(plan, timeline, parts, network).seconds == {"deadline": 8.75}


def test_a_deadline_counts_from_the_opening_and_the_chain_goes_on_before() -> None:
    network = cell()
    story = Story(network)
    opener = story.send("model", "cloud", "edge", 16)  # 2.25 s
    late = story.compute("train", "c0", 100, after=[opener], work=story.work(0))
    closed = story.gather("end", "edge", [late], opener=opener, deadline=3.0)
    story.send("up", "edge", "cloud", 8, after=[closed])
    story.gather("cloud's", "cloud", [3])
    plan, timeline, parts = played(Scene(network), story)
    path = critical_path(plan, timeline, parts, network)
    assert path.seconds == {"latency": 0.5, "bandwidth": 3.0, "deadline": 3.0}
    assert sum(path.seconds.values()) == timeline.end_seconds == 6.5


def test_a_round_that_waited_for_late_work_of_the_one_before() -> None:
    """Kept work is over at 10.5; a round without members of its own waits for it."""
    network = cell()
    scene = Scene(network)
    _, first, _ = played(scene, two_uploads(network, deadline=8.75, keep_late=True))
    story = Story(network, round_index=1, keep_late=True)
    story.gather("again", "edge")
    plan, timeline, parts = played(scene, story)
    assert (first.end_seconds, timeline.end_seconds) == (8.75, 10.5)
    assert critical_path(plan, timeline, parts, network).seconds == {"late_work": 1.75}
    assert not len(parts.rows_T), "both uploads ended in the round before"


def test_a_round_that_waited_for_an_edge_that_crashed() -> None:
    """The edge is gone at 5.0 with both clients' work: the cloud's gather waits for nobody any more, and closes."""
    network = cell()
    scene = Scene(network, clients=("c0", "c1"))
    story = Story(network)
    item = story.work(0, edge="edge")
    trained = story.compute("train", "c0", 4, work=item)
    up = story.send("up", "c0", "edge", 16, after=[trained], work=item)
    closed = story.gather("edge's", "edge", [up])
    told = story.send("tell", "edge", "cloud", 8, after=[closed])
    story.gather("cloud's", "cloud", [told])
    faults = FaultsConfig(edges=[EdgeCrash(edge="edge", start_seconds=5, duration_seconds=99)])
    spells = make_faults(faults, network, seed=0)
    crash = Disturbances(spells=spells_of(spells, begins_in_round(spells, (), 0, 0.0), 0))
    timeline = scene.play(story, crash)
    plan, parts = story.build(), transfer_parts(timeline)
    path = critical_path(plan, timeline, parts, network)
    assert path.seconds == {"client_compute": 4.0, "latency": 0.5, "bandwidth": 0.5}
    assert sum(path.seconds.values()) == timeline.end_seconds == 5.0


def test_late_work_keeps_its_parts_over_rounds() -> None:
    """The deadline falls into client 0's upload: latency over, 6 bytes carried, the rest in the next round."""
    network = cell()
    scene = Scene(network)
    clock = WorkClock(network)
    plan, timeline, parts = played(scene, two_uploads(network, deadline=6.0, keep_late=True))
    assert not len(parts.rows_T)
    assert clock.add(plan, timeline).keys == ()
    story = Story(network, round_index=1, keep_late=True)
    story.gather("again", "edge")
    plan, timeline, parts = played(scene, story)
    arrived = clock.add(plan, timeline)
    assert arrived.transfer_seconds_W3.tolist() == [[0.5, 2.0, 1.0], [0.5, 2.0, 1.0]]
    assert arrived.active_seconds.tolist() == [10.5, 8.5]
    assert critical_path(plan, timeline, parts, network).seconds == {"late_work": 4.5}


def test_the_slowest_clients_and_why() -> None:
    network = cell()
    plan, timeline, _ = played(Scene(network), two_uploads(network))
    slow, fast = slowest_clients(WorkClock(network).add(plan, timeline), timeline, network)
    assert slow == {
        "client": 0, "name": "c0", "round": 0, "edge_round": 0, "edge": None, "dropped_because": None, "seconds": 10.5,
        "client_compute": 4.0, "edge_compute": 2.0, "queueing": 1.0, "latency": 0.5, "bandwidth": 2.0, "sharing": 1.0,
        "waiting_for_model": 0.0,
    }  # fmt: skip
    assert (fast["name"], fast["seconds"], fast["queueing"]) == ("c1", 8.5, 0.0)


def test_a_dropped_client_is_slow_until_it_was_dropped() -> None:
    """At 8.0 client 1 is being tested, client 0 waits for the slot since 7.5."""
    network = cell()
    plan, timeline, _ = played(Scene(network), two_uploads(network, deadline=8.0))
    arrived = WorkClock(network).add(plan, timeline)
    assert arrived.keys == () and len(arrived.dropped.keys) == 2
    first, second = slowest_clients(arrived, timeline, network)
    told = [(entry["name"], entry["dropped_because"], entry["seconds"], entry["queueing"]) for entry in (first, second)]
    assert told == [("c0", "deadline", 8.0, 0.5), ("c1", "deadline", 8.0, 0.0)]
    assert (first["edge_compute"], second["edge_compute"]) == (0.0, 1.5)


def test_the_slowest_of_rounds_are_those_of_the_run() -> None:
    def entry(client: int, round_index: int, seconds: float) -> dict[str, float]:
        return {"client": client, "round": round_index, "edge_round": 0, "seconds": seconds}

    generator = np.random.default_rng(0)
    times = generator.integers(0, 50, size=(4, 30)).astype(float)
    rounds = [
        merged_slowest([entry(client, number, own) for client, own in enumerate(row)])
        for number, row in enumerate(times.tolist())
    ]
    assert all(len({one["client"] for one in own}) == len(own) == 10 for own in rounds)
    merged = merged_slowest([one for own in rounds for one in own])
    longest = np.sort(times.max(axis=0))[::-1][:10]
    assert [one["seconds"] for one in merged] == longest.tolist()


def test_loads_of_links() -> None:
    """Only the mast's link to the edge is shared: 32 bytes in 10.5 s over 8 bytes a second."""
    network = cell()
    _, timeline, parts = played(Scene(network), two_uploads(network))
    (load,) = busiest_links(timeline, parts, network)
    assert (load.name, load.num_bytes) == ("mast → edge", 32.0)
    assert load.utilisation == pytest.approx(32 / (8 * 10.5), rel=1e-12)
    assert load.profile_B.mean() == pytest.approx(load.utilisation, rel=1e-12)
    # 16 bytes evenly over 3.5 to 6.5 and 16 over 4.5 to 7.5; between 4.5 and 6.5 both: more than the capacity.
    centre = (np.arange(NUM_BINS) + 0.5) * 10.5 / NUM_BINS
    rate = 16 / 3 * ((centre > 3.5) & (centre < 6.5)) + 16 / 3 * ((centre > 4.5) & (centre < 7.5))
    inside = np.abs(centre[:, None] - np.array([3.5, 4.5, 6.5, 7.5])).min(axis=1) > 10.5 / NUM_BINS
    np.testing.assert_allclose(load.profile_B[inside], rate[inside] / 8, rtol=1e-9, atol=1e-9)


def test_both_directions_of_a_shared_medium_are_one_link() -> None:
    network = cell(medium=True)
    story = Story(network)
    rows = [story.send("up", "c0", "edge", 16), story.send("down", "edge", "c1", 24)]
    story.gather("end", "edge", rows)
    _, timeline, parts = played(Scene(network), story)
    (load,) = busiest_links(timeline, parts, network)
    assert (load.name, load.num_bytes) == ("mast ↔ edge", 40.0)


def test_a_transfer_over_two_rounds_loads_the_second_one_with_its_time_there() -> None:
    """Client 0's 16 bytes flow from 4.5 to 7.5, and the second round begins at 6: half of them."""
    network = cell()
    scene = Scene(network)
    played(scene, two_uploads(network, deadline=6.0, keep_late=True))
    story = Story(network, round_index=1, keep_late=True)
    story.gather("again", "edge")
    _, timeline, parts = played(scene, story)
    (load,) = busiest_links(timeline, parts, network)
    assert load.num_bytes == pytest.approx(16 / 2 + 16 * 0.5 / 3, rel=1e-12)
    assert load.profile_B.mean() == pytest.approx(load.utilisation, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_profiles_equal_a_slow_count(data: st.DataObject) -> None:
    """Uploads of any size and start: each slice has what an obvious loop over flows and slices gives it."""
    network = cell()
    story = Story(network)
    rows = []
    for number in range(data.draw(st.integers(1, 6))):
        begin = story.compute(f"wait{number}", "c0" if number % 2 else "c1", data.draw(st.integers(0, 40)))
        rows.append(story.send(f"up{number}", "c0", "edge", data.draw(st.integers(1, 200)), after=[begin]))
    story.gather("end", "edge", rows)
    _, timeline, parts = played(Scene(network), story)
    load = next(load for load in busiest_links(timeline, parts, network) if load.name == "mast → edge")
    edges = np.linspace(0, timeline.end_seconds, NUM_BINS + 1)
    expected = np.zeros(NUM_BINS)
    for row, (latency, _, _) in zip(parts.rows_T, parts.seconds_T3, strict=True):
        begin, end = timeline.start_seconds[row] + latency, timeline.finish_seconds[row]
        overlap = np.clip(np.minimum(end, edges[1:]) - np.maximum(begin, edges[:-1]), 0, None)
        expected += timeline.carried_bytes[row] * overlap / (end - begin)
    np.testing.assert_allclose(load.profile_B, expected / (8 * np.diff(edges)), rtol=1e-9, atol=1e-9)
