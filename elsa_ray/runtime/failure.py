"""Errors of workers, with the clients, round and stage in which they happened."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from elsa_ray.world.plan import WorkKey


class WorkerError(Exception):
    """A worker failed. The message names clients, round and stage; ``cause_traceback`` is the worker's own."""

    def __init__(self, message: str, cause_traceback: str = "") -> None:
        self.cause_traceback = cause_traceback
        super().__init__(message, cause_traceback)

    def __str__(self) -> str:
        return str(self.args[0])


class WaitTimeoutError(WorkerError):
    """A wait was longer than its deadline; the message says what was waited for."""


@contextmanager
def naming(stage: str, keys: Sequence[WorkKey]) -> Iterator[None]:
    """Name stage, round and clients in any error from inside; an error that is named already passes.

    Without keys the stage alone is named.
    """
    try:
        yield
    except WorkerError:
        raise
    except Exception as error:
        rounds = sorted({key.round_index for key in keys})
        clients = ", ".join(str(key.client) for key in keys)
        where = f"{stage}: round {', '.join(map(str, rounds))}, client {clients}" if keys else stage
        raise WorkerError(f"{where}: {type(error).__name__}: {error}", traceback.format_exc()) from error
