"""Tiny runs whose payloads are written down."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from elsa_ray.experiment import rounds
from elsa_ray.model.split import Split
from elsa_ray.prepare import Prepared, load_backbone, make_recipe, make_tripartite, prepare
from elsa_ray.privacy.capture import Attacker, Observed, Truth, observe, truth_of
from elsa_ray.privacy.inverter import InverterBudget
from elsa_ray.privacy.public_text import PublicText, computed_of_public_text
from elsa_ray.privacy.suite import Suite
from elsa_ray.privacy.tap import Tap, TappedExecutor
from elsa_ray.records.round import Round
from elsa_ray.training.recipe import Recipe

from ..helpers import run_config, write_texts

CLIENTS, RANK = 3, 6
SSOP = {"kind": "ssop", "rank": RANK, "energy": 1.0}
SHORT = InverterBudget(hidden_units=8, steps=3, batch_size=16)


@dataclass(frozen=True)
class Captured:
    prepared: Prepared
    recipe: Recipe
    tap: Tap
    rounds: list[Round]
    model: Any

    @property
    def truth(self) -> Truth:
        return truth_of(self.tap, self.prepared.setting, self.recipe)

    @property
    def width(self) -> int:
        return self.prepared.setting.shape.hidden_size

    def observed(self, attacker: Attacker = Attacker.EDGE) -> Observed:
        return observe(self.tap, self.recipe, self.width, attacker)

    def suite(self, attacker: Attacker = Attacker.EDGE, truth: Truth | None = None) -> Suite:
        task = self.prepared.setting.task

        @cache
        def public(round_index: int, split: Split) -> PublicText:
            models = self.tap.models
            return computed_of_public_text(self.model, models[round_index], split, task.test, self.recipe.pad_id)

        return Suite(
            "codec",
            self.recipe,
            self.observed(attacker),
            truth or self.truth,
            public,
            special_ids=frozenset(task.backbone.tokenizer.all_special_ids),
            num_labels=task.num_labels,
            budget=SHORT,
        )


def config_of(folder: Path, codec: Any, *, num_test: int = 20, **protocol: Any) -> Any:
    dataset = write_texts(folder, num_train=36, num_test=num_test)
    return run_config(dataset, topology={"clients": CLIENTS, "edges": 1}, protocol={"codec": codec, **protocol})


def capture(config: Any, num_clients: int = CLIENTS) -> Captured:
    prepared = prepare(config)
    backbone, adapters = load_backbone(prepared)
    recipe, model = make_recipe(prepared), make_tripartite(prepared, backbone)
    executor = TappedExecutor(prepared.setting, model, recipe, num_clients)
    with executor:
        done = list(rounds(prepared, prepared.protocol.start(adapters), executor))
    return Captured(prepared, recipe, executor.tap, done, model)
