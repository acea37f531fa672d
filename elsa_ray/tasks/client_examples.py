"""Which examples each client holds, as two arrays however many clients there are.

Shapes: C clients, N examples dealt to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class ClientExamples(Sequence[Ints]):
    """Of each client, the sorted positions of its examples; an item is a view.

    Args:
        offsets: int64 [C + 1], from 0 to N: client i holds dealt examples ``offsets[i]`` to ``offsets[i + 1]``.
        positions: int64 [N], the dealt examples; None where they are simply 0 to N - 1.
    """

    def __init__(self, offsets: Ints, positions: Ints | None = None) -> None:
        self.offsets = offsets
        self._positions = positions

    @classmethod
    def of_arrays(cls, clients: Sequence[Ints]) -> ClientExamples:
        """Return the holdings of clients of which each has one array."""
        counts = np.array([len(positions) for positions in clients], np.int64)
        return cls(_offsets(counts), np.concatenate([*clients, np.zeros(0, np.int64)]))

    @classmethod
    def of_counts(cls, counts: Ints) -> ClientExamples:
        """Return the holdings of clients that have so many examples each, one client's after the other's."""
        return cls(_offsets(counts))

    def __len__(self) -> int:
        """C."""
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, client: int) -> Ints: ...

    @overload
    def __getitem__(self, client: slice) -> list[Ints]: ...

    def __getitem__(self, client: int | slice) -> Ints | list[Ints]:
        """Return one client's positions, or a list of them."""
        if isinstance(client, slice):
            return [self[index] for index in range(len(self))[client]]
        index = range(len(self))[client]
        begin, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return np.arange(begin, end) if self._positions is None else self._positions[begin:end]

    @property
    def counts(self) -> Ints:
        """Examples of each client, int64 [C]."""
        return np.diff(self.offsets)

    @property
    def num_examples(self) -> int:
        """N."""
        return int(self.offsets[-1])

    def reduced(self, values: npt.NDArray[np.int64], by: np.ufunc) -> Ints:
        """Return ``by.reduce`` [C] (such as ``np.maximum``) over a value for each example of the data set."""
        dealt = values if self._positions is None else values[self._positions]
        result: Ints = by.reduceat(dealt, self.offsets[:-1])
        return result


def _offsets(counts: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
