"""Plans the members' training steps: five computations and four messages each, in all members at once.

Where texts are set apart for calibrations, a forward pass of theirs goes in front, as far as its states are needed.

Shapes: W work items (the members), T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from elsa_ray.model.cost import StepFlops, step_flops
from elsa_ray.model.split import Split
from elsa_ray.protocols.local_work import CalibrationTexts, LocalWork, calibration_sizes
from elsa_ray.protocols.setting import Setting
from elsa_ray.world.plan import Bools, Ints, PlanBuilder, Stage
from elsa_ray.world.roles import Role

Rows = Ints | slice

_FLOPS = {
    Stage.FRONT_FORWARD: lambda flops: flops.front_forward,
    Stage.MIDDLE_FORWARD: lambda flops: flops.middle_forward,
    Stage.BACK: lambda flops: flops.back_forward_backward,
    Stage.MIDDLE_BACKWARD: lambda flops: flops.middle_backward,
    Stage.FRONT_BACKWARD: lambda flops: flops.front_backward,
}


@dataclass(frozen=True)
class Members:
    """The clients that train in one edge round, edge after edge.

    Attributes:
        edges: node of each member's edge [W].
        groups: of the plan's rows, one for each edge [W].
        clients, nodes, items: indices, nodes and rows of the work items [W].
        splits: the different ones.
        split_W: which of them each member has.
        calibrates_W: whose codecs are calibrated anew.
    """

    edges: Ints
    groups: Ints
    clients: Ints
    nodes: Ints
    items: Ints
    splits: Sequence[Split]
    split_W: Ints
    calibrates_W: Bools

    def of_split(self, figure: Callable[[Split], int]) -> Ints:
        """Return a figure of each member's split [W]."""
        return np.array([figure(split) for split in self.splits], np.int64)[self.split_W]


def distinct(splits: Sequence[Split]) -> tuple[tuple[Split, ...], Ints]:
    """Return the different splits, in order of first use, and which of them each is."""
    number_of: dict[Split, int] = {}
    numbers = [number_of.setdefault(split, len(number_of)) for split in splits]
    return tuple(number_of), np.array(numbers, np.int64)


