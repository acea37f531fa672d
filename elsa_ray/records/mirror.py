"""Keeps a storage like the folder of a run that goes on, and says where it cannot."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Collection
from pathlib import Path

from rich.console import Console

from elsa_ray.records.folder import EVENTS, TRANSFERS
from elsa_ray.records.json_text import write_whole
from elsa_ray.records.storage import STORAGE_ERRORS, Storage, TakenOverError

OPEN_TABLES = (TRANSFERS, EVENTS)
"""Files of a run that are not whole before it ends."""
_REMEMBERED = "checkpoints/.storage"
_WAITS_SECONDS = (1.0, 2.0, 4.0)
"""Before each further try, where a storage fails."""
_LOGGER = logging.getLogger("elsa_ray")


class StorageError(Exception):
    """What a run has written is not, or not all, on its storage; the message says where it is."""


class Mirror:
    """Keeps a storage like a run's folder. One that fails is tried again, and caught up with after a later round.

    Args:
        folder: the run's.
        storage: owned by this process; None for a run that is in its folder only.
        console: told what goes wrong.
    """

    def __init__(self, folder: Path, storage: Storage | None, console: Console) -> None:
        self._folder, self._storage, self._console = folder, storage, console
        self._is_behind = False
        if storage is not None:
            write_whole(folder / _REMEMBERED, storage.bare_uri)

    def catch_up(self) -> None:
        """Copy what is final while the run goes on; where that fails it is told, and tried again the next time.

        Raises:
            StorageError: another process goes on with the run.
        """
        if self._storage is None:
            return
        try:
            self._copy(self._storage, OPEN_TABLES, () if self._is_behind else _WAITS_SECONDS)
        except STORAGE_ERRORS as error:
            _LOGGER.warning("%s: %s", self._storage.uri, self._storage.reason(error))
            if not self._is_behind:
                self._say(f"{self._failed(self._storage, error)}; it is tried again after each round")
            self._is_behind = True
            return
        if self._is_behind:
            self._say(f"{self._storage.uri} has all finished rounds again")
        self._is_behind = False

    def finish(self, *, for_good: bool) -> None:
        """Copy everything.

        Args:
            for_good: the run will not go on.

        Raises:
            StorageError: the storage fails, or another process goes on with the run.
        """
        if self._storage is None:
            return
        try:
            self._copy(self._storage, (), _WAITS_SECONDS)
        except STORAGE_ERRORS as error:
            again = f"to copy it: elsa-ray run --resume {shlex.quote(str(self._folder))}"
            if self._storage.bare_uri != self._storage.uri:
                again += ", with the credentials in the environment: those of the URI are not kept"
            # Without the cause, which may show credentials.
            raise StorageError(f"{self._failed(self._storage, error)}; {again}") from None
        if for_good:
            (self._folder / _REMEMBERED).unlink(missing_ok=True)
        self._say(f"copied to {self._storage.uri}")

    def _copy(self, storage: Storage, leave_out: Collection[str], waits_seconds: Collection[float]) -> None:
        try:
            storage.copy(self._folder, leave_out, waits_seconds)
        except TakenOverError:
            self._storage = None
            (self._folder / _REMEMBERED).unlink(missing_ok=True)  # Going on here must not undo what the other does.
            text = f"{storage.uri}: another process goes on with this run; what was computed here is in {self._folder}"
            raise StorageError(text) from None

    def _failed(self, storage: Storage, error: Exception) -> str:
        return f"{storage.uri} cannot be written to ({storage.reason(error)}): the run is whole in {self._folder} only"

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)


def remembered_storage(run: Path) -> Storage | None:
    """Return the storage that a local run folder was copied to, if there is one; credentials are the environment's.

    Raises:
        InputError: it is not known to pyarrow.
    """
    path = run / _REMEMBERED
    return Storage.at(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else None
