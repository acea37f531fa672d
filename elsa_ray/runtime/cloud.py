"""The cloud's side of a round, as a plain object that an actor may carry."""

from __future__ import annotations

import numpy as np

from elsa_ray.aggregation.weighted import weighted_mean
from elsa_ray.codecs.wire import encode_frozen
from elsa_ray.model.adapters import Adapters
from elsa_ray.runtime.host import ModelHost
from elsa_ray.runtime.jobs import FrozenJob, NoticeJob, TableJob
from elsa_ray.training.cohort import VersionKey
from elsa_ray.training.probing import encode_probe_set
from elsa_ray.training.tables import TRUST_COLUMNS, decode_table, encode_table, known_rows, trust_rows
from elsa_ray.world.roles import Role


class Cloud(ModelHost):
    """The cloud: holds the global model, aggregates edges (or, without a split, clients)."""

    def begin_global_round(self, round_index: int, node: int, model: Adapters) -> None:
        """Take the global model that the round starts from; ``node`` is the cloud's."""
        self._start = VersionKey(round_index, 0, node)
        self._versions[self._start] = model
        self._edge_models: dict[int, tuple[Adapters, float]] = {}

    def send_model(self, node: int, planned: int) -> bytes:
        """Return the global model as adapter_down payload for an edge node."""
        context = self._recipe.trunk_context(self._start.round_index, node, Role.ADAPTER_DOWN)
        tensors, who = self._layout.tensors, f"edge node {node}"
        return self._encode(Role.ADAPTER_DOWN, tensors, self._start, context, planned, who=who, meter=self._meter)

    def send_frozen(self, job: FrozenJob) -> None:
        """Encode frozen weights as they go to nodes that lack them.

        Every worker has the backbone already, so the payload is measured and not delivered.
        """
        context = self._recipe.trunk_context(self._start.round_index, self._start.node, Role.WEIGHTS_DOWN)
        if job.num_blocks is None:
            tensors = self._model.frozen_tensors(job.split, job.parts)
        else:
            tensors = self._model.frozen_blocks(range(job.num_blocks))
        with self.watch.coding():
            payload = encode_frozen(tensors, context)
        for _ in range(job.count):
            self._meter.charge(Role.WEIGHTS_DOWN, payload, job.num_bytes, exact=True, who="frozen weights")

    def send_probes(self, round_index: int, num_bytes: int, count: int) -> None:
        """Encode the probe set as it goes to ``count`` nodes; every worker has it already."""
        recipe = self._recipe
        assert recipe.inquiry is not None
        context = recipe.trunk_context(round_index, self._start.node, Role.PROBE)
        payload = encode_probe_set(recipe.inquiry.probes, recipe.frame, context)
        for _ in range(count):
            self._meter.charge(Role.PROBE, payload, num_bytes, exact=True, who="probe set")

    def send_notice(self, round_index: int, job: NoticeJob) -> None:
        """Encode what an edge is told of its members' standings, or a client of its new edge.

        Both live in the state that every worker is given, so the payload is measured and not delivered.
        """
        rows = trust_rows(job.clients, self._trust)
        if job.new_edge is not None:
            rows = np.array([[client, job.new_edge] for client in job.clients], np.float32)
        context = self._recipe.trunk_context(round_index, job.node, Role.CONTROL)
        self._charge(Role.CONTROL, encode_table(Role.CONTROL, rows, context), job.num_bytes, job.node)

    def receive_tables(
        self, round_index: int, job: TableJob, fingerprints: bytes | None, standings: bytes | None
    ) -> None:
        """Take an edge's tables; standings are kept with the clients, so those are only checked."""
        recipe = self._recipe
        if fingerprints is not None:
            context = recipe.trunk_context(round_index, job.node, Role.FINGERPRINT)
            shape = (len(job.clients), self._fingerprint_columns)
            rows = decode_table(Role.FINGERPRINT, fingerprints, shape, context)
            self._fingerprints.update(known_rows(job.clients, rows))
        if standings is not None:
            context = recipe.trunk_context(round_index, job.node, Role.CONTROL)
            decode_table(Role.CONTROL, standings, (len(job.clients), TRUST_COLUMNS), context)

    def receive_model(self, node: int, payload: bytes, weight: float) -> None:
        """Take an edge's model and the number of examples behind it."""
        context = self._recipe.trunk_context(self._start.round_index, node, Role.ADAPTER_UP)
        with self.watch.coding():
            model = self._recipe.unpack(Role.ADAPTER_UP, self._layout.tensors, payload, context)
        self._edge_models[node] = (model, weight)

    def global_model(self) -> Adapters:
        """Return the round's result: the mean of the edges' models in node order, or what the cloud itself gathered."""
        models = [self._edge_models[node] for node in sorted(self._edge_models)]
        if any(weight for _, weight in models):
            return weighted_mean([model for model, _ in models], [weight for _, weight in models])
        newest = max(version for version in self._versions if version[::2] == self._start[::2])
        return self._versions[newest]