class SplitSteps:
    """Plans the steps of some members.

    Args:
        builder: takes the rows.
        setting: the run's circumstances.
        work: the members' batches.
        members: who they are.
        texts: what new keys and bases are made of; None for the first batch.
    """

    def __init__(
        self,
        builder: PlanBuilder,
        setting: Setting,
        work: LocalWork,
        members: Members,
        texts: CalibrationTexts | None = None,
    ) -> None:
        self._builder, self._setting, self._work, self._members = builder, setting, work, members
        self._texts = texts
        self._flops = {stage: self._of_all(stage, work.batch_WT, work.length_WT) for stage in _FLOPS}
        roles = (Role.ACTIVATION_UP, Role.ACTIVATION_DOWN, Role.GRADIENT_UP, Role.GRADIENT_DOWN)
        self._bytes = {role: work.step_bytes(setting, role) for role in roles}
        self._uncompressed = work.uncompressed_bytes(setting)

    def plan(self, after: Ints) -> Ints:
        """Add all steps behind the rows ``after``; returns the members' last rows."""
        last, (up_sizes, down_sizes) = after.copy(), calibration_sizes(self._setting)
        if self._texts is not None:
            self._calibration_pass(self._texts, up_sizes, down_sizes, last)
            up_sizes, down_sizes = (), ()
        for step in range(self._work.length_WT.shape[1]):
            goes_on = step < self._work.num_steps_W
            active: Rows = slice(None) if goes_on.all() else np.flatnonzero(goes_on)
            nodes, edge = self._members.nodes[active], self._members.edges[active]
            row = self._compute(Stage.FRONT_FORWARD, nodes, active, step, last[active])
            row = self._calibrate(up_sizes, nodes, edge, active, step, row)
            row = self._send(Role.ACTIVATION_UP, nodes, edge, active, step, row)
            row = self._compute(Stage.MIDDLE_FORWARD, edge, active, step, row)
            row = self._calibrate(down_sizes, edge, nodes, active, step, row)
            row = self._send(Role.ACTIVATION_DOWN, edge, nodes, active, step, row)
            row = self._compute(Stage.BACK, nodes, active, step, row)
            row = self._send(Role.GRADIENT_UP, nodes, edge, active, step, row)
            row = self._compute(Stage.MIDDLE_BACKWARD, edge, active, step, row)
            row = self._send(Role.GRADIENT_DOWN, edge, nodes, active, step, row)
            last[active] = self._compute(Stage.FRONT_BACKWARD, nodes, active, step, row)
        return last

    def _calibration_pass(
        self,
        texts: CalibrationTexts,
        up_sizes: Sequence[tuple[Role, int]],
        down_sizes: Sequence[tuple[Role, int]],
        last: Ints,
    ) -> None:
        """Add the forward pass of the texts that keys and bases are made of; ``last`` is moved on."""
        active = np.flatnonzero(self._members.calibrates_W)
        nodes, edge = self._members.nodes[active], self._members.edges[active]
        flops = {
            stage: self._of_all(stage, texts.batch_W, texts.length_W)[active]
            for stage in (Stage.FRONT_FORWARD, Stage.MIDDLE_FORWARD)
        }
        row = self._add_computation(Stage.FRONT_FORWARD, flops[Stage.FRONT_FORWARD], nodes, active, -1, last[active])
        row = self._calibrate(up_sizes, nodes, edge, active, -1, row)
        if down_sizes:
            sizes = texts.num_bytes_W[active], np.zeros_like(active)
            row = self._add_transfer(Role.ACTIVATION_UP, *sizes, nodes, edge, active, -1, row)
            row = self._add_computation(Stage.MIDDLE_FORWARD, flops[Stage.MIDDLE_FORWARD], edge, active, -1, row)
            row = self._calibrate(down_sizes, edge, nodes, active, -1, row)
        last[active] = row

    def _of_all(self, stage: Stage, batch_WT: Ints, length_WT: Ints) -> Ints:
        """Return a stage's FLOPs of batches, [W, T] or [W], each member by its own split."""
        setting = self._setting
        flops_WT = np.zeros_like(batch_WT)
        for number, split in enumerate(self._members.splits):
            own: Rows = (
                np.flatnonzero(self._members.split_W == number) if len(self._members.splits) > 1 else slice(None)
            )
            step: StepFlops = step_flops(setting.shape, setting.layout, split)
            flops_WT[own] = _FLOPS[stage](step).total(batch_WT[own], length_WT[own])
        return flops_WT

    def _compute(self, stage: Stage, node: Ints, active: Rows, step: int, after: Ints) -> Ints:
        return self._add_computation(stage, self._flops[stage][active, step], node, active, step, after)

    def _add_computation(self, stage: Stage, flops: Ints, node: Ints, active: Rows, step: int, after: Ints) -> Ints:
        return self._builder.computations(
            node=node,
            client=self._members.clients[active],
            label=stage,
            step=step,
            flops=flops,
            work=self._members.items[active],
            group=self._members.groups[active],
            after=after,
        )

    def _calibrate(
        self, sizes: Sequence[tuple[Role, int]], source: Ints, target: Ints, active: Rows, step: int, after: Ints
    ) -> Ints:
        """Add the keys and bases that go in front of the first message of a cut."""
        chosen = np.flatnonzero(self._members.calibrates_W[active])
        if step > 0 or not len(chosen):
            return after
        last = after.copy()
        for role, num_bytes in sizes:
            last[chosen] = self._builder.transfers(
                client=self._members.clients[active][chosen],
                source=source[chosen],
                target=target[chosen],
                label=role,
                step=step,
                num_bytes=num_bytes,
                # Without a codec none of this would be sent at all.
                uncompressed_bytes=0,
                work=self._members.items[active][chosen],
                group=self._members.groups[active][chosen],
                after=last[chosen],
            )
        return last

    def _send(self, role: Role, source: Ints, target: Ints, active: Rows, step: int, after: Ints) -> Ints:
        sizes = self._bytes[role][active, step], self._uncompressed[active, step]
        return self._add_transfer(role, *sizes, source, target, active, step, after)

    def _add_transfer(
        self,
        role: Role,
        num_bytes: Ints,
        uncompressed_bytes: Ints,
        source: Ints,
        target: Ints,
        active: Rows,
        step: int,
        after: Ints,
    ) -> Ints:
        return self._builder.transfers(
            client=self._members.clients[active],
            source=source,
            target=target,
            label=role,
            step=step,
            num_bytes=num_bytes,
            uncompressed_bytes=uncompressed_bytes,
            work=self._members.items[active],
            group=self._members.groups[active],
            after=after,
        )
