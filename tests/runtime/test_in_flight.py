"""Cohorts are pipelined between pools and edges, and no pool has more of them under way than it may."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from elsa_ray.experiment import rounds
from elsa_ray.prepare import load_backbone, make_recipe, make_tripartite, prepare
from elsa_ray.runtime.executor import ConductedExecutor, InlineWorkers
from tests.runtime.runs import Finished, same_adapters, small_config


class Watched(InlineWorkers):
    """Notes how many cohorts are under way in each pool, while each takes its time."""

    num_pools = 2
    in_flight = 2

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.under_way: Counter[int] = Counter()
        self.most: Counter[int] = Counter()
        self.most_together = 0

    async def train(self, pool: int, *arguments: Any) -> Any:
        self.under_way[pool] += 1
        self.most |= self.under_way
        self.most_together = max(self.most_together, self.under_way.total())
        for _ in range(50):
            await asyncio.sleep(0)
        trained = await super().train(pool, *arguments)
        self.under_way[pool] -= 1
        return trained


def run_on(workers_of: type[InlineWorkers], topic_data: Path) -> tuple[Any, Finished]:
    prepared = prepare(small_config(topic_data, "numerics.cohort=1", "protocol.rounds=1", "protocol.local_steps=1"))
    model, adapters = load_backbone(prepared)
    workers = workers_of(prepared.setting, make_tripartite(prepared, model), make_recipe(prepared))
    with ConductedExecutor(prepared.setting, workers) as executor:
        return workers, Finished(prepared, list(rounds(prepared, prepared.protocol.start(adapters), executor)))


def test_pools_are_kept_busy_up_to_their_bound_and_not_beyond(topic_data: Path) -> None:
    """Six clients, each a cohort, at two edges: places for two in each of two pools."""
    watched, finished = run_on(Watched, topic_data)
    assert watched.most == {0: 2, 1: 2}
    assert watched.most_together == 4
    assert not any(watched.under_way.values())
    assert same_adapters(finished, run_on(InlineWorkers, topic_data)[1])
