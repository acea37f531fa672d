"""Which pool takes the next cohort: the least busy, then the near one; whoever waits is served in order."""

import asyncio
from collections import Counter

from elsa_ray.runtime.free_pools import FreePools

EVERY = range(3)
NEAR = {"edge-group-0": {2}, "edge-group-1": {0}}


def test_the_least_busy_comes_first_and_of_equal_ones_the_near() -> None:
    async def takes() -> list[int]:
        free = FreePools(3, 2, NEAR)
        return [await free.take(EVERY, host) for host in ("edge-group-0", "edge-group-0", "edge-group-1", "cloud")]

    assert asyncio.run(takes()) == [2, 0, 1, 0], "the third goes to the idle pool 1, though 0 is near"


def test_only_suitable_pools_are_given() -> None:
    async def takes() -> list[int]:
        free = FreePools(3, 2, NEAR)
        return [await free.take([1, 2], "edge-group-1") for _ in range(4)]

    assert Counter(asyncio.run(takes())) == {1: 2, 2: 2}


def test_a_place_goes_to_who_waits_near_it_else_to_the_first_whom_it_suits() -> None:
    async def order() -> list[tuple[str, int]]:
        free, served = FreePools(3, 1, NEAR), []

        async def work(name: str, suitable: list[int], host: str) -> None:
            served.append((name, await free.take(suitable, host)))

        for pool in EVERY:
            assert await free.take([pool], "cloud") == pool
        waiting = [
            asyncio.ensure_future(work(*own))
            for own in (
                ("a", [0, 1], "cloud"),
                ("b", [0, 1, 2], "edge-group-0"),
                ("c", [0, 1, 2], "edge-group-1"),
                ("d", [1], "cloud"),
            )
        ]
        await asyncio.sleep(0)
        for pool in (0, 2, 1, 1):
            free.give_back(pool)
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
        return served

    assert asyncio.run(order()) == [("c", 0), ("b", 2), ("a", 1), ("d", 1)]


def test_a_place_of_one_who_gave_up_is_not_lost() -> None:
    async def after_a_cancelled_wait() -> int:
        free = FreePools(1, 1, {})
        assert await free.take([0], "cloud") == 0
        waits = asyncio.ensure_future(free.take([0], "cloud"))
        also_waits = asyncio.ensure_future(free.take([0], "cloud"))
        await asyncio.sleep(0)
        free.give_back(0)
        waits.cancel()
        return await asyncio.wait_for(also_waits, 10)

    assert asyncio.run(after_a_cancelled_wait()) == 0
