"""The floor: a bare torch loop over the same clients and steps, one process a CPU, with nothing around it."""

from __future__ import annotations

from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp
from torch import Tensor
from work import Trainer, Turns, Work, mean_of, run

PROCESSES = 2

Arrays = Mapping[str, np.ndarray]


def plain(work: Work, turns: Turns) -> Mapping[str, Tensor]:
    """Share the clients out among the processes; their means come back once a round."""
    context = mp.get_context("spawn")
    pipes = [context.Pipe() for _ in range(PROCESSES)]
    for rank, (_, end) in enumerate(pipes):
        context.Process(target=_worker, args=(work.folder, rank, end), daemon=True).start()
    ends = [mine for mine, _ in pipes]
    for end in ends:
        end.recv()
    adapters: Mapping[str, Tensor] = work.first_adapters
    turns.wait()
    for _ in range(work.facts["rounds"]):
        arrays = {name: tensor.numpy() for name, tensor in adapters.items()}
        for end in ends:
            end.send(arrays)
        adapters = mean_of(_tensors(end.recv()) for end in ends)
        turns.end_round()
    return adapters


def _worker(folder: Path, rank: int, end: Connection) -> None:
    """Train every PROCESSES-th client, and send back the mean (the number of clients is even)."""
    work = Work(folder)
    trainer = Trainer(work)
    clients = range(rank, work.facts["clients"], PROCESSES)
    end.send("ready")
    for round_index in range(work.facts["rounds"]):
        adapters = _tensors(end.recv())
        after = mean_of(_trained(trainer, adapters, round_index, client) for client in clients)
        end.send({name: value.numpy() for name, value in after.items()})


def _trained(trainer: Trainer, adapters: Mapping[str, Tensor], round_index: int, client: int) -> Mapping[str, Tensor]:
    trainer.set(adapters)
    trainer.train(round_index, client)
    return trainer.get()


def _tensors(arrays: Arrays) -> Mapping[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


if __name__ == "__main__":
    run(plain)
