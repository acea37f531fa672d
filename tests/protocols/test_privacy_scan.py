"""Proof: neither texts, nor token ids, nor labels are in the bytes that clients send, nor keys where they must not be.

Every payload of a small run is caught where it is encoded, and everything that reaches an edge or the cloud where it
is handed over; the scanner is shown to find what it looks for when it is planted there. With all parts of ELSA public
probes are sent as well: they are found, and nothing else is.

Shapes: T tokens, D hidden width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elsa_ray.codecs import wire
from elsa_ray.model.split import Part, cut
from elsa_ray.prepare import load_backbone, make_tripartite
from elsa_ray.runtime import executor as executor_module
from elsa_ray.runtime import host as host_module
from elsa_ray.runtime.host import ModelHost
from elsa_ray.runtime.jobs import CLOUD
from elsa_ray.tasks.dataset import load_dataset
from elsa_ray.training import client, evidence, messages, probing, recipe, tables
from elsa_ray.training.batches import examples_of_steps
from elsa_ray.training.cohort import STEP_ROLES
from elsa_ray.world.plan import ActivityKind, WorkKey
from elsa_ray.world.roles import Role

from ..helpers import Run, run_config, run_inline, write_texts

BATCH_SIZE, LABELS = 24, 5


@dataclasses.dataclass
class Caught:
    """What a run let out.

    Attributes:
        payloads: of every role, as encoded.
        handed_over: other bytes, numbers and texts that reached an edge server or the cloud.
        to_cloud: those of them that reached the cloud.
        in_the_clear: roles of what was encoded by no codec at all.
        by_a_codec: roles of what was encoded by some.
        first_rows_TD: the clients' first hidden states of the run, before they are encoded.
    """

    payloads: list[tuple[Role, bytes]] = dataclasses.field(default_factory=list)
    handed_over: list[bytes] = dataclasses.field(default_factory=list)
    to_cloud: list[bytes] = dataclasses.field(default_factory=list)
    in_the_clear: set[Role] = dataclasses.field(default_factory=set)
    by_a_codec: set[Role] = dataclasses.field(default_factory=set)
    first_rows_TD: list[torch.Tensor] = dataclasses.field(default_factory=list)

    def everything(self) -> bytes:
        return b"\xff\xfe\xfd".join([*(payload for _, payload in self.payloads), *self.handed_over])


def contents(value: Any) -> Iterator[bytes]:
    """Yield all bytes, texts and numbers inside of an object; whole numbers as int64."""
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, str):
        yield value.encode()
    elif isinstance(value, np.ndarray | torch.Tensor):
        array = np.asarray(value)
        yield array.tobytes()
        if array.dtype.kind in "iub":
            yield array.astype("<i8").tobytes()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from contents(key)
            yield from contents(item)
    elif isinstance(value, list | tuple):
        if value and all(isinstance(item, int) for item in value):
            yield np.array(value, "<i8").tobytes()
        for item in value:
            yield from contents(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from contents(getattr(value, field.name))


def texts_and_ids(run: Run, texts: list[str], indices: Sequence[int]) -> dict[str, bytes]:
    """Return some training texts, and their token ids in all usual formats, by a name."""
    tokens, found = run.prepared.setting.task.train, {}
    for index in indices:
        found[f"text {index}"] = texts[index].encode()
        inside = tokens.ids(index)[1:-1]  # without the special tokens around it
        for dtype in ("<i2", "<i4", "<i8", "<f4"):
            found[f"token ids of text {index}, {dtype}"] = inside.astype(dtype).tobytes()
    return found


def secrets(run: Run, texts: list[str]) -> dict[str, bytes]:
    """Return what must not be found, by a name: texts, token ids and the labels of each batch and client."""
    setting = run.prepared.setting
    tokens = setting.task.train
    found = texts_and_ids(run, texts, np.concatenate(setting.task.partition).tolist())
    for number, indices in enumerate(setting.task.partition):
        vectors = {f"client {number}": indices}
        for finished in run.rounds:
            key = WorkKey(finished.plan.round_index, 0, number)
            batches = examples_of_steps(key, indices, setting.config.protocol, setting.seed)
            vectors |= {f"{key} step {step}": row for step, row in enumerate(batches)}
        for name, rows in vectors.items():
            labels = tokens.labels[rows]
            assert len(set(labels.tolist())) > 2, "labels so alike could be found by chance"
            for dtype in ("<i1", "<i4", "<i8", "<f4"):
                found[f"labels of {name}, {dtype}"] = labels.astype(dtype).tobytes()
    assert min(len(secret) for secret in found.values()) >= 12
    return found


def leaks(haystack: bytes, needles: dict[str, bytes]) -> list[str]:
    return [name for name, needle in needles.items() if needle in haystack]


@pytest.fixture
def caught(monkeypatch: pytest.MonkeyPatch) -> Caught:
    caught = Caught()

    def hidden(chain: Any, role: Role, hidden_BSD: torch.Tensor, context: Any, *arguments: Any) -> bytes:
        payload = wire.encode_hidden(chain, role, hidden_BSD, context, *arguments)
        caught.payloads.append((role, payload))
        (caught.by_a_codec if chain.stages else caught.in_the_clear).add(role)
        if role is Role.ACTIVATION_UP and context.round_index == context.step == 0:
            caught.first_rows_TD.append(hidden_BSD.flatten(0, 1))
        return payload

    def adapters(chain: Any, role: Role, *arguments: Any) -> bytes:
        payload = wire.encode_adapters(chain, role, *arguments)
        caught.payloads.append((role, payload))
        (caught.by_a_codec if chain.stages else caught.in_the_clear).add(role)
        return payload

    def readdressed(chain: Any, role: Role, *arguments: Any) -> bytes:
        payload = wire.readdressed(chain, role, *arguments)
        caught.payloads.append((role, payload))
        return payload

    def calibrations(*arguments: Any) -> list[bytes]:
        payloads = wire.encode_calibrations(*arguments)
        caught.payloads.extend((Role(wire._HEADER.unpack_from(payload)[2]), payload) for payload in payloads)
        return payloads

    answer, call_host = ModelHost.answer, executor_module.InlineWorkers.call_host

    def caught_answer(host: ModelHost, cohort_name: str, request: Any) -> Any:
        caught.handed_over.extend(contents([cohort_name, request]))
        return answer(host, cohort_name, request)

    async def caught_call(workers: Any, host: str, method: str, *arguments: Any) -> Any:
        inside = list(contents([host, method, *arguments]))
        caught.handed_over.extend(inside)
        if host == CLOUD:
            caught.to_cloud.extend(inside)
        return await call_host(workers, host, method, *arguments)

    monkeypatch.setattr(messages, "encode_hidden", hidden)
    monkeypatch.setattr(host_module, "readdressed", readdressed)
    monkeypatch.setattr(messages, "encode_calibrations", calibrations)
    for module in (recipe, probing, tables, evidence):
        monkeypatch.setattr(module, "encode_adapters", adapters)
    monkeypatch.setattr(ModelHost, "answer", caught_answer)
    monkeypatch.setattr(executor_module.InlineWorkers, "call_host", caught_call)
    return caught


def private_run(folder: Path, codec: list[dict[str, str]]) -> tuple[Run, list[str]]:
    dataset = write_texts(folder, num_train=120, labels=LABELS, words=9)
    config = run_config(
        dataset,
        task={"max_length": 32},
        topology={"clients": 4, "edges": 2},
        protocol={"batch_size": BATCH_SIZE, "codec": codec, "wire_dtype": "fp32"},
        numerics={"precision": "fp32"},
    )
    read = load_dataset(config.task.dataset, kind="classification", seed=config.seed, base_folder=folder)
    return run_inline(config), read.train.texts


@pytest.mark.parametrize("codec", [[], [{"kind": "int8"}]], ids=["plain", "int8"])
def test_nothing_private_is_in_any_payload(caught: Caught, tmp_path: Path, codec: list[dict[str, str]]) -> None:
    run, texts = private_run(tmp_path, codec)
    assert {role for role, _ in caught.payloads} == {*STEP_ROLES, Role.ADAPTER_UP, Role.ADAPTER_DOWN}
    encoded = sum(sum(finished.results.encoded_bytes.values()) for finished in run.rounds)
    assert sum(len(payload) for _, payload in caught.payloads) == encoded
    needles = secrets(run, texts)
    everything = caught.everything()
    assert leaks(everything, needles) == []

    # The same scan finds each of them once it is there.
    middle = len(everything) // 2
    for name, needle in list(needles.items())[::7]:
        assert leaks(everything[:middle] + needle + everything[middle:], {name: needle}) == [name]


def test_the_scan_finds_a_client_that_sends_its_token_ids_or_labels(
    caught: Caught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positive control: messages that smuggle the batch along are found by the very same scan."""
    real = client.CohortMessenger.encode

    def smuggle(self: Any, role: Role, step: int, *arguments: Any) -> Any:
        if role is Role.ACTIVATION_UP:
            tokens, examples = smuggled["tokens"], smuggled["examples"][self._cohort.members[0].key]
            caught.handed_over.extend(contents([tokens.ids(int(examples[step][0])), tokens.labels[examples[step]]]))
        return real(self, role, step, *arguments)

    run, texts = private_run(tmp_path, [])
    setting = run.prepared.setting
    smuggled: dict[str, Any] = {"tokens": setting.task.train, "examples": {}}
    for round_index in range(len(run.rounds)):
        for number, indices in enumerate(setting.task.partition):
            key = WorkKey(round_index, 0, number)
            smuggled["examples"][key] = examples_of_steps(key, indices, setting.config.protocol, setting.seed)
    monkeypatch.setattr(client.CohortMessenger, "encode", smuggle)
    assert leaks(caught.everything(), secrets(run, texts)) == []
    again, _ = private_run(tmp_path, [])
    found = leaks(caught.everything(), secrets(again, texts))
    assert any("token ids" in name for name in found)
    assert any("labels" in name for name in found)


