"""A run that is stopped and resumed, at any round and any number of times, ends in the bits of one that was not."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from elsa_ray import recording, resuming
from elsa_ray.api import Run, resume, run
from elsa_ray.cli import run_command
from elsa_ray.config.errors import InputError
from elsa_ray.config.load import make_config
from elsa_ray.config.protocol import FedAvgConfig
from elsa_ray.experiment import rounds
from elsa_ray.protocols.fedavg import FedAvg
from elsa_ray.protocols.protocol import ProtocolState
from elsa_ray.records.folder import kept_for_one
from elsa_ray.records.round import Round
from elsa_ray.runtime import provenance
from elsa_ray.runtime.checkpoints import Checkpoint, Checkpoints
from elsa_ray.runtime.failure import WorkerError
from elsa_ray.runtime.forms import form_of
from elsa_ray.world.timeline import WorldState
from tests.helpers import write_texts

WALL = ("wall_seconds", "wall_seconds_by_phase", "host_peak_memory_bytes")

CALIBRATED = [{"kind": "ssop", "rank": 8}, {"kind": "subspace", "rank": 16, "refresh_rounds": 2}, {"kind": "int8"}]
UPDATES = [{"kind": "residual", "codec": [{"kind": "topk", "share": 0.25}]}]
RUNS: dict[str, dict[str, Any]] = {
    "elsa with all parts": {
        "task": {"probes": {"kind": "dataset", "count": 8}},
        "topology": {"clients": 7, "edges": 2},
        "protocol": {
            "clustering": {"dimensions": 4, "every": 1, "latency_weight": 0.0},
            "trust": {},
            "split": {"auto": {"hysteresis": 0.0}},
            "codec": {"activation": CALIBRATED, "gradient": CALIBRATED, "update": UPDATES},
            "rounds": 3,
        },
        "world": {
            "clients": {"device": {"mix": {"phone": 0.5, "laptop": 0.5}}},
            "edges": {"device": {"flops_per_second": 4.0e10}},
            "misbehaviour": [{"kind": "sign_flip", "clients": [2]}, {"kind": "stale_replay", "clients": [3]}],
        },
    },
    "late work": {
        "topology": {"clients": 6, "edges": 2},
        "protocol": {"rounds": 5, "edge_rounds": 2, "participation": 0.7, "codec": {"update": UPDATES}},
        "world": {
            "round_policy": {"deadline_seconds": 0.12, "late": "keep", "staleness": {"kind": "polynomial"}},
            "availability": {"kind": "markov", "mean_on_seconds": 3.0, "mean_off_seconds": 0.5},
        },
    },
    "fedavg": {
        "protocol": {"name": "fedavg", "rounds": 4, "optimizer": {"kind": "adamw"}},
        "world": {"round_policy": {"quorum": 0.5, "late": "keep"}},
        "evaluation": {"every": 2},
    },
}


class KilledError(BaseException):
    """Ends a run as nothing that it could answer does."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_texts(tmp_path_factory.mktemp("texts"), num_train=48, num_test=8)


def config_of(dataset: dict[str, str], sections: dict[str, Any], *overrides: str) -> Any:
    defaults: dict[str, dict[str, Any]] = {
        "task": {"dataset": dataset, "model": "tiny", "max_length": 12, "lora": {"rank": 4, "alpha": 8.0}},
        "topology": {"clients": 4, "edges": 2},
        "protocol": {"name": "elsa", "rounds": 4, "local_steps": 2, "batch_size": 4},
        "numerics": {"precision": "fp32", "device": "cpu", "cohort": 4},
        "runtime": {"executor": "inline", "keep_checkpoints": 2},
        "evaluation": {"every": 1},
        "world": {},
    }
    return make_config({name: {**values, **sections.get(name, {})} for name, values in defaults.items()}, overrides)


