"""Which pool takes the next cohort: one that serves its clients, and near its edge where there is a choice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence


class FreePools:
    """Hands out places in pools; whoever finds none waits for the next one that suits.

    Args:
        num_pools: of the run.
        in_flight: places of each pool.
        near: for each host the pools that are close to it; of equally busy ones they are taken first.
        changed: told how many wait, and how many places are taken, whenever that changes.
    """

    def __init__(
        self,
        num_pools: int,
        in_flight: int,
        near: Mapping[str, Collection[int]],
        changed: Callable[[int, int], None] = lambda waiting, taken: None,
    ) -> None:
        self._num_places, self._changed = num_pools * in_flight, changed
        self._free = [pool for _ in range(in_flight) for pool in range(num_pools)]
        self._near = near
        self._waiting: list[tuple[Sequence[int], Collection[int], asyncio.Future[int]]] = []

    async def take(self, suitable: Sequence[int], host: str) -> int:
        """Wait for a place in one of the suitable pools and take it.

        Args:
            suitable: pools that may be given.
            host: whose neighbours come first.
        """
        near = self._near.get(host, ())
        fitting = [pool for pool in self._free if pool in suitable]
        if fitting:
            # The least busy first: no core waits while another has two pieces of work. Then the near one.
            chosen = min(fitting, key=lambda pool: (-self._free.count(pool), pool not in near))
            self._free.remove(chosen)
            self._tell()
            return chosen
        place: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((suitable, near, place))
        self._tell()
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.give_back(place.result())
            raise

    def give_back(self, pool: int) -> None:
        """Return a place: to the first who waits near it, else to the first whom it suits."""
        self._waiting = [waiter for waiter in self._waiting if not waiter[2].done()]
        fitting = [waiter for waiter in self._waiting if pool in waiter[0]]
        if not fitting:
            self._free.append(pool)
            self._tell()
            return
        chosen = next((waiter for waiter in fitting if pool in waiter[1]), fitting[0])
        self._waiting.remove(chosen)
        chosen[2].set_result(pool)
        self._tell()

    def _tell(self) -> None:
        self._changed(len(self._waiting), self._num_places - len(self._free))
