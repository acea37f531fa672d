"""Values of state as JSON and named tensors, and back, by what their types say: a new field needs no code of its own.

Known are numbers, texts, enums, tensors, arrays, and tuples, sets, mappings, named tuples and dataclasses of them.
Nothing that is read can name a class or run code: types come from the reader, not from the file.
"""

from __future__ import annotations

import math
import types
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor


class UnknownTypeError(TypeError):
    """A type that has no form, with the field that it was found at."""


class WrongDataError(ValueError):
    """Data that does not have the form that is expected."""


class TensorBox:
    """Tensors by name, each once, however often it occurs."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._name_of_id: dict[int, str] = {}
        self._originals: list[Tensor] = []  # kept, for an id is unique only among what is alive

    def put(self, name: str, tensor: Tensor) -> str:
        """Take a tensor in under a name, or one that is free; returns the name that it has."""
        known = self._name_of_id.get(id(tensor))
        if known is not None:
            return known
        while name in self.tensors:
            name += "_"
        self._name_of_id[id(tensor)] = name
        self._originals.append(tensor)
        own = tensor.detach().to("cpu").contiguous()
        # The file format takes whole storages only.
        self.tensors[name] = own if own.untyped_storage().nbytes() == own.nbytes else own.clone()
        return name


class Form(ABC):
    """How values of one type are written and read."""

    is_plain = False
    """Whether JSON holds the value as it is."""

    @abstractmethod
    def pack(self, value: Any, box: TensorBox, name: str) -> Any:
        """Return a value as JSON data; its tensors go into the box, under names that begin with ``name``."""

    @abstractmethod
    def unpack(self, data: Any, tensors: Mapping[str, Tensor]) -> Any:
        """Return the value.

        Raises:
            WrongDataError: the data has another form.
        """


@cache
def form_of(hint: Any) -> Form:
    """Return the form of a type.

    Raises:
        UnknownTypeError: it has none.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in (int, str, bool, type(None)):
        return _Plain()
    if hint is float:
        return _Float()
    if hint is Tensor:
        return _Tensor()
    if hint is np.ndarray or origin is np.ndarray:
        return _Array()
    if origin in (Union, types.UnionType) and type(None) in arguments and len(arguments) == 2:
        return _Optional(form_of(next(argument for argument in arguments if argument is not type(None))))
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _Many(form_of(arguments[0]), tuple)
    if origin is frozenset:
        return _Many(form_of(arguments[0]), frozenset)
    if origin is tuple:
        return _Row(tuple(map(form_of, arguments)), tuple)
    if origin in (dict, Mapping):
        return _Mapping(arguments[0] is str, *map(form_of, arguments))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _Enum(hint)
    names = getattr(hint, "_fields", None)
    if names is not None:
        return _Row(tuple(_forms_of_fields(hint, names).values()), hint._make)
    if isinstance(hint, type) and is_dataclass(hint):
        return _Record(hint, _forms_of_fields(hint, tuple(field.name for field in fields(hint))))
    raise UnknownTypeError(str(hint))


def _forms_of_fields(cls: type, names: tuple[str, ...]) -> dict[str, Form]:
    hints, forms = get_type_hints(cls), {}
    for name in names:
        try:
            forms[name] = form_of(hints[name])
        except UnknownTypeError as error:
            raise UnknownTypeError(f"{cls.__name__}.{name}: {error}") from None
    return forms


class _Plain(Form):
    is_plain = True

    def pack(self, value: Any, box: TensorBox, name: str) -> Any:
        return value

    def unpack(self, data: Any, tensors: Mapping[str, Tensor]) -> Any:
        return data


class _Float(Form):
    def pack(self, value: Any, box: TensorBox, name: str) -> Any:
        # What JSON has no number for stands as a text that float() reads: nan, inf, -inf.
        return value if math.isfinite(value) else str(float(value))

    def unpack(self, data: Any, tensors: Mapping[str, Tensor]) -> Any:
        return float(data) if isinstance(data, str) else data


class _Tensor(Form):
    def pack(self, value: Any, box: TensorBox, name: str) -> Any:
        return box.put(name, value)

    def unpack(self, data: Any, tensors: Mapping[str, Tensor]) -> Any:
        if data not in tensors:
            raise WrongDataError(f"no tensor {data}")
        return tensors[data]


