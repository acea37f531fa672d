from __future__ import annotations

import numpy as np

from elsa_ray.records.work_time import TIME_KINDS, WorkClock
from elsa_ray.world.plan import WorkKey
from tests.records.conftest import Recorded


def test_kinds_of_time_add_up_to_the_time_from_opening_to_gather(timed: Recorded) -> None:
    clock = WorkClock(timed.prepared.setting.network)
    num_items = 0
    for finished in timed.rounds:
        arrived = clock.add(finished.plan, finished.timeline)
        open_seconds = arrived.closing_seconds - arrived.opening_seconds
        assert (open_seconds > 0).all()
        np.testing.assert_allclose(arrived.seconds_WK.sum(axis=1), open_seconds, rtol=1e-12)
        assert (arrived.seconds_WK >= 0).all()
        assert arrived.keys == tuple(key for keys in finished.timeline.arrivals for key in keys)
        num_items += len(arrived.keys)
    assert num_items >= 6


def test_late_work_keeps_its_time_from_the_rounds_before(late: Recorded) -> None:
    clock = WorkClock(late.prepared.setting.network)
    opened: dict[WorkKey, float] = {}
    num_late = 0
    for finished in late.rounds:
        arrived = clock.add(finished.plan, finished.timeline)
        for key, opening, closing in zip(arrived.keys, arrived.opening_seconds, arrived.closing_seconds, strict=True):
            if key.round_index < finished.report.round_index:
                num_late += 1
                assert opening < finished.timeline.begin_seconds < closing
        opened |= dict.fromkeys(finished.timeline.pending, finished.timeline.begin_seconds)
    assert num_late > 0


def test_one_client_by_hand(timed: Recorded) -> None:
    """The figures of one work item, read off its rows one by one."""
    finished, network = timed.rounds[0], timed.prepared.setting.network
    timeline = finished.timeline
    arrived = WorkClock(network).add(finished.plan, timeline)
    key = arrived.keys[0]
    rows = np.flatnonzero(timeline.activities.work == timeline.work_row(key))
    expected = dict.fromkeys(TIME_KINDS, 0.0)
    previous = float(arrived.opening_seconds[0])
    for row in rows:
        source, target = (network.node_kinds[getattr(timeline.activities, end)[row]] for end in ("source", "target"))
        is_compute = source == target
        gap = f"{source}_queue" if is_compute else "waiting_for_model"
        kind = f"{source}_compute" if is_compute else "transfer_down" if target == "client" else "transfer_up"
        expected[gap] += timeline.start_seconds[row] - previous
        expected[kind] += timeline.finish_seconds[row] - timeline.start_seconds[row]
        previous = timeline.finish_seconds[row]
    expected["waiting_for_gather"] = arrived.closing_seconds[0] - previous
    found = dict(zip(TIME_KINDS, arrived.seconds_WK[0].tolist(), strict=True))
    for kind in TIME_KINDS:
        assert abs(found[kind] - expected[kind]) < 1e-12, kind
