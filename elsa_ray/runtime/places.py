"""Which pool takes the next cohort: one that serves its clients, the least busy first, near its edge where it can be.

A pool that died has no room until it is replaced; meanwhile the others go on.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Collection
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

    def cohorts_changed(self, waiting: int, in_pools: int) -> None:  # noqa: B027 - not everybody wants to know
        """Hear how many cohorts wait for a pool, and how many are in one."""

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


class _Wish(NamedTuple):
    """What somebody waits for: a place in a suitable pool, and rather in a near one."""

    suitable: Collection[int]
    near: Collection[int]
    place: asyncio.Future[Place]


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
        self._waiters: dict[asyncio.Future[Place], _Wish] = {}
        self._lone_waiters: deque[_Wish] = deque()
        self._in_pools: Counter[int] = Counter()
        self._absent: set[int] = set()
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

    async def take(
        self, suitable: Collection[int] | None = None, near: Collection[int] = (), *, alone: bool = False
    ) -> Place:
        """Wait for a place in a pool, or for a whole pool.

        Args:
            suitable: pools that may be given; None for all. Where there is no room for any of them in the cluster any
                more, the others will do: where work is done changes no number.
            near: of equally busy pools these come first, and of those who wait, who is near.
            alone: for a whole pool.

        Raises:
            WorkerError: no pool works, and none can be started.
        """
        waiter: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        wish = _Wish(range(self._pools.num_pools) if suitable is None else suitable, near, waiter)
        if alone:
            self._lone_waiters.append(wish)
        else:
            self._waiters[waiter] = wish
        self._serve()
        try:
            return await waiter
        except asyncio.CancelledError:
            self._waiters.pop(waiter, None)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.give(waiter.result())
            raise

    def give(self, place: Place) -> None:
        """Give a place back."""
        if self.is_there(place):
            self._in_pools[place.pool] -= 1
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
        self._in_pools[pool] = 0
        self._pools.replace_pool(pool)
        self._begin_revival(pool)
        if self._reserved == pool:
            self._reserved = None
            self._serve()

    def _serve(self) -> None:
        """Hand out what is free to those who wait; whoever wants to be alone has a pool kept free for it."""
        if self._hopeless is not None:
            for waiter in [*(wish.place for wish in self._lone_waiters), *self._waiters]:
                if not waiter.done():
                    waiter.set_exception(self._hopeless)
            self._lone_waiters.clear()
            self._waiters.clear()
        while self._has_lone_waiter() and self._give_whole_pool():
            pass
        while self._waiters and self._give_one():
            pass
        self._pools.cohorts_changed(len(self._waiters) + len(self._lone_waiters), self._in_pools.total())

    def _has_lone_waiter(self) -> bool:
        """Forget those in front who gave up, and what was kept for them; return whether somebody is left."""
        while self._lone_waiters and self._lone_waiters[0].place.done():
            self._lone_waiters.popleft()
            self._reserved = None
        return bool(self._lone_waiters)

    def _give_whole_pool(self) -> bool:
        wish = self._lone_waiters[0]
        if self._reserved is None:
            pools = [pool for pool in range(self._pools.num_pools) if pool not in self._revivals]
            self._reserved = max(
                (pool for pool in pools if self._suits(pool, wish)), key=self._free.count, default=None
            )
        pool = self._reserved
        if pool is None or self._free.count(pool) < self._pools.in_flight:
            return False
        self._free = [other for other in self._free if other != pool]
        self._reserved = None
        self._lone_waiters.popleft()
        self._grant(wish, pool, alone=True)
        return True

    def _give_one(self) -> bool:
        free = Counter(pool for pool in self._free if pool != self._reserved)
        # The least busy first: no core waits while another has two pieces of work. Then the near one.
        for count in sorted(set(free.values()), reverse=True):
            pools = [pool for pool in free if free[pool] == count]
            for only_near in (True, False):
                for pool in pools:
                    wish = self._first_wish(pool, only_near=only_near)
                    if wish is not None:
                        del self._waiters[wish.place]
                        self._free.remove(pool)
                        self._grant(wish, pool, alone=False)
                        return True
        return False

    def _first_wish(self, pool: int, *, only_near: bool) -> _Wish | None:
        for wish in self._waiters.values():
            if not wish.place.done() and self._suits(pool, wish) and (not only_near or pool in wish.near):
                return wish
        return None

    def _suits(self, pool: int, wish: _Wish) -> bool:
        return pool in wish.suitable or self._absent.issuperset(wish.suitable)

    def _grant(self, wish: _Wish, pool: int, *, alone: bool) -> None:
        self._in_pools[pool] += 1
        wish.place.set_result(Place(pool, self._generation[pool], alone))

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
                self._absent.add(pool)
                self._serve()
            except WorkerLostError as loss:
                died += 1
                if died > self._retries:
                    text = f"{pool_name(pool)} died {times(died)} while it was starting; the last time: {loss}"
                    return self._give_up(WorkerError(text, loss.cause_traceback))
                self._pools.replace_pool(pool)
            except WorkerError as error:
                return self._give_up(error)
        del self._revivals[pool]
        self._absent.discard(pool)
        self._free += [pool] * self._pools.in_flight
        self._serve()

    def _give_up(self, error: WorkerError) -> None:
        self._hopeless = error
        self._serve()
