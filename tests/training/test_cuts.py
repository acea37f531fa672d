"""A model tested over its cuts is the whole model, but for what the codecs lose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from elsa_ray.config.protocol import OptimizerConfig
from elsa_ray.model.split import Split
from elsa_ray.training.batches import cohort_batch
from elsa_ray.training.cuts import logits_over_cuts

from ..helpers import PAD, chains, make_lab, random_texts, recipe

SPLIT = Split(1, 2, 1)


def both_logits(*specs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    lab = make_lab("bert")
    tokens = random_texts(6, seed=3)
    batch = cohort_batch(tokens, [np.arange(6)[None]], 0, PAD)
    adapters = {name: tensor[None] for name, tensor in lab.adapters(5).items()}
    settings = recipe(OptimizerConfig(), of=chains(*specs))
    with torch.no_grad():
        _, whole = lab.model.whole(batch.ids_NS, batch.mask_NS, adapters)
        cut = logits_over_cuts(lab.model, adapters, settings, SPLIT, batch.ids_NS, batch.mask_NS, 0)
    return whole, cut


@pytest.mark.parametrize("specs", [[], [{"kind": "ssop", "rank": 8}]], ids=["no codec", "the edge has the key"])
def test_nothing_is_lost_where_the_receiver_undoes_what_the_sender_did(specs: list[dict[str, Any]]) -> None:
    whole, cut = both_logits(*specs)
    # Keys are fp32.
    assert torch.allclose(whole, cut, atol=1e-5)


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "ssop", "rank": 8, "invert": "client"},
        {"kind": "sketch", "rows": 1, "buckets": 8},
        {"kind": "subspace", "rank": 4},
    ],
    ids=lambda spec: spec["kind"],
)
def test_what_the_cut_loses_is_seen(spec: dict[str, Any]) -> None:
    whole, cut = both_logits(spec)
    assert cut.isfinite().all()
    assert not torch.allclose(whole, cut, atol=1e-3)
