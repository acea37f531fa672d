"""Deadlines, and the two policies for what is late, on plans made by hand: whole logs, compared with ``==``."""

from __future__ import annotations

from elsa_ray.world.plan import WorkKey
from tests.world.stories import Log, Scene, Story, make_network

STAR = make_network(*((f"u{user}", "edge", 8.0, 0.5) for user in range(4)), ("edge", "cloud", 8.0, 0.5))


def member(story: Story, user: int, flops: int, *, gather: int = 0, edge_round: int = 0, after: int = -1) -> int:
    """One client's work: training on its own node, then an upload of 8 bytes, which takes 1.5 s alone."""
    item = story.work(user, gather=gather, edge_round=edge_round)
    before = [after] if after >= 0 else []
    tag = f"{user}" if edge_round == 0 else f"{user}'"
    trained = story.compute(f"train{tag}", f"u{user}", flops, after=before, work=item)
    return story.send(f"up{tag}", f"u{user}", "edge", 8, after=[trained], work=item)


def test_without_a_deadline_a_gather_closes_when_the_last_member_has_arrived() -> None:
    story = Story(STAR)
    story.gather("gather", "edge", [member(story, 0, 1), member(story, 1, 10)])
    timeline = Scene(STAR).play(story)
    assert timeline.gather_seconds.tolist() == [11.5]
    assert timeline.arrivals == ((WorkKey(0, 0, 0), WorkKey(0, 0, 1)),)


def test_a_gather_closes_before_its_deadline_when_all_have_arrived() -> None:
    story = Story(STAR)
    story.gather("gather", "edge", [member(story, 0, 1), member(story, 1, 2)], deadline=64.0)
    timeline = Scene(STAR).play(story)
    assert timeline.end_seconds == 3.5
    assert (timeline.dropped, timeline.skipped, timeline.pending) == ((), (), ())


def test_who_arrives_at_the_deadline_is_in_time() -> None:
    for keep_late in (False, True):
        story = Story(STAR, keep_late=keep_late)
        story.gather("gather", "edge", [member(story, 0, 1), member(story, 1, 10)], deadline=2.5)
        timeline = Scene(STAR).play(story)
        assert timeline.arrivals == ((WorkKey(0, 0, 0),),)
        assert timeline.gather_seconds.tolist() == [2.5]


def test_drop_stops_late_work_in_every_phase_at_the_deadline() -> None:
    """At 4 s client 0 flows, 1 is in its latency, 2 computes and 3 waits for the slot that 2 has."""
    network = make_network(("u0", "edge", 2.0, 0.5), ("u1", "edge", 8.0, 3.0), ("u2", "edge", 8.0, 0.5))
    scene, story = Scene(network), Story(network)
    items = [story.work(client) for client in range(4)]
    uploads = [
        story.send("flows", "u0", "edge", 16, work=items[0]),
        story.send("travels", "u1", "edge", 8, after=[story.compute("before", "u1", 2, work=items[1])], work=items[1]),
    ]
    for client, name in ((2, "computes"), (3, "queues")):
        row = story.compute(name, "u2", 32, work=items[client])
        uploads.append(story.send(f"{name} up", "u2", "edge", 8, after=[row], work=items[client]))
    gather = story.gather("gather", "edge", uploads, deadline=4.0)
    next_round = story.send("next", "edge", "u0", 4, after=[gather])
    freed = story.compute("freed", "u2", 1, after=[gather])
    story.gather("end", "edge", [next_round, freed])
    timeline = scene.play(story)
    assert scene.log(timeline) == [
        ("flows dropped", 0.0, 4.0),
        ("before", 0.0, 2.0),
        ("travels dropped", 2.0, 4.0),
        ("computes dropped", 0.0, 4.0),
        ("computes up dropped", None, 4.0),
        ("queues dropped", None, 4.0),
        ("queues up dropped", None, 4.0),
        ("gather", 4.0, 4.0),
        ("next", 4.0, 6.5),
        ("freed", 4.0, 5.0),
        ("end", 6.5, 6.5),
    ]
    carried = {name: size for name, size in scene.carried(timeline).items() if size}
    assert carried == {"flows": 7, "next": 4}, "3.5 s at 2 bytes a second had gone over the link"
    assert timeline.dropped == tuple(WorkKey(0, 0, client) for client in range(4))
    assert timeline.arrivals == ((), ())
    assert len(scene.state.activities) == 0 and scene.state.busy_clients == frozenset()


