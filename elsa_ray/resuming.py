"""Goes on with a run that was interrupted, has failed or was killed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from elsa_ray.config.errors import InputError
from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.config.load import load_config
from elsa_ray.prepare import Prepared, prepare
from elsa_ray.recording import Recorder, Run
from elsa_ray.records.folder import (
    CONFIG,
    REPORT,
    RunFolder,
    forget_parts,
    has_parts,
    has_records,
    kept_for_one,
    new_default_folder,
)
from elsa_ray.records.mirror import Mirror, remembered_storage
from elsa_ray.records.reading import EARLY_ENDS, RunRecord, read_run
from elsa_ray.records.report import write_report
from elsa_ray.records.storage import Storage
from elsa_ray.records.uri import is_uri
from elsa_ray.runtime.checkpoints import (
    Checkpoint,
    StoredCheckpoint,
    checkpoint_numbers,
    cut_after,
    keep_last,
    read_checkpoint,
)
from elsa_ray.runtime.forms import WrongDataError
from elsa_ray.runtime.provenance import ChangedError, Provenance, check_same_data, check_unchanged, provenance_of
from elsa_ray.starting import check_address


def resume(
    run: str | Path,
    *,
    overrides: Sequence[str] = (),
    address: str | None = None,
    console: Console | None = None,
    profile: bool = False,
) -> Run:
    """Go on with a run that was interrupted, has failed or was killed, from its last checkpoint.

    Before the first round has ended that is the start. Its records and adapters become those that it would have had
    without the interruption, wall-clock figures excepted. Of a run that has finished, its summary is returned, without
    adapters; nothing is computed, but what a kill has left undone after the last round is done: its report, its copy on
    storage.

    Args:
        run: its folder, or the URI that it was copied to: then it is copied into a new folder under ``runs/`` first.
        overrides: ``runtime.b=c`` texts; else only ``protocol.client_failure`` can be changed, while no client has
            failed.
        address: of a running Ray cluster.
        console: where progress is shown; None shows nothing.
        profile: show at the end where the wall time went, by actor and stage; ``profile.json`` has it in any case.

    Raises:
        InputError: there is no run or no checkpoint; something has changed that the run rests on, or is overridden; or
            the run is at work.
        WorkerError: a worker failed; all finished rounds are kept in the folder.
        StorageError: the folder is whole, but could not be copied to its URI.
    """
    console = console or Console(quiet=True)
    if not is_uri(run):
        return _resume(Path(run), overrides, address, remembered_storage(Path(run)), console, profile)
    storage = Storage.at(str(run), "--resume")
    with _fetched(storage, console) as folder:
        return _resume(folder, overrides, address, storage, console, profile)


@contextmanager
def _fetched(storage: Storage, console: Console) -> Iterator[Path]:
    """Copy a run from its storage into a new folder, which goes again where the block ends before it is of any use.

    That is where the run was refused, or the copy broken off, and nothing is in the folder that is not on the storage.
    """
    folder = new_default_folder(storage.name)
    fetched: list[int] = []
    try:
        with console.status(f"copying {storage.uri}"):
            storage.fetch(folder)
        fetched = checkpoint_numbers(folder)
        yield folder
    except BaseException as error:
        is_refused = isinstance(error, InputError) and checkpoint_numbers(folder)[:1] <= fetched[:1]
        if (storage.is_owned and not is_refused) or not storage.has_all(folder):
            raise
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, InputError):
            raise _named_by(storage, folder, error) from None
        raise


def _named_by(storage: Storage, folder: Path, error: InputError) -> InputError:
    """Return an error about a folder that is no more as one about the storage that it was copied from."""
    where, found, allowed = (
        text.replace(str(folder), storage.uri) for text in (error.where, str(error.found), error.allowed)
    )
    return InputError(where, found, allowed, nearest=error.nearest)


def _resume(
    run: Path,
    overrides: Sequence[str],
    address: str | None,
    storage: Storage | None,
    console: Console,
    profile: bool,
) -> Run:
    record = read_run(run)
    if record.summary is not None and record.summary["stop_reason"] not in EARLY_ENDS:
        return _conclude_finished(record, record.summary, storage, console)
    with kept_for_one(run):
        config = load_config(run / CONFIG, overrides)
        check_address(address, config)
        stored = _last_checkpoint(run, console)
        provenance = provenance_of(config)
        prepared, before = _checked(record, stored, config, provenance, console)
        if storage is not None:
            storage.take_over(run)
        cut_after(run, stored.num_rounds)  # Before the oldest go: these are damaged, and count for nothing.
        keep_last(run, max(1, config.runtime.keep_checkpoints))
        with RunFolder.reopen(run, prepared.config, stored.num_rounds, before.records) as folder:
            mirror = Mirror(folder.path, storage, console)
            recorder = Recorder(prepared, provenance, folder, mirror, console, before, shows_profile=profile)
            return recorder.record(address)


def _checked(
    record: RunRecord, stored: StoredCheckpoint, config: ExperimentConfig, provenance: Provenance, console: Console
) -> tuple[Prepared, Checkpoint]:
    """Prepare a run that goes on, and return the state to go on from.

    Raises:
        ChangedError: something is not as it was that the run rests on.
        InputError: the run cannot be prepared here.
    """
    some_failed = any(line.get("failures") for line in record.rounds[: stored.num_rounds])
    check_unchanged(stored.provenance, provenance, some_failed=some_failed)
    with console.status("preparing data, network and plan"):
        prepared = prepare(config)
    check_same_data(stored.data_sha256, prepared.setting.task.data_sha256)
    return prepared, stored.checkpoint(type(prepared.protocol.start(None)))


def _conclude_finished(record: RunRecord, summary: dict[str, Any], storage: Storage | None, console: Console) -> Run:
    """Tell that a run has finished, and do what a kill after its summary has left undone."""
    run = record.path
    lacks_report = not (run / REPORT).is_file()
    if lacks_report or has_parts(run) or storage is not None:
        with kept_for_one(run):
            if lacks_report:
                write_report(run)
            forget_parts(run)
            keep_last(run, record.config.runtime.keep_checkpoints)
            if storage is not None:
                storage.take_over(run)
            Mirror(run, storage, console).finish(for_good=True)
    reason, num_rounds = summary["stop_reason"], summary["rounds_completed"]
    text = f"{run} has finished already, by {reason}, after {num_rounds} rounds"
    made = "; its report was not there, and is made" if lacks_report else ""
    console.print(text + made, soft_wrap=True, markup=False, highlight=False)
    return Run(run.resolve(), summary, None)


def can_go_on(run: Path) -> bool:
    """Whether a run's folder has a checkpoint to go on from; whether all else is as it was, ``resume`` finds out."""
    try:
        _last_checkpoint(run, Console(quiet=True))
    except InputError:
        return False
    return True


def has_changed(run: Path, overrides: Sequence[str]) -> bool:
    """Whether something is not as it was that a run rests on, so that ``resume`` will always refuse it."""
    console = Console(quiet=True)
    try:
        config = load_config(run / CONFIG, overrides)
        _checked(read_run(run), _last_checkpoint(run, console), config, provenance_of(config), console)
    except ChangedError:
        return True
    except InputError:
        return False
    return False


def _last_checkpoint(run: Path, console: Console) -> StoredCheckpoint:
    """Return the last checkpoint that is whole and whose records are; later ones are told of.

    Raises:
        InputError: there is none, or another version of the code has written it.
    """
    for number in checkpoint_numbers(run):
        try:
            stored = read_checkpoint(run, number)
            if has_records(run, number):
                return stored
            reason = "the records of its rounds are not"
        except WrongDataError as error:
            reason = str(error)
        text = f"the checkpoint after {number} rounds cannot be used ({reason})"
        console.print(text, soft_wrap=True, markup=False, highlight=False)
    allowed = f"a run with a checkpoint that is whole; to start anew: elsa-ray run with {run / CONFIG}"
    raise InputError(str(run), "no checkpoint that can be used", allowed)
