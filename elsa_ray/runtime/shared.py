"""Large values that every worker reads: put into Ray's object store once, and again if they get lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

_CHECK_SECONDS = 30.0


class Shared:
    """A value in the object store. The driver owns it, so it outlives every worker and every other node.

    Args:
        make: makes the value; it must be the same each time.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._reference: Any = ray.put(make())

    @property
    def reference(self) -> Any:
        """What a worker is given."""
        return self._reference

    def renew(self) -> None:
        """Put the value again if it cannot be got any more."""
        try:
            ray.get(self._reference, timeout=_CHECK_SECONDS)
        except ray.exceptions.RayError:
            self._reference = ray.put(self._make())