class _Array(_Tensor):
    def pack(self, value: Any, box: TensorBox, name: str) -> Any:
        return box.put(name, torch.from_numpy(np.ascontiguousarray(value)))

    def unpack(self, data: Any, tensors: Mapping[str, Tensor]) -> Any:
        return super().unpack(data, tensors).numpy()


class _Enum(Form):
    def __init__(self, kind: type[Enum]) -> None:
        self._kind = kind

    def pack(self, value: Any, box: TensorBox, name: str) -> Any:
        return value.name

    def unpack(self, data: Any, tensors: Mapping[str, Tensor]) -> Any:
        return self._kind[data]


class _Optional(Form):
    def __init__(self, inner: Form) -> None:
        self._inner = inner
        self.is_plain = inner.is_plain

    def pack(self, value: Any, box: TensorBox, name: str) -> Any:
        return None if value is None else self._inner.pack(value, box, name)

    def unpack(self, data: Any, tensors: Mapping[str, Tensor]) -> Any:
        return None if data is None else self._inner.unpack(data, tensors)


class _Many(Form):
    """Any number of values of one type; a set's in a fixed order where they have one."""

    def __init__(self, inner: Form, make: Any) -> None:
        self._inner, self._make = inner, make

    def pack(self, value: Any, box: TensorBox, name: str) -> Any:
        items = sorted(value) if self._make is frozenset and self._inner.is_plain else list(value)
        if self._inner.is_plain:
            return items
        return [self._inner.pack(item, box, f"{name}.{number}") for number, item in enumerate(items)]

    def unpack(self, data: Any, tensors: Mapping[str, Tensor]) -> Any:
        if self._inner.is_plain:
            return self._make(data)
        return self._make(self._inner.unpack(item, tensors) for item in data)


class _Row(Form):
    """A fixed number of values, each of its type."""

    def __init__(self, inner: tuple[Form, ...], make: Any) -> None:
        self._inner, self._make = inner, make

    def pack(self, value: Any, box: TensorBox, name: str) -> Any:
        pairs = enumerate(zip(self._inner, value, strict=True))
        return [form.pack(item, box, f"{name}.{number}") for number, (form, item) in pairs]

    def unpack(self, data: Any, tensors: Mapping[str, Tensor]) -> Any:
        if len(data) != len(self._inner):
            raise WrongDataError(f"{len(data)} values instead of {len(self._inner)}")
        return self._make(form.unpack(item, tensors) for form, item in zip(self._inner, data, strict=True))


class _Mapping(Form):
    """A JSON object where the keys are texts, else pairs; the order is kept."""

    def __init__(self, has_texts: bool, key: Form, value: Form) -> None:
        self._has_texts, self._key, self._value = has_texts, key, value

    def pack(self, value: Any, box: TensorBox, name: str) -> Any:
        if self._has_texts:
            return {key: self._value.pack(item, box, f"{name}.{key}") for key, item in value.items()}
        return [
            [self._key.pack(key, box, name), self._value.pack(item, box, f"{name}.{_part(key)}")]
            for key, item in value.items()
        ]

    def unpack(self, data: Any, tensors: Mapping[str, Tensor]) -> Any:
        if self._has_texts:
            return {key: self._value.unpack(item, tensors) for key, item in data.items()}
        return {self._key.unpack(key, tensors): self._value.unpack(item, tensors) for key, item in data}


def _part(key: Any) -> str:
    """Return a key as a part of a name."""
    return "-".join(map(str, key)) if isinstance(key, tuple) else str(key)


class _Record(Form):
    """A dataclass, by the names of its fields."""

    def __init__(self, cls: Any, forms: dict[str, Form]) -> None:
        self._cls, self._forms = cls, forms

    def pack(self, value: Any, box: TensorBox, name: str) -> Any:
        if type(value) is not self._cls:
            raise UnknownTypeError(f"{name}: {type(value).__name__} instead of {self._cls.__name__}")
        return {field: form.pack(getattr(value, field), box, f"{name}.{field}") for field, form in self._forms.items()}

    def unpack(self, data: Any, tensors: Mapping[str, Tensor]) -> Any:
        if data.keys() != self._forms.keys():
            names = ", ".join(sorted(data.keys() ^ self._forms.keys()))
            raise WrongDataError(f"{self._cls.__name__} has other fields: {names}")
        return self._cls(**{name: form.unpack(data[name], tensors) for name, form in self._forms.items()})
