"""What holds models and gathers: the cloud and the edge servers, as plain objects that an actor may carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elsa_ray.aggregation.weighted import is_finite, weighted_mean
from elsa_ray.codecs.codec import CodecContext
from elsa_ray.codecs.wire import encode_frozen
from elsa_ray.model.adapters import Adapters, AdapterTensor
from elsa_ray.model.split import Part
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.runtime.failure import naming
from elsa_ray.runtime.jobs import FrozenJob, GatherJob
from elsa_ray.training.client import EdgeRequest
from elsa_ray.training.cohort import ByteMeter, Cohort, VersionKey
from elsa_ray.training.edge import EdgeCohort
from elsa_ray.training.messages import Payloads
from elsa_ray.training.recipe import Recipe
from elsa_ray.world.plan import WorkKey
from elsa_ray.world.roles import Role


@dataclass(frozen=True)
class HostReport:
    """What a host gives back at the end of a round."""

    versions: dict[VersionKey, Adapters]
    failed: tuple[WorkKey, ...]
    meter: ByteMeter


class ModelHost:
    """Gives models to clients, trains the middle blocks, and aggregates what comes back.

    Everything that it holds belongs to one round and is made anew from values, so that any worker can be any host.

    Args:
        model: the frozen backbone.
        recipe: seed, optimiser, chains.
    """

    def __init__(self, model: TripartiteModel, recipe: Recipe) -> None:
        self._model, self._recipe = model, recipe
        self._layout = model.layout
        self.begin_round({})

    def begin_round(self, versions: Mapping[VersionKey, Adapters]) -> None:
        """Forget the last round; ``versions`` are older models that late work has started from."""
        self._versions: dict[VersionKey, Adapters] = dict(versions)
        self._cohorts: dict[str, tuple[Cohort, EdgeCohort]] = {}
        self._results: dict[WorkKey, tuple[Adapters, int]] = {}
        self._weights_of_node: dict[int, dict[int, int]] = {}
        self._failed: list[WorkKey] = []
        self._meter = ByteMeter()

    def start_cohort(self, cohort: Cohort) -> list[bytes]:
        """Return each member's adapter_down payload, and get ready for its requests."""
        payloads = []
        middle = self._layout.part(cohort.split, Part.MIDDLE)
        for member in cohort.members:
            with naming("adapter_down", [member.key]):
                payloads.append(self._adapter_down(cohort, member.version, member.key, member.planned_adapter_bytes[0]))
        copies = [{t.name: self._versions[member.version][t.name] for t in middle} for member in cohort.members]
        edge_cohort = EdgeCohort(self._model, cohort, self._recipe, copies, self._meter)
        self._cohorts[cohort.name] = (cohort, edge_cohort)
        return payloads

    def answer(self, cohort_name: str, request: EdgeRequest) -> Payloads:
        """Run the middle blocks for a cohort; see EdgeCohort."""
        cohort, edge_cohort = self._cohorts[cohort_name]
        with naming(f"edge {request.call.value}, step {request.step}", [member.key for member in cohort.members]):
            return edge_cohort.answer(request)

    def finish_cohort(self, cohort_name: str, payloads: Sequence[bytes]) -> None:
        """Take the members' adapter_up payloads; with the middle copies they are whole adapter sets."""
        cohort, edge_cohort = self._cohorts.pop(cohort_name)
        held = self._layout.part(cohort.split, Part.FRONT, Part.BACK)
        for member, payload, middle in zip(cohort.members, payloads, edge_cohort.adapters(), strict=True):
            with naming("adapter_up", [member.key]):
                context = self._recipe.context(member.key, Role.ADAPTER_UP)
                received = self._recipe.unpack(Role.ADAPTER_UP, held, payload, context)
            whole = {t.name: received[t.name] if t.name in received else middle[t.name] for t in self._layout.tensors}
            finite = is_finite(whole)
            if not finite:
                self._failed.append(member.key)
            self._results[member.key] = (whole, member.num_examples if finite else 0)

    def gather(self, round_index: int, job: GatherJob) -> None:
        """Aggregate what has arrived at a node, in client order, weighted by examples; nothing changes without any."""
        before = VersionKey(round_index, job.edge_round, job.node)
        results = [self._results.pop(key) for key in job.arrivals]
        weight = sum(result_weight for _, result_weight in results)
        model = self._versions[before]
        if weight > 0:
            model = weighted_mean([adapters for adapters, _ in results], [weight for _, weight in results])
            weight_of_client = self._weights_of_node.setdefault(job.node, {})
            weight_of_client.update({key.client: own for key, (_, own) in zip(job.arrivals, results, strict=True)})
        self._versions[before._replace(edge_round=job.edge_round + 1)] = model

    def report(self, kept_versions: Sequence[VersionKey]) -> HostReport:
        """Return what must outlive the round."""
        kept = {version: self._versions[version] for version in kept_versions}
        return HostReport(kept, tuple(sorted(self._failed)), self._meter)

    def _adapter_down(self, cohort: Cohort, version: VersionKey, key: WorkKey, planned: int) -> bytes:
        held = self._layout.part(cohort.split, Part.FRONT, Part.BACK)
        context = self._recipe.context(key, Role.ADAPTER_DOWN)
        return self._encode(Role.ADAPTER_DOWN, held, version, context, planned, who=str(key))

    def _encode(
        self,
        role: Role,
        tensors: Sequence[AdapterTensor],
        version: VersionKey,
        context: CodecContext,
        planned: int,
        *,
        who: str,
    ) -> bytes:
        """Encode tensors of a version, counted and held against the plan."""
        payload = self._recipe.pack(role, tensors, self._versions[version], context)
        self._meter.charge(role, payload, planned, exact=self._recipe.chains.adapter.size_is_exact, who=who)
        return payload