def test_the_cloud_gets_and_gives_adapters_only(tmp_path: Path) -> None:
    run, _ = private_run(tmp_path, [])
    setting = run.prepared.setting
    kinds = np.array(setting.network.node_kinds)
    for finished in run.rounds:
        activities = finished.timeline.activities
        is_transfer = activities.kind == ActivityKind.TRANSFER
        at_cloud = is_transfer & ((activities.source == setting.cloud) | (activities.target == setting.cloud))
        assert {Role(label) for label in activities.label[at_cloud]} == {Role.ADAPTER_UP, Role.ADAPTER_DOWN}
        assert set(kinds[activities.source[at_cloud]]) | set(kinds[activities.target[at_cloud]]) == {"edge", "cloud"}


KEY = {"kind": "ssop", "rank": 8, "refresh_rounds": 2}
PROBES = 12


def whole_elsa(folder: Path, evidence: str, invert: str) -> tuple[Run, list[str]]:
    dataset = write_texts(folder, num_train=120 + PROBES, labels=LABELS, words=9)
    codec = [{**KEY, "invert": invert}, {"kind": "subspace", "rank": 16, "refresh_rounds": 2}, {"kind": "int8"}]
    config = run_config(
        dataset,
        task={"max_length": 32, "probes": {"kind": "dataset", "count": PROBES}},
        topology={"clients": 4, "edges": 2},
        protocol={
            "batch_size": BATCH_SIZE,
            "wire_dtype": "fp32",
            "codec": codec,
            "clustering": {"dimensions": 4, "every": 1},
            "trust": {"evidence": evidence},
        },
        numerics={"precision": "fp32"},
    )
    read = load_dataset(config.task.dataset, kind="classification", seed=config.seed, base_folder=folder)
    return run_inline(config), read.train.texts


