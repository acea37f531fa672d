"""What an attacker computes itself: public text, run through the model that it knows.

It knows the frozen backbone and adapters of some moment (the initial ones, or a global model that passed it), never the
client's texts. Shapes: T real tokens, M texts, B texts of a piece, S tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from elsa_ray.model.adapters import Adapters
from elsa_ray.model.split import Part, Split
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.privacy.rows import TokenRows, joined, real_rows
from elsa_ray.tasks.tokens import TokenizedTexts
from elsa_ray.training.batches import CohortBatch, cohort_batch
from elsa_ray.training.evaluation import evaluation_pieces
from elsa_ray.training.loss import client_losses


@dataclass(frozen=True)
class PublicText:
    """What the attacker computes of its public text with one model.

    Attributes:
        states: at the first cut.
        gradients: at the second cut; None without labels.
        label_M: of the texts; None for causal_lm.
    """

    states: TokenRows
    gradients: TokenRows | None
    label_M: Tensor | None


def computed_of_public_text(
    model: TripartiteModel, adapters: Adapters, split: Split, tokens: TokenizedTexts, pad_id: int
) -> PublicText:
    """Return states and gradients; for the arguments see below."""
    states = states_of_public_text(model, adapters, split, tokens, pad_id)
    if tokens.labels is None:
        return PublicText(states, None, None)
    gradients = gradients_of_public_text(model, adapters, split, tokens, pad_id)
    return PublicText(states, gradients, torch.from_numpy(tokens.labels))


@torch.no_grad()
def states_of_public_text(
    model: TripartiteModel, adapters: Adapters, split: Split, tokens: TokenizedTexts, pad_id: int
) -> TokenRows:
    """Return the hidden states of public texts at the first cut: what ACTIVATION_UP carries before the codec.

    Args:
        model: the frozen backbone.
        adapters: the whole set that the attacker knows.
        split: of the clients.
        tokens: public texts.
        pad_id: token id of padding.
    """

    def states(batch: CohortBatch) -> Tensor:
        return _front(model, _cohort_of_one(model, adapters), split, batch)

    return _over_pieces(states, tokens, pad_id)


def gradients_of_public_text(
    model: TripartiteModel, adapters: Adapters, split: Split, tokens: TokenizedTexts, pad_id: int
) -> TokenRows:
    """Return the gradients of public labelled texts at the second cut: what GRADIENT_UP carries before the codec.

    They are of the mean loss over a piece of the texts, so only their directions compare with a client's.

    Args:
        model: the frozen backbone.
        adapters: the whole set that the attacker knows, head included.
        split: of the clients.
        tokens: public texts with labels.
        pad_id: token id of padding.
    """
    held = _cohort_of_one(model, adapters)

    def gradients(batch: CohortBatch) -> Tensor:
        mask_NS = batch.mask_NS.to(model.device)
        with torch.no_grad():
            h1_NSD = _front(model, held, split, batch)
            h2_NSD = model.middle(h1_NSD, mask_NS, _of_part(model, held, split, Part.MIDDLE), split)
        h2_NSD.requires_grad_()
        logits = model.back(h2_NSD, mask_NS, _of_part(model, held, split, Part.BACK), split)
        (gradient_NSD,) = torch.autograd.grad(client_losses(logits, batch).sum(), h2_NSD)
        return gradient_NSD

    return _over_pieces(gradients, tokens, pad_id)


def _front(model: TripartiteModel, held: Mapping[str, Tensor], split: Split, batch: CohortBatch) -> Tensor:
    front = _of_part(model, held, split, Part.FRONT)
    return model.front(batch.ids_NS.to(model.device), batch.mask_NS.to(model.device), front, split)


def _over_pieces(values: Callable[[CohortBatch], Tensor], tokens: TokenizedTexts, pad_id: int) -> TokenRows:
    def of_piece(indices_B: npt.NDArray[np.int64]) -> TokenRows:
        batch = cohort_batch(tokens, [indices_B[None]], 0, pad_id)
        return real_rows(values(batch), batch.ids_NS, batch.lengths_CB[0], torch.from_numpy(indices_B))

    return joined([of_piece(indices_B) for indices_B in evaluation_pieces(tokens)])


def _cohort_of_one(model: TripartiteModel, adapters: Adapters) -> dict[str, Tensor]:
    return {name: tensor[None].to(model.device) for name, tensor in adapters.items()}


def _of_part(model: TripartiteModel, held: Mapping[str, Tensor], split: Split, part: Part) -> dict[str, Tensor]:
    return {tensor.name: held[tensor.name] for tensor in model.layout.part(split, part)}
