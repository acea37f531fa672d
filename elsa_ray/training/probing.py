"""What models answer to the public probes: the evidence for clustering and trust (methods.md 1.4, 1.6).

Probes are public, so what is sent of them is sent in the clear, in fp32: never under a codec that holds a key.
Shapes: C models, Q probes, S tokens, N = C·Q, D hidden width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from elsa_ray.clustering.fingerprints import FingerprintFrame
from elsa_ray.codecs.chain import CodecChain
from elsa_ray.codecs.codec import CodecContext
from elsa_ray.codecs.wire import HEADER_BYTES, decode_adapters, encode_adapters
from elsa_ray.model.adapters import Adapters
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.tasks.tokens import TokenizedTexts, pad_batch
from elsa_ray.training.cohort import ByteMeter, Cohort
from elsa_ray.training.messages import Payloads
from elsa_ray.training.recipe import Recipe
from elsa_ray.world.roles import Role

PROBES_AT_ONCE = 16
"""Probes of one forward pass, fixed, so that the numbers do not depend on the memory of whoever computes them."""


PLAIN = CodecChain([], "fp32")


@dataclass(frozen=True)
class ProbeAnswers:
    """One model on all probes.

    Attributes:
        states_QD: the state that stands for each probe ([CLS], or the last token's), behind the last block.
        answers_QK: probabilities of the classes; None for causal_lm, whose answers are too large to be sent.
    """

    states_QD: npt.NDArray[np.float32]
    answers_QK: npt.NDArray[np.float32] | None

    @property
    def comparable(self) -> npt.NDArray[np.float32]:
        """What models of one task are compared by: answers, or states where there are none."""
        return self.states_QD if self.answers_QK is None else self.answers_QK


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


def probe_states_num_bytes(probes: TokenizedTexts, width: int) -> list[int]:
    """Return the size, header included, of the hidden states of each piece of the probes at a cut of width D."""
    return [HEADER_BYTES + int(np.prod(_piece_shape(probes, piece, width))) * 4 for piece in probe_pieces(len(probes))]


def encode_probe_states(cohort: Cohort, recipe: Recipe, ordinal: int, hidden_NSD: Tensor, meter: ByteMeter) -> Payloads:
    """Encode each member's hidden states of one piece of the probes."""
    assert recipe.inquiry is not None
    probes = recipe.inquiry.probes
    planned = probe_states_num_bytes(probes, hidden_NSD.shape[-1])[ordinal]
    payloads: Payloads = []
    for member, own_QSD in zip(cohort.members, hidden_NSD.chunk(len(cohort.members)), strict=True):
        context = recipe.context(member.key, Role.PROBE, ordinal)
        payload = encode_adapters(PLAIN, Role.PROBE, [own_QSD], context)
        meter.charge(Role.PROBE, payload, planned, exact=True, who=f"{member.key} probes {ordinal}")
        payloads.append((payload,))
    return payloads


def decode_probe_states(
    cohort: Cohort, recipe: Recipe, ordinal: int, payloads: Payloads, model: TripartiteModel
) -> Tensor:
    """Decode the members' hidden states [N, S, D] of one piece of the probes."""
    assert recipe.inquiry is not None
    probes = recipe.inquiry.probes
    piece = probe_pieces(len(probes))[ordinal]
    shape = _piece_shape(probes, piece, model.shape.hidden_size)
    decoded = []
    for member, message in zip(cohort.members, payloads, strict=True):
        assert message is not None
        context = recipe.context(member.key, Role.PROBE, ordinal)
        decoded += decode_adapters(PLAIN, Role.PROBE, message[0], [shape], context)
    return torch.cat(decoded).to(model.device, model.dtype)


def _piece_shape(probes: TokenizedTexts, piece: npt.NDArray[np.int64], width: int) -> tuple[int, int, int]:
    return len(piece), int(probes.lengths[piece].max()), width


def probe_set_num_bytes(probes: TokenizedTexts, width: int, dimensions: int | None) -> int:
    """Return the size of the probe set as it is sent, header included: lengths, token ids, and the frame if any."""
    numbers = len(probes) + len(probes.token_ids) + (width * dimensions + 1 if dimensions is not None else 0)
    return HEADER_BYTES + 4 * int(numbers)


def encode_probe_set(probes: TokenizedTexts, frame: FingerprintFrame | None, context: CodecContext) -> bytes:
    """Encode the probe set, and the basis in which fingerprints are told."""
    parts = [probes.lengths, probes.token_ids]
    parts += [] if frame is None else [frame.basis_Dd, np.array([frame.scale])]
    tensors = [torch.from_numpy(np.ascontiguousarray(part, np.float32)) for part in parts]
    return encode_adapters(PLAIN, Role.PROBE, tensors, context)


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
