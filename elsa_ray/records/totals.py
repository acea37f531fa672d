"""Sums over the rounds of a run, folded from the lines of ``rounds.jsonl`` and from nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from elsa_ray.records.slowest import merged_slowest
from elsa_ray.records.work_time import TIME_KINDS
from elsa_ray.world.critical_path import PATH_KINDS
from elsa_ray.world.transfer_parts import PARTS

CLIENT_SETS = ("participated", "dropped", "failed", "parked", "excluded")
LAST_FIGURES = ("accuracy", "loss", "macro_f1", "perplexity", "accuracy_over_cuts", "loss_over_cuts")


class Totals:
    """What a summary sums up; a run that was interrupted has them too.

    Args:
        lines: rounds so far, in order.
    """

    def __init__(self, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        self.num_rounds = 0
        self.stop_reason: str | None = None
        self.simulated_seconds = 0.0
        self.bytes_total = 0
        self.bytes_uncompressed = 0
        self.step_bytes = self.step_bytes_uncompressed = 0
        self.energy_joules = 0.0
        self.work = {name: 0 for name in ("arrived", "dropped", "skipped")}
        self.clients: dict[str, set[int]] = {name: set() for name in CLIENT_SETS}
        self.last: dict[str, float | None] = dict.fromkeys(LAST_FIGURES)
        self.evaluated_round: int | None = None
        self.train_loss: float | None = None
        self.best_accuracy: float | None = None
        self.best_accuracy_round: int | None = None
        self.moves = 0
        self.cohorts = self.cohort_members = 0
        self._splits: Counter[str] = Counter()
        self._dropped_because: Counter[str] = Counter()
        self._incidents: Counter[str] = Counter()
        self._bytes_by_role: Counter[str] = Counter()
        self._activity_seconds: Counter[str] = Counter()
        self._wall_seconds: Counter[str] = Counter()
        self._part_seconds: Counter[str] = Counter()
        self._waited_for: Counter[str] = Counter()
        self._memory_bytes: dict[str, int] = {}
        self._breakdown: dict[str, Any] = {}
        self._slowest: list[dict[str, Any]] = []
        for line in lines:
            self.add(line)

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a round; lines must come in order."""
        self.num_rounds += 1
        self.stop_reason = line["stop_reason"]
        self.simulated_seconds = line["simulated_seconds"]
        self.bytes_total = line["num_bytes"]
        self.bytes_uncompressed += line["bytes_uncompressed"]
        self.step_bytes += line["step_bytes"]
        self.step_bytes_uncompressed += line["step_bytes_uncompressed"]
        self.energy_joules += line["simulated_energy_joules"]
        for name in self.work:
            self.work[name] += line[f"work_{name}"]
        for name, clients in self.clients.items():
            clients.update(line[name])
        self.moves += len(line["moved"])
        self.cohorts += line["cohorts"]["count"]
        self.cohort_members += line["cohorts"]["members"]
        self._splits.update(line["splits"])
        self._dropped_because.update(line["dropped_because"])
        self._incidents.update(line["incidents"])
        self._bytes_by_role.update(line["bytes_by_role"])
        self._activity_seconds.update(line["simulated_seconds_by_activity"])
        self._wall_seconds.update(line["wall_seconds"])
        self._part_seconds.update(line["transfer_seconds_by_part"])
        self._waited_for.update(line["waited_for"])
        for tier, num_bytes in line["memory_bytes"].items():
            self._memory_bytes[tier] = max(self._memory_bytes.get(tier, 0), num_bytes)
        self._breakdown = _sum_of(self._breakdown, line["breakdown"])
        self._slowest = merged_slowest([*self._slowest, *line["slowest_clients"]])
        self._add_scores(line)

    def _add_scores(self, line: Mapping[str, Any]) -> None:
        if line["work_arrived"]:
            self.train_loss = line["train_loss"]
        # A loss that is not finite is null, too.
        if not line.get("tested", line["loss"] is not None):
            return
        self.last = {name: line[name] for name in LAST_FIGURES}
        self.evaluated_round = line["round"]
        accuracy = line["accuracy"]
        if accuracy is not None and (self.best_accuracy is None or accuracy > self.best_accuracy):
            self.best_accuracy, self.best_accuracy_round = accuracy, line["round"]

    @property
    def bytes_by_role(self) -> dict[str, int]:
        """Bytes that links carried, largest role first."""
        return dict(sorted(self._bytes_by_role.items(), key=lambda item: (-item[1], item[0])))

    @property
    def wall_seconds_by_phase(self) -> dict[str, float]:
        """The host's own seconds for each step of the loop."""
        return dict(self._wall_seconds)

    def figures(self) -> dict[str, Any]:
        """Return all sums under the names that they have in ``summary.json``."""
        uncompressed = self.bytes_uncompressed
        return {
            "rounds_completed": self.num_rounds,
            "stop_reason": self.stop_reason,
            "accuracy": self.last["accuracy"],
            "loss": self.last["loss"],
            "metrics": {
                "best_accuracy": self.best_accuracy,
                "best_accuracy_round": self.best_accuracy_round,
                "macro_f1": self.last["macro_f1"],
                "perplexity": self.last["perplexity"],
                "accuracy_over_cuts": self.last["accuracy_over_cuts"],
                "loss_over_cuts": self.last["loss_over_cuts"],
                "train_loss": self.train_loss,
                "evaluated_round": self.evaluated_round,
            },
            "simulated_seconds": self.simulated_seconds,
            "simulated_seconds_by_activity": self._by_activity(),
            "breakdown": {
                "where_time_goes": self._where_time_goes(),
                "rounds_waited_for": {kind: self._waited_for[kind] for kind in PATH_KINDS if kind in self._waited_for},
                **self._breakdown,
                "memory_bytes": dict(self._memory_bytes),
            },
            "slowest_clients": self._slowest,
            "bytes_total": self.bytes_total,
            "bytes_by_role": self.bytes_by_role,
            "bytes_uncompressed_total": uncompressed,
            "bytes_uncompressed_bf16_total": uncompressed // 2,
            "compression_ratio_fp32": uncompressed / self.bytes_total if self.bytes_total else None,
            "compression_ratio_bf16": uncompressed / 2 / self.bytes_total if self.bytes_total else None,
            "step_bytes_total": self.step_bytes,
            "step_compression_ratio_fp32": self.step_bytes_uncompressed / self.step_bytes if self.step_bytes else None,
            "clients_participated": len(self.clients["participated"]),
            "clients_dropped": len(self.clients["dropped"]),
            "clients_failed": len(self.clients["failed"]),
            "clients_parked": len(self.clients["parked"]),
            "clients_distrusted": len(self.clients["excluded"]),
            "clients_excluded": len(self.clients["parked"] | self.clients["excluded"]),
            "clients_moved": self.moves,
            "cohorts": {
                "count": self.cohorts,
                "mean_members": self.cohort_members / self.cohorts if self.cohorts else None,
            },
            "splits": dict(sorted(self._splits.items())),
            "work_items": dict(self.work),
            "dropped_because": dict(sorted(self._dropped_because.items())),
            "incidents": dict(sorted(self._incidents.items())),
            "simulated_energy_joules": self.energy_joules,
            "wall_seconds_by_phase": self.wall_seconds_by_phase,
        }

    def _by_activity(self) -> dict[str, Any]:
        """Return the time of all work that arrived, summed and as the mean of a client that took part."""
        num_clients = len(self.clients["participated"])
        sums = {kind: float(self._activity_seconds[kind]) for kind in TIME_KINDS}
        mean = {kind: seconds / num_clients if num_clients else 0.0 for kind, seconds in sums.items()}
        return {"sum": sums, "mean_per_client": mean}

    def _where_time_goes(self) -> dict[str, Any]:
        """Return the time of all work that arrived by its cause, summed and as the mean of a client that took part."""
        activity, num_clients = self._activity_seconds, len(self.clients["participated"])
        sums = {
            "client_compute": activity["client_compute"],
            "edge_compute": activity["edge_compute"],
            "queueing": activity["client_queue"] + activity["edge_queue"],
            **{part: self._part_seconds[part] for part in PARTS},
            "waiting": activity["waiting_for_model"] + activity["waiting_for_gather"],
        }
        floats = {cause: float(seconds) for cause, seconds in sums.items()}
        mean = {cause: seconds / num_clients if num_clients else 0.0 for cause, seconds in floats.items()}
        return {"sum": floats, "mean_per_client": mean}


def _sum_of(before: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sum of two trees of numbers; what only one of them has is taken as it is."""
    total = dict(before)
    for name, value in more.items():
        if isinstance(value, Mapping):
            total[name] = _sum_of(before.get(name, {}), value)
        else:
            total[name] = before.get(name, 0) + value
    return total
