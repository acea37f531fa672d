"""The logs of two rounds with clustering and trust, computed by hand: before and after two clients get new edges.

Two edges, four clients with equal links to both, and every figure a power of two. What shares a trunk with something
else at a time is told where it is computed; only there thirds come in, hence the tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from elsa_ray.codecs.wire import HEADER_BYTES
from elsa_ray.model.cost import forward_flops
from elsa_ray.model.split import Part, cut, whole
from elsa_ray.protocols.protocol import RoundResults
from elsa_ray.records.round import Round
from elsa_ray.world.plan import ActivityKind, Stage, WorkKey
from elsa_ray.world.roles import Role
from tests.stepwise import Stepwise, planted_rows, write_towns
from tests.world.towns import (
    ACCESS_LATENCY,
    CLIENT_FLOPS,
    DOWN,
    EDGE_FLOPS,
    TRUNK,
    UP,
    Event,
    Hand,
    end_of,
    events,
    name_event,
    town_config,
)

CORE_LATENCY = 2.0**-9
PROBES, DIMENSIONS, LABELS, WIDTH = 10, 4, 3, 64
NUMBERS = DIMENSIONS + DIMENSIONS * (DIMENSIONS + 1) // 2
"""Of a fingerprint: mean, and lower triangle of the covariance."""
FIRST_EDGES, NEW_EDGES = (0, 0, 1, 1), (0, 1, 0, 1)
MOVED = (1, 2)

STANDINGS = HEADER_BYTES + 4 * 2 * 4
"""Two clients; index, score, end of exclusion, end of probation."""
TABLE = HEADER_BYTES + 4 * 2 * NUMBERS
NOTICE = HEADER_BYTES + 4 * 2


class Towns:
    """The run, and what takes how long in it."""

    def __init__(self, folder: Path, evidence: str) -> None:
        ways = [{edge: (UP, DOWN, ACCESS_LATENCY) for edge in (0, 1)} for _ in range(4)]
        config = town_config(
            folder,
            clients=4,
            topology=write_towns(folder, ways, [(TRUNK, CORE_LATENCY)] * 2),
            task={"probes": {"kind": "dataset", "count": PROBES}},
            protocol={
                "rounds": 3,
                "clustering": {"dimensions": DIMENSIONS, "latency_weight": 0.0},
                "trust": {"evidence": evidence},
            },
        )

        def planted(results: RoundResults) -> RoundResults:
            return replace(results, fingerprints=planted_rows(dict(enumerate(NEW_EDGES)), DIMENSIONS))

        with Stepwise(config) as run:
            self.nodes = [int(node) for node in run.prepared.setting.network.edges]
            run.change(edge_of_client=tuple(self.nodes[edge] for edge in FIRST_EDGES))
            self.rounds: list[Round] = [run.round(planted), run.round()]
        self.hand = Hand(run.prepared, slower_last=1.0)
        setting = run.prepared.setting
        probes = setting.task.probes
        assert probes is not None and setting.shape.hidden_size == WIDTH and setting.task.num_labels == LABELS
        self.longest = int(probes.lengths.max())
        # Lengths, token ids, and the frame: its axes and its scale.
        self.probe_set = HEADER_BYTES + 4 * (PROBES + len(probes.token_ids) + WIDTH * DIMENSIONS + 1)
        self.adapters, self.held = self.hand.adapter_bytes(*Part), self.hand.adapter_bytes(Part.FRONT, Part.BACK)
        layers = setting.shape.num_layers
        of_parts, of_whole = (
            forward_flops(setting.shape, setting.layout, own) for own in (cut(layers, 1, 1), whole(layers))
        )
        self.flops = {part: int(own.total(PROBES, self.longest)) for part, own in of_parts.items()}
        self.whole_flops = sum(int(own.total(PROBES, self.longest)) for own in of_whole.values())
        assert self.whole_flops == sum(self.flops.values())

    def told_cloud(self, closes: float) -> list[Event]:
        """What an edge sends when its gather has closed: three flows share its trunk, the shortest ends first."""
        begins = closes + CORE_LATENCY
        assert STANDINGS < TABLE < self.adapters
        return [
            (name_event("gather"), closes, closes),
            (name_event("control"), closes, begins + 3 * STANDINGS / TRUNK),
            (name_event("fingerprint"), closes, begins + (STANDINGS + 2 * TABLE) / TRUNK),
            (name_event("adapter_up"), closes, begins + (STANDINGS + TABLE + self.adapters) / TRUNK),
        ]

    def whole_round(
        self,
        edge_of_client: Sequence[int],
        standings: tuple[float, float],
        others: list[Event],
        work: Callable[[int, float], list[Event]],
    ) -> list[Event]:
        """Put a round together.

        Args:
            edge_of_client: where each client trains.
            standings: when they are sent to each edge, and arrive.
            others: what is sent besides.
            work: the log of a client whose edge has its model at an instant.
        """
        log, ends = list(others), []
        begin, told = standings
        opens = told + CORE_LATENCY + self.adapters / TRUNK
        for edge in range(2):
            members = [work(client, opens) for client in range(4) if edge_of_client[client] == edge]
            closing = self.told_cloud(max(end_of(own) for own in members))
            ends.append(end_of(closing))
            log += [(name_event("control"), begin, told), (name_event("adapter_down"), told, opens)]
            log += [event for own in members for event in own] + closing
        return [*log, (name_event("gather"), max(ends), max(ends))]


def assert_log(finished: Round, expected: list[Event]) -> None:
    found, expected = sorted(events(finished.timeline)), sorted(expected)
    assert [what for what, _, _ in found] == [what for what, _, _ in expected]
    for (what, *times), (_, *by_hand) in zip(found, expected, strict=True):
        assert times == pytest.approx(by_hand, rel=1e-12), what


def notices(begin: float) -> list[Event]:
    """What tells two clients of their new edges: over the first edge, at the speed of their own links."""
    arrives = begin + CORE_LATENCY + ACCESS_LATENCY + NOTICE / DOWN
    return [(name_event("control", WorkKey(1, 0, client)), begin, arrives) for client in MOVED]


class TestVerified:
    @pytest.fixture(scope="class")
    def towns(self, tmp_path_factory: pytest.TempPathFactory) -> Towns:
        return Towns(tmp_path_factory.mktemp("verified"), "verified")

    def work(self, towns: Towns, key: WorkKey, begin: float) -> list[Event]:
        """Training, and then the edge tries what was sent on the probes."""
        log = towns.hand.split_work(key, begin)
        return [*log, self.probing(towns, key, end_of(log))]

    def probing(self, towns: Towns, key: WorkKey, begin: float) -> Event:
        return name_event("probing", key), begin, begin + towns.whole_flops / EDGE_FLOPS

    def test_round_0(self, towns: Towns) -> None:
        """Standings and probe set begin together and share a trunk evenly; the model follows the standings."""
        assert STANDINGS < towns.probe_set < CORE_LATENCY * TRUNK, "the set is there before the model flows"
        told = CORE_LATENCY + 2 * STANDINGS / TRUNK
        there = CORE_LATENCY + (STANDINGS + towns.probe_set) / TRUNK
        sets: list[Event] = [(name_event("probe"), 0.0, there)] * 2
        expected = towns.whole_round(
            FIRST_EDGES,
            (0.0, told),
            sets,
            work=lambda client, at: self.work(towns, WorkKey(0, 0, client), at),
        )
        assert_log(towns.rounds[0], expected)

    def test_round_1(self, towns: Towns) -> None:
        """No set any more; who has a new edge is told first, and gets its model then."""
        begin = towns.rounds[0].timeline.end_seconds
        told = begin + CORE_LATENCY + STANDINGS / TRUNK
        own_notices = notices(begin)
        arrives = end_of(own_notices)

        def work(client: int, at: float) -> list[Event]:
            assert at < arrives, "the model is at the edge before the client knows of it"
            return self.work(towns, WorkKey(1, 0, client), arrives if client in MOVED else at)

        assert_log(towns.rounds[1], towns.whole_round(NEW_EDGES, (begin, told), own_notices, work))

    def test_the_gather_waits_for_the_probing(self, towns: Towns) -> None:
        for finished in towns.rounds:
            arrived = [end for what, _, end in events(finished.timeline) if what.startswith("probing of")]
            closed = finished.timeline.gather_seconds[:2]
            assert len(arrived) == 4 and set(closed.tolist()) <= set(arrived) and max(arrived) == closed.max()


class TestReported:
    @pytest.fixture(scope="class")
    def towns(self, tmp_path_factory: pytest.TempPathFactory) -> Towns:
        return Towns(tmp_path_factory.mktemp("reported"), "reported")

    def work(self, towns: Towns, key: WorkKey, begin: float, held_up: float = 0.0) -> list[Event]:
        """Training; then the client runs the probes through its edge's blocks and reports; then it sends its model.

        ``held_up`` is how much longer the model takes down, by what else comes over the client's link.
        """
        what, starts, ends = towns.hand.split_work(key, begin)[0]
        log: list[Event] = [(what, starts, ends + held_up)]  # type: ignore[operator]
        *training, (_, up_begin, up_end) = towns.hand.split_work(key, begin + held_up)[1:]
        log += training
        now = end_of(log)
        assert up_begin == now and up_end is not None
        states = HEADER_BYTES + 4 * PROBES * towns.longest * WIDTH
        report = HEADER_BYTES + 4 * (NUMBERS + PROBES * LABELS)
        for label, seconds in (
            ("probing", towns.flops[Part.FRONT] / CLIENT_FLOPS),
            ("probe", ACCESS_LATENCY + states / UP),
            ("probing", towns.flops[Part.MIDDLE] / EDGE_FLOPS),
            ("probe", ACCESS_LATENCY + states / DOWN),
            ("probing", towns.flops[Part.BACK] / CLIENT_FLOPS),
            ("fingerprint", ACCESS_LATENCY + report / UP),
            ("adapter_up", up_end - up_begin),
        ):
            log.append((name_event(label, key), now, now + seconds))
            now += seconds
        return log

    def test_round_0(self, towns: Towns) -> None:
        """Each client gets the set over the first edge; that edge's own members get their model over the same link.

        The set has flowed alone until the model does; then they share the link until the set is there.
        """
        told = CORE_LATENCY + STANDINGS / TRUNK
        opens = told + CORE_LATENCY + towns.adapters / TRUNK
        begins, meets = CORE_LATENCY + ACCESS_LATENCY, opens + ACCESS_LATENCY
        left = towns.probe_set - (meets - begins) * DOWN
        assert 0 < left < towns.held, "the set has not arrived when the model comes, and arrives before it"
        sets: list[Event] = [(name_event("probe"), 0.0, meets + 2 * left / DOWN)] * 2
        sets += [(name_event("probe"), 0.0, begins + towns.probe_set / DOWN)] * 2

        def work(client: int, at: float) -> list[Event]:
            return self.work(towns, WorkKey(0, 0, client), at, left / DOWN if FIRST_EDGES[client] == 0 else 0.0)

        assert_log(towns.rounds[0], towns.whole_round(FIRST_EDGES, (0.0, told), sets, work))

    def test_round_1(self, towns: Towns) -> None:
        begin = towns.rounds[0].timeline.end_seconds
        told = begin + CORE_LATENCY + STANDINGS / TRUNK
        arrives = end_of(notices(begin))

        def work(client: int, at: float) -> list[Event]:
            return self.work(towns, WorkKey(1, 0, client), arrives if client in MOVED else at)

        assert_log(towns.rounds[1], towns.whole_round(NEW_EDGES, (begin, told), notices(begin), work))


@pytest.mark.parametrize("evidence", ["verified", "reported"])
def test_who_is_where_and_what_is_known(tmp_path: Path, evidence: str) -> None:
    towns = Towns(tmp_path, evidence)
    first, second = towns.rounds
    assert first.report.moved == tuple((client, towns.nodes[NEW_EDGES[client]]) for client in MOVED)
    assert first.state.untold == frozenset(MOVED) and second.state.untold == frozenset()
    assert second.plan.work.edge.tolist() == [towns.nodes[NEW_EDGES[client]] for client in second.plan.work.client]
    clients = np.array(towns.hand.setting.network.clients)
    holders = set(towns.nodes) if evidence == "verified" else set(clients.tolist())
    assert first.state.probe_holders == second.state.probe_holders == holders
    # All sets are there long before anybody needs them; still who needs one waits for it.
    activities = first.plan.activities
    is_set = (activities.kind == ActivityKind.TRANSFER) & (activities.label == Role.PROBE) & (activities.work < 0)
    is_probing = (activities.kind == ActivityKind.COMPUTE) & (activities.label == Stage.PROBING)
    before, after = first.plan.predecessors, first.plan.successors
    waits = {int(activities.source[row]) for row in after[is_set[before] & is_probing[after]]}
    assert waits == holders
    assert sorted(first.state.trust) == sorted(second.state.fingerprints) == [0, 1, 2, 3]
    assert all(0 < own.score < 1 and not own.excluded_until_round for own in second.state.trust.values())
