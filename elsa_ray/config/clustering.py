"""Who is trained with whom: behaviour-aware clustering, and trust (``clustering`` and ``trust`` of the protocol)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from elsa_ray.config.section import PositiveInt, Section
from elsa_ray.config.units import Seconds

Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class ClusteringConfig(Section):
    """How clients are grouped by behaviour and given to edges. The objective is a reconstruction (methods.md 1.7)."""

    behaviour_weight: Weight = 0.6
    """Weight of the divergence from the cluster's medoid, in units of the median divergence; 0 leaves latency alone."""
    latency_weight: Weight = 0.3
    """Weight of a training step's round trip through the edge, in units of the longest one."""
    trust_weight: Weight = 0.1
    """Weight of missing trust: the same at every edge, it only decides who is parked where places are scarce."""
    every: PositiveInt = 10
    """Global rounds from one clustering to the next."""
    moved: float = Field(default=0.1, gt=0, le=1)
    """Share of the clients that joined or left since the last clustering and brings the next one forward."""
    form: Literal["projected", "exact"] = "projected"
    """``projected`` compares fingerprints in a common basis; ``exact`` whole probe states, for some hundred clients."""
    dimensions: PositiveInt = 32
    """Width of the common basis; at most the probes less one, and the model's width."""
    shrinkage: float = Field(default=0.1, gt=0, le=1)
    """Share of the identity in each covariance, which makes the divergence of singular ones finite."""
    max_latency_seconds: Annotated[Seconds, Field(gt=0)] | None = None
    """Longest round trip of one training step; a client that no edge serves faster is parked. None is no limit."""
    medoids: Literal["behaviour", "random"] = "behaviour"
    """``random`` deals the fingerprints among the clients at random: the ablation without behaviour."""
    sample: PositiveInt = 2000
    """Clients among which medoids are sought; the others join the nearest medoid."""


class TrustConfig(Section):
    """How far a client's answers to the probes are believed. The formula is a reconstruction (methods.md 1.6)."""

    evidence: Literal["verified", "reported"] = "verified"
    """``verified``: computed from the adapters that a client sent; ``reported``: what the client says it answered."""
    compare: Literal["auto", "updates", "answers"] = "auto"
    """``answers``: models by what they answer (the card); ``updates``: above all by what training has changed (ours),
    for verified evidence alone. ``auto``: updates where evidence is verified."""
    smoothing: float = Field(default=0.7, ge=0, lt=1)
    """Part of the old score in the new one."""
    threshold: Share = 0.3
    """A client whose score is below is excluded."""
    mad: float = Field(default=3.0, gt=0)
    """So many robust standard deviations (1.4826 MAD) below its cluster's median agreement, a client is excluded; where
    answers are compared."""
    opposed: Share = 0.1
    """A client whose update has a cosine below minus this with the others' is excluded; for verified evidence alone."""
    max_size: float = Field(default=5.0, gt=1)
    """A client whose update is so many times its cluster's median one is excluded; for verified evidence alone."""
    exclusion_rounds: PositiveInt = 5
    """Global rounds that an exclusion lasts."""
    probation_rounds: Annotated[int, Field(ge=0)] = 5
    """Global rounds after an exclusion in which the client's weight is reduced."""
    weight_probation: Share = 0.5
    """Factor of the weight during probation."""

    @model_validator(mode="after")
    def _updates_are_verified(self) -> Self:
        if self.compare == "updates" and self.evidence == "reported":
            raise ValueError("compare: updates with evidence: verified only")
        return self

    @property
    def compares_updates(self) -> bool:
        """Whether models are compared above all by what training has changed."""
        return self.evidence == "verified" and self.compare != "answers"
