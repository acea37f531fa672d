"""Where pools have room for work. A pool that died has none until it is replaced; meanwhile the others go on."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from typing import NamedTuple, Self

from elsa_ray.runtime.failure import WaitTimeoutError, WorkerError, WorkerLostError, times
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
    """Room for one cohort in a pool; ``generation`` counts the pool's replacements.

    Who is ``alone`` has the pool to itself.
    """

    pool: int
    generation: int
    alone: bool


class Places:
    """Hands out the pools' places. Use it as an asynchronous context manager, once a round.

    Args:
        pools: so many places in each.
        retries: how often the replacement of a pool may die while it starts.
    """

    def __init__(self, pools: Pools, retries: int) -> None:
        self._pools, self._retries = pools, retries
        self._free: list[int] = []
        self._generation = [0] * pools.num_pools
        self._revivals: dict[int, asyncio.Task[None]] = {}
        self._ended: set[tuple[int, int]] = set()
        self._waiters: deque[asyncio.Future[Place]] = deque()
        self._lone_waiters: deque[asyncio.Future[Place]] = deque()
        self._reserved: int | None = None
        self._hopeless: WorkerError | None = None

    async def __aenter__(self) -> Self:
        for place in range(self._pools.num_pools * self._pools.in_flight):
            pool = place % self._pools.num_pools
            if self._pools.is_working(pool):
                self._free.append(pool)
        for pool in range(self._pools.num_pools):
            if not self._pools.is_working(pool):
                self._begin_revival(pool)
        return self

    async def __aexit__(self, *exception: object) -> None:
        for revival in self._revivals.values():
            revival.cancel()
        await asyncio.gather(*self._revivals.values(), return_exceptions=True)

    async def take(self, *, alone: bool = False) -> Place:
        """Wait for a place in any pool, or for a whole pool.

        Raises:
            WorkerError: no pool works, and none can be started.
        """
        waiter: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        (self._lone_waiters if alone else self._waiters).append(waiter)
        self._serve()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.give(waiter.result())
            raise

    def give(self, place: Place) -> None:
        """Give a place back."""
        if self.is_there(place):
            self._free += [place.pool] * (self._pools.in_flight if place.alone else 1)
            self._serve()

    def is_there(self, place: Place) -> bool:
        """Return whether the place's pool is still the one that it was."""
        return place.generation == self._generation[place.pool]

    def end(self, place: Place) -> None:
        """Replace a pool that hangs; whoever else had a place in it has no part in its death."""
        self._ended.add((place.pool, place.generation))
        self.lose(place)

    def was_ended(self, place: Place) -> bool:
        """Return whether the pool was ended for somebody else's sake."""
        return (place.pool, place.generation) in self._ended

    def lose(self, place: Place) -> None:
        """Give up all places of a pool that died, until another one has been started for it."""
        pool = place.pool
        if not self.is_there(place):
            return
        self._generation[pool] += 1
        self._free = [other for other in self._free if other != pool]
        self._pools.replace_pool(pool)
        self._begin_revival(pool)
        if self._reserved == pool:
            self._reserved = None
            self._serve()

    def _serve(self) -> None:
        """Hand out what is free to those who wait, in order; whoever wants to be alone has a pool kept free for it."""
        if self._hopeless is not None:
            for waiter in [*self._lone_waiters, *self._waiters]:
                if not waiter.done():
                    waiter.set_exception(self._hopeless)
        _drop_done(self._lone_waiters)
        while self._lone_waiters and self._take_whole_pool():
            _drop_done(self._lone_waiters)
        _drop_done(self._waiters)
        while self._waiters:
            pool = next((pool for pool in self._free if pool != self._reserved), None)
            if pool is None:
                return
            self._free.remove(pool)
            self._waiters.popleft().set_result(Place(pool, self._generation[pool], alone=False))
            _drop_done(self._waiters)

    def _take_whole_pool(self) -> bool:
        if self._reserved is None:
            working = [pool for pool in range(self._pools.num_pools) if pool not in self._revivals]
            self._reserved = max(working, key=self._free.count, default=None)
        pool = self._reserved
        if pool is None or self._free.count(pool) < self._pools.in_flight:
            return False
        self._free = [other for other in self._free if other != pool]
        self._reserved = None
        self._lone_waiters.popleft().set_result(Place(pool, self._generation[pool], alone=True))
        return True

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
                    return self._give_up(error)
                self._pools.tell(f"{error}; going on with the other pools")
            except WorkerLostError as loss:
                died += 1
                if died > self._retries:
                    text = f"{pool_name(pool)} died {times(died)} while it was starting; the last time: {loss}"
                    return self._give_up(WorkerError(text, loss.cause_traceback))
                self._pools.replace_pool(pool)
            except WorkerError as error:
                return self._give_up(error)
        del self._revivals[pool]
        self._free += [pool] * self._pools.in_flight
        self._serve()

    def _give_up(self, error: WorkerError) -> None:
        self._hopeless = error
        self._serve()


def _drop_done(waiters: deque[asyncio.Future[Place]]) -> None:
    """Forget those in front who have been cancelled."""
    while waiters and waiters[0].done():
        waiters.popleft()
