"""The benchmark's work in elsa_ray, as a program of its own: ``python ours.py WORK_FOLDER OUT_FOLDER EXECUTOR``.

What is timed is the whole round, as in ``elsa_ray.run``: plan, simulated network, training, aggregation, records.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import ray
from torch import Tensor
from work import Clock

from elsa_ray.config.load import load_config
from elsa_ray.experiment import rounds
from elsa_ray.prepare import PRECISIONS, Prepared, load_backbone, make_recipe, make_tripartite, prepare
from elsa_ray.records.folder import RunFolder
from elsa_ray.runtime import pool
from elsa_ray.runtime.executor import Executor, InlineExecutor
from elsa_ray.training.client import ClientResult
from elsa_ray.training.memory import CutMemory


def main() -> None:
    work, out, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    facts = json.loads((work / "work.json").read_text())
    overrides = [f"runtime.executor={kind}", f"protocol.rounds={facts['rounds'] + 1}"]
    if len(sys.argv) > 4:
        overrides.append(f"runtime.pools={sys.argv[4]}")
    config = load_config(work / "config.yaml", overrides)
    share = facts["warm_up_clients"] / facts["clients"]
    few = load_config(work / "config.yaml", [*overrides, f"protocol.participation={share}"])
    prepared, warm_up = prepare(config), prepare(few)
    if facts["is_no_op"]:
        train_nothing()
    with make_executor(prepared, kind, no_op=facts["is_no_op"]) as executor, tempfile.TemporaryDirectory() as folder:
        _, adapters = load_backbone(prepared)
        run_rounds(warm_up, executor, adapters, Path(folder) / "warm-up", 1)
        clock, after = run_rounds(prepared, executor, adapters, Path(folder) / "run", facts["rounds"])
    clock.write(out, after)


def make_executor(prepared: Prepared, kind: str, *, no_op: bool) -> Executor:
    model, _ = load_backbone(prepared)
    recipe = make_recipe(prepared)
    if kind == "inline":
        return InlineExecutor(prepared.setting, make_tripartite(prepared, model), recipe)
    from elsa_ray.runtime.ray_executor import RayExecutor

    # A found cluster is used as it is, so its workers can be told to train nothing.
    hook = {"worker_process_setup_hook": train_nothing} if no_op else None
    ray.init(address="local", include_dashboard=False, log_to_driver=False, runtime_env=hook)
    model = model.to(PRECISIONS[prepared.config.numerics.precision])
    return RayExecutor(prepared.setting, model, recipe, address=None, status=lambda text: None)


def run_rounds(
    prepared: Prepared, executor: Executor, adapters: Mapping[str, Tensor], folder: Path, count: int
) -> tuple[Clock, Mapping[str, Tensor]]:
    """Return the times of the rounds and the adapters after the last; records are written as in every run."""
    clock, state = Clock(), prepared.protocol.start(dict(adapters))
    with RunFolder.create(folder, prepared.config) as records:
        clock.start()
        for finished in islice(rounds(prepared, state, executor), count):
            records.write_round(finished, prepared.setting)
            clock.round()
            state = finished.state
    assert state.adapters is not None
    return clock, state.adapters


def train_nothing() -> None:
    """Let clients give their adapters back as they got them: what is left is bookkeeping."""

    def idle(model, cohort, recipe, tokens, examples, adapters_of_members, meter, memories=None):
        yield from ()
        return [ClientResult(adapters, 0.0, CutMemory(), None) for adapters in adapters_of_members]

    pool.train_clients = idle


if __name__ == "__main__":
    main()
