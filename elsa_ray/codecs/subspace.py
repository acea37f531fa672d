"""Send each row as its coordinates in a low-dimensional subspace that holds most of the rows (methods.md 1.17).

The project's own codec, none of the paper's.
Shapes: T rows, D width, R rank, Y·Z numbers of the rest's sketch.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from elsa_ray.codecs.codec import Calibration, Codec, CodecContext, Maker, Rows, Tensors
from elsa_ray.codecs.sketch import Sketch
from elsa_ray.codecs.subspaces import finite_rows, leading_directions, with_columns
from elsa_ray.config.section import Section
from elsa_ray.world.roles import Role

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.int8}
_MOST_STEPS = 127


class Subspace(Codec):
    """Encode c = (h - m) U; decode m + c Uᵀ, plus a count sketch of the rest h - m - c Uᵀ where asked for.

    U are the leading directions of some rows about their mean m; both ends hold them. Of a gradient no mean is taken:
    it is mapped to g U Uᵀ. With a mean the codec is affine, not linear.

    ``backward: straight_through`` and ``exact`` are the same where the gradient chain has this codec too and nothing is
    sent of the rest: U Uᵀ maps g U Uᵀ to itself.
    """

    class Config(Section):
        """Size of the subspace, what becomes of the rest, how long a basis serves."""

        kind: Literal["subspace"] = "subspace"
        rank: int = Field(default=48, ge=1)
        """R, numbers a row."""
        mean: bool = True
        """Whether the rows' mean is kept at both ends and not sent with each row."""
        rest: Literal["drop", "sketch"] = "drop"
        """What is outside of the subspace: it is lost, or sent as a count sketch that is decoded by ``mmse``."""
        rows: int = Field(default=1, ge=1)
        """Y of the rest's sketch."""
        buckets: int = Field(default=16, ge=1)
        """Z of the rest's sketch."""
        seed: int = Field(default=0, ge=0)
        """Of the rest's sketch."""
        basis_dtype: Literal["fp32", "fp16", "int8"] = "fp16"
        """How U and m travel and are used. ``int8``: each column of U in 127 steps of a scale of its own, m in fp16."""
        refresh_rounds: int = Field(default=1, ge=1)
        """Global rounds that a basis serves."""
        backward: Literal["straight_through", "exact"] = "straight_through"
        """``exact`` takes the adjoint of encode and decode; see the class."""

        @model_validator(mode="after")
        def _sketch_keys_with_a_sketch_only(self) -> Self:
            if self.rest == "drop" and self.model_fields_set & {"rows", "buckets", "seed"}:
                raise ValueError("rows, buckets and seed with rest: sketch only")
            return self

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.linear = not config.mean
        self.straight_through = config.backward == "straight_through"
        self.calibration = Calibration(Maker.SENDER, Role.BASIS, config.refresh_rounds)
        sketch = Sketch.Config(rows=config.rows, buckets=config.buckets, seed=config.seed, decode="mmse")
        self._rest = Sketch(sketch) if config.rest == "sketch" else None

    def width_out(self, width: int) -> int:
        """R coordinates and the rest's sketch; R is at most D."""
        return min(self.config.rank, width) + (self._rest.width_out(width) if self._rest else 0)

    def calibration_layout(self, width: int) -> tuple[tuple[torch.dtype, tuple[int, ...]], ...]:
        """U [D, R], its columns' scales [R] for int8, and m [D] if there is one."""
        dtype, rank = _DTYPES[self.config.basis_dtype], min(self.config.rank, width)
        float_dtype = torch.float16 if dtype is torch.int8 else dtype
        scales = ((float_dtype, (rank,)),) if dtype is torch.int8 else ()
        mean = ((float_dtype, (width,)),) if self.config.mean else ()
        return ((dtype, (width, rank)), *scales, *mean)

    def calibrate(self, x_TD: Tensor, context: CodecContext) -> Tensors:
        """Return U, with zero columns where the rows have fewer directions, its scales if it has some, and m."""
        rows_TD = finite_rows(x_TD)
        width = rows_TD.shape[1]
        mean_D = rows_TD.mean(dim=0) if self.config.mean and len(rows_TD) else rows_TD.new_zeros(width)
        rank = min(self.config.rank, width)
        directions_DR, _ = leading_directions(rows_TD - mean_D, rank)
        basis_DR = with_columns(directions_DR, rank)
        basis = in_steps(basis_DR) if _DTYPES[self.config.basis_dtype] is torch.int8 else (basis_DR,)
        return (*basis, mean_D) if self.config.mean else basis

    def encode(self, x_TD: Tensor, context: CodecContext) -> Rows:
        """Return coordinates, and behind them the sketch of the rest."""
        basis_DR, mean_D = self._held(x_TD, context)
        centred_TD = x_TD - mean_D
        coordinates_TR = centred_TD @ basis_DR
        if self._rest is None:
            return Rows(coordinates_TR)
        rest = self._rest.encode(centred_TD - coordinates_TR @ basis_DR.T, context)
        return Rows(torch.cat([coordinates_TR, rest.values], dim=1))

    def decode(self, rows: Rows, width: int, context: CodecContext) -> Tensor:
        """Return m + c Uᵀ, plus the estimate of the rest."""
        basis_DR, mean_D = self._held(rows.values, context)
        rank = basis_DR.shape[1]
        inside_TD = mean_D + rows.values[:, :rank] @ basis_DR.T
        if self._rest is None:
            return inside_TD
        return inside_TD + self._rest.decode(Rows(rows.values[:, rank:]), width, context)

    def _held(self, like_TD: Tensor, context: CodecContext) -> tuple[Tensor, Tensor]:
        """Return U and the mean to take off: none of a gradient."""
        if not context.memory:
            raise ValueError(f"no basis for {context.role or 'a message'}: a subspace codec works at both ends by one")
        basis_DR, *mean = (tensor.to(like_TD) for tensor in context.memory)
        if _DTYPES[self.config.basis_dtype] is torch.int8:
            scale_R, *mean = mean
            basis_DR = basis_DR * scale_R
        return basis_DR, mean[0] if mean and not context.is_gradient else basis_DR.new_zeros(len(basis_DR))


def in_steps(basis_DR: Tensor) -> tuple[Tensor, Tensor]:
    """Return integers of -127 to 127 [D, R] and scales [R], as fp16 has them, whose product is nearly the basis."""
    # Rounded up, so that the largest number of a column needs no more than all steps.
    scale_R = (basis_DR.abs().amax(dim=0) / _MOST_STEPS * (1 + 2**-10)).to(torch.float16)
    exact_R = scale_R.to(basis_DR)
    steps_DR = (basis_DR / torch.where(exact_R > 0, exact_R, 1)).round()
    return steps_DR.to(torch.int8), scale_R
