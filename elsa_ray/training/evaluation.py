"""Tests a global model: counts and loss sums over fixed pieces of the test set, so that any worker may take any piece.

Shapes: B texts, S tokens, K classes, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from elsa_ray.model.adapters import Adapters
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.tasks.tokens import TokenizedTexts
from elsa_ray.training.batches import cohort_batch
from elsa_ray.training.loss import client_losses

PIECE_SIZE = 64

LogitsOf = Callable[[Tensor, Tensor, Adapters], Tensor]


@dataclass(frozen=True)
class Score:
    """Sums over test examples; scores of pieces add up, in the order of the pieces.

    Attributes:
        confusion: counts [K, K] by true and predicted class; [0, 0] for causal_lm. A text whose logits are not finite
            has no prediction, so it is in no cell: it is not right, whatever its class.
        loss_sum: summed loss in nats.
        count: texts, or predicted tokens for causal_lm.
    """

    confusion: npt.NDArray[np.int64]
    loss_sum: float
    count: int

    def __add__(self, other: Score) -> Score:
        return Score(self.confusion + other.confusion, self.loss_sum + other.loss_sum, self.count + other.count)

    @property
    def loss(self) -> float:
        """Mean loss in nats."""
        return self.loss_sum / self.count

    @property
    def accuracy(self) -> float | None:
        """Share of right predictions; None for causal_lm."""
        return float(np.trace(self.confusion) / self.count) if self.confusion.size else None

    @property
    def macro_f1(self) -> float | None:
        """Mean over the classes of the test set of 2 hits / (true + predicted); None for causal_lm."""
        if not self.confusion.size:
            return None
        true, predicted = self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        present = true + predicted > 0
        if not present.any():
            return 0.0
        return float(np.mean(2 * np.diag(self.confusion)[present] / (true + predicted)[present]))

    @property
    def perplexity(self) -> float | None:
        """exp(loss) for causal_lm; None for classification. Infinite where the loss is too large."""
        if self.confusion.size:
            return None
        return math.exp(self.loss) if self.loss < 700 else math.inf


def evaluation_pieces(tokens: TokenizedTexts) -> list[npt.NDArray[np.int64]]:
    """Return the indices of the test set in pieces of like length: a pure function of the test set."""
    order = np.lexsort((np.arange(len(tokens)), tokens.lengths))
    return [order[start : start + PIECE_SIZE] for start in range(0, len(order), PIECE_SIZE)]


@torch.no_grad()
def score_piece(
    model: TripartiteModel,
    adapters: Adapters,
    tokens: TokenizedTexts,
    indices_B: npt.NDArray[np.int64],
    pad_id: int,
    num_classes: int,
    logits_of: LogitsOf | None = None,
) -> Score:
    """Run the model on one piece of the test set: as a whole, or as ``logits_of`` does (ids, mask, adapters)."""
    batch = cohort_batch(tokens, [indices_B[None]], 0, pad_id)
    cohort_of_one = {name: tensor[None].to(model.device) for name, tensor in adapters.items()}
    ids_NS, mask_NS = batch.ids_NS.to(model.device), batch.mask_NS.to(model.device)
    if logits_of is None:
        logits = model.scores(model.embed(ids_NS), mask_NS, cohort_of_one, range(model.shape.num_layers))
    else:
        logits = logits_of(ids_NS, mask_NS, cohort_of_one)
    (mean_loss,) = client_losses(logits, batch).tolist()
    if batch.labels_CB is None:
        count = int((batch.lengths_CB - 1).clamp(min=0).sum())
        return Score(np.zeros((0, 0), np.int64), mean_loss * count, count)
    confusion = np.zeros((num_classes, num_classes), np.int64)
    told_B = logits.isfinite().all(dim=-1).cpu().numpy()
    predicted_B = logits.argmax(dim=-1).cpu().numpy()
    np.add.at(confusion, (batch.labels_CB[0].numpy()[told_B], predicted_B[told_B]), 1)
    return Score(confusion, mean_loss * len(indices_B), len(indices_B))
