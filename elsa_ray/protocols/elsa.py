"""ELSA: clients train a split model through their edge; edges aggregate, then the cloud (methods.md 1.8, 1.9, 1.13).

Loop, weights and message placement are the cards' reconstruction of the paper.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from elsa_ray.clustering.assignment import PARKED, assign, step_round_trip_seconds
from elsa_ray.codecs.wire import HEADER_BYTES
from elsa_ray.config.errors import InputError
from elsa_ray.config.protocol import ElsaConfig
from elsa_ray.model.adapters import Adapters
from elsa_ray.model.cost import StepFlops, frozen_num_bytes, step_flops
from elsa_ray.model.split import Part, cut
from elsa_ray.protocols.frozen import send_frozen_to_clients
from elsa_ray.protocols.local_work import FP32_BYTES, LocalWork, adapter_bytes, local_work
from elsa_ray.protocols.protocol import Protocol, ProtocolState
from elsa_ray.protocols.setting import Setting
from elsa_ray.world.plan import Ints, Plan, PlanBuilder, Stage
from elsa_ray.world.roles import Role
from elsa_ray.world.timeline import WorldState


class Elsa(Protocol):
    """Split training through edge servers with two levels of aggregation."""

    Config = ElsaConfig

    def __init__(self, config: ElsaConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        self.split = cut(setting.shape.num_layers, config.split.front, config.split.back)
        self._flops = step_flops(setting.shape, setting.layout, self.split)
        self._edge_of_client = self._assigned()

    def start(self, adapters: Adapters | None) -> ProtocolState:
        """Every client at its edge; parked clients never take part."""
        return ProtocolState(adapters=adapters, edge_of_client=self._edge_of_client)

    def plan(self, state: ProtocolState, world_state: WorldState) -> Plan:
        """Plan a global round: each edge with its sampled members, then the cloud."""
        setting, policy = self.setting, self.setting.config.world.round_policy
        edge_of_client = np.array(state.edge_of_client, np.int64)
        parked = np.flatnonzero(edge_of_client == PARKED).tolist()
        sampled = self.sample(state, world_state, parked)
        builder = PlanBuilder(state.round_index)
        uploads = []
        for edge in setting.network.edges.tolist():
            members = sampled[edge_of_client[sampled] == edge]
            awaits_late_work = edge in world_state.work.edge
            if len(members) or awaits_late_work:
                uploads.append(self._plan_edge(builder, state, edge, members))
        builder.gather(setting.cloud, np.array(uploads, np.int64), edge_round=0, opener=-1, deadline_seconds=None)
        return builder.build(keep_late=policy.late == "keep", parked_clients=parked)

    def _plan_edge(self, builder: PlanBuilder, state: ProtocolState, edge: int, members: Ints) -> int:
        """Plan one edge's part of the round; returns the row of its upload to the cloud."""
        setting = self.setting
        whole_bytes, whole_fp32 = adapter_bytes(setting, setting.layout.tensors)
        whole: dict[str, Any] = {"num_bytes": whole_bytes, "uncompressed_bytes": whole_fp32, "client": -1}
        frozen = self._send_frozen_to_edge(builder, state, edge)
        (opener,) = builder.transfers(
            source=setting.cloud, target=edge, label=Role.ADAPTER_DOWN, after=frozen, **whole
        ).tolist()
        gather = -1
        for edge_round in range(self.config.edge_rounds):
            uploads = self._plan_edge_round(builder, state, edge, members, edge_round, opener)
            gather = builder.gather(
                edge,
                uploads if len(uploads) else opener,
                edge_round=edge_round,
                opener=opener,
                deadline_seconds=setting.config.world.round_policy.deadline_seconds,
            )
            opener = gather
        (upload,) = builder.transfers(
            source=edge, target=setting.cloud, label=Role.ADAPTER_UP, after=gather, **whole
        ).tolist()
        return int(upload)

    def _plan_edge_round(
        self, builder: PlanBuilder, state: ProtocolState, edge: int, members: Ints, edge_round: int, opener: int
    ) -> Ints:
        """Plan the members' split training in one edge round; returns the rows of their uploads."""
        setting, split = self.setting, self.split
        if not len(members):
            return np.zeros(0, np.int64)
        work = local_work(setting, self.config, round_index=builder.round_index, edge_round=edge_round, clients=members)
        items = builder.work_items(
            edge_round=edge_round,
            client=members,
            edge=edge,
            num_examples=setting.num_examples[members],
            num_steps=work.num_steps_W,
            front=split.front,
            middle=split.middle,
            back=split.back,
            gather=builder.num_gathers,
        )
        nodes = setting.network.clients[members].astype(np.int64)
        frozen = np.full(len(members), -1, np.int64)
        if edge_round == 0:
            frozen = send_frozen_to_clients(builder, setting, state, split, members, items)
        held = setting.layout.part(split, Part.FRONT, Part.BACK)
        num_bytes, fp32 = adapter_bytes(setting, held)
        message: dict[str, Any] = {"client": members, "num_bytes": num_bytes, "uncompressed_bytes": fp32, "work": items}
        down = builder.transfers(source=edge, target=nodes, label=Role.ADAPTER_DOWN, after=opener, **message)
        builder.depend(down, frozen)
        trained = _SplitSteps(builder, setting, self._flops, work, edge, members, nodes, items).plan(down)
        return builder.transfers(source=nodes, target=edge, label=Role.ADAPTER_UP, after=trained, **message)

    def _send_frozen_to_edge(self, builder: PlanBuilder, state: ProtocolState, edge: int) -> int:
        """Plan ``weights_down`` to an edge that lacks its frozen blocks; returns the row, -1 where nothing is sent."""
        setting = self.setting
        if setting.config.task.preloaded or edge in state.loaded_nodes:
            return -1
        size = frozen_num_bytes(setting.shape, self.split, Part.MIDDLE, FP32_BYTES)
        (row,) = builder.transfers(
            source=setting.cloud,
            target=edge,
            label=Role.WEIGHTS_DOWN,
            num_bytes=HEADER_BYTES + size,
            uncompressed_bytes=size,
            client=-1,
        ).tolist()
        return int(row)

    def _assigned(self) -> tuple[int, ...]:
        """Return the node of each client's edge, PARKED for a client without one.

        Raises:
            InputError: no client can reach any edge.
        """
        edges = assign(self._round_trip_seconds(), self.setting.config.world.edges.capacity)
        if (edges == PARKED).all():
            raise InputError("topology", "no client with a way to an edge and back", "at least one")
        nodes = np.where(edges == PARKED, PARKED, self.setting.network.edges[edges])
        return tuple(int(node) for node in nodes)

    def _round_trip_seconds(self) -> npt.NDArray[np.float64]:
        """Estimate one step of each client through each edge, with its usual batch."""
        setting = self.setting
        lengths = setting.task.train.lengths
        batch_N = np.minimum(self.config.batch_size, setting.num_examples)
        length_N = np.array([int(np.ceil(lengths[indices].mean())) for indices in setting.task.partition], np.int64)
        usual = LocalWork(np.ones_like(batch_N), batch_N[:, None], length_N[:, None])
        up = usual.step_bytes(setting, Role.ACTIVATION_UP) + usual.step_bytes(setting, Role.GRADIENT_UP)
        down = usual.step_bytes(setting, Role.ACTIVATION_DOWN) + usual.step_bytes(setting, Role.GRADIENT_DOWN)
        flops = self._flops
        on_client = flops.front_forward + flops.back_forward_backward + flops.front_backward
        on_edge = flops.middle_forward + flops.middle_backward
        seconds_N = (
            on_client.total(batch_N, length_N) / np.array([d.flops_per_second for d in setting.fleet.clients])
            + on_edge.total(batch_N, length_N) / setting.fleet.edge.flops_per_second
        )
        return step_round_trip_seconds(
            setting.network,
            setting.router,
            up_bytes_N=up[:, 0].astype(np.float64),
            down_bytes_N=down[:, 0].astype(np.float64),
            compute_seconds_NK=np.repeat(seconds_N[:, None], len(setting.network.edges), axis=1),
        )


