"""Error feedback: what a message loses is added to the next one.

Shapes: T rows, D width, E width on the wire.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from elsa_ray.codecs.codec import Codec, CodecContext, Rows
from elsa_ray.codecs.stages import SIMPLE, SideLayout, build_stages, decode_rows, encode_rows, side_layouts, widths_of
from elsa_ray.config.errors import InputError
from elsa_ray.config.protocol import CodecSpec
from elsa_ray.config.section import Section


class Residual(Codec):
    """Send C(x + e) by the codecs C, and keep the error e' = x + e - decoded for the next message of the same tensor.

    So the decoded messages sum to the sent tensors, but for the last error. The sender holds e [T, D] as its memory;
    the receiver needs none. Nothing here remembers: ``error_after`` returns e', and the caller keeps it.
    """

    class Config(Section):
        """What is sent is coded by these codecs."""

        kind: Literal["residual"] = "residual"
        codec: list[CodecSpec] = Field(min_length=1)
        """The codecs C, in the sender's order; none that is calibrated or sends fewer rows."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._stages = build_stages(config.codec, "codec", SIMPLE)
        for position, stage in enumerate(self._stages):
            if stage.calibration is not None:
                allowed = "a codec without calibration: adapters have none"
                raise InputError(f"codec.{position}", config.codec[position].kind, allowed)
            if type(stage).rows_out is not Codec.rows_out:
                raise InputError(f"codec.{position}", config.codec[position].kind, "a codec that sends every row")
        self.number_format = self._stages[-1].number_format
        self.size_is_exact = all(stage.size_is_exact for stage in self._stages)

    def width_out(self, width: int) -> int:
        """That of the codecs."""
        return widths_of(self._stages, width)[-1]

    def side_layout_for(self, width: int, num_rows: Any) -> SideLayout:
        """Those of the codecs, one after another."""
        return tuple(entry for layout in side_layouts(self._stages, width, num_rows) for entry in layout)

    def encode(self, x_TD: Tensor, context: CodecContext) -> Rows:
        """Return the codecs' rows of x + e."""
        return encode_rows(self._stages, self._with_error(x_TD, context), [context] * len(self._stages))

    def decode(self, rows: Rows, width: int, context: CodecContext) -> Tensor:
        """Return the codecs' reconstruction."""
        return decode_rows(self._stages, rows, width, [context] * len(self._stages))

    def error_after(self, x_TD: Tensor, received_TD: Tensor, context: CodecContext) -> Tensor:
        """Return e' [T, D] of a message, from what the receiver has decoded of it.

        A number that is not finite leaves no error: a failure must not outlive its message.
        """
        return torch.nan_to_num(self._with_error(x_TD, context) - received_TD, nan=0.0, posinf=0.0, neginf=0.0)

    def _with_error(self, x_TD: Tensor, context: CodecContext) -> Tensor:
        if not context.memory:
            return x_TD
        (error_TD,) = context.memory
        return x_TD + error_TD.to(x_TD)
