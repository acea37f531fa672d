"""Tiny real runs in a town of a few clients, one edge and the cloud, whose times can be computed by hand.

Bandwidths, speeds and latencies are powers of two, so that floats hold every time exactly; each client has a link and a
slot at the edge of its own, and the trunk is wide enough for all, so nobody waits for anybody.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from elsa_ray.codecs.wire import HEADER_BYTES
from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.config.load import make_config
from elsa_ray.experiment import rounds
from elsa_ray.model.adapters import Adapters
from elsa_ray.model.cost import step_flops
from elsa_ray.model.split import Part, cut, whole
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.prepare import Prepared, load_backbone, make_recipe, make_tripartite, prepare, with_frame
from elsa_ray.records.round import Round
from elsa_ray.runtime.executor import InlineExecutor, NoExecutor
from elsa_ray.training.batches import examples_of_steps
from elsa_ray.world.plan import ActivityKind, Stage, WorkKey
from elsa_ray.world.roles import Role
from elsa_ray.world.timeline import Timeline
from tests.world.stories import assert_equal

UP, DOWN, TRUNK = 2.0**16, 2.0**17, 2.0**24
ACCESS_LATENCY, TRUNK_LATENCY = 2.0**-6, 2.0**-5
CLIENT_FLOPS, EDGE_FLOPS = 2.0**30, 2.0**33
SLOW = 2.0
"""How many times slower than the others the links of the last client are."""

Event = tuple[str, float | None, float | None]


def write_corpus(folder: Path, *, texts: int = 48, seed: int = 0) -> dict[str, str]:
    rng = random.Random(seed)
    words = ["river", "mountain", "valley", "forest", "desert", "ocean", "island", "glacier", "canyon", "prairie"]
    paths = {}
    for name, count in (("train", texts), ("test", 12)):
        rows = [
            {"text": " ".join(rng.choices(words, k=rng.randint(2, 9))), "label": f"label{number % 3}"}
            for number in range(count)
        ]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        paths[name] = str(path)
    return paths


def write_town(folder: Path, clients: int, slower_last: float) -> dict[str, str]:
    nodes = [{"id": f"client{number}", "kind": "client"} for number in range(clients)]
    nodes += [{"id": "edge0", "kind": "edge"}, {"id": "cloud", "kind": "cloud"}]
    links: list[dict[str, Any]] = [
        {"source": "edge0", "target": "cloud", "bandwidth_bytes_per_second": TRUNK, "latency_seconds": TRUNK_LATENCY}
    ]
    for number in range(clients):
        slower = slower_last if number == clients - 1 else 1.0
        links.append(
            {
                "source": f"client{number}",
                "target": "edge0",
                "bandwidth_bytes_per_second": UP / slower,
                "reverse_bandwidth_bytes_per_second": DOWN / slower,
                "latency_seconds": ACCESS_LATENCY,
            }
        )
    path = folder / "town.yaml"
    path.write_text(yaml.safe_dump({"nodes": nodes, "links": links}), encoding="utf-8")
    return {"file": str(path)}


def town_config(
    folder: Path,
    *,
    clients: int = 3,
    slower_last: float = SLOW,
    world: dict[str, Any] | None = None,
    **sections: Any,
) -> Any:
    """Return the config of a tiny run in town; a section given is merged over the default, a topology replaces it."""
    defaults: dict[str, dict[str, Any]] = {
        "task": {"dataset": write_corpus(folder), "model": "tiny", "max_length": 16, "lora": {"rank": 4}},
        "topology": write_town(folder, clients, slower_last),
        "protocol": {"name": "elsa", "rounds": 3, "local_steps": 2, "batch_size": 4},
        "world": {
            "clients": {
                "device": {"flops_per_second": CLIENT_FLOPS, "active_watts": 4.0, "radio_joules_per_byte": 0.25}
            },
            "edges": {"device": {"flops_per_second": EDGE_FLOPS, "active_watts": 64.0}, "slots": clients},
            **(world or {}),
        },
        "numerics": {"precision": "fp32", "device": "cpu", "cohort": 4},
        "runtime": {"executor": "inline"},
        "evaluation": {"every": 100},
    }
    if "topology" in sections:
        defaults["topology"] = {}
    return make_config({name: {**values, **sections.get(name, {})} for name, values in defaults.items()})


@dataclass(frozen=True)
class TownRun:
    """A run that has ended; ``model`` and ``first_adapters`` are None where nothing was trained."""

    prepared: Prepared
    rounds: list[Round]
    model: TripartiteModel | None = None
    first_adapters: Adapters | None = None

    @property
    def timelines(self) -> list[Timeline]:
        return [each.timeline for each in self.rounds]


def train(config: ExperimentConfig) -> TownRun:
    """Run in this process, for real."""
    prepared = prepare(config)
    backbone, adapters = load_backbone(prepared)
    recipe = with_frame(prepared, make_recipe(prepared), backbone, adapters)
    model = make_tripartite(prepared, backbone)
    with InlineExecutor(prepared.setting, model, recipe) as executor:
        done = list(rounds(prepared, prepared.protocol.start(adapters), executor))
    return TownRun(prepared, done, model, adapters)


def only_plan(config: ExperimentConfig) -> TownRun:
    """Run timing-only."""
    prepared = prepare(config)
    with NoExecutor() as executor:
        return TownRun(prepared, list(rounds(prepared, prepared.protocol.start(None), executor)))


def assert_same_timelines(first: TownRun, second: TownRun) -> None:
    assert len(first.rounds) == len(second.rounds)
    for one, other in zip(first.timelines, second.timelines, strict=True):
        assert_equal(one, other)


def events(timeline: Timeline) -> list[Event]:
    """Return (what, start, finish) of all activities, sorted; names tell client, version and step."""
    table, entries = timeline.activities, []
    for row in range(len(table)):
        kind, work, step = ActivityKind(int(table.kind[row])), int(table.work[row]), int(table.step[row])
        label = {
            ActivityKind.GATHER: "gather",
            ActivityKind.TRANSFER: Role(max(1, int(table.label[row]))).label,
            ActivityKind.COMPUTE: Stage(min(max(Stage), int(table.label[row]))).label,
        }[kind]
        start, finish = float(timeline.start_seconds[row]), float(timeline.finish_seconds[row])
        what = name_event(label, timeline.work.key(work) if work >= 0 else None, step)
        entries.append((what, None if np.isnan(start) else start, None if np.isnan(finish) else finish))
    return sorted(entries, key=str)


def name_event(label: str, key: WorkKey | None = None, step: int = -1) -> str:
    return (
        label if key is None else f"{label} of client {key.client} from {key.round_index}.{key.edge_round} step {step}"
    )


class Hand:
    """Computes by hand what a client's round and the trunk take, from shapes, bytes, FLOPs and figures of the town."""

    def __init__(self, prepared: Prepared, *, slower_last: float = SLOW) -> None:
        self.setting, self.config = prepared.setting, prepared.config.protocol
        self.slower_last = slower_last

    @cached_property
    def trunk_seconds(self) -> float:
        return TRUNK_LATENCY + self.adapter_bytes(*Part) / TRUNK

    def adapter_bytes(self, *parts: Part) -> int:
        """Return the bytes of the adapters of some parts: four a number, and the header."""
        setting = self.setting
        split = cut(setting.shape.num_layers, 1, 1)
        names = {tensor.name for part in parts for tensor in setting.layout.part(split, part)}
        numbers = sum(int(np.prod(tensor.shape)) for tensor in setting.layout.tensors if tensor.name in names)
        return HEADER_BYTES + 4 * numbers

    def batches(self, key: WorkKey) -> list[tuple[int, int]]:
        """Return texts and longest text of each step's batch."""
        setting = self.setting
        examples_TB = examples_of_steps(key, setting.task.partition[key.client], self.config, setting.seed)
        present = [[example for example in row.tolist() if example >= 0] for row in examples_TB]
        return [(len(row), max(int(setting.task.train.lengths[example]) for example in row)) for row in present]

    def split_work(self, key: WorkKey, begin: float) -> list[Event]:
        """Return the events of one client's split training, which gets its model at ``begin``."""
        setting, slower = self.setting, self._slower(key)
        flops = step_flops(setting.shape, setting.layout, cut(setting.shape.num_layers, 1, 1))
        log: list[Event] = []
        now = begin

        def take(label: str, step: int, seconds: float) -> None:
            nonlocal now
            log.append((name_event(label, key, step), now, now + seconds))
            now += seconds

        def up(role: str, num_bytes: int, step: int = -1) -> None:
            take(role, step, ACCESS_LATENCY + num_bytes / (UP / slower))

        def down(role: str, num_bytes: int, step: int = -1) -> None:
            take(role, step, ACCESS_LATENCY + num_bytes / (DOWN / slower))

        held = self.adapter_bytes(Part.FRONT, Part.BACK)
        down("adapter_down", held)
        for step, (texts, length) in enumerate(self.batches(key)):
            hidden = HEADER_BYTES + 4 * texts * length * setting.shape.hidden_size
            take("front_forward", step, int(flops.front_forward.total(texts, length)) / CLIENT_FLOPS)
            up("activation_up", hidden + 2 * texts, step)
            take("middle_forward", step, int(flops.middle_forward.total(texts, length)) / EDGE_FLOPS)
            down("activation_down", hidden, step)
            take("back", step, int(flops.back_forward_backward.total(texts, length)) / CLIENT_FLOPS)
            up("gradient_up", hidden, step)
            take("middle_backward", step, int(flops.middle_backward.total(texts, length)) / EDGE_FLOPS)
            down("gradient_down", hidden, step)
            take("front_backward", step, int(flops.front_backward.total(texts, length)) / CLIENT_FLOPS)
        up("adapter_up", held)
        return log

    def whole_work(self, key: WorkKey, begin: float) -> list[Event]:
        """Return the events of one client's local training of the whole model."""
        setting, slower = self.setting, self._slower(key)
        per_step = step_flops(setting.shape, setting.layout, whole(setting.shape.num_layers)).whole
        flops = sum(int(per_step.total(texts, length)) for texts, length in self.batches(key))
        latency, num_bytes = ACCESS_LATENCY + TRUNK_LATENCY, self.adapter_bytes(*Part)
        held = begin + latency + num_bytes / (DOWN / slower)
        trained = held + flops / CLIENT_FLOPS
        sent = trained + latency + num_bytes / (UP / slower)
        return [
            (name_event("adapter_down", key), begin, held),
            (name_event("local_training", key), held, trained),
            (name_event("adapter_up", key), trained, sent),
        ]

    def _slower(self, key: WorkKey) -> float:
        return self.slower_last if key.client == self.setting.num_clients - 1 else 1.0


def end_of(log: Sequence[Event]) -> float:
    """Return when the last event of a client's log ends."""
    finish = log[-1][2]
    assert finish is not None
    return finish


def until(log: Sequence[Event], instant: float) -> list[Event]:
    """Return the log as it is known at an instant."""
    return [
        (
            what,
            start if start is not None and start <= instant else None,
            finish if finish is not None and finish <= instant else None,
        )
        for what, start, finish in log
    ]


def unfinished(log: Sequence[Event], instant: float) -> list[Event]:
    """Return what of a log is carried over an instant."""
    return [event for event in log if event[2] is not None and event[2] > instant]


def halfway(first: float, second: float) -> float:
    """Return a moment about midway between two, in whole 256ths of a second."""
    assert second - first > 2 / 256
    return round((first + second) / 2 * 256) / 256
