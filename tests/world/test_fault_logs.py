"""The whole log of each fault and policy, computed by hand in numbers that floats hold exactly, compared with ``==``.

Every link carries 8 bytes a second after half a second, every message has 8 bytes (1.5 s alone), a FLOP takes a second.
A client's round in town: its model from 0 to 1.5, training from 1.5 on, its upload behind; client 0 trains 4 s and
arrives at 7, client 1 trains 8 s and arrives at 11.
"""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import numpy as np
import pytest

from elsa_ray.config.faults import CloudOutage, EdgeCrash, FaultsConfig, LinkFault
from elsa_ray.network.graph import Network, build_network
from elsa_ray.world.disturbances import Disturbances
from elsa_ray.world.faults import begins_in_round, make_faults, spells_of
from elsa_ray.world.timeline import Timeline
from elsa_ray.world.troubles import Cause
from tests.world.stories import Log, Scene, Story

CLIENTS = ("c0", "c1", "c2")


def make_town() -> Network:
    graph = nx.Graph()
    kinds = {"c0": "client", "c1": "client", "c2": "client", "e0": "edge", "e1": "edge", "cloud": "cloud"}
    for name, kind in kinds.items():
        graph.add_node(name, kind=kind)
    for one, other in (("c0", "e0"), ("c1", "e0"), ("c2", "e1"), ("e0", "cloud"), ("e1", "cloud"), ("e0", "e1")):
        graph.add_edge(one, other, bandwidth_bytes_per_second=8.0, latency_seconds=0.5)
    return build_network(graph, "town", roles_required=True)


TOWN = make_town()


def scene() -> Scene:
    return Scene(TOWN, clients=CLIENTS)


def add_client(story: Story, client: int, edge: str, flops: int, *, gather: int, after: Sequence[int] = ()) -> int:
    work = story.work(client, gather=gather, edge=edge)
    down = story.send(f"down{client}", edge, f"c{client}", 8, after=after, work=work)
    train = story.compute(f"train{client}", f"c{client}", flops, after=[down], work=work)
    return story.send(f"up{client}", f"c{client}", edge, 8, after=[train], work=work)


def street(*, quorum: int = 0, keep_late: bool = False, round_index: int = 0, clients: Sequence[int] = (0, 1)) -> Story:
    """Two clients at one edge, which closes the round."""
    story = Story(TOWN, keep_late=keep_late, round_index=round_index)
    uploads = [add_client(story, client, "e0", (4, 8)[client], gather=0) for client in clients]
    story.gather("end", "e0", uploads, quorum=quorum)
    return story


def city() -> Story:
    """Client 0 at one edge, client 2 at another, and the cloud that waits for both edges."""
    story = Story(TOWN)
    told = []
    for ordinal, (client, flops) in enumerate(((0, 4), (2, 8))):
        edge = f"e{ordinal}"
        model = story.send(f"model{ordinal}", "cloud", edge, 8)
        up = add_client(story, client, edge, flops, gather=ordinal, after=[model])
        gather = story.gather(f"gather{ordinal}", edge, [up, model], opener=model)
        told.append(story.send(f"tell{ordinal}", edge, "cloud", 8, after=[gather]))
    story.gather("end", "cloud", told)
    return story


def disturbed_by(
    *, links: Sequence[LinkFault] = (), edges: Sequence[EdgeCrash] = (), cloud: Sequence[CloudOutage] = ()
) -> Disturbances:
    config = FaultsConfig(links=list(links), edges=list(edges), cloud=list(cloud))
    return Disturbances(spells=spells_of(make_faults(config, TOWN, seed=0), (), 0))


def off_at(client: int, seconds: float) -> Disturbances:
    off = np.full(len(CLIENTS), np.inf)
    off[client] = seconds
    return Disturbances(off_seconds=off)


def dropped(timeline: Timeline) -> list[tuple[int, Cause, float]]:
    triples = zip(timeline.dropped, timeline.causes, timeline.dropped_seconds.tolist(), strict=True)
    return [(key.client, cause, seconds) for key, cause, seconds in triples]


def arrived(timeline: Timeline) -> list[list[int]]:
    return [[key.client for key in keys] for keys in timeline.arrivals]


CLIENT_1: Log = [("down1", 0.0, 1.5), ("train1", 1.5, 9.5), ("up1", 9.5, 11.0)]
STREET_ENDS: Log = [*CLIENT_1, ("end", 11.0, 11.0)]


