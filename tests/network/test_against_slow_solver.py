"""The fluid solver against a slow exact one, on networks of every shape."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from elsa_ray.network import finish_times
from elsa_ray.network.routes import find_routes

from .networks import random_network, random_transfers
from .slow_solver import fair_rates, slow_finish

SHAPES = ("tree", "mesh", "asymmetric", "shared", "directed")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(12))
def test_finish_times_equal_the_exact_ones(shape: str, seed: int) -> None:
    rng = random.Random(f"{shape}/{seed}")
    network = random_network(rng, shape)
    transfers = random_transfers(rng, network, rng.choice([5, 20, 60]))
    found = finish_times(network, transfers)

    ends = [(network.index(row["src"]), network.index(row["dst"])) for row in transfers]
    routes = find_routes(network, [source for source, _ in ends], [target for _, target in ends])
    flows = []
    for row, route in zip(transfers, routes, strict=True):
        assert route is not None
        flows.append((row["start_seconds"] + route.latency_seconds, row["num_bytes"], route.capacities))
    exact = slow_finish(flows, network.capacity_bytes_per_second.tolist())
    for row, expected in zip(found, exact, strict=True):
        assert row["finish_seconds"] == pytest.approx(float(expected), rel=1e-9, abs=0)


@pytest.mark.parametrize("seed", range(5))
def test_order_of_the_input_changes_no_bit(seed: int) -> None:
    rng = random.Random(seed)
    network = random_network(rng, "mesh")
    transfers = random_transfers(rng, network, 40)
    shuffled = rng.sample(transfers, len(transfers))
    first, second = finish_times(network, transfers), finish_times(network, shuffled)
    assert {row["id"]: row for row in first} == {row["id"]: row for row in second}


def test_the_slow_solver_itself_on_a_known_case() -> None:
    # Bertsekas and Gallager's kind of chain: one long flow, one flow on each of two links.
    assert fair_rates([(0, 1), (0,), (1,)], [Fraction(10), Fraction(4)]) == [2, 8, 2]
