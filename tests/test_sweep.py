"""``elsa-ray sweep``: what is run, what is not run again, and what is left when something goes wrong.

Most runs are timing-only and run in this process; the last tests start real ones.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import elsa_ray
from elsa_ray import recording
from elsa_ray import sweep as sweep_module
from elsa_ray.cli import run_command
from elsa_ray.config.errors import InputError
from elsa_ray.config.sweep import Cell, load_grid
from elsa_ray.records.statistics import estimate
from elsa_ray.records.sweep_folder import SweepFolder
from elsa_ray.sweep import sweep
from tests.test_resume import KilledError, rounds_until

GRID: dict[str, Any] = {
    "name": "small",
    "base": "base.yaml",
    "seeds": [0, 1],
    "rows": {"elsa": {}, "fedavg": {"protocol": {"name": "fedavg", "rounds": 1}}},
    "baseline": "elsa",
    "metrics": ["accuracy", "simulated_seconds", "bytes_total"],
}


class Done:
    """Stands for the process of a run that is over."""

    def __init__(self, returncode: int) -> None:
        self.returncode = returncode

    def poll(self) -> int:
        return self.returncode


class Starter:
    """Runs cells in this process, and remembers which."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.resumed: list[str] = []
        self.failures: dict[str, tuple[int, str]] = {}
        """Exit code and last words of runs that are to fail, by name and seed."""

    def __call__(self, config: Path, folder: Path, log: Path, lock: int) -> Done:
        name = folder.name.rsplit("-", 1)[0]
        self.started.append(name)
        if name in self.failures:
            code, last_words = self.failures[name]
            log.write_text(f"{last_words}\n\n")
            return Done(code)
        with log.open("w") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            return Done(run_command(["run", str(config), "--out", str(folder)]))

    def resume(self, cell: Cell, folder: Path, log: Path, lock: int) -> Done:
        self.resumed.append(folder.name.rsplit("-", 1)[0])
        runtime = json.dumps(cell.config.model_dump(mode="json")["runtime"])
        with log.open("a") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            return Done(run_command(["run", "--resume", str(folder), "--set", f"runtime={runtime}"]))


@pytest.fixture
def starter(monkeypatch: pytest.MonkeyPatch) -> Starter:
    starter = Starter()
    monkeypatch.setattr(sweep_module, "start_run", starter)
    monkeypatch.setattr(sweep_module, "start_resume", starter.resume)
    return starter


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    texts = [f"{topic} {word} {i}" for topic in ("net", "graph") for word in ("one", "two") for i in range(5)]
    path.write_text("".join(json.dumps({"text": text, "label": text.split()[0]}) + "\n" for text in texts))
    return path


def write_project(folder: Path, data: Path, base: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write base and grid, and return the grid's path."""
    config = {
        "name": "base",
        "task": {"dataset": {"train": str(data)}, "model": "tiny", "max_length": 8},
        "topology": {"kind": "hierarchical", "clients": 3, "edges": 1},
        "protocol": {"name": "elsa", "rounds": 1, "local_steps": 1},
        "runtime": {"executor": "none"},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump({**config, **(base or {})}))
    (folder / "grid.yaml").write_text(yaml.safe_dump({**GRID, **changes}, sort_keys=False))
    return folder / "grid.yaml"


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of which all is done; to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sweep_module, "start_run", Starter())
        sweep(write_project(folder, data), out=folder / "out")
    return folder / "out"


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def test_the_table_is_made_of_the_runs_summaries(finished: Path) -> None:
    cells = results(finished)["cells"]
    summaries = [json.loads((finished / cell["folder"] / "summary.json").read_text()) for cell in cells]
    assert [(cell["row"], cell["seed"]) for cell in cells] == [
        *(("elsa", 0), ("fedavg", 0), ("elsa", 1), ("fedavg", 1))
    ]
    for cell, summary in zip(cells, summaries, strict=True):
        assert (summary["protocol"], summary["seed"]) == (cell["row"], cell["seed"])
        assert cell["metrics"] == {metric: summary[metric] for metric in GRID["metrics"]}
        assert cell["versions"] == summary["versions"] and cell["hardware"] == summary["hardware"]
    elsa, fedavg = results(finished)["table"]
    seconds = [summary["simulated_seconds"] for summary in summaries]
    assert elsa["means"]["simulated_seconds"]["mean"] == estimate([seconds[0], seconds[2]]).mean
    expected = estimate([seconds[1] - seconds[0], seconds[3] - seconds[2]])
    assert fedavg["differences"]["simulated_seconds"]["half_width"] == expected.half_width
    assert elsa["means"]["accuracy"]["num_values"] == 0, "nothing was trained"
    page = (finished / "results.md").read_text()
    assert "| elsa | 2/2 | – |" in page
    for plot in ("simulated_seconds.svg", "bytes_total.svg"):
        assert f"(plots/{plot})" in page and (finished / "plots" / plot).exists()


