"""An edge server's side of a round, as a plain object that an actor may carry."""

from __future__ import annotations

from elsa_ray.runtime.host import ModelHost
from elsa_ray.runtime.jobs import TableJob
from elsa_ray.training.cohort import VersionKey
from elsa_ray.training.tables import encode_table, fingerprint_rows, trust_rows
from elsa_ray.world.roles import Role


class EdgeServer(ModelHost):
    """An edge group: gets the global model for each of its edges from the cloud, and gives theirs back."""

    def receive_model(self, round_index: int, node: int, payload: bytes) -> None:
        """Take the global model for one of the group's edges."""
        context = self._recipe.trunk_context(round_index, node, Role.ADAPTER_DOWN)
        with self.watch.coding():
            model = self._recipe.unpack(Role.ADAPTER_DOWN, self._layout.tensors, payload, context)
        self._versions[VersionKey(round_index, 0, node)] = model

    def send_tables(self, round_index: int, job: TableJob) -> tuple[bytes | None, bytes | None]:
        """Return the fingerprints and the standings of an edge's members, as they go to the cloud; None for neither."""
        recipe, clients = self._recipe, job.clients
        fingerprints = standings = None
        if job.fingerprint_bytes:
            rows = fingerprint_rows(clients, self._fingerprints, self._fingerprint_columns)
            context = recipe.trunk_context(round_index, job.node, Role.FINGERPRINT)
            fingerprints = encode_table(Role.FINGERPRINT, rows, context)
            self._charge(Role.FINGERPRINT, fingerprints, job.fingerprint_bytes, job.node)
        if job.trust_bytes:
            rows = trust_rows(clients, {**self._trust, **self._judged})
            context = recipe.trunk_context(round_index, job.node, Role.CONTROL)
            standings = encode_table(Role.CONTROL, rows, context)
            self._charge(Role.CONTROL, standings, job.trust_bytes, job.node)
        return fingerprints, standings

    def send_model(self, round_index: int, node: int, planned: int) -> tuple[bytes, float]:
        """Return one edge's model as adapter_up payload, and the examples of all clients that it has heard from."""
        newest = max(version for version in self._versions if version[::2] == (round_index, node))
        context = self._recipe.trunk_context(round_index, node, Role.ADAPTER_UP)
        tensors, who = self._layout.tensors, f"edge node {node}"
        payload = self._encode(Role.ADAPTER_UP, tensors, newest, context, planned, who=who, meter=self._meter)
        return payload, sum(self._weights_of_node.get(node, {}).values())
