"""A device that cannot hold its part of the model is refused before the run, in one line that says what is missing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from elsa_ray.config.errors import InputError
from elsa_ray.model.split import Split, whole
from elsa_ray.prepare import Prepared, prepare
from elsa_ray.runtime.demand import place_run
from elsa_ray.runtime.resources import Node

from ..helpers import run_config, write_texts
from .memory import frozen_at_edge, needed, needed_at_edge


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_texts(tmp_path_factory.mktemp("texts"), num_train=36)


def prepared_with(dataset: dict[str, str], memory_bytes: float | None, **protocol: Any) -> Prepared:
    device = {"flops_per_second": 1e9} | ({} if memory_bytes is None else {"memory_bytes": memory_bytes})
    return prepare(run_config(dataset, protocol=protocol, world={"clients": {"device": device}}))


CASES: list[tuple[dict[str, Any], Split]] = [
    ({"name": "elsa", "split": {"front": 1, "back": 1}}, Split(1, 2, 1)),
    ({"name": "elsa", "split": {"front": 2, "back": 0}}, Split(2, 2, 0)),
    ({"name": "fedavg"}, whole(4)),
]


@pytest.mark.parametrize(("protocol", "split"), CASES, ids=str)
def test_the_last_byte_decides(dataset: dict[str, str], protocol: dict[str, Any], split: Split) -> None:
    roomy = prepared_with(dataset, None, **protocol)
    by_client = [needed(roomy, client, split) for client in range(roomy.setting.num_clients)]
    prepared_with(dataset, max(by_client), **protocol)
    with pytest.raises(InputError) as error:
        prepared_with(dataset, max(by_client) - 1, **protocol)
    first = by_client.index(max(by_client))
    line = str(error.value)
    assert line.startswith(
        f"world.clients.device: found client{first:03d} (custom) with {max(by_client) - 1:,} bytes for training, "
        f"1 too few"
    )
    assert f"allowed: at least {max(by_client):,} bytes, which its part of the model needs; or " in line
    assert ("protocol.split: auto" in line) == split.is_cut and "batch_size" in line and "\n" not in line


EDGE = {"flops_per_second": 1e10}


def refused(dataset: dict[str, str], memory_bytes: int, sections: dict[str, Any]) -> str | None:
    """Return the line with which a run is refused whose edges have so much memory; None if it is not."""
    protocol = {"split": {"front": 1, "back": 1}} | sections.get("protocol", {})
    world = {"edges": {"device": EDGE | {"memory_bytes": memory_bytes}} | sections.get("edges", {})}
    world |= {"round_policy": sections.get("round_policy", {})}
    topology = {"clients": 6, "edges": 2}
    try:
        prepare(run_config(dataset, protocol=protocol, world=world, topology=topology, task=sections.get("task", {})))
    except InputError as error:
        return str(error)
    return None


PROBES = {"task": {"probes": {"kind": "generated", "count": 8}}}
CLUSTERED = PROBES | {"protocol": {"clustering": {"dimensions": 4}}}
EDGE_CASES: list[tuple[dict[str, Any], float]] = [
    ({}, 3),
    ({"protocol": {"split": {"front": 2, "back": 0}}}, 3),
    ({"protocol": {"participation": 0.5}}, 1.5),
    ({"protocol": {"participation": 0.1}}, 1),
    ({"protocol": {"participation": 0.5}, "round_policy": {"over_sample": 1.6}}, 2.4),
    ({"protocol": {"participation": 0.5}, "round_policy": {"over_sample": 9.0}}, 3),
    # Clustering may give an edge a fifth more than its part of all clients, or as many as it has places.
    (CLUSTERED, 4),
    (CLUSTERED | {"edges": {"capacity": 5}}, 5),
    (CLUSTERED | {"edges": {"capacity": 50}}, 6),
]


@pytest.mark.parametrize(("sections", "members"), EDGE_CASES, ids=str)
def test_the_last_byte_of_an_edge_decides(dataset: dict[str, str], sections: dict[str, Any], members: float) -> None:
    split = sections.get("protocol", {}).get("split", {"front": 1, "back": 1})
    cut = Split(split["front"], 4 - split["front"] - split["back"], split["back"])
    roomy = prepare(run_config(dataset, task=sections.get("task", {})))
    by_client = [needed_at_edge(roomy, client, cut) for client in range(6)]
    needed = frozen_at_edge(roomy, cut) + math.ceil(members * max(by_client))
    assert refused(dataset, needed, sections) is None
    line = refused(dataset, needed - 1, sections)
    assert line is not None and "\n" not in line
    assert line.startswith("world.edges.device: found edge")
    assert f" (custom) with {needed - 1:,} bytes for training, 1 too few where {members:g} clients train" in line
    assert f"allowed: at least {needed:,} bytes, for each may need as much as client" in line
    assert "more edges" in line and "batch_size" in line


def test_a_split_of_one_choice_is_refused_as_a_fixed_one(dataset: dict[str, str]) -> None:
    fixed = refused(dataset, 1000, {"protocol": {"split": {"front": 2, "back": 1}}})
    auto = refused(dataset, 1000, {"protocol": {"split": {"auto": {"min_front": 2, "min_back": 1}}}})
    assert fixed == auto and fixed is not None and "edge0" in fixed


def test_edges_of_federated_averaging_hold_nothing(dataset: dict[str, str]) -> None:
    world = {"edges": {"device": EDGE | {"memory_bytes": 1}}}
    prepared = prepare(run_config(dataset, protocol={"name": "fedavg"}, world=world))
    assert len(prepared.setting.network.edges) > 0
    placement = place_run(prepared.setting, [Node("a", "a", {"CPU": 2.0}, {"CPU": 2.0})])
    assert [own.name for own in placement.hosts] == ["cloud"], "and no worker is started for them"


def test_all_that_are_too_small_are_counted(dataset: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"found client000 \(custom\) with 1,000 bytes .* too few \(as 5 more\);"):
        prepared_with(dataset, 1000, name="fedavg")


def test_profiles_have_memory_too(dataset: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "watch.yaml").write_text("name: watch\nflops_per_second: 1e9\nmemory_bytes: 10 kB\n")
    mix = {"mix": {str(tmp_path / "watch.yaml"): 0.5, "phone": 0.5}}
    for split in ({"front": 1, "back": 1}, "auto"):
        config = run_config(dataset, protocol={"split": split}, world={"clients": {"device": mix}})
        with pytest.raises(InputError, match=r"world\.clients\.device: found client00\d \(watch\) with 10,000 bytes"):
            prepare(config)