def test_what_is_finished_is_not_run_again(out: Path, data: Path, tmp_path: Path, starter: Starter) -> None:
    before = results(out)
    done = sweep(write_project(tmp_path, data), out=out)
    after = results(out)
    assert starter.started == [] and done.failed == () and not (out / "set-aside").exists()
    del before["date"], after["date"]
    assert before == after


def test_a_changed_base_runs_only_what_it_changes(out: Path, data: Path, tmp_path: Path, starter: Starter) -> None:
    base = {"protocol": {"name": "elsa", "rounds": 2, "local_steps": 1}, "runtime": {"executor": "none", "pools": 2}}
    grid = write_project(tmp_path, data, base)
    sweep(grid, out=out)
    assert starter.started == ["elsa-seed0", "elsa-seed1"], "fedavg has a protocol section of its own"
    assert [cell["rounds_completed"] for cell in results(out)["cells"]] == [2, 1, 2, 1]
    # And back: the earlier runs are still there.
    sweep(write_project(tmp_path, data), out=out)
    assert len(starter.started) == 2
    assert [cell["rounds_completed"] for cell in results(out)["cells"]] == [1, 1, 1, 1]


def test_new_rows_and_seeds_are_added_and_names_are_only_names(
    out: Path, data: Path, tmp_path: Path, starter: Starter
) -> None:
    rows = {"ours": {}, "fedavg": GRID["rows"]["fedavg"], "the same": {"protocol.rounds": 1}, "bf16": {}}
    rows["bf16"] = {"protocol.wire_dtype": "bf16"}
    sweep(write_project(tmp_path, data, rows=rows, baseline="ours"), out=out)
    assert starter.started == ["bf16-seed0", "bf16-seed1"]
    table = {line["row"]: line for line in results(out)["table"]}
    assert table["ours"]["means"] == table["the same"]["means"], "one run serves two rows"
    assert table["the same"]["differences"]["bytes_total"]["mean"] == 0
    assert table["bf16"]["differences"]["bytes_total"]["mean"] < 0


@pytest.mark.parametrize("damage", ["interrupted", "no summary", "another config"])
def test_an_unfinished_run_is_put_aside_and_run_anew(
    damage: str, out: Path, data: Path, tmp_path: Path, starter: Starter
) -> None:
    (folder,) = (out / "cells").glob("elsa-seed1-*[0-9a-f]/")
    summary = json.loads((folder / "summary.json").read_text())
    changes = {"interrupted": {"stop_reason": "interrupted"}, "another config": {"config_sha256": "0"}}
    (folder / "summary.json").write_text(json.dumps({**summary, **changes.get(damage, {})}))
    if damage == "no summary":
        (folder / "summary.json").unlink()
    (folder / "mine.txt").write_text("keep me")
    done = sweep(write_project(tmp_path, data), out=out)
    assert starter.started == ["elsa-seed1"] and done.failed == ()
    again = json.loads((folder / "summary.json").read_text())
    assert again["simulated_seconds"] == summary["simulated_seconds"] and again["stop_reason"] == "rounds"
    assert (out / "set-aside" / f"{folder.name}-1" / "mine.txt").read_text() == "keep me"


