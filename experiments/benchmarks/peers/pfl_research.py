"""The same work in pfl-research's simulated backend, one process a CPU through torchrun.

``torchrun --nproc_per_node=2 pfl_research.py WORK_FOLDER OUT_FOLDER``
"""

from __future__ import annotations

import os
from collections.abc import Mapping

os.environ.setdefault("PFL_PYTORCH_DEVICE", "cpu")

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.internal.ops.selector import get_framework_module
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor
from work import Clock, Trainer, Work, run


class Module(torch.nn.Module):
    """The model as pfl wants it: with a loss and metrics."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.trainer, self.model = trainer, trainer.model

    def loss(self, ids_BS: Tensor, labels_B: Tensor) -> Tensor:
        """The mean loss of a batch."""
        return self.trainer.loss(ids_BS, labels_B)

    def metrics(self, *user_data: Tensor) -> dict:
        """Nothing is evaluated."""
        return {}


class NoOp(FederatedAveraging):
    """Federated averaging whose clients do nothing."""

    def train_one_user(self, initial_model_state, model, user_dataset, central_context):
        """Return the difference to the model as it came."""
        return model.get_model_difference(initial_model_state), Metrics()


class RoundTimes(TrainingProcessCallback):
    """Takes the time of each round, and tells which one it is."""

    def __init__(self) -> None:
        self.clock, self.round_index = Clock(), 0

    def on_train_begin(self, *, model):
        """Begin."""
        self.clock.start()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """End a round."""
        self.clock.round()
        self.round_index += 1
        return False, Metrics()


def pfl_research(work: Work) -> tuple[Clock, Mapping[str, Tensor]]:
    """Run FedAvg over all clients."""
    torch.manual_seed(0)
    trainer = Trainer(work)
    module = Module(trainer)
    central = torch.optim.SGD(trainer.trained.values(), lr=1.0)
    model = PyTorchModel(module, lambda parameters, lr: trainer.optimizer(), central)
    facts = work.facts
    _run(work, model, facts["warm_up_clients"], 1)
    trainer.set(work.first_adapters)
    times = _run(work, model, facts["clients"], facts["rounds"])
    return times.clock, trainer.get()


def _run(work: Work, model: PyTorchModel, clients: int, rounds: int) -> RoundTimes:
    facts, times = work.facts, RoundTimes()
    ids_RCTBS, labels_RCTB = work.batches
    _steps, batch = ids_RCTBS.shape[2:4]

    def user(client: int) -> Dataset:
        own = times.round_index, client
        raw = [ids_RCTBS[own].flatten(0, 1), labels_RCTB[own].flatten()]
        return Dataset(raw_data=raw, user_id=str(client))

    order = iter(list(range(clients)) * (rounds + 3))
    data = FederatedDataset(user, lambda: next(order))
    algorithm = (NoOp if facts["is_no_op"] else FederatedAveraging)()
    algorithm.run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=10 * rounds,
            train_cohort_size=clients,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=data, val_data=data),
        model,
        NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=facts["learning_rate"],
            local_batch_size=batch,
            local_num_steps=None,
        ),
        callbacks=[times],
        send_metrics_to_platform=False,
    )
    return times


if __name__ == "__main__":
    if get_framework_module().distributed.global_rank == 0:
        run(pfl_research)
    else:
        import sys
        from pathlib import Path

        pfl_research(Work(Path(sys.argv[1])))
