"""How often an attack is right, beside how often the best constant answer would be.

Shapes: T targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Success:
    """The outcome of an attack on a number of targets.

    Attributes:
        rate: share of the targets that the attack got right.
        guess_rate: share that one and the same answer to all, the truth's most frequent one, would get right: what is
            above it was learned from the payloads.
        count: targets.
    """

    rate: float
    guess_rate: float
    count: int


def success(guessed_T: Tensor, true_T: Tensor) -> Success:
    """Return the outcome of guessing ``guessed_T`` where ``true_T`` (whole numbers >= 0) is right.

    Raises:
        ValueError: there is no target.
    """
    count = len(true_T)
    if count == 0:
        raise ValueError("an attack without a target")
    hits, most_frequent = int((guessed_T == true_T).sum()), int(true_T.bincount().max())
    return Success(hits / count, most_frequent / count, count)


def pooled(parts: Sequence[Success]) -> Success | None:
    """Return the outcome on the targets of several clients together; None without any.

    The guess is then the best constant answer for each client.
    """
    count = sum(part.count for part in parts)
    if count == 0:
        return None
    rate = sum(part.rate * part.count for part in parts) / count
    return Success(rate, sum(part.guess_rate * part.count for part in parts) / count, count)
