"""Seeds by hashing: every random draw has its own seed, derived from what it is for."""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """Return the 64-bit seed of a purpose, such as ``derive_seed(run_seed, "batches", round, client)``.

    Each part is written as its type, its length and its bytes, so no two lists of parts share an encoding:
    ``("a", "bc")`` is not ``("ab", "c")``, and ``1`` is not ``"1"``. The result lies in 0 <= seed < 2**64 and is the
    same on every machine.

    Raises:
        TypeError: a part is neither an integer nor a text (a bool is refused: it would pass for 0 or 1).
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        tag, body = _encode(part)
        digest.update(tag + len(body).to_bytes(8, "big") + body)
    return int.from_bytes(digest.digest(), "big")


def numpy_generator(*parts: int | str) -> np.random.Generator:
    """Return a fresh generator seeded by ``derive_seed(*parts)``; no global state is read or changed."""
    return np.random.Generator(np.random.PCG64(derive_seed(*parts)))


def _encode(part: object) -> tuple[bytes, bytes]:
    if isinstance(part, str):
        return b"s", part.encode("utf-8")
    if isinstance(part, int | np.integer) and not isinstance(part, bool):
        number = int(part)
        return b"i", number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)
    raise TypeError(f"a seed is derived from integers and texts, not from {part!r}")
