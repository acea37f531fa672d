"""The section ``world.availability``: when clients are there."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from elsa_ray.config.section import Section
from elsa_ray.config.units import Seconds


class Always(Section):
    """Every client is always there."""

    kind: Literal["always"] = "always"


class Bernoulli(Section):
    """Each client is there in a global round, or not, by a coin of its own; it stays for that round."""

    kind: Literal["bernoulli"]
    probability: float = Field(gt=0, le=1)
    """That a client is there."""


class Markov(Section):
    """Each client comes and goes by itself, for exponentially distributed times."""

    kind: Literal["markov"]
    mean_on_seconds: Seconds = Field(gt=0)
    mean_off_seconds: Seconds = Field(gt=0)


class Diurnal(Section):
    """Each client is there for a part of every period, such as a night at the charger."""

    kind: Literal["diurnal"]
    period_seconds: Seconds = Field(default=86400.0, gt=0)
    on_share: float = Field(default=0.5, gt=0, le=1)
    """Part of the period in which a client is there."""
    spread: float = Field(default=1.0, ge=0, le=1)
    """Part of the period over which the clients' phases are drawn; 0 has all come at time zero."""


class Trace(Section):
    """Intervals from a CSV file: client, start_seconds, end_seconds, and optionally repeat_seconds."""

    kind: Literal["trace"]
    file: str
    """A client that it does not name is never there."""


class FedScaleTrace(Section):
    """Intervals from FedScale's ``client_behave_trace``; its users are dealt to the clients by seed."""

    kind: Literal["fedscale"]
    file: str


AvailabilityConfig = Annotated[
    Always | Bernoulli | Markov | Diurnal | Trace | FedScaleTrace, Field(discriminator="kind")
]
"""When clients are there."""
