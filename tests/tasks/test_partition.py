from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from elsa_ray.config.errors import InputError
from elsa_ray.config.task import PartitionConfig
from elsa_ray.tasks.partition import partition

read_config: TypeAdapter[Any] = TypeAdapter(PartitionConfig)


def split(
    config: dict[str, Any], labels: Any, num_clients: int, seed: int = 0, columns: Any = None
) -> list[np.ndarray]:
    labels_N = np.array(labels, dtype=np.int64)
    return partition(read_config.validate_python(config), labels_N, columns or {}, len(labels_N), num_clients, seed)


def check_laws(parts: list[np.ndarray], num_examples: int, num_clients: int) -> None:
    """Every example once, no client empty, each part sorted."""
    assert len(parts) == num_clients
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(num_examples))
    for indices in parts:
        assert indices.dtype == np.int64
        assert len(indices) > 0
        assert np.all(np.diff(indices) > 0)


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@st.composite
def problems(draw: st.DrawFn, per_client: int = 1) -> tuple[list[int], int, int]:
    num_clients = draw(st.integers(1, 12))
    least = num_clients * per_client
    labels = draw(st.lists(st.integers(0, 5), min_size=least, max_size=least + 80))
    return labels, num_clients, draw(st.integers(0, 2**63))


@given(problems())
def test_iid(problem: tuple[list[int], int, int]) -> None:
    labels, num_clients, seed = problem
    parts = split({"kind": "iid"}, labels, num_clients, seed)
    check_laws(parts, len(labels), num_clients)
    sizes = [len(indices) for indices in parts]
    assert max(sizes) - min(sizes) <= 1
    assert same(parts, split({"kind": "iid"}, labels, num_clients, seed))


@settings(deadline=None)
@given(problems(), st.floats(1e-300, 1e300))
def test_dirichlet(problem: tuple[list[int], int, int], alpha: float) -> None:
    labels, num_clients, seed = problem
    config = {"kind": "dirichlet", "alpha": alpha}
    parts = split(config, labels, num_clients, seed)
    check_laws(parts, len(labels), num_clients)
    assert same(parts, split(config, labels, num_clients, seed))


@given(problems(per_client=3), st.integers(1, 3))
def test_shards(problem: tuple[list[int], int, int], shards_per_client: int) -> None:
    labels, num_clients, seed = problem
    config = {"kind": "shards", "shards_per_client": shards_per_client}
    parts = split(config, labels, num_clients, seed)
    check_laws(parts, len(labels), num_clients)
    sizes = [len(indices) for indices in parts]
    assert max(sizes) - min(sizes) <= shards_per_client
    assert same(parts, split(config, labels, num_clients, seed))


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=60), st.data())
def test_by_column(values: list[str], data: st.DataObject) -> None:
    num_clients = data.draw(st.integers(1, len(set(values))))
    config = {"kind": "by_column", "column": "writer"}
    parts = split(config, [0] * len(values), num_clients, 0, {"writer": values})
    check_laws(parts, len(values), num_clients)
    client_of: dict[str, set[int]] = {}
    for client, indices in enumerate(parts):
        for index in indices:
            client_of.setdefault(values[index], set()).add(client)
    assert all(len(clients) == 1 for clients in client_of.values())
    # Largest first to the smallest client: no client can exceed another by more than one value's examples.
    sizes = [len(indices) for indices in parts]
    assert max(sizes) - min(sizes) <= max(values.count(value) for value in values)


def test_by_column_by_hand() -> None:
    values = list("aaaabbbccd")
    parts = split({"kind": "by_column", "column": "w"}, [0] * 10, 2, 0, {"w": values})
    # a(4) to 0, b(3) to 1, c(2) to 1 (3 < 4), d(1) to 0 (4 < 5).
    assert [indices.tolist() for indices in parts] == [[0, 1, 2, 3, 9], [4, 5, 6, 7, 8]]


def test_shards_are_cut_from_the_examples_sorted_by_label() -> None:
    labels = [i % 4 for i in range(80)]
    for indices in split({"kind": "shards", "shards_per_client": 2}, labels, 10):
        assert len(indices) == 8
        assert len({labels[index] for index in indices}) <= 2


@pytest.mark.parametrize("seed", range(3))
def test_a_small_alpha_gives_fewer_labels_a_client(seed: int) -> None:
    labels = [i % 10 for i in range(5000)]

    def labels_a_client(alpha: float) -> float:
        parts = split({"kind": "dirichlet", "alpha": alpha}, labels, 20, seed)
        return float(np.mean([np.count_nonzero(np.bincount(np.array(labels)[p]) > len(p) / 20) for p in parts]))

    assert labels_a_client(0.1) + 2 < labels_a_client(100.0)


def test_an_empty_client_gets_the_last_example_of_the_largest() -> None:
    # One label and a tiny alpha: one client draws all, so the others are filled from its end, in order.
    parts = split({"kind": "dirichlet", "alpha": 1e-300}, [0] * 6, 3)
    owner = max(range(3), key=lambda client: len(parts[client]))
    others = [client for client in range(3) if client != owner]
    assert parts[owner].tolist() == [0, 1, 2, 3]
    assert [parts[client].tolist() for client in others] == [[5], [4]]


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "shards"])
def test_another_seed_gives_another_split(kind: str) -> None:
    labels = [i % 3 for i in range(60)]
    assert not same(split({"kind": kind}, labels, 4, 1), split({"kind": kind}, labels, 4, 2))


@pytest.mark.parametrize(
    ("config", "labels", "num_clients", "columns", "message"),
    [
        ({"kind": "iid"}, [0, 1], 3, {}, "task.partition: found 2 training examples for 3 clients"),
        ({"kind": "shards"}, [0, 1, 0], 2, {}, "task.partition.shards_per_client: found 4 shards of 3"),
        ({"kind": "by_column", "column": "w"}, [0, 1, 0], 2, {"w": "aaa"}, "column w with 1 values for 2 clients"),
        ({"kind": "by_column", "column": "writr"}, [0, 1], 2, {"writer": "ab"}, "did you mean writer?"),
        ({"kind": "dirichlet"}, None, 2, {}, "task.partition.kind: found dirichlet, which needs labels"),
        ({"kind": "shards"}, None, 2, {}, "allowed: iid, by_column"),
    ],
)
def test_impossible_partitions_are_told(
    config: dict[str, Any], labels: list[int] | None, num_clients: int, columns: dict[str, Any], message: str
) -> None:
    labels_N = None if labels is None else np.array(labels)
    num_examples = 9 if labels is None else len(labels)
    with pytest.raises(InputError) as caught:
        partition(read_config.validate_python(config), labels_N, columns, num_examples, num_clients, 0)
    assert message in str(caught.value)
