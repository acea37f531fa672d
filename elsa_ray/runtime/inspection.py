"""What each node of a cluster says of itself: its numeric fingerprint and the version of this package there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from elsa_ray.runtime.cluster import is_there, join_cluster
from elsa_ray.runtime.fingerprint import NumericFingerprint, this_process
from elsa_ray.runtime.ray_placement import cluster_nodes, this_machine
from elsa_ray.runtime.resources import Node

_ANSWER_SECONDS = 120.0


@dataclass(frozen=True)
class NodeReport:
    """A node and what it says.

    Attributes:
        node: its resources.
        fingerprint: of a worker there, with one thread; None where it gave no answer.
        package: the version of elsa-ray there.
        trouble: why there is no answer; None where there is one.
    """

    node: Node
    fingerprint: NumericFingerprint | None
    package: str | None
    trouble: str | None = None


def inspect(address: str | None) -> tuple[NodeReport, ...]:
    """Ask all nodes of the cluster that a run with this address would have; where it would start one, this machine.

    Nothing is started but a task on each node, and nothing stays connected.

    Raises:
        InputError: nothing answers at the address.
    """
    if not is_there(address):
        return (NodeReport(this_machine(), *_tell()),)
    cluster = join_cluster(address)
    try:
        return _ask(cluster_nodes(with_gpu_memory=True))
    finally:
        cluster.leave()


def _ask(nodes: Sequence[Node]) -> tuple[NodeReport, ...]:
    telling = ray.remote(_tell)
    asked = [
        telling.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        ).remote()
        for node in nodes
    ]
    done, _ = ray.wait(asked, num_returns=len(asked), timeout=_ANSWER_SECONDS)
    reports = []
    for node, reference in zip(nodes, asked, strict=True):
        if reference not in done:
            reports.append(NodeReport(node, None, None, f"no answer in {_ANSWER_SECONDS:g} s"))
            continue
        try:
            reports.append(NodeReport(node, *ray.get(reference)))
        except ray.exceptions.RayError as error:
            reports.append(NodeReport(node, None, None, str(error).strip().splitlines()[-1]))
    return tuple(reports)


def _tell() -> tuple[NumericFingerprint, str | None]:
    torch.set_num_threads(1)
    try:
        package = version("elsa-ray")
    except PackageNotFoundError:
        package = None
    return this_process("cpu"), package
