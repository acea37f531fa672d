"""How near the engine comes to the hardware on processors: the matrix rate of a cohort, and what Ray and workers cost.

``python experiments/benchmarks/efficiency.py``, on a machine with nothing else to do. Two tables, each side by side in
one run, so that ratios count and not seconds:

1. The share of the best fp32 matrix rate of one thread that a cohort's training step reaches, as in ``gpu.py``.
2. Rounds through three executors that take turns: inline, ray with one pool, ray with two; one thread a worker. The
   first round of each is a warm-up.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

import ray
import torch
from rich.console import Console
from rich.table import Table

from elsa_ray.config.load import make_config
from elsa_ray.experiment import rounds
from elsa_ray.prepare import PRECISIONS, load_backbone, make_recipe, make_tripartite, prepare
from elsa_ray.records.round import Round
from elsa_ray.runtime.executor import Executor, InlineExecutor
from elsa_ray.runtime.hardware import describe_hardware
from elsa_ray.runtime.ray_executor import RayExecutor

sys.path[:0] = [str(Path(__file__).parent)]

import gpu  # noqa: E402

POOLS = {"inline": None, "ray, one pool": 1, "ray, two pools": 2}


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm", help="as in task.model")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4, help="local steps of a client")
    parser.add_argument("--protocol", default="fedavg", choices=["fedavg", "elsa"])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = argparse.Namespace(device="cpu", precision="fp32", sizes=[1, 16], repetitions=options.repetitions)
    rows = gpu.measure(options.model, asked)
    gpu.show(rows, asked)
    seconds = turns(options)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    show(medians)
    if options.out:
        about = {"date": date.today().isoformat(), "hardware": describe_hardware(), "torch": torch.__version__}
        figures = {**about, "model": options.model, "cohorts": rows, "round_seconds": seconds}
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


def turns(options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of each executor's rounds, played in turns."""
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(address="local", num_cpus=3, **quiet)
    seconds: dict[str, list[float]] = {name: [] for name in POOLS}
    with ExitStack() as stack:
        stack.callback(ray.shutdown)
        runs = {name: start(stack, name, pools, options) for name, pools in POOLS.items()}
        for repetition in range(options.repetitions + 1):
            for name, run in runs.items():
                finished = next(run)
                if repetition:
                    seconds[name].append(finished.wall_seconds["train"])
    return seconds


def start(stack: ExitStack, name: str, pools: int | None, options: argparse.Namespace) -> Iterator[Round]:
    """Return the rounds of a run through one executor, which is ended with the stack."""
    values: dict[str, Any] = {
        "name": "efficiency",
        "task": {
            "dataset": {"name": "pydocs", "max_examples": 4000},
            "model": options.model,
            "max_length": 32,
            "partition": {"kind": "iid"},
        },
        "topology": {"kind": "hierarchical", "clients": options.clients, "edges": 2},
        "protocol": {"name": options.protocol, "rounds": 1000, "local_steps": options.steps, "batch_size": 8},
        "evaluation": {"every": 1000},
        "numerics": {"precision": "fp32", "device": "cpu"},
        "runtime": {"executor": "ray" if pools else "inline", "pools": pools or 1},
    }
    prepared = prepare(make_config(values))
    model, adapters = load_backbone(prepared)
    recipe = make_recipe(prepared)
    executor: Executor
    if pools is None:
        executor = InlineExecutor(prepared.setting, make_tripartite(prepared, model), recipe)
    else:
        model = model.to(PRECISIONS[prepared.config.numerics.precision])
        executor = RayExecutor(prepared.setting, model, recipe, address=None, status=lambda text: None)
    stack.enter_context(executor)
    return rounds(prepared, prepared.protocol.start(adapters), executor)


def show(medians: dict[str, float]) -> None:
    """Print the medians and their ratios."""
    table = Table(title="A round, median")
    for title in ("executor", "seconds", "times as fast as inline"):
        table.add_column(title, justify="left" if title == "executor" else "right")
    for name, median in medians.items():
        table.add_row(name, f"{median:.2f}", f"{medians['inline'] / median:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
