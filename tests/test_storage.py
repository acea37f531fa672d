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
from elsa_ray.records import mirror
from elsa_ray.records.folder import kept_for_one
from elsa_ray.records.mirror import StorageError
from elsa_ray.records.storage import Storage
from tests.helpers import write_texts
from tests.test_resume import RUNS, KilledError, assert_same_plan, config_of, replace_report, rounds_until

CHANGES = ("create_dir", "delete_file", "move", "open_output_stream")


class Unreliable(fs.FileSystemHandler):
    """Does what an object store does, on a disk: folders come and go with what is in them.

    Attributes:
        files: the disk.
        changes: that were made, by name and path.
        before_change, after_change: may raise.
    """

    def __init__(self, files: fs.FileSystem) -> None:
        self.files = files
        self.changes: list[tuple[str, ...]] = []
        self.before_change: Callable[[], None] = lambda: None
        self.after_change: Callable[[], None] = lambda: None

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
        if name in CHANGES:
            self.after_change()
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
    monkeypatch.setattr(mirror, "_WAITS_SECONDS", (0.0, 0.0))
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
    first = 1 + next(number for number, change in enumerate(changes) if change[1].endswith("000000.json"))
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


def test_who_loses_the_storage_in_the_middle_of_a_copy_makes_no_checkpoint_of_it_current(
    config: Any, machine: Path, tmp_path: Path, files: Unreliable
) -> None:
    """Another process becomes the owner while the tensors of the second checkpoint are copied."""
    owner = tmp_path / "store" / "run" / ".owner"

    def lose() -> None:
        if files.changes[-1][1].endswith("000002.safetensors"):
            owner.write_text("another")

    files.after_change = lose
    with pytest.raises(StorageError, match=r"store://run: another process goes on with this run"):
        run(config, out="store://run")
    assert files.changes[-1][1].endswith("000002.safetensors")
    assert not (owner.parent / "checkpoints" / "000002.json").exists() and owner.read_text() == "another"


def test_who_loses_the_storage_while_it_fails_does_not_try_again(
    config: Any, machine: Path, tmp_path: Path, files: Unreliable
) -> None:
    owner = tmp_path / "store" / "run" / ".owner"

    def lose() -> None:
        if files.changes and files.changes[-1][1].endswith("000002.safetensors") and owner.read_text() != "another":
            owner.write_text("another")
            raise OSError("the cable is loose")

    files.before_change = lose
    with pytest.raises(StorageError, match=r"store://run: another process goes on with this run"):
        run(config, out="store://run")
    assert not (owner.parent / "checkpoints" / "000002.json").exists()


@pytest.mark.parametrize("moment", ["before the executor", "in the first round"])
def test_a_run_that_is_lost_before_its_first_round_has_ended_starts_from_its_beginning(
    moment: str,
    config: Any,
    whole: Path,
    machine: Path,
    tmp_path: Path,
    files: Unreliable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        if moment == "before the executor":
            patch.setattr(recording, "started_executor", raise_(KilledError()))
        else:
            patch.setattr(recording, "rounds", rounds_until(0, KilledError()))
        run(config, out="store://run")
    shutil.rmtree(machine / "runs")
    assert resume("store://run").summary["rounds_completed"] == 5
    assert_same_plan(whole, tmp_path / "store" / "run")


def raise_(error: BaseException) -> Callable[..., Any]:
    """Return a function that raises an error."""

    def do(*arguments: object) -> Any:
        raise error

    return do


@pytest.fixture
def lost(config: Any, machine: Path, files: Unreliable, monkeypatch: pytest.MonkeyPatch) -> None:
    """On ``store://run`` a run that was killed after its second round; its machine is lost."""
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(recording, "rounds", rounds_until(2, KilledError()))
        run(config, out="store://run")
    shutil.rmtree(machine / "runs")


@pytest.mark.parametrize("damage", ["another field", "no checkpoint"])
def test_of_what_is_refused_no_copy_is_left(
    damage: str, lost: None, machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, expected = ["--set", "protocol.rounds=9"], "protocol.rounds: found 9; allowed: 5, as the run has it"
    if damage == "no checkpoint":
        shutil.rmtree(tmp_path / "store" / "run" / "checkpoints")
        options = []
        expected = "store://run: found no checkpoint that can be used; allowed: .* with store://run/config.yaml\n"
    owner = (tmp_path / "store" / "run" / ".owner").read_bytes()
    assert run_command(["run", "--resume", "store://run", *options]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and re.search(expected, errors), errors
    assert not list((machine / "runs").iterdir())
    assert (tmp_path / "store" / "run" / ".owner").read_bytes() == owner, "who is at work there is left alone"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), OSError("the cable is cut")], ids=repr)
