"""One round as a line of ``rounds.jsonl``; everything that the summary sums up stands in these lines."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from elsa_ray.clustering.assignment import PARKED
from elsa_ray.protocols.setting import Setting
from elsa_ray.records.breakdown import breakdown, memory_bytes
from elsa_ray.records.round import Round
from elsa_ray.records.slowest import slowest_clients
from elsa_ray.records.work_time import ArrivedWork
from elsa_ray.world.critical_path import critical_path
from elsa_ray.world.energy import energy_joules
from elsa_ray.world.link_load import LinkLoad, busiest_links
from elsa_ray.world.plan import ActivityKind, Ints
from elsa_ray.world.roles import Role
from elsa_ray.world.timeline import Timeline
from elsa_ray.world.transfer_parts import TransferParts

STEP_CONTENT = (
    Role.ACTIVATION_UP,
    Role.ACTIVATION_DOWN,
    Role.GRADIENT_UP,
    Role.GRADIENT_DOWN,
    Role.KEY,
    Role.BASIS,
)
"""What crosses the cuts in training steps, with the keys and bases that its codecs need."""


def round_line(round_: Round, setting: Setting, arrived: ArrivedWork, parts: TransferParts) -> dict[str, Any]:
    """Return a round in plain values.

    ``simulated_seconds`` and ``num_bytes`` are those of the run up to the round's end; ``bytes_by_role``,
    ``bytes_uncompressed``, energy, work and wall time are the round's own. Clients are indices.

    Args:
        round_: the round.
        setting: the run's circumstances.
        arrived: its work that is over.
        parts: of its transfers.
    """
    report, timeline = round_.report, round_.timeline
    score = report.score
    path = critical_path(round_.plan, timeline, parts, setting.network)
    energy = energy_joules(timeline, setting.network, setting.fleet)
    is_step = (timeline.activities.kind == ActivityKind.TRANSFER) & np.isin(timeline.activities.label, STEP_CONTENT)
    content = uncompressed_bytes(timeline)
    return {
        "round": report.round_index,
        "stop_reason": round_.stop_reason,
        "begin_simulated_seconds": timeline.begin_seconds,
        "simulated_seconds": report.simulated_seconds,
        "num_bytes": report.num_bytes,
        "bytes_by_role": bytes_by_role(timeline),
        "bytes_uncompressed": int(content.sum()),
        "step_bytes": int(timeline.carried_bytes[is_step].sum()),
        "step_bytes_uncompressed": int(content[is_step].sum()),
        "simulated_energy_joules": energy,
        "tested": score is not None,
        "accuracy": score.accuracy if score else None,
        "loss": score.loss if score else None,
        "macro_f1": score.macro_f1 if score else None,
        "perplexity": score.perplexity if score else None,
        "accuracy_over_cuts": report.score_over_cuts.accuracy if report.score_over_cuts else None,
        "loss_over_cuts": report.score_over_cuts.loss if report.score_over_cuts else None,
        "train_loss": report.train_loss,
        "work_arrived": len(arrived.keys),
        "work_dropped": len(timeline.dropped),
        "work_skipped": len(timeline.skipped),
        "work_late": len(timeline.pending),
        "dropped_because": {cause.label: count for cause, count in sorted(Counter(timeline.causes).items())},
        "incidents": timeline.incidents.counts(),
        "simulated_seconds_by_activity": arrived.by_kind(),
        "transfer_seconds_by_part": arrived.by_part(),
        "waited_for": path.seconds,
        "waited_for_clients": list(path.clients),
        "breakdown": breakdown(timeline, setting, parts, arrived),
        "memory_bytes": memory_bytes(round_.plan, setting),
        "slowest_clients": slowest_clients(arrived, timeline, setting.network),
        "links": [_link(load) for load in busiest_links(timeline, parts, setting.network)],
        "participated": list(report.participated),
        "dropped": list(report.dropped),
        "late": list(report.late),
        "failed": list(report.failed),
        "failures": _failures(round_),
        "parked": list(round_.plan.parked_clients),
        "excluded": list(report.excluded),
        "moved": {str(client): _node_name(setting, node) for client, node in report.moved},
        "splits": _splits(round_),
        "cohorts": {"count": len(report.cohort_sizes), "members": sum(report.cohort_sizes)},
        "wall_seconds": dict(round_.wall_seconds),
    }


def _link(load: LinkLoad) -> dict[str, Any]:
    profile = [round(value, 4) for value in load.profile_B.tolist()]
    return {"name": load.name, "num_bytes": load.num_bytes, "utilisation": load.utilisation, "profile": profile}


def _failures(round_: Round) -> list[dict[str, Any]]:
    """Return of each work item that failed, why."""
    reasons = {failure.key: failure.reason for failure in round_.results.failures}
    return [
        {**key._asdict(), "reason": reasons.get(key, "its adapters are not finite")} for key in round_.results.failed
    ]


def _node_name(setting: Setting, node: int) -> str | None:
    return setting.network.node_names[node] if node != PARKED else None


def _splits(round_: Round) -> dict[str, int]:
    """Return the number of work items of each split, such as ``{"2+2": 24}``."""
    work = round_.plan.work
    counts = Counter(zip(work.front.tolist(), work.middle.tolist(), work.back.tolist(), strict=True))
    return {f"{front}+{back}": count for (front, middle, back), count in sorted(counts.items()) if middle}


def bytes_by_role(timeline: Timeline) -> dict[str, int]:
    """Return what the links carried of the transfers that ended, by role; roles without a byte are left out."""
    is_transfer = timeline.activities.kind == ActivityKind.TRANSFER
    sums = np.zeros(max(Role) + 1, np.int64)
    np.add.at(sums, timeline.activities.label[is_transfer], timeline.carried_bytes[is_transfer])
    return {role.label: int(sums[role]) for role in Role if sums[role]}


def uncompressed_bytes(timeline: Timeline, rows: Ints | slice = slice(None)) -> Ints:
    """Return for some activities the same content in fp32: of a broken-off transfer the share that was carried."""
    activities = timeline.activities
    carried_bytes, num_bytes = timeline.carried_bytes[rows], activities.num_bytes[rows]
    content = np.where(activities.kind[rows] == ActivityKind.TRANSFER, activities.uncompressed_bytes[rows], 0)
    parts = np.flatnonzero(carried_bytes != num_bytes)
    share = carried_bytes[parts] / np.maximum(num_bytes[parts], 1)
    content[parts] = np.rint(content[parts] * share).astype(np.int64)
    return content
