"""Device profiles: sources, files of one's own, the rate that a device has with a model, and idle power by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from elsa_ray.config.errors import InputError
from elsa_ray.config.load import dump_config, load_config, make_config, read_yaml
from elsa_ray.network.graph import assemble
from elsa_ray.network.routes import Router
from elsa_ray.world.devices import Device, StepSize, devices_of_clients, find_device, profiles, read_profile
from elsa_ray.world.energy import energy_joules, idle_joules
from elsa_ray.world.fleet import Fleet
from elsa_ray.world.world import World
from tests.world.stories import Story

WHERE = "world.clients.device"
OWN = """
name: board
about: a board of mine
flops_per_second: {value: 4 GFLOP/s, source: measured}
memory_bytes: 512 MB
states_per_second: 1e6
block_seconds: 250 ms
idle_watts: 2 W
"""


def test_every_figure_of_every_profile_has_a_source() -> None:
    figures = {"flops_per_second", "memory_bytes", "idle_watts", "active_watts", "radio_joules_per_byte"}
    for name, profile in profiles().items():
        assert profile.device.name == name and profile.about
        assert set(profile.sources) == figures and all(profile.sources.values())
        assert 0 < profile.device.memory_bytes < math.inf


def test_there_is_a_profile_of_each_kind_of_device() -> None:
    kinds = ("phone", "raspberry_pi", "jetson", "laptop", "gateway", "edge_server", "edge_gpu")
    assert [kind for kind in kinds if not any(name.startswith(kind) for name in profiles())] == []


def test_the_first_profiles_have_kept_their_figures() -> None:
    kept = {
        "phone": (2e10, 3.0, 1e-7, 2e9),
        "raspberry_pi": (5e9, 4.0, 5e-8, 3e9),
        "laptop": (1e11, 20.0, 5e-8, 8e9),
        "edge_server": (1e12, 150.0, 0.0, 6e10),
        "edge_gpu": (2e13, 250.0, 0.0, 2e10),
    }
    for name, figures in kept.items():
        device = profiles()[name].device
        found = (device.flops_per_second, device.active_watts, device.radio_joules_per_byte, device.memory_bytes)
        assert found == figures


def test_a_step_takes_products_states_and_starts() -> None:
    device = Device("made", 100.0, 0.0, 0.0, states_per_second=10.0, block_seconds=0.5)
    step = StepSize(flops=400.0, states=20.0, blocks=3)
    assert device.step_seconds(step) == 4 + 2 + 0.5 * 4
    training = device.training(step)
    assert training == Device("made", 50.0, 0.0, 0.0)
    assert training.training(step) is training and training.step_seconds(step) == device.step_seconds(step)
    fleet = Fleet((device, device, training), Device("edge", 7.0, 0.0, 0.0))
    assert fleet.training(step) == Fleet((training,) * 3, fleet.edge)
    plain = profiles()["phone"].device
    assert plain.training(step) is plain


def test_a_device_from_a_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "board.yaml").write_text(OWN)
    board = Device("board", 4e9, 0.0, 0.0, 512e6, idle_watts=2.0, states_per_second=1e6, block_seconds=0.25)
    profile = read_profile(tmp_path / "board.yaml")
    assert profile.device == board and dict(profile.sources) == {"flops_per_second": "measured"}
    (tmp_path / "run.yaml").write_text(
        "world: {clients: {device: {mix: {board.yaml: 0.5, phone: 0.5}}}, edges: {device: {file: board.yaml}}}\n"
    )
    config = load_config(tmp_path / "run.yaml")
    assert find_device(config.world.edges.device, WHERE) == board
    names = [device.name for device in devices_of_clients(config.world.clients.device, 4, 0, WHERE)]
    assert sorted(names) == ["board", "board", "phone", "phone"]
    # The dumped config names the files from anywhere.
    assert make_config(read_yaml(dump_config(config), "dump"), base_folder=Path("/")) == config
    for device in ("board.yaml", {"file": "board.yaml"}):
        (tmp_path / "run.yaml").write_text(f"world: {{clients: {{device: {device}}}}}\n".replace("'", ""))
        config = load_config(tmp_path / "run.yaml")
        assert devices_of_clients(config.world.clients.device, 1, 0, WHERE) == (board,)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("flops_per_second: 0", "bad.yaml: flops_per_second: found 0.0; allowed: greater than 0"),
        ("flops: 3", r"flops: found an unknown key; allowed: active_watts, .*flops_per_second"),
        ("about: x", "flops_per_second: found nothing; allowed: a value"),
        (
            "flops_per_second: {value: 3}",
            r"flops_per_second: found \{'value': 3\}; allowed: a value, or \{value: VALUE",
        ),
        ("flops_per_second: 1\nblock_seconds: 3 W", "block_seconds: found 3 W"),
        ("flops_per_second: 1\nstates_per_second: 0", "states_per_second: found 0.* allowed: greater than 0"),
        ("- 3", "found no mapping; allowed: a mapping of a device's figures"),
        ("a: [", "valid YAML"),
    ],
)
def test_a_mistake_in_a_file_is_told_in_one_line(text: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=line) as error:
        read_profile(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("device", "line"),
    [
        ("none.yaml", r"none\.yaml: found no such file"),
        ({"file": "none.yaml"}, r"none\.yaml: found no such file"),
        ({"file": 3}, r"world\.clients\.device\.file: found 3; allowed: a valid string"),
        ({"file": "a.yaml", "active_watts": 3}, r"device\.active_watts: found an unknown key; allowed: file"),
        ({"flops_per_second": 1, "idle_watts": -1}, r"device\.idle_watts: found -1"),
    ],
    ids=str,
)
def test_a_mistake_in_the_config_is_told_in_one_line(device: Any, line: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=line):
        config = make_config({"world": {"clients": {"device": device}}}, base_folder=tmp_path)
        devices_of_clients(config.world.clients.device, 1, 0, WHERE)


def test_who_takes_part_in_a_round_draws_idle_power_for_its_whole_length() -> None:
    """Two clients at 2 W, two edges at 16 W; the second round, of 4 s, goes by without the second client and edge."""
    nodes = [
        *({"id": name, "kind": "client"} for name in ("c0", "c1")),
        *({"id": name, "kind": "edge"} for name in ("e0", "e1")),
        {"id": "cloud", "kind": "cloud"},
    ]
    pairs = [("c0", "e0"), ("c1", "e1"), ("e0", "cloud"), ("e1", "cloud")]
    links = [{"source": a, "target": b, "bandwidth_bytes_per_second": 8.0, "latency_seconds": 0.0} for a, b in pairs]
    network = assemble(nodes, links, "story", directed=False, roles_required=True)
    client = Device("client", 1.0, 0.0, 0.0, idle_watts=2.0)
    fleet = Fleet((client, client), Device("edge", 1.0, 0.0, 0.0, idle_watts=16.0))
    world = World(network, Router(network), fleet=fleet, edge_slots=1)

    story = Story(network)
    ups = []
    for number in range(2):
        item = story.work(number)
        trained = story.compute("train", f"c{number}", 3 + number, work=item)
        ups.append(story.send("up", f"c{number}", f"e{number}", 8, after=[trained], work=item))
    story.gather("gather", "e0", ups)
    first, state = world.play(story.build(), world.start())
    assert first.end_seconds == 5
    assert idle_joules(first, network, fleet).tolist() == [10, 10, 80, 80, 0]
    assert energy_joules(first, network, fleet) == 180

    story = Story(network, round_index=1)
    item = story.work(0)
    trained = story.compute("train", "c0", 3, work=item)
    story.gather("gather", "e0", [story.send("up", "c0", "e0", 8, after=[trained], work=item)])
    second, _ = world.play(story.build(), state)
    assert idle_joules(second, network, fleet).tolist() == [8, 0, 64, 0, 0]