def test_a_dropped_transfer_gives_its_share_of_the_link_back_at_that_instant() -> None:
    network = make_network(("a", "b", 8.0, 0.0))
    scene, story = Scene(network), Story(network)
    late = story.send("late", "a", "b", 800, work=story.work(0))
    gather = story.gather("gather", "b", [late], deadline=2.0)
    story.gather("end", "b", [story.send("other", "a", "b", 24), gather])
    timeline = scene.play(story)
    assert scene.log(timeline) == [
        ("late dropped", 0.0, 2.0),
        ("gather", 2.0, 2.0),
        ("other", 0.0, 4.0),
        ("end", 4.0, 4.0),
    ]
    assert scene.carried(timeline)["late"] == 8


def test_at_one_instant_deadlines_come_before_what_may_start() -> None:
    """The training ends at the deadline, so the upload never starts: it is late, and costs nothing."""
    story = Story(STAR)
    story.gather("gather", "edge", [member(story, 0, 4)], deadline=4.0)
    scene = Scene(STAR)
    assert scene.log(scene.play(story)) == [("train0", 0.0, 4.0), ("up0 dropped", None, 4.0), ("gather", 4.0, 4.0)]


def test_deadlines_of_one_instant_close_in_the_order_of_their_rows() -> None:
    """Both edges drop a client whose computation holds the one slot of a third node's queue."""
    network = make_network(("x", "y", 8.0, 0.0), ("y", "z", 8.0, 0.0))
    scene, story = Scene(network), Story(network)
    up = story.send("up", "x", "y", 800, work=story.work(0, gather=0))
    down = story.send("down", "y", "x", 800, work=story.work(1, gather=1))
    first = story.gather("first", "y", [up], deadline=2.0)
    second = story.gather("second", "x", [down], deadline=2.0)
    race = [
        story.compute(f"behind {name}", "z", 1, after=[row]) for name, row in (("second", second), ("first", first))
    ]
    story.gather("end", "z", race)
    assert scene.log(scene.play(story))[2:] == [
        ("first", 2.0, 2.0),
        ("second", 2.0, 2.0),
        ("behind second", 2.0, 3.0),
        ("behind first", 3.0, 4.0),
        ("end", 4.0, 4.0),
    ]


def test_a_deadline_counts_from_the_gather_that_opens_it() -> None:
    scene, story = Scene(STAR), Story(STAR)
    first = story.gather("first", "edge", [member(story, 0, 1)])
    late = member(story, 0, 32, gather=1, edge_round=1, after=first)
    story.gather("second", "edge", [late], edge_round=1, opener=first, deadline=4.0)
    timeline = scene.play(story)
    assert timeline.gather_seconds.tolist() == [2.5, 6.5]
    assert timeline.dropped == (WorkKey(0, 1, 0),)


def test_a_deadline_counts_from_any_activity_that_opens_it() -> None:
    scene, story = Scene(STAR), Story(STAR)
    model = story.send("model", "cloud", "edge", 4)
    story.gather("gather", "edge", [member(story, 0, 32, after=model)], opener=model, deadline=4.0)
    timeline = scene.play(story)
    assert scene.log(timeline)[0] == ("model", 0.0, 1.0)
    assert timeline.gather_seconds.tolist() == [5.0]


def keep_round(round_index: int) -> Story:
    return Story(STAR, round_index=round_index, keep_late=True)


def test_kept_work_shares_links_with_the_next_round_and_arrives_at_its_gather() -> None:
    """Client 1's upload of 64 bytes flows at 8, from 4 s on at 4 bytes a second beside round 1's, then at 8 again."""
    scene, story = Scene(STAR), keep_round(0)
    item = story.work(1)
    late = story.send("late", "u1", "edge", 64, work=item)
    gather = story.gather("gather", "edge", [member(story, 0, 1), late], deadline=3.5)
    story.gather("end", "cloud", [gather])
    timeline = scene.play(story)
    assert scene.log(timeline) == [
        ("late pending", 0.0, None),
        ("train0", 0.0, 1.0),
        ("up0", 1.0, 2.5),
        ("gather", 3.5, 3.5),
        ("end", 3.5, 3.5),
    ]
    assert scene.carried(timeline) == {"train0": 0, "up0": 8, "gather": 0, "end": 0}
    assert timeline.pending == (WorkKey(0, 0, 1),)
    assert scene.state.busy_clients == {1}

    story = keep_round(1)
    beside = story.send("beside", "u1", "edge", 8)
    gather = story.gather("gather'", "edge", [member(story, 0, 8)], deadline=64.0)
    story.gather("end'", "cloud", [gather, beside])
    timeline = scene.play(story)
    assert scene.log(timeline) == [
        ("late", 0.0, 9.5),
        ("beside", 3.5, 6.0),
        ("train0", 3.5, 11.5),
        ("up0", 11.5, 13.0),
        ("gather'", 13.0, 13.0),
        ("end'", 13.0, 13.0),
    ]
    assert scene.carried(timeline)["late"] == 64
    assert timeline.arrivals == ((WorkKey(0, 0, 1), WorkKey(1, 0, 0)), ())
    assert timeline.pending == () and scene.state.busy_clients == frozenset()


