"""ELSA: clients train a split model through their edge; edges aggregate, then the cloud (methods.md 1.3 to 1.13).

Loop, weights and message placement are the cards' reconstruction of the paper. In the first round clients train through
their nearest edge, which is the warm-up; with clustering, their fingerprints then decide who trains where.

Shapes: W work items, N clients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from elsa_ray.clustering.assignment import PARKED, assign, default_capacity
from elsa_ray.codecs.wire import HEADER_BYTES
from elsa_ray.config.errors import InputError
from elsa_ray.config.protocol import ElsaConfig
from elsa_ray.model.adapters import Adapters, AdapterTensor
from elsa_ray.model.cost import frozen_num_bytes
from elsa_ray.model.split import Part, Split
from elsa_ray.protocols.auto_split import SplitChooser
from elsa_ray.protocols.estimates import compute_seconds, round_trips, usual_step
from elsa_ray.protocols.frozen import edge_parts, send_new_blocks
from elsa_ray.protocols.local_work import FP32_BYTES, adapter_bytes, calibration_texts, local_work, upload_bytes
from elsa_ray.protocols.probe_steps import ProbeSteps
from elsa_ray.protocols.protocol import Protocol, ProtocolState, RoundReport, RoundResults
from elsa_ray.protocols.recluster import is_due, members, new_edges
from elsa_ray.protocols.setting import Setting
from elsa_ray.protocols.split_steps import Members, SplitSteps, distinct
from elsa_ray.training.tables import table_num_bytes
from elsa_ray.world.plan import ActivityKind, Bools, Floats, Ints, Plan, PlanBuilder, WorkItems
from elsa_ray.world.roles import Role
from elsa_ray.world.timeline import Outcome, Timeline, WorldState

_NOTICE_COLUMNS = 2
_PAIRS_AT_ONCE = 2_000_000
"""Of a client and an edge, whose latencies are in memory together."""


@dataclass(frozen=True)
class ElsaState(ProtocolState):
    """What ELSA knows between two rounds, beside what every protocol does.

    Attributes:
        splits: of each client.
        held_layers: frozen blocks that lie on each client.
        calibrated: global round in which each client's keys and bases were made; who is missing has none.
        probe_holders: nodes that have the probe set.
        untold: clients that were given a new edge and do not know it yet.
        fingerprints: what the cloud knows of clients' behaviour.
        clustered_round: number of rounds after which clients were clustered last; None before.
        clustered: the clients that were members of clusters then.
        away_since: the round at whose end a client was missed first, of those that were away at the end of each since.
        home_of_client: the edge to which clients come back that are elsewhere while it is down.
    """

    splits: tuple[Split, ...] = ()
    held_layers: tuple[frozenset[int], ...] = ()
    calibrated: Mapping[int, int] = field(default_factory=dict)
    probe_holders: frozenset[int] = frozenset()
    untold: frozenset[int] = frozenset()
    fingerprints: Mapping[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    clustered_round: int | None = None
    clustered: frozenset[int] = frozenset()
    away_since: Mapping[int, int] = field(default_factory=dict)
    home_of_client: Mapping[int, int] = field(default_factory=dict)


class Elsa(Protocol):
    """Split training through edge servers with two levels of aggregation."""

    Config = ElsaConfig

    def __init__(self, config: ElsaConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        if (config.clustering or config.trust) and setting.task.probes is None:
            section = "clustering" if config.clustering else "trust"
            allowed = "{kind: dataset}, {kind: file, file: FILE} or {kind: generated}"
            raise InputError("task.probes", "nothing", f"{allowed}: protocol.{section} compares models on them")
        self._step = usual_step(setting, config)
        self._chooser = SplitChooser(setting, config, self._step)
        self._round_trips = round_trips(setting, self._step)
        nearest = self._nearest_edges()
        # Where the first blocks lie on the devices already, they lie there for any split.
        preloaded = setting.config.task.preloaded
        at_hand = frozenset(range(setting.shape.num_layers)) if preloaded else frozenset[int]()
        splits = self._chooser.choose(nearest, (at_hand,) * setting.num_clients, None, config.rounds)
        held = tuple(_client_layers(split) if preloaded else frozenset[int]() for split in splits)
        self._first = ElsaState(edge_of_client=nearest, splits=splits, held_layers=held)

    def start(self, adapters: Adapters | None) -> ElsaState:
        """Every client at its nearest edge; parked clients never take part."""
        return replace(self._first, adapters=adapters)

    def plan(self, state: ProtocolState, world_state: WorldState) -> Plan:
        """Plan a global round: each edge with its sampled members, then the cloud."""
        assert isinstance(state, ElsaState)
        return _RoundPlan(self, state, world_state).build()

    def sample_members(self, state: ElsaState, world_state: WorldState) -> tuple[Ints, list[int]]:
        """Return the clients of the round, without parked, excluded, absent and busy ones; and the parked ones.

        Clients whose edge is down sit out.
        """
        parked = np.flatnonzero(np.array(state.edge_of_client) == PARKED).tolist()
        excluded = [client for client, own in state.trust.items() if own.is_excluded(state.round_index)]
        stranded = np.flatnonzero(np.isin(state.edge_of_client, world_state.down_nodes)).tolist()
        return self.sample(state, world_state, [*parked, *excluded, *stranded]), parked

    def conclude(
        self, state: ProtocolState, results: RoundResults, plan: Plan, timeline: Timeline
    ) -> tuple[ProtocolState, RoundReport]:
        """Return the state after the round, and the round in numbers; cluster anew where that is due."""
        assert isinstance(state, ElsaState)
        after, report = super().conclude(state, results, plan, timeline)
        assert isinstance(after, ElsaState)
        after = replace(
            after,
            calibrated={**state.calibrated, **_calibrated(state, results, timeline)},
            held_layers=_held_after(state, timeline),
            probe_holders=state.probe_holders | _reached(timeline, Role.PROBE),
            untold=state.untold - _told(self.setting, state, timeline),
            fingerprints={**state.fingerprints, **results.fingerprints},
            away_since=_away_since(state, timeline) if self.config.clustering is not None else {},
        )
        excluded = tuple(sorted(c for c, own in after.trust.items() if own.is_excluded(after.round_index)))
        clustered = self._failed_over(self._clustered(after, timeline.down_nodes), timeline.down_nodes)
        edges = enumerate(zip(after.edge_of_client, clustered.edge_of_client, strict=True))
        moved = tuple((client, new) for client, (old, new) in edges if old != new)
        return clustered, replace(report, excluded=excluded, moved=moved)

    def calibrates(self, state: ElsaState, clients: Ints) -> Bools:
        """Return of which clients keys and bases are made anew in the coming round."""
        refresh = self.setting.chains.refresh_rounds
        if refresh is None:
            return np.zeros(len(clients), bool)
        made = (state.calibrated.get(client) for client in clients.tolist())
        return np.array([then is None or state.round_index - then >= refresh for then in made], bool)

    def _clustered(self, state: ElsaState, down_nodes: Sequence[int]) -> ElsaState:
        """Return the state with clients clustered and assigned anew, if that is due."""
        clustering = self.config.clustering
        if clustering is None:
            return state
        own = members(clustering, state)
        if not is_due(clustering, self.setting.num_clients, state, own):
            return state
        computing_N = compute_seconds(self.setting, self._step, state.splits)
        latency_NK = self._round_trips.seconds(slice(None)) + computing_N[:, None]
        latency_NK[:, np.isin(self.setting.network.edges, down_nodes)] = np.inf
        edges = new_edges(self.setting, clustering, state, own, latency_NK)
        state = replace(state, home_of_client={})
        left = max(1, self.config.rounds - state.round_index)
        splits = self._chooser.choose(edges, state.held_layers, state.splits, left)
        recut = {c for c, (old, new) in enumerate(zip(state.splits, splits, strict=True)) if old != new}
        calibrated = {c: made for c, made in state.calibrated.items() if c not in recut}
        clustered = replace(
            state, splits=splits, clustered_round=state.round_index, clustered=own, calibrated=calibrated
        )
        return _moved(clustered, edges)

    def _failed_over(self, state: ElsaState, down_nodes: Sequence[int]) -> ElsaState:
        """Return the state with the clients of edges that are down at the next best ones, and others home again.

        The next best edge is the one with the shortest training step among those that are up and, where
        ``world.edges.capacity`` is given, have a place; a client that finds none is parked until its own is up.
        """
        if not down_nodes and not state.home_of_client:
            return state
        stranded = {client: edge for client, edge in enumerate(state.edge_of_client) if edge in down_nodes}
        homes = stranded | {**state.home_of_client}
        edges, own = self.setting.network.edges, list(state.edge_of_client)
        for client in [client for client, home in homes.items() if home not in down_nodes]:
            own[client] = homes.pop(client)
        computing_N = compute_seconds(self.setting, self._step, state.splits)
        is_down_K = np.isin(edges, down_nodes)
        capacity = self.setting.config.world.edges.capacity
        places_K = np.full(len(edges), np.inf if capacity is None else capacity)
        places_K -= [own.count(edge) for edge in edges.tolist()]
        for client in sorted(homes):
            if own[client] != PARKED and own[client] not in down_nodes:
                continue
            (seconds_K,) = self._latencies(slice(client, client + 1), computing_N)
            open_K = np.where((places_K > 0) & ~is_down_K, seconds_K, np.inf)
            best = int(np.argmin(open_K))
            own[client] = int(edges[best]) if np.isfinite(open_K[best]) else PARKED
            places_K[best] -= own[client] != PARKED
        return replace(_moved(state, tuple(own)), home_of_client=homes)

    def _nearest_edges(self) -> tuple[int, ...]:
        """Return the node of each client's edge by latency alone, PARKED for a client without one.

        Raises:
            InputError: no client can reach any edge.
        """
        setting, capacity = self.setting, self.setting.config.world.edges.capacity
        if capacity is None and self.config.clustering is not None:
            capacity = default_capacity(setting.num_clients, len(setting.network.edges))
        computing_N = compute_seconds(setting, self._step, self._chooser.most_private())
        # Without capacity each client is assigned by itself, so a few at a time will do.
        num_clients, num_edges = self._round_trips.shape
        at_once = num_clients if capacity is not None else max(1, _PAIRS_AT_ONCE // num_edges)
        parts = [slice(first, first + at_once) for first in range(0, num_clients, at_once)]
        edges = np.concatenate([assign(self._latencies(part, computing_N), capacity) for part in parts])
        if (edges == PARKED).all():
            raise InputError("topology", "no client with a way to an edge and back", "at least one")
        nodes = np.where(edges == PARKED, PARKED, setting.network.edges[edges])
        return tuple(int(node) for node in nodes)

    def _latencies(self, clients: slice, computing_N: Floats) -> Floats:
        """Return the seconds of a step of some clients through each edge; infinite where that is too long."""
        latency_NK: Floats = self._round_trips.seconds(clients) + computing_N[clients, None]
        limit = self.config.clustering.max_latency_seconds if self.config.clustering is not None else None
        return np.where(latency_NK <= limit, latency_NK, np.inf) if limit else latency_NK


class _RoundPlan:
    """Plans one global round."""

    def __init__(self, protocol: Elsa, state: ElsaState, world_state: WorldState) -> None:
        self._protocol, self._state, self._world_state = protocol, state, world_state
        self._setting, self._config = protocol.setting, protocol.config
        self._builder = PlanBuilder(state.round_index)
        self._probes = None
        if self._setting.inquiry is not None:
            self._probes = ProbeSteps(self._builder, self._setting, state.probe_holders)

    def build(self) -> Plan:
        """Return the plan: all edges in one go, a group of rows for each."""
        setting, builder, work = self._setting, self._builder, self._world_state.work
        clients, parked = self._protocol.sample_members(self._state, self._world_state)
        edge_of_client = np.array(self._state.edge_of_client, np.int64)
        down = self._world_state.down_nodes
        # An edge without members takes part where it still waits for late work.
        is_active = np.isin(setting.network.edges, np.concatenate([edge_of_client[clients], work.edge]))
        is_active &= ~np.isin(setting.network.edges, down)
        edges_K = setting.network.edges[is_active].astype(np.int64)
        place = np.full(len(setting.network.node_kinds), -1, np.int64)
        place[edges_K] = np.arange(len(edges_K))
        members = self._members(clients, place[edge_of_client[clients]], edges_K)
        # Work that is late is gathered there too, so its clients are told of as well as the members.
        late = (work.edge >= 0) & ~np.isin(work.edge, down)
        told = np.stack(
            [np.append(members.groups, place[work.edge[late]]), np.append(members.clients, work.client[late])]
        )
        num_told_of_K = np.bincount(np.unique(told, axis=1)[0], minlength=len(edges_K))
        rows = self._edges(edges_K, members, num_told_of_K)
        builder.gather(setting.cloud, rows, edge_round=0, opener=-1, deadline_seconds=None, group=len(edges_K))
        keep_late = setting.config.world.round_policy.late == "keep"
        return builder.build(keep_late=keep_late, parked_clients=parked)

    def _members(self, clients: Ints, edge_W: Ints, edges_K: Ints) -> Members:
        """Return the sampled clients edge after edge; their work items are still to be added."""
        setting, state = self._setting, self._state
        order = np.argsort(edge_W, kind="stable")
        clients, edge_W = clients[order], edge_W[order]
        splits, split_of_client = distinct(state.splits)
        as_in_plans = np.dtype("i")  # so that the plan's chunks are views of these, not copies
        return Members(
            edges=edges_K[edge_W].astype(as_in_plans),
            groups=edge_W.astype(as_in_plans),
            clients=clients.astype(as_in_plans),
            nodes=setting.network.clients[clients].astype(as_in_plans),
            items=np.full(len(clients), -1, np.int64),
            splits=splits,
            split_W=split_of_client[clients],
            calibrates_W=self._protocol.calibrates(state, clients),
        )

    def _edges(self, edges_K: Ints, members: Members, num_told_of_K: Ints) -> Ints:
        """Plan the edges' parts of the round; returns the rows of what they tell the cloud."""
        setting, builder = self._setting, self._builder
        group = np.arange(len(edges_K))
        whole_bytes, whole_fp32 = adapter_bytes(setting, setting.layout.tensors)
        whole: dict[str, Any] = {"num_bytes": whole_bytes, "uncompressed_bytes": whole_fp32, "client": -1}
        before = self._frozen_to_edges(edges_K)
        opener_K = builder.transfers(
            source=setting.cloud, target=edges_K, label=Role.ADAPTER_DOWN, after=before, group=group, **whole
        )
        if self._probes is not None:
            builder.depend(opener_K, self._probes.tell_edges(edges_K, num_told_of_K))
        num_members_K = np.bincount(members.groups, minlength=len(edges_K)).tolist()
        for edge_round in range(self._config.edge_rounds):
            uploads = self._edge_round(members, edge_round, opener_K[members.groups])
            gather_K = builder.gathers(
                edges_K,
                edge_round=edge_round,
                opener=opener_K,
                deadline_seconds=setting.config.world.round_policy.deadline_seconds,
                quorum=[self._protocol.quorum(count, len(members.clients)) for count in num_members_K],
                group=group,
            )
            builder.depend(gather_K[members.groups], uploads)
            # All members may be gone before the edge has its model.
            builder.depend(gather_K, opener_K)
            opener_K = gather_K
        upload_K = builder.transfers(
            source=edges_K, target=setting.cloud, label=Role.ADAPTER_UP, after=opener_K, group=group, **whole
        )
        if self._probes is None:
            return upload_K
        return np.concatenate([upload_K, self._probes.tell_cloud(edges_K, num_told_of_K, opener_K)])

    def _edge_round(self, members: Members, edge_round: int, opener_W: Ints) -> Ints:
        """Plan the members' split training in one edge round; returns the rows that their gathers wait for."""
        setting, builder, clients = self._setting, self._builder, members.clients.astype(np.int64)
        work = local_work(
            setting, self._config, round_index=builder.round_index, edge_round=edge_round, clients=clients
        )
        items = builder.work_items(
            edge_round=edge_round,
            client=clients,
            edge=members.edges,
            num_examples=setting.num_examples[clients],
            num_steps=work.num_steps_W,
            front=members.of_split(lambda split: split.front),
            middle=members.of_split(lambda split: split.middle),
            back=members.of_split(lambda split: split.back),
            gather=builder.num_gathers + members.groups,
            calibrates=members.calibrates_W,
            group=members.groups,
        )
        members = replace(members, items=items)
        arrived = self._to_new_members(members) if edge_round == 0 else np.full(len(clients), -1, np.int64)
        ends: dict[str, Any] = {"client": members.clients, "work": items, "group": members.groups}
        down = builder.transfers(
            source=members.edges,
            target=members.nodes,
            label=Role.ADAPTER_DOWN,
            after=opener_W,
            **self._adapter_sizes(members, adapter_bytes),
            **ends,
        )
        builder.depend(down, arrived)
        texts = None
        if setting.chains.calibration_texts is not None:
            texts = calibration_texts(setting, round_index=builder.round_index, edge_round=edge_round, clients=clients)
        last = SplitSteps(builder, setting, work, members, texts).plan(down)
        if self._probes is not None:
            last = self._probes.answer(members, last)
        up = builder.transfers(
            source=members.nodes,
            target=members.edges,
            label=Role.ADAPTER_UP,
            after=last,
            **self._adapter_sizes(members, upload_bytes),
            **ends,
        )
        return self._probes.verify(members, up) if self._probes is not None else up

    def _adapter_sizes(
        self, members: Members, size: Callable[[Setting, tuple[AdapterTensor, ...]], tuple[int, int]]
    ) -> dict[str, Ints]:
        """Return the sizes of a message with the adapters that each member holds."""
        of_split = [
            size(self._setting, self._setting.layout.part(split, Part.FRONT, Part.BACK)) for split in members.splits
        ]
        num_bytes_W, fp32_W = np.array(of_split, np.int64)[members.split_W].T
        return {"num_bytes": num_bytes_W, "uncompressed_bytes": fp32_W}

    def _to_new_members(self, members: Members) -> Ints:
        """Plan what must reach clients before their model does: new frozen blocks, and which edge is theirs now.

        Returns:
            The rows that the model waits for, -1 where it waits for nothing.
        """
        state, setting = self._state, self._setting
        rows = send_new_blocks(self._builder, setting, state.loaded_clients, state.held_layers, members)
        untold = np.flatnonzero(np.isin(members.clients, sorted(state.untold)))
        if len(untold):
            size = table_num_bytes(1, _NOTICE_COLUMNS)
            rows[untold] = self._builder.transfers(
                client=members.clients[untold],
                source=setting.cloud,
                target=members.nodes[untold],
                label=Role.CONTROL,
                num_bytes=size,
                uncompressed_bytes=size - HEADER_BYTES,
                work=members.items[untold],
                after=rows[untold],
                group=members.groups[untold],
            )
        return rows

    def _frozen_to_edges(self, edges_K: Ints) -> Ints:
        """Plan ``weights_down`` to edges that lack their frozen blocks; returns the rows, -1 where nothing is sent."""
        setting, split = self._setting, self._state.splits[0]
        rows = np.full(len(edges_K), -1, np.int64)
        lacking = np.flatnonzero(~np.isin(edges_K, sorted(self._state.loaded_nodes)))
        if setting.config.task.preloaded or not len(lacking):
            return rows
        size = sum(frozen_num_bytes(setting.shape, split, part, FP32_BYTES) for part in edge_parts(setting))
        rows[lacking] = self._builder.transfers(
            source=setting.cloud,
            target=edges_K[lacking],
            label=Role.WEIGHTS_DOWN,
            num_bytes=HEADER_BYTES + size,
            uncompressed_bytes=size,
            client=-1,
            group=lacking,
        )
        return rows


