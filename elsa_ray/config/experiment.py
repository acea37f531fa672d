"""The whole config file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, field_validator

from elsa_ray.config.errors import InputError
from elsa_ray.config.numerics import NumericsConfig
from elsa_ray.config.plugins import find_class
from elsa_ray.config.protocol import ElsaConfig, FedAvgConfig, ProtocolConfig
from elsa_ray.config.runtime import RuntimeConfig
from elsa_ray.config.section import Section
from elsa_ray.config.task import TaskConfig
from elsa_ray.config.topology import HierarchicalTopology, TopologyConfig
from elsa_ray.config.validate import validate
from elsa_ray.config.world import WorldConfig

PROTOCOL_CONFIGS: dict[str, type[ProtocolConfig]] = {"elsa": ElsaConfig, "fedavg": FedAvgConfig}


class EvaluationConfig(Section):
    """When the global model is tested."""

    every: Annotated[int, Field(gt=0)] = 1
    """Global rounds between evaluations; the last round is always evaluated."""
    over_cuts: bool = False
    """Test the model as clients would use it through an edge too, with the activations' codecs at its cuts."""


class ExperimentConfig(Section):
    """One experiment, whole: this file and the data reproduce the run."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = "run"
    seed: Annotated[int, Field(ge=0)] = 0
    task: TaskConfig = TaskConfig()
    topology: TopologyConfig = HierarchicalTopology()
    protocol: SerializeAsAny[ProtocolConfig] = ElsaConfig()
    world: WorldConfig = WorldConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    numerics: NumericsConfig = NumericsConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @field_validator("protocol", mode="before")
    @classmethod
    def _protocol_of_its_own_kind(cls, value: Any) -> Any:
        """Validate the section by the config class of the protocol that it names."""
        if not isinstance(value, dict):
            return value
        name = value.get("name", "elsa")
        if not isinstance(name, str):
            raise InputError("protocol.name", name, ", ".join(PROTOCOL_CONFIGS))
        if name in PROTOCOL_CONFIGS:
            return validate(PROTOCOL_CONFIGS[name], value, "protocol")
        protocol = find_class("protocol.name", "elsa_ray.protocols", name, PROTOCOL_CONFIGS)
        return validate(protocol.Config, value, "protocol")