def test_of_a_copy_that_is_broken_off_nothing_is_left(
    error: BaseException, lost: None, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its third file, of which a part was written."""
    copy, count = shutil.copyfileobj, 0

    def break_off(reader: Any, writer: Any, length: int) -> None:
        nonlocal count
        count += 1
        if count == 3:
            writer.write(b"a part")
            raise error
        copy(reader, writer, length)

    monkeypatch.setattr(shutil, "copyfileobj", break_off)
    with pytest.raises(InputError if isinstance(error, OSError) else type(error)):
        resume("store://run")
    assert count == 3 and not list((machine / "runs").iterdir())


@pytest.mark.parametrize("is_written", [True, False])
def test_of_a_run_that_cannot_be_started_here_only_a_copy_is_left_that_is_not_on_the_storage(
    is_written: bool,
    lost: None,
    whole: Path,
    machine: Path,
    tmp_path: Path,
    files: Unreliable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run has become its own again when its cluster does not answer."""

    def fail() -> None:
        if not is_written and files.changes[-1][1].endswith(".owner"):
            raise OSError("the cable is cut")

    files.before_change = fail
    with monkeypatch.context() as patch:
        patch.setattr(recording, "started_executor", raise_(InputError("--address", "nobody", "a running cluster")))
        assert run_command(["run", "--resume", "store://run"]) == 2
    printed = capsys.readouterr()
    assert printed.err == "elsa-ray: --address: found nobody; allowed: a running cluster\n"
    assert "to go on:" not in printed.out
    assert len(list((machine / "runs").iterdir())) == (0 if is_written else 1)
    files.before_change = lambda: None
    resume("store://run")
    assert_same_plan(whole, tmp_path / "store" / "run")


def test_credentials_of_a_uri_are_nowhere_to_be_seen(
    whole: Path,
    machine: Path,
    tmp_path: Path,
    files: Unreliable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The storage fails, and says with which credentials; the run is copied when it is asked for again."""
    (machine / "config.yaml").write_text((whole / "config.yaml").read_text())
    uri, given = "s3://AKIAKEY:very%2Fsecret@run?region=here", []

    def at(uri: str, where: str) -> Storage:
        given.append(uri)
        return Storage(uri, fs.PyFileSystem(files), "run")

    monkeypatch.setattr(Storage, "at", at)

    def fail() -> None:
        if len(files.changes) > 20:
            raise OSError(f"no access to {uri} for AKIAKEY with very/secret")

    files.before_change = fail
    assert run_command(["run", "config.yaml", "--out", uri]) == 1
    local = only_run(machine)
    files.before_change = lambda: None
    assert run_command(["run", "--resume", str(local)]) == 0
    assert run_command(["run", "--resume", uri]) == 0
    assert given == [uri, "s3://run?region=here", uri]
    told = capsys.readouterr()
    shown = "s3://***@run?region=here"
    assert f"{shown} cannot be written to (no access to {shown} for *** with ***)" in told.err
    assert f"--resume {local.resolve()}, with the credentials in the environment" in told.err
    written = [path.read_bytes().decode(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert any(shown in text for text in written), "the log tells of it"
    for text in (told.out, told.err, *written):
        assert not re.search("AKIAKEY|very.{1,3}secret", text)
    assert_same_plan(whole, tmp_path / "store" / "run")


@pytest.mark.parametrize("option", ["--out", "--resume"])
def test_a_folder_that_another_process_writes_a_run_into_is_no_storage(
    option: str, whole: Path, machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, machine / "ordinary", ignore=shutil.ignore_patterns("summary.json"))
    before = {path: path.read_bytes() for path in (machine / "ordinary").rglob("*") if path.is_file()}
    config = [str(whole / "config.yaml")] if option == "--out" else []
    with kept_for_one(machine / "ordinary"):
        assert run_command(["run", *config, option, f"file://{machine}/ordinary"]) == 2
    errors = capsys.readouterr().err
    expected = "which is not empty; allowed: a new" if option == "--out" else f"run --resume {machine}/ordinary\n"
    assert errors.count("\n") == 1 and expected in errors, errors
    assert before == {path: path.read_bytes() for path in (machine / "ordinary").rglob("*") if path.is_file()}
    assert not (machine / "runs").exists() or not list((machine / "runs").iterdir())


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
    "a secret": (
        "run config.yaml --out ftp://me:s3cret@host/run",
        r"--out: found ftp://me:\*\*\*@host/run \(Unrecognized filesystem type in URI: ftp://me:\*\*\*@host/run\);",
    ),
    "a secret that is not encoded": (
        "run --resume s3://AKIA:s3cret/s3cret@bucket/run",
        r"--resume: found s3://\*\*\*@bucket/run \(Cannot parse URI: 's3://\*\*\*@bucket/run' due",
    ),
    "a secret of a dry run": (
        "run config.yaml --dry-run --out s3://AKIA:s3cret@bucket/run",
        r"s3://\*\*\*@bucket/run t",
    ),
    "a secret of a sweep": ("sweep grid.yaml --out s3://AKIA:s3cret@bucket/run", r"found s3://\*\*\*@bucket/run; allo"),
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
    assert told.err.count("\n") == 1 and re.search(expected, told.err) and "s3cret" not in told.err, told.err
    assert not (machine / "runs").exists() or not list((machine / "runs").iterdir())
