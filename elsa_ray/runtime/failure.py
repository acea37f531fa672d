"""Errors of workers, with the clients, round and stage in which they happened."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from elsa_ray.training.failure import NamedError, clients_text
from elsa_ray.world.plan import WorkKey


class WorkerError(NamedError):
    """A worker failed. The message names clients, round and stage; ``cause_traceback`` is the worker's own."""

    def __init__(self, message: str, cause_traceback: str = "") -> None:
        self.cause_traceback = cause_traceback
        super().__init__(message, cause_traceback)


NO_WORKER = "a value on its way"
"""In place of a worker, where what one has sent to another was lost with its node: nobody else needs to be replaced."""


class WorkerLostError(WorkerError):
    """A worker died, or what it had computed was lost with its node: its work has to be done again.

    Attributes:
        worker: its name, or ``NO_WORKER``.
    """

    def __init__(self, message: str, worker: str, cause_traceback: str = "") -> None:
        super().__init__(message, cause_traceback)
        self.worker = worker
        self.args = (message, worker, cause_traceback)


class WaitTimeoutError(WorkerError):
    """A wait was longer than its deadline; the message says what was waited for."""


def times(count: int) -> str:
    """Return ``once`` or ``3 times``."""
    return "once" if count == 1 else f"{count} times"


@contextmanager
def naming(stage: str, keys: Sequence[WorkKey]) -> Iterator[None]:
    """Name stage, round and clients in any error from inside; an error that is named already passes.

    Without keys the stage alone is named.
    """
    try:
        yield
    except NamedError:
        raise
    except Exception as error:
        where = f"{stage}: {clients_text(keys)}" if keys else stage
        raise WorkerError(f"{where}: {type(error).__name__}: {error}", traceback.format_exc()) from error
