"""What models make of the probes: the whole models' own states and answers, without padding (methods.md 1.4, 1.6)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from elsa_ray.training.probing import answer_probes

from ..helpers import MODELS, PAD, make_lab, model_name, random_texts

PROBES = 7


@pytest.mark.parametrize("model", MODELS, ids=model_name)
def test_a_state_is_the_first_tokens_of_an_encoder_and_the_last_real_ones_of_a_causal_model(
    model: tuple[str, bool],
) -> None:
    """Behind the last block, of plain transformers with plain PEFT, text by text; so for two models in one pass."""
    family, causal_lm = model
    lab = make_lab(family, causal_lm=causal_lm)
    probes = random_texts(PROBES, labelled=False)
    assert len(set(probes.lengths.tolist())) > 2
    own = [lab.adapters(seed) for seed in (0, 1)]
    stacked = {name: torch.stack([adapters[name] for adapters in own]) for name in own[0]}
    for adapters, found in zip(own, answer_probes(lab.model, stacked, probes, PAD), strict=True):
        whole = lab.peft(adapters)
        states: list[torch.Tensor] = []
        last = whole.base_model.model.get_submodule(f"{lab.shape.block_path}.{lab.shape.num_layers - 1}")
        last.register_forward_hook(
            lambda module, given, made, states=states: states.append(made[0] if isinstance(made, tuple) else made)
        )
        logits = [whole(input_ids=torch.from_numpy(probes.ids(q)).long()[None]).logits[0] for q in range(PROBES)]
        position = 0 if family in ("bert", "roberta") else -1
        expected_QD = torch.stack([hidden_1SD[0, position] for hidden_1SD in states]).detach().numpy()
        np.testing.assert_allclose(found.states_QD, expected_QD, rtol=1e-5, atol=1e-6)
        assert (found.answers_QK is None) == causal_lm
        if found.answers_QK is not None:
            expected_QK = torch.stack(logits).softmax(dim=1).detach().numpy()
            np.testing.assert_allclose(found.answers_QK, expected_QK, rtol=1e-5, atol=1e-6)
