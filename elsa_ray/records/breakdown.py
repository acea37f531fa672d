"""A round's seconds, bytes, joules and memory, by role of transfers, by stage of computations, and by tier.

Shapes: N activities of a timeline, T transfers that ended, V nodes, W work items.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from elsa_ray.model.memory import client_memory_bytes, edge_frozen_bytes, edge_member_bytes
from elsa_ray.model.split import Split
from elsa_ray.protocols.setting import Setting
from elsa_ray.records.work_time import ArrivedWork
from elsa_ray.world.energy import compute_joules, idle_joules, radio_joules
from elsa_ray.world.plan import ActivityKind, Floats, Ints, Plan, Stage
from elsa_ray.world.roles import Role
from elsa_ray.world.timeline import Outcome, Timeline
from elsa_ray.world.transfer_parts import PARTS, TransferParts

TIERS = ("client", "edge", "cloud")


def breakdown(timeline: Timeline, setting: Setting, parts: TransferParts, arrived: ArrivedWork) -> dict[str, Any]:
    """Return what ended in a round, in sums: ``transfers`` by role, ``computations`` by tier and stage, ``tiers``.

    What was dropped counts with the bytes that were carried and the seconds that were spent. Queues are those of work
    that has a client; the few computations of an edge for itself have none here.
    """
    radio_N = radio_joules(timeline, setting.network, setting.fleet)
    computing_N = compute_joules(timeline, setting.network, setting.fleet)
    is_compute = timeline.activities.kind == ActivityKind.COMPUTE
    started = np.isfinite(timeline.start_seconds) & np.isfinite(timeline.finish_seconds)
    rows = np.flatnonzero(is_compute & started)
    tier_V = np.array([TIERS.index(kind) if kind in TIERS else len(TIERS) for kind in setting.network.node_kinds])
    computations = _by_stage(timeline, rows, tier_V, computing_N, arrived)
    return {
        "transfers": _by_role(timeline, parts, radio_N),
        "computations": computations,
        "tiers": _by_tier(timeline, parts, tier_V, radio_N, setting, computations),
    }


def _by_role(timeline: Timeline, parts: TransferParts, radio_N: Floats) -> dict[str, dict[str, float]]:
    rows = parts.rows_T
    label_T = timeline.activities.label[rows]
    count = np.bincount(label_T, minlength=max(Role) + 1)
    num_bytes = np.zeros(len(count), np.int64)
    np.add.at(num_bytes, label_T, timeline.carried_bytes[rows])
    sums = {
        **{f"{part}_seconds": parts.seconds_T3[:, number] for number, part in enumerate(PARTS)},
        "radio_joules": radio_N[rows],
    }
    by_name = {name: np.bincount(label_T, weights=values, minlength=len(count)) for name, values in sums.items()}
    return {
        role.label: {
            "count": int(count[role]),
            "num_bytes": int(num_bytes[role]),
            **{name: float(values[role]) for name, values in by_name.items()},
        }
        for role in Role
        if count[role]
    }


def _by_stage(
    timeline: Timeline, rows: Ints, tier_V: Ints, computing_N: Floats, arrived: ArrivedWork
) -> dict[str, dict[str, dict[str, float]]]:
    activities = timeline.activities
    seconds = timeline.finish_seconds[rows] - timeline.start_seconds[rows]
    done_flops = np.where(timeline.outcome[rows] == Outcome.DONE, activities.flops[rows], 0).astype(np.float64)
    group = tier_V[activities.source[rows]] * len(Stage) + activities.label[rows]
    size = (len(TIERS) + 1) * len(Stage)
    count = np.bincount(group, minlength=size)
    flops, spent, joules = (
        np.bincount(group, weights=values, minlength=size) for values in (done_flops, seconds, computing_N[rows])
    )
    found: dict[str, dict[str, dict[str, float]]] = {}
    for number, tier in enumerate(TIERS):
        for stage in Stage:
            at = number * len(Stage) + stage
            queued = arrived.queue_seconds.get((int(stage), tier == "edge"), 0.0) if tier != "cloud" else 0.0
            if count[at] or queued:
                found.setdefault(tier, {})[stage.label] = {
                    "count": int(count[at]),
                    "flops": float(flops[at]),
                    "compute_seconds": float(spent[at]),
                    "queue_seconds": queued,
                    "compute_joules": float(joules[at]),
                }
    return found


def _by_tier(
    timeline: Timeline,
    parts: TransferParts,
    tier_V: Ints,
    radio_N: Floats,
    setting: Setting,
    computations: dict[str, dict[str, dict[str, float]]],
) -> dict[str, dict[str, float]]:
    rows = parts.rows_T
    ends = (timeline.activities.source[rows], timeline.activities.target[rows])
    carried = timeline.carried_bytes[rows]
    sent, received = (np.zeros(len(TIERS) + 1, np.int64) for _ in ends)
    for sums, end in zip((sent, received), ends, strict=True):
        np.add.at(sums, tier_V[end], carried)
    # Only clients have radios; a transfer between two of them would be counted once, as in the run's energy.
    radio = {"client": float(radio_N[rows].sum())}
    idle_V = idle_joules(timeline, setting.network, setting.fleet)
    tiers = {}
    for number, tier in enumerate(TIERS):
        stages = computations.get(tier, {}).values()
        tiers[tier] = {
            "bytes_sent": int(sent[number]),
            "bytes_received": int(received[number]),
            **{
                name: float(sum(stage[name] for stage in stages))
                for name in ("compute_seconds", "queue_seconds", "compute_joules")
            },
            "radio_joules": radio.get(tier, 0.0),
            "idle_joules": float(idle_V[tier_V == number].sum()),
        }
    return tiers


def memory_bytes(plan: Plan, setting: Setting) -> dict[str, int]:
    """Return the most memory that training takes on one client, and on one edge whose members all wait at once.

    An estimate (``elsa_ray/model/memory.py``), in fp32. Of a batch all texts are as long as the client's longest. The
    cloud's memory is not modelled.
    """
    work, protocol = plan.work, setting.config.protocol
    first = work.take(work.edge_round == 0)
    if not len(first):
        return {"client": 0, "edge": 0}
    code_W = (first.front << 40) | (first.middle << 20) | first.back
    batch_W = np.minimum(protocol.batch_size, first.num_examples)
    length_W = setting.task.longest_C[first.client]
    on_client, member_W = 0, np.zeros(len(first), np.int64)
    splits_of_edge: dict[int, list[Split]] = {}
    for code in np.unique(code_W).tolist():
        own = code_W == code
        split = Split(code >> 40, (code >> 20) & 0xFFFFF, code & 0xFFFFF)
        sizes: dict[str, Any] = {
            "batch": batch_W[own],
            "length": length_W[own],
            "num_heads": int(setting.task.backbone.config.num_attention_heads),
            "optimizer_kind": protocol.optimizer.kind,
        }
        on_client = max(on_client, int(client_memory_bytes(setting.shape, setting.layout, split, **sizes).max()))
        if split.is_cut:
            member_W[own] = edge_member_bytes(setting.shape, setting.layout, split, **sizes)
            for edge in np.unique(first.edge[own]).tolist():
                splits_of_edge.setdefault(edge, []).append(split)
    on_edge = [
        edge_frozen_bytes(setting.shape, splits) + int(member_W[first.edge == edge].sum())
        for edge, splits in splits_of_edge.items()
        if edge >= 0
    ]
    return {"client": on_client, "edge": max(on_edge, default=0)}