def _moved(state: ElsaState, edge_of_client: tuple[int, ...]) -> ElsaState:
    """Return the state with clients at other edges; what an edge held of a client's calibrations stays behind."""
    edges = enumerate(zip(state.edge_of_client, edge_of_client, strict=True))
    moved = {client for client, (old, new) in edges if old != new}
    return replace(
        state,
        edge_of_client=edge_of_client,
        untold=state.untold | {client for client in moved if edge_of_client[client] != PARKED},
        calibrated={client: made for client, made in state.calibrated.items() if client not in moved},
    )


@cache
def _client_layers(split: Split) -> frozenset[int]:
    return frozenset((*split.layers(Part.FRONT), *split.layers(Part.BACK)))


def _is_arrived(timeline: Timeline, role: Role) -> npt.NDArray[np.bool_]:
    activities = timeline.activities
    is_role = (activities.kind == ActivityKind.TRANSFER) & (activities.label == role)
    arrived: npt.NDArray[np.bool_] = is_role & (timeline.outcome == Outcome.DONE)
    return arrived


def _calibrated(state: ElsaState, results: RoundResults, timeline: Timeline) -> dict[int, int]:
    """Return the global rounds of the calibrations that were made by work which has arrived now, by client.

    Who was given another edge or another cut while it was late has made its own in vain; who failed has made none.
    """
    work, arrived = timeline.work, {key for keys in timeline.arrivals for key in keys}
    arrived -= {failure.key for failure in results.failures}
    rounds = {}
    for row in np.flatnonzero(work.calibrates).tolist():
        key = work.key(row)
        holds = work.edge[row] == state.edge_of_client[key.client] and _split_of(work, row) == state.splits[key.client]
        if key in arrived and holds:
            rounds[key.client] = key.round_index
    return rounds


