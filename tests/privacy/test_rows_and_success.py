from __future__ import annotations

import pytest
import torch

from elsa_ray.privacy.rows import TokenRows, joined, mean_by_text, real_rows, summed_by_text
from elsa_ray.privacy.success import Success, pooled, success

from .synthetic import normal


def test_success_counts_hits_and_the_best_constant_answer() -> None:
    assert success(torch.tensor([1, 2, 2, 0]), torch.tensor([1, 2, 3, 2])) == Success(0.5, 0.5, 4)
    assert success(torch.tensor([4, 4, 4, 4]), torch.tensor([0, 1, 2, 4])) == Success(0.25, 0.25, 4)
    assert success(torch.tensor([9, 8]), torch.tensor([0, 0])) == Success(0.0, 1.0, 2)
    with pytest.raises(ValueError, match="without a target"):
        success(torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def test_padding_is_no_row_and_texts_keep_their_number() -> None:
    values_BSD, ids_BS = normal(3, 4, 2), torch.arange(12).reshape(3, 4)
    rows = real_rows(values_BSD, ids_BS, torch.tensor([2, 4, 1]), torch.tensor([5, 0, 9]))
    assert rows.ids_T.tolist() == [0, 1, 4, 5, 6, 7, 8]
    assert rows.text_T.tolist() == [5, 5, 0, 0, 0, 0, 9]
    assert torch.equal(rows.rows_TD, values_BSD.flatten(0, 1)[rows.ids_T])
    kept = rows.without({4, 1})
    assert kept.ids_T.tolist() == [0, 5, 6, 7, 8] and kept.text_T.tolist() == [5, 0, 0, 0, 9]
    assert torch.equal(kept.rows_TD, values_BSD.flatten(0, 1)[kept.ids_T])
    twice = joined([rows, kept])
    assert len(twice) == len(rows) + len(kept)
    assert rows.without(()).ids_T.tolist() == rows.ids_T.tolist()


def test_sums_and_means_over_texts() -> None:
    rows = TokenRows(normal(6, 3), torch.arange(6), torch.tensor([2, 0, 2, 2, 0, 4]))
    means_ND = mean_by_text(rows.rows_TD, rows.text_T, 5)
    for text in range(5):
        own = rows.rows_TD[rows.text_T == text]
        expected = own.mean(dim=0) if len(own) else torch.zeros(3, dtype=torch.float64)
        assert torch.allclose(means_ND[text], expected)
        assert torch.allclose(summed_by_text(rows.rows_TD, rows.text_T, 5)[text], own.sum(dim=0))


def test_outcomes_of_several_clients_are_pooled_by_their_targets() -> None:
    parts = [Success(1.0, 0.5, 30), Success(0.2, 0.1, 10)]
    assert pooled(parts) == Success(0.8, 0.4, 40)
    assert pooled(parts[:1]) == parts[0]
    assert pooled([]) is None


def test_a_mask_keeps_what_it_says() -> None:
    rows = TokenRows(normal(4, 3), torch.tensor([5, 6, 5, 7]), torch.tensor([0, 0, 1, 1]))
    kept = rows.where(rows.ids_T == 5)
    assert torch.equal(kept.rows_TD, rows.rows_TD[[0, 2]])
    assert kept.ids_T.tolist() == [5, 5] and kept.text_T.tolist() == [0, 1] and len(kept) == 2
