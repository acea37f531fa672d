"""How long does ``elsa-ray net`` take? Clients under edges, transfers with random starts over a shared backhaul.

Each case writes its topology and transfers as files and runs the command in a process of its own; seconds are those of
the CPU, start of Python included, so that they do not depend on what else the machine does:

    python experiments/benchmarks/net.py --clients 10000 --edges 100 --transfers 40000
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from rich.console import Console

from elsa_ray.config.topology import HierarchicalTopology
from elsa_ray.network import hierarchical, save_network_yaml


@dataclass(frozen=True)
class Case:
    """A load: transfers start at random within so many seconds, between clients and ``edge`` or ``cloud``."""

    name: str
    to_cloud: float
    """The share of the transfers that goes to or from the cloud rather than the client's edge."""
    seconds: float
    spread: float = 0.5


CASES = (
    Case("backhaul idle", to_cloud=0.1, seconds=10_000.0),
    Case("backhaul busy", to_cloud=0.5, seconds=200.0),
    Case("backhaul overbooked", to_cloud=0.5, seconds=100.0),
    Case("overbooked, all to the cloud", to_cloud=1.0, seconds=100.0),
    Case("all at once, equal clients", to_cloud=0.5, seconds=1.0, spread=0.0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--edges", type=int, default=100)
    parser.add_argument("--transfers", type=int, default=40_000)
    parser.add_argument("--model", choices=("fluid", "tcp"), nargs="+", default=["fluid", "tcp"])
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    columns = ("load", "model", "CPU seconds", "peak MB", "transfers at once", "simulated seconds")
    Console().print(*columns, sep=", ")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            topology, transfers = Path(folder) / "topology.yaml", Path(folder) / "transfers.csv"
            shape = HierarchicalTopology(clients=options.clients, edges=options.edges, spread=case.spread)
            save_network_yaml(hierarchical(shape, seed=0), topology)
            transfers.write_text("\n".join(lines(case, options.clients, options.edges, options.transfers)) + "\n")
            for model in options.model:
                row = {"load": case.name, "model": model, **measure(topology, transfers, model)}
                rows.append(row)
                texts = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()]
                Console().print(*texts, sep=", ")
    if options.out:
        about = {"date": date.today().isoformat(), "python": platform.python_version(), "machine": platform.machine()}
        options.out.write_text(json.dumps({**about, **vars(options) | {"out": None}, "rows": rows}, indent=2))


def lines(case: Case, num_clients: int, num_edges: int, num_transfers: int) -> Iterator[str]:
    """Yield the rows of a transfers file: 1 to 4 MB each, half of them up."""
    rng = random.Random(0)
    width = max(3, len(str(num_clients - 1)))
    yield "id,src,dst,num_bytes,start_seconds"
    for number in range(num_transfers):
        client = rng.randrange(num_clients)
        edge = f"edge{client % num_edges:0{len(str(num_edges - 1))}d}"
        ends = [f"client{client:0{width}d}", "cloud" if rng.random() < case.to_cloud else edge]
        if rng.random() < 0.5:
            ends.reverse()
        yield f"{number},{ends[0]},{ends[1]},{rng.uniform(1e6, 4e6):.0f},{rng.uniform(0, case.seconds):.6f}"


def measure(topology: Path, transfers: Path, model: str) -> dict[str, float]:
    """Run the command; return its CPU seconds and peak of memory, and what the transfers were like."""
    out = transfers.with_name("out.csv")
    command = ["net", str(topology), str(transfers), "--out", str(out), "--model", model]
    script = (
        "import json, resource, sys\n"
        "from elsa_ray.cli import run_command\n"
        "code = run_command(sys.argv[1:])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(json.dumps([code, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *command], check=True, capture_output=True, text=True)
    code, seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
    assert not code, done.stderr
    spans = [tuple(map(float, line.split(",")[1:3])) for line in out.read_text().splitlines()[1:]]
    events = sorted([(start, 1) for start, _ in spans] + [(finish, -1) for _, finish in spans])
    at_once = most = 0
    for _, change in events:
        at_once += change
        most = max(most, at_once)
    return {"seconds": seconds, "megabytes": megabytes, "at_once": most, "simulated": max(end for _, end in spans)}


if __name__ == "__main__":
    main()
