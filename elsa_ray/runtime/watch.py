"""Watches what is waited for: tells it when it takes long, and finds out when a cohort does not get on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from elsa_ray.runtime.actors import answer_of
from elsa_ray.runtime.failure import WaitTimeoutError
from elsa_ray.runtime.pool import TrainedCohort
from elsa_ray.training.cohort import Cohort
from elsa_ray.training.failure import ClientHangError, clients_text

_FIRST_REPORT_SECONDS = 10.0
_LOOK_SECONDS = 1.0
_ASK_SECONDS = 5.0


@dataclass
class Wait:
    """Something that is waited for.

    Attributes:
        what: in words; whoever waits may tell more in the course of time.
        since: on the monotonic clock.
        next_report_seconds: age at which it is told of next.
    """

    what: str
    since: float = field(default_factory=time.monotonic)
    next_report_seconds: float = _FIRST_REPORT_SECONDS


class Watch:
    """Knows all waits that are under way.

    Args:
        status: is told of the longest one when it has lasted 10 s, 20 s, 40 s and so on.
    """

    def __init__(self, status: Callable[[str], None]) -> None:
        self._status = status
        self._waits: dict[int, Wait] = {}

    @contextmanager
    def waiting(self, what: str) -> Iterator[Wait]:
        """Wait for something inside."""
        wait = Wait(what)
        self._waits[id(wait)] = wait
        try:
            yield wait
        finally:
            del self._waits[id(wait)]

    def look(self, now: float) -> None:
        """Tell of the longest wait, if its time has come."""
        oldest = min(self._waits.values(), key=lambda wait: wait.since, default=None)
        if oldest is None or now - oldest.since < oldest.next_report_seconds:
            return
        while oldest.next_report_seconds <= now - oldest.since:
            oldest.next_report_seconds *= 2
        others = f" (and {len(self._waits) - 1} more)" if len(self._waits) > 1 else ""
        self._status(f"waiting {now - oldest.since:.0f} s for {oldest.what}{others}")

    async def look_forever(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self.look(time.monotonic())


async def trained_cohort(
    pool: Any, name: str, cohort: Cohort, reference: Any, *, timeout_seconds: float, patience_seconds: float, wait: Wait
) -> TrainedCohort:
    """Wait until a pool has trained a cohort, and ask it now and then how far it is.

    Args:
        pool: the actor.
        name: its name.
        cohort: what it trains.
        reference: of the result.
        timeout_seconds: longest time that a computation of clients may take without any progress.
        patience_seconds: longest time for all of it.
        wait: is told how far it is.

    Raises:
        ClientHangError: there was no progress for too long.
        WaitTimeoutError: it took too long.
        WorkerLostError: the pool, or the cohort's host, died.
    """
    answer = asyncio.ensure_future(answer_of(reference, patience_seconds, wait.what, name))
    try:
        while True:
            done, _ = await asyncio.wait({answer}, timeout=min(_ASK_SECONDS, timeout_seconds / 4))
            if done:
                trained: TrainedCohort = answer.result()
                return trained
            await _check(pool, name, cohort, timeout_seconds, wait)
    finally:
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)


async def _check(pool: Any, name: str, cohort: Cohort, timeout_seconds: float, wait: Wait) -> None:
    """Ask a pool what a cohort is doing.

    Raises:
        ClientHangError: the same for too long.
    """
    limit = f"no progress for {timeout_seconds:g} s (runtime.timeout_seconds)"
    try:
        told = await answer_of(pool.doing.remote(cohort.ticket), timeout_seconds, f"{name} to tell what it does", name)
    except WaitTimeoutError:
        keys = cohort.active_keys
        text = f"training: {clients_text(keys)}: {name} does not even tell what it does: {limit}"
        raise ClientHangError(text, keys) from None
    if told is None:
        return
    doing, stack = told
    wait.what = f"{name}, cohort {cohort.name}: {doing.stage} ({doing.seconds:.0f} s)"
    if doing.keys and doing.seconds > timeout_seconds:
        stage, _, detail = doing.stage.partition(": ")
        where = f"{stage}: {clients_text(doing.keys)}{': ' if detail else ''}{detail}"
        raise ClientHangError(f"{where}: {limit}", doing.keys, stack)
