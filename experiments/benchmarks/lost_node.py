"""Thousands of clients over three local Ray nodes, one of which is lost within a round: are the bits the same?

Runs the experiment in one process first, then on a cluster of three nodes on this machine. After the first round, at a
random moment of the second, one node is killed, with the pools and edge groups that it has. Compares the adapters and
the records; prints what was lost and the wall time of each round.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray
import torch
from ray.cluster_utils import Cluster
from rich.console import Console

import elsa_ray

WORDS = ["node", "value", "list", "graph", "tensor", "link", "path", "row", "key", "file", "time", "test"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the moment")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lost-") as folder:
        figures = compare(Path(folder), options.clients, options.rounds, options.seed)
    Console().print_json(data=figures)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2))


def compare(folder: Path, num_clients: int, num_rounds: int, seed: int) -> dict[str, Any]:
    """Run it undisturbed and disturbed."""
    config = config_of(folder, num_clients, num_rounds)
    inline = elsa_ray.run(config, overrides=["runtime.executor=inline"], out=folder / "inline")
    cluster = Cluster(
        initialize_head=True, head_node_args={"include_dashboard": False, "temp_dir": str(folder / "ray")}
    )
    try:
        nodes = [cluster.add_node(num_cpus=1, resources={"away": 1}) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR, namespace="lost-node")
        shown = io.StringIO()
        killing = threading.Thread(target=lose, args=(cluster, nodes[0], shown, random.Random(seed)))
        killing.start()
        disturbed = elsa_ray.run(config, out=folder / "disturbed", console=Console(file=shown, width=200))
        killing.join()
        num_alive = sum(node["Alive"] for node in ray.nodes())
        ray.shutdown()
    finally:
        cluster.shutdown()
    assert inline.adapters is not None and disturbed.adapters is not None
    same_adapters = all(torch.equal(inline.adapters[name], disturbed.adapters[name]) for name in inline.adapters)
    records = [lines_of(run.folder) for run in (inline, disturbed)]
    tables = [
        [(run.folder / name).read_bytes() for name in ("transfers.parquet", "events.parquet")]
        for run in (inline, disturbed)
    ]
    return {
        "clients": num_clients,
        "clients_participated": disturbed.summary["clients_participated"],
        "nodes_left": num_alive,
        "same_adapters": same_adapters,
        "same_rounds": records[0] == records[1],
        "same_tables": tables[0] == tables[1],
        "train_wall_seconds": {run.folder.name: train_seconds(run.folder) for run in (inline, disturbed)},
        "told": [line for line in shown.getvalue().splitlines() if "done again" in line or "replaced" in line],
    }


def config_of(folder: Path, num_clients: int, num_rounds: int) -> dict[str, Any]:
    """A pool on each node; edge groups on the two that are not the head."""
    draw = random.Random(1)
    for name, count in (("train", 4 * num_clients), ("test", 200)):
        texts = (" ".join(draw.choices(WORDS, k=draw.randint(3, 14))) for _ in range(count))
        rows = [json.dumps({"text": text, "label": str(len(text) % 3)}) for text in texts]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    return {
        "name": "lost-node",
        "task": {
            "dataset": {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")},
            "partition": {"kind": "iid"},
            "model": "tiny",
            "max_length": 16,
        },
        "topology": {"kind": "hierarchical", "clients": num_clients, "edges": 8},
        "protocol": {
            "name": "elsa",
            "rounds": num_rounds,
            "local_steps": 2,
            "batch_size": 4,
            "codec": [{"kind": "int8"}],
        },
        "numerics": {"precision": "fp32", "device": "cpu", "cohort": 32, "edges_per_group": 4},
        "runtime": {"pools": 3, "edge_resources": {"custom": {"away": 0.5}}},
    }


def lose(cluster: Cluster, node: Any, shown: io.StringIO, draw: random.Random) -> None:
    """Kill a node at a random moment of the round after the first."""
    seen, since = "", time.monotonic()
    while "round 1/" not in (now := shown.getvalue()):
        if now != seen:
            seen, since = now, time.monotonic()
        time.sleep(0.1)
    time.sleep((time.monotonic() - since) * draw.uniform(0.2, 0.6))
    cluster.remove_node(node, allow_graceful=False)


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Return the rounds without the host's own seconds."""
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "wall_seconds"} for line in lines]


def train_seconds(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    return [round(line["wall_seconds"]["train"], 1) for line in lines]


if __name__ == "__main__":
    main()