class TestClients:
    def test_a_slow_client_computes_longer_and_sends_as_fast(self) -> None:
        own, story = scene(), street()
        timeline = own.play(story, Disturbances(story.troubles(train0={"slowdown": 2.5})))
        assert own.log(timeline) == [
            ("down0", 0.0, 1.5),
            ("train0", 1.5, 11.5),
            ("up0", 11.5, 13.0),
            *CLIENT_1,
            ("end", 13.0, 13.0),
        ]

    def test_a_client_that_drops_out_before_training_has_its_model_and_no_more(self) -> None:
        own, story = scene(), street()
        troubles = story.troubles(down0={"stop_share": 1.0, "cause": Cause.BEFORE_TRAINING})
        timeline = own.play(story, Disturbances(troubles))
        assert own.log(timeline) == [
            ("down0", 0.0, 1.5),
            ("train0 dropped", None, 1.5),
            ("up0 dropped", None, 1.5),
            *STREET_ENDS,
        ]
        assert dropped(timeline) == [(0, Cause.BEFORE_TRAINING, 1.5)]
        assert own.carried(timeline) == {"down0": 8, "train0": 0, "up0": 0, "down1": 8, "train1": 0, "up1": 8, "end": 0}

    def test_a_client_that_drops_out_in_training_has_spent_the_drawn_part(self) -> None:
        own, story = scene(), street()
        troubles = story.troubles(train0={"stop_share": 0.25, "slowdown": 2.0, "cause": Cause.DURING_TRAINING})
        timeline = own.play(story, Disturbances(troubles))
        assert own.log(timeline) == [
            ("down0", 0.0, 1.5),
            ("train0 dropped", 1.5, 3.5),
            ("up0 dropped", None, 3.5),
            *STREET_ENDS,
        ]
        assert dropped(timeline) == [(0, Cause.DURING_TRAINING, 3.5)]

    def test_a_client_that_drops_out_after_training_has_sent_in_vain(self) -> None:
        own, story = scene(), street()
        troubles = story.troubles(up1={"stop_share": 1.0, "cause": Cause.AFTER_TRAINING})
        timeline = own.play(story, Disturbances(troubles))
        assert own.log(timeline) == [
            ("down0", 0.0, 1.5),
            ("train0", 1.5, 5.5),
            ("up0", 5.5, 7.0),
            ("down1", 0.0, 1.5),
            ("train1", 1.5, 9.5),
            ("up1 dropped", 9.5, 11.0),
            ("end", 11.0, 11.0),
        ]
        assert own.carried(timeline)["up1"] == 8
        assert (arrived(timeline), dropped(timeline)) == ([[0]], [(1, Cause.AFTER_TRAINING, 11.0)])

    def test_a_client_that_goes_off_stops_at_once(self) -> None:
        own = scene()
        timeline = own.play(street(), off_at(0, 6.5))
        assert own.log(timeline) == [
            ("down0", 0.0, 1.5),
            ("train0", 1.5, 5.5),
            ("up0 dropped", 5.5, 6.5),
            *STREET_ENDS,
        ]
        assert own.carried(timeline)["up0"] == 4
        assert own.incidents(timeline) == [(6.5, "client_off", "c0", 0, "")]
        assert dropped(timeline) == [(0, Cause.CLIENT_OFF, 6.5)]

    def test_a_client_that_goes_off_at_the_instant_of_its_arrival_is_in(self) -> None:
        own = scene()
        timeline = own.play(street(), off_at(0, 7.0))
        assert (arrived(timeline), dropped(timeline), own.incidents(timeline)) == ([[0, 1]], [], [])

    def test_a_spoilt_payload_is_sent_again_and_charged_again(self) -> None:
        own, story = scene(), street()
        timeline = own.play(story, Disturbances(story.troubles(up0={"spoilt": 2})))
        assert own.log(timeline) == [("down0", 0.0, 1.5), ("train0", 1.5, 5.5), ("up0", 5.5, 10.0), *STREET_ENDS]
        assert own.carried(timeline)["up0"] == 24
        assert own.incidents(timeline) == [
            (7.0, "payload_corrupted", "e0", -1, "control, sending 1"),
            (8.5, "payload_corrupted", "e0", -1, "control, sending 2"),
        ]

    def test_a_payload_that_is_spoilt_too_often_is_given_up(self) -> None:
        own, story = scene(), street()
        timeline = own.play(story, Disturbances(story.troubles(up0={"spoilt": 2, "is_lost": 1})))
        assert own.log(timeline) == [("down0", 0.0, 1.5), ("train0", 1.5, 5.5), ("up0 dropped", 5.5, 8.5), *STREET_ENDS]
        assert own.carried(timeline)["up0"] == 16
        assert dropped(timeline) == [(0, Cause.CORRUPTED, 8.5)]


