"""What holds models and gathers: the cloud and the edge servers, as plain objects that an actor may carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from elsa_ray.aggregation.weighted import distance, is_finite, weighted_mean
from elsa_ray.clustering.trust import TrustEvent, TrustState
from elsa_ray.codecs.codec import CodecContext
from elsa_ray.codecs.wire import encode_frozen, readdressed
from elsa_ray.model.adapters import Adapters, AdapterTensor
from elsa_ray.model.split import Part, Split
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.protocols.protocol import Stage, StageSeconds
from elsa_ray.runtime.failure import naming
from elsa_ray.runtime.jobs import FrozenJob, GatherJob, NoticeJob, TableJob
from elsa_ray.runtime.stopwatch import Stopwatch
from elsa_ray.training.client import EdgeRequest
from elsa_ray.training.cohort import ByteMeter, Cohort, Member, VersionKey
from elsa_ray.training.edge import EdgeCohort
from elsa_ray.training.evidence import Evidence, decode_report, evidence_of, judge_members, silenced, stricter
from elsa_ray.training.memory import CutMemory
from elsa_ray.training.messages import Payloads
from elsa_ray.training.probing import ProbeAnswers, answer_probes, encode_probe_set
from elsa_ray.training.recipe import Recipe
from elsa_ray.training.tables import (
    TRUST_COLUMNS,
    decode_table,
    encode_table,
    fingerprint_rows,
    known_rows,
    trust_rows,
)
from elsa_ray.world.plan import WorkKey
from elsa_ray.world.roles import Role

FingerprintRows = dict[int, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class HostReport:
    """What a host gives back at the end of a round."""

    versions: dict[VersionKey, Adapters]
    failed: tuple[WorkKey, ...]
    meter: ByteMeter
    trust: dict[int, TrustState]
    decisions: tuple[TrustEvent, ...]
    fingerprints: FingerprintRows


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
        self._watch = Stopwatch()
        self.begin_round({}, {})

    def begin_round(self, versions: Mapping[VersionKey, Adapters], trust: Mapping[int, TrustState]) -> None:
        """Forget the last round.

        Args:
            versions: older models that late work has started from.
            trust: standings of clients.
        """
        self._versions: dict[VersionKey, Adapters] = dict(versions)
        self._sent: dict[tuple[VersionKey, Split], bytes] = {}
        self._trust: dict[int, TrustState] = dict(trust)
        self._judged: dict[int, TrustState] = {}
        self._decisions: list[TrustEvent] = []
        self._evidence: dict[WorkKey, Evidence] = {}
        self._answers_before: dict[VersionKey, ProbeAnswers] = {}
        self._fingerprints: FingerprintRows = {}
        self._cohorts: dict[str, tuple[Cohort, EdgeCohort]] = {}
        self._results: dict[WorkKey, tuple[Adapters, int]] = {}
        self._weights_of_node: dict[int, dict[int, float]] = {}
        self._failed: list[WorkKey] = []
        self._meter = ByteMeter()

    def start_cohort(self, cohort: Cohort, memories: Sequence[CutMemory]) -> list[bytes]:
        """Return each member's adapter_down payload, and get ready for its requests.

        Args:
            cohort: whose training begins.
            memories: what this end remembers of the members.
        """
        payloads = []
        middle = self._layout.part(cohort.split, Part.MIDDLE)
        held = self._layout.part(cohort.split, Part.FRONT, Part.BACK)
        for member in cohort.members:
            with naming("adapter_down", [member.key]):
                payloads.append(self._adapter_down(cohort, held, member))
        copies = [{t.name: self._versions[member.version][t.name] for t in middle} for member in cohort.members]
        edge_cohort = EdgeCohort(self._model, cohort, self._recipe, copies, self._meter, memories)
        self._cohorts[cohort.name] = (cohort, edge_cohort)
        return payloads

    def timed(self, method: str, *arguments: Any) -> Any:
        """Call one of this host's methods and count the time."""
        with self._watch.spend(Stage.COMPUTE):
            return getattr(self, method)(*arguments)

    def take_seconds(self) -> StageSeconds:
        """Return the seconds of the round's calls, by stage; once a round."""
        self._watch.move_to_codec(self._meter.codec_seconds)
        self._meter.codec_seconds = 0.0
        return self._watch.take()

    def answer(self, cohort_name: str, request: EdgeRequest) -> Payloads:
        """Run the middle blocks for a cohort; see EdgeCohort."""
        cohort, edge_cohort = self._cohorts[cohort_name]
        with naming(f"edge {request.call.value}, step {request.step}", [member.key for member in cohort.members]):
            return edge_cohort.answer(request)

    def finish_cohort(
        self, cohort_name: str, uploads: Sequence[bytes], reports: Sequence[bytes | None]
    ) -> list[CutMemory]:
        """Take what the members send; with the middle copies their adapters are whole sets.

        Returns:
            What this end remembers of the members.
        """
        cohort, edge_cohort = self._cohorts.pop(cohort_name)
        wholes = []
        held = self._layout.part(cohort.split, Part.FRONT, Part.BACK)
        for member, payload, middle in zip(cohort.members, uploads, edge_cohort.adapters(), strict=True):
            with naming("adapter_up", [member.key]):
                whole = {**middle, **self._receive_upload(held, member, payload)}
            wholes.append({tensor.name: whole[tensor.name] for tensor in self._layout.tensors})
            finite = is_finite(whole)
            if not finite:
                self._failed.append(member.key)
            self._results[member.key] = (wholes[-1], member.num_examples if finite else 0)
        with naming("probing", [member.key for member in cohort.members]):
            self._take_evidence(cohort, wholes, reports)
        remembers = self._recipe.chains.remembers
        return edge_cohort.memories() if remembers else [CutMemory()] * len(cohort.members)

    def gather(self, round_index: int, job: GatherJob) -> None:
        """Aggregate what has arrived at a node, in client order, weighted by examples, staleness and trust.

        Nothing changes without any weight.
        """
        before = VersionKey(round_index, job.edge_round, job.node)
        results = [self._results.pop(key) for key in job.arrivals]
        factors = self._judge(round_index, job.arrivals)
        weights = [
            own * discount * factor for (_, own), discount, factor in zip(results, job.discounts, factors, strict=True)
        ]
        model = self._versions[before]
        if sum(weights) > 0:
            model = weighted_mean([adapters for adapters, _ in results], weights)
            weight_of_client = self._weights_of_node.setdefault(job.node, {})
            weight_of_client.update({key.client: own for key, own in zip(job.arrivals, weights, strict=True)})
        self._versions[before._replace(edge_round=job.edge_round + 1)] = model

    def report(self, kept_versions: Sequence[VersionKey]) -> HostReport:
        """Return what must outlive the round."""
        kept = {version: self._versions[version] for version in kept_versions}
        failed, decisions = tuple(sorted(self._failed)), tuple(self._decisions)
        return HostReport(kept, failed, self._meter, self._judged, decisions, self._fingerprints)

    def _receive_upload(self, held: Sequence[AdapterTensor], member: Member, payload: bytes) -> Adapters:
        """Decode a member's adapters; of an update they are what the member had received, plus it."""
        recipe = self._recipe
        received: Adapters = {}
        if recipe.chains.update is not None:
            context = recipe.context(member.key, Role.ADAPTER_DOWN)
            sent = recipe.pack(Role.ADAPTER_DOWN, held, self._versions[member.version], context)
            received = recipe.unpack(Role.ADAPTER_DOWN, held, sent, context)
        with self._meter.coding():
            return recipe.unpack_upload(held, received, payload, recipe.context(member.key, Role.ADAPTER_UP))

    def _take_evidence(self, cohort: Cohort, wholes: Sequence[Adapters], reports: Sequence[bytes | None]) -> None:
        """Keep what the members' models answer to the probes, by their own word or by a test of what they sent."""
        recipe, model = self._recipe, self._model
        inquiry = recipe.inquiry
        if inquiry is None:
            return
        if inquiry.clients_report:
            for member, payload in zip(cohort.members, reports, strict=True):
                assert payload is not None
                context = recipe.context(member.key, Role.FINGERPRINT)
                own = decode_report(payload, inquiry, model.shape.hidden_size, context)
                # A model that is not finite has no say, whatever its client reports.
                self._evidence[member.key] = silenced(own) if member.key in self._failed else own
            return
        compares_changes = inquiry.trust is not None and inquiry.trust.compares_changes
        for member, whole, answers in zip(cohort.members, wholes, self._answers(wholes), strict=True):
            before = self._answers_of_version(member.version) if compares_changes else None
            update_norm = distance(whole, self._versions[member.version])
            self._evidence[member.key] = evidence_of(answers, recipe, before, update_norm)

    def _answers(self, wholes: Sequence[Adapters]) -> list[ProbeAnswers]:
        """Run the probes through whole models."""
        recipe, model = self._recipe, self._model
        assert recipe.inquiry is not None
        stacked = {name: torch.stack([whole[name] for whole in wholes]).to(model.device) for name in wholes[0]}
        return answer_probes(model, stacked, recipe.inquiry.probes, recipe.pad_id)

    def _answers_of_version(self, version: VersionKey) -> ProbeAnswers:
        """Return what a model that clients start from answers to the probes; each is asked once a round."""
        if version not in self._answers_before:
            (self._answers_before[version],) = self._answers([self._versions[version]])
        return self._answers_before[version]

    def _judge(self, round_index: int, arrivals: Sequence[WorkKey]) -> list[float]:
        """Return the factor of each arrival's weight, and remember standings, decisions and fingerprints."""
        inquiry = self._recipe.inquiry
        if inquiry is None or not arrivals:
            return [1.0] * len(arrivals)
        in_order = sorted(arrivals, key=lambda key: (key.client, key))
        evidence = [self._evidence.pop(key) for key in in_order]
        for key, own in zip(in_order, evidence, strict=True):
            if own.fingerprint_P is not None:
                self._fingerprints[key.client] = own.fingerprint_P
        if inquiry.trust is None:
            return [1.0] * len(arrivals)
        clients, standings = [key.client for key in in_order], {**self._trust, **self._judged}
        judgement = judge_members(clients, evidence, standings, round_index, inquiry)
        judged: dict[int, TrustState] = {}
        for client, state in zip(clients, judgement.states, strict=True):
            judged[client] = stricter(judged.get(client, state), state)
        self._judged.update(judged)
        self._decisions += dict.fromkeys(judgement.events)
        factor_of_key = dict(zip(in_order, judgement.weights_N.tolist(), strict=True))
        return [factor_of_key[key] for key in arrivals]

    def _adapter_down(self, cohort: Cohort, held: Sequence[AdapterTensor], member: Member) -> bytes:
        version, key, planned = member.version, member.key, member.planned_adapter_bytes[0]
        role, chain, context = (
            Role.ADAPTER_DOWN,
            self._recipe.chains.adapter,
            self._recipe.context(key, Role.ADAPTER_DOWN),
        )
        before = self._sent.get((version, cohort.split))
        if before is None or not chain.is_plain:
            payload = self._encode(role, held, version, context, planned, who=str(key))
            self._sent[version, cohort.split] = payload
            return payload
        # Many start from the same model: it is written once, and its header for each.
        with self._meter.coding():
            payload = readdressed(chain, role, before, context)
        self._meter.charge(role, payload, planned, exact=True, who=str(key))
        return payload

    @property
    def _fingerprint_columns(self) -> int:
        inquiry = self._recipe.inquiry
        return inquiry.fingerprint_columns(self._model.shape.hidden_size) if inquiry is not None else 0

    def _charge(self, role: Role, payload: bytes, planned: int, node: int) -> None:
        self._meter.charge(role, payload, planned, exact=True, who=f"node {node}")

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
        with self._meter.coding():
            payload = self._recipe.pack(role, tensors, self._versions[version], context)
        self._meter.charge(role, payload, planned, exact=self._recipe.chains.adapter.size_is_exact, who=who)
        return payload


