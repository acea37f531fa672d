"""Weights and tokens are never copied between processes: every worker of a node reads those in Ray's object store."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from transformers import BertConfig, BertForSequenceClassification

from elsa_ray.runtime.shared import Shared
from elsa_ray.runtime.weights import PackedModel, pack_model, unpack_model
from elsa_ray.tasks.tokens import TokenizedTexts


def is_in_object_store(address: int) -> bool:
    """Tell whether this process has the object store's memory at an address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split(maxsplit=5)
        first, last = (int(end, 16) for end in span.split("-"))
        if first <= address < last:
            return "plasma" in name or name.startswith("/dev/shm/")
    return False


@ray.remote(num_cpus=0)
def where_they_lie(packed: PackedModel, texts: TokenizedTexts) -> dict[str, bool]:
    """Return of all weights as the model has them, and of the tokens, whether they lie in the object store."""
    weights = dict(unpack_model(packed).named_parameters())
    found = {name: is_in_object_store(weight.data_ptr()) for name, weight in weights.items()}
    own = torch.zeros(100_000)
    assert not is_in_object_store(own.data_ptr())
    return {**found, "tokens": is_in_object_store(texts.token_ids.ctypes.data)}


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory map of a Linux process")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_workers_read_weights_and_tokens_where_they_lie(ray_cluster: None, dtype: torch.dtype) -> None:
    config = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
    model = BertForSequenceClassification(config).to(dtype)
    texts = TokenizedTexts(np.zeros(100_000, np.int32), np.array([0, 100_000]), None)
    packed, shared = Shared(lambda: pack_model(model, causal_lm=False)), Shared(lambda: texts)
    first, second = ray.get([where_they_lie.remote(packed.reference, shared.reference) for _ in range(2)], timeout=120)
    assert first == second
    assert [name for name, is_there in first.items() if not is_there] == []
    assert len(first) == 1 + len(list(model.parameters()))
