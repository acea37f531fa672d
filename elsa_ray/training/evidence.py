"""Evidence: what is kept of a model's answers to the probes, for clustering and for trust.

A client that reports its own sends it to its edge; an edge that verifies makes it itself from the adapters submitted.
Shapes: N clients, V views, Q probes, D hidden width, K classes, P numbers of a fingerprint, F of an update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from elsa_ray.clustering.fingerprints import fingerprint
from elsa_ray.clustering.trust import (
    Judgement,
    TrustState,
    UpdateFigures,
    agreement_of_answers,
    agreement_of_states,
    judge,
)
from elsa_ray.clustering.updates import agreement_of_updates, cosines_with_others
from elsa_ray.codecs.chain import CodecChain
from elsa_ray.codecs.codec import CodecContext
from elsa_ray.codecs.wire import HEADER_BYTES, decode_adapters, encode_adapters
from elsa_ray.config.misbehaviour import Misbehaviour
from elsa_ray.model.adapters import AdapterLayout, Adapters
from elsa_ray.training.inquiry import Inquiry
from elsa_ray.training.misbehaviour import told_answers
from elsa_ray.training.probing import ProbeAnswers
from elsa_ray.training.recipe import Recipe
from elsa_ray.training.tables import row_of_fingerprint
from elsa_ray.world.plan import WorkKey
from elsa_ray.world.roles import Role

Floats = npt.NDArray[np.float64]

_PLAIN = CodecChain([], "fp32")


class Update(NamedTuple):
    """What a client's training has changed, number by number in the order of the layout.

    Attributes:
        blocks_F: of the adapters in the blocks.
        head_F: of the layers behind them, which are trained whole; empty where none is.
    """

    blocks_F: npt.NDArray[np.float32]
    head_F: npt.NDArray[np.float32]


def update_of(before: Adapters, after: Adapters, layout: AdapterLayout) -> Update:
    """Return what has been changed of all tensors of a layout."""
    changed: dict[bool, list[npt.NDArray[np.float32]]] = {False: [], True: []}
    for tensor in layout.tensors:
        difference = (after[tensor.name] - before[tensor.name]).float().reshape(-1)
        changed[tensor.layer is None].append(difference.numpy(force=True))
    blocks_F, head_F = (np.concatenate([*parts, np.empty(0, np.float32)]) for parts in changed.values())
    return Update(blocks_F, head_F)


@dataclass(frozen=True, eq=False)
class Evidence:
    """One model's evidence; a field is None where nobody needs it.

    Attributes:
        fingerprint_P: for clustering: moments in the common basis, or all states.
        answers_QK: for trust: probabilities of the classes, or, for causal_lm, states (K = D).
        update: what training has changed, where an edge looks at it.
    """

    fingerprint_P: npt.NDArray[np.float32] | None
    answers_QK: npt.NDArray[np.float32] | None
    update: Update | None = None


def evidence_of(answers: ProbeAnswers, recipe: Recipe, update: Update | None = None) -> Evidence:
    """Return what is kept of a model's answers and of what training has changed."""
    inquiry, row = recipe.inquiry, None
    assert inquiry is not None
    if recipe.frame is not None:
        row = row_of_fingerprint(fingerprint(answers.states_QD.astype(np.float64), recipe.frame))
    elif inquiry.clustering is not None:
        row = answers.states_QD.reshape(-1)
    judged = answers.comparable if inquiry.trust is not None else None
    return Evidence(row, judged, update)


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
    """Judge the clients that an edge gathers, by what they answered and, where it was seen, by what they changed.

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
    updates = [own.update for own in evidence if own.update is not None]
    figures = _figures(updates, scores_N) if updates else None
    agreement_N = _agreement(evidence, scores_N, inquiry, figures)
    return judge(agreement_N, clients, before, round_index, inquiry.trust, figures)


def stricter(first: TrustState, second: TrustState) -> TrustState:
    """Return the one of two standings of a client with the longer exclusion, else with the lower score.

    A client is judged twice in a round where work of two rounds is gathered, by its edge or by an old one as well.
    """
    return max(first, second, key=lambda state: (state.excluded_until_round, -state.score))


def _figures(updates: Sequence[Update], scores_N: Floats) -> UpdateFigures:
    """Return how long updates are, and which way they point: as a whole, and in the head alone.

    The head is new to everybody and says most of what a client has learned, in few of the numbers.
    """
    whole_NF = np.stack([np.concatenate(update) for update in updates])
    head_NF = np.stack([update.head_F for update in updates])
    views = [cosines_with_others(view_NF, scores_N) for view_NF in (whole_NF, head_NF) if view_NF.shape[1]]
    return UpdateFigures(np.array([np.linalg.norm(own_F.astype(np.float64)) for own_F in whole_NF]), tuple(views))


def _agreement(
    evidence: Sequence[Evidence], scores_N: Floats, inquiry: Inquiry, figures: UpdateFigures | None
) -> Floats:
    answers_NQK = np.stack([own.answers_QK for own in evidence if own.answers_QK is not None])
    answers_N = (agreement_of_answers if inquiry.num_labels else agreement_of_states)(answers_NQK, scores_N)
    if figures is None or inquiry.trust is None or not inquiry.trust.compares_updates:
        return answers_N
    return agreement_of_updates(figures.cosines_VN, answers_N)
