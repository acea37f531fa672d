"""What a protocol plans with: the data's lengths, the model's shape, the network, the devices. Never a weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.config.misbehaviour import Misbehaviour
from elsa_ray.model.adapters import AdapterLayout
from elsa_ray.model.shape import ModelShape
from elsa_ray.network.graph import Network
from elsa_ray.network.routes import Router
from elsa_ray.tasks.task import Task
from elsa_ray.training.inquiry import Inquiry
from elsa_ray.training.recipe import Chains
from elsa_ray.world.fleet import Fleet


@dataclass(frozen=True)
class Setting:
    """The fixed circumstances of a run.

    Attributes:
        config: the complete config.
        task: tokenised data, its partition, the backbone's config.
        network, router: the topology and its ways.
        shape, layout: the model and its trained tensors.
        chains: codecs by kind of payload.
        fleet: what computes.
        misbehaviour: what each client does, None for an honest one; empty where all are honest.
    """

    config: ExperimentConfig
    task: Task
    network: Network
    router: Router
    shape: ModelShape
    layout: AdapterLayout
    chains: Chains
    fleet: Fleet
    misbehaviour: tuple[Misbehaviour | None, ...] = ()

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config.seed

    @property
    def num_clients(self) -> int:
        """Clients of the topology."""
        return len(self.network.clients)

    @property
    def inquiry(self) -> Inquiry | None:
        """What is asked of models on the probes; None where the protocol asks for nothing."""
        protocol = self.config.protocol
        clustering, trust = (getattr(protocol, name, None) for name in ("clustering", "trust"))
        if self.task.probes is None or (clustering is None and trust is None):
            return None
        return Inquiry(self.task.probes, clustering, trust, self.task.num_labels)

    @property
    def cloud(self) -> int:
        """Node index of the cloud."""
        return int(self.network.clouds[0])

    @property
    def num_examples(self) -> npt.NDArray[np.int64]:
        """Examples of each client."""
        return self.task.partition.counts
