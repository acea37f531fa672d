"""A codec of somebody else's: sends every second number, repeats it on receipt. Named in config as module:Class."""

import torch

from elsa_ray.codecs.codec import Codec, Rows
from elsa_ray.config.section import Section


class Halving(Codec):
    class Config(Section):
        kind: str
        offset: int = 0

    linear = True

    def width_out(self, width):
        return width // 2

    def encode(self, x_TD, context):
        return Rows(x_TD[:, self.config.offset :: 2])

    def decode(self, rows, width, context):
        return rows.values.repeat_interleave(2, dim=1)


class Refusing(Halving):
    """Fails for one client in one step."""

    def encode(self, x_TD, context):
        if (context.client, context.step, context.role) == (4, 1, "gradient_up"):
            raise ValueError("a planted fault")
        return super().encode(x_TD, context)


class Lying(Halving):
    """Declares another size than it sends."""

    def side_layout(self, width):
        return ((torch.float32, 1),)
