"""The run's folder: everything is written as the run goes, so that an interrupted one can be read, and go on."""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet

from elsa_ray.config.errors import InputError
from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.config.load import dump_config
from elsa_ray.protocols.setting import Setting
from elsa_ray.records.json_text import json_text, write_whole
from elsa_ray.records.line import round_line
from elsa_ray.records.lock import locked
from elsa_ray.records.parts import read_part, write_part
from elsa_ray.records.round import Round
from elsa_ray.records.tables import (
    EVENTS_SCHEMA,
    TRANSFERS_SCHEMA,
    events_tables,
    pending_transfers_table,
    transfers_tables,
)
from elsa_ray.records.totals import Totals
from elsa_ray.records.work_time import UnfinishedWork, WorkClock
from elsa_ray.world.plan import WorkKey
from elsa_ray.world.transfer_parts import transfer_parts

CONFIG, SUMMARY, ROUNDS, REPORT = "config.yaml", "summary.json", "rounds.jsonl", "report.html"
TRANSFERS, EVENTS = "transfers.parquet", "events.parquet"
PARTS = "checkpoints/rounds"
_LOCK = "checkpoints/.lock"


@dataclass(frozen=True)
class RecordsState:
    """What the records must remember between two rounds, beside what they have written.

    Attributes:
        unfinished: where the time of work went that was not gathered yet.
    """

    unfinished: Mapping[WorkKey, UnfinishedWork] = field(default_factory=dict)


class RunFolder:
    """Writes a run's records. Make one with ``create`` or ``reopen`` and use it as a context manager.

    Attributes:
        path: the folder, absolute.
        totals: sums over the rounds written so far.
    """

    def __init__(self, path: Path, *, resumable: bool, before: RecordsState | None = None) -> None:
        self.path = path
        self.totals = Totals()
        self._resumable = resumable
        if resumable:
            # Storage has no empty folders: a copy of a run without a finished round lacks it.
            (path / PARTS).mkdir(parents=True, exist_ok=True)
        self._before = before or RecordsState()
        self._clock: WorkClock | None = None
        self._pending: pa.Table | None = None
        self._rounds = (path / ROUNDS).open("a", encoding="utf-8")
        self._transfers = pyarrow.parquet.ParquetWriter(path / TRANSFERS, TRANSFERS_SCHEMA)
        self._events = pyarrow.parquet.ParquetWriter(path / EVENTS, EVENTS_SCHEMA)
        self._closed = False

    @classmethod
    def create(cls, path: str | Path | None, config: ExperimentConfig) -> RunFolder:
        """Make the folder and write ``config.yaml``.

        Args:
            path: where; None is ``runs/NAME-DATE-TIME`` in the working directory, with a number behind if it is taken.
            config: complete, ``auto`` resolved.

        Raises:
            InputError: there is something at ``path`` already, or it cannot be written to.
        """
        folder = new_default_folder(config.name) if path is None else empty_folder(Path(path))
        write_whole(folder / CONFIG, dump_config(config))
        return cls(folder.resolve(), resumable=config.runtime.keep_checkpoints > 0)

    @classmethod
    def reopen(cls, path: Path, config: ExperimentConfig, num_rounds: int, before: RecordsState) -> RunFolder:
        """Go on with the records of a run that was interrupted: what was written after a checkpoint is cut off.

        Args:
            path: the folder, for which ``has_records(path, num_rounds)`` is true.
            config: the run's; ``runtime`` may be another.
            num_rounds: finished rounds to keep.
            before: what the records remembered after these.
        """
        for name in (SUMMARY, REPORT):
            (path / name).unlink(missing_ok=True)
        write_whole(path / CONFIG, dump_config(config))
        lines = _whole_lines(path / ROUNDS)[:num_rounds]
        write_whole(path / ROUNDS, b"".join(lines))
        for part in (path / PARTS).glob("*.arrow"):
            if int(part.stem) >= num_rounds:
                part.unlink()
        folder = cls(path.resolve(), resumable=config.runtime.keep_checkpoints > 0, before=before)
        for number, line in enumerate(lines):
            transfers, events, folder._pending = read_part(_part_path(path, number), 3)
            folder._transfers.write_table(transfers)
            folder._events.write_table(events)
            folder.totals.add(json.loads(line))
        return folder

    def write_round(self, round_: Round, setting: Setting) -> dict[str, Any]:
        """Append a round to ``rounds.jsonl`` and to the tables; returns the line as plain values.

        The line is on the disk when this returns; the tables are whole after ``close``, and can be made again from
        parts that are on the disk, too.
        """
        if self._clock is None:
            self._clock = WorkClock(setting.network, self._before.unfinished)
        parts = transfer_parts(round_.timeline)
        arrived = self._clock.add(round_.plan, round_.timeline, parts)
        line = round_line(round_, setting, arrived, parts)
        index = round_.report.round_index
        transfers = transfers_tables(round_.timeline, setting.network, index)
        events = events_tables(round_.plan, round_.timeline, setting.network, round_.results.failed, round_.report)
        written = (_written(transfers, self._transfers), _written(events, self._events))
        self._pending = pending_transfers_table(round_.timeline, setting.network, index)
        text = json_text(line)
        self._rounds.write(text + "\n")
        self._rounds.flush()
        if self._resumable:
            os.fsync(self._rounds.fileno())
            write_part(_part_path(self.path, index), [*written, iter([self._pending])])
        for pieces in written:
            deque(pieces, maxlen=0)  # what no part has taken is written to the tables alone
        # As they are read back: an interrupted run sums them up again.
        self.totals.add(json.loads(text))
        return line

    def state(self) -> RecordsState:
        """Return what must be remembered to go on after the last round that was written."""
        return self._before if self._clock is None else RecordsState(self._clock.unfinished)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, whole or not at all."""
        write_whole(self.path / SUMMARY, json_text(dict(summary), indent=2) + "\n")

    def close(self) -> None:
        """Write what was still under way, and close all files; calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._pending is not None and len(self._pending):
            self._transfers.write_table(self._pending)
        for file in (self._rounds, self._transfers, self._events):
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def has_records(path: Path, num_rounds: int) -> bool:
    """Whether all that was recorded of the first rounds is there and can be read."""
    try:
        if len(_whole_lines(path / ROUNDS)) < num_rounds:
            return False
        for number in range(num_rounds):
            read_part(_part_path(path, number), 3)
    except (OSError, ValueError):
        return False
    return True


