"""The work in elsa_ray: ``python ours.py WORK_FOLDER OUT_FILE``.

A round is all of it, as in ``elsa_ray.run``, but for the checkpoint: plan, simulated network, training, aggregation,
records.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import ray
from torch import Tensor
from work import Turns, Work, run

from elsa_ray.config.load import load_config
from elsa_ray.experiment import rounds
from elsa_ray.prepare import PRECISIONS, Prepared, load_backbone, make_recipe, make_tripartite, prepare
from elsa_ray.records.folder import RunFolder
from elsa_ray.runtime import pool
from elsa_ray.runtime.executor import Executor, InlineExecutor
from elsa_ray.training.client import ClientResult
from elsa_ray.training.memory import CutMemory


def ours(work: Work, turns: Turns) -> Mapping[str, Tensor]:
    """Run the rounds that the work folder's config says, but for the last, which would test the model."""
    prepared = prepare(load_config(work.folder / "config.yaml"))
    if work.facts["is_no_op"]:
        train_nothing()
    _, adapters = load_backbone(prepared)
    with (
        make_executor(prepared, no_op=work.facts["is_no_op"]) as executor,
        tempfile.TemporaryDirectory() as folder,
        RunFolder.create(Path(folder) / "run", prepared.config) as records,
    ):
        state = prepared.protocol.start(dict(adapters))
        turns.wait()
        for finished in islice(rounds(prepared, state, executor), work.facts["rounds"]):
            records.write_round(finished, prepared.setting)
            state = finished.state
            turns.end_round()
    assert state.adapters is not None
    return state.adapters


def make_executor(prepared: Prepared, *, no_op: bool) -> Executor:
    """Start the executor that the config names."""
    model, _ = load_backbone(prepared)
    recipe = make_recipe(prepared)
    if prepared.config.runtime.executor == "inline":
        return InlineExecutor(prepared.setting, make_tripartite(prepared, model), recipe)
    from elsa_ray.runtime.ray_executor import RayExecutor

    # A found cluster is used as it is, so its workers can be told to train nothing.
    hook = {"worker_process_setup_hook": train_nothing} if no_op else None
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=hook)
    model = model.to(PRECISIONS[prepared.config.numerics.precision])
    return RayExecutor(prepared.setting, model, recipe, address=None, status=lambda text: None)


def train_nothing() -> None:
    """Let clients give their adapters back as they got them: what is left is bookkeeping."""

    def idle(model, cohort, recipe, tokens, examples, adapters_of_members, *args, **kwargs):
        yield from ()
        return [ClientResult(adapters, 0.0, CutMemory(), None) for adapters in adapters_of_members]

    pool.train_clients = idle


if __name__ == "__main__":
    run(ours)
