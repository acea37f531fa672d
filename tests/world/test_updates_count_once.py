"""No client's update is lost or counted twice, under any round policy: an identity on ids and weights of real runs.

All that edges and the cloud average is overheard: the keys, and the weight of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from elsa_ray.aggregation.weighted import weighted_mean
from elsa_ray.model.adapters import Adapters
from elsa_ray.runtime import cloud, host
from elsa_ray.runtime.jobs import GatherJob
from elsa_ray.world.plan import WorkKey
from tests.world.towns import TownRun, only_plan, town_config, train

CITY = {"kind": "hierarchical", "clients": 6, "edges": 2}
SLOW = {"faults": {"stragglers": {"kind": "fixed", "share": 0.4, "factor": 15}}}
STALENESS = {"kind": "polynomial", "exponent": 1.0}
KEEP, DROP = {"late": "keep", "staleness": STALENESS}, {"late": "drop"}

POLICIES: dict[str, dict[str, Any]] = {
    "wait for all": {},
    "deadline, late dropped": {"deadline_seconds": "soon", **DROP},
    "deadline, late kept": {"deadline_seconds": "soon", **KEEP},
    "quorum, late dropped": {"quorum": 0.5, **DROP},
    "quorum, late kept": {"quorum": 0.5, **KEEP},
    "more than wanted, late dropped": {"over_sample": 1.5, **DROP},
    "more than wanted, late kept": {"over_sample": 1.5, **KEEP},
}

Mean = tuple[tuple[WorkKey, ...], tuple[float, ...]]
"""What an edge has averaged, and with which weights; no keys: what the cloud has."""


def overhear(monkeypatch: pytest.MonkeyPatch) -> list[Mean]:
    """Return a list into which all means of a run to come are written, in order."""
    means: list[Mean] = []
    arrivals: list[tuple[WorkKey, ...]] = [()]
    gather = host.ModelHost.gather

    def spied_gather(self: host.ModelHost, round_index: int, job: GatherJob) -> None:
        arrivals.append(tuple(job.arrivals))
        gather(self, round_index, job)
        arrivals.pop()

    def spied_mean(adapter_sets: Sequence[Adapters], weights: Sequence[float]) -> Adapters:
        means.append((arrivals[-1], tuple(weights)))
        return weighted_mean(adapter_sets, weights)

    monkeypatch.setattr(host.ModelHost, "gather", spied_gather)
    for module in (host, cloud):
        monkeypatch.setattr(module, "weighted_mean", spied_mean)
    return means


def weight_of(run: TownRun, key: WorkKey, round_index: int) -> float:
    """Return what an update counts: the client's examples, and less by the rounds that it is late."""
    examples = len(run.prepared.setting.task.partition[key.client])
    return examples / (1 + round_index - key.round_index)


@pytest.mark.parametrize("protocol", ["elsa", "fedavg"])
@pytest.mark.parametrize("name", POLICIES)
def test_each_update_counts_once_with_its_weight(
    name: str, protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = dict(POLICIES[name])
    section = {"name": protocol, "rounds": 4, "local_steps": 1}
    if "over_sample" in policy:
        section["participation"] = 0.67
    if "deadline_seconds" in policy:
        usual = only_plan(town_config(tmp_path, topology=CITY, protocol=section)).timelines[0]
        policy["deadline_seconds"] = 1.2 * usual.end_seconds
    config = town_config(tmp_path, topology=CITY, protocol=section, world={**SLOW, "round_policy": policy})
    means = overhear(monkeypatch)
    run = train(config)

    counted: Counter[WorkKey] = Counter()
    for each in run.rounds:
        index, arrived = each.report.round_index, [keys for keys in each.timeline.arrivals if keys]
        own, means = means[: len(arrived)], means[len(arrived) :]
        assert sorted(keys for keys, _ in own) == sorted(arrived)
        for keys, weights in own:
            counted.update(keys)
            assert weights == pytest.approx([weight_of(run, key, index) for key in keys], rel=1e-12)
        if protocol == "elsa" and own:
            (keys, of_edges), means = means[0], means[1:]
            taken = sorted(sum(weights) for _, weights in own)
            assert keys == () and sorted(weight for weight in of_edges if weight) == pytest.approx(taken, rel=1e-12)
    assert not means, "and nothing else is averaged"

    planned = Counter(each.plan.work.key(row) for each in run.rounds for row in range(len(each.plan.work)))
    ended = Counter(key for timeline in run.timelines for key in (*timeline.dropped, *timeline.skipped))
    pending = Counter(run.timelines[-1].pending)
    waiting = Counter(key for _, key in run.rounds[-1].world_state.inbox)
    assert set(planned.values()) == {1}
    assert counted + ended + pending + waiting == planned
    late = [
        key
        for each in run.rounds
        for keys in each.timeline.arrivals
        for key in keys
        if key.round_index < each.report.round_index
    ]
    assert bool(late) == ("kept" in name) and bool(ended) == ("dropped" in name), "the policy makes a difference"
