"""The work that every contestant does: same model, first adapters, batches, optimiser, FedAvg.

A work folder holds ``work.json``, ``model/`` (transformers), ``adapters.safetensors`` and ``batches.npz``; the
benchmark writes it with elsa_ray. This module needs torch, transformers, PEFT, numpy and safetensors only, so that
each contestant can have an environment of its own.
Shapes: R rounds, C clients, T steps, B texts, S tokens.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
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
        """clients, rounds, learning_rate, rank, alpha, targets, is_no_op, precision."""
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


class Trainer:
    """One model in this process, trained for one client after the other."""

    def __init__(self, work: Work) -> None:
        torch.set_num_threads(1)
        self.work, facts = work, work.facts
        in_bf16 = facts["precision"] == "bf16"
        # torch's fused attention is several times slower backwards in bf16 on a CPU.
        attention = "eager" if in_bf16 else "sdpa"
        dtype = torch.bfloat16 if in_bf16 else torch.float32
        folder = work.folder / "model"
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
        self.trained = {name: own[_peft_name(name)] for name in work.first_adapters}
        sent = set(map(_peft_name, self.trained))
        others = [name for name, value in own.items() if value.requires_grad and name not in sent]
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


class Turns:
    """The contestant's line to the benchmark: it starts a round when it is told to, and tells how long that took.

    A contestant calls ``wait`` when it is ready, then ``end_round`` after each round; the call returns when the next
    round may begin.
    """

    def __init__(self) -> None:
        line = socket.socket(socket.AF_UNIX)
        line.connect(os.environ["BENCH_SOCKET"])
        self._line = line.makefile("rw")
        self._begin = 0.0

    def wait(self) -> None:
        """Say that this contestant is ready, and begin the first round when it is its turn."""
        self._say(0.0)

    def end_round(self) -> None:
        """Tell the round's wall seconds, and begin the next when it is this contestant's turn."""
        self._say(time.perf_counter() - self._begin)

    def _say(self, seconds: float) -> None:
        self._line.write(f"{seconds!r}\n")
        self._line.flush()
        if not self._line.readline():
            raise SystemExit("the benchmark is gone")
        self._begin = time.perf_counter()


Contestant = Callable[[Work, Turns], Mapping[str, Tensor]]
"""Does all rounds of a work, and returns the adapters after the last."""


def run(contestant: Contestant) -> None:
    """Run a contestant as a program: ``python CONTESTANT.py WORK_FOLDER OUT_FILE``."""
    work, out = Path(sys.argv[1]), Path(sys.argv[2])
    adapters = contestant(Work(work), Turns())
    save_file({name: tensor.detach().float().contiguous() for name, tensor in adapters.items()}, f"{out}.part")
    Path(f"{out}.part").rename(out)


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
