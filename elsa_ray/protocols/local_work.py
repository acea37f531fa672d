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
from elsa_ray.training.batches import batch_sizes, examples_of_steps
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
    """Draw the batches of the clients' work items; the executor draws the same ones again."""
    if setting.task.planned_length is not None:
        return _work_of_one_length(setting.num_examples[clients], config, setting.task.planned_length)
    batches, longest = [], []
    for client in clients.tolist():
        key = WorkKey(round_index, edge_round, client)
        examples_TB = examples_of_steps(key, setting.task.partition[client], config, setting.seed)
        batch_T, length_T = batch_sizes(examples_TB, setting.task.train.lengths)
        batches.append(batch_T)
        longest.append(length_T)
    num_steps_W = np.array([len(batch_T) for batch_T in batches], np.int64)
    most = int(num_steps_W.max(initial=0))
    return LocalWork(num_steps_W, _padded(batches, most), _padded(longest, most))


def _work_of_one_length(counts_W: npt.NDArray[np.int64], config: ProtocolConfig, length: int) -> LocalWork:
    """Return the batches of clients with so many examples, all of one length: which ones are drawn does not matter."""
    num_steps_W = steps_of(
        counts_W, config.batch_size, local_steps=config.local_steps, local_epochs=config.local_epochs
    )
    batch_W1 = np.minimum(config.batch_size, counts_W)[:, None]
    step_T = np.arange(int(num_steps_W.max(initial=0)))
    batch_WT = np.where(step_T < num_steps_W[:, None], batch_W1, 0)
    if config.local_epochs is not None:
        steps_an_epoch_W1 = (num_steps_W // config.local_epochs)[:, None]
        ends_epoch_WT = (batch_WT > 0) & ((step_T + 1) % steps_an_epoch_W1 == 0)
        batch_WT -= np.where(ends_epoch_WT, steps_an_epoch_W1 * batch_W1 - counts_W[:, None], 0)
    return LocalWork(num_steps_W, batch_WT, np.where(batch_WT > 0, length, 0))


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


def calibration_sizes(setting: Setting) -> tuple[CalibrationSizes, CalibrationSizes]:
    """Return role and size of each calibration that a client sends at the first cut, and its edge at the second."""
    chain, width = setting.chains.activation, setting.shape.hidden_size
    up, down = (
        tuple(calibration_num_bytes(chain, width, MAKERS[role])) for role in (Role.ACTIVATION_UP, Role.ACTIVATION_DOWN)
    )
    return up, down


def _padded(rows: list[npt.NDArray[np.int64]], width: int) -> npt.NDArray[np.int64]:
    padded = [np.pad(row, (0, width - len(row))) for row in rows]
    return np.stack(padded).astype(np.int64) if padded else np.zeros((0, width), np.int64)
