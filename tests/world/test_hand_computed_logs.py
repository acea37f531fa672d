"""Whole event logs, computed by hand in numbers that floats hold exactly, and compared with ``==``.

All stories: bandwidths in bytes per second, one FLOP a second and one slot a node where nothing else is said.
"""

from __future__ import annotations

import pytest

from tests.world.stories import Log, Scene, Story, make_network

PAIR = make_network(("a", "b", 8.0, 0.5))
LINE = make_network(("a", "m", 8.0, 0.25), ("m", "b", 4.0, 0.25))
STAR = make_network(*((f"u{user}", "edge", 16.0, 0.0) for user in range(9)))


def log_of(scene: Scene, story: Story) -> Log:
    return scene.log(scene.play(story))


def test_one_transfer_waits_the_latency_and_then_flows_at_the_bottleneck() -> None:
    story = Story(LINE)
    story.gather("end", "b", [story.send("up", "a", "b", 16)])
    assert log_of(Scene(LINE), story) == [("up", 0.0, 4.5), ("end", 4.5, 4.5)]


def test_two_transfers_share_a_link_and_the_longer_speeds_up() -> None:
    story = Story(PAIR)
    rows = [story.send("long", "a", "b", 24), story.send("short", "a", "b", 8)]
    story.gather("end", "b", rows)
    assert log_of(Scene(PAIR), story) == [("long", 0.0, 4.5), ("short", 0.0, 2.5), ("end", 4.5, 4.5)]


def test_the_directions_of_a_link_do_not_share() -> None:
    story = Story(PAIR)
    story.gather("end", "b", [story.send("there", "a", "b", 16), story.send("back", "b", "a", 16)])
    assert log_of(Scene(PAIR), story) == [("there", 0.0, 2.5), ("back", 0.0, 2.5), ("end", 2.5, 2.5)]


def test_an_asymmetric_link_has_its_own_bandwidth_in_each_direction() -> None:
    network = make_network(
        ("phone", "mast", 2.0, 0.25, {"reverse_bandwidth_bytes_per_second": 8.0, "source_node": "phone"})
    )
    story = Story(network)
    up = story.send("up", "phone", "mast", 8)
    down = story.send("down", "mast", "phone", 8, after=[up])
    story.gather("end", "phone", [down])
    assert log_of(Scene(network), story) == [("up", 0.0, 4.25), ("down", 4.25, 5.5), ("end", 5.5, 5.5)]


def test_both_directions_of_a_shared_medium_draw_from_one_capacity() -> None:
    network = make_network(("phone", "mast", 8.0, 0.0, {"shared_medium": True}))
    story = Story(network)
    story.gather("end", "mast", [story.send("up", "phone", "mast", 8), story.send("down", "mast", "phone", 16)])
    assert log_of(Scene(network), story) == [("up", 0.0, 2.0), ("down", 0.0, 3.0), ("end", 3.0, 3.0)]


def test_a_chain_of_messages_and_computations_follows_its_dependencies() -> None:
    story = Story(LINE)
    front = story.compute("front", "a", 32)
    up = story.send("up", "a", "b", 8, after=[front])
    middle = story.compute("middle", "b", 64, after=[up])
    down = story.send("down", "b", "a", 16, after=[middle])
    back = story.compute("back", "a", 8, after=[down])
    story.gather("end", "a", [back])
    assert log_of(Scene(LINE, speeds={"a": 16.0, "b": 128.0}), story) == [
        ("front", 0.0, 2.0),
        ("up", 2.0, 4.5),
        ("middle", 4.5, 5.0),
        ("down", 5.0, 9.5),
        ("back", 9.5, 10.0),
        ("end", 10.0, 10.0),
    ]


def test_an_activity_waits_for_the_last_of_its_predecessors() -> None:
    story = Story(PAIR)
    slow, quick = story.compute("slow", "a", 4), story.compute("quick", "b", 1)
    both = story.send("both", "a", "b", 8, after=[slow, quick, slow])
    story.gather("end", "b", [both])
    assert log_of(Scene(PAIR), story) == [
        ("slow", 0.0, 4.0),
        ("quick", 0.0, 1.0),
        ("both", 4.0, 5.5),
        ("end", 5.5, 5.5),
    ]


