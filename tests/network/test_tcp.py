"""The flow-level TCP model against the oracles of its card (methods.md 3.29), and LV08's arithmetic done by hand."""

from __future__ import annotations

from fractions import Fraction

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_ray.config.errors import InputError
from elsa_ray.network import finish_times
from elsa_ray.network.graph import build_network
from elsa_ray.network.models import Tcp
from elsa_ray.network.routes import Router

MB = 1e6


def graph_of(*links: tuple[str, str, float, float], **attributes: object) -> nx.Graph:
    graph = nx.Graph()
    for source, target, bandwidth, latency in links:
        graph.add_edge(source, target, bandwidth_bytes_per_second=bandwidth, latency_seconds=latency, **attributes)
    return graph


def finishes(graph: nx.Graph, *transfers: tuple[str, str, float, float], model: object = "tcp") -> list[float]:
    rows = [
        {"id": number, "src": src, "dst": dst, "num_bytes": num_bytes, "start_seconds": start}
        for number, (src, dst, num_bytes, start) in enumerate(transfers)
    ]
    return [row["finish_seconds"] for row in finish_times(graph, rows, model=model)]  # type: ignore[call-overload]


def test_alone_it_takes_start_up_and_the_usable_bandwidth() -> None:
    (found,) = finishes(graph_of(("a", "b", 2 * MB, 0.01)), ("a", "b", 10 * MB, 1.0))
    assert found == pytest.approx(1 + 13.01 * 0.01 + 10 * MB / (0.97 * 2 * MB), rel=1e-12)


def test_a_long_path_is_bounded_by_the_window() -> None:
    graph = graph_of(("a", "b", 100 * MB, 0.1), ("b", "c", 100 * MB, 0.15))
    bound = 4194304 / (2 * 0.25)
    assert bound < 0.97 * 100 * MB
    row = {"id": 0, "src": "a", "dst": "c", "num_bytes": 50 * MB, "start_seconds": 0}
    (found,) = finish_times(graph, [row], model="tcp")
    assert found["finish_seconds"] == pytest.approx(13.01 * 0.25 + 50 * MB / bound, rel=1e-12)
    assert found["seconds_alone"] == pytest.approx(found["finish_seconds"], rel=1e-12)
    # Two of them do not fill the link, so neither slows the other.
    both = finishes(graph, ("a", "c", 50 * MB, 0), ("a", "c", 50 * MB, 0))
    assert both == pytest.approx([found["finish_seconds"]] * 2, rel=1e-12)


def test_equal_paths_share_equally() -> None:
    found = finishes(graph_of(("a", "b", 2 * MB, 0.01)), ("a", "b", 5 * MB, 0), ("a", "b", 5 * MB, 0))
    assert found == pytest.approx([13.01 * 0.01 + 10 * MB / (0.97 * 2 * MB)] * 2, rel=1e-12)


def test_the_shorter_round_trip_gets_more_in_inverse_ratio_of_the_weights() -> None:
    graph = graph_of(("near", "m", 100 * MB, 0.001), ("far", "m", 100 * MB, 0.05), ("m", "z", MB, 0.002))
    narrow = 20537 / MB
    near = 0.003 + 20537 / (100 * MB) + narrow
    far = 0.052 + 20537 / (100 * MB) + narrow
    usable = 0.97 * MB
    rate_near, rate_far = usable * far / (near + far), usable * near / (near + far)
    # Both begin to flow at the same moment, so that the shares show in what each has through when the first one ends.
    start_near = 13.01 * (0.052 - 0.003)
    begin = 13.01 * 0.052
    found = finishes(graph, ("near", "z", MB, start_near), ("far", "z", MB, 0.0))
    first = begin + MB / rate_near
    assert found[0] == pytest.approx(first, rel=1e-12)
    assert found[1] == pytest.approx(first + (MB - rate_far * (first - begin)) / usable, rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(1e5, 5e6), st.floats(0, 5)), min_size=1, max_size=12))
def test_equal_weights_without_bound_are_fluid_with_less_bandwidth(drawn: list[tuple[int, float, float]]) -> None:
    latency, bandwidth = 0.001, MB
    star = graph_of(*((f"c{number}", "m", bandwidth, latency) for number in range(4)), ("m", "z", bandwidth, latency))
    transfers = [(f"c{client}", "z", num_bytes, start) for client, num_bytes, start in drawn]
    found = finishes(star, *transfers)
    slower = graph_of(*((f"c{number}", "m", 0.97 * MB, 13.01 * latency) for number in range(4)))
    slower.add_edge("m", "z", bandwidth_bytes_per_second=0.97 * MB, latency_seconds=13.01 * latency)
    assert found == pytest.approx(finishes(slower, *transfers, model="fluid"), rel=1e-11)


def test_cross_traffic_takes_a_twentieth_of_the_way_back() -> None:
    graph = graph_of(("a", "b", MB, 0.0))
    there, back = finishes(graph, ("a", "b", MB, 0), ("b", "a", MB, 0), model=Tcp(cross_traffic=True))
    assert there == back == pytest.approx(1.05 / 0.97, rel=1e-12)
    assert finishes(graph, ("a", "b", MB, 0), ("b", "a", MB, 0)) == pytest.approx([1 / 0.97] * 2, rel=1e-12)


def test_what_the_model_says_of_a_path() -> None:
    network = build_network(graph_of(("a", "b", 4 * MB, 0.01), ("b", "c", 2 * MB, 0.03)), "graph", roles_required=False)
    way = Tcp().way(Router(network), network.index("a"), network.index("c"))
    assert way is not None
    assert way.latency_seconds == pytest.approx(13.01 * 0.04, rel=1e-15)
    exact = Fraction(4, 100) + Fraction(20537, 4 * 10**6) + Fraction(20537, 2 * 10**6)
    assert 1 / way.weight == pytest.approx(float(exact), rel=1e-14)
    assert way.bound_bytes_per_second == pytest.approx(4194304 / 0.08, rel=1e-15)
    assert (way.coefficients, len(way.capacities)) == (None, 2)
    itself = Tcp().way(Router(network), 0, 0)
    assert itself is not None
    assert itself.seconds_alone(1e9) == 0.0


def test_zero_bytes_cost_the_start_up_alone() -> None:
    assert finishes(graph_of(("a", "b", MB, 0.1)), ("a", "b", 0, 2.0), ("a", "a", 5, 3.0)) == [2 + 13.01 * 0.1, 3.0]


def test_an_unknown_model_is_one_line() -> None:
    with pytest.raises(InputError, match=r"model: found tpc; allowed: fluid, tcp; did you mean tcp\?"):
        finishes(graph_of(("a", "b", MB, 0.1)), ("a", "b", 1, 0), model="tpc")
