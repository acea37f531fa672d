"""Errors of clients, with the round and the stage in which they happened, and what a cohort is doing right now."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from elsa_ray.training.cohort import PlanMismatchError
from elsa_ray.world.plan import WorkKey


class NamedError(Exception):
    """An error that says where it happened, and passes on unchanged."""

    def __str__(self) -> str:
        return str(self.args[0])


class ClientError(NamedError):
    """The computation of clients failed.

    Attributes:
        keys: of one client, or of a whole cohort where nothing tells which of its members it was.
        cause_traceback: where it happened.
    """

    def __init__(self, message: str, keys: Sequence[WorkKey], cause_traceback: str = "") -> None:
        self.keys, self.cause_traceback = tuple(keys), cause_traceback
        super().__init__(message, self.keys, cause_traceback)


class ClientHangError(ClientError):
    """The computation of clients did not get on for too long."""


@dataclass(frozen=True)
class ClientFailure:
    """A client that was dropped from a round because its computation failed.

    Attributes:
        key: its work item.
        reason: one line: stage and error.
    """

    key: WorkKey
    reason: str


class Doing(NamedTuple):
    """What a cohort does at some moment, and since when.

    Attributes:
        stage: in words.
        keys: whose computation it is; empty while the cohort waits for its edge.
        seconds: so long.
    """

    stage: str
    keys: tuple[WorkKey, ...]
    seconds: float


class Whereabouts:
    """Where a cohort's computation is: known to who waits for it, and named in its errors.

    Args:
        keys: of the members.
    """

    def __init__(self, keys: Sequence[WorkKey] = ()) -> None:
        self._keys = tuple(keys)
        self._stage = ""
        # One tuple, replaced as a whole: another thread reads it.
        self._now: tuple[str, tuple[WorkKey, ...], float] = ("", self._keys, time.monotonic())

    def now(self) -> Doing:
        """Return what is being done, and for how long."""
        stage, keys, since = self._now
        return Doing(stage, keys, time.monotonic() - since)

    @contextmanager
    def at(self, stage: str) -> Iterator[None]:
        """Be in a stage of the whole cohort; an error from inside is the members', unless it is named already.

        Raises:
            ClientError: whatever was raised inside, but for a payload that has not its planned size: no client can
                help that.
        """
        self._stage = stage
        self._enter(stage, self._keys)
        with naming_clients(stage, self._keys):
            yield

    def step(self, detail: str) -> None:
        """Begin a part of the stage."""
        self._enter(f"{self._stage}: {detail}", self._keys)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Wait for somebody else."""
        before = self._now
        self._enter(what, ())
        yield
        self._enter(before[0], before[1])

    @contextmanager
    def of_member(self, key: WorkKey, detail: str) -> Iterator[None]:
        """Compute for one member alone; an error from inside is its own.

        Raises:
            ClientError: as in ``at``.
        """
        self._enter(f"{self._stage}: {detail}", (key,))
        with naming_clients(self._stage, (key,), detail):
            yield
        self._enter(self._stage, self._keys)

    def _enter(self, stage: str, keys: tuple[WorkKey, ...]) -> None:
        self._now = (stage, keys, time.monotonic())


@contextmanager
def naming_clients(stage: str, keys: Sequence[WorkKey], detail: str = "") -> Iterator[None]:
    """Turn any error from inside into one of these clients; see ``Whereabouts.at``."""
    try:
        yield
    except (NamedError, PlanMismatchError):
        raise
    except Exception as error:
        parts = [f"{stage}: {clients_text(keys)}", *([detail] if detail else []), f"{type(error).__name__}: {error}"]
        raise ClientError(": ".join(parts), keys, traceback.format_exc()) from error


def clients_text(keys: Sequence[WorkKey]) -> str:
    """Return ``round 0, client 1, 4``."""
    rounds = ", ".join(map(str, sorted({key.round_index for key in keys})))
    return f"round {rounds}, client {', '.join(str(key.client) for key in keys)}"