def test_late_work_may_be_late_for_many_rounds() -> None:
    """Client 1 arrives at 11.5 s; round after round of client 0 takes 2.5 s and does not wait for it."""
    scene = Scene(STAR)
    gathers: list[float] = []
    pending: list[tuple[WorkKey, ...]] = []
    arrivals: list[tuple[WorkKey, ...]] = []
    for number in range(5):
        story = keep_round(number)
        members = [member(story, 0, 1), *([member(story, 1, 10)] if number == 0 else [])]
        story.gather(f"gather{number}", "edge", members, deadline=3.0)
        timeline = scene.play(story)
        gathers += timeline.gather_seconds.tolist()
        pending.append(timeline.pending)
        arrivals += timeline.arrivals
    late = WorkKey(0, 0, 1)
    assert gathers == [3.0, 5.5, 8.0, 10.5, 13.0]
    assert pending == [(late,), (late,), (late,), (late,), ()]
    assert arrivals == [*((WorkKey(number, 0, 0),) for number in range(4)), (late, WorkKey(4, 0, 0))]


def test_a_late_client_sits_out_the_next_edge_round_and_comes_back_after_its_arrival() -> None:
    scene, story = Scene(STAR), keep_round(0)
    opener = -1
    for edge_round, flops in enumerate([(1, 5), (2, 2), (1, 1)]):
        uploads = [
            member(story, user, flops[user], gather=edge_round, edge_round=edge_round, after=opener) for user in (0, 1)
        ]
        opener = story.gather(
            f"gather{edge_round}", "edge", uploads, edge_round=edge_round, opener=opener, deadline=4.0
        )
    timeline = scene.play(story)
    assert scene.log(timeline) == [
        ("train0", 0.0, 1.0),
        ("up0", 1.0, 2.5),
        ("train1", 0.0, 5.0),
        ("up1", 5.0, 6.5),
        ("gather0", 4.0, 4.0),
        ("train0'", 4.0, 6.0),
        ("up0'", 6.0, 7.5),
        ("train1' skipped", None, 4.0),
        ("up1' skipped", None, 4.0),
        ("gather1", 7.5, 7.5),
        ("train0'", 7.5, 8.5),
        ("up0'", 8.5, 10.0),
        ("train1'", 7.5, 8.5),
        ("up1'", 8.5, 10.0),
        ("gather2", 10.0, 10.0),
    ]
    assert timeline.skipped == (WorkKey(0, 1, 1),)
    assert timeline.arrivals == (
        (WorkKey(0, 0, 0),),
        (WorkKey(0, 0, 1), WorkKey(0, 1, 0)),
        (WorkKey(0, 2, 0), WorkKey(0, 2, 1)),
    )


def everybody_late(second_deadline: float | None) -> tuple[Log, tuple[tuple[WorkKey, ...], ...]]:
    """Clients 0 and 1 arrive at 7.5 s and 10.5 s; the first gather closes at 4 s, so both sit out the second."""
    scene, story = Scene(STAR), keep_round(0)
    first = story.gather("first", "edge", [member(story, 0, 6), member(story, 1, 9)], deadline=4.0)
    uploads = [member(story, user, 1, gather=1, edge_round=1, after=first) for user in (0, 1)]
    story.gather("second", "edge", uploads, edge_round=1, opener=first, deadline=second_deadline)
    timeline = scene.play(story)
    assert timeline.skipped == (WorkKey(0, 1, 0), WorkKey(0, 1, 1))
    return scene.log(timeline), timeline.arrivals


