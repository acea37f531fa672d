"""Whole small runs through any executor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elsa_ray.config.load import make_config
from elsa_ray.experiment import rounds
from elsa_ray.prepare import PRECISIONS, Prepared, load_backbone, make_recipe, make_tripartite, prepare, with_frame
from elsa_ray.records.round import Round
from elsa_ray.runtime.executor import Executor, InlineExecutor, NoExecutor
from elsa_ray.runtime.ray_executor import RayExecutor
from elsa_ray.world.paths import Paths


@dataclass(frozen=True)
class Finished:
    prepared: Prepared
    rounds: list[Round]


def small_config(data: Path, *overrides: str, **protocol: Any) -> Any:
    values = {
        "seed": 3,
        "task": {
            "dataset": {"train": str(data / "train.jsonl"), "test": str(data / "test.jsonl")},
            "partition": {"kind": "dirichlet", "alpha": 0.5},
            "model": "tiny",
            "max_length": 16,
        },
        "topology": {"kind": "hierarchical", "clients": 6, "edges": 2},
        "protocol": {"name": "elsa", "rounds": 2, "local_steps": 2, "batch_size": 4, **protocol},
        "numerics": {"precision": "fp32", "device": "cpu", "cohort": 2, "edges_per_group": 1},
    }
    return make_config(values, overrides)


def execute(config: Any, executor: str, before_start: Callable[[], object] = lambda: None) -> Finished:
    """Run an experiment; ``before_start`` is called once data and weights were read."""
    prepared = prepare(config)
    with _executor(prepared, executor, before_start) as (running, adapters):
        return Finished(prepared, list(rounds(prepared, prepared.protocol.start(adapters), running)))


class _executor:  # noqa: N801 - used as a function
    def __init__(self, prepared: Prepared, kind: str, before_start: Callable[[], object]) -> None:
        self._prepared, self._kind, self._before_start = prepared, kind, before_start

    def __enter__(self) -> tuple[Executor, Any]:
        prepared = self._prepared
        if self._kind == "none":
            self._executor: Executor = NoExecutor()
            return self._executor, None
        model, adapters = load_backbone(prepared)
        recipe = with_frame(prepared, make_recipe(prepared), model, adapters)
        self._before_start()
        if self._kind == "inline":
            self._executor = InlineExecutor(prepared.setting, make_tripartite(prepared, model), recipe)
        else:
            model = model.to(PRECISIONS[prepared.config.numerics.precision])
            self._executor = RayExecutor(prepared.setting, model, recipe, address=None, status=lambda text: None)
        return self._executor, adapters

    def __exit__(self, *exception: object) -> None:
        self._executor.close()


def same(first: Any, second: Any) -> bool:
    """Whether nested values agree bit by bit, NaN with NaN."""
    if isinstance(first, torch.Tensor | np.ndarray):
        one, other = np.asarray(first), np.asarray(second)
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if is_dataclass(first):
        return all(same(getattr(first, field.name), getattr(second, field.name)) for field in fields(first))
    if isinstance(first, Paths):
        return same(vars(first), vars(second))
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(same(*pair) for pair in zip(first, second, strict=True))
    return bool(first == second)


def same_adapters(first: Finished, second: Finished) -> bool:
    """Whether the global adapters agree bit by bit after every round."""
    return all(
        a.state.adapters.keys() == b.state.adapters.keys()
        and all(torch.equal(a.state.adapters[name], b.state.adapters[name]) for name in a.state.adapters)
        for a, b in zip(first.rounds, second.rounds, strict=True)
    )
