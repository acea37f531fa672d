"""Whose device is whose: exact shares, the same for a seed; and mistakes told in one line."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elsa_ray.config.errors import InputError
from elsa_ray.config.load import dump_config, make_config, read_yaml
from elsa_ray.config.world import DeviceMix, DeviceSpec
from elsa_ray.world.devices import Device, devices_of_clients, find_device, profiles

WHERE = "world.clients.device"
PROFILES = {name: profile.device for name, profile in profiles().items()}


def config_of(device: Any) -> Any:
    return make_config({"world": {"clients": {"device": device}}})


def names_of(shares: dict[str, float], num_clients: int, seed: int = 0) -> list[str]:
    return [device.name for device in devices_of_clients(DeviceMix(mix=shares), num_clients, seed, WHERE)]


@st.composite
def mixes(draw: st.DrawFn) -> dict[str, float]:
    names = draw(st.lists(st.sampled_from(sorted(PROFILES)), min_size=1, unique=True))
    parts = [draw(st.integers(1, 1000)) for _ in names]
    return {name: part / sum(parts) for name, part in zip(names, parts, strict=True)}


@given(mixes(), st.integers(0, 500), st.integers(0, 3))
def test_every_profile_gets_its_share_to_less_than_one_client(
    shares: dict[str, float], num_clients: int, seed: int
) -> None:
    counts = Counter(names_of(shares, num_clients, seed))
    assert counts.total() == num_clients
    assert all(abs(counts[name] - share * num_clients) < 1 for name, share in shares.items())


@given(mixes(), st.integers(0, 500))
def test_the_clients_left_over_go_to_the_largest_fractions(shares: dict[str, float], num_clients: int) -> None:
    counts = Counter(names_of(shares, num_clients))
    fractions = {name: share * num_clients - math.floor(share * num_clients + 1e-9) for name, share in shares.items()}
    rounded_up = {name for name, share in shares.items() if counts[name] > share * num_clients + 1e-9}
    others = [fractions[name] for name in shares if name not in rounded_up]
    assert all(fractions[name] >= max(others, default=0.0) - 1e-9 for name in rounded_up)


@pytest.mark.parametrize(
    ("shares", "num_clients", "counts"),
    [
        ({"phone": 0.5, "raspberry_pi": 0.3, "laptop": 0.2}, 10, {"phone": 5, "raspberry_pi": 3, "laptop": 2}),
        # 31.5 and 13.5, but 0.7 * 45 lies below in binary
        ({"phone": 0.3, "laptop": 0.7}, 45, {"laptop": 32, "phone": 13}),
        ({"phone": 0.29, "laptop": 0.57, "edge_gpu": 0.14}, 100, {"phone": 29, "laptop": 57, "edge_gpu": 14}),
        # 1.5 each: the first in alphabetical order gets the one left over
        ({"phone": 0.5, "laptop": 0.5}, 3, {"laptop": 2, "phone": 1}),
        # 3.3, 1.1, 0.6: one left over
        ({"phone": 0.66, "laptop": 0.22, "edge_gpu": 0.12}, 5, {"phone": 3, "laptop": 1, "edge_gpu": 1}),
        # within the tolerance of the sum
        ({"phone": 0.5000004, "laptop": 0.5}, 10**6, {"phone": 500000, "laptop": 500000}),
        ({"phone": 1.0}, 4, {"phone": 4}),
    ],
)
def test_shares_dealt_by_hand(shares: dict[str, float], num_clients: int, counts: dict[str, int]) -> None:
    assert Counter(names_of(shares, num_clients)) == counts


def test_the_mix_is_shuffled_by_the_seed_and_nothing_else() -> None:
    shares = {"phone": 0.5, "raspberry_pi": 0.3, "laptop": 0.2}
    first = names_of(shares, 60)
    assert first == names_of(dict(reversed(shares.items())), 60)
    assert first != names_of(shares, 60, seed=1)
    assert Counter(first) == Counter(names_of(shares, 60, seed=1))
    assert first != sorted(first)


def test_one_device_serves_all_clients() -> None:
    assert devices_of_clients("laptop", 3, 0, WHERE) == (PROFILES["laptop"],) * 3
    own = DeviceSpec(flops_per_second=2.0, memory_bytes="2 GB")
    assert devices_of_clients(own, 2, 0, WHERE) == (Device("custom", 2.0, 0.0, 0.0, 2e9),) * 2


def test_memory_is_unlimited_unless_it_is_stated() -> None:
    assert find_device(DeviceSpec(flops_per_second=1.0), WHERE).memory_bytes == math.inf
    assert Device("plain", 1.0, 0.0, 0.0).memory_bytes == math.inf
    assert all(0 < profile.memory_bytes < math.inf for profile in PROFILES.values())
    assert config_of({"flops_per_second": 1, "memory_bytes": "512 MiB"}).world.clients.device.memory_bytes == 2**29


@pytest.mark.parametrize(
    "device",
    [
        "phone",
        {"mix": {"phone": 0.7, "laptop": 0.3}},
        {"flops_per_second": "3 GFLOP/s", "memory_bytes": "2 GB"},
        {"flops_per_second": "3 GFLOP/s"},
    ],
    ids=str,
)
def test_the_written_config_gives_the_same_devices(device: Any) -> None:
    config = config_of(device)
    assert make_config(read_yaml(dump_config(config), "dump")) == config


@pytest.mark.parametrize(
    ("device", "fragments"),
    [
        ({"mix": {"phone": 0.5}}, [".mix: found {'phone': 0.5}; allowed: shares of device profiles that sum to 1"]),
        ({"mix": {"phone": 0.500002, "laptop": 0.5}}, [".mix: found", "that sum to 1"]),
        ({"mix": {}}, [".mix: found {}; allowed: shares of device profiles that sum to 1"]),
        ({"mix": {"phone": 0, "laptop": 1}}, [".mix.phone: found 0; allowed: greater than 0"]),
        ({"mix": {"phone": -0.5, "laptop": 1.5}}, [".mix.phone: found -0.5; allowed: greater than 0"]),
        ({"mix": {"phone": float("nan")}}, [".mix.phone: found nan; allowed: a finite number"]),
        ({"mix": {"phone": "half"}}, [".mix.phone: found the text 'half'; allowed: a valid number"]),
        ({"mix": {"phone": True}}, [".mix.phone: found True; allowed: a valid number"]),
        ({"mix": {3: 1.0}}, [".mix.3: found 3; allowed: a valid string"]),
        ({"mix": "phone"}, [".mix: found phone; allowed: a mapping of keys to values"]),
        ({"mix": {"phone": 1.0}, "flops_per_second": 1}, [".flops_per_second: found an unknown key; allowed: mix"]),
        (
            ["phone"],
            [": found ['phone']; allowed: a valid string or a mapping: NAME, {flops_per_second: RATE}, or {mix"],
        ),
        (None, [": found None; allowed: a valid string or a mapping"]),
        ({"flops": 1}, [".flops: found an unknown key; allowed: active_watts, block_seconds, flops_per_second,"]),
        ({}, [".flops_per_second: found nothing; allowed: a value"]),
        ({"flops_per_second": 1, "memory_bytes": 0}, [".memory_bytes: found 0; allowed: greater than 0"]),
        ({"flops_per_second": 1, "memory_bytes": "2 GBit"}, [".memory_bytes: found 2 GBit", "such as '2 GB'"]),
        (
            {"flops_per_second": 1, "memory_byte": 1},
            [".memory_byte: found an unknown key", "did you mean memory_bytes?"],
        ),
    ],
    ids=str,
)
def test_a_mistake_in_a_device_is_told_in_one_line(device: Any, fragments: list[str]) -> None:
    with pytest.raises(InputError) as error:
        config_of(device)
    line = str(error.value)
    assert line.startswith(WHERE + fragments[0])
    assert all(fragment in line for fragment in fragments[1:])
    assert "\n" not in line
    assert "; allowed: " in line


def test_an_edge_has_no_mix() -> None:
    with pytest.raises(InputError, match=r"^world\.edges\.device\.mix: found an unknown key"):
        make_config({"world": {"edges": {"device": {"mix": {"edge_gpu": 1.0}}}}})


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("fone", r"^world\.clients\.device: found fone; allowed: .*laptop.*; did you mean phone\?$"),
        (
            DeviceMix(mix={"phone": 0.5, "laptpo": 0.5}),
            r"^world\.clients\.device\.mix\.laptpo: found laptpo; allowed: .*phone.*; did you mean laptop\?$",
        ),
    ],
    ids=str,
)
def test_an_unknown_profile_is_told_with_the_nearest(spec: Any, line: str) -> None:
    with pytest.raises(InputError, match=line):
        devices_of_clients(spec, 4, 0, WHERE)
