"""What the cloud and the edge servers have in common: they hold models, train middle blocks, and gather."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from elsa_ray.aggregation.weighted import is_finite, weighted_mean
from elsa_ray.clustering.trust import TrustEvent, TrustState
from elsa_ray.codecs.codec import CodecContext
from elsa_ray.codecs.wire import readdressed
from elsa_ray.model.adapters import Adapters, AdapterTensor
from elsa_ray.model.split import Part, Split
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.runtime.failure import WorkerError, naming
from elsa_ray.runtime.jobs import GatherJob
from elsa_ray.runtime.stopwatch import Stopwatch
from elsa_ray.training.client import EdgeRequest
from elsa_ray.training.cohort import ByteMeter, Cohort, Member, VersionKey
from elsa_ray.training.edge import EdgeCohort
from elsa_ray.training.evidence import (
    Evidence,
    decode_report,
    evidence_of,
    judge_members,
    silenced,
    stricter,
    update_of,
)
from elsa_ray.training.failure import naming_clients
from elsa_ray.training.memory import CutMemory
from elsa_ray.training.messages import Payloads
from elsa_ray.training.probing import ProbeAnswers, answer_probes
from elsa_ray.training.recipe import Recipe
from elsa_ray.world.plan import WorkKey
from elsa_ray.world.roles import Role

FingerprintRows = dict[int, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class _Training:
    """A cohort's training that is under way; what it has encoded counts once it is finished."""

    cohort: Cohort
    edge_cohort: EdgeCohort
    meter: ByteMeter


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
        watch: of the actor.
    """

    def __init__(self, model: TripartiteModel, recipe: Recipe, watch: Stopwatch | None = None) -> None:
        self.watch = watch if watch is not None else Stopwatch(alone=False)
        self._model, self._recipe = model, recipe
        self._layout = model.layout
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
        self._fingerprints: FingerprintRows = {}
        self._cohorts: dict[str, _Training] = {}
        self._results: dict[WorkKey, tuple[Adapters, int]] = {}
        self._weights_of_node: dict[int, dict[int, float]] = {}
        self._failed: list[WorkKey] = []
        self._meter = ByteMeter()

    def start_cohort(self, cohort: Cohort, memories: Sequence[CutMemory]) -> list[bytes | None]:
        """Return each member's adapter_down payload, None for one that has failed, and get ready for its requests.

        An earlier attempt at the same cohort is forgotten: what its clients may still ask is refused.

        Args:
            cohort: whose training begins.
            memories: what this end remembers of the members.

        Raises:
            ClientError: what a member shall get cannot be encoded.
        """
        meter, payloads = ByteMeter(), []
        middle = self._layout.part(cohort.split, Part.MIDDLE)
        held = self._layout.part(cohort.split, Part.FRONT, Part.BACK)
        for member in cohort.members:
            with naming("adapter_down", [member.key]), naming_clients("adapter_down", [member.key]):
                payloads.append(self._adapter_down(cohort, held, member, meter))
        copies = [{t.name: self._versions[member.version][t.name] for t in middle} for member in cohort.members]
        edge_cohort = EdgeCohort(self._model, cohort, self._recipe, copies, meter, memories, self.watch.coding)
        self._cohorts[cohort.name] = _Training(cohort, edge_cohort, meter)
        return payloads

    def answer(self, ticket: tuple[str, int], request: EdgeRequest) -> Payloads:
        """Run the middle blocks for a cohort; see EdgeCohort.

        Args:
            ticket: of the cohort.
            request: its payloads.

        Raises:
            ClientError: what a member has sent cannot be worked with.
            WorkerError: the attempt has been given up.
        """
        training = self._training(ticket)
        with naming(f"edge {request.call.value}, step {request.step}", training.cohort.active_keys):
            return training.edge_cohort.answer(request)

    def finish_cohort(
        self,
        ticket: tuple[str, int],
        uploads: Sequence[bytes | None],
        reports: Sequence[bytes | None],
        diverged: Collection[WorkKey],
    ) -> list[CutMemory]:
        """Take what the members send; with the middle copies their adapters are whole sets.

        Nothing of this training has counted before; if a member's part of it cannot be taken, nothing of it will.

        Args:
            ticket: of the cohort.
            uploads: adapter_up payloads; None of members that have failed.
            reports: fingerprint payloads of members that report; else None.
            diverged: members that say so themselves; they have no weight.

        Returns:
            What this end remembers of the members.

        Raises:
            ClientError: what a member has sent cannot be worked with.
            WorkerError: the attempt has been given up.
        """
        training = self._training(ticket)
        cohort, failed = training.cohort, []
        held = self._layout.part(cohort.split, Part.FRONT, Part.BACK)
        wholes: dict[WorkKey, Adapters] = {}
        for member, payload, middle in zip(cohort.members, uploads, training.edge_cohort.adapters(), strict=True):
            whole = self._versions[member.version]
            if payload is not None:
                with naming("adapter_up", [member.key]), naming_clients("adapter_up", [member.key]):
                    with self.watch.coding():
                        received = self._receive_upload(held, member, payload)
                    whole = {**middle, **received}
            wholes[member.key] = {tensor.name: whole[tensor.name] for tensor in self._layout.tensors}
            if payload is None or member.key in diverged or not is_finite(whole):
                failed.append(member.key)
        with naming("probing", cohort.active_keys):
            evidence = self._evidence_of(cohort, wholes, reports, failed)
        del self._cohorts[cohort.name]
        self._meter.merge(training.meter)
        self._failed += failed
        self._evidence.update(evidence)
        for member in cohort.members:
            self._results[member.key] = (wholes[member.key], 0 if member.key in failed else member.num_examples)
        remembers = self._recipe.chains.remembers
        return training.edge_cohort.memories() if remembers else [CutMemory()] * len(cohort.members)

    def _training(self, ticket: tuple[str, int]) -> _Training:
        name, attempt = ticket
        training = self._cohorts.get(name)
        if training is None or training.cohort.attempt != attempt:
            raise WorkerError(f"attempt {attempt} at cohort {name} was given up")
        return training

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
            weight_of_client: dict[int, float] = {}
            for key, own in zip(job.arrivals, weights, strict=True):  # late work may come beside its client's new work
                weight_of_client[key.client] = weight_of_client.get(key.client, 0.0) + own
            self._weights_of_node.setdefault(job.node, {}).update(weight_of_client)
        self._versions[before._replace(edge_round=job.edge_round + 1)] = model

    def report(self, kept_versions: Sequence[VersionKey]) -> HostReport:
        """Return what must outlive the round."""
        # Copies: what was decoded are views of one row of numbers, and each would be sent with all of it.
        kept = {
            version: {name: tensor.clone() for name, tensor in self._versions[version].items()}
            for version in kept_versions
        }
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
        return recipe.unpack_upload(held, received, payload, recipe.context(member.key, Role.ADAPTER_UP))

    def _evidence_of(
        self,
        cohort: Cohort,
        wholes: Mapping[WorkKey, Adapters],
        reports: Sequence[bytes | None],
        failed: Collection[WorkKey],
    ) -> dict[WorkKey, Evidence]:
        """Return what the members' models answer to the probes, by their own word or by a test of what they sent.

        Who was left out has sent nothing that could be judged.
        """
        recipe, model = self._recipe, self._model
        inquiry = recipe.inquiry
        evidence: dict[WorkKey, Evidence] = {}
        members = [member for member in cohort.members if member.key not in cohort.failed]
        if inquiry is None or not members:
            return evidence
        if inquiry.clients_report:
            for member, payload in zip(cohort.members, reports, strict=True):
                if payload is not None:
                    context = recipe.context(member.key, Role.FINGERPRINT)
                    with naming_clients("fingerprint", [member.key]):
                        own = decode_report(payload, inquiry, model.shape.hidden_size, context)
                    # A model that is not finite has no say, whatever its client reports.
                    evidence[member.key] = silenced(own) if member.key in failed else own
            return evidence
        active = [wholes[member.key] for member in members]
        for member, whole, answers in zip(members, active, self._answers(active), strict=True):
            received, layout = self._versions[member.version], self._layout
            update = update_of(received, whole, layout) if inquiry.trust is not None else None
            evidence[member.key] = evidence_of(answers, recipe, update)
        return evidence

    def _answers(self, wholes: Sequence[Adapters]) -> list[ProbeAnswers]:
        """Run the probes through whole models."""
        recipe, model = self._recipe, self._model
        assert recipe.inquiry is not None
        stacked = {name: torch.stack([whole[name] for whole in wholes]).to(model.device) for name in wholes[0]}
        return answer_probes(model, stacked, recipe.inquiry.probes, recipe.pad_id)

    def _judge(self, round_index: int, arrivals: Sequence[WorkKey]) -> list[float]:
        """Return the factor of each arrival's weight, and remember standings, decisions and fingerprints.

        Who was left out, because its computation failed, is not judged.
        """
        inquiry = self._recipe.inquiry
        in_order = sorted((key for key in arrivals if key in self._evidence), key=lambda key: (key.client, key))
        if inquiry is None or not in_order:
            return [1.0] * len(arrivals)
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
        return [factor_of_key.get(key, 1.0) for key in arrivals]

    def _adapter_down(
        self, cohort: Cohort, held: Sequence[AdapterTensor], member: Member, meter: ByteMeter
    ) -> bytes | None:
        if member.key in cohort.failed:
            return None
        role, chain, model = Role.ADAPTER_DOWN, self._recipe.chains.adapter, (member.version, cohort.split)
        context, planned = self._recipe.context(member.key, role), member.planned_adapter_bytes[0]
        who = str(member.key)
        if not chain.is_plain or model not in self._sent:
            payload = self._encode(role, held, member.version, context, planned, who=who, meter=meter)
            self._sent[model] = payload
            return payload
        # Many start from the same model: it is written once, and its header for each.
        with self.watch.coding():
            payload = readdressed(chain, role, self._sent[model], context)
        meter.charge(role, payload, planned, exact=True, who=who)
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
        meter: ByteMeter,
    ) -> bytes:
        """Encode tensors of a version, counted and held against the plan."""
        with self.watch.coding():
            payload = self._recipe.pack(role, tensors, self._versions[version], context)
        meter.charge(role, payload, planned, exact=self._recipe.chains.adapter.size_is_exact, who=who)
        return payload
