"""The floor: a bare torch loop over the same clients and steps, one process a CPU, with nothing around it."""

from __future__ import annotations

from collections.abc import Mapping

import torch.multiprocessing as mp
from torch import Tensor
from work import Clock, Trainer, Work, mean_of, run

PROCESSES = 2


def plain(work: Work) -> tuple[Clock, Mapping[str, Tensor]]:
    """Share the clients out among the processes; their sums come back once a round."""
    context = mp.get_context("spawn")
    pipes = [context.Pipe() for _ in range(PROCESSES)]
    workers = [
        context.Process(target=_worker, args=(work.folder, rank, end), daemon=True)
        for rank, (_, end) in enumerate(pipes)
    ]
    for worker in workers:
        worker.start()
    ends = [mine for mine, _ in pipes]
    for end in ends:
        end.recv()
    facts, clock, adapters = work.facts, Clock(), work.first_adapters
    _round(ends, adapters, 0, facts["warm_up_clients"])
    clock.start()
    for round_index in range(facts["rounds"]):
        adapters = _round(ends, adapters, round_index, facts["clients"])
        clock.round()
    for end in ends:
        end.send(None)
    return clock, adapters


def _round(ends: list, adapters: Mapping[str, Tensor], round_index: int, clients: int) -> Mapping[str, Tensor]:
    as_arrays = {name: tensor.numpy() for name, tensor in adapters.items()}
    for rank, end in enumerate(ends):
        end.send((as_arrays, round_index, range(rank, clients, PROCESSES)))
    return mean_of({name: _tensor(value) for name, value in end.recv().items()} for end in ends)


def _worker(folder, rank: int, end) -> None:
    work = Work(folder)
    trainer = Trainer(work)
    end.send("ready")
    while (job := end.recv()) is not None:
        as_arrays, round_index, clients = job
        adapters = {name: _tensor(value) for name, value in as_arrays.items()}

        def trained(client: int, round_index: int = round_index, adapters=adapters) -> Mapping[str, Tensor]:
            trainer.set(adapters)
            trainer.train(round_index, client)
            return trainer.get()

        end.send({name: value.numpy() for name, value in mean_of(map(trained, clients)).items()})


def _tensor(array) -> Tensor:
    import torch

    return torch.from_numpy(array)


if __name__ == "__main__":
    run(plain)
