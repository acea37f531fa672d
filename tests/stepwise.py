"""Whole runs in this process that a test stops between rounds, to look at what is remembered or to change it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pytest
import yaml

from elsa_ray.clustering import trust
from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.config.load import make_config
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.prepare import Prepared, load_backbone, make_recipe, make_tripartite, prepare, with_frame
from elsa_ray.protocols.elsa import ElsaState
from elsa_ray.protocols.protocol import RoundResults
from elsa_ray.protocols.setting import Setting
from elsa_ray.records.round import Round
from elsa_ray.runtime.executor import Executor, InlineExecutor
from elsa_ray.training.recipe import Recipe

Way = tuple[float, float, float]
"""A link between a client and an edge: bytes per second up and down, seconds of latency."""


def exclude_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no client be excluded, whatever it answers; scores still weigh."""
    monkeypatch.setattr(trust, "_charges", lambda *arguments: {})
    monkeypatch.setattr(trust, "_charges_of_direction", lambda *arguments: {})


class Stepwise:
    """A run of which each call of ``round`` is one more global round. Use it as a context manager.

    Args:
        config: of the run.
        prepared: made of it, where the test has changed it; by default it is made here.
        executor: makes what trains of setting, model and recipe.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        prepared: Prepared | None = None,
        executor: Callable[[Setting, TripartiteModel, Recipe], Executor] = InlineExecutor,
    ) -> None:
        self.prepared = prepared or prepare(config)
        backbone, self.first_adapters = load_backbone(self.prepared)
        self.recipe = with_frame(self.prepared, make_recipe(self.prepared), backbone, self.first_adapters)
        self.model = make_tripartite(self.prepared, backbone)
        self._executor = executor(self.prepared.setting, self.model, self.recipe)
        state = self.prepared.protocol.start(self.first_adapters)
        assert isinstance(state, ElsaState)
        self.state = state
        self.world_state = self.prepared.world.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._executor.close()

    def change(self, **fields: Any) -> None:
        """Let the next round start from a state with other fields."""
        self.state = replace(self.state, **fields)

    def round(self, change: Callable[[RoundResults], RoundResults] = lambda results: results) -> Round:
        """Plan, play, train and conclude a round; ``change`` has its results before they are concluded."""
        protocol = self.prepared.protocol
        plan = protocol.plan(self.state, self.world_state)
        timeline, self.world_state = self.prepared.world.play(plan, self.world_state)
        results = change(self._executor.run(plan, timeline, self.state, evaluate=False))
        after, report = protocol.conclude(self.state, results, plan, timeline)
        assert isinstance(after, ElsaState)
        self.state = after
        return Round(plan, timeline, results, report, after, self.world_state, None, {})


def write_towns(folder: Path, ways: list[dict[int, Way]], trunks: list[tuple[float, float]]) -> dict[str, str]:
    """Write a topology of several edges around one cloud, and return the config's ``topology`` section for it.

    Args:
        folder: where.
        ways: of each client its links, by the number of the edge.
        trunks: bytes per second and seconds of latency between each edge and the cloud.
    """
    nodes = [{"id": f"client{client}", "kind": "client"} for client in range(len(ways))]
    nodes += [{"id": f"edge{edge}", "kind": "edge"} for edge in range(len(trunks))] + [{"id": "cloud", "kind": "cloud"}]
    links: list[dict[str, Any]] = [
        {
            "source": f"edge{edge}",
            "target": "cloud",
            "bandwidth_bytes_per_second": bandwidth,
            "latency_seconds": latency,
        }
        for edge, (bandwidth, latency) in enumerate(trunks)
    ]
    for client, own in enumerate(ways):
        links += [
            {
                "source": f"client{client}",
                "target": f"edge{edge}",
                "bandwidth_bytes_per_second": up,
                "reverse_bandwidth_bytes_per_second": down,
                "latency_seconds": access,
            }
            for edge, (up, down, access) in own.items()
        ]
    path = folder / "towns.yaml"
    path.write_text(yaml.safe_dump({"nodes": nodes, "links": links}), encoding="utf-8")
    return {"file": str(path)}


def with_deadline(config: ExperimentConfig, *, late: int) -> ExperimentConfig:
    """Return the config with a deadline that one client's first work misses, alone, and which keeps late work."""
    prepared = prepare(config)
    plan = prepared.protocol.plan(prepared.protocol.start(None), prepared.world.start())
    timeline, _ = prepared.world.play(plan, prepared.world.start())
    ends: dict[int, float] = {}
    for row in np.flatnonzero(timeline.activities.work >= 0).tolist():
        ends[int(timeline.activities.client[row])] = float(timeline.finish_seconds[row])
    opened = min(float(timeline.finish_seconds[row]) for row in plan.gathers.opener if row >= 0)
    others = max(end for client, end in ends.items() if client != late)
    assert ends[late] > others
    policy = {"deadline_seconds": (others + ends[late]) / 2 - opened, "late": "keep"}
    values = config.model_dump(mode="json")
    return make_config({**values, "world": {**values["world"], "round_policy": policy}})


def rewrite_data(prepared: Prepared, client: int, seed: int = 0) -> None:
    """Give a client other texts of the same lengths, and other labels; nothing else of the run changes."""
    tokens, generator = prepared.setting.task.train, np.random.default_rng(seed)
    assert tokens.labels is not None
    for index in prepared.setting.task.partition[client].tolist():
        own = tokens.ids(index)
        own[1:-1] = generator.permutation(np.unique(tokens.token_ids))[: len(own) - 2]
        tokens.labels[index] = (tokens.labels[index] + 1) % prepared.setting.task.num_labels


def planted_rows(groups: Mapping[int, int], dimensions: int) -> dict[int, npt.NDArray[np.float32]]:
    """Return a fingerprint row for each client: its group lies ten standard deviations from every other.

    Within a group they differ a little, and the lowest client of each is not the only medoid to choose.
    """
    lower = np.tril_indices(dimensions)
    rows = {}
    for client, group in groups.items():
        mean_d = np.zeros(dimensions)
        mean_d[group % dimensions] = 10.0 * (1 + group // dimensions)
        mean_d[-1] += 0.01 * client
        rows[client] = np.concatenate([mean_d, np.eye(dimensions)[lower]]).astype(np.float32)
    return rows
