"""A codec that changes nothing, and at stated moments takes its client, its worker or its node down.

Named in a config as module:Class, as a user's own codec would be.
"""

import os
import signal
import time
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from elsa_ray.codecs.codec import Codec, Rows
from elsa_ray.config.section import Section


class Incident(Section):
    """What happens when a message of these circumstances is encoded; None stands for any."""

    what: Literal["raise", "hang", "nan", "exhaust", "die", "lose_node"]
    client: int
    round: int | None = None
    role: str = "activation_up"
    step: int | None = None
    once: str | None = None
    """A file that is made by it: where it is already, nothing happens any more."""


class Fragile(Codec):
    """Sends the numbers as they are."""

    class Config(Section):
        kind: str
        incidents: list[Incident] = Field(default=[])

    linear = True
    lossless = True

    def encode(self, x_TD, context):
        for incident in self.config.incidents:
            wanted = (incident.client, incident.round, incident.step)
            is_moment = all(a in (None, b) for a, b in zip(wanted, moment(context), strict=True))
            if is_moment and incident.role == context.role and _comes(incident):
                x_TD = _happen(incident, x_TD)
        return Rows(x_TD)

    def decode(self, rows, width, context):
        return rows.values


def moment(context):
    return context.client, context.round_index, context.step


def _comes(incident: Incident) -> bool:
    if incident.once is None:
        return True
    try:
        Path(incident.once).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _happen(incident, x_TD):
    match incident.what:
        case "raise":
            raise ValueError("a planted fault")
        case "hang":
            time.sleep(1000)
        case "nan":
            return torch.full_like(x_TD, torch.nan)
        case "exhaust":
            return torch.empty(2**60)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "lose_node":
            # A worker's parent is the raylet of its node: with it go all workers that are there.
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(1000)
    return x_TD


def chains(*incidents: dict) -> dict:
    """Return the config's ``codec`` section: fragile wherever something is sent."""
    spec = {"kind": "tests.runtime.fragile_codec:Fragile", "incidents": list(incidents)}
    return {"activation": [spec], "gradient": [spec], "adapter": [spec]}