def records_of(folder: Path) -> dict[str, Any]:
    """Return all that must not depend on an interruption."""
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    for values in (*lines, summary):
        for name in WALL:
            values.pop(name, None)
    tables = {name: pyarrow.parquet.read_table(folder / name) for name in ("transfers.parquet", "events.parquet")}
    last = sorted((folder / "checkpoints").glob("*.json"))[-1]
    states = json.loads(last.read_text())["content"]
    del states["states"]["wall_seconds"]
    return {
        "lines": lines,
        "summary": summary,
        "state": states,
        "adapter": (folder / "adapter" / "adapter_model.safetensors").read_bytes(),
        **tables,
        "folder": sorted(path.name for path in folder.rglob("*") if not path.name.startswith(".")),
    }


def assert_same_records(first: Path, second: Path) -> None:
    ours, theirs = records_of(first), records_of(second)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name] == theirs[name], name


@pytest.mark.parametrize("name", RUNS)
def test_stopped_after_every_round(
    name: str, dataset: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    """Each process finishes one round, and every second one is killed before it has written its checkpoint."""
    config = config_of(dataset, RUNS[name])
    whole = run(config, out=tmp_path / "whole")
    assert whole.adapters is not None
    monkeypatch.setattr(Checkpoints, "write", dying_write())
    stopped, deaths = tmp_path / "stopped", 0
    with pytest.raises(KilledError):
        run(config, out=stopped)
    while True:
        deaths += 1
        try:
            resume(stopped)
        except KilledError:
            continue
        break
    assert deaths > config.protocol.rounds
    assert_same_records(whole.folder, stopped)
    guard(name, whole)


def dying_write() -> Callable[[Checkpoints, Checkpoint], None]:
    """Return a function that writes a checkpoint and dies; of every second one it dies once before."""
    write, seen = Checkpoints.write, set[int]()

    def write_and_die(self: Checkpoints, checkpoint: Checkpoint) -> None:
        number = checkpoint.protocol.round_index
        if number > 0 and number % 2 == 0 and number not in seen:
            seen.add(number)
            raise KilledError
        write(self, checkpoint)
        raise KilledError

    return write_and_die


def guard(name: str, whole: Run) -> None:
    """Check that the run has the states that the comparison is about."""
    summary = whole.summary
    lines = [json.loads(line) for line in (whole.folder / "rounds.jsonl").read_text().splitlines()]
    if name == "elsa with all parts":
        assert summary["clients_moved"] > 0 and len(summary["splits"]) > 1
        state = json.loads(sorted((whole.folder / "checkpoints").glob("*.json"))[-1].read_text())["content"]["states"]
        assert len(state["protocol"]["memories"]) == len(state["protocol"]["trust"]) == 7
    else:
        assert sum(line["work_late"] for line in lines) > 0


@pytest.fixture(scope="module")
def planned(dataset: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A timed run with late work that has finished, and the same one killed after its third round of five."""
    folder = tmp_path_factory.mktemp("planned")
    data = {name: str(shutil.copy(path, folder / f"{name}.jsonl")) for name, path in dataset.items()}
    config = config_of(data, RUNS["late work"], "runtime.executor=none", "runtime.keep_checkpoints=3")
    run(config, out=folder / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(recording, "rounds", rounds_until(3, KilledError()))
        run(config, out=folder / "killed")
    return folder / "whole", folder / "killed"


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its drawings take most of a small run's time."""
    replace_report(monkeypatch, lambda folder: (folder / "report.html").touch())


def replace_report(monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object]) -> None:
    """Let runs and resumptions write their report in another way."""
    for module in (recording, resuming):
        monkeypatch.setattr(module, "write_report", write)


@pytest.fixture
def killed(planned: tuple[Path, Path], tmp_path: Path, no_report: None) -> Path:
    return Path(shutil.copytree(planned[1], tmp_path / "killed"))


def rounds_until(count: int, error: BaseException) -> Callable[..., Iterator[Round]]:
    """Return the loop, which ends in an error after so many rounds."""

    def some(*arguments: Any) -> Iterator[Round]:
        yield from islice(rounds(*arguments), count)
        raise error

    return some


def test_a_killed_run_goes_on_in_its_folder(
    planned: tuple[Path, Path], killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sorted(path.stem for path in (killed / "checkpoints").glob("*.json")) == ["000001", "000002", "000003"]
    assert run_command(["run", "--resume", str(killed)]) == 0
    printed = capsys.readouterr().out
    assert "going on after round 3" in printed and "round 4/5" in printed and "round 3/5" not in printed
    assert_same_plan(planned[0], killed)
    assert not (killed / "checkpoints" / "rounds").exists()


def assert_same_plan(first: Path, second: Path) -> None:
    """``assert_same_records`` of runs without an adapter."""
    for folder in (first, second):
        (folder / "adapter").mkdir(exist_ok=True)
        (folder / "adapter" / "adapter_model.safetensors").touch()
    assert_same_records(first, second)


def test_a_finished_run_is_not_run_again(planned: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in planned[0].rglob("*") if path.is_file()}
    assert run_command(["run", "--resume", str(planned[0])]) == 0
    assert "has finished already, by rounds, after 5 rounds" in capsys.readouterr().out.replace("\n", " ")
    assert before == {path: path.read_bytes() for path in planned[0].rglob("*") if path.is_file()}


def test_what_a_kill_has_left_undone_after_the_summary_is_done(
    planned: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], no_report: None
) -> None:
    run = Path(shutil.copytree(planned[0], tmp_path / "run"))
    (run / "report.html").unlink()
    shutil.copytree(planned[1] / "checkpoints" / "rounds", run / "checkpoints" / "rounds")
    shutil.copy(run / "checkpoints" / "000005.safetensors", run / "checkpoints" / "000001.safetensors")
    assert run_command(["run", "--resume", str(run)]) == 0
    assert "after 5 rounds; its report was not there, and is made" in capsys.readouterr().out
    assert_same_plan(planned[0], run)


def test_the_report_of_an_interruption_is_not_that_of_the_end(
    planned: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is interrupted, goes on, and is killed between its summary and its report."""
    out = tmp_path / "run"
    replace_report(monkeypatch, lambda folder: (folder / "report.html").write_text("of the interruption"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(recording, "rounds", rounds_until(2, KeyboardInterrupt()))
        run(planned[0] / "config.yaml", out=out)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        replace_report(patch, raise_killed)
        resume(out)
    replace_report(monkeypatch, lambda folder: (folder / "report.html").write_text("of the end"))
    assert run_command(["run", "--resume", str(out)]) == 0
    assert "its report was not there, and is made" in capsys.readouterr().out
    assert (out / "report.html").read_text() == "of the end"


def raise_killed(folder: Path) -> None:
    raise KilledError


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (WorkerError("pool-0: broken", "its traceback"), 1)]
)
def test_who_stops_a_run_is_told_how_to_go_on(
    error: BaseException,
    code: int,
    planned: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    no_report: None,
) -> None:
    out = tmp_path / "a folder"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "rounds", rounds_until(2, error))
        assert run_command(["run", str(planned[0] / "config.yaml"), "--out", str(out)]) == code
    assert f"to go on: elsa-ray run --resume '{out}'\n" in capsys.readouterr().out
    assert json.loads((out / "summary.json").read_text())["rounds_completed"] == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "rounds", rounds_until(0, error))
        assert run_command(["run", "--resume", str(out)]) == code
    assert_same_plan_so_far(planned[0], out, 2)
    assert run_command(["run", "--resume", str(out)]) == 0
    assert_same_plan(planned[0], out)


def assert_same_plan_so_far(whole: Path, stopped: Path, num_rounds: int) -> None:
    """Compare the tables of a run that was stopped: what was under way then is pending."""
    ours, theirs = (pyarrow.parquet.read_table(folder / "transfers.parquet").to_pylist() for folder in (whole, stopped))
    assert [row for row in theirs if row["outcome"] != "pending"] == [row for row in ours if row["round"] < num_rounds]
    assert sum(row["outcome"] == "pending" for row in theirs) > 0


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no JSON": lambda run: (run / "checkpoints" / "000003.json").write_text('{"schema_version": 1, "sha'),
    "empty": lambda run: (run / "checkpoints" / "000003.json").write_text(""),
    "another number": lambda run: replace_text(run / "checkpoints" / "000003.json", '"num_rounds":3', '"num_rounds":4'),
    "no tensors": lambda run: (run / "checkpoints" / "000003.safetensors").unlink(),
    "other tensors": lambda run: (run / "checkpoints" / "000003.safetensors").write_bytes(b"x" * 200),
    "a torn line": lambda run: (run / "rounds.jsonl").write_text((run / "rounds.jsonl").read_text()[:-9]),
    "a torn part": lambda run: (run / "checkpoints" / "rounds" / "000002.arrow").write_bytes(b"x" * 64),
    "a lost part": lambda run: (run / "checkpoints" / "rounds" / "000002.arrow").unlink(),
}


def replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: str, planned: tuple[Path, Path], killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGES[damage](killed)
    assert run_command(["run", "--resume", str(killed)]) == 0
    printed = capsys.readouterr().out
    assert "the checkpoint after 3 rounds cannot be used (" in printed and "going on after round 2" in printed
    assert_same_plan(planned[0], killed)


def test_a_damaged_checkpoint_does_not_count_among_those_to_keep(
    planned: tuple[Path, Path], killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is killed again before it has written another one."""
    DAMAGES["no tensors"](killed)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(recording, "rounds", rounds_until(0, KilledError()))
        resume(killed, overrides=["runtime.keep_checkpoints=1"])
    assert [path.name for path in (killed / "checkpoints").glob("0*")] == ["000002.json", "000002.safetensors"]
    resume(killed, overrides=["runtime.keep_checkpoints=3"])
    assert_same_plan(planned[0], killed)


REFUSED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "another field": (
        lambda run: None,
        "--set protocol.rounds=9",
        "protocol.rounds: found 9; allowed: 5, as the run has it: only runtime can be changed on resuming",
    ),
    "an item of a list": (
        lambda run: None,
        "--set protocol.codec.update.0.codec.0.share=0.5",
        "protocol.codec.update.0.codec.0.share: found 0.5; allowed: 0.25",
    ),
    "a section that was not there": (lambda run: None, "--set protocol.trust={}", "protocol.trust"),
    "training what was timed": (
        lambda run: None,
        "--set runtime.executor=inline",
        "runtime.executor: found inline; allowed: none: the run is timed only",
    ),
    "an unknown field": (lambda run: None, "--set runtime.pols=1", "runtime.pols: .*did you mean pools"),
    "an edited config": (
        lambda run: replace_text(run / "config.yaml", "seed: 0", "seed: 1"),
        "",
        "seed: found 1; allowed: 0, as the run has it",
    ),
    "an edited data file": (
        lambda run: replace_text(run.parent / "data.jsonl", "label0", "label1"),
        "",
        "data.jsonl: found other content; allowed: the content that the run was begun with",
    ),
    "another schema": (
        lambda run: [
            replace_text(path, '"schema_version":1', '"schema_version":2')
            for path in (run / "checkpoints").glob("*.json")
        ],
        "",
        r"000003.json: found schema_version 2; allowed: 1",
    ),
    "no checkpoint": (
        lambda run: [path.unlink() for path in (run / "checkpoints").glob("*.json")],
        "",
        r"found no checkpoint that can be used; allowed: .* elsa-ray run .*config.yaml",
    ),
    "no folder": (lambda run: shutil.rmtree(run), "", "killed: found no such folder"),
    "no run": (lambda run: (run / "config.yaml").unlink(), "", "found a folder without config.yaml"),
    "a config, too": (lambda run: None, "some.yaml", "--resume: found a run together with CONFIG"),
    "another folder, too": (lambda run: None, "--out x", "--resume: found a run together with --out"),
    "a dry run": (lambda run: None, "--dry-run", "--resume: found a run together with --dry-run"),
    "a cluster that is not used": (
        lambda run: None,
        "--address 10.0.0.1:6379",
        "--address: found 10.0.0.1:6379 together with runtime.executor: none; allowed: an address with",
    ),
    "another policy after a client has failed": (
        lambda run: replace_text(run / "rounds.jsonl", '"failures": []', '"failures": [{}]'),
        "--set protocol.client_failure.raises=drop",
        "protocol.client_failure.raises: found drop; allowed: stop, as the run has it: a client has failed by it",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_told_in_one_line(
    name: str, dataset: dict[str, str], planned: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, options, expected = REFUSED[name]
    killed = Path(shutil.copytree(planned[1], tmp_path / "killed"))
    if name == "an edited data file":
        own = Path(shutil.copy(dataset["train"], tmp_path / "data.jsonl"))
        config = config_of({**dataset, "train": str(own)}, RUNS["late work"], "runtime.executor=none")
        shutil.rmtree(killed)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
            patch.setattr(recording, "rounds", rounds_until(1, KilledError()))
            run(config, out=killed)
    change(killed)
    before = {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()}
    assert run_command(["run", "--resume", str(killed), *options.split()]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and re.search(expected, errors), errors
    after = {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()}
    assert after == before


def test_other_versions_and_other_states_are_refused(
    killed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = provenance.versions()
    monkeypatch.setattr(provenance, "versions", lambda: {**now, "torch": "0.1"})
    assert run_command(["run", "--resume", str(killed)]) == 2
    assert f"version of torch: found 0.1; allowed: {now['torch']}" in capsys.readouterr().err
    monkeypatch.undo()
    form = form_of(WorldState)
    monkeypatch.setitem(vars(form)["_forms"], "tides", form_of(int))
    assert run_command(["run", "--resume", str(killed)]) == 2
    assert "checkpoint 3: found another state (WorldState has other fields: tides)" in capsys.readouterr().err


def test_a_run_at_work_is_left_alone(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with kept_for_one(killed):
        assert run_command(["run", "--resume", str(killed)]) == 2
    assert "killed: found a run that is still at work" in capsys.readouterr().err


def test_without_checkpoints_nothing_is_kept_for_resuming(
    planned: tuple[Path, Path], tmp_path: Path, no_report: None
) -> None:
    config = planned[0] / "config.yaml"
    made = run(config, overrides=["runtime.keep_checkpoints=0"], out=tmp_path / "run").folder
    assert [path.name for path in (made / "checkpoints").iterdir()] == [".lock"]
    tables = (pyarrow.parquet.read_table(folder / "events.parquet") for folder in (made, planned[0]))
    assert next(tables).equals(next(tables))


def test_a_protocol_whose_state_has_no_form_is_told_before_it_runs(
    dataset: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(dataset, {}, "runtime.executor=none", "protocol={name: 'tests.test_resume:Odd', rounds: 1}")
    with pytest.raises(InputError, match=r"protocol.name: found a state with OddState.odd: <class 'object'>; allowed"):
        run(config, out=tmp_path / "run")
    made = make_config(config.model_dump(mode="json"), ["runtime.keep_checkpoints=0"])
    assert run(made, out=tmp_path / "other").summary["rounds_completed"] == 1


@dataclass(frozen=True)
class OddState(ProtocolState):
    """A state that no checkpoint can hold."""

    odd: object = None


class OddConfig(FedAvgConfig):
    name: str


class Odd(FedAvg):
    Config = OddConfig

    def start(self, adapters: Any) -> OddState:
        return OddState(adapters=adapters)
