from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elsa_ray.tasks.batches import ABSENT, BatchPlan, batch_plan, steps_of

sizes = st.integers(1, 40)


def plan(num_examples: int, batch_size: int, steps: int | None, epochs: int | None, **who: int) -> BatchPlan:
    names = {"run_seed": 0, "global_round": 0, "edge_round": 0, "client": 0} | who
    return batch_plan(num_examples, batch_size, local_steps=steps, local_epochs=epochs, **names)


@given(sizes, sizes, st.integers(1, 30))
def test_steps_cut_full_batches_from_whole_passes(num_examples: int, batch_size: int, steps: int) -> None:
    drawn = plan(num_examples, batch_size, steps, None)
    batch = min(batch_size, num_examples)
    assert drawn.example_of.shape == (steps, batch)
    assert drawn.example_of.dtype == np.int64
    stream = drawn.example_of.reshape(-1)
    for start in range(0, len(stream), num_examples):
        one_pass = stream[start : start + num_examples]
        assert len(np.unique(one_pass)) == len(one_pass)
        assert one_pass.min() >= 0
        assert one_pass.max() < num_examples
    assert drawn.num_steps == steps_of(num_examples, batch_size, local_steps=steps, local_epochs=None)


@given(sizes, sizes, st.integers(1, 5))
def test_epochs_see_each_example_once(num_examples: int, batch_size: int, epochs: int) -> None:
    drawn = plan(num_examples, batch_size, None, epochs)
    batch = min(batch_size, num_examples)
    steps_an_epoch = -(-num_examples // batch)
    assert drawn.example_of.shape == (epochs * steps_an_epoch, batch)
    assert drawn.num_steps == steps_of(num_examples, batch_size, local_steps=None, local_epochs=epochs)
    for epoch in drawn.example_of.reshape(epochs, -1):
        # Real examples first, absent ones at the very end of the epoch's last batch.
        np.testing.assert_array_equal(np.sort(epoch[:num_examples]), np.arange(num_examples))
        assert np.all(epoch[num_examples:] == ABSENT)
    assert drawn.num_examples.min() >= 1
    assert drawn.num_examples.sum() == epochs * num_examples


def test_batches_depend_on_seed_round_edge_round_and_client() -> None:
    base = plan(100, 10, 5, None).example_of
    np.testing.assert_array_equal(base, plan(100, 10, 5, None).example_of)
    for name in ("run_seed", "global_round", "edge_round", "client"):
        assert not np.array_equal(base, plan(100, 10, 5, None, **{name: 1}).example_of)


def test_passes_are_reshuffled() -> None:
    first, second = plan(50, 50, 2, None).example_of
    assert not np.array_equal(first, second)


def test_steps_of_many_clients_at_once() -> None:
    counts = np.array([1, 7, 8, 9, 100])
    np.testing.assert_array_equal(steps_of(counts, 8, local_steps=None, local_epochs=3), [3, 3, 3, 6, 39])
    np.testing.assert_array_equal(steps_of(counts, 8, local_steps=4, local_epochs=None), [4] * 5)


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "steps", "epochs"),
    [(5, 2, None, None), (5, 2, 1, 1), (0, 2, 1, None), (5, 0, 1, None), (5, 2, 0, None), (5, 2, None, -1)],
)
def test_wrong_arguments_are_refused(num_examples: int, batch_size: int, steps: int | None, epochs: int | None) -> None:
    with pytest.raises(ValueError, match="must be"):
        plan(num_examples, batch_size, steps, epochs)
