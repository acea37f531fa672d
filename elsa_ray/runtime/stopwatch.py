"""Where an actor's wall time goes, by stage. Two looks at the clock a call: cheap enough to be always on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from elsa_ray.protocols.protocol import Stage, StageSeconds


class Stopwatch:
    """Adds up the seconds that one actor spends in each stage; what is spent in none is waiting."""

    def __init__(self) -> None:
        self._seconds: StageSeconds = {}

    @contextmanager
    def spend(self, stage: Stage) -> Iterator[None]:
        """Count the time inside as ``stage``; nothing inside may await, or be counted by itself."""
        begin = perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + perf_counter() - begin

    def move_to_codec(self, seconds: float) -> None:
        """Count some of what was counted as computing as encoding and decoding instead."""
        self._seconds[Stage.COMPUTE] = self._seconds.get(Stage.COMPUTE, 0.0) - seconds
        self._seconds[Stage.CODEC] = self._seconds.get(Stage.CODEC, 0.0) + seconds

    def take(self) -> StageSeconds:
        """Return the seconds since the last time, and start anew."""
        taken, self._seconds = self._seconds, {}
        return taken
