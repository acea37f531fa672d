"""What a run tells a cluster's monitoring, through Ray's metrics.

A series has the run's name and one more tag of a few values; never a client, a cohort or an actor. Ray puts ``ray_``
before each name, and ``_total`` behind that of a counter. On a cluster without the extra ``cluster`` (``ray[default]``)
nothing listens, and nothing is lost but the series.
"""

from __future__ import annotations

import time
from collections import Counter as Counts
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ray.util.metrics import Counter, Gauge, Histogram

from elsa_ray.protocols.protocol import RoundReport, RoundResults

_SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]


class RunMetrics:
    """Series of the driver: what a run has done.

    Args:
        run: its name.
    """

    def __init__(self, run: str) -> None:
        self._rounds = _counter("elsa_rounds", "Global rounds done", run)
        self._clients = _counter("elsa_clients", "Work of clients, by what became of it", run, "outcome")
        self._bytes = _counter("elsa_payload_bytes", "Bytes of the payloads that were really encoded", run, "role")
        self._wall = _counter("elsa_wall_seconds", "Seconds of the host, by step of the loop", run, "phase")
        self._simulated = _gauge("elsa_simulated_seconds", "The simulated clock at the end of the last round", run)
        self._accuracy = _gauge("elsa_accuracy", "Accuracy of the global model on the test set, 0 to 1", run)
        self._loss = _gauge("elsa_loss", "Loss of the global model on the test set", run)
        self._train_loss = _gauge("elsa_train_loss", "Mean training loss of the work that arrived", run)
        self._workers = _gauge("elsa_workers", "Actors of the run, by kind", run, "kind")
        self._failures = _gauge("elsa_failures", "What died so far, rounds begun anew, clients left out", run, "what")
        self._num_failures = Counts(dict.fromkeys(("pool", "edge", "cloud", "round", "client"), 0))
        self._queue = _gauge("elsa_cohorts", "Cohorts of this round, waiting for a pool or in one", run, "place")
        self.waiting(0, 0)
        for what in self._num_failures:
            self.failed(what, 0)

    def workers(self, numbers: Mapping[str, int]) -> None:
        """Tell how many actors of each kind there are."""
        for kind, number in numbers.items():
            self._workers.set(number, {"kind": kind})

    def round(self, report: RoundReport, results: RoundResults, wall_seconds: Mapping[str, float]) -> None:
        """Tell of a finished round."""
        self._rounds.inc()
        outcomes = {
            "trained": report.participated,
            "dropped": report.dropped,
            "late": report.late,
            "failed": report.failed,
        }
        for outcome, clients in outcomes.items():
            _add(self._clients, len(clients), outcome=outcome)
        for role, num_bytes in results.encoded_bytes.items():
            _add(self._bytes, num_bytes, role=role)
        for phase, seconds in wall_seconds.items():
            _add(self._wall, seconds, phase=phase)
        self.failed("client", len(results.failures))
        self._simulated.set(report.simulated_seconds)
        if report.train_loss is not None:
            self._train_loss.set(report.train_loss)
        if report.score is not None:
            self._loss.set(report.score.loss)
            if report.score.accuracy is not None:
                self._accuracy.set(report.score.accuracy)

    def failed(self, what: str, number: int = 1) -> None:
        """Tell of workers that died and are replaced, of a round that begins anew, of clients that were left out.

        Args:
            what: ``pool``, ``edge``, ``cloud``, ``round`` or ``client``.
            number: so many more.
        """
        self._num_failures[what] += number
        self._failures.set(self._num_failures[what], {"what": what})

    def waiting(self, waiting: int, in_pools: int) -> None:
        """Tell how many cohorts wait for a pool, and how many are in one."""
        self._queue.set(waiting, {"place": "queue"})
        self._queue.set(in_pools, {"place": "pools"})


class WorkerMetrics:
    """Series of an actor: where the time of cohorts goes.

    Args:
        run: its name.
        tier: ``pool``, ``edge`` or ``cloud``.
    """

    def __init__(self, run: str, tier: str) -> None:
        self._seconds = Histogram(
            "elsa_stage_seconds",
            "Seconds of the host for a stage of the work, by tier: a whole cohort, its waits for the edge, an answer",
            boundaries=_SECONDS,
            tag_keys=("run", "tier", "stage"),
        )
        self._seconds.set_default_tags({"run": run, "tier": tier})

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Tell how long the inside takes.

        Args:
            stage: one of a few names.
        """
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds.observe(time.perf_counter() - begin, {"stage": stage})


def _counter(name: str, description: str, run: str, *tags: str) -> Counter:
    counter = Counter(name, description, tag_keys=("run", *tags))
    counter.set_default_tags({"run": run})
    return counter


def _gauge(name: str, description: str, run: str, *tags: str) -> Gauge:
    gauge = Gauge(name, description, tag_keys=("run", *tags))
    gauge.set_default_tags({"run": run})
    return gauge


def _add(counter: Counter, amount: float, **tags: str) -> None:
    """Add what is more than nothing: Ray's counters refuse zero."""
    if amount > 0:
        counter.inc(amount, tags)
