"""Capacities over time: schedules from files, factors on top of them, and what flows make of both."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_ray.config.errors import InputError
from elsa_ray.network import finish_times, load_network, save_network_yaml
from elsa_ray.network.schedule import CapacitySchedule, Steps
from elsa_ray.network.sharing import FluidSharing

from .slow_solver import fair_rates

TOPOLOGY = """
nodes: [{id: a, kind: router}, {id: b, kind: router}]
links:
- {source: a, target: b, bandwidth_bytes_per_second: 1024, latency_seconds: 0.5, ATTRIBUTES}
"""


def topology(folder: Path, csv: str, attributes: str = "bandwidth_schedule: day.csv") -> Path:
    (folder / "day.csv").write_text(csv, encoding="utf-8")
    path = folder / "net.yaml"
    path.write_text(TOPOLOGY.replace("ATTRIBUTES", attributes), encoding="utf-8")
    return path


def finish(path: Path, *transfers: tuple[str, str, float, float]) -> list[tuple[float, float]]:
    rows = [
        {"id": number, "src": src, "dst": dst, "num_bytes": num_bytes, "start_seconds": start}
        for number, (src, dst, num_bytes, start) in enumerate(transfers)
    ]
    return [(row["finish_seconds"], row["seconds_alone"]) for row in finish_times(path, rows)]


class TestFiles:
    def test_rates_follow_the_rows_in_both_directions(self, tmp_path: Path) -> None:
        path = topology(tmp_path, "seconds,bandwidth_bytes_per_second\n2,512\n4,0\n6,8192 bit/s\n")
        # 1.5 s at 1024, 2 s at 512, nothing until 6, the rest at 1024.
        assert finish(path, ("a", "b", 3072, 0)) == [(6.5, 6.5)]
        assert finish(path, ("b", "a", 3072, 0)) == [(6.5, 6.5)]
        # Two from the start: the first has 768 + 512 through at 4 and 256 left, the second 1536.
        assert finish(path, ("a", "b", 1536, 0), ("a", "b", 2816, 0)) == [(6.5, 2.0), (7.75, 6.25)]

    def test_a_column_of_its_own_for_the_way_back(self, tmp_path: Path) -> None:
        csv = "seconds,bandwidth_bytes_per_second,reverse_bandwidth_bytes_per_second\n0,512,2048\n1.5,1024,256\n"
        path = topology(tmp_path, csv, "bandwidth_schedule: day.csv, reverse_bandwidth_bytes_per_second: 64")
        assert [row[0] for row in finish(path, ("a", "b", 1024, 0), ("b", "a", 2304, 0))] == [2.0, 2.5]

    def test_an_asymmetric_link_keeps_its_way_back_without_one(self, tmp_path: Path) -> None:
        csv = "seconds,bandwidth_bytes_per_second\n0,512\n"
        path = topology(tmp_path, csv, "bandwidth_schedule: day.csv, reverse_bandwidth_bytes_per_second: 64")
        assert [row[0] for row in finish(path, ("a", "b", 1024, 0), ("b", "a", 64, 0))] == [2.5, 1.5]

    def test_it_starts_anew(self, tmp_path: Path) -> None:
        path = topology(
            tmp_path,
            "seconds,bandwidth_bytes_per_second\n0,1024\n1,0\n",
            "bandwidth_schedule: day.csv, repeat_seconds: 4",
        )
        assert finish(path, ("a", "b", 2048, 0), ("a", "b", 512, 9.0)) == [(8.5, 8.5), (12.5, 3.5)]

    def test_saved_and_loaded_it_is_the_same(self, tmp_path: Path) -> None:
        path = topology(
            tmp_path,
            "seconds,bandwidth_bytes_per_second\n0,1024\n1,0\n",
            "bandwidth_schedule: day.csv, repeat_seconds: 4",
        )
        (tmp_path / "elsewhere").mkdir()
        save_network_yaml(load_network(path, roles_required=False), tmp_path / "elsewhere" / "net.yaml")
        saved = load_network(tmp_path / "elsewhere" / "net.yaml", roles_required=False)
        assert saved.bandwidths == load_network(path, roles_required=False).bandwidths

    def test_a_directed_graph_and_a_shared_medium(self, tmp_path: Path) -> None:
        (tmp_path / "day.csv").write_text("seconds,bandwidth_bytes_per_second\n1,512\n", encoding="utf-8")
        graph = nx.DiGraph()
        for source, target in (("a", "b"), ("b", "a")):
            graph.add_edge(source, target, bandwidth_bytes_per_second=1024, latency_seconds=0, shared_medium=True)
        graph.edges["b", "a"]["bandwidth_schedule"] = str(tmp_path / "day.csv")
        rows = [{"id": 0, "src": "a", "dst": "b", "num_bytes": 2048, "start_seconds": 0}]
        assert finish_times(graph, rows)[0]["finish_seconds"] == 3.0

    def test_a_transfer_that_never_finishes_is_one_line(self, tmp_path: Path) -> None:
        path = topology(tmp_path, "seconds,bandwidth_bytes_per_second\n1,0\n")
        with pytest.raises(InputError, match="row 2: found a transfer that never finishes"):
            finish(path, ("a", "b", 64, 0), ("a", "b", 4096, 0))


WRONG = {
    "no rows": ("seconds,bandwidth_bytes_per_second\n", "", "day.csv: found no rows"),
    "no header": ("0,1\n", "", "day.csv: columns: found 0,1; allowed: seconds,bandwidth_bytes_per_second["),
    "empty": ("", "", "day.csv: columns: found nothing"),
    "negative": (
        "seconds,bandwidth_bytes_per_second\n0,1\n1,-5\n",
        "",
        "day.csv row 2: bandwidth_bytes_per_second: found",
    ),
    "infinite": ("seconds,bandwidth_bytes_per_second\n0,inf\n", "", "row 1: bandwidth_bytes_per_second: found inf"),
    "not later": (
        "seconds,bandwidth_bytes_per_second\n1,1\n1,2\n",
        "",
        "row 2: seconds: found 1.0; allowed: a moment l",
    ),
    "short row": ("seconds,bandwidth_bytes_per_second\n1\n", "", "day.csv row 1: found 1 fields; allowed: 2: seconds"),
    "repeats too early": (
        "seconds,bandwidth_bytes_per_second\n0,1\n9,2\n",
        "repeat_seconds: 9",
        "day.csv: repeat_seconds: found 9.0; allowed: more than the last row's 9 seconds",
    ),
    "over and over nothing": (
        "seconds,bandwidth_bytes_per_second\n0,0\n5,0\n",
        "repeat_seconds: 9",
        "day.csv: bandwidth_bytes_per_second: found 0 in all rows; allowed: a bandwidth > 0 somewhere",
    ),
    "the way back of a medium": (
        "seconds,bandwidth_bytes_per_second,reverse_bandwidth_bytes_per_second\n0,1,1\n",
        "shared_medium: true",
        "day.csv: columns: found a reverse bandwidth",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_one_line(case: str, tmp_path: Path) -> None:
    csv, attribute, expected = WRONG[case]
    path = topology(tmp_path, csv, ", ".join(filter(None, ["bandwidth_schedule: day.csv", attribute])))
    with pytest.raises(InputError) as caught:
        load_network(path, roles_required=False)
    assert expected in str(caught.value)


def test_missing_files_and_repeats_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"night\.csv: found no such file"):
        load_network(topology(tmp_path, "", "bandwidth_schedule: night.csv"), roles_required=False)
    with pytest.raises(
        InputError, match="repeat_seconds: found 5; allowed: nothing: the link has no bandwidth_schedule"
    ):
        load_network(topology(tmp_path, "", "repeat_seconds: 5"), roles_required=False)


class TestSteps:
    def test_values_and_changes(self) -> None:
        steps = Steps((0.0, 1.0, 2.5), (5.0, 0.0, 7.0), 4.0)
        assert [steps.value_at(second) for second in (0, 0.5, 1, 2.49, 2.5, 3.99, 4, 5, 402.5)] == [
            *(5.0, 5.0, 0.0, 0.0, 7.0, 7.0, 5.0, 0.0, 7.0)
        ]
        assert [steps.next_change(second) for second in (0, 1, 2.5, 4, 401)] == [1, 2.5, 4, 5, 402.5]
        once = Steps((0.0, 1.0), (5.0, 6.0))
        assert (once.next_change(1.0), once.value_at(1e9)) == (math.inf, 6.0)

    @given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=4), st.floats(0.001, 1.0), st.floats(0, 1e4))
    def test_a_change_is_later_and_the_value_there_is_the_new_one(
        self, gaps: list[float], last: float, begin: float
    ) -> None:
        seconds = [0.0]
        for gap in gaps:
            seconds.append(seconds[-1] + gap)
        steps = Steps(tuple(seconds), tuple(float(place) for place in range(len(seconds))), seconds[-1] + last)
        place, moment = None, begin
        for _ in range(3 * len(seconds)):
            following = steps.next_change(moment)
            assert following > moment
            if place is not None:
                assert steps.value_at(moment) == place
                assert steps.value_at((moment + following) / 2) == place
            moment = following
            place = int(steps.value_at(moment)) if place is None else (place + 1) % len(seconds)

    def test_what_is_no_schedule(self) -> None:
        for seconds, values, repeat in (
            ((1.0,), (1.0,), None),
            ((0.0, 0.0), (1.0, 1.0), None),
            ((0.0,), (-1.0,), None),
        ):
            with pytest.raises(ValueError, match=r"seconds|numbers"):
                Steps(seconds, values, repeat)
        with pytest.raises(ValueError, match="repeat_seconds"):
            Steps((0.0, 2.0), (1.0, 1.0), 2.0)


def test_factors_multiply_and_changes_come_in_order() -> None:
    day = Steps((0.0, 10.0), (100.0, 50.0))
    outage, fading = Steps((0.0, 4.0, 12.0), (1.0, 0.0, 1.0)), Steps((0.0, 10.0), (1.0, 0.5))
    schedule = CapacitySchedule([8.0, 8.0], {0: day}, usable_part=0.5).with_factors({0: [outage], 1: [fading]})
    schedule = schedule.with_factors({0: [fading]})
    cursor = schedule.changes(0.0)
    found = []
    while (moment := cursor.next_seconds) is not None:
        found.append((moment, cursor.pop_until(moment)))
    assert found == [(4.0, [(0, 0.0)]), (10.0, [(0, 0.0), (1, 2.0)]), (12.0, [(0, 12.5)])]
    assert (schedule.value_at(0, 3.0), schedule.value_at(1, 3.0)) == (50.0, 4.0)
    with pytest.raises(ValueError, match="capacities that exist"):
        CapacitySchedule([8.0], {1: day})


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_under_changing_capacities_flows_are_as_the_slow_solver_has_them(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=4))
    crossed = st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=3, unique=True)
    flows = data.draw(st.lists(st.tuples(st.integers(1, 400), crossed), min_size=1, max_size=8))
    change = st.tuples(st.integers(0, len(sizes) - 1), st.integers(0, 50))
    changes = [*data.draw(st.lists(change, max_size=6)), *enumerate(sizes)]

    sharing = FluidSharing(sizes)
    for number, (num_bytes, path) in enumerate(flows):
        sharing.start(number, num_bytes, path, now=0.0)
    found = {}
    for second, (capacity, size) in enumerate(changes, start=1):
        found |= dict(sharing.complete_until(float(second)))
        sharing.set_capacity(capacity, size, float(second))
    found |= dict(sharing.complete_until(math.inf))

    now, left, capacities, expected = Fraction(0), {n: Fraction(f[0]) for n, f in enumerate(flows)}, sizes, {}
    upcoming = [(Fraction(second), *change) for second, change in enumerate(changes, start=1)]
    capacities = [Fraction(size) for size in sizes]
    while left:
        rates = dict(zip(left, fair_rates([flows[number][1] for number in left], capacities), strict=True))
        ends = [now + left[number] / rate for number, rate in rates.items() if rate > 0]
        step = min([*ends, *(entry[0] for entry in upcoming[:1])])
        for number in list(left):
            left[number] -= rates[number] * (step - now)
            if left[number] == 0:
                expected[number] = float(step)
                del left[number]
        now = step
        while upcoming and upcoming[0][0] == now:
            _, capacity, size = upcoming.pop(0)
            capacities[capacity] = Fraction(size)
    assert found == pytest.approx(expected, rel=1e-12)