class TestLinks:
    # Client 0 sends from 5.5; its bytes flow from 6 on.
    @pytest.mark.parametrize(
        ("faults", "finish"),
        [
            # 2 bytes by 6.25, then nothing for 4 s, then 6 bytes
            ([(6.25, 4.0, 0.0)], 11.0),
            # 2 bytes, then 6 at half the rate
            ([(6.25, 4.0, 0.5)], 7.75),
            # 2 bytes; 1 at half the rate; nothing for 1 s; 5 at half the rate
            ([(6.25, 4.0, 0.5), (6.5, 1.0, 0.0)], 8.75),
            # latencies are not touched, and nor is what comes later
            ([(5.5, 0.5, 0.0), (7.0, 4.0, 0.0)], 7.0),
        ],
    )
    def test_what_flows_stands_still_or_crawls_while_a_link_is_bad(
        self, faults: list[tuple[float, float, float]], finish: float
    ) -> None:
        own = scene()
        links = [
            LinkFault(link=["e0", "c0"], start_seconds=start, duration_seconds=duration, factor=factor)
            for start, duration, factor in faults
        ]
        timeline = own.play(street(), disturbed_by(links=links))
        assert own.log(timeline) == [("down0", 0.0, 1.5), ("train0", 1.5, 5.5), ("up0", 5.5, finish), *STREET_ENDS]

    def test_each_fault_is_told_when_it_begins_and_when_it_ends(self) -> None:
        own = scene()
        link = LinkFault(link=["e0", "c0"], start_seconds=6.25, duration_seconds=2, factor=0.5)
        assert own.incidents(own.play(street(), disturbed_by(links=[link]))) == [
            (6.25, "links_degraded", "", -1, "c0-e0, 0.5 of the bandwidth"),
            (8.25, "links_restored", "", -1, "c0-e0"),
        ]

    def test_a_share_of_the_links_is_drawn_once(self) -> None:
        config = FaultsConfig(links=[LinkFault(share=0.5, among="clients", duration_seconds=1)])
        (fault,), (again,) = (make_faults(config, TOWN, seed) for seed in (1, 1))
        assert fault == again
        assert len(fault.capacities) == 4, "two of three links, rounded up, in both directions"
        assert len({make_faults(config, TOWN, seed)[0].capacities for seed in range(9)}) == 3


