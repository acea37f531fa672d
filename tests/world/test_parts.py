"""A round that falls apart at its edges: part after part gives what playing all together gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elsa_ray.config.load import make_config
from elsa_ray.prepare import prepare
from elsa_ray.world import player
from elsa_ray.world.parts import BEFORE, Parts, parts_of
from elsa_ray.world.paths import Paths
from elsa_ray.world.plan import Plan
from elsa_ray.world.timeline import Timeline
from elsa_ray.world.world import World

HIERARCHY = {"kind": "hierarchical", "clients": 30, "edges": 3, "edge_bandwidth": "80 Mbit/s"}
"""So narrow at the edges that their links are full now and then, and now and then not."""


def planned(protocol: dict[str, Any] | None = None, **sections: Any) -> tuple[World, Plan, Any]:
    config = {
        "task": {
            "dataset": {"sizes": {"min": 8, "max": 40}},
            "model": "bert-base",
            "max_length": 64,
            "lora": {"rank": 8},
        },
        "topology": HIERARCHY,
        "protocol": {"name": "elsa", "rounds": 1, "local_steps": 2, "batch_size": 8, **(protocol or {})},
        "runtime": {"executor": "none"},
        "numerics": {"device": "cpu"},
        **sections,
    }
    prepared = prepare(make_config(config))
    world_state = prepared.world.start()
    return prepared.world, prepared.protocol.plan(prepared.protocol.start(None), world_state), world_state


def cut(world: World, plan: Plan) -> Parts | None:
    return parts_of(plan, Paths(plan.activities, world._field.find_path))


def assert_same(apart: Timeline, together: Timeline) -> None:
    for name in ("start_seconds", "finish_seconds", "gather_seconds", "dropped_seconds"):
        np.testing.assert_allclose(getattr(apart, name), getattr(together, name), rtol=1e-12, atol=0, equal_nan=True)
    for name in ("outcome", "carried_bytes"):
        np.testing.assert_array_equal(getattr(apart, name), getattr(together, name))
    for name in ("arrivals", "dropped", "causes", "skipped", "pending", "lost_nodes"):
        assert getattr(apart, name) == getattr(together, name)
    assert apart.end_seconds == pytest.approx(together.end_seconds, rel=1e-12)
    first, second = apart.incidents, together.incidents
    assert [first.details[d] for d in first.rows.detail] == [second.details[d] for d in second.rows.detail]
    np.testing.assert_array_equal(first.rows.client, second.rows.client)
    np.testing.assert_allclose(first.rows.seconds, second.rows.seconds, rtol=1e-12)


FAULTS = {"dropout": {"before": 0.1, "during": 0.2, "after": 0.1}, "corruption": {"probability": 0.05}}
CASES = {
    "calm": {},
    "equal clients, two edge rounds": {"topology": HIERARCHY | {"spread": 0}, "protocol": {"edge_rounds": 2}},
    "narrow at the edges": {"topology": HIERARCHY | {"edge_bandwidth": "20 Mbit/s"}},
    "deadline": {"protocol": {"edge_rounds": 2}, "world": {"round_policy": {"deadline_seconds": 60, "late": "drop"}}},
    "quorum": {"world": {"round_policy": {"quorum": 0.5}}},
    "faults": {"world": {"faults": FAULTS}},
    "stragglers": {"world": {"faults": {"stragglers": {"kind": "lognormal", "sigma": 1.0}}}},
    "tcp": {"world": {"network": "tcp"}},
}


@pytest.mark.parametrize("case", CASES)
def test_part_after_part_is_as_together(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world, plan, state = planned(**CASES[case])
    assert cut(world, plan) is not None
    tried = []
    play_apart = player._Player.play_apart
    monkeypatch.setattr(
        player._Player, "play_apart", lambda self, parts: tried.append(play_apart(self, parts)) or tried[-1]
    )
    apart, state_apart = world.play(plan, state)
    assert tried == [True]
    monkeypatch.setattr(player, "parts_of", lambda plan, paths: None)
    together, state_together = world.play(plan, state)
    assert tried == [True]
    assert_same(apart, together)
    assert state_apart.clock_seconds == pytest.approx(state_together.clock_seconds, rel=1e-12)
    assert len(state_apart.activities) == len(state_together.activities) == 0


def test_a_part_for_each_edge_one_before_them_and_one_behind() -> None:
    world, plan, _ = planned()
    parts = cut(world, plan)
    assert parts is not None and parts.behind == 4
    of_work = plan.activities.work >= 0
    np.testing.assert_array_equal(np.unique(parts.of_row[of_work]), [1, 2, 3])
    assert parts.of_row[plan.gathers.activity[-1]] == parts.behind
    assert set(parts.of_row[~of_work & (plan.activities.client < 0)]) >= {BEFORE, parts.behind}


def test_what_shares_links_is_not_cut(tmp_path: Path) -> None:
    """In fedavg all send through the trunk; here one link leads to both edges, which have two places each."""
    ways = [(f"client{number}", "router") for number in range(4)]
    ways += [("router", "behind"), ("behind", "edge0"), ("behind", "edge1"), ("edge0", "cloud"), ("edge1", "cloud")]
    kinds = {"router": "router", "behind": "router", "edge0": "edge", "edge1": "edge", "cloud": "cloud"}
    kinds |= {f"client{number}": "client" for number in range(4)}
    link = {"bandwidth_bytes_per_second": 1e6, "latency_seconds": 0.001}
    nodes = [{"id": name, "kind": kind} for name, kind in kinds.items()]
    links = [{"source": source, "target": target, **link} for source, target in ways]
    path = tmp_path / "one-way.yaml"
    path.write_text(json.dumps({"nodes": nodes, "links": links}), encoding="utf-8")
    shared = {"topology": {"file": str(path)}, "world": {"edges": {"capacity": 2}}}
    for sections in (shared, {"protocol": {"name": "fedavg"}}):
        world, plan, state = planned(**sections)
        assert len(set(plan.work.edge.tolist())) == (2 if sections is shared else 1)
        assert cut(world, plan) is None
        timeline, _ = world.play(plan, state)
        assert np.isfinite(timeline.finish_seconds).all()


def test_parts_that_met_after_all_are_played_together(monkeypatch: pytest.MonkeyPatch) -> None:
    world, plan, state = planned()
    expected, _ = world.play(plan, state)
    monkeypatch.setattr(Parts, "never_met", lambda self, start, finish: False)
    found, _ = world.play(plan, state)
    assert_same(found, expected)