def _away_since(state: ElsaState, timeline: Timeline) -> dict[int, int]:
    """Return who is away at a round's end, with the round at whose end it was missed first."""
    if timeline.present is None:
        return {}
    away = np.flatnonzero(~timeline.present).tolist()
    return {client: state.away_since.get(client, state.round_index) for client in away}


def _held_after(state: ElsaState, timeline: Timeline) -> tuple[frozenset[int], ...]:
    """Return the frozen blocks on each client after a round: those of its work's split too, if it got any for it."""
    held = list(state.held_layers)
    work, of_work = timeline.work, timeline.activities.work
    for row in np.flatnonzero(_is_arrived(timeline, Role.WEIGHTS_DOWN) & (of_work >= 0)).tolist():
        item = int(of_work[row])
        held[int(work.client[item])] |= _client_layers(_split_of(work, item))
    return tuple(held)


def _split_of(work: WorkItems, row: int) -> Split:
    return Split(int(work.front[row]), int(work.middle[row]), int(work.back[row]))


def _reached(timeline: Timeline, role: Role) -> frozenset[int]:
    """Return the nodes that a message of no work item has reached."""
    rows = _is_arrived(timeline, role) & (timeline.activities.work < 0)
    return frozenset(int(node) for node in timeline.activities.target[rows])


def _told(setting: Setting, state: ElsaState, timeline: Timeline) -> frozenset[int]:
    """Return the clients that were told of their edge; word of an earlier one that comes late is no news."""
    rows = _is_arrived(timeline, Role.CONTROL) & (timeline.activities.source == setting.cloud)
    items = timeline.activities.work[rows & (timeline.activities.work >= 0)]
    edges = zip(timeline.work.client[items].tolist(), timeline.work.edge[items].tolist(), strict=True)
    return frozenset(client for client, edge in edges if state.edge_of_client[client] == edge)
