"""A world's transfers are those of ``finish_times``: under each model of the network, and with bandwidths over time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from elsa_ray.config.errors import InputError
from elsa_ray.config.validate import validate
from elsa_ray.config.world import WorldConfig
from elsa_ray.network import finish_times
from elsa_ray.network.graph import Network, assemble
from elsa_ray.network.models import NETWORK_MODELS
from elsa_ray.network.routes import Router
from elsa_ray.prepare import prepare
from elsa_ray.world.devices import Device
from elsa_ray.world.fleet import Fleet
from elsa_ray.world.plan import ActivityKind
from elsa_ray.world.timeline import Outcome
from elsa_ray.world.world import World

from ..helpers import run_config, write_texts
from .stories import Story

SENT = [("phone", "cloud", 4000), ("tablet", "edge", 900), ("tablet", "cloud", 2500), ("edge", "phone", 700)]


def network(folder: Path) -> Network:
    """Make two clients at an edge; its way to the cloud is slower from second 2 to 6, and down from 8 to 9."""
    rows = ["seconds,bandwidth_bytes_per_second", "2,100", "6,1000", "8,0", "9,1000"]
    (folder / "day.csv").write_text("\n".join(rows), encoding="utf-8")
    kinds = {"phone": "client", "tablet": "client", "edge": "edge", "cloud": "cloud"}
    ends = [("phone", "edge", 700.0, 0.01), ("tablet", "edge", 900.0, 0.02), ("edge", "cloud", 1000.0, 0.03)]
    keys = ("source", "target", "bandwidth_bytes_per_second", "latency_seconds")
    links = [dict(zip(keys, link, strict=True)) for link in ends]
    links[2]["bandwidth_schedule"] = "day.csv"
    nodes = [{"id": name, "kind": kind} for name, kind in kinds.items()]
    return assemble(nodes, links, str(folder / "net.yaml"), directed=False, roles_required=True)


@pytest.mark.parametrize("model", NETWORK_MODELS)
def test_a_world_sends_as_net_does_also_over_rounds(model: str, tmp_path: Path) -> None:
    net = network(tmp_path)
    fleet = Fleet((Device("phone", 1.0, 1.0, 0.0),) * 2, Device("edge", 1.0, 1.0, 0.0))
    world = World(net, Router(net), fleet=fleet, edge_slots=1, model=NETWORK_MODELS[model])
    rows = [
        {"id": number, "src": source, "dst": target, "num_bytes": num_bytes, "start_seconds": 0.0}
        for number, (source, target, num_bytes) in enumerate(SENT)
    ]
    expected = {row["id"]: row["finish_seconds"] for row in finish_times(net, rows, model=model)}

    # The first round ends at second 3, in the midst of them; the second one waits for the rest.
    story = Story(net, keep_late=True)
    for number, (source, target, num_bytes) in enumerate(SENT):
        story.send(f"message {number}", source, target, num_bytes)
    story.gather("gather", "edge", [story.compute("clock", "tablet", 3)])
    first, state = world.play(story.build(), world.start())
    assert first.end_seconds == 3.0
    story = Story(net, round_index=1, keep_late=True)
    story.gather("gather'", "edge", [story.compute("clock", "phone", 60)])
    second, _ = world.play(story.build(), state)

    found = {}
    for timeline in (first, second):
        for row, source in enumerate(timeline.activities.source.tolist()):
            ends = (source, int(timeline.activities.target[row]))
            is_done = timeline.outcome[row] == Outcome.DONE and int(timeline.activities.num_bytes[row]) > 0
            for number, (start, target, num_bytes) in enumerate(SENT):
                is_it = ends == (net.index(start), net.index(target))
                if is_done and is_it and num_bytes == timeline.activities.num_bytes[row]:
                    found[number] = float(timeline.finish_seconds[row])
    assert any(finish < 3 for finish in found.values()) and any(finish > 9 for finish in found.values())
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("model", NETWORK_MODELS)
def test_a_round_is_played_under_the_model_that_its_config_names(model: str, tmp_path: Path) -> None:
    """The round's first transfers bring the model to the edges, whose links nobody else uses then."""
    config = run_config(write_texts(tmp_path, num_train=12), topology={"edges": 2}, world={"network": model})
    prepared = prepare(config)
    plan = prepared.protocol.plan(prepared.protocol.start(None), prepared.world.start())
    timeline, _ = prepared.world.play(plan, prepared.world.start())
    activities, names = plan.activities, prepared.setting.network.node_names
    is_first = (activities.kind == ActivityKind.TRANSFER) & (timeline.start_seconds == 0)
    rows = [
        {
            "id": row,
            "src": names[activities.source[row]],
            "dst": names[activities.target[row]],
            "num_bytes": int(activities.num_bytes[row]),
            "start_seconds": 0.0,
        }
        for row in np.flatnonzero(is_first).tolist()
    ]
    assert {row["dst"] for row in rows} == {"edge0", "edge1"}
    expected = [row["finish_seconds"] for row in finish_times(prepared.setting.network, rows, model=model)]
    assert timeline.finish_seconds[is_first].tolist() == pytest.approx(expected, rel=1e-12)


def test_the_config_names_the_model() -> None:
    assert WorldConfig().network == "fluid"
    assert validate(WorldConfig, {"network": "tcp"}).network == "tcp"
    with pytest.raises(InputError, match="network: found tpc"):
        validate(WorldConfig, {"network": "tpc"}, "world")
