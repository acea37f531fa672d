"""Runs that are copied to storage after every round: what another machine finds there, and what failures leave."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from pyarrow import fs

from elsa_ray import recording
from elsa_ray.api import resume, run
from elsa_ray.cli import run_command
from elsa_ray.config.errors import InputError
from elsa_ray.records import storage as storage_module
from elsa_ray.records.storage import Storage, StorageError
from tests.helpers import write_texts
from tests.test_resume import RUNS, KilledError, assert_same_plan, config_of, replace_report, rounds_until

CHANGES = ("create_dir", "delete_file", "move", "open_output_stream")


class Unreliable(fs.FileSystemHandler):
    """Does what an object store does, on a disk: folders come and go with what is in them.

    Attributes:
        files: the disk.
        changes: that were made, by name and path.
        before_change: may raise.
    """

    def __init__(self, files: fs.FileSystem) -> None:
        self.files = files
        self.changes: list[tuple[str, ...]] = []
        self.before_change: Callable[[], None] = lambda: None

    def __eq__(self, other: object) -> bool:
        return self is other


def _done_by_inner(name: str) -> Callable[..., Any]:
    def do(self: Unreliable, *arguments: Any) -> Any:
        if name in CHANGES:
            self.before_change()
            self.changes.append((name, *(text for text in arguments if isinstance(text, str))))
        if name == "get_type_name":
            return "unreliable"
        parent = PurePosixPath(str(arguments[0])).parent
        if name == "open_output_stream":
            self.files.create_dir(str(parent))
        inner = getattr(self.files, {"get_file_info_selector": "get_file_info"}.get(name, name))
        # What else is given are metadata, which these file systems do not have.
        done = inner(*(arguments[:1] if name.startswith(("open", "create")) else arguments))
        if name == "delete_file" and not self.files.get_file_info(fs.FileSelector(str(parent))):
            self.files.delete_dir(str(parent))
        return done

    return do


for _name in fs.FileSystemHandler.__abstractmethods__:
    setattr(Unreliable, _name, _done_by_inner(_name))
Unreliable.__abstractmethods__ = frozenset()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    dataset = write_texts(tmp_path_factory.mktemp("texts"), num_train=48, num_test=8)
    return config_of(dataset, RUNS["late work"], "runtime.executor=none")


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its drawings take most of a small run's time."""
    replace_report(monkeypatch, lambda folder: (folder / "report.html").touch())


