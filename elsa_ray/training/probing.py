"""What models answer to the public probes: the evidence for clustering and trust (methods.md 1.4, 1.6).

Shapes: C models, Q probes, S tokens, N = C·Q, D hidden width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from elsa_ray.model.adapters import Adapters
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.tasks.tokens import TokenizedTexts, pad_batch

PROBES_AT_ONCE = 16
"""Probes of one forward pass, fixed, so that the numbers do not depend on the memory of whoever computes them."""


@dataclass(frozen=True)
class ProbeAnswers:
    """One model on all probes.

    Attributes:
        states_QD: the state that stands for each probe ([CLS], or the last token's), behind the last block.
        answers_QK: probabilities of the classes; None for causal_lm, whose answers are too large to be sent.
    """

    states_QD: npt.NDArray[np.float32]
    answers_QK: npt.NDArray[np.float32] | None


@torch.no_grad()
def answer_probes(
    model: TripartiteModel, adapters: Adapters, probes: TokenizedTexts, pad_id: int
) -> list[ProbeAnswers]:
    """Run the probes through C whole models.

    Args:
        model: the frozen backbone.
        adapters: whole sets, stacked [C, ...].
        probes: the texts.
        pad_id: token id of padding.

    Returns:
        The answers of each model.
    """
    num_models = len(next(iter(adapters.values())))
    states, answers = [], []
    for piece in probe_pieces(len(probes)):
        ids_NS, mask_NS = probe_batch(probes, piece, num_models, pad_id)
        hidden_NSD, logits = model.whole(ids_NS.to(model.device), mask_NS.to(model.device), adapters)
        states.append(model.family.summary_state(hidden_NSD, mask_NS.to(model.device)))
        answers.append(class_probabilities(model, logits))
    return split_answers(states, answers, num_models)


def probe_pieces(num_probes: int) -> list[npt.NDArray[np.int64]]:
    """Return the positions of the probes of each forward pass."""
    positions = np.arange(num_probes)
    return [positions[start : start + PROBES_AT_ONCE] for start in range(0, num_probes, PROBES_AT_ONCE)]


def probe_batch(
    probes: TokenizedTexts, piece: npt.NDArray[np.int64], num_models: int, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Return ids and mask [N, S] of some probes, the same for each of C models."""
    ids_QS, mask_QS = pad_batch(probes, piece, int(probes.lengths[piece].max()), pad_id)
    return torch.from_numpy(ids_QS).repeat(num_models, 1), torch.from_numpy(mask_QS).repeat(num_models, 1)


def class_probabilities(model: TripartiteModel, logits: Tensor) -> Tensor | None:
    """Return the probabilities [N, K] of the classes; None for causal_lm."""
    return None if model.shape.head[-1].per_token else logits.float().softmax(dim=-1)


def split_answers(states: list[Tensor], answers: list[Tensor | None], num_models: int) -> list[ProbeAnswers]:
    """Put the pieces [C·q, ...] together, model by model."""
    states_CQD = _joined(states, num_models)
    present = [answer for answer in answers if answer is not None]
    if not present:
        return [ProbeAnswers(states_QD, None) for states_QD in states_CQD]
    pairs = zip(states_CQD, _joined(present, num_models), strict=True)
    return [ProbeAnswers(states_QD, answers_QK) for states_QD, answers_QK in pairs]


def _joined(pieces: list[Tensor], num_models: int) -> npt.NDArray[np.float32]:
    by_model = [piece.reshape(num_models, -1, piece.shape[-1]) for piece in pieces]
    return torch.cat(by_model, dim=1).float().cpu().numpy()
