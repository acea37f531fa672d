"""The batches of a cohort are its members' own texts and no more, and a score is that of the plain model.

Shapes: C members, B texts, S tokens.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from elsa_ray.config.protocol import ElsaConfig
from elsa_ray.training.batches import batch_sizes, cohort_batch, examples_of_steps
from elsa_ray.training.evaluation import PIECE_SIZE, Score, evaluation_pieces, score_piece
from elsa_ray.training.loss import client_losses
from elsa_ray.world.plan import WorkKey

from ..helpers import ABSENT, LABELS, MODELS, PAD, make_lab, model_name, own_batch, plain_loss, random_texts

EXAMPLES = [np.array([[0, 1, 2], [3, 4, ABSENT]]), np.array([[5, 6]])]


def test_a_cohorts_batch_holds_each_members_own_texts() -> None:
    tokens = random_texts(10)
    batch = cohort_batch(tokens, EXAMPLES, 0, PAD)
    length = int(tokens.lengths[[0, 1, 2, 5, 6]].max())
    assert batch.ids_NS.shape == (2 * 3, length)
    for row, text in enumerate([0, 1, 2, 5, 6, ABSENT]):
        own = tokens.ids(text).tolist() if text != ABSENT else []
        assert batch.ids_NS[row].tolist() == own + [PAD] * (length - len(own))
        assert batch.mask_NS[row].tolist() == [True] * max(1, len(own)) + [False] * (length - max(1, len(own)))
        assert batch.lengths_CB.flatten()[row] == len(own)
        assert batch.labels_CB.flatten()[row] == (tokens.labels[text] if own else -100)
    assert batch.sizes == (
        (3, int(tokens.lengths[[0, 1, 2]].max())),
        (2, int(tokens.lengths[[5, 6]].max())),
    )


def test_a_member_without_a_batch_is_masked_not_removed() -> None:
    tokens = random_texts(10)
    batch = cohort_batch(tokens, EXAMPLES, 1, PAD)
    assert batch.active_C.tolist() == [True, False]
    assert batch.sizes[1] == (0, 0)
    assert batch.ids_NS.shape[0] == 2 * 2
    assert batch.labels_CB[1].tolist() == [-100, -100]
    logits = torch.randn(4, LABELS)
    assert client_losses(logits, batch)[1] == 0.0


def test_planned_sizes_are_those_of_the_batches() -> None:
    tokens = random_texts(10)
    for member, examples_TB in enumerate(EXAMPLES):
        batch_T, length_T = batch_sizes(examples_TB, tokens.lengths)
        for step in range(len(examples_TB)):
            sizes = cohort_batch(tokens, EXAMPLES, step, PAD).sizes
            assert sizes[member] == (batch_T[step], length_T[step])


def test_steps_draw_from_the_clients_own_examples_by_seed_round_and_client() -> None:
    owned = np.array([3, 7, 11, 20, 21])
    config = ElsaConfig(local_epochs=1, batch_size=2)
    drawn = examples_of_steps(WorkKey(0, 0, 1), owned, config, 5)
    assert sorted(drawn[drawn != ABSENT].tolist()) == owned.tolist()
    assert drawn.shape == (3, 2)
    assert np.array_equal(drawn, examples_of_steps(WorkKey(0, 0, 1), owned, config, 5))
    for key, seed in ((WorkKey(1, 0, 1), 5), (WorkKey(0, 1, 1), 5), (WorkKey(0, 0, 2), 5), (WorkKey(0, 0, 1), 6)):
        assert not np.array_equal(drawn, examples_of_steps(key, owned, config, seed))


@pytest.mark.parametrize("model", MODELS, ids=model_name)
def test_a_score_is_that_of_the_plain_model(model: tuple[str, bool]) -> None:
    family, causal_lm = model
    lab, tokens = make_lab(family, causal_lm=causal_lm), random_texts(12, labelled=not causal_lm)
    adapters = lab.adapters(0)
    peft, rows = lab.peft(adapters), np.arange(12)
    score = score_piece(lab.model, adapters, tokens, rows, PAD, LABELS)
    ids_BS, mask_BS, labels_B = own_batch(tokens, rows)
    with torch.no_grad():
        loss = plain_loss(peft, ids_BS, mask_BS, labels_B).item()
        logits = peft(input_ids=ids_BS, attention_mask=mask_BS).logits
    assert score.loss == pytest.approx(loss, abs=1e-9)
    if causal_lm:
        assert score.count == int(tokens.lengths.sum()) - 12
        assert score.accuracy is None
        assert score.perplexity == pytest.approx(math.exp(loss))
    else:
        expected = np.zeros((LABELS, LABELS), np.int64)
        for true, predicted in zip(labels_B.tolist(), logits.argmax(dim=-1).tolist(), strict=True):
            expected[true, predicted] += 1
        assert np.array_equal(score.confusion, expected)
        assert score.accuracy == np.trace(expected) / 12
        assert score.perplexity is None


def test_a_model_that_has_diverged_is_right_about_nothing() -> None:
    """torch's argmax of NaN is class 0, which would make a lost model as good as the share of that class."""
    lab, tokens = make_lab("bert"), random_texts(40)
    lost = {name: torch.full_like(tensor, math.nan) for name, tensor in lab.adapters(0).items()}
    score = score_piece(lab.model, lost, tokens, np.arange(40), PAD, LABELS)
    assert math.isnan(score.loss)
    assert (score.accuracy, score.macro_f1, score.count) == (0.0, 0.0, 40)
    assert 0 in tokens.labels, "some texts are of the class that would be guessed"


def test_the_pieces_are_the_whole_test_set_once() -> None:
    tokens = random_texts(150)
    pieces = evaluation_pieces(tokens)
    assert [len(piece) for piece in pieces] == [PIECE_SIZE, PIECE_SIZE, 150 - 2 * PIECE_SIZE]
    assert sorted(np.concatenate(pieces).tolist()) == list(range(150))
    lengths = tokens.lengths[np.concatenate(pieces)]
    assert (np.diff(lengths) >= 0).all()


def test_scores_of_pieces_add_up() -> None:
    first = Score(np.array([[3, 1], [0, 2]]), 2.0, 6)
    second = Score(np.array([[1, 0], [4, 0]]), 8.0, 5)
    total = first + second
    assert (total.loss, total.accuracy) == (10 / 11, 6 / 11)
    assert total.macro_f1 == pytest.approx((2 * 4 / (5 + 8) + 2 * 2 / (6 + 3)) / 2)


def test_a_class_that_never_occurs_does_not_count_in_macro_f1() -> None:
    assert Score(np.diag([2, 3, 0]), 1.0, 5).macro_f1 == 1.0
