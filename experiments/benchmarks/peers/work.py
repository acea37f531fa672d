"""The work that every engine of the benchmark does: same model, first adapters, batches, optimiser, FedAvg.

A work folder holds ``work.json``, ``model/`` (transformers), ``adapters.safetensors`` and ``batches.npz``; the
benchmark writes it with elsa_ray. This module needs torch, transformers, PEFT, numpy, psutil and safetensors only, so
that each engine can have an environment of its own.
Shapes: R rounds, C clients, T steps, B texts, S tokens.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import psutil
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

Adapters = dict[str, Tensor]


@dataclass(frozen=True)
class Work:
    """A work folder, read."""

    folder: Path

    @cached_property
    def facts(self) -> dict:
        """clients, warm_up_clients, rounds, learning_rate, rank, alpha, targets, is_no_op, precision."""
        return json.loads((self.folder / "work.json").read_text())

    @cached_property
    def first_adapters(self) -> Adapters:
        """What the first round starts from."""
        return load_file(self.folder / "adapters.safetensors")

    @cached_property
    def batches(self) -> tuple[Tensor, Tensor]:
        """ids_RCTBS and labels_RCTB of all clients."""
        with np.load(self.folder / "batches.npz") as file:
            return torch.from_numpy(file["ids"]), torch.from_numpy(file["labels"])

    @cached_property
    def test(self) -> tuple[Tensor, Tensor]:
        """ids and labels of held-out texts."""
        with np.load(self.folder / "batches.npz") as file:
            return torch.from_numpy(file["test_ids"]), torch.from_numpy(file["test_labels"])


@dataclass
class Trainer:
    """One model in this process, trained for one client after the other."""

    work: Work

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        facts = self.work.facts
        in_bf16 = facts["precision"] == "bf16"
        # torch's fused attention is several times slower backwards in bf16 on a CPU.
        attention = "eager" if in_bf16 else "sdpa"
        dtype = torch.bfloat16 if in_bf16 else torch.float32
        folder = self.work.folder / "model"
        model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation=attention, dtype=dtype)
        config = LoraConfig(
            r=facts["rank"],
            lora_alpha=facts["alpha"],
            lora_dropout=0.0,
            target_modules=facts["targets"],
            modules_to_save=["classifier"],
        )
        self.model = get_peft_model(model, config).eval()
        own = dict(self.model.named_parameters())
        self.trained = {name: own[_peft_name(name)] for name in self.work.first_adapters}
        others = [
            name for name, value in own.items() if value.requires_grad and name not in map(_peft_name, self.trained)
        ]
        assert not others, f"trained and not sent: {others}"

    def loss(self, ids_BS: Tensor, labels_B: Tensor) -> Tensor:
        """Return the mean loss of a batch; every text has all its tokens."""
        logits = self.model(input_ids=ids_BS, attention_mask=torch.ones_like(ids_BS)).logits
        return torch.nn.functional.cross_entropy(logits.float(), labels_B)

    def set(self, adapters: Mapping[str, Tensor]) -> None:
        """Load adapters."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(adapters[name])

    def get(self) -> Adapters:
        """Copy the adapters."""
        return {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    def optimizer(self) -> torch.optim.Optimizer:
        """Return a client's optimiser, fresh."""
        rate = self.work.facts["learning_rate"]
        return torch.optim.AdamW(self.trained.values(), lr=rate, weight_decay=0.0, foreach=True)

    def train(self, round_index: int, client: int) -> None:
        """Do one client's steps from the adapters that are loaded."""
        if self.work.facts["is_no_op"]:
            return
        optimizer = self.optimizer()
        ids_RCTBS, labels_RCTB = self.work.batches
        for ids_BS, labels_B in zip(ids_RCTBS[round_index, client], labels_RCTB[round_index, client], strict=True):
            self.loss(ids_BS, labels_B).backward()
            optimizer.step()
            optimizer.zero_grad()

    @torch.no_grad()
    def test_loss(self, adapters: Mapping[str, Tensor]) -> float:
        """Return the loss on the held-out texts."""
        self.set(adapters)
        ids, labels = self.work.test
        pieces = zip(ids.split(64), labels.split(64), strict=True)
        return sum(float(self.loss(*piece)) * len(piece[0]) for piece in pieces) / len(ids)


class Clock:
    """Seconds of each round by the wall, and by the processors of all processes of the engine together."""

    def __init__(self) -> None:
        self.wall_seconds: list[float] = []
        self.cpu_seconds: list[float] = []

    def start(self) -> None:
        """Begin the first round."""
        self.wall_seconds, self.cpu_seconds = [], []
        self._begin = time.perf_counter(), cpu_seconds()

    def round(self) -> None:
        """End a round, and begin the next."""
        now = time.perf_counter(), cpu_seconds()
        self.wall_seconds.append(now[0] - self._begin[0])
        self.cpu_seconds.append(now[1] - self._begin[1])
        self._begin = now

    def write(self, out: Path, adapters: Mapping[str, Tensor]) -> None:
        """Leave times and final adapters for the benchmark."""
        as_fp32 = {name: tensor.detach().float().contiguous() for name, tensor in adapters.items()}
        save_file(as_fp32, out / "after.safetensors")
        times = {"wall_seconds": self.wall_seconds, "cpu_seconds": self.cpu_seconds}
        (out / "times.json").write_text(json.dumps(times))


def cpu_seconds() -> float:
    """Return what all processes that the benchmark has started for this engine have used, the living ones."""
    root = psutil.Process(os.getsid(0))
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def run(engine: Callable[[Work], tuple[Clock, Mapping[str, Tensor]]]) -> None:
    """Run an engine as a program: ``python ENGINE.py WORK_FOLDER OUT_FOLDER``."""
    clock, adapters = engine(Work(Path(sys.argv[1])))
    clock.write(Path(sys.argv[2]), adapters)


@cache
def trainer_of(folder: str) -> Trainer:
    """Return the one trainer of this process."""
    return Trainer(Work(Path(folder)))


def mean_of(updates: Iterable[Mapping[str, Tensor]]) -> Adapters:
    """Return the mean of equally weighted adapters."""
    total: Adapters = {}
    count = 0
    for update in updates:
        count += 1
        for name, tensor in update.items():
            total[name] = total[name] + tensor if name in total else tensor.clone()
    return {name: tensor / count for name, tensor in total.items()}


def _peft_name(name: str) -> str:
    path, _, tensor = name.rpartition(".")
    if path.endswith(("lora_A", "lora_B")):
        return f"base_model.model.{path}.default.{tensor}"
    return f"base_model.model.{path}.modules_to_save.default.{tensor}"
