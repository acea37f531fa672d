"""The hierarchical generator, and the three ways in which a config names a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elsa_ray.config.errors import InputError
from elsa_ray.config.topology import FileTopology, HierarchicalTopology, NamedTopology
from elsa_ray.network import hierarchical, make_network, save_network_yaml
from elsa_ray.network.check import check_network
from elsa_ray.network.routes import Router


def test_structure_without_spread() -> None:
    config = HierarchicalTopology(clients=5, edges=2, spread=0)
    network = hierarchical(config, seed=0)
    assert check_network(network) == []
    names = network.node_names
    assert [names[node] for node in network.clients] == [f"client00{number}" for number in range(5)]
    assert [names[node] for node in network.edges] == ["edge0", "edge1"]
    assert [name for name, kind in zip(names, network.node_kinds, strict=True) if kind == "router"] == [
        "router0",
        "router1",
        "core",
    ]
    router = Router(network)
    for number in range(5):
        up = router.route(network.index(f"client00{number}"), network.index(f"edge{number % 2}"))
        down = router.route(network.index(f"edge{number % 2}"), network.index(f"client00{number}"))
        to_cloud = router.route(network.index(f"client00{number}"), network.index("cloud"))
        assert up is not None and down is not None and to_cloud is not None
        assert up.bottleneck_bytes_per_second == config.access_up
        assert down.bottleneck_bytes_per_second == config.access_down
        assert [len(route.links) for route in (up, down, to_cloud)] == [2, 2, 3]
        assert up.latency_seconds == 0.016
        assert to_cloud.latency_seconds == 0.04


def test_names_are_padded_to_one_width() -> None:
    network = hierarchical(HierarchicalTopology(clients=1001, edges=11), seed=0)
    assert network.node_names[0] == "client0000"
    assert "edge00" in network and "edge10" in network and "router00" in network
    assert network.clients.tolist() == sorted(network.clients.tolist())


def test_same_seed_same_bits_other_seed_other_clients() -> None:
    config = HierarchicalTopology(clients=30, edges=3)
    first, again, other = hierarchical(config, 7), hierarchical(config, 7), hierarchical(config, 8)
    assert np.array_equal(first.link_bandwidth_bytes_per_second, again.link_bandwidth_bytes_per_second)
    assert np.array_equal(first.link_latency_seconds, again.link_latency_seconds)
    assert not np.array_equal(first.link_latency_seconds, other.link_latency_seconds)


def test_a_client_is_the_same_in_a_larger_network() -> None:
    small = hierarchical(HierarchicalTopology(clients=10, edges=2), 3)
    large = hierarchical(HierarchicalTopology(clients=20, edges=2), 3)
    assert np.array_equal(small.link_bandwidth_bytes_per_second[:20], large.link_bandwidth_bytes_per_second[:20])
    assert np.array_equal(small.link_latency_seconds[:20], large.link_latency_seconds[:20])


def test_spread_is_log_normal_about_the_median() -> None:
    config = HierarchicalTopology(clients=20000, edges=1, spread=0.5)
    network = hierarchical(config, 0)
    up = network.link_bandwidth_bytes_per_second[0:40000:2]
    down = network.link_bandwidth_bytes_per_second[1:40000:2]
    latency = network.link_latency_seconds[0:40000:2]
    assert np.median(up) == pytest.approx(config.access_up, rel=0.02)
    assert np.median(latency) == pytest.approx(config.access_latency, rel=0.02)
    assert np.log(up).std() == pytest.approx(0.5, rel=0.02)
    assert np.log(latency).std() == pytest.approx(0.5, rel=0.02)
    # One factor for both bandwidths of a client, another for its latency.
    assert np.allclose(down / up, config.access_down / config.access_up)
    assert abs(np.corrcoef(np.log(up), np.log(latency))[0, 1]) < 0.03


@pytest.mark.parametrize("changes", [{"access_up": 0}, {"spread": 1e6}])
def test_impossible_figures_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="topology: link client000-router0: bandwidth_bytes_per_second"):
        hierarchical(HierarchicalTopology(clients=2, edges=1, **changes), 0)


def test_make_network_knows_all_three_kinds(tmp_path: Path) -> None:
    generated = make_network(HierarchicalTopology(clients=4, edges=1), 1, tmp_path)
    save_network_yaml(generated, tmp_path / "mine.yaml")
    loaded = make_network(FileTopology(file="mine.yaml"), 1, tmp_path)
    assert loaded.node_names == generated.node_names
    assert np.array_equal(loaded.link_bandwidth_bytes_per_second, generated.link_bandwidth_bytes_per_second)
    assert len(make_network(NamedTopology(name="metro"), 1, tmp_path).edges) == 3
    with pytest.raises(InputError, match=r"topology.name: found metor; allowed: .*did you mean metro\?"):
        make_network(NamedTopology(name="metor"), 1, tmp_path)
    with pytest.raises(InputError, match="no such file"):
        make_network(FileTopology(file="none.yaml"), 1, tmp_path)