class _SplitSteps:
    """Plans the steps of one edge's members: five computations and four messages each, in all members at once."""

    def __init__(
        self,
        builder: PlanBuilder,
        setting: Setting,
        flops: StepFlops,
        work: LocalWork,
        edge: int,
        members: Ints,
        nodes: Ints,
        items: Ints,
    ) -> None:
        self._builder, self._work, self._edge = builder, work, edge
        self._members, self._nodes, self._items = members, nodes, items
        self._flops = {
            Stage.FRONT_FORWARD: flops.front_forward.total(work.batch_WT, work.length_WT),
            Stage.MIDDLE_FORWARD: flops.middle_forward.total(work.batch_WT, work.length_WT),
            Stage.BACK: flops.back_forward_backward.total(work.batch_WT, work.length_WT),
            Stage.MIDDLE_BACKWARD: flops.middle_backward.total(work.batch_WT, work.length_WT),
            Stage.FRONT_BACKWARD: flops.front_backward.total(work.batch_WT, work.length_WT),
        }
        roles = (Role.ACTIVATION_UP, Role.ACTIVATION_DOWN, Role.GRADIENT_UP, Role.GRADIENT_DOWN)
        self._bytes = {role: work.step_bytes(setting, role) for role in roles}
        self._uncompressed = work.uncompressed_bytes(setting)

    def plan(self, after: Ints) -> Ints:
        """Add all steps behind the rows ``after``; returns the members' last rows."""
        last = after.copy()
        for step in range(self._work.length_WT.shape[1]):
            active = np.flatnonzero(step < self._work.num_steps_W)
            nodes, edge = self._nodes[active], np.full(len(active), self._edge)
            row = self._compute(Stage.FRONT_FORWARD, nodes, active, step, last[active])
            row = self._send(Role.ACTIVATION_UP, nodes, edge, active, step, row)
            row = self._compute(Stage.MIDDLE_FORWARD, edge, active, step, row)
            row = self._send(Role.ACTIVATION_DOWN, edge, nodes, active, step, row)
            row = self._compute(Stage.BACK, nodes, active, step, row)
            row = self._send(Role.GRADIENT_UP, nodes, edge, active, step, row)
            row = self._compute(Stage.MIDDLE_BACKWARD, edge, active, step, row)
            row = self._send(Role.GRADIENT_DOWN, edge, nodes, active, step, row)
            last[active] = self._compute(Stage.FRONT_BACKWARD, nodes, active, step, row)
        return last

    def _compute(self, stage: Stage, node: Ints, active: Ints, step: int, after: Ints) -> Ints:
        return self._builder.computations(
            node=node,
            client=self._members[active],
            label=stage,
            step=step,
            flops=self._flops[stage][active, step],
            work=self._items[active],
            after=after,
        )

    def _send(self, role: Role, source: Ints, target: Ints, active: Ints, step: int, after: Ints) -> Ints:
        return self._builder.transfers(
            client=self._members[active],
            source=source,
            target=target,
            label=role,
            step=step,
            num_bytes=self._bytes[role][active, step],
            uncompressed_bytes=self._uncompressed[active, step],
            work=self._items[active],
            after=after,
        )