def test_nine_users_at_an_edge_of_three_slots_are_served_three_by_three() -> None:
    story = Story(STAR)
    rows = []
    for user in range(9):
        up = story.send(f"up{user}", f"u{user}", "edge", 16)
        rows.append(story.compute(f"train{user}", "edge", 2, after=[up]))
    story.gather("end", "edge", rows)
    log = log_of(Scene(STAR, slots={"edge": 3}), story)
    expected: Log = []
    for user in range(9):
        turn = 1.0 + 2.0 * (user // 3)
        expected += [(f"up{user}", 0.0, 1.0), (f"train{user}", turn, turn + 2.0)]
    assert log == [*expected, ("end", 7.0, 7.0)]


def test_the_queue_of_an_edge_is_first_come_first_served() -> None:
    story = Story(STAR)
    sizes = [64, 48, 32, 16]  # the last user arrives first
    rows = []
    for user, num_bytes in enumerate(sizes):
        up = story.send(f"up{user}", f"u{user}", "edge", num_bytes)
        rows.append(story.compute(f"train{user}", "edge", 4, after=[up]))
    story.gather("end", "edge", rows)
    assert log_of(Scene(STAR), story) == [
        ("up0", 0.0, 4.0),
        ("train0", 13.0, 17.0),
        ("up1", 0.0, 3.0),
        ("train1", 9.0, 13.0),
        ("up2", 0.0, 2.0),
        ("train2", 5.0, 9.0),
        ("up3", 0.0, 1.0),
        ("train3", 1.0, 5.0),
        ("end", 17.0, 17.0),
    ]


def test_a_slot_freed_at_an_instant_goes_to_who_waited_not_to_who_arrives_then() -> None:
    story = Story(STAR)
    first = story.compute("first", "edge", 2)
    up = story.send("up", "u0", "edge", 32)  # arrives at 2, in a row before the one that waits since 0
    newcomer = story.compute("newcomer", "edge", 1, after=[up])
    waiting = story.compute("waiting", "edge", 1)
    story.gather("end", "edge", [first, newcomer, waiting])
    assert log_of(Scene(STAR), story) == [
        ("first", 0.0, 2.0),
        ("up", 0.0, 2.0),
        ("newcomer", 3.0, 4.0),
        ("waiting", 2.0, 3.0),
        ("end", 4.0, 4.0),
    ]


def test_arrivals_of_one_instant_queue_by_row_even_behind_a_computation_of_no_length() -> None:
    """The arrival of ``early`` goes through a step that takes no time; it is still of the same instant."""
    story = Story(STAR)
    busy = story.compute("busy", "edge", 2)
    early = story.compute("early", "edge", 1)
    late = story.compute("late", "edge", 1)
    nothing = story.compute("nothing", "u0", 0)
    story.depend(early, nothing)
    story.gather("end", "edge", [busy, early, late])
    assert log_of(Scene(STAR), story) == [
        ("busy", 0.0, 2.0),
        ("early", 2.0, 3.0),
        ("late", 3.0, 4.0),
        ("nothing", 0.0, 0.0),
        ("end", 4.0, 4.0),
    ]


def test_zero_bytes_cost_the_latency_alone() -> None:
    story = Story(LINE)
    story.gather("end", "b", [story.send("ping", "a", "b", 0), story.send("load", "a", "b", 8)])
    assert log_of(Scene(LINE), story) == [("ping", 0.0, 0.5), ("load", 0.0, 2.5), ("end", 2.5, 2.5)]


def test_a_message_to_oneself_costs_nothing() -> None:
    story = Story(LINE)
    before = story.compute("before", "a", 3)
    note = story.send("note", "a", "a", 10**9, after=[before])
    after = story.compute("after", "a", 1, after=[note])
    story.gather("end", "a", [after])
    assert log_of(Scene(LINE), story) == [
        ("before", 0.0, 3.0),
        ("note", 3.0, 3.0),
        ("after", 3.0, 4.0),
        ("end", 4.0, 4.0),
    ]


def test_zero_bytes_without_latency_pass_in_no_time() -> None:
    story = Story(STAR)
    ping = story.send("ping", "u0", "edge", 0)
    story.gather("end", "edge", [story.send("pong", "edge", "u0", 0, after=[ping])])
    assert log_of(Scene(STAR), story) == [("ping", 0.0, 0.0), ("pong", 0.0, 0.0), ("end", 0.0, 0.0)]


def test_a_transfer_in_its_latency_takes_no_bandwidth() -> None:
    """Both cross m-b; the one from far away arrives there 2 s later, and shares from then on."""
    network = make_network(("near", "m", 8.0, 0.0), ("far", "m", 8.0, 2.0), ("m", "b", 8.0, 0.0))
    story = Story(network)
    story.gather("end", "b", [story.send("near", "near", "b", 32), story.send("far", "far", "b", 16)])
    assert log_of(Scene(network), story) == [("near", 0.0, 6.0), ("far", 0.0, 6.0), ("end", 6.0, 6.0)]


def test_an_unfinished_latency_ends_among_the_flows_that_it_slows_down() -> None:
    network = make_network(("near", "m", 8.0, 0.0), ("far", "m", 8.0, 2.0), ("m", "b", 8.0, 0.0))
    story = Story(network)
    story.gather("end", "b", [story.send("near", "near", "b", 48), story.send("far", "far", "b", 8)])
    assert log_of(Scene(network), story) == [("near", 0.0, 7.0), ("far", 0.0, 4.0), ("end", 7.0, 7.0)]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_ends_at_one_instant_lets_its_successors_start_in_the_order_of_their_rows(order: tuple[int, int]) -> None:
    """Two transfers end together; the computations behind them want one slot, which the lower row gets."""
    story = Story(STAR)
    ups = [story.send(f"up{user}", f"u{user}", "edge", 32) for user in (0, 1)]
    trains = [story.compute(f"train{user}", "edge", 1, after=[ups[user]]) for user in order]
    story.gather("end", "edge", trains)
    first, second = order
    assert log_of(Scene(STAR), story) == [
        ("up0", 0.0, 2.0),
        ("up1", 0.0, 2.0),
        (f"train{first}", 2.0, 3.0),
        (f"train{second}", 3.0, 4.0),
        ("end", 4.0, 4.0),
    ]


def test_a_round_ends_with_its_last_gather_and_not_with_the_last_activity() -> None:
    scene, story = Scene(PAIR), Story(PAIR)
    story.compute("background", "a", 100)
    story.gather("end", "b", [story.compute("short", "b", 2)])
    timeline = scene.play(story)
    assert scene.log(timeline) == [("background pending", 0.0, None), ("short", 0.0, 2.0), ("end", 2.0, 2.0)]
    assert (timeline.begin_seconds, timeline.end_seconds) == (0.0, 2.0)
    after = Story(PAIR, round_index=1)
    after.gather("end2", "a", [after.compute("behind", "a", 1)])
    timeline = scene.play(after)
    assert scene.log(timeline) == [("background", 0.0, 100.0), ("behind", 100.0, 101.0), ("end2", 101.0, 101.0)]
    assert (timeline.begin_seconds, timeline.end_seconds) == (2.0, 101.0)


def test_nodes_of_infinite_speed_compute_in_no_time() -> None:
    story = Story(PAIR)
    story.gather("end", "a", [story.compute("mean", "a", 10**12)])
    assert log_of(Scene(PAIR, speeds={"a": float("inf")}), story) == [("mean", 0.0, 0.0), ("end", 0.0, 0.0)]


def test_a_step_of_no_length_does_not_turn_the_clock_back() -> None:
    """From 7/3 to 20/3 the sum of the steps is, in floats, more than 20/3: then nothing more may lie before now."""
    assert 7 / 3 + (20 / 3 - 7 / 3) > 20 / 3
    story = Story(PAIR)
    first = story.compute("first", "b", 7)
    long = story.compute("long", "a", 20)
    nothing = story.compute("nothing", "a", 0, after=[first, long])
    story.gather("end", "a", [nothing])
    assert log_of(Scene(PAIR, speeds={"a": 3.0, "b": 3.0}), story) == [
        ("first", 0.0, 7 / 3),
        ("long", 0.0, 20 / 3),
        ("nothing", 20 / 3, 20 / 3),
        ("end", 20 / 3, 20 / 3),
    ]


def test_a_plan_that_waits_for_itself_is_an_error_and_not_a_hang() -> None:
    story = Story(PAIR)
    first = story.compute("first", "a", 1)
    second = story.compute("second", "a", 1, after=[first])
    story.depend(first, second)
    story.gather("end", "a", [second])
    with pytest.raises(RuntimeError, match="round 0: nothing is under way"):
        Scene(PAIR).play(story)


def test_a_gather_that_waits_for_itself_is_an_error_even_behind_real_work() -> None:
    story = Story(PAIR, round_index=7)
    row = story.gather("end", "a", [story.compute("done", "a", 1)])
    story.depend(row, row)
    with pytest.raises(RuntimeError, match="round 7: nothing is under way"):
        Scene(PAIR).play(story)
