"""Runs on a cluster of several local nodes, in a process of its own: a process can be connected to one cluster only.

Takes a data folder and prints where each actor was, and whether the numbers are those of one process, as JSON.
"""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from elsa_ray.experiment import rounds
from elsa_ray.prepare import PRECISIONS, load_backbone, make_recipe, prepare, with_frame
from elsa_ray.runtime.ray_executor import RayExecutor
from tests.runtime.runs import Finished, execute, same_adapters, small_config

NODES = (
    {"num_cpus": 2, "resources": {"phone_node": 1}},
    {"num_cpus": 1, "resources": {"laptop_node": 1}},
    {"num_cpus": 1, "num_gpus": 1},
    {"num_cpus": 1, "num_gpus": 1},
)
RUNTIME = (
    "runtime.edge_resources={num_gpus: 0.5}",
    "runtime.pools_by_device={phone: {num_cpus: 0.5, pools: 2, custom: {phone_node: 0.5}}, "
    "laptop: {num_cpus: 1, pools: 1, custom: {laptop_node: 1}}}",
    "world.clients.device={mix: {phone: 0.7, laptop: 0.3}}",
)


@contextmanager
def cluster() -> Iterator[str]:
    """Start the nodes, and end them."""
    nodes = Cluster()
    try:
        for own in NODES:
            nodes.add_node(**own, include_dashboard=False, object_store_memory=100 * 2**20)
        yield nodes.address
    finally:
        nodes.shutdown()


def run(config: object, address: str, said: list[str]) -> tuple[Finished, dict[str, str]]:
    """Run an experiment and return it with the node of each actor."""
    prepared = prepare(config)
    model, adapters = load_backbone(prepared)
    recipe = with_frame(prepared, make_recipe(prepared), model, adapters)
    model = model.to(PRECISIONS[prepared.config.numerics.precision])
    with RayExecutor(
        prepared.setting, model, recipe, address=address, status=lambda text: None, announce=said.append
    ) as executor:
        done = Finished(prepared, list(rounds(prepared, prepared.protocol.start(adapters), executor)))
        return done, executor.nodes_of_actors()


def main(data: Path) -> dict[str, object]:
    config = small_config(data, *RUNTIME, rounds=1, local_steps=1)
    with cluster() as address:
        ray.init(address=address, namespace="test", log_to_driver=False, logging_level=logging.ERROR)
        ids = {node["NodeID"]: node for node in ray.nodes()}
        kind_of = {}
        for node_id, node in ids.items():
            has = node["Resources"]
            kind_of[node_id] = next((kind for kind in ("phone_node", "laptop_node", "GPU") if has.get(kind)), "?")
        said: list[str] = []
        done, nodes = run(config, address, said)
        groups = [group["state"] for group in ray.util.placement_group_table().values()]
        ray.shutdown()
    return {
        "kinds": {name: kind_of[node] for name, node in nodes.items()},
        "edge_nodes": len({node for name, node in nodes.items() if name.startswith("edge")}),
        "said": said,
        "groups": groups,
        "same": same_adapters(done, execute(config, "inline")),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))))