@pytest.mark.parametrize(("evidence", "invert"), [("verified", "edge"), ("reported", "client")])
class TestWholeElsa:
    def test_probes_are_found_and_nothing_private_is(
        self, caught: Caught, tmp_path: Path, evidence: str, invert: str
    ) -> None:
        run, texts = whole_elsa(tmp_path, evidence, invert)
        roles = {
            *STEP_ROLES,
            Role.ADAPTER_UP,
            Role.ADAPTER_DOWN,
            Role.BASIS,
            Role.PROBE,
            Role.FINGERPRINT,
            Role.CONTROL,
        }
        assert {role for role, _ in caught.payloads} == roles | ({Role.KEY} if invert == "edge" else set())
        encoded = sum(num for done in run.rounds for role, num in done.results.encoded_bytes.items() if role != "probe")
        assert sum(len(payload) for role, payload in caught.payloads if role is not Role.PROBE) == encoded
        everything = caught.everything()
        assert leaks(everything, secrets(run, texts)) == []
        task = run.prepared.setting.task
        public = np.setdiff1d(np.arange(len(texts)), np.concatenate(task.partition)).tolist()
        assert len(public) == PROBES
        found = leaks(everything, texts_and_ids(run, texts, public))
        assert found == [f"token ids of text {index}, <f4" for index in public], "the same scan finds what is sent"

    def test_no_probe_passes_under_a_key(self, caught: Caught, tmp_path: Path, evidence: str, invert: str) -> None:
        """Who knows texts and their hidden states under a key has the key (methods.md 1.10)."""
        run, _ = whole_elsa(tmp_path, evidence, invert)
        assert {Role.PROBE, Role.FINGERPRINT, Role.CONTROL} <= caught.in_the_clear - caught.by_a_codec
        assert set(STEP_ROLES) <= caught.by_a_codec - caught.in_the_clear
        setting, probes = run.prepared.setting, run.prepared.setting.task.probes
        assert probes is not None
        tokens, rows_TD = setting.task.train, torch.cat(caught.first_rows_TD)
        backbone, adapters = load_backbone(run.prepared)
        model, split = make_tripartite(run.prepared, backbone), cut(setting.shape.num_layers, 1, 1)
        held = {t.name: adapters[t.name][None] for t in setting.layout.part(split, Part.FRONT)}

        def distance_T(ids: np.ndarray) -> torch.Tensor:
            """How near each of a text's first hidden states comes to any that was encoded."""
            ids_1S = torch.from_numpy(ids.astype(np.int64))[None]
            own_TD = model.front(ids_1S, torch.ones_like(ids_1S, dtype=torch.bool), held, split)[0]
            return torch.cdist(own_TD, rows_TD, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values

        key = WorkKey(0, 0, 0)
        own = examples_of_steps(key, setting.task.partition[0], setting.config.protocol, setting.seed)[0]
        assert max(float(distance_T(tokens.ids(index)).max()) for index in own.tolist() if index >= 0) < 1e-4
        assert min(float(distance_T(probes.ids(index)).min()) for index in range(PROBES)) > 1e-2

    def test_keys_and_bases_do_not_reach_the_cloud(
        self, caught: Caught, tmp_path: Path, evidence: str, invert: str
    ) -> None:
        run, _ = whole_elsa(tmp_path, evidence, invert)
        to_cloud, everything = b"".join(caught.to_cloud), caught.everything()
        for memories in run.rounds[-1].state.memories.values():
            key, basis = memories.client.calibration.first[:2]
            for name, tensor in (("basis", basis[0]), ("rotation", key[1])):
                numbers = tensor.numpy().tobytes()
                assert numbers not in to_cloud
                assert (numbers in everything) == (name == "basis" or invert == "edge"), "elsewhere just those that may"
        setting = run.prepared.setting
        for finished in run.rounds:
            activities = finished.timeline.activities
            is_up = (activities.kind == ActivityKind.TRANSFER) & (activities.target == setting.cloud)
            is_down = (activities.kind == ActivityKind.TRANSFER) & (activities.source == setting.cloud)
            assert {Role(label) for label in activities.label[is_up]} == {
                Role.ADAPTER_UP,
                Role.FINGERPRINT,
                Role.CONTROL,
            }
            assert {Role(label) for label in activities.label[is_down]} <= {
                Role.ADAPTER_DOWN,
                Role.CONTROL,
                Role.PROBE,
            }
