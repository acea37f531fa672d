"""Where pools have room for work. A pool that died has none until it is replaced; meanwhile the others go on."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import NamedTuple, Self

from elsa_ray.runtime.failure import WaitTimeoutError, WorkerError, WorkerLostError
from elsa_ray.runtime.jobs import pool_name


class Pools(ABC):
    """What is known of the pools, and how a lost one is replaced."""

    num_pools: int
    in_flight: int

    def is_working(self, pool: int) -> bool:
        """Return whether a pool answered when it was last asked."""
        return True

    def replace_pool(self, pool: int) -> None:  # noqa: B027 - pools in this process cannot die
        """Start a new pool in the place of one that was lost."""

    async def revive(self, pool: int) -> None:  # noqa: B027
        """Wait until a pool that was replaced answers.

        Raises:
            WaitTimeoutError: there was no room for it in time.
            WorkerLostError: it died as well.
        """

    @abstractmethod
    def tell(self, text: str) -> None:
        """Tell the user what went wrong and what is done about it."""


class Place(NamedTuple):
    """Room for one cohort in a pool; ``generation`` counts the pool's replacements."""

    pool: int
    generation: int


class Places:
    """Hands out the pools' places. Use it as an asynchronous context manager, once a round.

    Args:
        pools: so many places in each.
        retries: how often the replacement of a pool may die while it starts.
    """

    def __init__(self, pools: Pools, retries: int) -> None:
        self._pools, self._retries = pools, retries
        self._free: asyncio.Queue[Place | WorkerError] = asyncio.Queue()
        self._generation = [0] * pools.num_pools
        self._revivals: dict[int, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        for place in range(self._pools.num_pools * self._pools.in_flight):
            pool = place % self._pools.num_pools
            if self._pools.is_working(pool):
                self._free.put_nowait(Place(pool, 0))
        for pool in range(self._pools.num_pools):
            if not self._pools.is_working(pool):
                self._begin_revival(pool)
        return self

    async def __aexit__(self, *exception: object) -> None:
        for revival in self._revivals.values():
            revival.cancel()
        await asyncio.gather(*self._revivals.values(), return_exceptions=True)

    async def take(self) -> Place:
        """Wait for a place in any pool.

        Raises:
            WorkerError: no pool works, and none can be started.
        """
        place = await self._free.get()
        if isinstance(place, WorkerError):
            self._free.put_nowait(place)
            raise place
        return place

    def give(self, place: Place) -> None:
        """Give a place back."""
        if place.generation == self._generation[place.pool]:
            self._free.put_nowait(place)

    def lose(self, place: Place) -> None:
        """Give up all places of a pool that died, until another one has been started for it."""
        if place.generation != self._generation[place.pool]:
            return
        self._generation[place.pool] += 1
        others = [self._free.get_nowait() for _ in range(self._free.qsize())]
        for other in others:
            if isinstance(other, WorkerError) or other.pool != place.pool:
                self._free.put_nowait(other)
        self._pools.replace_pool(place.pool)
        self._begin_revival(place.pool)

    def _begin_revival(self, pool: int) -> None:
        self._revivals[pool] = asyncio.ensure_future(self._revive(pool))

    async def _revive(self, pool: int) -> None:
        died = 0
        while True:
            try:
                await self._pools.revive(pool)
                break
            except WaitTimeoutError as error:
                if len(self._revivals) == self._pools.num_pools:
                    self._free.put_nowait(error)
                    return
                self._pools.tell(f"{error}; going on with the other pools")
            except WorkerLostError as loss:
                died += 1
                if died > self._retries:
                    text = f"{pool_name(pool)} died {died} times while it was starting; the last time: {loss}"
                    self._free.put_nowait(WorkerError(text, loss.cause_traceback))
                    return
                self._pools.replace_pool(pool)
            except WorkerError as error:
                self._free.put_nowait(error)
                return
        del self._revivals[pool]
        for _ in range(self._pools.in_flight):
            self._free.put_nowait(Place(pool, self._generation[pool]))
