from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elsa_ray.tasks.seeds import derive_seed, numpy_generator

from .helpers import run_python

parts = st.lists(st.one_of(st.integers(), st.text(st.characters(exclude_categories=["Cs"]))), max_size=5)


@given(parts, parts)
def test_seeds_are_equal_only_for_equal_parts(first: list[int | str], second: list[int | str]) -> None:
    assert 0 <= derive_seed(*first) < 2**64
    assert (derive_seed(*first) == derive_seed(*second)) == (first == second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("a", "bc"), ("ab", "c")),
        ((1,), ("1",)),
        ((1, 2), (12,)),
        ((0,), ()),
        ((0,), ("",)),
        ((255,), (-1,)),
        ((256,), (0,)),
    ],
)
def test_parts_cannot_run_together(first: tuple[int | str, ...], second: tuple[int | str, ...]) -> None:
    assert derive_seed(*first) != derive_seed(*second)


def test_seed_is_the_same_in_another_process_and_pinned() -> None:
    code = "from elsa_ray.tasks.seeds import derive_seed; print(derive_seed(7, 'batches', 3, -1))"
    assert run_python(code, PYTHONHASHSEED="5") == str(derive_seed(7, "batches", 3, -1)) == "11613693112761735042"


def test_numpy_integers_count_as_integers() -> None:
    assert derive_seed(np.int64(5), np.int32(-3)) == derive_seed(5, -3)


@pytest.mark.parametrize("part", [True, 1.0, None, b"a"])
def test_other_parts_are_refused(part: object) -> None:
    with pytest.raises(TypeError, match="integers and texts"):
        derive_seed(part)  # type: ignore[arg-type]


def test_generator_touches_no_global_state() -> None:
    before, python_before = np.random.get_state()[1].tolist(), random.getstate()
    first = numpy_generator(1, "x").random(4)
    np.testing.assert_array_equal(first, numpy_generator(1, "x").random(4))
    assert not np.array_equal(first, numpy_generator(1, "y").random(4))
    assert np.random.get_state()[1].tolist() == before
    assert random.getstate() == python_before
