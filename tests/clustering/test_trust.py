"""Who is excluded, for how long, and who may not be (methods.md 1.6).

Shapes: N clients of a cluster.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_ray.clustering.agreement import agreement_of_answers
from elsa_ray.clustering.trust import Decision, Judgement, TrustState, UpdateFigures, judge, trust_weight
from elsa_ray.config.clustering import TrustConfig

from .groups import honest_answers, softmax

CONFIG = TrustConfig(compare="answers")
VERIFIED = TrustConfig()
NEW = TrustState()


def judged(agreement: list[float], states: list[TrustState] | None = None, round_index: int = 0) -> Judgement:
    clients = range(100, 100 + len(agreement))
    return judge(np.array(agreement), clients, states or [NEW] * len(agreement), round_index, CONFIG)


def decisions(judgement: Judgement) -> list[tuple[int, str]]:
    return [(event.client, event.decision.value) for event in judgement.events]


def test_the_score_follows_the_agreement_slowly_and_is_the_weight() -> None:
    judgement = judged([0.9, 0.88, 0.92])
    np.testing.assert_allclose(judgement.weights_N, [0.7 + 0.3 * a for a in (0.9, 0.88, 0.92)], rtol=1e-12)
    assert [state.score for state in judgement.states] == judgement.weights_N.tolist()
    again = judge(np.full(3, 0.5), range(3), judgement.states, 1, CONFIG)
    assert again.states[0].score == pytest.approx(0.7 * (0.7 + 0.3 * 0.9) + 0.3 * 0.5)
    assert judgement.events == again.events == ()


def test_an_outlier_is_excluded_and_the_reason_has_the_figures() -> None:
    judgement = judged([0.95, 0.94, 0.96, 0.95, 0.5])
    (event,) = judgement.events
    assert (event.client, event.decision) == (104, Decision.EXCLUDED)
    assert event.reason == "agreement 0.500 < 0.900 (median 0.950, MAD 0.010)"
    assert judgement.weights_N[4] == 0 and (judgement.weights_N[:4] > 0).all()


def test_the_cut_is_so_many_robust_deviations_below_the_median() -> None:
    others = [0.5, 0.6, 0.7, 0.8, 0.9]
    cut = 0.65 - 3 * 1.4826 * np.median(np.abs(np.array([*others, 0.0]) - 0.65))
    assert cut < 0 and judged([*others, 0.0]).events == ()
    tight = [0.80, 0.82, 0.84, 0.86, 0.88, 0.90, 0.92]
    # With one more below them all: median 0.85, deviations 0.01, 0.01, 0.03, 0.03, 0.05, 0.05, 0.07, ...: MAD 0.04.
    cut = 0.85 - 3 * 1.4826 * 0.04
    assert judged([*tight, cut + 1e-6]).events == ()
    assert decisions(judged([*tight, cut - 1e-6])) == [(107, "excluded")]


def test_where_most_agree_exactly_a_small_difference_is_no_outlier() -> None:
    assert judged([0.9, 0.9, 0.9, 0.9, 0.86]).events == ()
    assert decisions(judged([0.9, 0.9, 0.9, 0.9, 0.84])) == [(104, "excluded")]


def test_of_those_that_must_stay_updates_far_too_large_are_the_last() -> None:
    agreement, sizes = np.array([0.9, 0.1, 0.1, 0.9, 0.9, 0.9]), np.array([1.0, 1, 1, 1, 9, 9])
    judgement = judge(agreement, range(6), [NEW] * 6, 0, CONFIG, UpdateFigures(sizes, ()))
    assert sorted(decisions(judgement)) == [
        (1, "kept: cluster would empty"), (2, "excluded"), (4, "excluded"), (5, "excluded"),
    ]  # fmt: skip


def sized(*sizes: float, agreement: float = 0.9) -> list[tuple[int, str]]:
    figures = UpdateFigures(np.array(sizes), ())
    agreement_N = np.where(np.isfinite(sizes), agreement, np.nan)
    judgement = judge(agreement_N, range(len(sizes)), [NEW] * len(sizes), 0, CONFIG, figures)
    return [(event.client, event.reason) for event in judgement.events]


def test_an_update_many_times_the_median_one_is_excluded_whatever_its_direction() -> None:
    assert sized(1.0, 1.5, 1.2, 7.4, 7.6) == [(4, "update 7.6 > 7.5 (5 times the median)")]
    assert sized(1.0, 2.0, 1.5, 7.4, 7.6) == [], "the median is 2"
    assert [client for client, _ in sized(1, 1, 1, math.nan)] == [3], "for its agreement"
    assert sized(0, 0, 0, 0, 1) == [], "nobody has moved"


def test_an_update_against_the_others_is_excluded_at_once_and_a_low_agreement_is_not() -> None:
    """The direction is the mean of the views; agreements of updates have no outliers, only scores that fall."""
    views = (np.array([0.5, 0.4, -0.3, -0.3, 0.0]), np.array([0.5, 0.4, 0.08, 0.12, 0.0]))
    agreement_N = np.array([0.9, 0.9, 0.9, 0.9, 0.2])
    judgement = judge(agreement_N, range(5), [NEW] * 5, 0, VERIFIED, UpdateFigures(np.ones(5), views))
    (event,) = judgement.events
    assert (event.client, event.reason) == (2, "update against the others': cosine -0.110 < -0.1")
    assert judgement.weights_N.tolist() == pytest.approx([0.97, 0.97, 0.0, 0.97, 0.76])
    broken = UpdateFigures(np.array([1.0, 1, 1, 1, np.nan]), (np.array([0.5, 0.4, 0.1, 0.1, -1.0]),))
    (event,) = judge(agreement_N, range(5), [NEW] * 5, 0, VERIFIED, broken).events
    assert (event.client, event.reason) == (4, "update is not finite")
    few = judge(agreement_N[1:3], range(2), [NEW] * 2, 0, VERIFIED, UpdateFigures(np.ones(2), (views[0][1:3],)))
    assert few.events == (), "of two, none can tell who is wrong"
    out = TrustState(0.5, excluded_until_round=7, probation_until_round=12)
    again = judge(agreement_N, range(5), [NEW, NEW, out, NEW, NEW], 4, VERIFIED, UpdateFigures(np.ones(5), views))
    assert again.events == (), "who is out already is not charged again"


def test_a_low_score_excludes_even_in_a_cluster_of_wide_spread() -> None:
    states = [NEW, NEW, NEW, NEW, TrustState(score=0.32)]
    judgement = judged([0.9, 0.6, 0.3, 0.4, 0.2], states)
    assert decisions(judgement) == [(104, "excluded")]
    assert judgement.events[0].reason == "score 0.284 < 0.3"


@pytest.mark.parametrize("present", [1, 2])
def test_of_one_or_two_nobody_is_excluded(present: int) -> None:
    judgement = judged([0.0] * present, [TrustState(score=0.1)] * present)
    assert judgement.events == ()
    assert (judgement.weights_N > 0).all()


def test_a_model_that_is_not_finite_counts_as_no_agreement() -> None:
    judgement = judged([0.95, np.nan, 0.96, 0.95])
    assert decisions(judgement) == [(101, "excluded")]
    assert judgement.states[1].score == pytest.approx(0.7)


def test_exclusion_then_probation_then_full_weight() -> None:
    """Excluded in round 3: out in rounds 3 to 7, half weight in 8 to 12, restored in 13."""
    states: tuple[TrustState, ...] = (NEW,) * 4
    seen = []
    for round_index in range(15):
        bad = 0.2 if round_index == 3 else 0.9
        judgement = judge(np.array([0.9, 0.9, 0.9, bad]), range(4), states, round_index, CONFIG)
        states = judgement.states
        weight = judgement.weights_N[3]
        seen.append("out" if weight == 0 else "half" if weight < 0.51 * states[3].score else "full")
        expected = {3: "excluded", 8: "probation", 13: "restored"}.get(round_index)
        assert decisions(judgement) == ([(3, expected)] if expected else [])
    assert seen == ["full"] * 3 + ["out"] * 5 + ["half"] * 5 + ["full"] * 2
    assert states[3] == TrustState(states[3].score)


def test_who_is_not_seen_for_long_comes_back_fully() -> None:
    states = [NEW, NEW, NEW, TrustState(0.1, excluded_until_round=5, probation_until_round=10)]
    judgement = judged([0.9, 0.9, 0.9, 0.9], states, round_index=30)
    assert decisions(judgement) == [(103, "restored")]
    assert judgement.states[3].excluded_until_round == judgement.states[3].probation_until_round == 0
    assert judgement.states[3].score == pytest.approx(0.7 * CONFIG.threshold + 0.3 * 0.9), "it starts from the least"


def test_bad_again_on_probation_is_excluded_again() -> None:
    states = [NEW, NEW, NEW, TrustState(0.6, excluded_until_round=5, probation_until_round=10)]
    judgement = judged([0.9, 0.9, 0.9, 0.1], states, round_index=5)
    assert decisions(judgement) == [(103, "probation"), (103, "excluded")]
    assert judgement.states[3].excluded_until_round == 10
    assert judgement.weights_N[3] == 0


def test_half_of_those_present_are_kept_the_highest_scores_first() -> None:
    """Five of six score too low; three must stay, so the two best of the five do."""
    states = [NEW, *(TrustState(score) for score in (0.10, 0.30, 0.20, 0.25, 0.15))]
    judgement = judged([0.2] * 6, states)
    assert decisions(judgement) == [
        (101, "excluded"),
        (102, "kept: cluster would empty"),
        (103, "excluded"),
        (104, "kept: cluster would empty"),
        (105, "excluded"),
    ]
    assert (judgement.weights_N > 0).tolist() == [True, False, True, False, True, False]


def test_an_exclusion_from_before_is_lifted_where_the_cluster_would_be_empty() -> None:
    out = TrustState(0.5, excluded_until_round=7, probation_until_round=12)
    judgement = judged([0.9, 0.9], [out, out], round_index=4)
    assert decisions(judgement) == [(100, "kept: cluster would empty")]
    assert judgement.events[0].reason == "excluded until round 7"
    np.testing.assert_allclose(judgement.weights_N, [0.5 * (0.7 * 0.5 + 0.3 * 0.9), 0.0])
    assert judgement.states[1].excluded_until_round == 7


STATES = st.builds(
    TrustState,
    score=st.floats(0.001, 1),
    excluded_until_round=st.integers(0, 20),
    probation_until_round=st.integers(0, 25),
).filter(lambda state: state.excluded_until_round <= state.probation_until_round)


@settings(max_examples=200, deadline=None)
@given(
    members=st.lists(st.tuples(STATES, st.floats(0, 1) | st.just(math.nan)), max_size=9), round_index=st.integers(0, 30)
)
def test_at_least_half_always_have_a_say_and_weights_are_those_of_the_states(
    members: list[tuple[TrustState, float]], round_index: int
) -> None:
    states, agreement = [state for state, _ in members], [a for _, a in members]
    judgement = judge(np.array(agreement, float), range(len(members)), states, round_index, CONFIG)
    assert (judgement.weights_N > 0).sum() >= math.ceil(len(members) / 2)
    assert ((judgement.weights_N >= 0) & (judgement.weights_N <= 1)).all()
    assert judgement.weights_N.tolist() == [trust_weight(state, round_index, CONFIG) for state in judgement.states]
    excluded = {event.client for event in judgement.events if event.decision is Decision.EXCLUDED}
    kept = {event.client for event in judgement.events if event.decision is Decision.KEPT}
    assert excluded == {
        n
        for n, (before, after) in enumerate(zip(states, judgement.states, strict=True))
        if after.is_excluded(round_index) and not before.is_excluded(round_index)
    }
    assert not excluded & kept


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_planted_sign_flippers_and_random_answerers_are_excluded_and_no_honest_client_is(alpha: float) -> None:
    """20 clients, the first 4 flip the sign, the next 4 answer at random; the others are honest but skewed."""
    for seed in range(5):
        answers_NQC, shared_QC, bias_NC = honest_answers(20, alpha=alpha, seed=seed)
        generator = np.random.default_rng(1000 + seed)
        answers_NQC[:4] = softmax(-shared_QC + bias_NC[:4, None])
        answers_NQC[4:8] = generator.dirichlet([1.0] * shared_QC.shape[1], (4, len(shared_QC)))
        agreement_N = agreement_of_answers(answers_NQC, np.ones(20))
        judgement = judge(agreement_N, range(20), [NEW] * 20, 0, CONFIG)
        assert decisions(judgement) == [(n, "excluded") for n in range(8)]
