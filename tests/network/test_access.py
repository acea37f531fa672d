"""Access profiles: the ratios of methods.md 3.28, what the clients of a cell share, and who gets which profile."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from elsa_ray.config.errors import InputError
from elsa_ray.config.load import make_config
from elsa_ray.network import Network, finish_times
from elsa_ray.network.access import access_of_clients, access_profiles
from elsa_ray.network.generate import generated

MEGABYTE = 1_000_000


def city(access: Any, clients: int = 8, **options: Any) -> Network:
    section = {"clients": clients, "edges": 1, "access": access, "spread": 0, "edge_bandwidth": "1 Tbit/s"}
    config = make_config({"topology": {**section, "edge_latency": 0, **options}})
    return generated(config.topology, 0)


def seconds(network: Network, pairs: list[tuple[str, str]], num_bytes: int = 10 * MEGABYTE) -> list[float]:
    transfers = [
        {"id": str(number), "src": source, "dst": target, "num_bytes": num_bytes, "start_seconds": 0}
        for number, (source, target) in enumerate(pairs)
    ]
    return [row["finish_seconds"] for row in finish_times(network, transfers)]


def uploads(count: int) -> list[tuple[str, str]]:
    return [(f"client00{number}", "edge0") for number in range(count)]


def downloads(count: int) -> list[tuple[str, str]]:
    return [(target, source) for source, target in uploads(count)]


def test_serialisation_times_have_the_measured_ratios_exactly() -> None:
    up = {name: 1 / profile.up_bytes_per_second for name, profile in access_profiles().items()}
    assert up["5g"] / up["ethernet"] == pytest.approx(33.3, rel=1e-15)
    assert up["5g"] / up["wifi"] == pytest.approx(17.8, rel=1e-15)


def test_with_round_trips_the_ratios_hold_within_5_percent_from_3_megabytes() -> None:
    """The card asks this of whole transfers; a round trip before the payload is the usual exchange."""
    for size in (3 * MEGABYTE, 30 * MEGABYTE):
        alone = {name: seconds(city(name), uploads(1), size)[0] for name in ("5g", "ethernet", "wifi")}
        assert alone["5g"] / alone["ethernet"] == pytest.approx(33.3, rel=0.05)
        assert alone["5g"] / alone["wifi"] == pytest.approx(17.8, rel=0.05)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_uploads_of_a_5g_cell_slow_each_other_and_downloads_do_not(count: int) -> None:
    network = city("5g")
    assert seconds(network, uploads(count)) == pytest.approx([0.01 + count * 8.0] * count, rel=1e-12)
    assert seconds(network, downloads(count)) == pytest.approx([0.01 + 80 / 60] * count, rel=1e-12)


def test_nobody_shares_an_ethernet() -> None:
    network = city("ethernet")
    assert seconds(network, uploads(8)) == pytest.approx([0.0005 + 80 / 333] * 8, rel=1e-12)
    assert len(network.node_names) == 8 + 1 + 2 + 1, "no cell comes between"


def test_the_air_of_an_access_point_is_shared_in_both_directions_together() -> None:
    network = city("wifi")
    both = [*uploads(2), *((target, source) for source, target in uploads(4)[2:])]
    assert seconds(network, both) == pytest.approx([0.002 + 4 * 80 / 178] * 4, rel=1e-12)


def test_a_lora_gateway_hears_eight_and_sends_to_one() -> None:
    network = city("lora")
    assert seconds(network, uploads(8), 547) == pytest.approx([1 + 0.8] * 8, rel=1e-12)
    assert seconds(network, downloads(8), 547) == pytest.approx([1 + 8 * 0.8] * 8, rel=1e-12)


def test_cells_take_so_many_clients_and_no_more() -> None:
    network = city("5g", cell_clients=3)
    cells = [name for name in network.node_names if ".5g." in name]
    assert cells == ["router0.5g.0", "router0.5g.1", "router0.5g.2"]
    sizes = [network.graph.degree(cell) - 1 for cell in cells]
    assert sizes == [3, 3, 2]
    assert seconds(network, uploads(4)) == pytest.approx([24.01, 24.01, 24.01, 8.01], rel=1e-12)


def test_a_mix_is_dealt_exactly_by_the_seed() -> None:
    choice = make_config({"topology": {"access": {"mix": {"lte": 0.5, "wifi": 0.3, "lora": 0.2}}}}).topology.access
    names = [profile.name for profile in access_of_clients(choice, 50, 0, "access")]
    assert Counter(names) == {"lte": 25, "wifi": 15, "lora": 10}
    assert names == [profile.name for profile in access_of_clients(choice, 50, 0, "access")] != sorted(names)
    assert names != [profile.name for profile in access_of_clients(choice, 50, 1, "access")]


def test_the_spread_is_about_the_profile() -> None:
    section = {"clients": 2000, "edges": 1, "access": "ethernet"}
    network = generated(make_config({"topology": section}).topology, 0)
    up = network.link_bandwidth_bytes_per_second[0:4000:2]
    assert sorted(up)[1000] == pytest.approx(333e6 / 8, rel=0.05)
    plain = generated(make_config({"topology": {"clients": 2000, "edges": 1}}).topology, 0)
    ratio = up / plain.link_bandwidth_bytes_per_second[0:4000:2]
    assert ratio == pytest.approx(33.3, rel=1e-12), "a client has the same factor whatever its access"


def test_every_figure_has_a_source() -> None:
    for profile in access_profiles().values():
        assert profile.about
        assert {"up", "down", "round_trip"} <= set(profile.sources) and all(profile.sources.values())


@pytest.mark.parametrize(
    ("topology", "line"),
    [
        ({"access": "wfi"}, r"topology\.access: found wfi; allowed: 5g, ethernet, .*did you mean wifi\?"),
        ({"access": {"mix": {"wifi": 0.5, "lt": 0.5}}}, r"topology\.access\.mix\.lt: found lt; .*did you mean lte\?"),
        ({"access": {"mix": {"wifi": 0.5}}}, r"topology\.access\.mix: found .*; allowed: shares of access profiles"),
        (
            {"access": {"mix": {"wifi": -1, "lte": 2}}},
            r"topology\.access\.mix\.wifi: found -1; allowed: greater than 0",
        ),
        ({"access": 5}, r"topology\.access: found 5; allowed: a profile's name, or \{mix"),
        ({"access": {"lte": 1.0}}, r"topology\.access\.lte: found an unknown key; allowed: mix"),
        ({"access": "wifi", "access_up": "1 Mbit/s"}, r"topology: .*allowed: access, or access_up without access"),
        ({"access": "wifi", "cell_clients": 0}, r"topology\.cell_clients: found 0"),
    ],
    ids=str,
)
def test_a_mistake_is_told_in_one_line(topology: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line) as error:
        generated(make_config({"topology": topology}).topology, 0)
    assert "\n" not in str(error.value)
