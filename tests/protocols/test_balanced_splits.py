"""Splits that spare a crowded edge: never worse than one split for all, close to the best, few, and slow to move.

Shapes: N clients, X options.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_ray.protocols.split_choice import NO_OPTION, balanced_splits, step_seconds_of_choice


def problem(seed: int, num_clients: int, num_options: int) -> dict[str, Any]:
    """Options from least to most on the edge: what leaves the client goes to the edge, at their different speeds."""
    generator = np.random.default_rng(seed)
    blocks_X = np.arange(1, num_options + 1)
    client_NX = blocks_X[::-1] / generator.choice([0.25, 1.0, 4.0], num_clients)[:, None]
    edge_NX = np.repeat(blocks_X[None] / 4.0, num_clients, axis=0)
    fits_NX = generator.random((num_clients, num_options)) < 0.9
    fits_NX[:, -1] = True
    return {
        "alone_NX": client_NX + edge_NX + generator.uniform(0, 0.5, num_clients)[:, None],
        "edge_seconds_NX": edge_NX,
        "fits_NX": fits_NX,
        "edge_N": np.sort(generator.integers(0, 2, num_clients)),
    }


def chosen_by(case: dict[str, Any], held_N: np.ndarray | None = None, **options: Any) -> np.ndarray:
    num_clients = len(case["edge_N"])
    held_N = np.full(num_clients, NO_OPTION) if held_N is None else held_N
    values = {"edge_slots": 1, "participation": 1.0, "max_splits": 3, **options}
    return balanced_splits(
        case["alone_NX"], case["edge_seconds_NX"], case["fits_NX"], held_N, edge_N=case["edge_N"], **values
    )


def seconds_of(case: dict[str, Any], chosen_N: np.ndarray) -> float:
    rows = np.arange(len(chosen_N))
    alone_N, at_edge_N = case["alone_NX"][rows, chosen_N], case["edge_seconds_NX"][rows, chosen_N]
    return step_seconds_of_choice(alone_N, at_edge_N, case["edge_N"], edge_slots=1, participation=1.0)


def test_the_step_is_that_of_the_slowest_member_or_of_the_load_of_the_fullest_edge() -> None:
    alone_N, at_edge_N, edge_N = np.array([3.0, 1.0, 1.0]), np.array([1.0, 2.0, 4.0]), np.array([0, 1, 1])
    assert step_seconds_of_choice(alone_N, at_edge_N, edge_N, edge_slots=1, participation=1.0) == 6.0
    assert step_seconds_of_choice(alone_N, at_edge_N, edge_N, edge_slots=4, participation=1.0) == 3.0
    assert step_seconds_of_choice(alone_N, at_edge_N, edge_N, edge_slots=1, participation=0.25) == 3.0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), num_clients=st.integers(1, 12), max_splits=st.integers(1, 4))
def test_it_fits_uses_few_splits_and_is_never_slower_than_one_split_for_all(
    seed: int, num_clients: int, max_splits: int
) -> None:
    case = problem(seed, num_clients, 5)
    chosen_N = chosen_by(case, max_splits=max_splits)
    assert case["fits_NX"][np.arange(num_clients), chosen_N].all()
    assert len(np.unique(chosen_N)) <= max_splits
    for option in np.flatnonzero(case["fits_NX"].all(axis=0)):
        assert seconds_of(case, chosen_N) <= seconds_of(case, np.full(num_clients, option)) + 1e-12
    again_N = chosen_by(case, max_splits=max_splits)
    assert chosen_N.tolist() == again_N.tolist()


def test_it_is_close_to_the_best_of_all_choices() -> None:
    ratios = []
    for seed in range(40):
        case = problem(seed, 6, 3)
        fitting = [np.flatnonzero(row) for row in case["fits_NX"]]
        best = min(seconds_of(case, np.array(choice)) for choice in itertools.product(*fitting))
        ratios.append(seconds_of(case, chosen_by(case)) / best)
    assert max(ratios) < 1.3
    assert np.mean(ratios) < 1.05


def test_fast_clients_spare_a_crowded_edge_for_slow_ones() -> None:
    """One slow client and seven fast ones behind a slot that is as fast as they are."""
    on_client_X, on_edge_X = np.array([5.0, 2.0]), np.array([1.0, 4.0])
    speed_N = np.array([0.2, *[1.0] * 7])
    case = {
        "alone_NX": on_client_X / speed_N[:, None] + on_edge_X,
        "edge_seconds_NX": np.repeat(on_edge_X[None], 8, axis=0),
        "fits_NX": np.ones((8, 2), bool),
        "edge_N": np.zeros(8, np.int64),
    }
    chosen_N = chosen_by(case)
    assert chosen_N.tolist() == [1, *[0] * 7]
    assert seconds_of(case, chosen_N) == 14.0
    assert [seconds_of(case, np.full(8, option)) for option in (0, 1)] == [26.0, 32.0]


@pytest.mark.parametrize(("hysteresis", "stays"), [(0.1, True), (0.0, False)])
def test_the_present_choice_stays_unless_the_step_gains_enough(hysteresis: float, stays: bool) -> None:
    case = {
        "alone_NX": np.array([[1.0, 0.95]] * 3),
        "edge_seconds_NX": np.zeros((3, 2)),
        "fits_NX": np.ones((3, 2), bool),
        "edge_N": np.zeros(3, np.int64),
    }
    chosen_N = chosen_by(case, np.zeros(3, np.int64), hysteresis=hysteresis)
    assert (chosen_N == 0).all() == stays
