"""Ten thousand clients, really trained in one round: how much memory, in all processes together.

``python experiments/benchmarks/scale.py --clients 10000 --rounds 1``. Memory depends on the cohort, not on the clients:
compare with a tenth of them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import psutil
from peers import PeakMemory

import elsa_ray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--edges", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--executor", default="ray", choices=["ray", "inline"])
    parser.add_argument("--protocol", default="fedavg", choices=["fedavg", "elsa"])
    options = parser.parse_args()
    config = {
        "name": "scale",
        "task": {
            "dataset": {"name": "pydocs"},
            "model": "tiny",
            "max_length": 32,
            "partition": {"kind": "iid"},
        },
        "topology": {"kind": "hierarchical", "clients": options.clients, "edges": options.edges},
        "protocol": {"name": options.protocol, "rounds": options.rounds, "local_steps": 1, "batch_size": 8},
        "evaluation": {"every": options.rounds},
        "runtime": {"executor": options.executor},
    }
    with tempfile.TemporaryDirectory() as folder, PeakMemory(os.getpid()) as peak:
        begin = time.perf_counter()
        run = elsa_ray.run(config, out=Path(folder) / "run")
        seconds = time.perf_counter() - begin
    print(
        json.dumps(
            {
                "clients": options.clients,
                "rounds": options.rounds,
                "peak_memory_bytes": peak.bytes,
                "peak_resident_bytes_of_the_driver": psutil.Process().memory_info().rss,
                "wall_seconds": seconds,
                "clients_participated": run.summary["clients_participated"],
                "cohorts": run.summary["cohorts"],
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
