"""CPU seconds and memory of planning and playing ELSA, by the number of clients; nothing is trained.

    python experiments/benchmarks/world.py [--clients 1000 10000 100000] [--edges 100] [--model bert-base] [--plot FILE]

Each size runs in a process of its own and does what ``elsa-ray plan`` does, from the config to the report. ``import``
is what Python needs to load the program; it is the same for every size and not part of ``total``. The last column is
``total`` over n log n, by that of the size before: not above 1 is n log n or better.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PHASES = ("prepare", "plan", "play", "conclude", "records", "report")
"""Network, task, assignment; the plan's columns; when each row happens; the protocol's state; tables; the page."""


def config_of(clients: int, edges: int, model: str) -> dict[str, Any]:
    """Return the config of one size: one round of four local steps of eight texts of 64 tokens, LoRA of rank 8.

    Edges are as fast as an ``edge_server`` and have no limit of memory: a thousand members at once are too many for it.
    """
    return {
        "name": "world-benchmark",
        "task": {"dataset": {"sizes": 32}, "model": model, "max_length": 64, "lora": {"rank": 8}},
        "topology": {"kind": "hierarchical", "clients": clients, "edges": edges},
        "protocol": {"name": "elsa", "rounds": 1, "local_steps": 4, "batch_size": 8},
        "world": {"edges": {"device": {"flops_per_second": "1 TFLOP/s", "active_watts": 150, "idle_watts": 100}}},
        "runtime": {"executor": "none"},
        "numerics": {"device": "cpu"},
    }


def measure(clients: int, edges: int, model: str) -> dict[str, float]:
    """Run one size in this process; returns CPU seconds by phase, peak bytes, rows, and the simulated seconds."""
    from elsa_ray.config.load import make_config
    from elsa_ray.prepare import prepare
    from elsa_ray.protocols.protocol import RoundResults
    from elsa_ray.records.folder import RunFolder
    from elsa_ray.records.report import write_report
    from elsa_ray.records.round import Round
    from elsa_ray.records.summary import make_summary

    figures = {"import": time.process_time()}

    @contextmanager
    def timed(phase: str) -> Iterator[None]:
        begin = time.process_time()
        yield
        figures[phase] = time.process_time() - begin

    with timed("prepare"):
        prepared = prepare(make_config(config_of(clients, edges, model)))
        state, world_state = prepared.protocol.start(None), prepared.world.start()
    with timed("plan"):
        plan = prepared.protocol.plan(state, world_state)
    with timed("play"):
        timeline, world_state = prepared.world.play(plan, world_state)
    with timed("conclude"):
        prepared.protocol.conclude(state, RoundResults(), plan, timeline)  # the loop asks first what the round will be
        state, report = prepared.protocol.conclude(state, RoundResults(), plan, timeline)
    with tempfile.TemporaryDirectory() as temporary:
        with timed("records"), RunFolder.create(Path(temporary) / "run", prepared.config) as folder:
            round_ = Round(plan, timeline, RoundResults(), report, state, world_state, "rounds", {})
            folder.write_round(round_, prepared.setting)
            folder.close()
            folder.finish(make_summary(prepared.setting, folder.totals, hardware={}))
        num_rows, simulated_seconds = len(plan.activities), timeline.end_seconds
        del round_, plan, timeline, state, report, world_state  # a report is made of the records alone
        with timed("report"):
            write_report(folder.path)
    return {
        **figures,
        "total": sum(figures[phase] for phase in PHASES),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "rows": num_rows,
        "simulated_seconds": simulated_seconds,
    }


def main() -> None:
    """Measure all sizes; print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--edges", type=int, default=100)
    parser.add_argument("--model", default="bert-base")
    parser.add_argument("--plot", type=Path, help="write a drawing of total over clients, as SVG or PNG")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.clients[0], options.edges, options.model)))
        return
    columns = ("import", *PHASES, "total")
    print(f"{'clients':>9} {'rows':>10}", *(f"{name:>8}" for name in columns), f"{'peak MB':>8} {'n log n':>8}")
    totals: dict[int, float] = {}
    measured: dict[int, float] = {}
    for clients in options.clients:
        command = [sys.executable, __file__, "--one", "--clients", str(clients), "--edges", str(options.edges)]
        output = subprocess.run([*command, "--model", options.model], check=True, stdout=subprocess.PIPE, text=True)
        figures = json.loads(output.stdout.splitlines()[-1])
        ratio = growth(clients, figures["total"], *totals.popitem()) if totals else math.nan
        totals[clients] = figures["total"]
        print(f"{clients:>9,} {figures['rows']:>10,}", *(f"{figures[name]:>8.2f}" for name in columns), end=" ")
        print(f"{figures['peak_bytes'] / 1e6:>8,.0f} {ratio:>8.2f}", flush=True)
        measured[clients] = figures["total"]
        if options.plot is not None:  # after each size: the largest may take long
            draw(measured, options.plot)


def draw(measured: dict[int, float], path: Path) -> None:
    """Draw the CPU seconds over the clients, and n log n through the first of them."""
    from matplotlib.figure import Figure

    clients, seconds = list(measured), list(measured.values())
    law = [seconds[0] * n * math.log(n) / (clients[0] * math.log(clients[0])) for n in clients]
    figure = Figure(figsize=(5.0, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.loglog(clients, law, "--", color="0.6", label="n log n")
    axes.loglog(clients, seconds, "o-", label="measured")
    axes.set_xlabel("clients")
    axes.set_ylabel("CPU seconds of a round, records included")
    axes.legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def growth(clients: int, seconds: float, clients_before: int, seconds_before: float) -> float:
    """Return how many times the seconds over n log n have grown."""
    return seconds / seconds_before * (clients_before * math.log(clients_before)) / (clients * math.log(clients))


if __name__ == "__main__":
    main()
