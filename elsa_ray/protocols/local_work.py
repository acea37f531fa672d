"""What clients do in one edge round, in numbers: steps, batch shapes, messages and FLOPs.

Shapes: W work items, T steps of the item that has most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elsa_ray.codecs.wire import adapter_num_bytes, calibration_num_bytes, hidden_num_bytes
from elsa_ray.config.protocol import ProtocolConfig
from elsa_ray.model.adapters import AdapterTensor
from elsa_ray.protocols.setting import Setting
from elsa_ray.tasks.batches import steps_of
from elsa_ray.training.batches import batch_sizes, calibration_examples, examples_of_steps
from elsa_ray.training.cohort import STEP_ROLES, CalibrationSizes
from elsa_ray.training.messages import MAKERS
from elsa_ray.world.plan import WorkKey
from elsa_ray.world.roles import Role

FP32_BYTES = 4


@dataclass(frozen=True)
class LocalWork:
    """The batches of W work items.

    Attributes:
        num_steps_W: optimiser steps.
        batch_WT: texts of each step's batch; 0 where an item has no such step.
        length_WT: tokens of the longest text.
    """

    num_steps_W: npt.NDArray[np.int64]
    batch_WT: npt.NDArray[np.int64]
    length_WT: npt.NDArray[np.int64]

    def step_bytes(self, setting: Setting, role: Role) -> npt.NDArray[np.int64]:
        """Return the size [W, T] of a step's message, header included."""
        chain = setting.chains.of_step(role)
        sizes: npt.NDArray[np.int64] = hidden_num_bytes(
            chain, role, self.batch_WT, self.length_WT, setting.shape.hidden_size
        )
        return sizes

    def uncompressed_bytes(self, setting: Setting) -> npt.NDArray[np.int64]:
        """Return the size [W, T] of a step's message in fp32 without a header."""
        return self.batch_WT * self.length_WT * setting.shape.hidden_size * FP32_BYTES


def local_work(
    setting: Setting, config: ProtocolConfig, *, round_index: int, edge_round: int, clients: npt.NDArray[np.int64]
) -> LocalWork:
    """Say which batches the clients' work items have.

    Where a client's texts are all of one length no batch needs to be drawn; else the executor draws the same ones.
    """
    amount = {"local_steps": config.local_steps, "local_epochs": config.local_epochs}
    num_examples_W = setting.num_examples[clients]
    num_steps_W = steps_of(num_examples_W, config.batch_size, **amount)
    step_T = np.arange(int(num_steps_W.max(initial=0)))
    full_W = np.minimum(config.batch_size, num_examples_W)
    batch_WT = np.where(step_T < num_steps_W[:, None], full_W[:, None], 0)
    if config.local_epochs is not None:
        # The last batch of a pass has what is left.
        steps_a_pass_W = num_steps_W // config.local_epochs
        ends_pass_WT = (batch_WT > 0) & (step_T % steps_a_pass_W[:, None] == steps_a_pass_W[:, None] - 1)
        batch_WT -= np.where(ends_pass_WT, (full_W * steps_a_pass_W - num_examples_W)[:, None], 0)
    task = setting.task
    lengths, longest_W = task.train.lengths, task.longest_C[clients]
    length_WT = np.where(batch_WT > 0, longest_W[:, None], 0)
    for row in np.flatnonzero(task.shortest_C[clients] != longest_W).tolist():
        key = WorkKey(round_index, edge_round, int(clients[row]))
        examples_TB = examples_of_steps(key, task.partition[key.client], config, setting.seed)
        _, length_WT[row, : num_steps_W[row]] = batch_sizes(examples_TB, lengths)
    return LocalWork(num_steps_W, batch_WT, length_WT)


def planned_step_bytes(setting: Setting, config: ProtocolConfig, key: WorkKey) -> npt.NDArray[np.int64]:
    """Return the sizes [T, 4] of the messages of one work item, in the order of STEP_ROLES."""
    clients = np.array([key.client], np.int64)
    work = local_work(setting, config, round_index=key.round_index, edge_round=key.edge_round, clients=clients)
    return np.stack([work.step_bytes(setting, role)[0] for role in STEP_ROLES], axis=1)


def adapter_bytes(setting: Setting, tensors: tuple[AdapterTensor, ...]) -> tuple[int, int]:
    """Return the size of an adapter message, header included, and the same numbers in fp32."""
    size = adapter_num_bytes(setting.chains.adapter, [tensor.shape for tensor in tensors])
    return size, FP32_BYTES * sum(tensor.num_elements for tensor in tensors)


def upload_bytes(setting: Setting, tensors: tuple[AdapterTensor, ...]) -> tuple[int, int]:
    """Return the size of a client's adapter_up, header included, and the same numbers in fp32."""
    size = adapter_num_bytes(setting.chains.of_upload, [tensor.shape for tensor in tensors])
    return size, FP32_BYTES * sum(tensor.num_elements for tensor in tensors)


@dataclass(frozen=True)
class CalibrationTexts:
    """The texts that the keys and bases of W work items are made of, in a forward pass of their own.

    Attributes:
        batch_W: texts.
        length_W: tokens of the longest.
        num_bytes_W: size of their states as the client sends them, header included; 0 where the edge has no need.
    """

    batch_W: npt.NDArray[np.int64]
    length_W: npt.NDArray[np.int64]
    num_bytes_W: npt.NDArray[np.int64]


def calibration_texts(
    setting: Setting, *, round_index: int, edge_round: int, clients: npt.NDArray[np.int64]
) -> CalibrationTexts:
    """Return what the clients' keys and bases are made of; ``setting.chains.calibration_texts`` must be given."""
    chains, task = setting.chains, setting.task
    assert chains.calibration_texts is not None
    batch_W = np.minimum(chains.calibration_texts, setting.num_examples[clients])
    length_W = task.longest_C[clients].copy()
    for row in np.flatnonzero(task.shortest_C[clients] != length_W).tolist():
        key = WorkKey(round_index, edge_round, int(clients[row]))
        examples = calibration_examples(key, task.partition[key.client], chains.calibration_texts, setting.seed)
        length_W[row] = task.train.lengths[examples].max()
    width = setting.shape.hidden_size
    states_W = hidden_num_bytes(chains.activation, Role.ACTIVATION_UP, batch_W, length_W, width)
    return CalibrationTexts(batch_W, length_W, states_W if chains.edge_calibrates else np.zeros_like(batch_W))


def planned_calibration_states(setting: Setting, key: WorkKey) -> int:
    """Return the size of the states that one work item sends up for calibrations; 0 where none are sent."""
    if setting.chains.calibration_texts is None:
        return 0
    clients = np.array([key.client], np.int64)
    texts = calibration_texts(setting, round_index=key.round_index, edge_round=key.edge_round, clients=clients)
    return int(texts.num_bytes_W[0])


def calibration_sizes(setting: Setting) -> tuple[CalibrationSizes, CalibrationSizes]:
    """Return role and size of each calibration that a client sends at the first cut, and its edge at the second."""
    chain, width = setting.chains.activation, setting.shape.hidden_size
    up, down = (
        tuple(calibration_num_bytes(chain, width, MAKERS[role])) for role in (Role.ACTIVATION_UP, Role.ACTIVATION_DOWN)
    )
    return up, down
