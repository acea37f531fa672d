"""Small runs that the tests of this folder record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from elsa_ray.config.load import make_config
from elsa_ray.experiment import rounds
from elsa_ray.model.adapters import Adapters
from elsa_ray.prepare import Prepared, load_backbone, make_recipe, make_tripartite, prepare
from elsa_ray.records.folder import RunFolder
from elsa_ray.records.round import Round
from elsa_ray.records.summary import make_summary
from elsa_ray.runtime.executor import Executor, InlineExecutor, NoExecutor

WORDS = {
    "animals": ["cat", "dog", "horse", "sheep", "goat", "fish", "bird", "mouse", "lion", "bear"],
    "tools": ["hammer", "saw", "drill", "wrench", "screw", "nail", "plane", "file", "clamp", "vise"],
    "food": ["bread", "soup", "cheese", "apple", "plum", "rice", "noodle", "pepper", "salt", "honey"],
}


def write_data(folder: Path, num_train: int = 96, num_test: int = 40) -> dict[str, str]:
    """Write a task that is easy to learn, and return the ``dataset`` section that names it."""
    random = np.random.default_rng(0)
    labels = sorted(WORDS)
    paths = {}
    for part, count in (("train", num_train), ("test", num_test)):
        lines = []
        for number in range(count):
            label = labels[number % len(labels)]
            text = " ".join(random.choice(WORDS[label], size=random.integers(3, 12)))
            lines.append(json.dumps({"text": text, "label": label}))
        paths[part] = str(folder / f"{part}.jsonl")
        Path(paths[part]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths


def prepared_run(folder: Path, *overrides: str, **sections: Any) -> Prepared:
    """Prepare a run of six clients on data of its own."""
    config = {
        "name": "small",
        "task": {"dataset": write_data(folder), "model": "tiny", "max_length": 16},
        "topology": {"clients": 6, "edges": 2},
        "protocol": {"rounds": 2, "local_steps": 2, "batch_size": 4},
        "numerics": {"precision": "fp32", "device": "cpu"},
        "runtime": {"executor": "none"},
    }
    return prepare(make_config({**config, **sections}, overrides, base_folder=folder))


def played(prepared: Prepared) -> Iterator[Round]:
    """Play the rounds of a run as its config says: without training, or inline."""
    executor, adapters = make_executor(prepared)
    with executor:
        yield from rounds(prepared, prepared.protocol.start(adapters), executor)


def make_executor(prepared: Prepared) -> tuple[Executor, Adapters | None]:
    if prepared.config.runtime.executor == "none":
        return NoExecutor(), None
    model, adapters = load_backbone(prepared)
    return InlineExecutor(prepared.setting, make_tripartite(prepared, model), make_recipe(prepared)), adapters


def recorded(prepared: Prepared, path: Path, *, finish: bool = True) -> tuple[Path, list[Round]]:
    """Run and record; returns the folder and the rounds."""
    with RunFolder.create(path, prepared.config) as folder:
        all_rounds = []
        for finished in played(prepared):
            folder.write_round(finished, prepared.setting)
            all_rounds.append(finished)
        if finish:
            folder.finish(make_summary(prepared.setting, folder.totals, hardware={"machine": "test"}))
    return folder.path, all_rounds


LATE = "world.round_policy={deadline_seconds: 0.2, late: keep}"
DROPPING = "world.round_policy={deadline_seconds: 0.35, late: drop}"
EDGE_ROUNDS = "protocol.edge_rounds=2"
