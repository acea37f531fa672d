"""Many clients: sparse edges fill cohorts, a client at rest is small, and memory does not grow from round to round."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
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
TASK = {"dataset": {"name": "pydocs", "max_examples": 400}, "model": "tiny", "max_length": 16}


def prepared_with(clients: int, edges: int, protocol: dict[str, Any], **sections: Any) -> Prepared:
    config = {
        "task": TASK,
        "topology": {"kind": "hierarchical", "clients": clients, "edges": edges},
        "protocol": {"name": "elsa", "local_steps": 1, "batch_size": 2, "split": {"front": 1, "back": 1}, **protocol},
        "evaluation": {"every": 1000},
        "numerics": {"precision": "fp32", "device": "cpu"},
        "runtime": {"executor": "inline"},
        **sections,
    }
    return prepare(make_config(config))


def test_a_thousand_edges_with_few_sampled_clients_each_fill_their_cohorts() -> None:
    prepared = prepared_with(
        10_000,
        1_000,
        {"participation": 0.01, "split": "auto"},
        task={"dataset": {"sizes": 8}, "model": "tiny", "max_length": 16},
        runtime={"executor": "none"},
        world={"clients": {"device": {"mix": {"phone": 0.5, "laptop": 0.5}}}},
    )
    state = prepared.protocol.start(None)
    plan = prepared.protocol.plan(state, prepared.world.start())
    timeline, _ = prepared.world.play(plan, prepared.world.start())
    job = round_job(prepared.setting, plan, timeline)
    sizes = [len(cohort.members) for host in job.hosts for stage in host.stages for cohort in stage.cohorts]
    assert sum(sizes) >= 100
    assert sum(sizes) / (len(sizes) * prepared.config.numerics.cohort) > 0.5


def trained(prepared: Prepared, count: int, *, looks: list[int], at_each: Any) -> Round:
    model, adapters = load_backbone(prepared)
    with InlineExecutor(prepared.setting, make_tripartite(prepared, model), make_recipe(prepared)) as executor:
        state = prepared.protocol.start(adapters)
        for number, finished in enumerate(rounds(prepared, state, executor), start=1):
            last = finished
            del finished
            if number in looks:
                at_each()
            if number == count:
                break
    return last


def test_memory_is_flat_and_a_client_at_rest_is_small() -> None:
    prepared = prepared_with(
        12,
        2,
        {"rounds": 100, "trust": {}},
        task={**TASK, "probes": {"kind": "generated", "count": 4}},
        numerics={"precision": "fp32", "device": "cpu", "cohort": 4},
    )
    tensor_bytes: list[int] = []
    other_bytes: list[int] = []

    def look() -> None:
        gc.collect()
        alive = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if _is_tensor(t)
        }
        tensor_bytes.append(sum(alive.values()))
        other_bytes.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    try:
        last = trained(prepared, 20, looks=[5, 20], at_each=look)
    finally:
        tracemalloc.stop()
    assert tensor_bytes[1] == tensor_bytes[0] > 0
    assert other_bytes[1] - other_bytes[0] < 15 * 20_000
    at_rest = len(pickle.dumps(replace(last.state, adapters=None, versions={})))
    assert at_rest / prepared.setting.num_clients <= MOST_BYTES_OF_A_CLIENT_AT_REST


def _is_tensor(thing: object) -> bool:
    return type(thing) in (torch.Tensor, torch.nn.Parameter)
