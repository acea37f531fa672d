"""FluidSharing as a player uses it: clocks, stops, snapshots, one instant."""

from __future__ import annotations

import math
import random

import pytest

from elsa_ray.network.bottlenecks import Bottlenecks
from elsa_ray.network.bundles import Link
from elsa_ray.network.sharing import FluidSharing


def test_flows_complete_at_their_predicted_time() -> None:
    sharing = FluidSharing([8.0])
    sharing.start(1, 16, [0], now=0.0)
    sharing.start(2, 8, [0], now=0.0)
    assert sharing.next_completion() == 2.0
    assert sharing.complete_until(2.0) == [(2, 2.0)]
    assert sharing.next_completion() == 3.0
    assert sharing.complete_until(3.0) == [(1, 3.0)]
    assert sharing.next_completion() is None
    assert sharing.complete_until(9.0) == []


def test_nothing_completes_before_its_time() -> None:
    sharing = FluidSharing([8.0])
    sharing.start(1, 16, [0], now=0.0)
    assert sharing.complete_until(1.75) == []
    assert sharing.rates() == {1: 8.0}


def test_one_instant_is_handled_in_id_order_with_one_finish() -> None:
    sharing = FluidSharing([1.0, 1.0, 1.0])
    sharing.start(30, 1 + 2**-50, [0], now=0.0)
    sharing.start(4, 1, [1], now=0.0)
    sharing.start(7, 1 + 2**-30, [2], now=0.0)
    assert sharing.complete_until(1.0) == [(4, 1.0), (30, 1.0)]
    assert sharing.complete_until(2.0) == [(7, 1 + 2**-30)]


def test_called_late_it_plays_every_instant_since() -> None:
    sharing = FluidSharing([8.0])
    for flow, num_bytes in ((0, 8), (1, 16), (2, 24)):
        sharing.start(flow, num_bytes, [0], now=0.0)
    assert sharing.complete_until(100.0) == [(0, 3.0), (1, 5.0), (2, 6.0)]


def test_stop_returns_what_is_left_and_frees_the_capacity() -> None:
    sharing = FluidSharing([8.0])
    sharing.start(1, 16, [0], now=0.0)
    sharing.start(2, 16, [0], now=0.0)
    assert sharing.stop(1, now=1.0) == 12.0
    assert sharing.next_completion() == 2.5


def test_start_and_stop_at_the_same_instant_leave_no_trace() -> None:
    sharing = FluidSharing([8.0])
    sharing.start(1, 16, [0], now=0.0)
    sharing.start(2, 16, [0], now=1.0)
    assert sharing.stop(2, now=1.0) == 16.0
    assert sharing.next_completion() == 2.0


def test_a_capacity_crossed_twice_counts_twice() -> None:
    sharing = FluidSharing([8.0])
    sharing.start(1, 16, [0, 0], now=0.0)
    assert sharing.next_completion() == 4.0


def test_coefficients_load_a_link_by_more_than_the_bytes() -> None:
    sharing = FluidSharing([8.0])
    sharing.start(1, 16, [0], now=0.0, coefficients=[3.0])
    sharing.start(2, 16, [0], now=0.0)
    assert sharing.rates() == {1: 2.0, 2: 2.0}


def test_no_bytes_and_no_capacities_complete_at_once() -> None:
    sharing = FluidSharing([8.0])
    sharing.start(1, 0, [0], now=1.0)
    sharing.start(2, 50, [], now=1.0)
    assert sharing.complete_until(1.0) == [(1, 1.0), (2, 1.0)]
    assert sharing.remaining(1.0) == {}


def test_a_frozen_world_continues_with_the_same_finish_times() -> None:
    rng = random.Random(1)
    paths = [[rng.randrange(5) for _ in range(3)] for _ in range(20)]
    capacities = [float(rng.randint(1, 9)) for _ in range(5)]

    def begin() -> FluidSharing:
        sharing = FluidSharing(capacities)
        for flow, path in enumerate(paths):
            sharing.start(flow, 100.0 + flow, path, now=0.0)
        return sharing

    whole = dict(begin().complete_until(math.inf))
    first = begin()
    completed = dict(first.complete_until(300.0))
    left = first.remaining(300.0)
    assert completed and left
    second = FluidSharing(capacities)
    for flow, num_bytes in left.items():
        second.start(flow, num_bytes, paths[flow], now=300.0)
    completed |= dict(second.complete_until(math.inf))
    assert completed == pytest.approx(whole, rel=1e-12)


