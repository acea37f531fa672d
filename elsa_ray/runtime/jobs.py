"""Turns a plan and its timeline into work for hosts and pools: pure functions, no worker in sight.

A host is what holds models and gathers: the cloud, or an edge group (a fixed set of edges, by config).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from elsa_ray.aggregation.staleness import staleness_discount
from elsa_ray.codecs.wire import HEADER_BYTES
from elsa_ray.model.cost import blocks_num_bytes, frozen_num_bytes
from elsa_ray.model.split import Part, Split
from elsa_ray.protocols.frozen import edge_parts
from elsa_ray.protocols.local_work import (
    FP32_BYTES,
    adapter_bytes,
    calibration_sizes,
    planned_calibration_states,
    planned_step_bytes,
    upload_bytes,
)
from elsa_ray.protocols.setting import Setting
from elsa_ray.training.cohort import STEP_ROLES, Cohort, Member, VersionKey
from elsa_ray.world.plan import ActivityKind, Plan, WorkItems, WorkKey
from elsa_ray.world.roles import Role
from elsa_ray.world.timeline import Outcome, Timeline

CLOUD = "cloud"


@dataclass(frozen=True)
class GatherJob:
    """An aggregation at a node.

    Attributes:
        node: where.
        edge_round: its ordinal there.
        arrivals: the work that it takes, in client order.
        discounts: factor of the weight of each, for staleness.
    """

    node: int
    edge_round: int
    arrivals: tuple[WorkKey, ...]
    discounts: tuple[float, ...]


@dataclass(frozen=True)
class StageJob:
    """One edge round of a host: cohorts to train, then gathers."""

    cohorts: tuple[Cohort, ...]
    gathers: tuple[GatherJob, ...]


@dataclass(frozen=True)
class TableJob:
    """What an edge tells the cloud of its clients at the end of the round.

    Attributes:
        node: the edge.
        clients: those with work there, planned in this round or late from an earlier one, in order.
        fingerprint_bytes, trust_bytes: sizes of the two tables; 0 for one that is not sent.
    """

    node: int
    clients: tuple[int, ...]
    fingerprint_bytes: int
    trust_bytes: int


@dataclass(frozen=True)
class NoticeJob:
    """What the cloud tells a node at the start of the round: an edge its clients' standings, or a client its new edge.

    Attributes:
        node: whom.
        clients: of whom it tells.
        new_edge: the edge's node; None for standings.
        num_bytes: of the message.
    """

    node: int
    clients: tuple[int, ...]
    new_edge: int | None
    num_bytes: int


@dataclass(frozen=True)
class ProbeJob:
    """The probe set goes to ``count`` nodes that lack it, ``num_bytes`` to each."""

    num_bytes: int
    count: int


@dataclass(frozen=True)
class HostJob:
    """A host's part of a global round.

    Attributes:
        host: its name.
        nodes: the edges that get the global model and give theirs back; none for the cloud itself.
        stages: in order.
        kept_versions: models that work still under way starts from.
        tables: what its edges tell the cloud.
    """

    host: str
    nodes: tuple[int, ...]
    stages: tuple[StageJob, ...]
    kept_versions: tuple[VersionKey, ...]
    tables: tuple[TableJob, ...] = ()


@dataclass(frozen=True)
class FrozenJob:
    """Frozen weights that the cloud sent to ``count`` nodes in this round, ``num_bytes`` to each.

    All of some parts, or, where ``num_blocks`` is given, so many blocks; one block is as large as the other.
    """

    split: Split
    parts: tuple[Part, ...]
    num_blocks: int | None
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
        probes: the probe set, on its way to nodes that lack it.
        notices: what the cloud tells edges and clients.
        tested_split: the cut at which the new model is tested with its codecs as well; None for not at all.
    """

    round_index: int
    hosts: tuple[HostJob, ...]
    trunk_bytes: int
    frozen: tuple[FrozenJob, ...]
    probes: tuple[ProbeJob, ...] = ()
    notices: tuple[NoticeJob, ...] = ()
    tested_split: Split | None = None


def host_of_node(setting: Setting, node: int) -> str:
    """Return the name of the host of an edge or cloud node.

    Raises:
        ValueError: an edge shall compute in a protocol that says that its edges do not.
    """
    if node == setting.cloud:
        return CLOUD
    protocol = setting.config.protocol
    if not protocol.edges_compute:
        raise ValueError(f"{type(protocol).__name__}.edges_compute is False, and yet the plan has work at an edge")
    position = setting.network.edges.tolist().index(node)
    edges_per_group = setting.config.numerics.edges_per_group
    assert isinstance(edges_per_group, int), "auto is resolved before a run"
    return f"edge-group-{position // edges_per_group}"


def host_names(setting: Setting) -> list[str]:
    """Return the names of all edge groups, in order; none where edges do not compute."""
    if not setting.config.protocol.edges_compute:
        return []
    return list(dict.fromkeys(host_of_node(setting, node) for node in setting.network.edges.tolist()))


def pool_name(pool: int) -> str:
    """Return the name of a client pool."""
    return f"pool-{pool}"