def run_half(grid: Path, out: Path, num_rounds: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the grid's only cell as a sweep would, killed after so many rounds; returns its folder."""
    (cell,) = load_grid(grid).cells
    folder = SweepFolder(out).folder(cell)
    folder.parent.mkdir(parents=True)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(recording, "rounds", rounds_until(num_rounds, KilledError()))
        elsa_ray.run(cell.config, out=folder)
    return folder


@pytest.mark.parametrize("same_data", [True, False])
def test_a_half_run_goes_on_from_its_checkpoint(
    same_data: bool, data: Path, tmp_path: Path, starter: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it cannot, for its data are others by now, it is run anew. Its ``runtime`` is the grid's in any case."""
    own = Path(shutil.copy(data, tmp_path / "data.jsonl"))
    base = {"protocol": {"name": "elsa", "rounds": 3, "local_steps": 1}}
    grid = write_project(tmp_path, own, base, seeds=[0], rows={"elsa": {}}, baseline="elsa")
    folder = run_half(grid, tmp_path / "out", 2, monkeypatch)
    if not same_data:
        own.write_text(own.read_text().replace("one", "three"))
    runtime = {"executor": "none", "keep_checkpoints": 1}
    grid = write_project(tmp_path, own, {**base, "runtime": runtime}, seeds=[0], rows={"elsa": {}}, baseline="elsa")
    done = sweep(grid, out=tmp_path / "out")
    assert done.failed == () and starter.resumed == ["elsa-seed0"]
    assert starter.started == ([] if same_data else ["elsa-seed0"])
    assert [path.exists() for path in (tmp_path / "out" / "set-aside",)] == [not same_data]
    (checkpoint,) = (folder / "checkpoints").glob("*.json")
    assert checkpoint.name == "000003.json", "of which one is kept"
    alone = elsa_ray.run(load_grid(grid).cells[0].config, out=tmp_path / "alone").summary
    (record,) = done.records
    assert record.metrics["bytes_total"] == alone["bytes_total"]
    assert record.metrics["simulated_seconds"] == alone["simulated_seconds"]


def test_a_half_run_is_not_given_up_because_its_cluster_is_gone(
    data: Path, tmp_path: Path, starter: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"protocol": {"name": "elsa", "rounds": 2, "local_steps": 1}}
    grid = write_project(tmp_path, data, base, seeds=[0], rows={"elsa": {}}, baseline="elsa")
    run_half(grid, tmp_path / "out", 1, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(sweep_module, "start_resume", lambda *arguments: Done(2))
        assert len(sweep(grid, out=tmp_path / "out").failed) == 1
    assert starter.started == [] and not (tmp_path / "out" / "set-aside").exists()
    assert sweep(grid, out=tmp_path / "out").failed == ()
    assert starter.started == [] and starter.resumed == ["elsa-seed0"]


def test_a_failed_run_is_told_and_the_others_go_on(
    data: Path, tmp_path: Path, starter: Starter, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = {"elsa-seed0": (1, "elsa-ray: the dog ate it"), "bf16-seed0": (-signal.SIGKILL, "round 1/3")}
    starter.failures = dict(failures)
    rows = {**GRID["rows"], "bf16": {"protocol.wire_dtype": "bf16"}}
    arguments = ["sweep", str(write_project(tmp_path, data, seeds=[0], rows=rows)), "--out", str(tmp_path / "out")]
    assert run_command(arguments) == 1
    assert starter.started == ["elsa-seed0", "fedavg-seed0", "bf16-seed0"]
    assert "run 1/3: elsa, seed 0: failed: elsa-ray: the dog ate it;" in capsys.readouterr().out
    cells = [(cell["status"], cell["message"]) for cell in results(tmp_path / "out")["cells"]]
    dog, killed = ("unfinished", "elsa-ray: the dog ate it"), ("unfinished", "killed by SIGKILL")
    assert cells == [dog, ("finished", ""), killed]
    page = (tmp_path / "out" / "results.md").read_text()
    assert "| elsa | 0/1 |" in page and "| elsa |  | 0 | unfinished | elsa-ray: the dog ate it |" in page
    starter.failures = {"bf16-seed0": failures["bf16-seed0"]}
    assert run_command(arguments) == 1
    assert starter.started[3:] == ["elsa-seed0", "bf16-seed0"]


def test_a_part_of_the_grid_can_be_run_now(data: Path, tmp_path: Path, starter: Starter) -> None:
    grid = str(write_project(tmp_path, data, seeds=[0, 1, 2]))
    options = ["--only", "fedavg", "--seeds", "2", "--out", str(tmp_path / "out")]
    assert run_command(["sweep", grid, *options]) == 0
    assert starter.started == ["fedavg-seed2"]
    statuses = {(cell["row"], cell["seed"]): cell["status"] for cell in results(tmp_path / "out")["cells"]}
    assert statuses.pop(("fedavg", 2)) == "finished" and set(statuses.values()) == {"not run"}
    assert "| fedavg | 1/3 |" in (tmp_path / "out" / "results.md").read_text()


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_so_many_runs_are_under_way_at_once(
    jobs: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, most = [], []

    class Slow(Done):
        """Ends when it is asked for the third time."""

        asked = 0

        def poll(self) -> int | None:
            self.asked += 1
            if self.asked == 3:
                under_way.remove(self)
            return 0 if self.asked == 3 else None

    def start(*arguments: object) -> Slow:
        under_way.append(Slow(0))
        most.append(len(under_way))
        return under_way[-1]

    monkeypatch.setattr(sweep_module, "start_run", start)
    done = sweep(write_project(tmp_path, data), out=tmp_path / "out", jobs=jobs)
    assert max(most) == min(jobs, 4) and under_way == []
    assert len(done.failed) == 4, "an exit code is not enough: there must be a finished run"


def test_a_dry_run_lists_and_writes_nothing(
    finished: Path, data: Path, tmp_path: Path, starter: Starter, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write_project(tmp_path, data, seeds=[0, 5], rows={**GRID["rows"], "same": {"protocol.rounds": 1}})
    before = sorted(finished.rglob("*"))
    assert run_command(["sweep", str(grid), "--out", str(finished), "--dry-run"]) == 0
    assert run_command(["sweep", str(grid), "--out", str(tmp_path / "new"), "--dry-run"]) == 0
    assert sorted(finished.rglob("*")) == before and not (tmp_path / "new").exists() and starter.started == []
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    expected = ["1 elsa 0 finished", "2 fedavg 0 finished", "3 same 0 the same as run 1", "4 elsa 5 not run"]
    assert [line for line in lines if line in expected] == [*expected, "3 same 0 the same as run 1", "4 elsa 5 not run"]


BAD_SWEEPS = {
    "row and field": ({"rows": {"elsa": {}, "odd": {"protocol.ruonds": 3}}}, "rows.odd: protocol.ruonds: found an unk"),
    "what only the model tells": (
        {"rows": {"elsa": {}, "deep": {"protocol.split.front": 9}}},
        "rows.deep: protocol.split",
    ),
    "what only data tell": (
        {"vary": {"topology.clients": [3, 500]}},
        "rows.elsa, topology.clients=500: task.partition",
    ),
    "metric": ({"metrics": ["acuracy"]}, "metrics.0: found acuracy"),
    "--only": ({}, "--only: found odd; allowed: elsa, fedavg", "--only", "odd"),
    "--seeds": ({}, "--seeds: found 7; allowed: seeds of the grid: 0, 1", "--seeds", "0,7"),
    "--jobs": ({}, "'--jobs'", "--jobs", "0"),
    "--out": ({}, "which is not empty and has no cells/", "--out", "."),
}


@pytest.mark.parametrize("case", BAD_SWEEPS)
def test_wrong_input_is_told_before_the_first_run(
    case: str,
    data: Path,
    tmp_path: Path,
    starter: Starter,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes, expected, *options = BAD_SWEEPS[case]
    grid = write_project(tmp_path, data, **changes)
    monkeypatch.chdir(tmp_path)
    assert run_command(["sweep", str(grid), *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert expected in line
    assert starter.started == [] and not (tmp_path / "runs").exists()


def test_two_sweeps_keep_out_of_each_others_way(out: Path, data: Path, tmp_path: Path, starter: Starter) -> None:
    grid = write_project(tmp_path, data)
    with SweepFolder(out).opened() as lock:
        with pytest.raises(InputError, match=r"--out: found .*, where a sweep, or a run of one, is at work"):
            sweep(grid, out=out)
        # A run that outlives its sweep keeps the folder.
        orphan = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    try:
        with pytest.raises(InputError, match="at work"):
            sweep(grid, out=out)
    finally:
        orphan.communicate()
    sweep(grid, out=out)
    with pytest.raises(InputError, match="--jobs"):
        sweep(grid, out=out, jobs=0)


STUBBORN = """
import os, signal, sys, time
from pathlib import Path
def conclude(number, frame):
    Path(sys.argv[1]).write_text("concluded")
    sys.exit(143)
signal.signal(signal.SIGTERM, conclude)
os.kill(os.getppid(), signal.SIGINT)
time.sleep(250)
"""


def test_ctrl_c_ends_the_runs_in_good_order_and_keeps_everything(
    data: Path, tmp_path: Path, starter: Starter, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The second run presses Ctrl-C; it is told to end once, and waited for."""

    def start(config: Path, folder: Path, log: Path, lock: int) -> Any:
        if not starter.started:
            return starter(config, folder, log, lock)
        return subprocess.Popen([sys.executable, "-c", STUBBORN, str(tmp_path / "last")], start_new_session=True)

    monkeypatch.setattr(sweep_module, "start_run", start)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = run_command(["sweep", str(write_project(tmp_path, data)), "--out", str(tmp_path / "out")])
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert (tmp_path / "last").read_text() == "concluded"
    assert capfd.readouterr().err.strip() == "elsa-ray: interrupted"
    assert [cell["status"] for cell in results(tmp_path / "out")["cells"]] == ["finished", *["not run"] * 3]


def test_a_real_process_gives_what_a_run_gives(data: Path, tmp_path: Path) -> None:
    grid = write_project(tmp_path, data, {"runtime": {"executor": "inline"}}, rows={"elsa": {}}, target={"value": 0.0})
    stream = io.StringIO()
    done = sweep(grid, out=tmp_path / "out", seeds=[1], console=Console(file=stream, width=200))
    (_, record) = done.records
    assert done.failed == () and record.status == "finished"
    config = load_grid(grid).cells[1].config
    alone = elsa_ray.run(config, out=tmp_path / "alone").summary
    assert record.metrics["accuracy"] == alone["accuracy"] is not None
    assert record.metrics["simulated_seconds_to_target"] == alone["simulated_seconds"]
    assert record.about["config_sha256"] == alone["config_sha256"]
    said = stream.getvalue()
    assert "1 runs to do, 0 finished before" in said and "run 1/1: elsa, seed 1: accuracy" in said
    plots = {"accuracy.svg", "pareto.svg", "accuracy-by-round.svg", "accuracy-by-simulated-seconds.svg"}
    assert plots <= set(os.listdir(tmp_path / "out" / "plots"))
