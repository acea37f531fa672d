"""Runs a small experiment on a cluster of three local nodes, one of which may be lost, and compares it with inline.

The nodes do not see the driver's disk: its folder can be opened by no process of theirs, and is gone from where it was
once the driver has read data and weights.

A program of its own, because a process has one Ray cluster: ``python -m tests.runtime.on_nodes DATA FOLDER [lose]``.
"""

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from tests.runtime.fragile_codec import chains
from tests.runtime.runs import execute, small_config
from tests.runtime.test_executors_agree import assert_same_run
from tests.runtime.test_recovery import assert_same_to_the_bit

FOREIGN_DISK = Path(__file__).parent / "foreign_disk"
PLACED = (
    "runtime.pools=3",
    "runtime.edge_resources.custom={away: 0.5}",
    "numerics.edges_per_group=1",
    "topology.clients=6",
    "numerics.cohort=1",
)
"""A pool on each node, for each has one CPU; both edge groups fit on either of the two nodes that are away."""


def main(data: Path, folder: Path, *, loses: bool) -> None:
    """Run on three nodes; tell how many are left."""
    logging.getLogger("elsa_ray").addHandler(logging.StreamHandler(sys.stdout))
    once = {"what": "lose_node", "client": 3, "round": 0, "step": 1, "role": "gradient_down"}
    incidents = [{**once, "once": str(folder / "lost")}] if loses else []
    driver, read = folder / "driver", folder / "read"
    shutil.copytree(data, driver)
    config = small_config(driver, *PLACED, rounds=2, edge_rounds=2, codec=chains(*incidents))
    undisturbed = execute(small_config(driver, *PLACED, rounds=2, edge_rounds=2, codec=chains()), "inline")
    head = {"include_dashboard": False, "temp_dir": str(folder / "ray"), "num_cpus": 1}
    with _inherited(PYTHONPATH=str(FOREIGN_DISK), DRIVERS_FOLDER=str(driver), DRIVERS_FOLDER_READ=str(read)):
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            cluster.add_node(num_cpus=1, resources={"away": 1})
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR, namespace="on-nodes")
        refused = ray.get(ray.remote(num_cpus=1)(_try_to_read).remote(driver / "train.jsonl"))
        assert "on the driver's disk" in refused and read.exists(), refused
        read.rmdir()
        on_nodes = execute(config, "ray", before_start=lambda: driver.rename(folder / "gone"))
        alive = sum(node["Alive"] for node in ray.nodes())
        ray.shutdown()
    finally:
        cluster.shutdown()
    assert not read.exists(), "the driver's disk was read"
    (assert_same_to_the_bit if loses else assert_same_run)(on_nodes, undisturbed)
    sys.stdout.write(f"the same on {alive} of 3 nodes\n")


def _try_to_read(path: Path) -> str:
    try:
        return path.read_text()
    except PermissionError as error:
        return str(error)


@contextmanager
def _inherited(**variables: str) -> Iterator[None]:
    """Set variables for the processes that are started in the block."""
    before = dict(os.environ)
    if "PYTHONPATH" in before:
        variables["PYTHONPATH"] += os.pathsep + before["PYTHONPATH"]
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
        os.environ.update(before)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), loses="lose" in sys.argv[3:])
