"""Which examples a client trains on in each step: a pure function of seed, round and client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from elsa_ray.tasks.seeds import numpy_generator

# Shapes: E epochs, N examples of one client, T steps, B examples a batch, C clients.

ABSENT = -1
"""Stands in a batch where there is no example."""


@dataclass(frozen=True)
class BatchPlan:
    """The steps of one client in one edge round."""

    example_of: np.ndarray
    """int64 [T, B]: positions in the client's own index array, ``ABSENT`` where a batch is not full."""

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.example_of)

    @property
    def num_examples(self) -> np.ndarray:
        """int64 [T]: examples really in each batch."""
        return np.count_nonzero(self.example_of != ABSENT, axis=1)


def batch_plan(
    num_examples: int,
    batch_size: int,
    *,
    local_steps: int | None,
    local_epochs: int | None,
    run_seed: int,
    global_round: int,
    edge_round: int,
    client: int,
) -> BatchPlan:
    """Draw one client's batches for one edge round.

    A batch has B = min(batch_size, num_examples) examples. With ``local_steps``, reshuffled passes over the data are
    joined and cut into full batches, which may cross from one pass into the next. With ``local_epochs``, each pass is
    reshuffled and cut by itself, and its last batch may be part-filled: real examples first, then ``ABSENT``.

    Raises:
        ValueError: a number is not positive, or not exactly one of ``local_steps`` and ``local_epochs`` is given.
    """
    num_steps = int(steps_of(num_examples, batch_size, local_steps=local_steps, local_epochs=local_epochs))
    batch = min(batch_size, num_examples)
    generator = numpy_generator(run_seed, "batches", global_round, edge_round, client)
    if local_epochs is not None:
        passes_EN = _shuffled_passes(local_epochs, num_examples, generator)
        short = -num_examples % batch
        padded = np.pad(passes_EN, ((0, 0), (0, short)), constant_values=ABSENT)
        return BatchPlan(padded.reshape(num_steps, batch))
    needed = num_steps * batch
    passes_EN = _shuffled_passes(-(-needed // num_examples), num_examples, generator)
    return BatchPlan(passes_EN.reshape(-1)[:needed].reshape(num_steps, batch))


def steps_of(num_examples: Any, batch_size: int, *, local_steps: int | None, local_epochs: int | None) -> np.ndarray:
    """Return the number of steps of clients with ``num_examples`` examples (int, or int64 [C]) as int64 of that shape.

    It is ``local_steps``, or ``local_epochs * ceil(n / min(batch_size, n))``; no batch is drawn.

    Raises:
        ValueError: a number is not positive, or not exactly one of ``local_steps`` and ``local_epochs`` is given.
    """
    examples_C = np.asarray(num_examples, dtype=np.int64)
    if (local_steps is None) == (local_epochs is None):
        raise ValueError("exactly one of local_steps and local_epochs must be given")
    amount = local_steps if local_steps is not None else local_epochs
    if amount is None or amount < 1 or batch_size < 1 or np.any(examples_C < 1):
        raise ValueError("steps or epochs, batch size and number of examples must be positive")
    if local_steps is not None:
        return np.full(examples_C.shape, local_steps, dtype=np.int64)
    batch_C = np.minimum(batch_size, examples_C)
    return amount * -(-examples_C // batch_C)


def _shuffled_passes(num_passes: int, num_examples: int, generator: np.random.Generator) -> np.ndarray:
    in_order_EN = np.tile(np.arange(num_examples, dtype=np.int64), (num_passes, 1))
    return generator.permuted(in_order_EN, axis=1)
