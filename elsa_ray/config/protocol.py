"""The ``protocol`` section: who trains how much, how often results meet, and what touches each payload."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from elsa_ray.config.clustering import ClusteringConfig, TrustConfig
from elsa_ray.config.failure import ClientFailureConfig
from elsa_ray.config.section import PositiveInt, Section
from elsa_ray.config.split import SplitChoice, SplitConfig
from elsa_ray.config.units import NumBytes, Seconds


class OptimizerConfig(Section):
    """The clients' local optimiser."""

    kind: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    keep_state: Literal[False] = False
    """Moments start afresh each edge round, so that a client at rest is small."""
    decay: float = Field(default=1.0, gt=0, le=1)
    """The learning rate is multiplied by this after each global round."""


class CodecSpec(Section):
    """One codec of a chain: its kind and that kind's own parameters, validated by the codec's own model."""

    model_config = {**Section.model_config, "extra": "allow"}
    kind: str
    """A built-in codec's name, an installed entry point, or ``module:Class``."""


class CodecChains(Section):
    """A chain of codecs for each kind of payload; empty sends the numbers as ``wire_dtype``."""

    activation: list[CodecSpec] = []
    gradient: list[CodecSpec] = []
    adapter: list[CodecSpec] = []
    update: list[CodecSpec] | None = None
    """Of what clients send, then the update, trained minus received. None: they send models, by ``adapter``."""
    calibration_texts: PositiveInt | None = None
    """How many of its own texts a client's keys and bases are made of, in a forward pass in front of its first step.
    None: they are made of its first batch."""


class StopConfig(Section):
    """Budgets: the run ends after the first round that reaches one."""

    simulated_seconds: Annotated[Seconds, Field(gt=0)] | None = None
    num_bytes: Annotated[NumBytes, Field(gt=0)] | None = None


class ProtocolConfig(Section):
    """What every protocol has: rounds, local work, optimiser, participation, budgets."""

    edges_compute: ClassVar[bool] = True
    """Whether edges hold models. Where they only route, it is False, and no worker is started for them."""
    name: str
    rounds: PositiveInt = 5
    local_steps: PositiveInt | None = None
    """Optimiser steps a client and edge round; its data are reshuffled and recycled. Default 4."""
    local_epochs: PositiveInt | None = None
    """The alternative to ``local_steps``: passes over the client's data."""
    batch_size: PositiveInt = 8
    optimizer: OptimizerConfig = OptimizerConfig()
    participation: float = Field(default=1.0, gt=0, le=1)
    """Share of the clients that is sampled each global round (at least one)."""
    wire_dtype: Literal["fp64", "fp32", "bf16", "fp16"] = "fp32"
    """Format of the numbers on the wire, whatever the precision of the computation."""
    stop: StopConfig = StopConfig()
    client_failure: ClientFailureConfig = ClientFailureConfig()
    """What is done when a client's own computation fails."""

    @model_validator(mode="before")
    @classmethod
    def _default_local_work(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("local_steps") is None and data.get("local_epochs") is None:
            return {**data, "local_steps": 4}
        return data

    @model_validator(mode="after")
    def _one_measure_of_local_work(self) -> Self:
        if self.local_steps is not None and self.local_epochs is not None:
            raise ValueError("exactly one of local_steps and local_epochs")
        return self


class ElsaConfig(ProtocolConfig):
    """ELSA: split training through edge servers, edge then cloud aggregation."""

    name: Literal["elsa"] = "elsa"
    edge_rounds: PositiveInt = 1
    """Edge aggregations a global round."""
    split: SplitChoice = SplitConfig()
    clustering: ClusteringConfig | None = None
    """Groups clients by behaviour and gives groups to edges; none: each client stays at its nearest edge."""
    trust: TrustConfig | None = None
    """Weighs and excludes clients by how their models answer the probes; none: everybody counts fully."""
    codec: CodecChains = CodecChains()

    @field_validator("codec", mode="before")
    @classmethod
    def _one_chain_for_both_directions(cls, value: Any) -> Any:
        return {"activation": value, "gradient": value} if isinstance(value, list) else value


class FedAvgConfig(ProtocolConfig):
    """Federated averaging: each client trains the whole model, the cloud averages; edges only route."""

    edges_compute: ClassVar[bool] = False
    name: Literal["fedavg"] = "fedavg"
    codec: CodecChains = CodecChains()

    @field_validator("codec")
    @classmethod
    def _adapters_only(cls, value: CodecChains) -> CodecChains:
        if value.activation or value.gradient or value.calibration_texts is not None:
            raise ValueError("{adapter: [...]}: in fedavg only adapters travel")
        return value
