"""Gives each client its split: the configured one, or with ``split: auto`` the one that suits it (methods.md 1.8).

Shapes: N clients, L blocks, X options.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from elsa_ray.clustering.assignment import PARKED, default_capacity
from elsa_ray.config.protocol import ElsaConfig
from elsa_ray.config.split import AutoSplitConfig
from elsa_ray.model.cost import blocks_num_bytes
from elsa_ray.model.memory import client_memory_bytes, edge_frozen_bytes, edge_member_bytes
from elsa_ray.model.split import Part, Split, cut
from elsa_ray.protocols.estimates import UsualStep, round_trips, steps_a_round
from elsa_ray.protocols.local_work import FP32_BYTES
from elsa_ray.protocols.room import check_clients_hold
from elsa_ray.protocols.sampling import sampled_share
from elsa_ray.protocols.setting import Setting
from elsa_ray.protocols.split_choice import (
    NO_OPTION,
    balanced_splits,
    fits_NX,
    missing_blocks_NX,
    split_options,
    step_flops_NX,
    step_seconds_NX,
    switch_seconds_NX,
)
from elsa_ray.world.plan import Bools, Ints


class SplitChooser:
    """Chooses splits.

    Args:
        setting: the run's circumstances.
        config: the protocol's section.
        step: the clients' usual steps.

    Raises:
        InputError: the configured split does not fit the model.
    """

    def __init__(self, setting: Setting, config: ElsaConfig, step: UsualStep) -> None:
        self._setting, self._config, self._step = setting, config, step
        num_layers = setting.shape.num_layers
        if isinstance(config.split, AutoSplitConfig):
            auto = config.split.auto
            self._options = split_options(num_layers, min_front=auto.min_front, min_back=auto.min_back)
        else:
            self._options = (cut(num_layers, config.split.front, config.split.back),)

    @property
    def is_auto(self) -> bool:
        """Whether clients may have different splits."""
        return isinstance(self._config.split, AutoSplitConfig)

    def most_private(self) -> tuple[Split, ...]:
        """Return one split for all: what latencies are estimated with before anything is chosen."""
        return (self._options[0],) * self._setting.num_clients

    def choose(
        self,
        edge_of_client: Sequence[int],
        held_layers: Sequence[frozenset[int]],
        now: Sequence[Split] | None,
        left: int,
    ) -> tuple[Split, ...]:
        """Return the split of each client.

        Args:
            edge_of_client: node of each client's edge, or PARKED.
            held_layers: frozen blocks that lie on each client already.
            now: present splits; None before the first choice.
            left: global rounds to come, over which the transfer of new blocks is spread.

        Raises:
            InputError: a client, or its edge, cannot hold any split.
        """
        placed = np.flatnonzero(np.array(edge_of_client) != PARKED)
        setting, step = self._setting, self._step
        edges = setting.network.edges.tolist()
        position = {edge: number for number, edge in enumerate(edges)}
        edge_N = np.array([position[edge_of_client[client]] for client in placed.tolist()], np.int64)
        members_N = np.bincount(edge_N, minlength=len(edges))[edge_N]
        if not isinstance(self._config.split, AutoSplitConfig):
            check_clients_hold(setting, self._config, self._options[0], placed.tolist())
            self._fits(placed, edge_N, np.maximum(members_N, self._places_after_clustering()))
            return self.most_private()
        auto = self._config.split.auto
        client_flops, edge_flops = step_flops_NX(
            setting.shape, setting.layout, self._options, batch_N=step.batch_N[placed], length_N=step.length_N[placed]
        )
        alone_NX = step_seconds_NX(
            client_flops,
            edge_flops,
            client_flops_per_second_N=[setting.fleet.clients[client].flops_per_second for client in placed.tolist()],
            edge_flops_per_second_N=np.full(len(placed), setting.fleet.edge.flops_per_second),
            edge_slots_N=1,
            active_members_N=np.ones(len(placed)),
            network_seconds_N=round_trips(setting, step).seconds_through(placed, edge_N),
        )
        held_NL = self._held(held_layers, placed)
        steps_left = float(steps_a_round(setting, self._config).mean()) * self._config.edge_rounds * left
        alone_NX += switch_seconds_NX(
            missing_blocks_NX(self._options, held_NL, Part.FRONT, Part.BACK),
            block_num_bytes=blocks_num_bytes(setting.shape, 1, FP32_BYTES),
            bytes_per_second_N=self._rate_from_cloud(placed),
            horizon_steps=max(1.0, steps_left),
        )
        held_N = np.full(len(placed), NO_OPTION)
        if now is not None:
            held_N = np.array([self._options.index(now[client]) for client in placed.tolist()], np.int64)
        if now is None and self._config.clustering is not None:
            # What clustering may ask for is refused before the run, too.
            self._fits(placed, edge_N, np.maximum(members_N, self._places_after_clustering()))
        fits = self._fits(placed, edge_N, members_N)
        chosen_N = balanced_splits(
            alone_NX,
            edge_flops / setting.fleet.edge.flops_per_second,
            fits,
            held_N,
            edge_N=edge_N,
            edge_slots=setting.config.world.edges.slots,
            participation=self._sampled_share,
            max_splits=auto.max_splits,
            hysteresis=auto.hysteresis,
        )
        splits = list(now if now is not None else self.most_private())
        for client, option in zip(placed.tolist(), chosen_N.tolist(), strict=True):
            splits[client] = self._options[option]
        return tuple(splits)

    @property
    def _sampled_share(self) -> float:
        return sampled_share(self._config.participation, self._setting.config.world.round_policy.over_sample)

    def _places_after_clustering(self) -> int:
        """Return how many members an edge may get when clients are clustered; 0 where they never are."""
        if self._config.clustering is None:
            return 0
        setting = self._setting
        places = setting.config.world.edges.capacity
        if places is None:
            places = default_capacity(setting.num_clients, len(setting.network.edges))
        return min(places, setting.num_clients)

    def _fits(self, placed: Ints, edge_N: Ints, members_N: Ints) -> Bools:
        setting, step = self._setting, self._step
        network, fleet = setting.network, setting.fleet
        sizes: dict[str, Any] = {
            "batch": step.batch_N[placed],
            "length": setting.task.longest_C[placed],
            "num_heads": int(setting.task.backbone.config.num_attention_heads),
            "optimizer_kind": self._config.optimizer.kind,
        }
        of_client, of_edge = (
            np.stack([function(setting.shape, setting.layout, option, **sizes) for option in self._options], axis=1)
            for function in (client_memory_bytes, edge_member_bytes)
        )

        def client_name(row: int) -> str:
            client = int(placed[row])
            return f"{network.node_names[network.clients[client]]} ({fleet.clients[client].name})"

        def edge_name(row: int) -> str:
            return f"{network.node_names[network.edges[edge_N[row]]]} ({fleet.edge.name})"

        return fits_NX(
            client_bytes_NX=of_client,
            client_memory_bytes_N=[fleet.clients[client].memory_bytes for client in placed.tolist()],
            client_name=client_name,
            edge_member_bytes_NX=of_edge,
            edge_frozen_bytes=edge_frozen_bytes(setting.shape, self._options),
            edge_memory_bytes_N=np.full(len(placed), fleet.edge.memory_bytes),
            active_members_N=np.maximum(1.0, members_N * self._sampled_share),
            edge_name=edge_name,
        )

    def _held(self, held_layers: Sequence[frozenset[int]], placed: Ints) -> Bools:
        held_NL = np.zeros((len(placed), self._setting.shape.num_layers), bool)
        for row, client in enumerate(placed.tolist()):
            held_NL[row, sorted(held_layers[client])] = True
        return held_NL

    def _rate_from_cloud(self, placed: Ints) -> list[float]:
        setting = self._setting
        routes = [setting.router.route(setting.cloud, int(node)) for node in setting.network.clients[placed]]
        return [route.bottleneck_bytes_per_second if route is not None else np.inf for route in routes]
