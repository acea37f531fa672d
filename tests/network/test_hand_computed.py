"""Transfers whose finish times fit on the back of an envelope; dyadic numbers, so equality is exact."""

from __future__ import annotations

from typing import Any

import networkx as nx
import pytest

from elsa_ray.network import finish_times


def line(*links: tuple[str, str, float, float], **attributes: object) -> nx.Graph:
    graph = nx.Graph()
    for source, target, bandwidth, latency in links:
        graph.add_edge(source, target, bandwidth_bytes_per_second=bandwidth, latency_seconds=latency, **attributes)
    return graph


def finish(graph: nx.Graph, *transfers: tuple[str, str, float, float]) -> list[tuple[float, float]]:
    rows = [
        {"id": number, "src": src, "dst": dst, "num_bytes": num_bytes, "start_seconds": start}
        for number, (src, dst, num_bytes, start) in enumerate(transfers)
    ]
    table = finish_times(graph, rows)
    assert [row["id"] for row in table] == list(range(len(transfers)))
    assert [row["start_seconds"] for row in table] == [transfer[3] for transfer in transfers]
    return [(row["finish_seconds"], row["seconds_alone"]) for row in table]


def test_one_transfer_takes_latency_and_serialisation() -> None:
    assert finish(line(("a", "b", 1024, 0.5)), ("a", "b", 4096, 2.0)) == [(6.5, 4.5)]


def test_two_transfers_share_a_link_equally() -> None:
    graph = line(("a", "b", 1024, 0.25))
    # Both at 512 until 2 * 1024 bytes are through; then the longer one has the link.
    assert finish(graph, ("a", "b", 1024, 0), ("a", "b", 3072, 0)) == [(2.25, 1.25), (4.25, 3.25)]


def test_directions_do_not_share() -> None:
    graph = line(("a", "b", 1024, 0.25))
    assert finish(graph, ("a", "b", 2048, 0), ("b", "a", 2048, 0)) == [(2.25, 2.25), (2.25, 2.25)]


def test_asymmetric_link_has_its_own_bandwidth_in_each_direction() -> None:
    graph = line(("a", "b", 1024, 0.25), reverse_bandwidth_bytes_per_second=4096)
    assert finish(graph, ("a", "b", 4096, 0), ("b", "a", 4096, 0)) == [(4.25, 4.25), (1.25, 1.25)]


def test_shared_medium_is_one_capacity_for_both_directions() -> None:
    graph = line(("a", "b", 1024, 0.25), shared_medium=True)
    assert finish(graph, ("a", "b", 2048, 0), ("b", "a", 2048, 0)) == [(4.25, 2.25), (4.25, 2.25)]


def test_directed_graph_states_each_direction() -> None:
    graph = nx.DiGraph()
    graph.add_edge("a", "b", bandwidth_bytes_per_second=1024, latency_seconds=0.25)
    graph.add_edge("b", "a", bandwidth_bytes_per_second=2048, latency_seconds=0.5)
    assert finish(graph, ("a", "b", 2048, 0), ("b", "a", 2048, 0)) == [(2.25, 2.25), (1.5, 1.5)]


def test_chain_is_as_fast_as_its_bottleneck_and_leaves_the_rest_to_others() -> None:
    graph = line(("a", "b", 4096, 0.125), ("b", "c", 1024, 0.25), ("c", "d", 2048, 0.125))
    # The long one and b-c share 1024; a-b has 4096 - 512 left for the other, which is alone on what remains.
    found = finish(graph, ("a", "d", 1024, 0), ("b", "c", 1024, 0.25), ("a", "b", 7168, 0.375))
    assert found == [(2.5, 1.5), (2.5, 1.25), (2.5, 1.875)]


def test_staggered_starts() -> None:
    graph = line(("a", "b", 1024, 0.0))
    # [0, 1) alone: 1024 of 2048 through. [1, 3) two: 512 each. Then the second one has 1024 left, alone.
    assert finish(graph, ("a", "b", 2048, 0), ("a", "b", 2048, 1)) == [(3.0, 2.0), (4.0, 2.0)]


def test_a_transfer_bound_elsewhere_leaves_its_part() -> None:
    graph = line(("a", "m", 256, 0), ("b", "m", 4096, 0), ("m", "z", 1024, 0))
    assert finish(graph, ("a", "z", 256, 0), ("b", "z", 768, 0)) == [(1.0, 1.0), (1.0, 0.75)]


def test_zero_bytes_cost_latency_only_even_on_a_busy_link() -> None:
    graph = line(("a", "b", 1024, 0.25))
    assert finish(graph, ("a", "b", 1024, 0), ("a", "b", 0, 0.5)) == [(1.25, 1.25), (0.75, 0.25)]


def test_source_is_destination_costs_nothing() -> None:
    assert finish(line(("a", "b", 1024, 0.25)), ("a", "a", 1e9, 3.0)) == [(3.0, 0.0)]


def test_no_transfers() -> None:
    assert finish_times(line(("a", "b", 1, 0)), []) == []


def test_columns_in_columns_out() -> None:
    columns: dict[str, list[Any]] = {"id": ["x"], "src": ["a"], "dst": ["b"], "num_bytes": [1024], "start_seconds": [0]}
    assert finish_times(line(("a", "b", 1024, 0.25)), columns) == {
        "id": ["x"],
        "start_seconds": [0.0],
        "finish_seconds": [1.25],
        "seconds_alone": [1.25],
    }


@pytest.mark.parametrize("text", ["8192 bit/s", "8.192 kbit/s", "1024 B/s", "1 KiB/s", 1024, "1024"])
def test_bandwidths_may_carry_units(text: object) -> None:
    graph = nx.Graph()
    graph.add_edge("a", "b", bandwidth_bytes_per_second=text, latency_seconds="250 ms")
    assert finish(graph, ("a", "b", 1024, 0)) == [(1.25, 1.25)]
