"""The run's folder: everything is written as the run goes, so that an interrupted one can be read too."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import pyarrow.parquet

from elsa_ray.config.errors import InputError
from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.config.load import dump_config
from elsa_ray.protocols.setting import Setting
from elsa_ray.records.json_text import json_text, write_whole
from elsa_ray.records.line import round_line
from elsa_ray.records.round import Round
from elsa_ray.records.tables import (
    EVENTS_SCHEMA,
    TRANSFERS_SCHEMA,
    events_table,
    pending_transfers_table,
    transfers_table,
)
from elsa_ray.records.totals import Totals
from elsa_ray.records.work_time import WorkClock
from elsa_ray.world.transfer_parts import transfer_parts
from elsa_ray.world.ways import Ways

CONFIG, SUMMARY, ROUNDS = "config.yaml", "summary.json", "rounds.jsonl"
TRANSFERS, EVENTS = "transfers.parquet", "events.parquet"


class RunFolder:
    """Writes a run's records. Make one with ``create`` and use it as a context manager.

    Attributes:
        path: the folder, absolute.
        totals: sums over the rounds written so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.totals = Totals()
        self._ways: Ways | None = None
        self._clock: WorkClock | None = None
        self._last: tuple[Round, Setting] | None = None
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
        return cls(folder.resolve())

    def write_round(self, round_: Round, setting: Setting) -> dict[str, Any]:
        """Append a round to ``rounds.jsonl`` and to the tables; returns the line as plain values.

        The line is on the disk when this returns; the tables are whole after ``close``.
        """
        if self._ways is None or self._clock is None:
            self._ways = Ways(setting.router.route)
            self._clock = WorkClock(setting.network, self._ways)
        parts = transfer_parts(round_.timeline, self._ways)
        arrived = self._clock.add(round_.plan, round_.timeline, parts)
        line = round_line(round_, setting, arrived, parts)
        self._rounds.write(json_text(line) + "\n")
        self._rounds.flush()
        index = round_.report.round_index
        self._transfers.write_table(transfers_table(round_.timeline, setting.network, index))
        events = events_table(round_.plan, round_.timeline, setting.network, round_.results.failed, round_.report)
        self._events.write_table(events)
        self.totals.add(line)
        self._last = (round_, setting)
        return line

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, whole or not at all."""
        write_whole(self.path / SUMMARY, json_text(dict(summary), indent=2) + "\n")

    def close(self) -> None:
        """Write what was still under way, and close all files; calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._last is not None:
            round_, setting = self._last
            pending = pending_transfers_table(round_.timeline, setting.network, round_.report.round_index)
            if len(pending):
                self._transfers.write_table(pending)
        for file in (self._rounds, self._transfers, self._events):
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


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
