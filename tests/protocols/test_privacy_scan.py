"""Proof: neither texts, nor token ids, nor labels are in the bytes that clients send.

Every payload of a small run is caught where it is encoded, and everything that reaches an edge or the cloud where it
is handed over; the scanner is shown to find what it looks for when it is planted there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elsa_ray.codecs import wire
from elsa_ray.runtime import executor as executor_module
from elsa_ray.runtime.host import ModelHost
from elsa_ray.tasks.dataset import load_dataset
from elsa_ray.training import client, messages, recipe
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
    """

    payloads: list[tuple[Role, bytes]] = dataclasses.field(default_factory=list)
    handed_over: list[bytes] = dataclasses.field(default_factory=list)

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


def secrets(run: Run, texts: list[str]) -> dict[str, bytes]:
    """Return what must not be found, by a name: texts, token ids and the labels of each batch and client."""
    setting, found = run.prepared.setting, {}
    tokens = setting.task.train
    for index, text in enumerate(texts):
        found[f"text {index}"] = text.encode()
        inside = tokens.ids(index)[1:-1]  # without the special tokens around it
        for size in (2, 4, 8):
            found[f"token ids of text {index}, int{8 * size}"] = inside.astype(f"<i{size}").tobytes()
    for number, indices in enumerate(setting.task.partition):
        vectors = {f"client {number}": indices}
        for finished in run.rounds:
            key = WorkKey(finished.plan.round_index, 0, number)
            batches = examples_of_steps(key, indices, setting.config.protocol, setting.seed)
            vectors |= {f"{key} step {step}": row for step, row in enumerate(batches)}
        for name, rows in vectors.items():
            labels = tokens.labels[rows]
            assert len(set(labels.tolist())) > 2, "labels so alike could be found by chance"
            for size in (1, 4, 8):
                found[f"labels of {name}, int{8 * size}"] = labels.astype(f"<i{size}").tobytes()
    assert min(len(secret) for secret in found.values()) >= 12
    return found


def leaks(haystack: bytes, needles: dict[str, bytes]) -> list[str]:
    return [name for name, needle in needles.items() if needle in haystack]


@pytest.fixture
def caught(monkeypatch: pytest.MonkeyPatch) -> Caught:
    caught = Caught()

    def hidden(chain: Any, role: Role, *arguments: Any) -> bytes:
        payload = wire.encode_hidden(chain, role, *arguments)
        caught.payloads.append((role, payload))
        return payload

    def adapters(chain: Any, role: Role, *arguments: Any) -> bytes:
        payload = wire.encode_adapters(chain, role, *arguments)
        caught.payloads.append((role, payload))
        return payload

    answer, call_host = ModelHost.answer, executor_module._InlineWorkers.call_host

    def caught_answer(host: ModelHost, cohort_name: str, request: Any) -> Any:
        caught.handed_over.extend(contents([cohort_name, request]))
        return answer(host, cohort_name, request)

    async def caught_call(workers: Any, host: str, method: str, *arguments: Any) -> Any:
        caught.handed_over.extend(contents([host, method, *arguments]))
        return await call_host(workers, host, method, *arguments)

    monkeypatch.setattr(messages, "encode_hidden", hidden)
    monkeypatch.setattr(recipe, "encode_adapters", adapters)
    monkeypatch.setattr(ModelHost, "answer", caught_answer)
    monkeypatch.setattr(executor_module._InlineWorkers, "call_host", caught_call)
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