def count_levels(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that receives the index of each link whose level is computed."""
    computed: list[int] = []
    find_level = Bottlenecks._find_level

    def counted(self: Bottlenecks, link: Link) -> None:
        computed.append(link.index)
        find_level(self, link)

    monkeypatch.setattr(Bottlenecks, "_find_level", counted)
    return computed


def test_changes_of_one_instant_cost_one_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = count_levels(monkeypatch)
    sharing = FluidSharing([8.0])
    for flow in range(5):
        sharing.start(flow, 8, [0], now=0.0)
    sharing.stop(0, now=0.0)
    sharing.next_completion()
    assert computed == [0]
    sharing.complete_until(4.0)
    sharing.start(8, 8, [0], now=4.0)
    sharing.start(9, 8, [0], now=4.0)
    sharing.next_completion()
    assert computed == [0, 0]


def test_what_shares_no_bottleneck_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = count_levels(monkeypatch)
    # Capacity 2 is wide: all flows cross it, yet it ties none together.
    sharing = FluidSharing([8.0, 8.0, 1000.0])
    for flow in range(6):
        sharing.start(flow, 8, [flow % 2, 2], now=0.0)
    sharing.next_completion()
    assert sorted(computed) == [0, 1]
    sharing.stop(0, now=0.5)
    sharing.next_completion()
    assert sorted(computed) == [0, 0, 1]


def test_a_level_costs_the_same_for_many_flows_as_for_few(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = count_levels(monkeypatch)
    # A hundred stations with three flows each, over a common way that is the bottleneck of them all: a flow that ends
    # changes the rate of 300 flows, and costs its own station and the common way.
    sharing = FluidSharing([100.0] + [10.0] * 100)
    for flow in range(300):
        sharing.start(flow, 1000 + flow, [1 + flow % 100, 0], now=0.0)
    sharing.next_completion()
    computed.clear()
    first = sharing.next_completion()
    assert first == 3000.0
    assert sharing.complete_until(first) == [(0, first)]
    sharing.next_completion()
    assert len(computed) <= 3
    assert sharing.rates()[299] == 100 / 299


def test_a_wide_capacity_ties_flows_once_they_can_fill_it() -> None:
    sharing = FluidSharing([4.0, 4.0, 4.0, 9.0])
    for flow in range(3):
        sharing.start(flow, 120, [flow, 3], now=float(flow))
        sharing.next_completion()
    assert sharing.rates() == {0: 3.0, 1: 3.0, 2: 3.0}
    sharing.stop(1, now=4.0)
    assert sharing.rates() == {0: 4.0, 2: 4.0}


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="> 0"):
        FluidSharing([0.0])
    sharing = FluidSharing([8.0])
    sharing.start(1, 8, [0], now=1.0)
    with pytest.raises(ValueError, match="active already"):
        sharing.start(1, 8, [0], now=1.0)
    with pytest.raises(ValueError, match="went back"):
        sharing.start(2, 8, [0], now=0.5)
    with pytest.raises(ValueError, match="complete_until"):
        sharing.start(2, 8, [0], now=3.0)
    with pytest.raises(KeyError):
        sharing.stop(2, now=1.5)


def test_no_bytes_are_left_over_after_very_many_changes() -> None:
    rng = random.Random(5)
    sharing = FluidSharing([1e6])
    now, sent = 1e5, {}
    for flow in range(800):
        sent[flow] = rng.uniform(1, 1e5)
        sharing.start(flow, sent[flow], [0], now=now)
        now += rng.uniform(0, 0.08)
        sharing.complete_until(now)
    last = 0.0
    while (completion := sharing.next_completion()) is not None:
        last = completion
        assert sharing.complete_until(completion)
    # The link was never idle once it was overbooked, so all bytes over its bandwidth is how long it took at least.
    assert last >= 1e5 + sum(sent.values()) / 1e6 * (1 - 1e-9)
    assert sharing.remaining(last) == {}
