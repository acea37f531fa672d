"""Where the wall time went: of each actor the stages add up to it, and without Ray all actors' work together does."""

from __future__ import annotations

import json
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import elsa_ray
from elsa_ray.cli import run_command
from elsa_ray.protocols.wall_time import DRIVER, WallStage
from elsa_ray.records.profile import PROFILE, Profile, profile_table
from elsa_ray.runtime.stopwatch import Stopwatch
from tests.runtime.runs import small_config

CLOSE = 0.05
ROUNDS = ["protocol.rounds=2", "protocol.local_steps=12", "topology.clients=12", "numerics.cohort=4"]


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_the_stages_of_each_actor_add_up_to_the_wall_time(
    executor: str, topic_data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if executor == "ray":
        request.getfixturevalue("ray_cluster")
    shown = StringIO()
    begin = time.perf_counter()
    run = elsa_ray.run(
        small_config(topic_data, *ROUNDS, f"runtime.executor={executor}", "runtime.pools=2"),
        out=tmp_path / "run",
        console=Console(file=shown, width=200),
        profile=True,
    )
    whole = time.perf_counter() - begin
    figures = json.loads((run.folder / PROFILE).read_text())
    wall, by_actor = figures["wall_seconds"], figures["wall_seconds_by_actor"]
    lines = [json.loads(line) for line in (run.folder / "rounds.jsonl").read_text().splitlines()]
    phases = sum(sum(line["wall_seconds"].values()) for line in lines)
    assert phases < wall < whole
    assert wall + figures["wall_seconds_outside_of_rounds"] == pytest.approx(run.summary["wall_seconds"], rel=CLOSE)
    hosts = ["cloud", "edge-group-0", "edge-group-1"]
    pools = ["pool-0"] if executor == "inline" else ["pool-0", "pool-1"]
    assert set(by_actor) == {DRIVER, *hosts, *pools}
    for actor, stages in by_actor.items():
        assert list(stages) == list(WallStage)
        assert all(seconds >= 0 for seconds in stages.values()), actor
        assert sum(stages.values()) == pytest.approx(wall, rel=CLOSE), actor
        assert stages["compute"] > 0, actor
    assert all(by_actor[actor]["codec"] > 0 for actor in [*hosts, *pools])
    if executor == "inline":
        # They take turns in one process: what each has worked leaves nothing out and counts nothing twice.
        work = sum(seconds for stages in by_actor.values() for stage, seconds in stages.items() if stage != "waiting")
        assert work == pytest.approx(wall, rel=CLOSE)
    else:
        assert all(stages["messages"] > 0 and stages["waiting"] > 0 for stages in by_actor.values())
    assert "Where the host's wall time went" in shown.getvalue()
    assert "Where the host&#39;s wall time went" in (run.folder / "report.html").read_text()


def test_time_inside_of_another_stage_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, busy = [0.0], [0.0]
    monkeypatch.setattr("elsa_ray.runtime.stopwatch.perf_counter", lambda: wall[0])
    monkeypatch.setattr("elsa_ray.runtime.stopwatch.process_time", lambda: busy[0])

    def pass_by(seconds: float, work: float) -> None:
        wall[0] += seconds
        busy[0] += work

    taken = []
    for alone in (False, True):
        watch = Stopwatch(alone=alone)
        pass_by(8.0, 2.0)
        with watch.spend(WallStage.COMPUTE):
            pass_by(1.0, 1.0)
            with watch.coding():
                pass_by(2.0, 5.0)
            pass_by(4.0, 4.0)
        with watch.conducting():
            pass_by(16.0, 32.0)  # Several threads may be busier than the clock.
        taken.append(watch.take())
        assert set(watch.take().values()) == {0.0}
    assert taken == [
        {"compute": 5.0, "codec": 2.0, "messages": 16.0, "waiting": 8.0},
        {"compute": 5.0, "codec": 2.0, "messages": 2.0 + 16.0, "waiting": 6.0},
    ]


def test_an_actor_that_was_away_has_waited() -> None:
    """One is started again in the second round, another dies in the third: their stages add up all the same."""
    compute, waiting = WallStage.COMPUTE, WallStage.WAITING
    profile = Profile()
    profile.add({DRIVER: {compute: 1.0, waiting: 9.0}, "a": {compute: 4.0, waiting: 6.0}})
    profile.add({DRIVER: {compute: 2.0, waiting: 3.0}, "a": {compute: 1.0, waiting: 4.0}, "b": {compute: 2.0}})
    profile.add({DRIVER: {waiting: 1.0}, "b": {waiting: 1.0}})
    figures = profile.figures(run_seconds=20.0)
    assert (figures["wall_seconds"], figures["wall_seconds_outside_of_rounds"]) == (16.0, 4.0)
    nothing = {"codec": 0.0, "messages": 0.0}
    assert figures["wall_seconds_by_actor"] == {
        DRIVER: {"compute": 3.0, "waiting": 13.0, **nothing},
        "a": {"compute": 5.0, "waiting": 11.0, **nothing},
        "b": {"compute": 2.0, "waiting": 14.0, **nothing},
    }


def test_of_many_actors_the_table_has_the_busiest_and_the_mean_of_the_others() -> None:
    profile = Profile()
    others = {f"edge-group-{n}": {WallStage.COMPUTE: n / 10, WallStage.WAITING: 10 - n / 10} for n in range(100)}
    profile.add({DRIVER: {WallStage.COMPUTE: 10.0}, **others})
    rows = profile_table(profile.figures(10.0)).rows
    assert [row[0] for row in rows] == [DRIVER, *(f"edge-group-{n}" for n in range(84, 100)), "84 others, on average"]
    assert rows[-1][1:3] == ("10 s", "4.15 s (41.5 %)")


def test_a_dry_run_has_no_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["run", "experiments/quickstart.yaml", "--dry-run", "--profile"]) == 2
    assert capsys.readouterr().err.startswith("elsa-ray: --profile: found it together with --dry-run; allowed: ")
