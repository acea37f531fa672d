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

import pyarrow as pa
from pyarrow import fs

from elsa_ray.config.errors import InputError
from elsa_ray.records.folder import CONFIG, SUMMARY, was_written_into
from elsa_ray.records.json_text import written_whole
from elsa_ray.records.reading import EARLY_ENDS
from elsa_ray.records.uri import StorageUri

_OWNER = ".owner"
_ALLOWED = "a folder that can be reached, as file:///…, s3://…, gs://… or abfs://…"
_ALLOWED_RUN = "a run, as elsa-ray run --out leaves it"
_BLOCK_BYTES = 1 << 22
STORAGE_ERRORS = (OSError, pa.ArrowException)
"""What a file system raises that fails."""
_LOGGER = logging.getLogger("elsa_ray")


class TakenOverError(Exception):
    """Another process writes to the storage."""


class Storage:
    """A folder on a file system that pyarrow knows, of which at most one process at a time is the owner.

    Args:
        uri: what it is called, credentials included.
        files: the file system.
        path: of the folder in it.

    Attributes:
        uri: as people may see it.
        bare_uri: without credentials.
        name: the last part of the path.
        is_owned: whether this process has become the owner.
    """

    def __init__(self, uri: str, files: fs.FileSystem, path: str) -> None:
        self._uri = StorageUri(uri)
        self.uri, self.bare_uri = self._uri.shown, self._uri.bare
        self.name = PurePosixPath(path).name
        self.is_owned = False
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
            uri: of a folder; it need not be there. Credentials in it are for the file system only.
            where: the option that names it.

        Raises:
            InputError: pyarrow knows no such file system, or the URI names no folder.
        """
        named = StorageUri(uri)
        with _told_as_input(where, named):
            files, path = fs.FileSystem.from_uri(uri)
        if not PurePosixPath(path).name:
            raise InputError(where, f"{named.shown}, which names no folder", _ALLOWED)
        return cls(uri, files, path)

    def claim(self) -> None:
        """Make the folder for a new run, and become its owner.

        Raises:
            InputError: there is something in it, or it cannot be written to.
        """
        allowed = "a new or an empty folder"
        with _told_as_input("--out", self._uri):
            found = self._files.get_file_info(self._path)
            if found.type == fs.FileType.File:
                raise InputError("--out", f"{self.uri}, a file", allowed)
            if found.type == fs.FileType.Directory and self._files.get_file_info(fs.FileSelector(self._path)):
                raise InputError("--out", f"{self.uri}, which is not empty", allowed)
            self._files.create_dir(self._path, recursive=True)
            self._become_owner()

    def fetch(self, folder: Path) -> None:
        """Copy what is there into a local folder.

        Raises:
            InputError: there is no run, it cannot be read, or it was not copied there, but written.
        """
        with _told_as_input("--resume", self._uri):
            self._refuse_run_folder()
            names = self._list()
            if CONFIG not in names:
                raise InputError("--resume", f"{self.uri}, without {CONFIG}", _ALLOWED_RUN)
            for name in names:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with self._files.open_input_stream(f"{self._path}/{name}") as reader, written_whole(target) as writer:
                    shutil.copyfileobj(reader, writer, _BLOCK_BYTES)
                self._there[name] = _state(target)

    def take_over(self, folder: Path) -> None:
        """Become the owner; whoever was it ends when it writes the next time.

        Args:
            folder: the run's, which is to be copied.

        Raises:
            InputError: another process has gone on with the run further than the folder has, a run was written there
                and not copied, or the storage cannot be read or written to.
        """
        with _told_as_input("--resume", self._uri):
            self._refuse_run_folder()
            self._files.create_dir(self._path, recursive=True)
            names = self._list()
            self._check_not_ahead(folder, names)
            self._become_owner()
            self._there = dict.fromkeys(names) | self._there

    def copy(self, folder: Path, leave_out: Collection[str], waits_seconds: Collection[float]) -> None:
        """Copy what is in a local folder and not there, and remove what is there and not in the folder.

        What makes a checkpoint whole is copied after what it rests on, the summary last, and only then is anything
        removed: a copy that is broken off leaves a run that can be gone on with. Before each file it is asked who the
        owner is: no storage locks, so another process can become it in the time that one file takes, but not unseen.

        Args:
            folder: the run's.
            leave_out: names of files that are not copied.
            waits_seconds: before each further try of an operation that has failed.

        Raises:
            OSError: the storage fails; or an error of pyarrow.
            TakenOverError: another process has become the owner.
        """
        paths = _files_to_copy(folder)
        for name in sorted(paths.keys() - leave_out, key=_rank):
            state = _state(paths[name])
            if self._there.get(name) != state:
                self._change(partial(self._put, name, paths[name]), waits_seconds)
                self._there[name] = state
        gone = sorted(self._there.keys() - paths.keys())
        for name in gone:
            self._change(partial(self._delete, name), waits_seconds)
            del self._there[name]
        if self._shows_parts:
            self._remove_empty({str(PurePosixPath(name).parent) for name in gone})

    def has_all(self, folder: Path) -> bool:
        """Whether each file of a local folder is there as it is here, but for those that are never copied."""
        return all(self._there.get(name) == _state(path) for name, path in _files_to_copy(folder).items())

    def reason(self, error: Exception) -> str:
        """Return what went wrong, as people may see it."""
        return _reason(error, self._uri)

    def _become_owner(self) -> None:
        self._put(_OWNER, self._token.encode())
        self.is_owned = True

    def _change(self, do: Callable[[], None], waits_seconds: Collection[float]) -> None:
        """Change something as the owner; again after each wait, as long as that fails and this process is the owner."""
        waits = iter(waits_seconds)
        while True:
            try:
                if self._read(_OWNER) != self._token.encode():
                    raise TakenOverError
                return do()
            except STORAGE_ERRORS as error:
                seconds = next(waits, None)
                if seconds is None:
                    raise
                _LOGGER.info("storage: %s; tried again in %g s", self.reason(error), seconds)
                time.sleep(seconds)

    def _refuse_run_folder(self) -> None:
        """Refuse a folder that a run was written into: who writes there holds a lock, which no storage knows of."""
        if self._shows_parts and was_written_into(Path(self._path)):
            found = f"{self.uri}, a folder that a run was written into, not copied"
            raise InputError("--resume", found, f"{_ALLOWED_RUN}; or elsa-ray run --resume {self._path}")

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
        written = f"{folder}/.{last}.{self._token}.part" if self._shows_parts else target
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


def _files_to_copy(folder: Path) -> dict[str, Path]:
    """Return the files of a local folder, but for the hidden ones, by their name in the folder."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path for name, path in paths.items() if not _is_hidden(name)}


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
def _told_as_input(where: str, uri: StorageUri) -> Iterator[None]:
    try:
        yield
    except STORAGE_ERRORS as error:
        raise InputError(where, f"{uri.shown} ({_reason(error, uri)})", _ALLOWED) from None


def _reason(error: Exception, uri: StorageUri) -> str:
    """Return the first line of what pyarrow says, without where in its own code that was, and without credentials."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return uri.hide(lines[0].split(". Detail: ")[0])
