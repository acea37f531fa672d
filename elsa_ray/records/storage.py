"""Run folders on storage that several machines reach: object stores and shared disks, named by a URI, through pyarrow.

A run writes into a local folder. After every round what is final there is copied to the storage, so that another
machine can go on with the run. During a run nothing is read back but who writes there.
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs
from rich.console import Console

from elsa_ray.config.errors import InputError
from elsa_ray.records.folder import CONFIG, EVENTS, SUMMARY, TRANSFERS
from elsa_ray.records.json_text import write_whole
from elsa_ray.records.reading import EARLY_ENDS

OPEN_TABLES = (TRANSFERS, EVENTS)
"""Files of a run that are not whole before it ends."""
_REMEMBERED = "checkpoints/.storage"
_OWNER = ".owner"
_ALLOWED = "a folder that can be reached, as file:///…, s3://…, gs://… or abfs://…"
_BLOCK_BYTES = 1 << 22
_WAITS_SECONDS = (1.0, 2.0, 4.0)
"""Before each further try, where a storage fails."""
_ERRORS = (OSError, pa.ArrowException)
_LOGGER = logging.getLogger("elsa_ray")
_T = TypeVar("_T")


class StorageError(Exception):
    """What a run has written is not, or not all, on its storage; the message says where it is."""


class _TakenOverError(Exception):
    """Another process writes to the storage."""


class Storage:
    """A folder on a file system that pyarrow knows, of which at most one process at a time is the owner.

    Args:
        uri: what it is called.
        files: the file system.
        path: of the folder in it.

    Attributes:
        uri: see above.
        name: the last part of the path.
    """

    def __init__(self, uri: str, files: fs.FileSystem, path: str) -> None:
        self.uri = uri
        self.name = PurePosixPath(path).name
        self._files, self._path = files, path.rstrip("/")
        # What an object store shows is whole; on a disk a file must be given its name when it is.
        self._shows_parts = isinstance(files, fs.LocalFileSystem)
        self._token = secrets.token_hex(8)
        self._there: dict[str, tuple[int, int] | None] = {}
        """Files that are there; with size and time of the local one if that is the same."""

    @classmethod
    def at(cls, uri: str, where: str) -> Storage:
        """Return the storage at a URI, such as ``s3://bucket/runs/one``.

        Args:
            uri: of a folder; it need not be there.
            where: the option that names it.

        Raises:
            InputError: pyarrow knows no such file system, or the URI names no folder.
        """
        with _told_as_input(where, uri):
            files, path = fs.FileSystem.from_uri(uri)
        if not PurePosixPath(path).name:
            raise InputError(where, f"{uri}, which names no folder", _ALLOWED)
        return cls(uri, files, path)

    def claim(self) -> None:
        """Make the folder for a new run, and become its owner.

        Raises:
            InputError: there is something in it, or it cannot be written to.
        """
        allowed = "a new or an empty folder"
        with _told_as_input("--out", self.uri):
            found = self._files.get_file_info(self._path)
            if found.type == fs.FileType.File:
                raise InputError("--out", f"{self.uri}, a file", allowed)
            if found.type == fs.FileType.Directory and self._files.get_file_info(fs.FileSelector(self._path)):
                raise InputError("--out", f"{self.uri}, which is not empty", allowed)
            self._files.create_dir(self._path, recursive=True)
            self._put(_OWNER, self._token.encode())

    def fetch(self, folder: Path) -> None:
        """Copy what is there into a local folder.

        Raises:
            InputError: there is no run, or it cannot be read.
        """
        with _told_as_input("--resume", self.uri):
            names = self._list()
            if CONFIG not in names:
                raise InputError("--resume", f"{self.uri}, without {CONFIG}", "a run, as elsa-ray run --out leaves it")
            for name in names:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with self._files.open_input_stream(f"{self._path}/{name}") as reader, target.open("wb") as writer:
                    shutil.copyfileobj(reader, writer, _BLOCK_BYTES)
                self._there[name] = _state(target)

    def take_over(self, folder: Path) -> None:
        """Become the owner; whoever was it ends when it writes the next time.

        Args:
            folder: the run's, which is to be copied.

        Raises:
            InputError: another process has gone on with the run further than the folder has, or the storage cannot be
                read or written to.
        """
        with _told_as_input("--resume", self.uri):
            self._files.create_dir(self._path, recursive=True)
            names = self._list()
            self._check_not_ahead(folder, names)
            self._put(_OWNER, self._token.encode())
            self._there = dict.fromkeys(names) | self._there

    def copy(self, folder: Path, leave_out: Collection[str], waits_seconds: Collection[float]) -> None:
        """Copy what is in a local folder and not there, and remove what is there and not in the folder.

        What makes a checkpoint whole is copied after what it rests on, the summary last, and only then is anything
        removed: a copy that is broken off leaves a run that can be gone on with.

        Args:
            folder: the run's.
            leave_out: names of files that are not copied.
            waits_seconds: before each further try of an operation that has failed.

        Raises:
            OSError: the storage fails; or an error of pyarrow.
            _TakenOverError: another process has become the owner.
        """
        if _tried(lambda: self._read(_OWNER), waits_seconds) != self._token.encode():
            raise _TakenOverError
        paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        names = {name for name in paths if not _is_hidden(name)}
        for name in sorted(names.difference(leave_out), key=_rank):
            state = _state(paths[name])
            if self._there.get(name) != state:
                _tried(partial(self._put, name, paths[name]), waits_seconds)
                self._there[name] = state
        gone = sorted(self._there.keys() - names)
        for name in gone:
            _tried(partial(self._delete, name), waits_seconds)
            del self._there[name]
        if self._shows_parts:
            self._remove_empty({str(PurePosixPath(name).parent) for name in gone})

    def _check_not_ahead(self, folder: Path, names: Collection[str]) -> None:
        """Refuse to copy what is older than what is there; no folder is older that has a final summary."""
        summary = folder / SUMMARY
        if summary.is_file() and _is_final(summary.read_bytes()):
            return
        again = f"the later one: elsa-ray run --resume {self.uri}"
        if SUMMARY in names and _is_final(self._read(SUMMARY)):
            raise InputError(str(folder), "an unfinished run, of which its storage has the end", again)
        ours = _last_checkpoint(path.relative_to(folder).as_posix() for path in folder.glob("checkpoints/*.json"))
        theirs = _last_checkpoint(names)
        if theirs > ours:
            found = f"a run after round {ours}, of which its storage has round {theirs}"
            raise InputError(str(folder), found, again)

    def _list(self) -> list[str]:
        selector = fs.FileSelector(self._path, allow_not_found=True, recursive=True)
        found = (info.path for info in self._files.get_file_info(selector) if info.type == fs.FileType.File)
        names = (str(PurePosixPath(path).relative_to(self._path)) for path in found)
        return [name for name in names if not _is_hidden(name)]

    def _read(self, name: str) -> bytes:
        with self._files.open_input_stream(f"{self._path}/{name}") as stream:
            return bytes(stream.read())

    def _delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._files.delete_file(f"{self._path}/{name}")

    def _remove_empty(self, names: Collection[str]) -> None:
        """Remove folders that nothing is in any more, as object stores do it."""
        for path in (f"{self._path}/{name}" for name in names):
            if not self._files.get_file_info(fs.FileSelector(path)):
                self._files.delete_dir(path)

    def _put(self, name: str, content: Path | bytes) -> None:
        target = f"{self._path}/{name}"
        folder, _, last = target.rpartition("/")
        written = f"{folder}/.{last}.part" if self._shows_parts else target
        if self._shows_parts:
            self._files.create_dir(folder, recursive=True)
        with self._files.open_output_stream(written) as writer:
            if isinstance(content, bytes):
                writer.write(content)
            else:
                with content.open("rb") as reader:
                    shutil.copyfileobj(reader, writer, _BLOCK_BYTES)
        if self._shows_parts:
            self._files.move(written, target)


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
            write_whole(folder / _REMEMBERED, storage.uri)

    def catch_up(self) -> None:
        """Copy what is final while the run goes on; where that fails it is told, and tried again the next time.

        Raises:
            StorageError: another process goes on with the run.
        """
        if self._storage is None:
            return
        try:
            self._copy(self._storage, OPEN_TABLES, () if self._is_behind else _WAITS_SECONDS)
        except _ERRORS as error:
            _LOGGER.warning("%s: %s", self._storage.uri, error)
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
        except _ERRORS as error:
            again = f"to copy it: elsa-ray run --resume {self._folder}"
            raise StorageError(f"{self._failed(self._storage, error)}; {again}") from error
        if for_good:
            (self._folder / _REMEMBERED).unlink(missing_ok=True)
        self._say(f"copied to {self._storage.uri}")

    def _copy(self, storage: Storage, leave_out: Collection[str], waits_seconds: Collection[float]) -> None:
        try:
            storage.copy(self._folder, leave_out, waits_seconds)
        except _TakenOverError:
            self._storage = None
            (self._folder / _REMEMBERED).unlink(missing_ok=True)  # Going on here must not undo what the other does.
            text = f"{storage.uri}: another process goes on with this run; what was computed here is in {self._folder}"
            raise StorageError(text) from None

    def _failed(self, storage: Storage, error: Exception) -> str:
        return f"{storage.uri} cannot be written to ({_reason(error)}): the run is whole in {self._folder} only"

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)


def is_uri(text: str | Path | None) -> bool:
    """Whether a folder is named by a URI."""
    return isinstance(text, str) and "://" in text


def refuse_uri(where: str, text: str | Path | None) -> None:
    """Refuse a URI where only a local folder will do.

    Raises:
        InputError: it is one.
    """
    if is_uri(text):
        raise InputError(where, text, "a folder on this machine; only run and plan write to storage by a URI")


def remembered_storage(run: Path) -> Storage | None:
    """Return the storage that a local run folder was copied to, if there is one.

    Raises:
        InputError: it is not known to pyarrow.
    """
    path = run / _REMEMBERED
    return Storage.at(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else None


def _tried(do: Callable[[], _T], waits_seconds: Collection[float]) -> _T:
    """Do something, and again after each wait, until it succeeds."""
    for seconds in waits_seconds:
        try:
            return do()
        except _ERRORS as error:
            _LOGGER.info("storage: %s; tried again in %g s", error, seconds)
            time.sleep(seconds)
    return do()


def _rank(name: str) -> tuple[int, str]:
    """Sort by what rests on what: records, the tensors of checkpoints, checkpoints, the summary."""
    last = ("checkpoints/*.safetensors", "checkpoints/*.json", SUMMARY)
    matching = (number for number, pattern in enumerate(last, start=1) if PurePosixPath(name).match(pattern))
    return next(matching, 0), name


def _is_final(summary: bytes) -> bool:
    """Whether a summary is that of a run that has come to its end."""
    try:
        return json.loads(summary)["stop_reason"] not in EARLY_ENDS
    except (ValueError, LookupError, TypeError):
        return False


def _last_checkpoint(names: Iterable[str]) -> int:
    """Return after how many rounds the last of the checkpoints among these files is; 0 if there is none."""
    paths = (PurePosixPath(name) for name in names)
    return max(
        (int(path.stem) for path in paths if path.match("checkpoints/*.json") and path.stem.isdecimal()), default=0
    )


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@contextmanager
def _told_as_input(where: str, uri: str) -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        raise InputError(where, f"{uri} ({_reason(error)})", _ALLOWED) from None


def _reason(error: Any) -> str:
    """Return the first line of what pyarrow says, without where in its own code that was."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". Detail: ")[0]
