"""Turns a plan and its timeline into work for hosts and pools: pure functions, no worker in sight.

A host is what holds models and gathers: the cloud, or an edge group (a fixed set of edges, by config).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from elsa_ray.model.split import Part, Split
from elsa_ray.protocols.local_work import adapter_bytes, planned_step_bytes
from elsa_ray.protocols.setting import Setting
from elsa_ray.training.cohort import STEP_ROLES, Cohort, Member, VersionKey
from elsa_ray.world.plan import ActivityKind, Plan, WorkKey
from elsa_ray.world.roles import Role
from elsa_ray.world.timeline import Outcome, Timeline

CLOUD = "cloud"


@dataclass(frozen=True)
class GatherJob:
    """An aggregation at a node: the work that it takes, in client order."""

    node: int
    edge_round: int
    arrivals: tuple[WorkKey, ...]


@dataclass(frozen=True)
class StageJob:
    """One edge round of a host: cohorts to train, then gathers."""

    cohorts: tuple[Cohort, ...]
    gathers: tuple[GatherJob, ...]


@dataclass(frozen=True)
class HostJob:
    """A host's part of a global round.

    Attributes:
        host: its name.
        nodes: the edges that get the global model and give theirs back; none for the cloud itself.
        stages: in order.
        kept_versions: models that work still under way starts from.
    """

    host: str
    nodes: tuple[int, ...]
    stages: tuple[StageJob, ...]
    kept_versions: tuple[VersionKey, ...]


@dataclass(frozen=True)
class FrozenJob:
    """Frozen weights of some parts that the cloud sent to ``count`` nodes in this round, ``num_bytes`` to each."""

    split: Split
    parts: tuple[Part, ...]
    num_bytes: int
    count: int


@dataclass(frozen=True)
class RoundJob:
    """All hosts' parts of a round.

    Attributes:
        round_index: which.
        hosts: their parts.
        trunk_bytes: size of a whole adapter set between edge and cloud.
        frozen: weights that went to nodes that lacked them.
    """

    round_index: int
    hosts: tuple[HostJob, ...]
    trunk_bytes: int
    frozen: tuple[FrozenJob, ...]


def host_of_node(setting: Setting, node: int) -> str:
    """Return the name of the host of an edge or cloud node."""
    if node == setting.cloud:
        return CLOUD
    position = setting.network.edges.tolist().index(node)
    edges_per_group = setting.config.numerics.edges_per_group
    assert isinstance(edges_per_group, int), "auto is resolved before a run"
    return f"edge-group-{position // edges_per_group}"


def host_names(setting: Setting) -> list[str]:
    """Return the names of all edge groups, in order."""
    return list(dict.fromkeys(host_of_node(setting, node) for node in setting.network.edges.tolist()))


def round_job(setting: Setting, plan: Plan, timeline: Timeline) -> RoundJob:
    """Return what survives of a plan, as work: only what has arrived at a gather is trained."""
    gathers = [
        GatherJob(int(plan.gathers.node[g]), int(plan.gathers.edge_round[g]), timeline.arrivals[g])
        for g in range(len(plan.gathers))
    ]
    members = _members(setting, timeline, gathers)
    gathers_of_host: dict[str, list[GatherJob]] = {}
    for gather in gathers:
        gathers_of_host.setdefault(host_of_node(setting, gather.node), []).append(gather)
    kept_versions = _kept_versions(setting, timeline)
    hosts = []
    for host, own in gathers_of_host.items():
        # The cloud's last gather in a split protocol takes edges, not clients: nothing to train for it.
        ordinals = sorted({gather.edge_round for gather in own})
        stages = tuple(_stage(setting, host, [g for g in own if g.edge_round == e], members) for e in ordinals)
        nodes = tuple(dict.fromkeys(gather.node for gather in own if gather.node != setting.cloud))
        hosts.append(HostJob(host, nodes, stages, tuple(sorted(kept_versions.get(host, ())))))
    trunk_bytes, _ = adapter_bytes(setting, setting.layout.tensors)
    return RoundJob(plan.round_index, tuple(hosts), trunk_bytes, _frozen_jobs(setting, timeline))


def _frozen_jobs(setting: Setting, timeline: Timeline) -> tuple[FrozenJob, ...]:
    """Return the frozen weights that arrived in this timeline, once for each content."""
    activities, work = timeline.activities, timeline.work
    arrived = (activities.kind == ActivityKind.TRANSFER) & (activities.label == Role.WEIGHTS_DOWN)
    counts: Counter[tuple[Split, tuple[Part, ...], int]] = Counter()
    for row in np.flatnonzero(arrived & (timeline.outcome == Outcome.DONE)).tolist():
        is_edge = int(activities.client[row]) < 0
        of_edge = np.flatnonzero(work.edge == activities.target[row])
        item = int(of_edge[0]) if is_edge else int(activities.work[row])
        split = Split(int(work.front[item]), int(work.middle[item]), int(work.back[item]))
        parts = (Part.MIDDLE,) if is_edge else (Part.FRONT, Part.BACK)
        counts[split, parts, int(activities.num_bytes[row])] += 1
    return tuple(FrozenJob(*content, count) for content, count in counts.items())


def _stage(
    setting: Setting, host: str, gathers: Sequence[GatherJob], members: dict[WorkKey, tuple[Member, Split]]
) -> StageJob:
    keys = sorted(key for gather in gathers for key in gather.arrivals)
    cohorts: list[Cohort] = []
    # Clients of one cohort share split and learning rate, hence the round that they started in.
    groups = sorted({(members[key][1], key.round_index) for key in keys})
    for split, round_index in groups:
        alike = [members[key][0] for key in keys if members[key][1] == split and key.round_index == round_index]
        size = setting.config.numerics.cohort
        for start in range(0, len(alike), size):
            name = f"{host}/{gathers[0].edge_round}/{len(cohorts)}"
            cohorts.append(Cohort(name, tuple(alike[start : start + size]), split))
    return StageJob(tuple(cohorts), tuple(gathers))


def _members(setting: Setting, timeline: Timeline, gathers: Sequence[GatherJob]) -> dict[WorkKey, tuple[Member, Split]]:
    rows = {timeline.work.key(row): row for row in range(len(timeline.work))}

    @cache
    def adapter_size(split: Split) -> int:
        size, _ = adapter_bytes(setting, setting.layout.part(split, Part.FRONT, Part.BACK))
        return size

    members = {}
    for gather in gathers:
        for key in gather.arrivals:
            row, work = rows[key], timeline.work
            split = Split(int(work.front[row]), int(work.middle[row]), int(work.back[row]))
            step_bytes = (
                planned_step_bytes(setting, setting.config.protocol, key)
                if split.is_cut
                else np.zeros((0, len(STEP_ROLES)), np.int64)
            )
            member = Member(
                key=key,
                node=gather.node,
                version=VersionKey(key.round_index, key.edge_round, gather.node),
                num_examples=int(work.num_examples[row]),
                num_steps=int(work.num_steps[row]),
                planned_step_bytes=step_bytes,
                planned_adapter_bytes=(adapter_size(split), adapter_size(split)),
            )
            members[key] = (member, split)
    return members


def _kept_versions(setting: Setting, timeline: Timeline) -> dict[str, set[VersionKey]]:
    """Return for each host the versions of work that goes on after this round, or arrived after its last gather."""
    gathered = {key for keys in timeline.arrivals for key in keys}
    gone = gathered | {*timeline.dropped, *timeline.skipped}
    versions: dict[str, set[VersionKey]] = {}
    for row, edge in enumerate(timeline.work.edge.tolist()):
        key = timeline.work.key(row)
        if key not in gone:
            node = edge if edge >= 0 else setting.cloud
            version = VersionKey(key.round_index, key.edge_round, node)
            versions.setdefault(host_of_node(setting, node), set()).add(version)
    return versions
