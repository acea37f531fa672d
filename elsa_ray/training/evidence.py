"""Evidence: what is kept of a model's answers to the probes, for clustering and for trust.

A client that reports its own sends it to its edge; an edge that verifies makes it itself from the adapters submitted.
Shapes: Q probes, D hidden width, K classes, P numbers of a fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from elsa_ray.clustering.fingerprints import fingerprint
from elsa_ray.clustering.trust import (
    Judgement,
    TrustState,
    agreement_of_answers,
    agreement_of_states,
    judge,
)
from elsa_ray.codecs.chain import CodecChain
from elsa_ray.codecs.codec import CodecContext
from elsa_ray.codecs.wire import HEADER_BYTES, decode_adapters, encode_adapters
from elsa_ray.config.misbehaviour import Misbehaviour
from elsa_ray.training.inquiry import Inquiry
from elsa_ray.training.misbehaviour import told_answers
from elsa_ray.training.probing import ProbeAnswers
from elsa_ray.training.recipe import Recipe
from elsa_ray.training.tables import row_of_fingerprint
from elsa_ray.world.plan import WorkKey
from elsa_ray.world.roles import Role

_PLAIN = CodecChain([], "fp32")


@dataclass(frozen=True, eq=False)
class Evidence:
    """One model's evidence; a field is None where nobody needs it.

    Attributes:
        fingerprint_P: for clustering: moments in the common basis, or all states.
        states_QD: of each probe: for trust where there are no classes.
        answers_QK: probabilities of the classes: for trust.
    """

    fingerprint_P: npt.NDArray[np.float32] | None
    states_QD: npt.NDArray[np.float32] | None
    answers_QK: npt.NDArray[np.float32] | None


def evidence_of(answers: ProbeAnswers, recipe: Recipe) -> Evidence:
    """Return what is kept of a model's answers."""
    inquiry, row = recipe.inquiry, None
    assert inquiry is not None
    if recipe.frame is not None:
        row = row_of_fingerprint(fingerprint(answers.states_QD.astype(np.float64), recipe.frame))
    elif inquiry.clustering is not None:
        row = answers.states_QD.reshape(-1)
    judged = inquiry.trust is not None
    states_QD = answers.states_QD if judged and answers.answers_QK is None else None
    return Evidence(row, states_QD, answers.answers_QK if judged else None)


def told_evidence(spec: Misbehaviour | None, evidence: Evidence, key: WorkKey, seed: int) -> Evidence:
    """Return what a client says; only a liar says anything else than what is true."""
    if evidence.answers_QK is None:
        return evidence
    told_QK = told_answers(spec, torch.from_numpy(evidence.answers_QK), key, seed)
    return Evidence(evidence.fingerprint_P, evidence.states_QD, told_QK.numpy())


def report_num_bytes(shapes: Sequence[tuple[int, ...]]) -> int:
    """Return the size of a report, header included."""
    return HEADER_BYTES + 4 * sum(int(np.prod(shape)) for shape in shapes)


def encode_report(evidence: Evidence, context: CodecContext) -> bytes:
    """Encode a client's own report, in the clear, in fp32."""
    parts = (evidence.fingerprint_P, evidence.states_QD, evidence.answers_QK)
    tensors = [torch.from_numpy(np.atleast_2d(part)) for part in parts if part is not None]
    return encode_adapters(_PLAIN, Role.FINGERPRINT, tensors, context)


def decode_report(payload: bytes, inquiry: Inquiry, width: int, context: CodecContext) -> Evidence:
    """Decode a client's own report.

    Raises:
        PayloadError: the payload is damaged or not what is expected.
    """
    tensors = decode_adapters(_PLAIN, Role.FINGERPRINT, payload, inquiry.report_shapes(width), context)
    parts = [tensor.numpy() for tensor in tensors]
    row = parts.pop(0)[0] if inquiry.clustering is not None else None
    judged = parts.pop() if inquiry.trust is not None else None
    return Evidence(row, None if inquiry.num_labels else judged, judged if inquiry.num_labels else None)


def judge_members(
    clients: Sequence[int],
    evidence_of_client: Mapping[int, Evidence],
    states: Mapping[int, TrustState],
    round_index: int,
    inquiry: Inquiry,
) -> Judgement:
    """Judge the clients that an edge gathers, by what they answered.

    Args:
        clients: in order.
        evidence_of_client: theirs.
        states: their standings so far; who is missing starts afresh.
        round_index: the global round.
        inquiry: has the ``trust`` section.
    """
    assert inquiry.trust is not None
    before = [states.get(client, TrustState()) for client in clients]
    scores_N = np.array([0.0 if state.is_excluded(round_index) else state.score for state in before])
    answers = [evidence_of_client[client].answers_QK for client in clients]
    if inquiry.num_labels:
        agreement_N = agreement_of_answers(np.stack([own for own in answers if own is not None]), scores_N)
    else:
        own_states = [evidence_of_client[client].states_QD for client in clients]
        agreement_N = agreement_of_states(np.stack([own for own in own_states if own is not None]), scores_N)
    return judge(agreement_N, clients, before, round_index, inquiry.trust)
