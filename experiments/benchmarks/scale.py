"""Ten thousand clients, each really trained, in one round: how much memory that takes, in all processes together.

``python experiments/benchmarks/scale.py``; with ``--clients 1000`` beside it one sees that memory depends on the cohort
and the data, not on the clients. Memory is the proportional set size of this process and of all that it has started:
pages that several processes share, such as Ray's object store, count once.

``--fill`` tells instead how full cohorts are of a thousand edges, of whose clients 1 % are sampled, with `split: auto`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import elsa_ray
from elsa_ray.config.load import make_config
from elsa_ray.prepare import prepare
from elsa_ray.runtime.hardware import describe_hardware
from elsa_ray.runtime.jobs import round_job


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--edges", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--executor", default="ray", choices=["ray", "inline"])
    parser.add_argument("--protocol", default="fedavg", choices=["fedavg", "elsa"])
    parser.add_argument("--fill", action="store_true", help="how full cohorts of a thousand edges are; trains nothing")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    figures = cohort_fill(options.clients) if options.fill else measure(options)
    print(json.dumps(figures, indent=2))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run it and return time and memory."""
    config: dict[str, Any] = {
        "name": "scale",
        "task": {"model": "tiny", "max_length": 32, "partition": {"kind": "iid"}},
        "topology": {"kind": "hierarchical", "clients": options.clients, "edges": options.edges},
        "protocol": {"name": options.protocol, "rounds": options.rounds, "local_steps": 1, "batch_size": 8},
        "evaluation": {"every": options.rounds},
        "runtime": {"executor": options.executor},
    }
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as peak:
        texts = Path(folder) / "texts.jsonl"
        write_texts(texts, 4 * options.clients)
        config["task"]["dataset"] = {"train": str(texts), "text": "text", "label": "label", "test_fraction": 0.02}
        begin = time.perf_counter()
        run = elsa_ray.run(config, out=Path(folder) / "run")
        seconds = time.perf_counter() - begin
        profile = json.loads((run.folder / "profile.json").read_text(encoding="utf-8"))
    return {
        "date": date.today().isoformat(),
        "hardware": describe_hardware(),
        "clients": options.clients,
        "clients_participated": run.summary["clients_participated"],
        "rounds": options.rounds,
        "executor": options.executor,
        "protocol": options.protocol,
        "wall_seconds": seconds,
        "wall_seconds_of_rounds": profile["wall_seconds"],
        "peak_memory_bytes": peak.num_bytes,
        "peak_memory_bytes_by_process": peak.by_process,
    }


def write_texts(path: Path, count: int) -> None:
    """Invent texts of 30 words, more than any data set that is at hand has for so many clients."""
    generator = np.random.default_rng(0)
    words = [
        f"{first}{second}" for first in ("ba", "do", "ke", "li", "mu", "no") for second in ("ra", "te", "si", "po")
    ]
    with path.open("w", encoding="utf-8") as stream:
        for drawn in generator.integers(0, len(words), (count, 30)):
            text = " ".join(words[word] for word in drawn)
            stream.write(json.dumps({"text": text, "label": f"topic {drawn[0] % 6}"}) + "\n")


def cohort_fill(clients: int, edges: int = 1_000) -> dict[str, Any]:
    """Plan and play a round of many edges with few sampled clients each, and return how full its cohorts are."""
    config = {
        "task": {"dataset": {"sizes": 32}, "model": "tiny", "max_length": 32},
        "topology": {"kind": "hierarchical", "clients": clients, "edges": edges},
        "protocol": {"name": "elsa", "participation": 0.01, "local_steps": 1, "split": {"auto": {"hysteresis": 0.0}}},
        "world": {
            "clients": {"device": {"mix": {"phone": 0.5, "laptop": 0.5}}},
            "edges": {"device": {"flops_per_second": 4.0e10}},
        },
        "runtime": {"executor": "none"},
    }
    prepared = prepare(make_config(config))
    plan = prepared.protocol.plan(prepared.protocol.start(None), prepared.world.start())
    timeline, _ = prepared.world.play(plan, prepared.world.start())
    job = round_job(prepared.setting, plan, timeline)
    cohorts = [cohort for host in job.hosts for stage in host.stages for cohort in stage.cohorts]
    sizes = [len(cohort.members) for cohort in cohorts]
    return {
        "date": date.today().isoformat(),
        "clients": clients,
        "edges": edges,
        "clients_sampled": sum(sizes),
        "edges_per_group": prepared.config.numerics.edges_per_group,
        "splits": len({cohort.split for cohort in cohorts}),
        "cohort_sizes": sorted(sizes),
        "mean_cohort_fill": sum(sizes) / len(sizes) / prepared.config.numerics.cohort,
    }


class PeakMemory:
    """Looks now and then how much memory this process and all its descendants have together."""

    def __init__(self, every_seconds: float = 1.0) -> None:
        self._every_seconds = every_seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.num_bytes = 0
        self.by_process: dict[str, int] = {}

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        own = psutil.Process(os.getpid())
        while not self._done.wait(self._every_seconds):
            sizes: dict[str, int] = {}
            for process in [own, *own.children(recursive=True)]:
                with suppress(psutil.Error):  # it has ended
                    name = "driver" if process == own else process.name()
                    sizes[name] = sizes.get(name, 0) + process.memory_full_info().pss
            if sum(sizes.values()) > self.num_bytes:
                self.num_bytes, self.by_process = sum(sizes.values()), sizes


if __name__ == "__main__":
    main()