def round_job(setting: Setting, plan: Plan, timeline: Timeline) -> RoundJob:
    """Return what survives of a plan, as work: only what has arrived at a gather is trained."""
    gathers = [
        _gather_job(setting, plan, timeline, g)
        for g in range(len(plan.gathers))
        if int(plan.gathers.node[g]) not in timeline.lost_nodes
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
        tables = tuple(table for table in _tables(setting, plan, timeline) if table.node in nodes)
        hosts.append(HostJob(host, nodes, stages, tuple(sorted(kept_versions.get(host, ()))), tables))
    trunk_bytes, _ = adapter_bytes(setting, setting.layout.tensors)
    return RoundJob(
        plan.round_index,
        tuple(hosts),
        trunk_bytes,
        _frozen_jobs(setting, timeline),
        _probe_jobs(timeline),
        _notices(setting, timeline),
        _tested_split(setting, plan),
    )


def _gather_job(setting: Setting, plan: Plan, timeline: Timeline, gather: int) -> GatherJob:
    node, edge_round = int(plan.gathers.node[gather]), int(plan.gathers.edge_round[gather])
    edge_rounds, rule = getattr(setting.config.protocol, "edge_rounds", 1), setting.config.world.round_policy.staleness
    discounts = []
    for key in timeline.arrivals[gather]:
        staleness = (plan.round_index - key.round_index) * edge_rounds + edge_round - key.edge_round
        discounts.append(staleness_discount(rule, staleness))
    return GatherJob(node, edge_round, timeline.arrivals[gather], tuple(discounts))


def _tested_split(setting: Setting, plan: Plan) -> Split | None:
    """Return the most frequent split of a round, of equal ones the first; None where models are tested whole only."""
    work = plan.work
    counts = Counter(zip(work.front.tolist(), work.middle.tolist(), work.back.tolist(), strict=True))
    splits = [Split(*numbers) for numbers, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    cut_ones = [split for split in splits if split.is_cut]
    return cut_ones[0] if setting.config.evaluation.over_cuts and cut_ones else None


def _tables(setting: Setting, plan: Plan, timeline: Timeline) -> list[TableJob]:
    """Return what edges tell the cloud: messages of no work item."""
    activities = plan.activities
    is_table = (activities.kind == ActivityKind.TRANSFER) & (activities.target == setting.cloud)
    is_table &= np.isin(activities.label, (Role.FINGERPRINT, Role.CONTROL)) & (activities.work < 0)
    sizes: dict[int, Counter[int]] = {}
    for row in np.flatnonzero(is_table).tolist():
        own = sizes.setdefault(int(activities.source[row]), Counter())
        own[int(activities.label[row])] += int(activities.num_bytes[row])
    return [
        TableJob(node, _clients_of(timeline.work, node), own[Role.FINGERPRINT], own[Role.CONTROL])
        for node, own in sorted(sizes.items())
    ]


def _notices(setting: Setting, timeline: Timeline) -> tuple[NoticeJob, ...]:
    """Return what the cloud has told edges and clients in this timeline; a client's notice is of its work item."""
    activities, work, notices = timeline.activities, timeline.work, []
    is_notice = (activities.kind == ActivityKind.TRANSFER) & (activities.label == Role.CONTROL)
    is_notice &= (activities.source == setting.cloud) & (timeline.outcome == Outcome.DONE)
    for row in np.flatnonzero(is_notice).tolist():
        node, item, num_bytes = (
            int(column[row]) for column in (activities.target, activities.work, activities.num_bytes)
        )
        if item < 0:
            notices.append(NoticeJob(node, _clients_of(work, node), None, num_bytes))
        else:
            notices.append(NoticeJob(node, (int(work.client[item]),), int(work.edge[item]), num_bytes))
    return tuple(notices)


def _clients_of(work: WorkItems, node: int) -> tuple[int, ...]:
    """Return the clients with work at an edge, in order."""
    clients: list[int] = np.unique(work.client[work.edge == node]).tolist()
    return tuple(clients)


def _probe_jobs(timeline: Timeline) -> tuple[ProbeJob, ...]:
    """Return the probe sets that arrived in this timeline; those of work items are clients' states, not the set."""
    activities = timeline.activities
    arrived = (activities.kind == ActivityKind.TRANSFER) & (activities.label == Role.PROBE)
    arrived &= (timeline.outcome == Outcome.DONE) & (activities.work < 0)
    counts = Counter(activities.num_bytes[arrived].tolist())
    return tuple(ProbeJob(num_bytes, count) for num_bytes, count in sorted(counts.items()))


def _frozen_jobs(setting: Setting, timeline: Timeline) -> tuple[FrozenJob, ...]:
    """Return the frozen weights that arrived in this timeline, once for each content."""
    activities, work = timeline.activities, timeline.work
    arrived = (activities.kind == ActivityKind.TRANSFER) & (activities.label == Role.WEIGHTS_DOWN)
    counts: Counter[tuple[Split, tuple[Part, ...], int | None, int]] = Counter()
    block_bytes = blocks_num_bytes(setting.shape, 1, FP32_BYTES)
    for row in np.flatnonzero(arrived & (timeline.outcome == Outcome.DONE)).tolist():
        is_edge = int(activities.client[row]) < 0
        of_edge = np.flatnonzero(work.edge == activities.target[row])
        item = int(of_edge[0]) if is_edge else int(activities.work[row])
        split = Split(int(work.front[item]), int(work.middle[item]), int(work.back[item]))
        parts = edge_parts(setting) if is_edge else (Part.FRONT, Part.BACK)
        num_bytes = int(activities.num_bytes[row])
        everything = HEADER_BYTES + sum(frozen_num_bytes(setting.shape, split, part, FP32_BYTES) for part in parts)
        num_blocks = None if num_bytes == everything else (num_bytes - HEADER_BYTES) // block_bytes
        counts[split, parts, num_blocks, num_bytes] += 1
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
    def adapter_sizes(split: Split) -> tuple[int, int]:
        held = setting.layout.part(split, Part.FRONT, Part.BACK)
        return adapter_bytes(setting, held)[0], upload_bytes(setting, held)[0]

    calibrations = calibration_sizes(setting)

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
                planned_adapter_bytes=adapter_sizes(split),
                calibrates=bool(work.calibrates[row]),
                planned_calibrations=calibrations,
                planned_calibration_states=planned_calibration_states(setting, key) if work.calibrates[row] else 0,
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
