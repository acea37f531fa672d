"""With every part of ELSA the links carry what was really encoded, role by role, and a plan alone has the same times.

Calibrated codecs, probes by either evidence, tables, notices, splits of each client's own, and updates with feedback.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.stepwise import exclude_nobody
from tests.world.stories import assert_equal
from tests.world.test_bytes_of_runs import CITY, carried_by_role
from tests.world.towns import only_plan, town_config, train

SSOP = {"kind": "ssop", "rank": 8}
SUBSPACE = {"kind": "subspace", "rank": 16}
MIXED = {
    "clients": {"device": {"mix": {"phone": 0.5, "laptop": 0.5}}},
    "edges": {"device": {"flops_per_second": 4e10}},
}
"""Laptops are faster than an edge, phones slower: they want different splits."""
PROBES = {"probes": {"kind": "dataset", "count": 10}}
OFTEN = {"dimensions": 4, "every": 1, "behaviour_weight": 1.0, "latency_weight": 0.0}

RUNS: dict[str, tuple[dict[str, dict[str, Any]], set[str]]] = {
    "ssop, edge inverts": ({"protocol": {"codec": [SSOP]}}, {"key"}),
    "ssop, client inverts": ({"protocol": {"codec": [{**SSOP, "invert": "client"}]}}, set()),
    "subspace each round": ({"protocol": {"codec": [SUBSPACE]}}, {"basis"}),
    "subspace every second round": ({"protocol": {"codec": [{**SUBSPACE, "refresh_rounds": 2}]}}, {"basis"}),
    "three codecs": (
        {"protocol": {"codec": [SSOP, {**SUBSPACE, "refresh_rounds": 2}, {"kind": "int8"}], "edge_rounds": 2}},
        {"key", "basis"},
    ),
    "texts for calibrations": (
        {
            "protocol": {
                "codec": {"calibration_texts": 6, "activation": [SUBSPACE], "gradient": [SUBSPACE, {"kind": "int4"}]},
                "edge_rounds": 2,
            }
        },
        {"basis"},
    ),
    "updates with feedback": (
        {"protocol": {"codec": {"update": [{"kind": "residual", "codec": [{"kind": "topk", "share": 0.2}]}]}}},
        set(),
    ),
    "splits of their own": ({"protocol": {"split": "auto"}, "world": MIXED}, set()),
    "splits of their own, blocks sent": (
        {"protocol": {"split": "auto"}, "world": MIXED, "task": {"preloaded": False}},
        {"weights_down"},
    ),
    "trust, verified": ({"protocol": {"trust": {}}, "task": PROBES}, {"probe", "control"}),
    "trust, reported": (
        {"protocol": {"trust": {"evidence": "reported"}, "edge_rounds": 2}, "task": PROBES},
        {"probe", "control", "fingerprint"},
    ),
}
CLUSTERED: dict[str, tuple[dict[str, Any], set[str]]] = {
    "trust verified": ({"trust": {}}, {"probe", "control", "fingerprint"}),
    "trust reported": ({"trust": {"evidence": "reported"}}, {"probe", "control", "fingerprint"}),
    "whole states": ({"clustering": {**OFTEN, "form": "exact"}}, {"probe", "control", "fingerprint"}),
    "everything": (
        {
            "trust": {},
            "split": "auto",
            "edge_rounds": 2,
            "codec": [SSOP, {**SUBSPACE, "refresh_rounds": 2}, {"kind": "int8"}],
        },
        {"probe", "control", "fingerprint", "key", "basis"},
    ),
}
STEPS = {"activation_up", "activation_down", "gradient_up", "gradient_down", "adapter_up", "adapter_down"}


@pytest.mark.parametrize("name", RUNS)
def test_the_links_carry_exactly_what_was_encoded_and_a_plan_has_the_same_times(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exclude_nobody(monkeypatch)  # which a plan cannot foresee
    sections, roles = RUNS[name]
    protocol = {"rounds": 3, "local_steps": 1, **sections.get("protocol", {})}
    config = town_config(tmp_path, topology=CITY, **{**sections, "protocol": protocol})
    run, planned = train(config), only_plan(config)
    for each in run.rounds:
        assert carried_by_role(each.timeline) == each.results.encoded_bytes
    assert {role for each in run.rounds for role in each.results.encoded_bytes} == STEPS | roles
    for timeline, other in zip(run.timelines, planned.timelines, strict=True):
        assert_equal(timeline, other)


@pytest.mark.parametrize("name", CLUSTERED)
def test_clusters_are_learned_so_a_plan_has_the_same_times_until_the_first(tmp_path: Path, name: str) -> None:
    """Fingerprints decide who moves; a plan without training leaves everybody at the nearest edge."""
    protocol, roles = CLUSTERED[name]
    config = town_config(
        tmp_path,
        topology=CITY,
        protocol={"rounds": 3, "local_steps": 1, "clustering": OFTEN, **protocol},
        task=PROBES,
        world=MIXED if protocol.get("split") == "auto" else {},
    )
    run, planned = train(config), only_plan(config)
    for each in run.rounds:
        assert carried_by_role(each.timeline) == each.results.encoded_bytes
    assert {role for each in run.rounds for role in each.results.encoded_bytes} == STEPS | roles
    assert any(each.report.moved for each in run.rounds[:-1]), "somebody is told of a new edge"
    assert_equal(run.timelines[0], planned.timelines[0])
