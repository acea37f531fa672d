"""``summary.json``: a run in figures, with what was assumed, and on which versions and hardware it was computed."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from elsa_ray.config.load import config_sha256
from elsa_ray.protocols.setting import Setting
from elsa_ray.records.assumptions import assumptions
from elsa_ray.records.totals import Totals

_PACKAGES = {
    "elsa_ray": "elsa-ray",
    "torch": "torch",
    "transformers": "transformers",
    "peft": "peft",
    "ray": "ray",
    "numpy": "numpy",
}


def make_summary(
    setting: Setting,
    totals: Totals,
    *,
    hardware: Mapping[str, Any],
    stop_reason: str | None = None,
    wall_seconds: float | None = None,
    wall_seconds_by_phase: Mapping[str, float] | None = None,
    worker_memory_bytes: int = 0,
    unlike_workers: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return the summary as plain values.

    Args:
        setting: the run's circumstances.
        totals: of the rounds so far, such as ``RunFolder.totals``.
        hardware: a description of the machine or the cluster.
        stop_reason: instead of the last round's, such as ``interrupted`` or ``failed``.
        wall_seconds: the host's time for the whole run; by default the sum over the phases.
        wall_seconds_by_phase: phases outside of the rounds, such as ``prepare``.
        worker_memory_bytes: the peak of the actors together, which are no children of this process.
        unlike_workers: in what workers differ whose arithmetic should be alike; None where there were no workers.
    """
    config, figures = setting.config, totals.figures()
    executor = config.runtime.executor
    phases = {**(wall_seconds_by_phase or {}), **figures.pop("wall_seconds_by_phase")}
    figures["stop_reason"] = stop_reason or figures["stop_reason"]
    return {
        "schema_version": 1,
        "name": config.name,
        "seed": config.seed,
        "protocol": config.protocol.name,
        "task": config.task.kind,
        "model": config.task.model,
        "executor": executor,
        "precision": config.numerics.precision if executor != "none" else None,
        **figures,
        "wall_seconds": sum(phases.values()) if wall_seconds is None else wall_seconds,
        "wall_seconds_by_phase": phases,
        "clients_total": setting.num_clients,
        "edges_total": len(setting.network.edges),
        "host_peak_memory_bytes": peak_memory_bytes() + worker_memory_bytes,
        "config_sha256": config_sha256(config),
        "data_sha256": setting.task.data_sha256,
        "bit_reproducible": None if unlike_workers is None else not unlike_workers,
        "assumptions": [*assumptions(setting, executor), *_unlike_sentences(unlike_workers)],
        "versions": versions(),
        "hardware": dict(hardware),
    }


def _unlike_sentences(unlike_workers: Sequence[str] | None) -> list[str]:
    if not unlike_workers:
        return []
    told = "; ".join(unlike_workers)
    return [f"Not bit-reproducible: which worker computes what is an accident of time, and {told}."]


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that can change a number; None for one that is not there."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name, package in _PACKAGES.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            found[name] = None
    return found


def peak_memory_bytes() -> int:
    """Return the most memory that this process has held, plus that of its largest child that has ended."""
    # Linux counts kibibytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(peaks) * unit
