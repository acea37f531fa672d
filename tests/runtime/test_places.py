"""Places in pools: who waits gets one in order, a dead pool has none, and whoever must be alone is."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from elsa_ray.experiment import rounds
from elsa_ray.prepare import load_backbone, make_recipe, make_tripartite, prepare
from elsa_ray.runtime.executor import ConductedExecutor, InlineWorkers
from elsa_ray.runtime.failure import WaitTimeoutError, WorkerError, WorkerLostError
from elsa_ray.runtime.places import Places, Pools
from elsa_ray.training.failure import ClientHangError
from tests.runtime.runs import Finished, same, small_config


class Few(Pools):
    """Pools that can be revived when the test says so."""

    def __init__(self, num_pools: int, in_flight: int, answers: list[Exception | None] | None = None) -> None:
        self.num_pools, self.in_flight = num_pools, in_flight
        self.answers = answers if answers is not None else []
        self.can_revive = asyncio.Event()
        self.said: list[str] = []
        self.heard: list[tuple[int, int]] = []
        self.replaced: list[int] = []

    def cohorts_changed(self, waiting: int, in_pools: int) -> None:
        self.heard.append((waiting, in_pools))

    def replace_pool(self, pool: int) -> None:
        self.replaced.append(pool)

    async def revive(self, pool: int) -> None:
        await self.can_revive.wait()
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer

    def tell(self, text: str) -> None:
        self.said.append(text)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_lost_pool_has_no_place_until_it_is_revived_and_then_all_of_them() -> None:
    async def story() -> None:
        pools = Few(2, 2)
        async with Places(pools, 3) as places:
            held = [await places.take() for _ in range(3)]
            assert [place.pool for place in held] == [0, 1, 0]
            places.lose(held[0])
            places.lose(held[2])
            places.give(held[2])
            assert pools.replaced == [0], "both have seen the same death"
            assert (await places.take()).pool == 1
            waiting = asyncio.ensure_future(places.take())
            await settled()
            assert not waiting.done()
            pools.can_revive.set()
            assert await waiting == (0, 1, False)
            assert await places.take() == (0, 1, False)
            last = asyncio.ensure_future(places.take())
            await settled()
            assert not last.done()
            last.cancel()

    asyncio.run(story())


def test_who_must_be_alone_waits_for_a_whole_pool_and_others_pass_by() -> None:
    async def story() -> None:
        async with Places(Few(2, 2), 3) as places:
            first, second, third = [await places.take() for _ in range(3)]
            lone = asyncio.ensure_future(places.take(alone=True))
            await settled()
            assert not lone.done()
            late = asyncio.ensure_future(places.take())
            await settled()
            assert not late.done(), "the free place is in the pool that is kept for it"
            places.give(second)
            assert await lone == (1, 0, True)
            places.give(first)
            assert (await late).pool == 0
            places.give(await lone)
            assert {(await places.take()).pool for _ in range(2)} == {1}
            places.give(third)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([WaitTimeoutError("waited 9 s for room for pool-0")], "waited 9 s for room"),
        ([WorkerLostError("gone", "pool-0")] * 3, "pool-0 died 3 times while it was starting; the last time: gone"),
        ([WorkerError("broken")], "broken"),
    ],
)
def test_where_no_pool_is_left_whoever_waits_is_told_why(answers: list[Exception | None], says: str) -> None:
    async def story() -> None:
        pools = Few(1, 2, list(answers))
        pools.can_revive.set()
        async with Places(pools, 2) as places:
            places.lose(await places.take())
            for _ in range(2):
                with pytest.raises(WorkerError, match=says):
                    await places.take()

    asyncio.run(story())


def test_where_another_pool_works_there_is_no_hurry() -> None:
    async def story() -> None:
        pools = Few(2, 1, [WaitTimeoutError("no room yet")])
        pools.can_revive.set()
        async with Places(pools, 0) as places:
            places.lose(await places.take())
            assert {(await places.take()).pool for _ in range(2)} == {0, 1}
            assert pools.said == ["no room yet; going on with the other pools"]

    asyncio.run(story())


NEAR = ((), {2}, {0})
"""Pools that are near to the cloud and to two edge groups."""


def test_the_least_busy_comes_first_and_of_equal_ones_the_near() -> None:
    async def story() -> None:
        async with Places(Few(3, 2), 0) as places:
            taken = [(await places.take(None, NEAR[host])).pool for host in (1, 1, 2, 0)]
            assert taken == [2, 0, 1, 0], "the third goes to the idle pool 1, though 0 is near"

    asyncio.run(story())


def test_only_suitable_pools_are_given_also_to_who_must_be_alone() -> None:
    async def story() -> None:
        async with Places(Few(3, 2), 0) as places:
            assert (await places.take({1}, alone=True)).pool == 1
            assert [(await places.take([1, 2], NEAR[2])).pool for _ in range(2)] == [2, 2]
            waits = asyncio.ensure_future(places.take([1, 2]))
            await settled()
            assert not waits.done(), "pool 0 is free, but not for it"
            waits.cancel()

    asyncio.run(story())


def test_a_place_goes_to_who_waits_near_it_else_to_the_first_whom_it_suits() -> None:
    async def order() -> list[tuple[str, int]]:
        served: list[tuple[str, int]] = []
        pools = Few(3, 1)
        async with Places(pools, 0) as places:

            async def work(name: str, suitable: list[int], host: int) -> None:
                place = await places.take(suitable, NEAR[host])
                served.append((name, place.pool))
                held[place.pool] = place

            held = {pool: await places.take([pool]) for pool in range(3)}
            wants = (("a", [0, 1], 0), ("b", [0, 1, 2], 1), ("c", [0, 1, 2], 2), ("d", [1], 0))
            waiting = [asyncio.ensure_future(work(*own)) for own in wants]
            await settled()
            assert pools.heard[-1] == (4, 3)
            for pool in (0, 2, 1, 1):
                places.give(held[pool])
                await settled()
            await asyncio.gather(*waiting)
            assert pools.heard[-1] == (0, 3)
        return served

    assert asyncio.run(order()) == [("c", 0), ("b", 2), ("a", 1), ("d", 1)]


def test_a_place_of_one_who_gave_up_is_not_lost() -> None:
    async def story() -> None:
        async with Places(Few(1, 1), 0) as places:
            held = await places.take()
            waits, also_waits = [asyncio.ensure_future(places.take()) for _ in range(2)]
            await settled()
            places.give(held)
            waits.cancel()
            assert (await asyncio.wait_for(also_waits, 10)).pool == 0

    asyncio.run(story())


def test_where_there_is_no_room_for_the_suitable_pools_any_more_others_will_do() -> None:
    async def story() -> None:
        pools = Few(2, 1, [WaitTimeoutError("no room")])
        async with Places(pools, 0) as places:
            places.lose(await places.take([1]))
            waits = asyncio.ensure_future(places.take([1]))
            await settled()
            assert not waits.done()
            pools.can_revive.set()
            assert (await asyncio.wait_for(waits, 10)).pool == 0

    asyncio.run(story())


Fault = Callable[["Mortal", int, Any], Exception | None]


class Mortal(InlineWorkers):
    """Two pools, each with two cohorts under way; they die where a test says so, and their cohorts with them."""

    num_pools = 2
    in_flight = 2
    fault: Fault

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.generation: Counter[int] = Counter()
        self.said: list[str] = []
        self.trained: Counter[str] = Counter()

    def replace_pool(self, pool: int) -> None:
        self.generation[pool] += 1

    async def recover(self, loss: WorkerLostError) -> None:
        self.said.append(f"recovered {loss.worker}")

    def tell(self, text: str, details: str = "") -> None:
        self.said.append(text)

    async def train(self, pool: int, cohort: Any, *arguments: Any) -> Any:
        self.trained[cohort.name] += 1
        generation = self.generation[pool]
        error = type(self).fault(self, pool, cohort)
        if isinstance(error, WorkerLostError) and error.worker == f"pool-{pool}":
            self.generation[pool] += 1
        if error is not None:
            await asyncio.sleep(0)
            raise error
        for _ in range(20):
            await asyncio.sleep(0)
        trained = await super().train(pool, cohort, *arguments)
        if self.generation[pool] != generation:
            raise WorkerLostError(f"pool-{pool} died", f"pool-{pool}")
        return trained


def conducted(fault: Fault, data: Any, *overrides: str, **protocol: Any) -> tuple[Mortal, Finished]:
    workers_of = type("Planned", (Mortal,), {"fault": staticmethod(fault)})
    one_a_cohort = ("numerics.cohort=1", "protocol.rounds=1", "protocol.local_steps=1")
    prepared = prepare(small_config(data, *one_a_cohort, *overrides, **protocol))
    model, adapters = load_backbone(prepared)
    workers = workers_of(prepared.setting, make_tripartite(prepared, model), make_recipe(prepared))
    with ConductedExecutor(prepared.setting, workers) as executor:
        return workers, Finished(prepared, list(rounds(prepared, prepared.protocol.start(adapters), executor)))


def always_deadly(workers: Mortal, pool: int, cohort: Any) -> Exception | None:
    guilty = any(key.client == 2 for key in cohort.active_keys)
    return WorkerLostError(f"pool-{pool} died", f"pool-{pool}") if guilty else None


def test_only_the_cohort_that_dies_alone_is_dropped(topic_data: Any) -> None:
    """Who shares a pool with it may lose it once; whose fault it was must not depend on who that is."""
    policy = {"kills_worker": "drop"}
    workers, finished = conducted(always_deadly, topic_data, "runtime.retries=2", client_failure=policy)
    assert finished.rounds[0].report.failed == (2,)
    assert max(workers.trained.values()) == 3


def test_whose_pool_hangs_with_another_one_is_not_charged_for_it(topic_data: Any) -> None:
    hung: list[str] = []

    def hangs(workers: Mortal, pool: int, cohort: Any) -> Exception | None:
        if any(key.client == 2 for key in cohort.active_keys):
            hung.append(cohort.name)
            return ClientHangError("training: round 0, client 2: hangs", cohort.active_keys)
        return None

    workers, finished = conducted(hangs, topic_data, "runtime.retries=0", client_failure={"hangs": "drop"})
    assert finished.rounds[0].report.failed == (2,) and len(hung) == 1
    assert max(workers.trained.values()) == 2, "one was on the same pool"


def test_a_round_that_begins_anew_counts_nothing_twice(topic_data: Any) -> None:
    def none(workers: Mortal, pool: int, cohort: Any) -> Exception | None:
        return None

    def edge_dies_once(workers: Mortal, pool: int, cohort: Any) -> Exception | None:
        is_late = workers.trained.total() == 4 and not any("recovered" in text for text in workers.said)
        return WorkerLostError("the edge died", "edge-group-1") if is_late else None

    _, undisturbed = conducted(none, topic_data)
    workers, finished = conducted(edge_dies_once, topic_data)
    assert workers.said == [
        "the edge died; round 0 is done again from its start (1 of 3)",
        "recovered edge-group-1",
    ]
    assert same(finished.rounds[0].results, undisturbed.rounds[0].results)
    assert same(finished.rounds[0].state, undisturbed.rounds[0].state)