class TestEdges:
    CITY_1: Log = [
        ("model1", 0.0, 1.5),
        ("down2", 1.5, 3.0),
        ("train2", 3.0, 11.0),
        ("up2", 11.0, 12.5),
        ("gather1", 12.5, 12.5),
        ("tell1", 12.5, 14.0),
        ("end", 14.0, 14.0),
    ]

    def test_a_crash_takes_the_work_under_way_and_the_cloud_goes_on_with_the_others(self) -> None:
        own = scene()
        timeline = own.play(city(), disturbed_by(edges=[EdgeCrash(edge="e0", start_seconds=4, duration_seconds=3)]))
        assert own.log(timeline) == [
            ("model0", 0.0, 1.5),
            ("down0", 1.5, 3.0),
            ("train0 dropped", 3.0, 4.0),
            ("up0 dropped", None, 4.0),
            ("gather0 dropped", None, 4.0),
            ("tell0 dropped", None, 4.0),
            *self.CITY_1,
        ]
        assert own.incidents(timeline) == [
            (4.0, "edge_crashed", "e0", -1, "e0"),
            (7.0, "edge_recovered", "e0", -1, "e0"),
        ]
        assert (arrived(timeline), dropped(timeline)) == ([[], [2], []], [(0, Cause.EDGE_CRASHED, 4.0)])
        assert timeline.lost_nodes == {TOWN.index("e0")}

    def test_a_crash_takes_what_was_gathered_and_not_yet_told(self) -> None:
        own = scene()
        timeline = own.play(city(), disturbed_by(edges=[EdgeCrash(edge="e0", start_seconds=9.5, duration_seconds=99)]))
        assert own.log(timeline) == [
            ("model0", 0.0, 1.5),
            ("down0", 1.5, 3.0),
            ("train0", 3.0, 7.0),
            ("up0", 7.0, 8.5),
            ("gather0", 8.5, 8.5),
            ("tell0 dropped", 8.5, 9.5),
            *self.CITY_1,
        ]
        assert own.carried(timeline)["tell0"] == 4
        assert (arrived(timeline), dropped(timeline)) == ([[], [2], []], [(0, Cause.EDGE_CRASHED, 9.5)])

    def test_a_crash_takes_nothing_that_is_with_the_cloud(self) -> None:
        own = scene()
        timeline = own.play(city(), disturbed_by(edges=[EdgeCrash(edge="e0", start_seconds=10, duration_seconds=99)]))
        assert (arrived(timeline), dropped(timeline), timeline.lost_nodes) == ([[0], [2], []], [], frozenset())

    def test_a_crash_takes_the_inbox_too(self) -> None:
        own = scene()
        own.play(street(quorum=1, keep_late=True))  # closes at 7, client 1 arrives at 11, after the plan's last gather
        story = Story(TOWN, round_index=1, keep_late=True)
        story.gather("cloud", "cloud", [story.compute("idle", "c2", 5)])
        between = own.play(story)
        assert [key.client for _, key in own.state.inbox] == [1]
        assert (between.end_seconds, between.pending) == (12.0, ())
        story = Story(TOWN, round_index=2)
        story.gather("cloud", "cloud", [story.compute("idle", "c2", 4)])
        after = own.play(story, disturbed_by(edges=[EdgeCrash(edge="e0", start_seconds=13, duration_seconds=99)]))
        assert (dropped(after), own.state.inbox) == ([(1, Cause.EDGE_CRASHED, 13.0)], ())


class TestCloud:
    def test_transfers_of_the_cloud_wait_until_it_is_back(self) -> None:
        own = scene()
        timeline = own.play(city(), disturbed_by(cloud=[CloudOutage(start_seconds=9.25, duration_seconds=2.75)]))
        assert own.log(timeline) == [
            ("model0", 0.0, 1.5),
            ("down0", 1.5, 3.0),
            ("train0", 3.0, 7.0),
            ("up0", 7.0, 8.5),
            ("gather0", 8.5, 8.5),
            ("tell0", 8.5, 12.75),  # 2 bytes by 9.25, the others from 12 on
            *TestEdges.CITY_1,
        ]
        assert own.incidents(timeline) == [
            (9.25, "cloud_down", "cloud", -1, "cloud"),
            (12.0, "cloud_up", "cloud", -1, "cloud"),
        ]

    def test_a_gather_of_the_cloud_waits_until_it_is_back(self) -> None:
        own, story = scene(), Story(TOWN)
        work = story.work(0)
        story.send("late", "c0", "cloud", 160, work=work)
        story.gather("end", "cloud", [1], deadline=4.0)
        story.compute("idle", "c1", 1)
        story.depend(1, 0)
        timeline = own.play(story, disturbed_by(cloud=[CloudOutage(start_seconds=3, duration_seconds=2)]))
        # 1 s of latency, 2 s of flow, nothing while the cloud is down.
        assert own.log(timeline) == [("late dropped", 0.0, 5.0), ("end", 5.0, 5.0), ("idle", 0.0, 1.0)]
        assert own.carried(timeline)["late"] == 16
        assert dropped(timeline) == [(0, Cause.DEADLINE, 5.0)]


