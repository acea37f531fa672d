"""A lock file, so that two processes never write into one folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elsa_ray.config.errors import InputError


@contextmanager
def locked(path: Path, taken: InputError) -> Iterator[int]:
    """Hold a lock file as long as the block lasts, or as any process lives that has inherited the number given.

    Args:
        path: the lock file; it is made where it is not there.
        taken: the error to raise where another process holds it.

    Yields:
        The open file's number.

    Raises:
        InputError: ``taken``.
        OSError: the file cannot be opened.
    """
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken from None
        yield lock.fileno()
