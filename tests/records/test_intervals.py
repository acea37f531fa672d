"""What the pictures of a round show: intervals against the timeline's rows, and which clients are drawn."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from elsa_ray.records.intervals import ClientsOfRound, Doing, Interval, clients_of_round, longest_round
from elsa_ray.records.reading import read_run
from elsa_ray.records.report import write_report
from elsa_ray.records.timeline_charts import gantt_svg, links_svg
from elsa_ray.world.plan import ActivityKind
from elsa_ray.world.timeline import Outcome
from tests.records.conftest import Recorded
from tests.records.helpers import prepared_run, recorded

KINDS = {(True, "client"): Doing.CLIENT, (True, "edge"): Doing.EDGE, (False, "client"): Doing.UP}


def test_intervals_are_the_rows_of_the_timeline(timed: Recorded) -> None:
    run, network = read_run(timed.path), timed.prepared.setting.network
    for line, finished in zip(run.rounds, timed.rounds, strict=True):
        shown = clients_of_round(run, line, network)
        timeline = finished.timeline
        activities = timeline.activities
        assert shown is not None
        for name, intervals in zip(shown.names, shown.intervals, strict=True):
            client = network.clients.tolist().index(network.index(name))
            rows = np.flatnonzero((activities.client == client) & (timeline.outcome == Outcome.DONE))
            expected = []
            for row in rows[timeline.finish_seconds[rows] > timeline.begin_seconds].tolist():
                is_compute = activities.kind[row] == ActivityKind.COMPUTE
                doing = KINDS.get((is_compute, network.node_kinds[activities.source[row]]), Doing.DOWN)
                begin = max(float(timeline.start_seconds[row]), timeline.begin_seconds)
                expected.append(Interval(begin, float(timeline.finish_seconds[row]), doing))
            found = [own for own in intervals if own.doing not in (Doing.QUEUE, Doing.WAIT)]
            assert set(expected) <= set(found)
            broken = np.isin(timeline.outcome, (Outcome.PENDING, Outcome.DROPPED)) & (activities.client == client)
            assert len(found) == len(set(expected)) or broken.any()
            whole = sorted(intervals, key=lambda own: own.begin)
            assert (whole[0].begin, whole[-1].end) == (timeline.begin_seconds, timeline.end_seconds)
            assert all(one.end == other.begin for one, other in itertools.pairwise(whole))


def test_work_that_is_given_up_is_marked_when_it_was(dropping: Recorded) -> None:
    run, network = read_run(dropping.path), dropping.prepared.setting.network
    marks = 0
    for line, finished in zip(run.rounds, dropping.rounds, strict=True):
        shown = clients_of_round(run, line, network)
        assert shown is not None
        expected: dict[str, list[float]] = {name: [] for name in shown.names}
        timeline = finished.timeline
        for key, seconds in zip(timeline.dropped, timeline.dropped_seconds.tolist(), strict=True):
            expected[network.node_names[network.clients[key.client]]].append(seconds)
        assert dict(zip(shown.names, map(list, shown.given_up), strict=True)) == expected
        marks += len(timeline.dropped)
        assert ("is given up" in gantt_svg(shown)) == bool(timeline.dropped)
    assert marks > 0


def test_queues_come_before_computations_and_waits_before_transfers(timed: Recorded) -> None:
    run, network = read_run(timed.path), timed.prepared.setting.network
    shown = clients_of_round(run, run.rounds[0], network)
    assert shown is not None
    for intervals in shown.intervals:
        for one, other in itertools.pairwise(intervals):
            if one.doing is Doing.QUEUE:
                assert other.doing in (Doing.CLIENT, Doing.EDGE)


def test_of_many_clients_the_slowest_and_some_typical_ones_are_drawn(tmp_path: Path) -> None:
    sections = {"task": {"dataset": {"sizes": {"min": 4, "max": 60}}, "model": "tiny", "max_length": 16},
                "topology": {"clients": 40, "edges": 2}}  # fmt: skip
    prepared = prepared_run(tmp_path, "protocol.local_steps=null", "protocol.local_epochs=1", **sections)
    run = read_run(recorded(prepared, tmp_path / "run")[0])
    line = longest_round(run)
    assert line is not None
    assert line["simulated_seconds"] - line["begin_simulated_seconds"] == max(
        one["simulated_seconds"] - one["begin_simulated_seconds"] for one in run.rounds
    )
    shown = clients_of_round(run, line, prepared.setting.network)
    assert shown is not None and shown.num_clients == 40
    assert len(set(shown.names)) == 10
    assert {entry["name"] for entry in line["slowest_clients"][:5]} <= set(shown.names)
    busy_until = [max(own.end for own in row if own.doing is not Doing.WAIT) for row in shown.intervals]
    assert busy_until == sorted(busy_until, reverse=True)


def test_a_row_with_thousands_of_intervals_becomes_a_few_hundred_bars() -> None:
    edges = np.linspace(0, 100, 20_001)
    row = tuple(
        Interval(float(begin), float(end), Doing.UP if begin < 25 else (Doing.EDGE, Doing.CLIENT)[number % 2])
        for number, (begin, end) in enumerate(itertools.pairwise(edges))
    )
    drawn = gantt_svg(ClientsOfRound(0, 0.0, 100.0, ("c0",), (row,), ((),), 1))
    assert len(re.findall(r"<path", drawn)) < 1000


def test_the_report_has_pictures_and_tables(timed: Recorded, tmp_path: Path) -> None:
    text = write_report(timed.path, tmp_path / "page.html").read_text()
    for needed in ("A round: round", "Where simulated time goes", "By tier", "The slowest clients, and why"):
        assert needed in text
    lines = read_run(timed.path).rounds
    assert ("Busiest links" in text) == any(line["links"] for line in lines)


def test_links_are_drawn_within_their_capacity() -> None:
    links = [{"name": "a → b", "utilisation": 0.5, "profile": [0.2, 1.4, 0.0]}]
    assert "a → b" in links_svg(links, 3.0)


@pytest.mark.parametrize("name", ["transfers.parquet", "events.parquet"])
def test_without_tables_there_is_no_picture_and_a_report(timed: Recorded, tmp_path: Path, name: str) -> None:
    for file in timed.path.iterdir():
        if file.is_file() and file.name != name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    run = read_run(tmp_path)
    assert clients_of_round(run, run.rounds[0], timed.prepared.setting.network) is None
    assert "A round:" not in write_report(tmp_path).read_text()
