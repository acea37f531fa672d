"""Where an actor's wall time goes, by stage. A look or two at the clock a change: cheap enough to be always on.

Nothing that is read here enters a result: the figures go to the profile, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter, process_time

from elsa_ray.protocols.wall_time import WallStage


class Stopwatch:
    """Adds up the seconds that one actor spends in each stage. It is always in one, so that they add up.

    Args:
        base: the stage outside of all others.
        alone: whether the actor has its process for itself. Then what the process works while the actor waits is the
            handling of messages: Ray's, or this package's.
    """

    def __init__(self, base: WallStage = WallStage.WAITING, *, alone: bool) -> None:
        self._alone = alone
        self._stages = [base]
        self._seconds = dict.fromkeys(WallStage, 0.0)
        self._since = perf_counter()
        self._busy_since = process_time()

    @contextmanager
    def spend(self, stage: WallStage) -> Iterator[None]:
        """Count the time inside as ``stage``, but for what is inside of another ``spend``; nothing inside may await."""
        self._charge()
        self._stages.append(stage)
        try:
            yield
        finally:
            self._charge()
            self._stages.pop()

    def coding(self) -> AbstractContextManager[None]:
        """Count the time inside as encoding and decoding."""
        return self.spend(WallStage.CODEC)

    def conducting(self) -> AbstractContextManager[None]:
        """Count the time inside as handling messages; of an actor alone in its process, only what it works then."""
        return self.spend(WallStage.WAITING if self._alone else WallStage.MESSAGES)

    def take(self) -> dict[WallStage, float]:
        """Return the seconds since the last time, and start anew; they add up to the time that has passed."""
        self._charge()
        taken = self._seconds
        self._seconds = dict.fromkeys(WallStage, 0.0)
        return taken

    def _charge(self) -> None:
        """Count what has passed since the last change of stage."""
        now, stage = perf_counter(), self._stages[-1]
        passed, self._since = now - self._since, now
        if self._alone:
            busy_now = process_time()
            busy, self._busy_since = busy_now - self._busy_since, busy_now
            if stage is WallStage.WAITING:
                # Several threads of a process may be busy at once.
                busy = min(busy, passed)
                self._seconds[WallStage.MESSAGES] += busy
                passed -= busy
        self._seconds[stage] += passed
