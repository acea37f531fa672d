"""The section ``world.clients.capacities``: what clients' devices and links were measured to do."""

from __future__ import annotations

from pydantic import Field

from elsa_ray.config.section import Section


class FedScaleCapacities(Section):
    """FedScale's ``client_device_capacity``; its users are dealt to the clients by seed."""

    file: str
    flops_per_sample: float = Field(gt=0, allow_inf_nan=False)
    """FLOPs (a multiply-add is two) of the forward pass of one sample that the file gives the milliseconds of."""
    links: bool = True
    """The file's kbit/s are the bandwidth of the client's own links, both ways; false leaves the topology's."""
