from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from elsa_ray.clustering.trust import Decision, TrustEvent
from elsa_ray.records import tables, work_time
from elsa_ray.records.reading import read_run
from elsa_ray.records.tables import events_tables, pending_transfers_table, transfers_tables
from elsa_ray.records.work_time import WorkClock
from elsa_ray.world.plan import ActivityKind
from elsa_ray.world.timeline import Outcome
from tests.records.conftest import Recorded


def test_transfers_hold_every_byte_of_the_run(timed: Recorded) -> None:
    table = read_run(timed.path).transfers
    lines = read_run(timed.path).rounds
    assert pc.sum(table["num_bytes"]).as_py() == timed.rounds[-1].report.num_bytes == lines[-1]["num_bytes"]
    by_round = table.group_by("round").aggregate([("num_bytes", "sum")]).to_pylist()
    totals = {row["round"]: row["num_bytes_sum"] for row in by_round}
    ends = np.cumsum([totals[line["round"]] for line in lines])
    assert ends.tolist() == [line["num_bytes"] for line in lines]


def test_the_columns_and_values_of_transfers(trained: Recorded) -> None:
    table = read_run(trained.path).transfers
    first = ["round", "client", "src", "dst", "role", "num_bytes", "start_seconds", "finish_seconds", "outcome"]
    assert table.column_names[: len(first)] == first
    rows = table.to_pylist()
    names = set(trained.prepared.setting.network.node_names)
    assert {row["src"] for row in rows} | {row["dst"] for row in rows} <= names
    assert {row["outcome"] for row in rows} == {"done"}
    assert all(row["finish_seconds"] > row["start_seconds"] for row in rows)
    assert all(row["num_bytes"] == row["planned_bytes"] > 0 for row in rows)
    clients = trained.prepared.setting.network.clients
    for row in rows:
        if row["client"] >= 0:
            client = trained.prepared.setting.network.node_names[clients[row["client"]]]
            assert client in (row["src"], row["dst"])


def test_dropped_transfers_carry_what_they_carried(dropping: Recorded) -> None:
    table = read_run(dropping.path).transfers
    dropped = [row for row in table.to_pylist() if row["outcome"] == "dropped"]
    assert dropped
    assert all(0 <= row["num_bytes"] < row["planned_bytes"] for row in dropped)
    assert all(row["finish_seconds"] >= row["start_seconds"] for row in dropped)
    whole = {(row["role"], row["planned_bytes"]): row for row in table.to_pylist() if row["outcome"] == "done"}
    same = [(row, whole.get((row["role"], row["planned_bytes"]))) for row in dropped]
    assert any(other for _, other in same)
    for row, other in same:
        if other is not None:
            share = row["num_bytes"] / row["planned_bytes"]
            assert abs(row["uncompressed_bytes"] - share * other["uncompressed_bytes"]) <= 0.5


def test_what_is_under_way_at_the_end_is_written_once_as_pending(late: Recorded) -> None:
    last, network = late.rounds[-1], late.prepared.setting.network
    expected = pending_transfers_table(last.timeline, network, last.report.round_index)
    found = [row for row in read_run(late.path).transfers.to_pylist() if row["outcome"] == "pending"]
    assert found == expected.to_pylist() != []
    assert all(row["finish_seconds"] is None and row["num_bytes"] == 0 for row in found)
    under_way = (last.timeline.outcome == Outcome.PENDING) & np.isfinite(last.timeline.start_seconds)
    assert len(found) == int((under_way & (last.timeline.activities.kind == ActivityKind.TRANSFER)).sum())


def test_every_activity_starts_and_ends_once_over_all_rounds(timed: Recorded) -> None:
    events = read_run(timed.path).events.to_pylist()
    counts = Counter(row["event"] for row in events)
    transfers = read_run(timed.path).transfers.to_pylist()
    outcomes = Counter(row["outcome"] for row in transfers)
    assert counts["transfer_finish"] == outcomes["done"]
    assert counts["transfer_dropped"] == outcomes["dropped"]
    assert counts["transfer_start"] == len(transfers)
    last = timed.rounds[-1].timeline
    computing = (last.outcome == Outcome.PENDING) & (last.activities.kind == ActivityKind.COMPUTE)
    still = int((computing & np.isfinite(last.start_seconds)).sum())
    assert counts["compute_start"] == counts["compute_finish"] + counts["compute_dropped"] + still
    assert counts["gather"] == sum(len(finished.plan.gathers) for finished in timed.rounds)
    assert counts["round_end"] == len(timed.rounds)
    assert counts["work_dropped"] == sum(len(finished.timeline.dropped) for finished in timed.rounds)
    assert counts["work_late"] == sum(len(finished.timeline.pending) for finished in timed.rounds)
    assert counts["work_skipped"] == sum(len(finished.timeline.skipped) for finished in timed.rounds)


