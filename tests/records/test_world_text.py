from __future__ import annotations

from typing import Any

import networkx as nx
import pytest

from elsa_ray.config.validate import validate
from elsa_ray.config.world import WorldConfig
from elsa_ray.network.graph import build_network
from elsa_ray.records.world_text import adversity_text, network_text, policy_text


def world(**sections: Any) -> WorldConfig:
    return validate(WorldConfig, sections)


def test_links_are_told_by_their_spread() -> None:
    graph = nx.Graph()
    for name, kind in (("c0", "client"), ("c1", "client"), ("c2", "client"), ("e", "edge"), ("cloud", "cloud")):
        graph.add_node(name, kind=kind)
    for number, megabits in enumerate((8, 16, 40)):
        figures = {"bandwidth_bytes_per_second": megabits * 125e3, "reverse_bandwidth_bytes_per_second": 1e7}
        graph.add_edge(f"c{number}", "e", latency_seconds=0.01, source_node=f"c{number}", **figures)
    graph.add_edge("e", "cloud", bandwidth_bytes_per_second=125e6, latency_seconds=0.02)
    assert network_text(build_network(graph, "here", roles_required=True)) == (
        "clients' links 8 Mbit/s to 40 Mbit/s (median 16 Mbit/s) up and 80 Mbit/s down at 10 ms, "
        "other links 1 Gbit/s at 20 ms"
    )


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ({}, "closes when all have arrived"),
        ({"deadline_seconds": 5}, "closes 5 s after it has opened or when all have arrived; what is late is dropped"),
        ({"quorum": 0.9, "late": "keep"}, "closes when 90 % have arrived; what is late arrives later"),
        (
            {"over_sample": 1.5},
            "closes when as many have arrived as are wanted, of 1.5 times as many; what is late is dropped",
        ),
    ],
)
def test_policies(policy: dict[str, Any], text: str) -> None:
    assert policy_text(world(round_policy=policy).round_policy) == text


def test_what_goes_wrong_is_named() -> None:
    assert adversity_text(world()) is None
    told = adversity_text(
        world(
            availability={"kind": "markov", "mean_on_seconds": 2.0, "mean_off_seconds": 1.0},
            faults={"corruption": {"probability": 0.2}},
        )
    )
    assert told == "availability markov, corruption"
