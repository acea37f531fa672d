"""Evidence: what is kept of a model's answers to the probes, for clustering and for trust.

A client that reports its own sends it to its edge; an edge that verifies makes it itself from the adapters submitted.
Shapes: Q probes, D hidden width, K classes, P numbers of a fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from elsa_ray.clustering.changes import agreement_of_changes, features_of_answers
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

Floats = npt.NDArray[np.float64]

_PLAIN = CodecChain([], "fp32")


@dataclass(frozen=True, eq=False)
class Evidence:
    """One model's evidence; a field is None where nobody needs it.

    Attributes:
        fingerprint_P: for clustering: moments in the common basis, or all states.
        answers_QK: for trust: probabilities of the classes, or, for causal_lm, states (K = D).
        before_QK: the same of the model that training started from, where changes are compared.
        update_norm: of all that training has changed, where an edge has looked at it.
    """

    fingerprint_P: npt.NDArray[np.float32] | None
    answers_QK: npt.NDArray[np.float32] | None
    before_QK: npt.NDArray[np.float32] | None = None
    update_norm: float | None = None


def evidence_of(
    answers: ProbeAnswers, recipe: Recipe, before: ProbeAnswers | None = None, update_norm: float | None = None
) -> Evidence:
    """Return what is kept of a model's answers, of those of the model that it was trained from, and of the update."""
    inquiry, row = recipe.inquiry, None
    assert inquiry is not None
    if recipe.frame is not None:
        row = row_of_fingerprint(fingerprint(answers.states_QD.astype(np.float64), recipe.frame))
    elif inquiry.clustering is not None:
        row = answers.states_QD.reshape(-1)
    judged = answers.comparable if inquiry.trust is not None else None
    return Evidence(row, judged, before.comparable if before is not None else None, update_norm)


def told_evidence(spec: Misbehaviour | None, evidence: Evidence, key: WorkKey, recipe: Recipe) -> Evidence:
    """Return what a client says; only a liar says anything else than what is true."""
    if evidence.answers_QK is None or not recipe.num_labels:
        return evidence
    told_QK = told_answers(spec, torch.from_numpy(evidence.answers_QK), key, recipe.seed)
    return replace(evidence, answers_QK=told_QK.numpy())


def report_num_bytes(shapes: Sequence[tuple[int, ...]]) -> int:
    """Return the size of a report, header included."""
    return HEADER_BYTES + 4 * sum(int(np.prod(shape)) for shape in shapes)


def encode_report(evidence: Evidence, context: CodecContext) -> bytes:
    """Encode a client's own report, in the clear, in fp32."""
    parts = (evidence.fingerprint_P, evidence.answers_QK)
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
    return Evidence(row, parts.pop() if inquiry.trust is not None else None)


def silenced(evidence: Evidence) -> Evidence:
    """Return a report of the same shapes without a number in it: it agrees with nobody, and nobody hears it."""
    parts = (evidence.fingerprint_P, evidence.answers_QK)
    fingerprint_P, answers_QK = (None if part is None else np.full_like(part, np.nan) for part in parts)
    return Evidence(fingerprint_P, answers_QK)


def judge_members(
    clients: Sequence[int],
    evidence: Sequence[Evidence],
    states: Mapping[int, TrustState],
    round_index: int,
    inquiry: Inquiry,
) -> Judgement:
    """Judge the clients that an edge gathers, by what they answered.

    Args:
        clients: in order; one whose work of two rounds is gathered at once stands there twice.
        evidence: theirs.
        states: their standings so far; who is missing starts afresh.
        round_index: the global round.
        inquiry: has the ``trust`` section.
    """
    assert inquiry.trust is not None
    before = [states.get(client, TrustState()) for client in clients]
    scores_N = np.array([0.0 if state.is_excluded(round_index) else state.score for state in before])
    agreement_N = _agreement(evidence, scores_N, inquiry)
    sizes = [own.update_norm for own in evidence if own.update_norm is not None]
    sizes_N = np.array(sizes) if sizes else None
    return judge(agreement_N, clients, before, round_index, inquiry.trust, sizes_N)


def stricter(first: TrustState, second: TrustState) -> TrustState:
    """Return the one of two standings of a client with the longer exclusion, else with the lower score.

    A client is judged twice in a round where work of two rounds is gathered, by its edge or by an old one as well.
    """
    return max(first, second, key=lambda state: (state.excluded_until_round, -state.score))


def _agreement(evidence: Sequence[Evidence], scores_N: Floats, inquiry: Inquiry) -> Floats:
    after_NQK = np.stack([own.answers_QK for own in evidence if own.answers_QK is not None])
    before = [own.before_QK for own in evidence if own.before_QK is not None]
    if before:
        return agreement_of_changes(_features(np.stack(before), inquiry), _features(after_NQK, inquiry), scores_N)
    return (agreement_of_answers if inquiry.num_labels else agreement_of_states)(after_NQK, scores_N)


def _features(models_NQK: npt.NDArray[np.float32], inquiry: Inquiry) -> Floats:
    """Return what of each model is compared [N, F]: how it tells probes apart, or its states without classes."""
    if inquiry.num_labels:
        return features_of_answers(models_NQK)
    return models_NQK.reshape(len(models_NQK), -1).astype(np.float64)