class TestPolicies:
    def test_a_quorum_closes_the_round_and_drops_who_is_late(self) -> None:
        own = scene()
        timeline = own.play(street(quorum=1))
        assert own.log(timeline) == [
            ("down0", 0.0, 1.5),
            ("train0", 1.5, 5.5),
            ("up0", 5.5, 7.0),
            ("down1", 0.0, 1.5),
            ("train1 dropped", 1.5, 7.0),
            ("up1 dropped", None, 7.0),
            ("end", 7.0, 7.0),
        ]
        assert (arrived(timeline), dropped(timeline)) == ([[0]], [(1, Cause.QUORUM, 7.0)])

    def test_a_quorum_that_keeps_takes_who_is_late_in_the_round_of_its_arrival(self) -> None:
        own = scene()
        first = own.play(street(quorum=1, keep_late=True))
        assert own.log(first)[3:] == [
            ("down1", 0.0, 1.5),
            ("train1 pending", 1.5, None),
            ("up1 pending", None, None),
            ("end", 7.0, 7.0),
        ]
        second = own.play(street(quorum=1, keep_late=True, round_index=1, clients=[0]))
        assert own.log(second) == [
            ("train1", 1.5, 9.5),
            ("up1", 9.5, 11.0),
            ("down0", 7.0, 8.5),
            ("train0", 8.5, 12.5),
            ("up0", 12.5, 14.0),
            ("end", 14.0, 14.0),
        ]
        assert [(key.round_index, key.client) for key in second.arrivals[0]] == [(0, 1), (1, 0)]

    def test_who_arrives_at_the_instant_of_the_quorum_is_in(self) -> None:
        own, story = scene(), street(quorum=1)
        timeline = own.play(story, Disturbances(story.troubles(train1={"slowdown": 0.5})))
        assert (arrived(timeline), timeline.end_seconds) == ([[0, 1]], 7.0)

    def test_a_quorum_that_cannot_be_reached_any_more_closes_with_the_last(self) -> None:
        own, story = scene(), street(quorum=2)
        troubles = story.troubles(up1={"stop_share": 1.0, "cause": Cause.AFTER_TRAINING})
        timeline = own.play(story, Disturbances(troubles))
        assert (arrived(timeline), timeline.end_seconds) == ([[0]], 11.0)


class TestOverRounds:
    def test_what_was_drawn_for_a_work_item_befalls_it_in_a_later_round(self) -> None:
        own, story = scene(), street(quorum=1, keep_late=True)
        own.play(story, Disturbances(story.troubles(up1={"spoilt": 1}, train1={"slowdown": 1.25})))
        second = own.play(street(keep_late=True, round_index=1, clients=[0]))
        assert own.log(second)[:2] == [("train1", 1.5, 11.5), ("up1 pending", 11.5, None)]
        assert own.log(second)[-1] == ("end", 14.0, 14.0)
        third = own.play(street(keep_late=True, round_index=2, clients=[0]))
        assert own.log(third)[0] == ("up1", 11.5, 14.5), "spoilt at 13, so its second sending spans two rounds"
        assert (own.carried(second).get("up1"), own.carried(third)["up1"]) == (None, 16)

    def test_a_fault_goes_on_over_the_end_of_a_round_and_is_told_once(self) -> None:
        own = scene()
        faults = make_faults(
            FaultsConfig(links=[LinkFault(link=["c0", "e0"], round=0, start_seconds=6.5, duration_seconds=5.0)]),
            TOWN,
            0,
        )
        begins = begins_in_round(faults, (), 0, 0.0)
        first = own.play(street(quorum=1, keep_late=True), Disturbances(spells=spells_of(faults, begins, 0)))
        # Half of client 0's upload had flowed; client 1 is in first, at 11.
        assert (own.log(first)[2], first.end_seconds) == (("up0 pending", 5.5, None), 11.0)
        second = own.play(
            street(keep_late=True, round_index=1, clients=[1]), Disturbances(spells=spells_of(faults, begins, 1))
        )
        assert own.log(second)[0] == ("up0", 5.5, 12.0), "a client that comes back is late with what it had begun"
        assert [(key.round_index, key.client) for key in second.arrivals[0]] == [(0, 0), (1, 1)]
        told = [(seconds, what) for timeline in (first, second) for seconds, what, *_ in own.incidents(timeline)]
        assert told == [(6.5, "links_degraded"), (11.5, "links_restored")]

    def test_a_crash_that_counts_from_a_round_begins_at_its_very_start(self) -> None:
        own = scene()
        own.play(street())
        faults = make_faults(FaultsConfig(edges=[EdgeCrash(edge="e0", round=1, duration_seconds=2)]), TOWN, 0)
        begins = begins_in_round(faults, (), 1, own.state.clock_seconds)
        story = city()
        timeline = own.play(story, Disturbances(spells=spells_of(faults, begins, 1)))
        assert own.log(timeline)[0] == ("model0 dropped", None, 11.0)
        assert dropped(timeline) == [(0, Cause.EDGE_CRASHED, 11.0)]
        assert own.incidents(timeline)[0] == (11.0, "edge_crashed", "e0", -1, "e0")
