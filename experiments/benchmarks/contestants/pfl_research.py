"""The same work in pfl-research's simulated backend, one process a CPU: ``torchrun --nproc_per_node=2``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

os.environ.setdefault("PFL_PYTORCH_DEVICE", "cpu")

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor
from work import Trainer, Turns, Work, run


class Module(torch.nn.Module):
    """The model as pfl wants it: with a loss and metrics."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.trainer, self.model = trainer, trainer.model

    def loss(self, ids_BS: Tensor, labels_B: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        return self.trainer.loss(ids_BS, labels_B)

    def metrics(self, *user_data: Tensor) -> dict:
        """Evaluate nothing."""
        return {}


class NoOp(FederatedAveraging):
    """Federated averaging whose clients do nothing."""

    def train_one_user(self, initial_model_state, model, user_dataset, central_context):
        """Return the difference to the model as it came."""
        return model.get_model_difference(initial_model_state), Metrics()


class InTurn(TrainingProcessCallback):
    """Lets all processes wait for their turn between rounds, and counts them."""

    def __init__(self, turns: Turns | None) -> None:
        self._turns, self.round_index = turns, 0

    def on_train_begin(self, *, model):
        """Begin."""
        if self._turns is not None:
            self._turns.wait()
        torch.distributed.barrier()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """End a round. The other process waits at the barrier, lest it goes on with the next."""
        self.round_index += 1
        if self._turns is not None:
            self._turns.end_round()
        torch.distributed.barrier()
        return False, Metrics()


def pfl_research(work: Work, turns: Turns | None) -> Mapping[str, Tensor]:
    """Run FedAvg over all clients; only the first process has a line to the benchmark."""
    facts, in_turn = work.facts, InTurn(turns)
    trainer = Trainer(work)
    trainer.set(work.first_adapters)
    ids_RCTBS, labels_RCTB = work.batches

    def user(client: int) -> Dataset:
        own = in_turn.round_index, client
        return Dataset([ids_RCTBS[own].flatten(0, 1), labels_RCTB[own].flatten()], user_id=str(client))

    clients = iter(list(range(facts["clients"])) * (facts["rounds"] + 1))
    data = FederatedDataset(user, lambda: next(clients))
    parameters = NNAlgorithmParams(
        central_num_iterations=facts["rounds"],
        evaluation_frequency=10 * facts["rounds"],
        train_cohort_size=facts["clients"],
        val_cohort_size=0,
    )
    local = NNTrainHyperParams(
        local_num_epochs=1,
        local_learning_rate=facts["learning_rate"],
        local_batch_size=ids_RCTBS.shape[3],
        local_num_steps=None,
    )
    central = torch.optim.SGD(trainer.trained.values(), lr=1.0)
    algorithm = NoOp() if facts["is_no_op"] else FederatedAveraging()
    algorithm.run(
        parameters,
        SimulatedBackend(training_data=data, val_data=data),
        PyTorchModel(Module(trainer), lambda _, lr: trainer.optimizer(), central),
        local,
        callbacks=[in_turn],
        send_metrics_to_platform=False,
    )
    return trainer.get()


if __name__ == "__main__":
    if os.environ["RANK"] == "0":
        run(pfl_research)
    else:
        pfl_research(Work(Path(sys.argv[1])), None)
