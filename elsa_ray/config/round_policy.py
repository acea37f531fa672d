"""The section ``world.round_policy``: when a round closes, and what becomes of those who are late."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from elsa_ray.config.section import Section
from elsa_ray.config.units import Seconds


class ConstantStaleness(Section):
    """Work that comes late counts a fixed part."""

    kind: Literal["constant"]
    factor: float = Field(gt=0, le=1)


class PolynomialStaleness(Section):
    """Work that is s edge rounds late counts (1 + s)^-exponent."""

    kind: Literal["polynomial"]
    exponent: float = Field(default=0.5, gt=0, allow_inf_nan=False)


StalenessConfig = Annotated[ConstantStaleness | PolynomialStaleness, Field(discriminator="kind")]
"""What work counts that arrives in a later round than the one that it was planned for."""


class RoundPolicy(Section):
    """When an edge (in fedavg: the cloud) stops waiting for its members. By default it waits for all."""

    deadline_seconds: Seconds | None = None
    """Counted from the opening of the edge round; none waits for all."""
    quorum: float | None = Field(default=None, gt=0, le=1)
    """Share of the members, rounded up, whose arrival closes the edge round; none waits for all."""
    over_sample: float | None = Field(default=None, gt=1, allow_inf_nan=False)
    """So many times more clients are sampled than wanted, and the wanted number closes the edge round."""
    late: Literal["drop", "keep"] = "drop"
    """``drop`` abandons the work that is late; ``keep`` lets it finish and counts it in the round where it arrives."""
    staleness: StalenessConfig | None = None
    """The weight of kept work that is late; none counts it fully."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.quorum is not None and self.over_sample is not None:
            raise ValueError("at most one of quorum and over_sample")
        if self.staleness is not None and self.late != "keep":
            raise ValueError("staleness with late: keep only, for late work is dropped otherwise")
        return self
