"""The section ``world.faults``: what breaks, when, and for how long."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from elsa_ray.config.section import Section
from elsa_ray.config.units import Seconds

Probability = Annotated[float, Field(ge=0, lt=1)]


class Dropout(Section):
    """Sampled clients that give up, by a draw for each client and global round. The three exclude each other."""

    before: Probability = 0.0
    """It gets its model and never starts."""
    during: Probability = 0.0
    """It stops at a drawn part of its own computation."""
    after: Probability = 0.0
    """It trains and sends, and what it sends never arrives."""

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        if self.before + self.during + self.after > 1:
            raise ValueError("before, during and after that sum to at most 1")
        return self


class LognormalSlowdown(Section):
    """Everybody's computations take exp(sigma * z) times as long, z a standard normal draw: the median is 1."""

    kind: Literal["lognormal"]
    sigma: float = Field(gt=0, allow_inf_nan=False)
    max_factor: float = Field(default=1000.0, ge=1, allow_inf_nan=False)
    """Larger factors are cut to it."""


class ParetoSlowdown(Section):
    """Everybody's computations take a Pareto factor as long: at least 1, and at least x with probability x^-shape."""

    kind: Literal["pareto"]
    shape: float = Field(gt=0, allow_inf_nan=False)
    """The smaller the heavier the tail; below 2 the variance is infinite, below 1 the mean."""
    max_factor: float = Field(default=1000.0, ge=1, allow_inf_nan=False)
    """Larger factors are cut to it."""


class FixedSlowdown(Section):
    """A share of the clients, drawn each global round, is slower by a fixed factor."""

    kind: Literal["fixed"]
    share: float = Field(gt=0, le=1)
    factor: float = Field(gt=0, allow_inf_nan=False)


StragglersConfig = Annotated[LognormalSlowdown | ParetoSlowdown | FixedSlowdown, Field(discriminator="kind")]
"""How slow clients are, by a draw for each client and global round."""


class Corruption(Section):
    """Payloads of clients whose checksum fails on receipt; each is sent again."""

    probability: float = Field(gt=0, lt=1)
    """That one sending of one message is spoilt."""
    max_tries: int = Field(default=5, ge=1)
    """After so many spoilt sendings of one message its work is given up."""


class _Window(Section):
    """A span of simulated time."""

    round: Annotated[int, Field(ge=0)] | None = None
    """Global round, from whose start ``start_seconds`` counts; none counts from the start of the run."""
    start_seconds: Seconds = 0.0
    duration_seconds: Seconds = Field(gt=0)


class LinkFault(_Window):
    """Links that are slower for a while, or down. Exactly one of ``link`` and ``share``."""

    link: list[str] | None = None
    """The names of its two nodes; both directions are hit."""
    share: float | None = Field(default=None, gt=0, le=1)
    """Share of the links, rounded up; which, the seed decides."""
    among: Literal["all", "clients", "backbone"] = "all"
    """Where ``share`` draws: among all links, those of clients, or those without a client."""
    factor: float = Field(default=0.0, ge=0, lt=1)
    """What is left of the bandwidth; 0 is an outage."""

    @model_validator(mode="after")
    def _says_which(self) -> Self:
        if (self.link is None) == (self.share is None):
            raise ValueError("exactly one of link and share")
        if self.link is not None and len(self.link) != 2:
            raise ValueError("a link as [NODE, NODE], the names of its two ends")
        return self


class EdgeCrash(_Window):
    """An edge server that loses all its work and comes back later."""

    edge: str
    """Its name."""


class CloudOutage(_Window):
    """The cloud does not answer: its transfers and its gathers wait."""


class FaultsConfig(Section):
    """What breaks. Nothing does by default."""

    dropout: Dropout = Dropout()
    stragglers: StragglersConfig | None = None
    corruption: Corruption | None = None
    links: list[LinkFault] = []
    edges: list[EdgeCrash] = []
    cloud: list[CloudOutage] = []