def test_an_edge_round_that_everybody_sits_out_waits_for_the_late_work() -> None:
    log, arrivals = everybody_late(None)
    assert log[4] == ("first", 4.0, 4.0) and log[-1] == ("second", 10.5, 10.5)
    assert arrivals == ((), (WorkKey(0, 0, 0), WorkKey(0, 0, 1)))


def test_an_edge_round_that_everybody_sits_out_waits_no_longer_than_its_deadline() -> None:
    log, arrivals = everybody_late(4.0)
    assert log[2:4] == [("train1 pending", 0.0, None), ("up1 pending", None, None)]
    assert log[-1] == ("second", 8.0, 8.0)
    assert arrivals == ((), (WorkKey(0, 0, 0),))


def test_a_round_without_members_waits_for_the_late_work_of_its_own_node_only() -> None:
    """Client 2 is late at the cloud, for 100 s; the edge's next round waits for clients 0 and 1 alone."""
    scene, story = Scene(STAR), keep_round(0)
    other = story.work(2, gather=1)
    far = story.compute("far", "u2", 100, work=other)
    cloud_up = story.send("far up", "u2", "cloud", 8, after=[far], work=other)
    story.gather("gather", "edge", [member(story, 0, 6), member(story, 1, 9)], deadline=4.0)
    story.gather("end", "cloud", [cloud_up], deadline=4.0)
    assert scene.play(story).pending == tuple(WorkKey(0, 0, client) for client in range(3))
    story = keep_round(1)
    story.gather("gather'", "edge")
    timeline = scene.play(story)
    assert timeline.gather_seconds.tolist() == [10.5]
    assert timeline.arrivals == ((WorkKey(0, 0, 0), WorkKey(0, 0, 1)),)
    assert timeline.pending == (WorkKey(0, 0, 2),)


def test_both_edge_rounds_without_members_wait_for_late_work() -> None:
    """The first closes at its deadline with client 0 (7.5 s), the second opens then and waits for client 1 (10.5 s)."""
    scene, story = Scene(STAR), keep_round(0)
    story.gather("gather", "edge", [member(story, 0, 6), member(story, 1, 9)], deadline=4.0)
    scene.play(story)
    story = keep_round(1)
    first = story.gather("first", "edge", deadline=4.0)
    story.gather("second", "edge", [first], edge_round=1, opener=first)
    timeline = scene.play(story)
    assert timeline.gather_seconds.tolist() == [8.0, 10.5]
    assert timeline.arrivals == ((WorkKey(0, 0, 0),), (WorkKey(0, 0, 1),))


def test_work_that_arrives_after_its_gather_but_within_the_round_is_taken_by_the_next_one() -> None:
    """Client 1 arrives at 6.5 s, between the edge's gather (4 s) and the round's end (8 s): nothing is awaited."""
    scene, story = Scene(STAR), keep_round(0)
    gather = story.gather("gather", "edge", [member(story, 0, 1), member(story, 1, 5)], deadline=4.0)
    story.gather("end", "cloud", [story.compute("pause", "cloud", 4, after=[gather])])
    timeline = scene.play(story)
    assert timeline.arrivals == ((WorkKey(0, 0, 0),), ())
    assert timeline.pending == (), "it no longer goes on"
    assert scene.state.busy_clients == frozenset()
    assert scene.state.inbox == ((STAR.index("edge"), WorkKey(0, 0, 1)),)
    assert [scene.state.work.key(row) for row in range(len(scene.state.work))] == [WorkKey(0, 0, 1)]

    story = keep_round(1)
    gather = story.gather("gather'", "edge")
    story.gather("end'", "cloud", [gather])
    timeline = scene.play(story)
    assert timeline.gather_seconds.tolist() == [8.0, 8.0]
    assert timeline.arrivals == ((WorkKey(0, 0, 1),), ())
    assert scene.state.inbox == () and len(scene.state.work) == 0


def test_kept_work_holds_its_slot_against_the_next_round() -> None:
    scene, story = Scene(STAR), keep_round(0)
    item = story.work(0)
    long = story.compute("long", "edge", 10, work=item)
    story.gather("gather", "edge", [story.send("note", "edge", "edge", 1, after=[long], work=item)], deadline=4.0)
    scene.play(story)
    story = keep_round(1)
    story.gather("end", "edge", [story.compute("next", "edge", 1)])
    assert scene.log(scene.play(story)) == [
        ("long", 0.0, 10.0),
        ("note", 10.0, 10.0),
        ("next", 10.0, 11.0),
        ("end", 11.0, 11.0),
    ]
