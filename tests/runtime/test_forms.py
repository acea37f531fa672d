"""State as JSON and tensors: the round trip keeps every bit, and what has no form is told with its field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elsa_ray.protocols.elsa import ElsaState
from elsa_ray.protocols.protocol import ProtocolState
from elsa_ray.runtime.checkpoints import Checkpoint
from elsa_ray.runtime.forms import Form, TensorBox, UnknownTypeError, WrongDataError, form_of
from elsa_ray.world.timeline import WorldState
from tests.runtime.runs import same


class Colour(StrEnum):
    RED = "red as a rose"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 3
    HIGH = 7


class Key(NamedTuple):
    round_index: int
    name: str


@dataclass(frozen=True)
class Inner:
    tensors: tuple[Tensor, ...]
    more: Mapping[str, tuple[tuple[Tensor, ...], ...]]
    seconds: float = 0.0


@dataclass(frozen=True)
class Everything:
    number: int
    text: str
    flag: bool
    seconds: float
    colour: Colour
    level: Level | None
    members: frozenset[int]
    keys: frozenset[Key]
    pairs: tuple[tuple[int, Key], ...]
    by_key: Mapping[Key, dict[str, Tensor]]
    by_client: Mapping[int, Inner]
    floats: npt.NDArray[np.float64]
    flags: npt.NDArray[np.bool_] | None
    inner: Inner | None = None


def written_and_read(value: Any, hint: Any) -> Any:
    box = TensorBox()
    text = json.dumps(form_of(hint).pack(value, box, "state"), allow_nan=False)
    return form_of(hint).unpack(json.loads(text), safetensors.torch.load(safetensors.torch.save(box.tensors)))


floats = st.floats(allow_nan=True, allow_infinity=True)
keys = st.builds(Key, st.integers(), st.text(max_size=5))
tensors = st.builds(
    lambda kind, shape, start: torch.arange(start, start + math.prod(shape)).reshape(shape).to(kind),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.int64, torch.bool]),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(-100, 100),
)
arrays = st.lists(floats, max_size=4).map(lambda values: np.array(values, np.float64))
inner = st.builds(
    Inner,
    st.lists(tensors, max_size=2).map(tuple),
    st.dictionaries(st.text(max_size=4), st.just(((torch.ones(2),), ())), max_size=2),
    floats,
)
everything = st.builds(
    Everything,
    st.integers(),
    st.text(),
    st.booleans(),
    floats,
    st.sampled_from(Colour),
    st.none() | st.sampled_from(Level),
    st.frozensets(st.integers(), max_size=4),
    st.frozensets(keys, max_size=3),
    st.lists(st.tuples(st.integers(), keys), max_size=3).map(tuple),
    st.dictionaries(keys, st.dictionaries(st.text(max_size=4), tensors, max_size=2), max_size=2),
    st.dictionaries(st.integers(), inner, max_size=2),
    arrays,
    st.none() | arrays.map(np.isfinite),
    st.none() | inner,
)


def alike(first: Any, second: Any) -> bool:
    """``same``, and of the same types; NaN is NaN."""
    if isinstance(first, float) and math.isnan(first):
        return isinstance(second, float) and math.isnan(second)
    if isinstance(first, Tensor):
        bits = (first.contiguous().view(torch.uint8), second.view(torch.uint8)) if first.dim() else (first, second)
        return first.dtype == second.dtype and first.shape == second.shape and torch.equal(*bits)
    if isinstance(first, np.ndarray):
        return same(first, second)
    if isinstance(first, Mapping):
        return list(first) == list(second) and all(alike(first[key], second[key]) for key in first)
    if isinstance(first, Everything | Inner):
        return all(alike(getattr(first, field.name), getattr(second, field.name)) for field in fields(first))
    if isinstance(first, tuple) and not isinstance(first, Key):
        return len(first) == len(second) and all(map(alike, first, second))
    return type(first) is type(second) and first == second


@settings(max_examples=30)
@given(everything)
def test_what_is_written_is_read(value: Everything) -> None:
    assert alike(value, written_and_read(value, Everything))


def test_views_and_shared_tensors_are_kept_with_their_values() -> None:
    """The file format refuses views and storages that two tensors share."""
    base = torch.arange(12.0).reshape(3, 4)
    value = Inner((base[1], base, base.T, base, torch.zeros(0)), {"x": ((base[:, 1],),)})
    again = written_and_read(value, Inner)
    assert alike(value, again)
    assert again.tensors[1] is again.tensors[3], "one tensor stays one"
    box = TensorBox()
    form_of(Inner).pack(Inner((base, base), {}), box, "state")
    assert list(box.tensors) == ["state.tensors.0"]


def test_names_never_meet() -> None:
    value = {"a": {"b.c": torch.ones(1)}, "a.b": {"c": torch.zeros(1)}}
    assert alike(value, written_and_read(value, dict[str, dict[str, Tensor]]))


def test_the_states_of_a_run_have_a_form() -> None:
    for state in (Checkpoint, ElsaState, ProtocolState, WorldState):
        assert isinstance(form_of(state), Form), "and no UnknownTypeError, which names the field"


@dataclass(frozen=True)
class Unknown:
    fine: int
    wrong: tuple[object, ...]


def test_an_unknown_type_is_told_with_its_field() -> None:
    for hint in (Unknown, tuple[Unknown, ...]):
        with pytest.raises(UnknownTypeError, match=r"Unknown\.wrong: <class 'object'>"):
            form_of(hint)
    for hint in (Any, int | str, list[int], set[int], complex, bytes):
        with pytest.raises(UnknownTypeError):
            form_of(hint)


def test_a_subclass_is_not_cut_down_to_its_base() -> None:
    with pytest.raises(UnknownTypeError, match="state: ElsaState instead of ProtocolState"):
        form_of(ProtocolState).pack(ElsaState(), TensorBox(), "state")


@pytest.mark.parametrize(
    "data",
    [{"tensors": [], "more": {}}, {"tensors": [], "more": {}, "seconds": 0, "other": 1}, {"tensors": ["x"]}],
)
def test_data_of_another_form_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(WrongDataError):
        form_of(Inner).unpack({**data}, {})
    with pytest.raises(WrongDataError, match="no tensor x"):
        form_of(Inner).unpack({"tensors": ["x"], "more": {}, "seconds": 0}, {})