def has_parts(path: Path) -> bool:
    """Whether a run still has what only going on would need."""
    return (path / PARTS).is_dir()


def forget_parts(path: Path) -> None:
    """Remove what only going on would need, of a run that has finished."""
    if has_parts(path):
        shutil.rmtree(path / PARTS)


@contextmanager
def kept_for_one(path: Path) -> Iterator[None]:
    """Keep every other process from writing into a run's folder as long as the block lasts.

    Raises:
        InputError: one is at work there.
    """
    (path / _LOCK).parent.mkdir(exist_ok=True)
    with locked(path / _LOCK, InputError(str(path), "a run that is still at work", "one that was interrupted")):
        yield


def was_written_into(path: Path) -> bool:
    """Whether a process has written a run into a folder itself, and may do so now: a copy of a run has no lock."""
    return (path / _LOCK).exists()


def _written(pieces: Iterator[pa.Table], writer: pyarrow.parquet.ParquetWriter) -> Iterator[pa.Table]:
    """Hand the pieces of a table on, each written."""
    for piece in pieces:
        writer.write_table(piece)
        yield piece


def _part_path(path: Path, round_index: int) -> Path:
    return path / PARTS / f"{round_index:06d}.arrow"


def _whole_lines(path: Path) -> list[bytes]:
    """Return the lines that were written to their end."""
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def empty_folder(path: Path) -> Path:
    """Make a folder, or take one that is there and empty.

    Raises:
        InputError: there is something in it, or it cannot be written to.
    """
    allowed = "a new or an empty folder"
    try:
        if path.exists() and not path.is_dir():
            raise InputError("--out", f"{path}, a file", allowed)
        if path.is_dir() and any(path.iterdir()):
            raise InputError("--out", f"{path}, which is not empty", allowed)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("--out", f"{path} ({error.strerror})", f"{allowed} that can be written to") from error
    return path


def new_default_folder(name: str) -> Path:
    """Make ``runs/NAME-DATE-TIME`` in the working directory, with a number behind if it is taken.

    Raises:
        InputError: it cannot be written to.
    """
    stem = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    number = 0
    while True:
        path = Path("runs") / (f"{stem}-{number}" if number else stem)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise InputError("--out", f"{path} ({error.strerror})", "a folder that can be written to") from error
        else:
            return path
