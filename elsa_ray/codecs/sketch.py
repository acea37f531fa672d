"""Count sketch of each row: Y hashed rows of Z buckets, and three decoders (methods.md 1.11, 1.12).

Where ELSA's paper is silent (granularity, hashing, gradient) this is the card's reconstruction.
Shapes: T rows, D width, Y sketch rows, Z buckets, E = Y·Z.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from elsa_ray.codecs.codec import Codec, CodecContext, Rows
from elsa_ray.config.section import Section
from elsa_ray.tasks.seeds import derive_seed, numpy_generator


class Sketch(Codec):
    """Encode T[y, c] = sum of s_y(i) x_i over i with h_y(i) = c; decode from s_y(i) T[y, h_y(i)] over the rows y.

    ``median`` takes the median over y, ``mean`` the mean, ``mmse`` the mean times 1/(1+ρ) with ρ = D/(YZ), which is
    biased but has the least squared error for dense rows. For dense rows any ρ > 1 loses more energy than it keeps.
    """

    class Config(Section):
        """Size and seed of the sketch, how it is decoded, how gradients pass it."""

        kind: Literal["sketch"] = "sketch"
        rows: int = Field(default=3, ge=1)
        """Y, independent hashes."""
        buckets: int = Field(default=128, ge=1)
        """Z, buckets a hash; the payload shrinks by D / (rows * buckets)."""
        seed: int = Field(default=0, ge=0)
        """Of the hash tables, which both ends derive."""
        hash: Literal["fixed", "fresh"] = "fixed"
        """``fixed`` tables serve the whole run, so the error is the same each time; ``fresh`` ones a single message."""
        decode: Literal["median", "mean", "mmse"] = "mmse"
        backward: Literal["straight_through", "exact"] = "straight_through"
        """``exact`` takes the adjoint of encode and decode, as for a fixed layer."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.linear = config.decode != "median"
        self.unbiased = config.decode != "mmse"
        self.straight_through = config.backward == "straight_through"

    def width_out(self, width: int) -> int:
        """Y·Z numbers a row."""
        return int(self.config.rows * self.config.buckets)

    def encode(self, x_TD: Tensor, context: CodecContext) -> Rows:
        """Return the sketch [T, Y·Z] of each row."""
        projection_DE, _ = self._tables(x_TD, context)
        return Rows(x_TD @ projection_DE)

    def decode(self, rows: Rows, width: int, context: CodecContext) -> Tensor:
        """Return the estimate [T, D]."""
        num_rows, num_buckets = self.config.rows, self.config.buckets
        like = rows.values.new_empty(0, width)
        projection_DE, (cell_YD, sign_YD) = self._tables(like, context)
        if self.config.decode != "median":
            ratio = width / (num_rows * num_buckets)
            shrinkage = 1 / (1 + ratio) if self.config.decode == "mmse" else 1.0
            return rows.values @ projection_DE.T * (shrinkage / num_rows)
        estimates_TYD = rows.values[:, cell_YD] * sign_YD
        ordered_TYD = estimates_TYD.sort(dim=1).values
        return (ordered_TYD[:, (num_rows - 1) // 2] + ordered_TYD[:, num_rows // 2]) / 2

    def _tables(self, like_TD: Tensor, context: CodecContext) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        config = self.config
        seed = config.seed if config.hash == "fixed" else derive_seed(config.seed, "fresh-hashes", *context.moment)
        projection, cell, sign = _hash_tables(config.rows, config.buckets, seed, like_TD.shape[1])
        return projection.to(like_TD), (cell.to(like_TD.device), sign.to(like_TD))


@lru_cache(maxsize=16)
def _hash_tables(num_rows: int, num_buckets: int, seed: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the projection [D, Y·Z] of entries 0 and ±1, the cell [Y, D] of each coordinate, and its sign [Y, D].

    The tables are a pure function of the arguments; only their making is cached.
    """
    generator = numpy_generator(seed, "sketch", num_rows, num_buckets, width)
    bucket_YD = torch.from_numpy(generator.integers(0, num_buckets, size=(num_rows, width)))
    sign_YD = torch.from_numpy(generator.integers(0, 2, size=(num_rows, width)) * 2 - 1).to(torch.float32)
    cell_YD = bucket_YD + num_buckets * torch.arange(num_rows)[:, None]
    projection_DE = torch.zeros(width, num_rows * num_buckets)
    columns = torch.arange(width).expand(num_rows, width)
    projection_DE[columns, cell_YD] = sign_YD
    return projection_DE, cell_YD, sign_YD
