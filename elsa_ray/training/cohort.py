"""A cohort: clients with the same split that train as one batch, and what each of them is about to send."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from elsa_ray.model.split import Split
from elsa_ray.world.plan import WorkKey
from elsa_ray.world.roles import Role

CALIBRATION = -1
"""In place of a step: the forward pass of texts that keys and bases are made of, in front of the first step."""

STEP_ROLES = (Role.ACTIVATION_UP, Role.ACTIVATION_DOWN, Role.GRADIENT_UP, Role.GRADIENT_DOWN)
"""The four messages of a split step, in order."""

CalibrationSizes = tuple[tuple[Role, int], ...]


class VersionKey(NamedTuple):
    """Names a model version: the round's global model as a node got it, after so many of the node's aggregations."""

    round_index: int
    edge_round: int
    node: int


@dataclass(frozen=True)
class Member:
    """One client of a cohort.

    Attributes:
        key: its work item.
        node: index of the edge (or cloud) node that it gets its model from and sends its adapters to.
        version: the model it starts from.
        num_examples: its weight in the aggregation.
        num_steps: its optimiser steps.
        planned_step_bytes: [steps, 4] sizes of the messages of each step, in the order of STEP_ROLES.
        planned_adapter_bytes: sizes of adapter_down and adapter_up.
        calibrates: whether its codecs are calibrated in this work item.
        planned_calibrations: role and size of each calibration that the client sends, and that the edge sends.
        planned_calibration_states: size of the states that go up in the calibration's own forward pass; 0 for none.
    """

    key: WorkKey
    node: int
    version: VersionKey
    num_examples: int
    num_steps: int
    planned_step_bytes: npt.NDArray[np.int64]
    planned_adapter_bytes: tuple[int, int]
    calibrates: bool = False
    planned_calibrations: tuple[CalibrationSizes, CalibrationSizes] = ((), ())
    planned_calibration_states: int = 0


@dataclass(frozen=True)
class Cohort:
    """Members in the order of their keys, at most ``numerics.cohort`` of them.

    Attributes:
        name: unique in the round, such as ``edge0/0/2`` (host, edge round, number).
        members: the clients.
        split: of all of them.
    """

    name: str
    members: tuple[Member, ...]
    split: Split

    @property
    def num_steps(self) -> int:
        """Steps of the member that has most."""
        return max(member.num_steps for member in self.members)


class PlanMismatchError(Exception):
    """A payload has not the size that the plan charged for it: a codec's size formula is wrong."""


@dataclass
class ByteMeter:
    """Counts the payloads that were really encoded and what that took, and holds each against the plan."""

    num_bytes: Counter[str] = field(default_factory=Counter)
    num_payloads: Counter[str] = field(default_factory=Counter)
    codec_seconds: float = 0.0

    @contextmanager
    def coding(self) -> Iterator[None]:
        """Count the host's time inside as encoding and decoding."""
        begin = perf_counter()
        try:
            yield
        finally:
            self.codec_seconds += perf_counter() - begin

    def charge(self, role: Role, payload: bytes, planned: int, *, exact: bool, who: str) -> None:
        """Count one payload.

        Raises:
            PlanMismatchError: its size is not the planned one (or, for an upper bound, is larger).
        """
        if len(payload) != planned if exact else len(payload) > planned:
            relation = "planned" if exact else "at most planned"
            raise PlanMismatchError(f"{who}: {role.label} has {len(payload)} bytes, {relation}: {planned}")
        self.num_bytes[role.label] += len(payload)
        self.num_payloads[role.label] += 1

    def merge(self, other: ByteMeter) -> None:
        """Add another meter's counts."""
        self.num_bytes.update(other.num_bytes)
        self.num_payloads.update(other.num_payloads)
        self.codec_seconds += other.codec_seconds