class EdgeServer(ModelHost):
    """An edge group: gets the global model for each of its edges from the cloud, and gives theirs back."""

    def receive_model(self, round_index: int, node: int, payload: bytes) -> None:
        """Take the global model for one of the group's edges."""
        context = self._recipe.trunk_context(round_index, node, Role.ADAPTER_DOWN)
        with self._meter.coding():
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
        payload = self._encode(Role.ADAPTER_UP, tensors, newest, context, planned, who=who)
        return payload, sum(self._weights_of_node.get(node, {}).values())


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
        return self._encode(Role.ADAPTER_DOWN, tensors, self._start, context, planned, who=who)

    def send_frozen(self, job: FrozenJob) -> None:
        """Encode frozen weights as they go to nodes that lack them.

        Every worker has the backbone already, so the payload is measured and not delivered.
        """
        context = self._recipe.trunk_context(self._start.round_index, self._start.node, Role.WEIGHTS_DOWN)
        if job.num_blocks is None:
            tensors = self._model.frozen_tensors(job.split, job.parts)
        else:
            tensors = self._model.frozen_blocks(range(job.num_blocks))
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
        with self._meter.coding():
            model = self._recipe.unpack(Role.ADAPTER_UP, self._layout.tensors, payload, context)
        self._edge_models[node] = (model, weight)

    def global_model(self) -> Adapters:
        """Return the round's result: the mean of the edges' models in node order, or what the cloud itself gathered."""
        models = [self._edge_models[node] for node in sorted(self._edge_models)]
        if any(weight for _, weight in models):
            return weighted_mean([model for model, _ in models], [weight for _, weight in models])
        newest = max(version for version in self._versions if version[::2] == self._start[::2])
        return self._versions[newest]
