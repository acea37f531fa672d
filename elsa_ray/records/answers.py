"""A run's figures as tables of text: where the time went, by role, stage and tier, and the slowest clients.

The terminal and the report show the same tables; see ``breakdown`` and ``slowest_clients`` in docs/records.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elsa_ray.records.human import NOTHING, human_bytes, human_count, human_joules, human_seconds, human_share

Figures = Mapping[str, Any]

CAUSES = ("client_compute", "edge_compute", "queueing", "latency", "bandwidth", "sharing", "waiting")
"""Where time goes, in the words of people; ``bandwidth`` is what the bytes take on idle links."""

_CAUSES_OF_ROUNDS = {
    "queueing": ("client_queue", "edge_queue"),
    "waiting": ("deadline", "late_work", "other"),
}


@dataclass(frozen=True)
class TextTable:
    """A table: texts in the first ``num_texts`` columns, figures in the others; a line below says what they are."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    num_texts: int = 1


def all_tables(figures: Figures) -> list[TextTable]:
    """Return all tables of a run's figures that have a row."""
    tables = [
        where_time_goes(figures),
        transfers_by_role(figures),
        computations_by_stage(figures),
        by_tier(figures),
        slowest(figures),
    ]
    return [table for table in tables if table.rows]


def short_tables(figures: Figures) -> list[TextTable]:
    """Return those that answer why it took so long."""
    return [table for table in (where_time_goes(figures), slowest(figures)) if table.rows]


def seconds_of_rounds(figures: Figures) -> dict[str, float]:
    """Return what the rounds waited for, by CAUSES."""
    waited_for = figures["breakdown"]["rounds_waited_for"]
    return {
        cause: sum(waited_for.get(kind, 0.0) for kind in _CAUSES_OF_ROUNDS.get(cause, (cause,))) for cause in CAUSES
    }


def where_time_goes(figures: Figures) -> TextTable:
    """Return the time of a client that took part, and that of the rounds, by cause."""
    mean = figures["breakdown"]["where_time_goes"]["mean_per_client"]
    rounds = seconds_of_rounds(figures)
    rows = [
        (
            _words(cause),
            _seconds(mean[cause]),
            _share(mean, cause),
            _seconds(rounds[cause]),
            _share(rounds, cause),
        )
        for cause in CAUSES
        if mean[cause] or rounds[cause]
    ]
    note = (
        "A client: all of its time from opening to gather, the mean of those that took part. The rounds: the chain of "
        "activities that each round's end waited for. Bandwidth: bytes on idle links; sharing: what others on the "
        "links, a slower link or sending again added."
    )
    header = ("where the time goes", "a client", "", "the rounds", "")
    return TextTable("Where simulated time goes", header, tuple(rows), note)


def transfers_by_role(figures: Figures) -> TextTable:
    """Return number, bytes and mean time of the transfers of each role."""
    rows = []
    for role, own in figures["breakdown"].get("transfers", {}).items():
        count = own["count"]
        parts = [_seconds(own[f"{part}_seconds"] / count) for part in ("latency", "bandwidth", "sharing")]
        joules = human_joules(own["radio_joules"])
        rows.append((_words(role), human_count(count), human_bytes(own["num_bytes"]), *parts, joules))
    note = "Latency, bandwidth and sharing: of a transfer, on average. Joules: the clients' radios, of all."
    header = ("transfers", "number", "bytes", "latency", "bandwidth", "sharing", "energy")
    return TextTable("Transfers by role", header, tuple(rows), note)


def computations_by_stage(figures: Figures) -> TextTable:
    """Return number, FLOPs and mean time of the computations of each tier and stage."""
    rows = []
    for tier, stages in figures["breakdown"].get("computations", {}).items():
        for stage, own in stages.items():
            count = max(own["count"], 1)
            each = [_seconds(own[f"{what}_seconds"] / count) for what in ("compute", "queue")]
            flops, joules = human_count(own["flops"] / count), human_joules(own["compute_joules"])
            rows.append((tier, _words(stage), human_count(own["count"]), flops, *each, joules))
    note = "FLOPs, seconds and queue: of a computation, on average. Joules: of all."
    header = ("tier", "computations", "number", "FLOPs", "seconds", "queue", "energy")
    return TextTable("Computations by tier and stage", header, tuple(rows), note, num_texts=2)


def by_tier(figures: Figures) -> TextTable:
    """Return seconds, bytes, joules and memory of clients, edges and the cloud."""
    memory = figures["breakdown"]["memory_bytes"]
    rows = []
    for tier, own in figures["breakdown"].get("tiers", {}).items():
        seconds = [_seconds(own[f"{what}_seconds"]) for what in ("compute", "queue")]
        num_bytes = [human_bytes(own[f"bytes_{way}"]) for way in ("sent", "received")]
        joules = human_joules(own["compute_joules"] + own["radio_joules"] + own["idle_joules"])
        rows.append((tier, *seconds, *num_bytes, joules, human_bytes(memory.get(tier))))
    note = (
        "Sums over all nodes of a tier. Memory: what training takes in fp32 on the client and on the edge that need "
        "most, an estimate; the cloud computes in no time, and its memory is not modelled."
    )
    header = ("tier", "computing", "queueing", "sent", "received", "energy", "memory")
    return TextTable("By tier", header, tuple(rows), note)


def slowest(figures: Figures) -> TextTable:
    """Return the slowest clients with the shares of what took their time."""
    rows = []
    for entry in figures["slowest_clients"]:
        total = entry["seconds"] or 1.0
        compute = entry["client_compute"] + entry["edge_compute"]
        shares = [
            human_percent(seconds / total)
            for seconds in (
                compute,
                entry["queueing"],
                entry["latency"],
                entry["bandwidth"],
                entry["sharing"],
                entry["waiting_for_model"],
            )
        ]
        dropped = " †" if entry["dropped_because"] else ""
        place = (entry["name"], entry["edge"] or NOTHING, str(entry["round"] + 1))
        rows.append((*place, _seconds(entry["seconds"]) + dropped, *shares))
    note = (
        "Each client's longest work item: from the opening of its edge round until it has arrived, or was dropped (†). "
        "Shares of its time: computing, queueing, latency, bandwidth (its bytes on idle links), sharing of links, "
        "waiting for the model."
    )
    header = ("client", "edge", "round", "time", "comp", "queue", "lat", "bandw", "share", "wait")
    return TextTable("The slowest clients, and why", header, tuple(rows), note, num_texts=2)


def human_percent(share: float) -> str:
    """Return a share in whole percent, without a space so that ten columns fit; less than half of one as a dash."""
    return f"{100 * share:.0f}%" if share >= 0.005 else NOTHING


def _share(seconds: Mapping[str, float], cause: str) -> str:
    total = sum(seconds[other] for other in CAUSES)
    return human_share(seconds[cause] / total) if seconds[cause] else NOTHING


def _seconds(seconds: float) -> str:
    return human_seconds(seconds) if seconds else NOTHING


def _words(name: str) -> str:
    return name.replace("_", " ")