def test_events_are_in_the_order_of_time_and_of_cause(timed: Recorded) -> None:
    events = read_run(timed.path).events.to_pylist()
    seconds = [row["seconds"] for row in events]
    assert seconds == sorted(seconds)
    computing: Counter[str] = Counter()
    under_way: Counter[tuple[str, int]] = Counter()
    setting = timed.prepared.setting
    slots = {name: 1 for name in setting.network.node_names}
    slots |= {setting.network.node_names[edge]: setting.config.world.edges.slots for edge in setting.network.edges}
    for row in events:
        if row["event"].startswith("transfer"):
            step = 1 if row["event"] == "transfer_start" else -1
            under_way[row["detail"], row["client"]] += step
            assert under_way[row["detail"], row["client"]] >= 0
        elif row["event"].startswith("compute"):
            computing[row["node"]] += 1 if row["event"] == "compute_start" else -1
            assert 0 <= computing[row["node"]] <= slots[row["node"]]


def test_tables_are_pure_functions(late: Recorded) -> None:
    finished, network = late.rounds[1], late.prepared.setting.network
    for make in (
        lambda: pa.concat_tables(transfers_tables(finished.timeline, network, 1)),
        lambda: pa.concat_tables(events_tables(finished.plan, finished.timeline, network)),
    ):
        assert make().equals(make())


def test_piece_by_piece_they_are_the_same(
    timed: Recorded, late: Recorded, dropping: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many small pieces, none of them cut within an instant; and work that is accounted for a little at a time."""
    for record in (timed, late, dropping):
        network = record.prepared.setting.network
        whole, clocks = [], (WorkClock(network), WorkClock(network))
        for own in record.rounds:
            transfers = pa.concat_tables(transfers_tables(own.timeline, network, 1))
            events = pa.concat_tables(events_tables(own.plan, own.timeline, network, (), own.report))
            whole.append((transfers, events, clocks[0].add(own.plan, own.timeline)))
        with monkeypatch.context() as patched:
            patched.setattr(tables, "_ROWS_AT_ONCE", 7)
            patched.setattr(work_time, "_WORK_AT_ONCE", 2)
            for own, (transfers, events, arrived) in zip(record.rounds, whole, strict=True):
                pieces = list(transfers_tables(own.timeline, network, 1))
                assert len(pieces) > 1 and sum(map(len, pieces)) == len(transfers)
                assert pa.concat_tables(pieces).to_pylist() == transfers.to_pylist()
                pieces = list(events_tables(own.plan, own.timeline, network, (), own.report))
                assert len(pieces) > 1
                for one, other in pairwise(piece["seconds"].to_pylist() for piece in pieces if len(piece)):
                    assert one[-1] < other[0]
                assert [row for piece in pieces for row in piece.to_pylist()] == events.to_pylist()
                again = clocks[1].add(own.plan, own.timeline)
                assert again.queue_seconds == arrived.queue_seconds
                np.testing.assert_array_equal(again.seconds_WK, arrived.seconds_WK)
                np.testing.assert_array_equal(again.transfer_seconds_W3, arrived.transfer_seconds_W3)


def test_failed_clients_are_events(trained: Recorded) -> None:
    finished, network = trained.rounds[0], trained.prepared.setting.network
    failed = finished.timeline.arrivals[0][0]
    events = pa.concat_tables(events_tables(finished.plan, finished.timeline, network, [failed])).to_pylist()
    (row,) = [row for row in events if row["event"] == "client_failed"]
    assert row["client"] == failed.client
    assert row["node"] == network.node_names[network.clients[failed.client]]
    assert row["seconds"] == finished.timeline.end_seconds


def test_who_is_parked_moved_and_distrusted_are_events_with_their_reasons(trained: Recorded) -> None:
    finished, network = trained.rounds[0], trained.prepared.setting.network
    edge, clients = int(network.edges[1]), network.clients
    decided = {
        "client_excluded": TrustEvent(1, Decision.EXCLUDED, "score 0.284 < 0.3"),
        "client_kept": TrustEvent(2, Decision.KEPT, "excluded until round 7"),
        "client_on_probation": TrustEvent(3, Decision.PROBATION, "until round 9"),
        "client_restored": TrustEvent(0, Decision.RESTORED, "probation is over"),
    }
    assert {own.decision for own in decided.values()} == set(Decision)
    report = replace(finished.report, decisions=tuple(decided.values()), moved=((4, edge), (5, -1)))
    plan = replace(finished.plan, parked_clients=(3, 5))
    rows = pa.concat_tables(events_tables(plan, finished.timeline, network, (), report)).to_pylist()
    found = [(row["event"], row["client"], row["detail"]) for row in rows if row["event"].startswith("client_")]
    expected = [("client_parked", 3), ("client_parked", 5)]
    assert [own[:2] for own in found if own[0] == "client_parked"] == expected
    assert {own for own in found if own[0] != "client_parked"} == {
        *((event, own.client, own.reason) for event, own in decided.items()),
        ("client_moved", 4, f"to {network.node_names[edge]}"),
        ("client_moved", 5, "parked"),
    }
    for row in rows:
        if row["event"].startswith("client_"):
            assert row["node"] == network.node_names[clients[row["client"]]]
            is_parked = row["event"] == "client_parked"
            assert row["seconds"] == (finished.timeline.begin_seconds if is_parked else finished.timeline.end_seconds)
