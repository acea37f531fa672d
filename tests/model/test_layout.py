"""Which tensors are trained, what they are called, where they lie, and with which numbers they start."""

from __future__ import annotations

import math

import pytest
import torch

from elsa_ray.config.errors import InputError
from elsa_ray.config.task import LoraConfig
from elsa_ray.model.adapters import initial_adapters
from elsa_ray.model.split import Part, Split, cut, whole

from ..helpers import ALL_SPLITS, LAYERS, MODELS, make_lab, model_name, split_name, trained_parameters


@pytest.mark.parametrize("model", MODELS, ids=model_name)
def test_the_trained_tensors_are_pefts_by_name_and_shape(model: tuple[str, bool]) -> None:
    lab = make_lab(model[0], causal_lm=model[1])
    trained = trained_parameters(lab.peft(lab.adapters(0)))
    assert {tensor.name: tensor.shape for tensor in lab.layout.tensors} == {
        name: tuple(parameter.shape) for name, parameter in trained.items()
    }


@pytest.mark.parametrize("split", [*ALL_SPLITS, whole(LAYERS)], ids=split_name)
def test_the_parts_hold_each_tensor_once(split: Split) -> None:
    lab = make_lab("bert")
    parts = {part: lab.layout.part(split, part) for part in Part}
    assert sorted(t.name for tensors in parts.values() for t in tensors) == sorted(t.name for t in lab.layout.tensors)
    assert all(tensor.layer in split.layers(part) for part in (Part.FRONT, Part.MIDDLE) for tensor in parts[part])
    assert {t.name for t in parts[Part.BACK] if t.layer is None} == {"classifier.weight", "classifier.bias"}


def test_a_start_is_uniform_a_zero_b_and_the_models_own_head() -> None:
    lab = make_lab("bert", lora=LoraConfig(rank=8, alpha=16.0))
    adapters = initial_adapters(lab.layout, lab.plain, 3, torch.float64)
    for name, tensor in adapters.items():
        if name.endswith("lora_A.weight"):
            bound = 1 / math.sqrt(tensor.shape[1])
            assert 0.9 * bound < float(tensor.abs().max()) <= bound
            assert abs(float(tensor.mean())) < 0.15 * bound
        elif name.endswith("lora_B.weight"):
            assert not tensor.any()
        else:
            assert torch.equal(tensor, lab.plain.get_parameter(name))
    assert torch.equal(
        adapters["classifier.weight"], initial_adapters(lab.layout, lab.plain, 4, torch.float64)["classifier.weight"]
    )


def test_the_start_depends_on_the_seed_and_the_name_alone() -> None:
    wide, narrow = (
        make_lab("bert", lora=LoraConfig(rank=3, targets=targets)) for targets in (["query", "key"], ["key"])
    )
    first, second = (initial_adapters(lab.layout, lab.plain, 3, torch.float32) for lab in (wide, narrow))
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
    other = initial_adapters(narrow.layout, narrow.plain, 4, torch.float32)
    name = narrow.layout.tensors[0].name
    assert not torch.equal(second[name], other[name])
    layers = [second[tensor.name] for tensor in narrow.layout.tensors if tensor.name.endswith("lora_A.weight")]
    assert not torch.equal(layers[0], layers[1])


@pytest.mark.parametrize(("front", "back"), [(LAYERS, 0), (2, 2), (1, 3), (9, 9)])
def test_a_cut_leaves_the_edge_a_block(front: int, back: int) -> None:
    with pytest.raises(InputError, match=r"protocol\.split: found front .* so that the edge has a block"):
        cut(LAYERS, front, back)


@pytest.mark.parametrize("split", ALL_SPLITS, ids=split_name)
def test_a_cut_counts_its_blocks(split: Split) -> None:
    assert cut(LAYERS, split.front, split.back) == split
    assert split.is_cut
    assert [layer for part in Part for layer in split.layers(part)] == list(range(LAYERS))
    assert [split.part_of(layer) for layer in range(LAYERS)] == sorted(
        (split.part_of(layer) for layer in range(LAYERS)), key=list(Part).index
    )
    assert split.part_of(None) is Part.BACK
