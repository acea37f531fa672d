"""Where the wall time went: of each actor the stages add up to it, and without Ray all actors' work together does."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import elsa_ray
from elsa_ray.protocols.protocol import DRIVER, Stage
from elsa_ray.records.profile import PROFILE

CONFIG = {
    "name": "profiled",
    "task": {"dataset": {"name": "pydocs", "max_examples": 400}, "model": "tiny", "max_length": 32},
    "topology": {"kind": "hierarchical", "clients": 12, "edges": 2},
    "protocol": {"name": "elsa", "rounds": 2, "local_steps": 6, "split": {"front": 1, "back": 1}},
    "numerics": {"precision": "fp32", "device": "cpu"},
    "runtime": {"executor": "inline"},
}
CLOSE = 0.05


@pytest.mark.parametrize(
    "overrides", [["runtime.executor=inline"], ["runtime.executor=ray", "runtime.pools=2"]], ids=["inline", "ray"]
)
def test_the_stages_of_each_actor_add_up_to_the_wall_time(overrides: list[str], tmp_path: Path) -> None:
    shown = StringIO()
    run = elsa_ray.run(
        CONFIG, overrides=overrides, out=tmp_path / "run", console=Console(file=shown, width=200), profile=True
    )
    figures = json.loads((run.folder / PROFILE).read_text())
    wall, by_actor = figures["wall_seconds"], figures["wall_seconds_by_actor"]
    assert 0 < wall < run.summary["wall_seconds"]
    is_inline = run.summary["executor"] == "inline"
    pools = ["pool-0"] if is_inline else ["pool-0", "pool-1"]
    assert set(by_actor) >= {DRIVER, "cloud", *pools}
    for actor, stages in by_actor.items():
        assert set(stages) == set(Stage)
        assert all(seconds >= 0 for seconds in stages.values()), actor
        assert sum(stages.values()) == pytest.approx(wall, rel=CLOSE), actor
    assert all(by_actor[pool][stage] > 0 for pool in pools for stage in (Stage.COMPUTE, Stage.CODEC))
    if is_inline:
        # They take turns in one process: what each has worked leaves nothing out and counts nothing twice.
        work = sum(seconds for stages in by_actor.values() for stage, seconds in stages.items() if stage != "waiting")
        assert work == pytest.approx(wall, rel=CLOSE)
    assert "Where the host's wall time went" in shown.getvalue()
    assert "Where the host&#39;s wall time went" in (run.folder / "report.html").read_text()
