"""Plans the training steps of one edge's members: five computations and four messages each, in all members at once.

Shapes: W work items (the members), T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from elsa_ray.model.cost import StepFlops, step_flops
from elsa_ray.model.split import Split
from elsa_ray.protocols.local_work import LocalWork, calibration_sizes
from elsa_ray.protocols.setting import Setting
from elsa_ray.world.plan import Ints, PlanBuilder, Stage
from elsa_ray.world.roles import Role

_FLOPS = {
    Stage.FRONT_FORWARD: lambda flops: flops.front_forward,
    Stage.MIDDLE_FORWARD: lambda flops: flops.middle_forward,
    Stage.BACK: lambda flops: flops.back_forward_backward,
    Stage.MIDDLE_BACKWARD: lambda flops: flops.middle_backward,
    Stage.FRONT_BACKWARD: lambda flops: flops.front_backward,
}


@dataclass(frozen=True)
class Members:
    """The members of an edge that train in one edge round.

    Attributes:
        edge: the edge's node.
        clients, nodes, items: indices, nodes and rows of the work items [W].
        splits: of each.
        calibrates_W: whose codecs are calibrated anew.
    """

    edge: int
    clients: Ints
    nodes: Ints
    items: Ints
    splits: Sequence[Split]
    calibrates_W: np.ndarray


class SplitSteps:
    """Plans the steps of some members.

    Args:
        builder: takes the rows.
        setting: the run's circumstances.
        work: the members' batches.
        members: who they are.
    """

    def __init__(self, builder: PlanBuilder, setting: Setting, work: LocalWork, members: Members) -> None:
        self._builder, self._setting, self._work, self._members = builder, setting, work, members
        self._flops = {stage: self._of_all(stage) for stage in _FLOPS}
        roles = (Role.ACTIVATION_UP, Role.ACTIVATION_DOWN, Role.GRADIENT_UP, Role.GRADIENT_DOWN)
        self._bytes = {role: work.step_bytes(setting, role) for role in roles}
        self._uncompressed = work.uncompressed_bytes(setting)

    def plan(self, after: Ints) -> Ints:
        """Add all steps behind the rows ``after``; returns the members' last rows."""
        last, up_sizes, down_sizes = after.copy(), *calibration_sizes(self._setting)
        for step in range(self._work.length_WT.shape[1]):
            active = np.flatnonzero(step < self._work.num_steps_W)
            nodes, edge = self._members.nodes[active], np.full(len(active), self._members.edge)
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

    def _of_all(self, stage: Stage) -> Ints:
        """Return the FLOPs [W, T] of a stage, each member by its own split."""
        setting, work = self._setting, self._work
        flops_WT = np.zeros_like(work.batch_WT)
        for split in dict.fromkeys(self._members.splits):
            own = np.array([other == split for other in self._members.splits])
            step: StepFlops = step_flops(setting.shape, setting.layout, split)
            flops_WT[own] = _FLOPS[stage](step).total(work.batch_WT[own], work.length_WT[own])
        return flops_WT

    def _compute(self, stage: Stage, node: Ints, active: Ints, step: int, after: Ints) -> Ints:
        return self._builder.computations(
            node=node,
            client=self._members.clients[active],
            label=stage,
            step=step,
            flops=self._flops[stage][active, step],
            work=self._members.items[active],
            after=after,
        )

    def _calibrate(
        self, sizes: Sequence[tuple[Role, int]], source: Ints, target: Ints, active: Ints, step: int, after: Ints
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
                after=last[chosen],
            )
        return last

    def _send(self, role: Role, source: Ints, target: Ints, active: Ints, step: int, after: Ints) -> Ints:
        return self._builder.transfers(
            client=self._members.clients[active],
            source=source,
            target=target,
            label=role,
            step=step,
            num_bytes=self._bytes[role][active, step],
            uncompressed_bytes=self._uncompressed[active, step],
            work=self._members.items[active],
            after=after,
        )
