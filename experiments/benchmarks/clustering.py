"""How long does clustering take, and how much memory? Clients of planted groups, from fingerprints to edges.

Each size runs in a process of its own, so that the peaks of memory are its own:

    python experiments/benchmarks/clustering.py --clients 10000 100000 --edges 100
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path

import numpy as np
import scipy
from rich.console import Console
from rich.table import Table

from elsa_ray.clustering.assignment import EXACT_SIZE, default_capacity
from elsa_ray.clustering.cluster import cluster_and_assign
from elsa_ray.config.clustering import ClusteringConfig
from elsa_ray.tasks.seeds import numpy_generator

PROBES, ROWS = 64, 1000
MEGABYTE = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--edges", type=int, default=100)
    parser.add_argument("--dimensions", type=int, default=32)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    rows = [in_own_process(clients, options.edges, options.dimensions) for clients in options.clients]
    show(rows, options.dimensions)
    if options.out:
        about = {"date": date.today().isoformat(), "python": platform.python_version(), "machine": platform.machine()}
        versions = {"numpy": np.__version__, "scipy": scipy.__version__}
        options.out.write_text(json.dumps({**about, **versions, "rows": rows}, indent=2))


def in_own_process(num_clients: int, num_edges: int, dimensions: int) -> dict[str, float]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, num_clients, num_edges, dimensions).result()


def measure(num_clients: int, num_edges: int, dimensions: int) -> dict[str, float]:
    mean_Nd, covariance_Ndd, group_N = planted(num_clients, num_edges, dimensions)
    latency_NK = numpy_generator(0, "latency").uniform(0.05, 1.0, (num_clients, num_edges))
    everybody, config = np.ones(num_clients, bool), ClusteringConfig(dimensions=dimensions)
    before = peak_megabytes()
    begin = time.perf_counter()
    clusters = cluster_and_assign(
        mean_Nd, covariance_Ndd, everybody, latency_NK, everybody.astype(float), None, config, seed=0, round_index=0
    )
    wall_seconds = time.perf_counter() - begin
    load_K = np.bincount(clusters.edge_of_client_N, minlength=num_edges)
    assert load_K.max() <= default_capacity(num_clients, num_edges)
    return {
        "clients": num_clients,
        "edges": num_edges,
        "wall_seconds": wall_seconds,
        "megabytes_of_input": before,
        "megabytes_at_peak": peak_megabytes(),
        "purity": float((group_N[clusters.medoid_of_cluster_K][clusters.cluster_of_client_N] == group_N).mean()),
        "at_edge_of_cluster": float((clusters.edge_of_client_N == clusters.cluster_of_client_N).mean()),
    }


def planted(num_clients: int, num_groups: int, dimensions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return means and covariances of clients in groups that differ by their means; made in blocks, to save memory."""
    centre_Gd = numpy_generator(0, "groups").normal(size=(num_groups, dimensions))
    group_N = np.arange(num_clients) % num_groups
    mean_Nd = np.empty((num_clients, dimensions))
    covariance_Ndd = np.empty((num_clients, dimensions, dimensions))
    for start in range(0, num_clients, ROWS):
        rows = slice(start, min(start + ROWS, num_clients))
        states_RQd = numpy_generator(0, "states", start).normal(size=(rows.stop - start, PROBES, dimensions))
        mean_Nd[rows] = states_RQd.mean(axis=1) + centre_Gd[group_N[rows]]
        states_RQd -= states_RQd.mean(axis=1, keepdims=True)
        covariance_Ndd[rows] = states_RQd.transpose(0, 2, 1) @ states_RQd / PROBES
    return mean_Nd, covariance_Ndd, group_N


def peak_megabytes() -> float:
    """Return the largest resident memory of this process so far (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE


def show(rows: list[dict[str, float]], dimensions: int) -> None:
    table = Table(title=f"From fingerprints of {dimensions} dimensions to edges")
    titles = ("clients", "edges", "solver", "seconds", "MB before", "MB peak", "purity", "at own edge")
    for title in titles:
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            f"{row['clients']:,}",
            f"{row['edges']}",
            "exact" if row["clients"] * row["edges"] <= EXACT_SIZE else "near",
            f"{row['wall_seconds']:.1f}",
            f"{row['megabytes_of_input']:.0f}",
            f"{row['megabytes_at_peak']:.0f}",
            f"{row['purity']:.3f}",
            f"{row['at_edge_of_cluster']:.3f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
