"""Federated averaging: each sampled client trains the whole model, the cloud averages (methods.md 3.1)."""

from __future__ import annotations

from typing import Any

import numpy as np

from elsa_ray.config.errors import InputError
from elsa_ray.config.protocol import FedAvgConfig
from elsa_ray.model.adapters import Adapters
from elsa_ray.model.cost import flops_of_steps, step_flops
from elsa_ray.model.split import whole
from elsa_ray.protocols.frozen import send_frozen_to_clients
from elsa_ray.protocols.local_work import adapter_bytes, local_work, upload_bytes
from elsa_ray.protocols.protocol import Protocol, ProtocolState
from elsa_ray.protocols.room import check_clients_hold
from elsa_ray.protocols.setting import Setting
from elsa_ray.world.plan import Plan, PlanBuilder, Stage
from elsa_ray.world.roles import Role
from elsa_ray.world.timeline import WorldState


class FedAvg(Protocol):
    """Whole-model training on the clients; the edges only route."""

    Config = FedAvgConfig

    def __init__(self, config: FedAvgConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        self.split = whole(setting.shape.num_layers)
        self._flops = step_flops(setting.shape, setting.layout, self.split).whole
        self._parked = self._without_cloud()
        if len(self._parked) == setting.num_clients:
            raise InputError("topology", "no client with a way to the cloud and back", "at least one")
        parked = set(self._parked)
        taking_part = [client for client in range(setting.num_clients) if client not in parked]
        check_clients_hold(setting, config, self.split, taking_part)

    def start(self, adapters: Adapters | None) -> ProtocolState:
        """Nothing but the first adapters."""
        return ProtocolState(adapters=adapters)

    def plan(self, state: ProtocolState, world_state: WorldState) -> Plan:
        """Plan a round: adapters down, local training, adapters up, the cloud's gather."""
        setting, policy = self.setting, self.setting.config.world.round_policy
        clients = self.sample(state, world_state, self._parked)
        builder = PlanBuilder(state.round_index)
        work = local_work(setting, self.config, round_index=state.round_index, edge_round=0, clients=clients)
        items = builder.work_items(
            edge_round=0,
            client=clients,
            edge=-1,
            num_examples=setting.num_examples[clients],
            num_steps=work.num_steps_W,
            front=self.split.front,
            middle=self.split.middle,
            back=self.split.back,
            gather=builder.num_gathers,
        )
        nodes = setting.network.clients[clients].astype(np.int64)
        num_bytes, fp32 = adapter_bytes(setting, setting.layout.tensors)
        message: dict[str, Any] = {"client": clients, "num_bytes": num_bytes, "uncompressed_bytes": fp32, "work": items}
        frozen = send_frozen_to_clients(builder, setting, state, self.split, clients, items)
        down = builder.transfers(source=setting.cloud, target=nodes, label=Role.ADAPTER_DOWN, after=frozen, **message)
        trained = builder.computations(
            node=nodes,
            client=clients,
            label=Stage.LOCAL_TRAINING,
            flops=flops_of_steps(self._flops.total(work.batch_WT, work.length_WT)),
            work=items,
            after=down,
        )
        message["num_bytes"], _ = upload_bytes(setting, setting.layout.tensors)
        up = builder.transfers(source=nodes, target=setting.cloud, label=Role.ADAPTER_UP, after=trained, **message)
        builder.gather(
            setting.cloud,
            up,
            edge_round=0,
            opener=-1,
            deadline_seconds=policy.deadline_seconds,
            quorum=self.quorum(len(clients), len(clients)),
        )
        return builder.build(keep_late=policy.late == "keep", parked_clients=self._parked)

    def _without_cloud(self) -> list[int]:
        """Return the clients without a way to the cloud and back."""
        router, cloud = self.setting.router, self.setting.cloud
        nodes = self.setting.network.clients.tolist()
        return [
            client
            for client, node in enumerate(nodes)
            if router.route(node, cloud) is None or router.route(cloud, node) is None
        ]