class EdgeServer(ModelHost):
    """An edge group: gets the global model for each of its edges from the cloud, and gives theirs back."""

    def receive_model(self, round_index: int, node: int, payload: bytes) -> None:
        """Take the global model for one of the group's edges."""
        context = self._recipe.trunk_context(round_index, node, Role.ADAPTER_DOWN)
        model = self._recipe.unpack(Role.ADAPTER_DOWN, self._layout.tensors, payload, context)
        self._versions[VersionKey(round_index, 0, node)] = model

    def send_model(self, round_index: int, node: int, planned: int) -> tuple[bytes, int]:
        """Return one edge's model as adapter_up payload, and the examples of all clients that it has heard from."""
        newest = max(version for version in self._versions if version[::2] == (round_index, node))
        context = self._recipe.trunk_context(round_index, node, Role.ADAPTER_UP)
        tensors, who = self._layout.tensors, f"edge node {node}"
        payload = self._encode(Role.ADAPTER_UP, tensors, newest, context, planned, who=who)
        return payload, sum(self._weights_of_node.get(node, {}).values())


class Cloud(ModelHost):
    """The cloud: holds the global model, aggregates edges (or, without a split, clients)."""

    def begin_global_round(self, round_index: int, node: int, model: Adapters) -> None:
        """Take the global model that the round starts from; ``node`` is the cloud's."""
        self._start = VersionKey(round_index, 0, node)
        self._versions[self._start] = model
        self._edge_models: dict[int, tuple[Adapters, int]] = {}

    def send_model(self, node: int, planned: int) -> bytes:
        """Return the global model as adapter_down payload for an edge node."""
        context = self._recipe.trunk_context(self._start.round_index, node, Role.ADAPTER_DOWN)
        tensors, who = self._layout.tensors, f"edge node {node}"
        return self._encode(Role.ADAPTER_DOWN, tensors, self._start, context, planned, who=who)

    def send_frozen(self, job: FrozenJob) -> None:
        """Encode frozen weights as they go to nodes that lack them.

        Every worker has the backbone already, so the payload is measured and not delivered.
        """
        context = self._recipe.trunk_context(self._start.round_index, self._start.node, Role.WEIGHTS_DOWN)
        payload = encode_frozen(self._model.frozen_tensors(job.split, job.parts), context)
        for _ in range(job.count):
            self._meter.charge(Role.WEIGHTS_DOWN, payload, job.num_bytes, exact=True, who="frozen weights")

    def receive_model(self, node: int, payload: bytes, weight: int) -> None:
        """Take an edge's model and the number of examples behind it."""
        context = self._recipe.trunk_context(self._start.round_index, node, Role.ADAPTER_UP)
        model = self._recipe.unpack(Role.ADAPTER_UP, self._layout.tensors, payload, context)
        self._edge_models[node] = (model, weight)

    def global_model(self) -> Adapters:
        """Return the round's result: the mean of the edges' models in node order, or what the cloud itself gathered."""
        models = [self._edge_models[node] for node in sorted(self._edge_models)]
        if any(weight for _, weight in models):
            return weighted_mean([model for model, _ in models], [weight for _, weight in models])
        newest = max(version for version in self._versions if version[::2] == self._start[::2])
        return self._versions[newest]
