"""Gradients at the second cut tell labels: for a linear head in closed form, and for a whole small model."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from elsa_ray.model.split import Split
from elsa_ray.privacy.label_inference import (
    gradient_directions,
    label_inference_by_clusters,
    label_inference_from_public_texts,
    spherical_clusters,
)
from elsa_ray.privacy.public_text import gradients_of_public_text
from elsa_ray.tasks.tokens import TokenizedTexts

from ..helpers import PAD, make_lab, random_texts
from .synthetic import normal, orthogonal

CLASSES, WIDTH = 4, 16


def gradients_of_a_linear_head(count: int, seed: int, batch_size: int = 1) -> tuple[Tensor, Tensor]:
    """Return Wᵀ(softmax(W h) - onehot(y)) / B and the labels y: cross-entropy's gradient at h."""
    head_KD, states_ND = normal(CLASSES, WIDTH, seed=50), 0.3 * normal(count, WIDTH, seed=seed)
    labels_N = torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))
    errors_NK = torch.softmax(states_ND @ head_KD.T, dim=1) - torch.nn.functional.one_hot(labels_N, CLASSES)
    return errors_NK @ head_KD / batch_size, labels_N


def directions(gradient_ND: Tensor) -> Tensor:
    return gradient_directions(gradient_ND, torch.arange(len(gradient_ND)), len(gradient_ND))


def test_directions_sum_a_texts_tokens_and_forget_the_batch_size() -> None:
    rows_TD = normal(5, 3)
    found = gradient_directions(rows_TD, torch.tensor([0, 2, 0, 2, 2]), 3)
    summed = rows_TD[0] + rows_TD[2]
    assert torch.allclose(found[0], summed / summed.norm())
    assert torch.equal(found[1], torch.zeros(3, dtype=torch.float64))
    assert torch.allclose(found, gradient_directions(rows_TD / 16, torch.tensor([0, 2, 0, 2, 2]), 3))


@pytest.mark.parametrize("batch_size", [1, 16])
def test_a_linear_heads_gradient_gives_the_label_away(batch_size: int) -> None:
    public, public_labels = gradients_of_a_linear_head(200, 1)
    private, labels = gradients_of_a_linear_head(100, 2, batch_size)
    learned = label_inference_from_public_texts(directions(public), public_labels, directions(private), labels)
    clustered = label_inference_by_clusters(directions(private), labels, CLASSES, 0)
    assert learned.rate == clustered.rate == 1.0
    assert learned.guess_rate == clustered.guess_rate < 0.4 and learned.count == 100


def test_a_rotation_stops_the_public_head_but_not_the_clusters() -> None:
    public, public_labels = gradients_of_a_linear_head(200, 1)
    private, labels = gradients_of_a_linear_head(100, 2)
    hidden = private @ orthogonal(WIDTH, seed=3)
    learned = label_inference_from_public_texts(directions(public), public_labels, directions(hidden), labels)
    clustered = label_inference_by_clusters(directions(hidden), labels, CLASSES, 0)
    assert learned.rate < 0.7
    assert clustered.rate == 1.0


def test_noise_gives_nothing_to_the_public_head_and_little_to_the_named_clusters() -> None:
    public, public_labels = gradients_of_a_linear_head(200, 1)
    _, labels = gradients_of_a_linear_head(400, 2)
    noise = directions(normal(400, WIDTH))
    learned = label_inference_from_public_texts(directions(public), public_labels, noise, labels)
    clustered = label_inference_by_clusters(noise, labels, CLASSES, 0)
    assert abs(learned.rate - 0.25) < 0.1
    assert 0.25 <= clustered.rate < 0.4


@given(seed=st.integers(0, 200))
def test_clusters_get_the_names_that_make_the_most_hits(seed: int) -> None:
    seen_ND = directions(normal(30, 5, seed=seed))
    labels = torch.randint(3, (30,), generator=torch.Generator().manual_seed(seed))
    cluster_N = spherical_clusters(seen_ND, 3, seed)
    best = max(float((torch.tensor(names)[cluster_N] == labels).double().mean()) for names in permutations(range(3)))
    assert label_inference_by_clusters(seen_ND, labels, 3, seed).rate == pytest.approx(best)


def test_clusters_are_reproducible_and_survive_too_few_directions() -> None:
    seen_ND = directions(normal(30, 5))
    assert torch.equal(spherical_clusters(seen_ND, 3, 4), spherical_clusters(seen_ND, 3, 4))
    same = directions(torch.ones(6, 3))
    assert len(spherical_clusters(same, 4, 0)) == 6
    assert label_inference_by_clusters(same, torch.zeros(6, dtype=torch.int64), 4, 0).rate == 1.0


@pytest.mark.parametrize("split", [Split(1, 2, 1), Split(2, 2, 0)])
def test_a_whole_models_gradients_give_labels_away(split: Split) -> None:
    """The attacker's texts and the client's share nothing; the client's adapters have moved a little."""
    lab, texts = make_lab("bert"), random_texts(200)
    first, moved = lab.adapters(3), lab.adapters(4)
    trained = {name: tensor + 0.1 * moved[name] for name, tensor in first.items()}

    def half(start: int, stop: int, adapters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        offsets = texts.offsets[start : stop + 1]
        ids = texts.token_ids[offsets[0] : offsets[-1]]
        own = TokenizedTexts(ids, offsets - offsets[0], texts.labels[start:stop])
        rows = gradients_of_public_text(lab.model, adapters, split, own, PAD)
        directions_ND = gradient_directions(rows.rows_TD, rows.text_T, len(own))
        return directions_ND, torch.from_numpy(np.asarray(own.labels))

    public, private = half(0, 120, first), half(120, 200, trained)
    outcome = label_inference_from_public_texts(*public, *private)
    assert outcome.rate > 0.9 > 0.4 > outcome.guess_rate