@pytest.fixture(scope="module")
def whole(config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed, in its folder only."""
    with pytest.MonkeyPatch.context() as patch:
        replace_report(patch, lambda folder: (folder / "report.html").touch())
        return run(config, out=tmp_path_factory.mktemp("whole") / "run").folder


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, under which a run that is copied somewhere lies."""
    (tmp_path / "machine").mkdir()
    monkeypatch.chdir(tmp_path / "machine")
    return tmp_path / "machine"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Unreliable:
    """An object store, for all that the package knows: ``store://run`` lies in ``tmp_path/store/run``."""
    (tmp_path / "store").mkdir()
    files = Unreliable(fs.SubTreeFileSystem(str(tmp_path / "store"), fs.LocalFileSystem()))
    at = lambda uri, where: Storage(uri, fs.PyFileSystem(files), uri.removeprefix("store://"))  # noqa: E731
    monkeypatch.setattr(Storage, "at", at)
    monkeypatch.setattr(storage_module, "_WAITS_SECONDS", (0.0, 0.0))
    return files


def only_run(machine: Path) -> Path:
    (folder,) = (machine / "runs").iterdir()
    return folder


def test_another_machine_goes_on_from_a_shared_disk(
    config: Any, whole: Path, machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice; each time the machine before is lost with its disk."""
    uri, shared = f"file://{tmp_path}/shared/run", tmp_path / "shared" / "run"
    for num_rounds in (2, 2):
        with monkeypatch.context() as patch, pytest.raises(KilledError):
            patch.setattr(recording, "rounds", rounds_until(num_rounds, KilledError()))
            resume(uri) if shared.exists() else run(config, out=uri)
        shutil.rmtree(machine / "runs")
    assert [path.stem for path in sorted((shared / "checkpoints").glob("*.json"))] == ["000003", "000004"]
    assert resume(uri).summary["rounds_completed"] == 5
    local = only_run(machine)
    assert local.name.startswith("run-")
    for folder in (shared, local):
        assert_same_plan(whole, folder)
    hidden = sorted(path.name for path in shared.rglob(".*"))
    assert hidden == [".owner"], "and no part of a file"
    # Of a run that has finished there is nothing to be done.
    assert resume(uri).summary["rounds_completed"] == 5
    assert_same_plan(whole, shared)


def test_a_storage_that_fails_for_a_while_is_tried_again(
    config: Any, whole: Path, machine: Path, files: Unreliable, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of three tries fail, each time: nobody is told."""
    (machine / "config.yaml").write_text((whole / "config.yaml").read_text())
    count = 0

    def fail() -> None:
        nonlocal count
        count += 1
        if count > 2 and count % 3:
            raise OSError("the cable is loose")

    files.before_change = fail
    assert run_command(["run", "config.yaml", "--out", "store://run"]) == 0
    assert "cable" not in capsys.readouterr().out and count > 60


def test_a_storage_that_is_gone_costs_nothing_that_was_computed(
    whole: Path, machine: Path, tmp_path: Path, files: Unreliable, capsys: pytest.CaptureFixture[str]
) -> None:
    (machine / "config.yaml").write_text((whole / "config.yaml").read_text())

    def fail() -> None:
        if len(files.changes) > 20:
            raise OSError("the cable is cut")

    files.before_change = fail
    assert run_command(["run", "config.yaml", "--out", "store://run"]) == 1
    local = only_run(machine).resolve()
    told = capsys.readouterr()
    failed = f"store://run cannot be written to (the cable is cut): the run is whole in {local} only"
    assert told.out.count(failed) == 1 and f"{failed}; it is tried again after each round" in told.out
    assert told.err == f"elsa-ray: {failed}; to copy it: elsa-ray run --resume {local}\n"
    assert_same_plan(whole, local)
    (local / "adapter" / "adapter_model.safetensors").unlink()
    (local / "adapter").rmdir()
    files.before_change = lambda: None
    assert run_command(["run", "--resume", str(local)]) == 0
    assert "copied to store://run" in capsys.readouterr().out
    assert_same_plan(whole, tmp_path / "store" / "run")


def test_a_storage_that_comes_back_is_caught_up_with(
    config: Any, whole: Path, machine: Path, tmp_path: Path, files: Unreliable
) -> None:
    count = 0

    def fail() -> None:
        nonlocal count
        count += 1
        if 20 < count < 25:
            raise OSError("the cable is loose")

    files.before_change = fail
    assert run(config, out="store://run").summary["rounds_completed"] == 5
    assert_same_plan(whole, tmp_path / "store" / "run")


def test_a_copy_that_is_broken_off_anywhere_leaves_a_run_that_can_go_on(
    config: Any, whole: Path, machine: Path, tmp_path: Path, files: Unreliable
) -> None:
    """The machine is lost before the so manyth change of the storage, from the first checkpoint on."""
    run(config, out="store://run")
    shutil.rmtree(machine / "runs")
    changes = files.changes
    first = 1 + next(number for number, change in enumerate(changes) if change[1].endswith("000001.json"))
    for moment in [*range(first, len(changes), 9), len(changes) - 1]:
        shutil.rmtree(tmp_path / "store" / "run")
        files.changes = []

        def die(moment: int = moment) -> None:
            if len(files.changes) >= moment:
                raise KilledError

        files.before_change = die
        with pytest.raises(KilledError):
            run(config, out="store://run")
        shutil.rmtree(machine / "runs")
        files.before_change = lambda: None
        resume("store://run")
        assert_same_plan(whole, tmp_path / "store" / "run")
        shutil.rmtree(machine / "runs")


def test_of_two_that_go_on_with_a_run_the_earlier_one_ends(
    config: Any, whole: Path, machine: Path, tmp_path: Path, files: Unreliable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier one was thought to be lost, and comes back when the later one has finished."""
    loop = recording.rounds

    def rounds_and_pause(*arguments: Any) -> Any:
        for number, round_ in enumerate(loop(*arguments)):
            if number == 2:
                monkeypatch.setattr(recording, "rounds", loop)
                resume("store://run")
            yield round_

    monkeypatch.setattr(recording, "rounds", rounds_and_pause)
    with pytest.raises(StorageError, match=r"store://run: another process goes on with this run; what was computed"):
        run(config, out="store://run")
    assert_same_plan(whole, tmp_path / "store" / "run")
    assert not list((machine / "runs").glob("*/checkpoints/.storage")), "to go on here is to go on here only"


def test_who_was_left_behind_does_not_undo_what_another_has_done(
    config: Any, whole: Path, machine: Path, tmp_path: Path, files: Unreliable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine is lost after two rounds, another one goes on, and the first comes back and wants to go on, too."""
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(recording, "rounds", rounds_until(2, KilledError()))
        run(config, out="store://run")
    left = only_run(machine)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(recording, "rounds", rounds_until(1, KilledError()))
        resume("store://run")
    later = "allowed: the later one: elsa-ray run --resume store://run"
    with pytest.raises(InputError, match=f"found a run after round 2, of which its storage has round 3; {later}"):
        resume(left)
    resume("store://run")
    with pytest.raises(InputError, match=f"found an unfinished run, of which its storage has the end; {later}"):
        resume(left)
    assert_same_plan(whole, tmp_path / "store" / "run")


REFUSED = {
    "no such storage": (
        "run config.yaml --out ftp://host/run",
        r"--out: found ftp://host/run \(Unrecognized filesystem type in URI: ftp://host/run\); allowed: a folder that",
    ),
    "no folder": ("run config.yaml --out file:///", "--out: found file:///, which names no folder; allowed: "),
    "not empty": ("run config.yaml --out file://HERE", "--out: found file://.*, which is not empty; allowed: a new or"),
    "a file": (
        "plan config.yaml --out file://HERE/config.yaml",
        "--out: found file://.*, a file; allowed: a new or an",
    ),
    "not to be written": ("run config.yaml --out file:///proc/run", r"--out: found file:///proc/run \(.*\); allowed: "),
    "nothing to go on with": (
        "run --resume file://HERE/nothing",
        "--resume: found file://.*nothing, without config.yaml; allowed: a run, as elsa-ray run --out leaves it",
    ),
    "a sweep": ("sweep grid.yaml --out s3://bucket/sweep", "--out: found s3://bucket/sweep; allowed: a folder on this"),
    "an attack": ("attack config.yaml --out s3://bucket/a", "--out: found s3://bucket/a; allowed: a folder on this"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_told_in_one_line(
    name: str, whole: Path, machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, expected = REFUSED[name]
    (machine / "config.yaml").write_text((whole / "config.yaml").read_text())
    assert run_command(command.replace("HERE", str(machine)).split()) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and re.search(expected, told.err), told.err
    assert not (machine / "runs").exists() or not list((machine / "runs").iterdir())
