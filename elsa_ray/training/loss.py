"""Each client's own mean loss, in fp32 or better.

Shapes: C members, B texts, S tokens, N = C·B, K classes, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from elsa_ray.training.batches import CohortBatch


def client_losses(logits: Tensor, batch: CohortBatch) -> Tensor:
    """Return the mean loss [C] over each member's texts (classification) or predicted tokens (causal_lm).

    A member without a batch has loss 0.

    Args:
        logits: [N, K], or [N, S, V] for causal_lm.
        batch: the step's input; labels and ids on any device.
    """
    num_members = len(batch.sizes)
    targets = _targets(batch).to(logits.device)
    if batch.labels_CB is None:
        logits = logits[:, :-1]
    scores = logits.reshape(-1, logits.shape[-1])
    scores = scores if scores.dtype == torch.float64 else scores.float()
    each = F.cross_entropy(scores, targets.reshape(-1), ignore_index=-100, reduction="none").reshape(num_members, -1)
    counts_C = (targets.reshape(num_members, -1) != -100).sum(dim=1)
    return each.sum(dim=1) / counts_C.clamp(min=1)


def _targets(batch: CohortBatch) -> Tensor:
    if batch.labels_CB is not None:
        return batch.labels_CB
    position_S = torch.arange(batch.ids_NS.shape[1])
    is_real_NS = position_S < batch.lengths_CB.reshape(-1, 1)
    return torch.where(is_real_NS, batch.ids_NS, -100)[:, 1:]
