"""Many clients: sparse edges fill cohorts, a client at rest is small, and memory does not grow from round to round."""

from __future__ import annotations

import gc
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from elsa_ray.config.load import make_config
from elsa_ray.experiment import rounds
from elsa_ray.prepare import Prepared, load_backbone, make_recipe, make_tripartite, prepare
from elsa_ray.records.round import Round
from elsa_ray.runtime.executor import InlineExecutor
from elsa_ray.runtime.jobs import round_job

MOST_BYTES_OF_A_CLIENT_AT_REST = 20_000
MOST_NEW_BLOCKS_A_ROUND = 40
"""Of Python's small blocks of memory, one or more for every object."""
TASK = {"dataset": {"name": "pydocs", "max_examples": 400}, "model": "tiny", "max_length": 16}


def prepared_with(clients: int, edges: int, protocol: dict[str, Any], **sections: Any) -> Prepared:
    config = {
        "task": TASK,
        "topology": {"kind": "hierarchical", "clients": clients, "edges": edges},
        "protocol": {"name": "elsa", "local_steps": 1, "batch_size": 2, "split": {"front": 1, "back": 0}, **protocol},
        "evaluation": {"every": 1000},
        "numerics": {"precision": "fp32", "device": "cpu"},
        "runtime": {"executor": "inline"},
        **sections,
    }
    return prepare(make_config(config))


def test_many_edges_with_few_sampled_clients_each_fill_their_cohorts() -> None:
    """A tenth of a thousand edges, with cohorts as much smaller. Groups for a single split would give 0.56."""
    prepared = prepared_with(
        2_000,
        100,
        {"participation": 0.01, "split": {"auto": {"hysteresis": 0.0}}},
        task={"dataset": {"sizes": 8}, "model": "tiny", "max_length": 16},
        runtime={"executor": "none"},
        world={
            "clients": {"device": {"mix": {"phone": 0.5, "laptop": 0.5}}},
            "edges": {"device": {"flops_per_second": 4.0e10}},
        },
        numerics={"precision": "fp32", "device": "cpu", "cohort": 3},
    )
    plan = prepared.protocol.plan(prepared.protocol.start(None), prepared.world.start())
    timeline, _ = prepared.world.play(plan, prepared.world.start())
    job = round_job(prepared.setting, plan, timeline)
    cohorts = [cohort for host in job.hosts for stage in host.stages for cohort in stage.cohorts]
    num_members = sum(len(cohort.members) for cohort in cohorts)
    assert num_members == 20 and len({cohort.split for cohort in cohorts}) > 1
    assert num_members / (len(cohorts) * prepared.config.numerics.cohort) > 0.7


def trained(prepared: Prepared, count: int, looks: tuple[int, ...], look: Callable[[], None]) -> Round:
    """Train so many rounds, look after some of them, and return the last."""
    model, adapters = load_backbone(prepared)
    with InlineExecutor(prepared.setting, make_tripartite(prepared, model), make_recipe(prepared)) as executor:
        going_on = rounds(prepared, prepared.protocol.start(adapters), executor)
        for number in range(1, count):
            next(going_on)
            if number in looks:
                look()
        return next(going_on)


def test_memory_is_flat_over_twenty_rounds_and_a_client_at_rest_is_small() -> None:
    prepared = prepared_with(
        6,
        2,
        {"rounds": 100, "trust": {}},
        task={**TASK, "probes": {"kind": "generated", "count": 4}},
        numerics={"precision": "fp32", "device": "cpu", "cohort": 3},
    )
    tensor_bytes: list[int] = []
    num_blocks: list[int] = []

    def look() -> None:
        gc.collect()
        storages = [thing.untyped_storage() for thing in gc.get_objects() if _is_tensor(thing)]
        tensor_bytes.append(sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()))
        num_blocks.append(sys.getallocatedblocks())

    last = trained(prepared, 21, (5, 20), look)
    assert tensor_bytes[1] == tensor_bytes[0] > 0
    assert num_blocks[1] - num_blocks[0] < 15 * MOST_NEW_BLOCKS_A_ROUND
    at_rest = len(pickle.dumps(replace(last.state, adapters=None, versions={})))
    assert at_rest / prepared.setting.num_clients <= MOST_BYTES_OF_A_CLIENT_AT_REST


def _is_tensor(thing: object) -> bool:
    return type(thing) in (torch.Tensor, torch.nn.Parameter)
