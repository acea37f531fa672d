"""Deal the training examples to clients: at random, by Dirichlet proportions, by shards, or by a column."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from elsa_ray.config.errors import InputError, nearest_name
from elsa_ray.config.task import ColumnPartition, DirichletPartition, IidPartition, ShardPartition
from elsa_ray.tasks.seeds import numpy_generator

# Shapes: N examples, C clients, L examples of one label, V values of a column.

_FIELD = "task.partition"


def partition(
    config: IidPartition | DirichletPartition | ShardPartition | ColumnPartition,
    labels: np.ndarray | None,
    columns: Mapping[str, Sequence[str]],
    num_examples: int,
    num_clients: int,
    seed: int,
) -> list[np.ndarray]:
    """Return each client's examples: one sorted int64 index array a client, none empty, every example in exactly one.

    Args:
        config: the ``task.partition`` section.
        labels: int64 [N]; None for causal_lm.
        columns: values of each column that can be grouped by, [N] each.
        num_examples: N.
        num_clients: C.
        seed: the run's seed; the same seed gives the same split.

    Raises:
        InputError: fewer examples (or shards' worth of examples, or values of the column) than clients, a kind that
            needs labels without labels, or an unknown column.
    """
    if num_examples < num_clients:
        found = f"{num_examples} training examples for {num_clients} clients"
        raise InputError(_FIELD, found, "at least as many examples as clients")
    if isinstance(config, ColumnPartition):
        client_of_N = _by_column(config.column, columns, num_clients)
    elif isinstance(config, IidPartition):
        client_of_N = _iid(num_examples, num_clients, numpy_generator(seed, "partition"))
    else:
        if labels is None:
            found = f"{config.kind}, which needs labels, for a task without labels"
            raise InputError(f"{_FIELD}.kind", found, "iid, by_column")
        generator = numpy_generator(seed, "partition")
        if isinstance(config, DirichletPartition):
            client_of_N = _dirichlet(labels, num_clients, config.alpha, generator)
        else:
            client_of_N = _shards(labels, num_clients, config.shards_per_client, generator)
    return _fill_empty(_members(client_of_N, num_clients))


def _iid(num_examples: int, num_clients: int, generator: np.random.Generator) -> np.ndarray:
    client_of_N = np.empty(num_examples, dtype=np.int64)
    client_of_N[generator.permutation(num_examples)] = np.arange(num_examples) % num_clients
    return client_of_N


def _dirichlet(labels_N: np.ndarray, num_clients: int, alpha: float, generator: np.random.Generator) -> np.ndarray:
    client_of_N = np.empty(len(labels_N), dtype=np.int64)
    for label in np.unique(labels_N):
        members_L = generator.permutation(np.flatnonzero(labels_N == label))
        share_C = _proportions(alpha, num_clients, generator)
        # Client c gets the positions from ends[c-1] up to ends[c]; rounding the ends, not the shares, loses none.
        ends_C = np.floor(np.cumsum(share_C) * len(members_L) + 0.5).astype(np.int64)
        ends_C[-1] = len(members_L)
        client_of_N[members_L] = np.searchsorted(ends_C, np.arange(len(members_L)), side="right")
    return client_of_N


def _proportions(alpha: float, num_clients: int, generator: np.random.Generator) -> np.ndarray:
    # Outside this range the draw under- or overflows, though its limit is clear: one client gets all, or all get equal.
    if alpha < 1e-6:
        return np.eye(num_clients)[generator.integers(num_clients)]
    if alpha > 1e12:
        return np.full(num_clients, 1 / num_clients)
    return generator.dirichlet(np.full(num_clients, alpha))


def _shards(
    labels_N: np.ndarray, num_clients: int, shards_per_client: int, generator: np.random.Generator
) -> np.ndarray:
    num_shards = num_clients * shards_per_client
    if len(labels_N) < num_shards:
        found = f"{num_shards} shards of {len(labels_N)} training examples"
        raise InputError(f"{_FIELD}.shards_per_client", found, f"at most {len(labels_N) // num_clients}")
    shuffled_N = generator.permutation(len(labels_N))
    by_label_N = shuffled_N[np.argsort(labels_N[shuffled_N], kind="stable")]
    client_of_shard = generator.permutation(num_shards) // shards_per_client
    client_of_N = np.empty(len(labels_N), dtype=np.int64)
    # Position i belongs to shard floor(i * shards / N): consecutive, and sizes differ by at most one.
    client_of_N[by_label_N] = client_of_shard[np.arange(len(labels_N)) * num_shards // len(labels_N)]
    return client_of_N


def _by_column(column: str, columns: Mapping[str, Sequence[str]], num_clients: int) -> np.ndarray:
    if column not in columns:
        allowed = f"a column of the data: {', '.join(sorted(columns)) or 'none was read'}"
        raise InputError(f"{_FIELD}.column", column, allowed, nearest=nearest_name(column, columns))
    count_of = Counter(columns[column])
    if len(count_of) < num_clients:
        found = f"column {column} with {len(count_of)} values for {num_clients} clients"
        raise InputError(_FIELD, found, "at least as many values as clients")
    # Largest value first, to the client with the fewest examples so far.
    clients = [(0, client) for client in range(num_clients)]
    client_of: dict[str, int] = {}
    for value, count in sorted(count_of.items(), key=lambda item: (-item[1], item[0])):
        size, client = heapq.heappop(clients)
        client_of[value] = client
        heapq.heappush(clients, (size + count, client))
    return np.array([client_of[value] for value in columns[column]], dtype=np.int64)


def _members(client_of_N: np.ndarray, num_clients: int) -> list[np.ndarray]:
    # A stable sort keeps each client's examples in rising order.
    by_client_N = np.argsort(client_of_N, kind="stable").astype(np.int64)
    starts = np.cumsum(np.bincount(client_of_N, minlength=num_clients))[:-1]
    return np.split(by_client_N, starts)


def _fill_empty(members: list[np.ndarray]) -> list[np.ndarray]:
    """Give each empty client the last example of the client that has most (of equals, the first)."""
    largest = [(-len(indices), client) for client, indices in enumerate(members)]
    heapq.heapify(largest)
    for client, indices in enumerate(members):
        if len(indices) > 0:
            continue
        size, donor = heapq.heappop(largest)
        members[client], members[donor] = members[donor][-1:], members[donor][:-1]
        heapq.heappush(largest, (size + 1, donor))
    return members
