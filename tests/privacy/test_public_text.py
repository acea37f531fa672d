"""What an attacker computes of public text is what plain transformers with PEFT computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from elsa_ray.model.split import Split
from elsa_ray.privacy.public_text import gradients_of_public_text, states_of_public_text
from elsa_ray.privacy.rows import TokenRows
from elsa_ray.tasks.tokens import TokenizedTexts

from ..helpers import PAD, Lab, make_lab, own_batch, plain_loss, random_texts, split_name

SPLITS = [Split(1, 2, 1), Split(2, 2, 0)]


@pytest.fixture(scope="module")
def lab() -> Lab:
    return make_lab("bert")


TEXTS = random_texts(9)


def in_text_order(rows: TokenRows) -> TokenRows:
    order_T = rows.text_T.argsort(stable=True)
    return TokenRows(rows.rows_TD[order_T], rows.ids_T[order_T], rows.text_T[order_T])


def assert_rows_of(texts: TokenizedTexts, rows: TokenRows) -> None:
    assert rows.ids_T.tolist() == texts.token_ids.tolist()
    assert rows.text_T.bincount().tolist() == texts.lengths.tolist()


@pytest.mark.parametrize("split", SPLITS, ids=split_name)
def test_states_at_the_first_cut(lab: Lab, split: Split) -> None:
    adapters = lab.adapters(3)
    rows = in_text_order(states_of_public_text(lab.model, adapters, split, TEXTS, PAD))
    assert_rows_of(TEXTS, rows)
    ids_BS, mask_BS, _ = own_batch(TEXTS, np.arange(len(TEXTS)))
    hidden = lab.peft(adapters)(input_ids=ids_BS, attention_mask=mask_BS, output_hidden_states=True).hidden_states
    assert torch.allclose(rows.rows_TD, hidden[split.front][mask_BS], atol=1e-9)
    assert not rows.rows_TD.requires_grad


@pytest.mark.parametrize("split", SPLITS, ids=split_name)
def test_gradients_at_the_second_cut(lab: Lab, split: Split) -> None:
    adapters = lab.adapters(3)
    rows = in_text_order(gradients_of_public_text(lab.model, adapters, split, TEXTS, PAD))
    assert_rows_of(TEXTS, rows)
    ids_BS, mask_BS, labels_B = own_batch(TEXTS, np.arange(len(TEXTS)))
    peft, caught = lab.peft(adapters), []
    block = peft.get_submodule(f"base_model.model.{lab.shape.block_path}.{split.front + split.middle - 1}")
    block.register_forward_hook(lambda module, inputs, output: caught.append(output))
    loss = plain_loss(peft, ids_BS, mask_BS, labels_B)
    state_BSD = caught[0][0] if isinstance(caught[0], tuple) else caught[0]
    (gradient_BSD,) = torch.autograd.grad(loss, state_BSD)
    assert torch.allclose(rows.rows_TD, gradient_BSD[mask_BS], atol=1e-9)
