from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from elsa_ray.config.errors import InputError
from elsa_ray.tasks.backbones import Backbone
from elsa_ray.tasks.quiet import quiet_transformers
from elsa_ray.tasks.weights import load_model

from .helpers import TEXTS
from .test_backbones import needs_minilm, resolve, save_bert

MODELS = [
    ("tiny", "classification"),
    ("tiny_llama", "classification"),
    ("tiny_gpt2", "classification"),
    ("tiny_llama", "causal_lm"),
    ("tiny_gpt2", "causal_lm"),
    pytest.param("minilm", "classification", marks=needs_minilm),
]


def with_global_seed(seed: int, backbone: Backbone, kind: Any, run_seed: int = 0) -> dict[str, torch.Tensor]:
    """Load under a foreign global seed, and check that it is left alone."""
    torch.random.default_generator.manual_seed(seed)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    weights = load_model(backbone, kind, run_seed).state_dict()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]
    return weights


@pytest.mark.parametrize(("name", "kind"), MODELS)
def test_weights_depend_on_the_run_seed_alone(name: str, kind: Any, tmp_path: Path) -> None:
    backbone = resolve(name, tmp_path, kind)
    first, second = (with_global_seed(seed, backbone, kind) for seed in (1, 2))
    assert first.keys() == second.keys()
    for parameter in first:
        assert torch.equal(first[parameter], second[parameter]), parameter
    other = with_global_seed(1, backbone, kind, run_seed=1)
    changed = [parameter for parameter in first if not torch.equal(first[parameter], other[parameter])]
    if name == "minilm":
        assert changed == ["classifier.weight"]
    else:
        assert len(changed) > 10


@pytest.mark.parametrize(("name", "kind"), MODELS)
def test_the_model_is_frozen_and_finite(name: str, kind: Any, tmp_path: Path) -> None:
    backbone = resolve(name, tmp_path, kind)
    model = load_model(backbone, kind, 0)
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert not parameter.requires_grad
    batch = backbone.tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.isfinite(logits).all()
    if kind == "classification":
        assert logits.shape == (2, 3)
        assert not torch.equal(logits[0], logits[1])
    else:
        assert logits.shape[-1] == model.config.vocab_size


def test_initial_values_follow_the_kind_of_parameter(tmp_path: Path) -> None:
    model = load_model(resolve("tiny_gpt2", tmp_path, "causal_lm"), "causal_lm", 0)
    weights = dict(model.named_parameters())
    assert torch.equal(weights["transformer.h.0.ln_1.weight"], torch.ones(64))
    assert torch.equal(weights["transformer.h.0.ln_1.bias"], torch.zeros(64))
    assert torch.equal(weights["transformer.h.3.attn.c_attn.bias"], torch.zeros(192))
    assert weights["transformer.wte.weight"].std().item() == pytest.approx(0.125, rel=0.05)
    assert weights["lm_head.weight"] is not weights["transformer.wte.weight"]
    assert not torch.equal(weights["lm_head.weight"], weights["transformer.wte.weight"])


@needs_minilm
def test_minilm_keeps_its_weights(tmp_path: Path) -> None:
    backbone = resolve("minilm", tmp_path)
    assert isinstance(backbone.weights, Path)
    saved = load_file(backbone.weights / "model.safetensors")
    loaded = load_model(backbone, "classification", 0).state_dict()
    compared = 0
    for name, value in saved.items():
        if f"bert.{name}" in loaded:
            assert torch.equal(loaded[f"bert.{name}"], value), name
            compared += 1
    assert compared >= 100
    assert set(loaded) - {f"bert.{name}" for name in saved} == {"classifier.weight", "classifier.bias"}


def test_a_head_of_another_size_is_made_anew_and_the_rest_is_kept(tmp_path: Path) -> None:
    save_bert(tmp_path / "m", num_labels=7)
    saved = load_file(tmp_path / "m" / "model.safetensors")
    weights = with_global_seed(4, resolve("m", tmp_path), "classification")
    assert saved["classifier.weight"].shape == (7, 16)
    assert weights["classifier.weight"].shape == (3, 16)
    assert torch.equal(weights["classifier.bias"], torch.zeros(3))
    assert torch.equal(weights["bert.pooler.dense.weight"], saved["bert.pooler.dense.weight"])
    again = with_global_seed(5, resolve("m", tmp_path), "classification")
    assert torch.equal(weights["classifier.weight"], again["classifier.weight"])


def test_an_incomplete_checkpoint_is_refused(tmp_path: Path) -> None:
    save_bert(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    saved = load_file(path)
    save_file({name: value for name, value in saved.items() if ".layer.1." not in name}, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"task.model: found m without 16 of the backbone's weights, such as bert.enc"):
        load_model(resolve("m", tmp_path), "classification", 0)


@pytest.mark.parametrize("content", [None, b"", b"garbage that is no tensor file"])
def test_unreadable_weights_are_told_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    save_bert(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_model(resolve("m", tmp_path), "classification", 0)
    assert str(caught.value).startswith("task.model: found m (")
    assert "\n" not in str(caught.value)


def test_loading_is_silent_and_restores_settings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging as transformers_logging

    save_bert(tmp_path / "m", num_labels=7)
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    capfd.readouterr()
    for name in ("m", "tiny", "tiny_llama", "tiny_gpt2"):
        load_model(resolve(name, tmp_path), "classification", 0)
    assert capfd.readouterr() == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before
    assert not are_progress_bars_disabled()
    with quiet_transformers():
        assert are_progress_bars_disabled()
    assert not are_progress_bars_disabled()
