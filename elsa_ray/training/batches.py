"""The batches of a cohort: each member's own texts, padded to the longest text of the step.

Shapes: C members, B texts of the largest batch, S tokens of the longest text, N = C·B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from elsa_ray.config.protocol import ProtocolConfig
from elsa_ray.tasks.batches import ABSENT, batch_plan
from elsa_ray.tasks.seeds import numpy_generator
from elsa_ray.tasks.tokens import TokenizedTexts, pad_batch
from elsa_ray.world.plan import WorkKey


@dataclass(frozen=True)
class CohortBatch:
    """One step's input.

    Attributes:
        ids_NS: token ids.
        mask_NS: true at real tokens; a row without a text has one, so that attention stays defined.
        labels_CB: class labels, -100 where there is no text; None for causal_lm.
        lengths_CB: real tokens of each text, 0 where there is none.
        sizes: (B_c, S_c) of each member's own batch, its payload's size; (0, 0) for a member without one.
    """

    ids_NS: Tensor
    mask_NS: Tensor
    labels_CB: Tensor | None
    lengths_CB: Tensor
    sizes: tuple[tuple[int, int], ...]

    @property
    def active_C(self) -> Tensor:
        """Whether each member has a batch in this step."""
        return torch.tensor([size[0] > 0 for size in self.sizes])


def examples_of_steps(
    work: WorkKey, indices: npt.NDArray[np.int64], protocol: ProtocolConfig, seed: int
) -> npt.NDArray[np.int64]:
    """Return which examples of the data set [T, B] a work item takes in each step, ``ABSENT`` where none.

    Args:
        work: the work item; its rounds and client seed the draw.
        indices: the client's examples.
        protocol: batch size and amount of local work.
        seed: the run's.
    """
    plan = batch_plan(
        len(indices),
        protocol.batch_size,
        local_steps=protocol.local_steps,
        local_epochs=protocol.local_epochs,
        run_seed=seed,
        global_round=work.round_index,
        edge_round=work.edge_round,
        client=work.client,
    )
    return np.where(plan.example_of == ABSENT, ABSENT, indices[plan.example_of])


def calibration_examples(
    work: WorkKey, indices: npt.NDArray[np.int64], num_texts: int, seed: int
) -> npt.NDArray[np.int64]:
    """Return which examples of the data set a client's keys and bases are made of: so many, or all that it has.

    Args:
        work: the work item; its rounds and client seed the draw.
        indices: the client's examples.
        num_texts: at most.
        seed: the run's.
    """
    generator = numpy_generator(seed, "calibration", work.round_index, work.edge_round, work.client)
    return generator.permutation(indices)[:num_texts]


def batch_sizes(
    examples_TB: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return for each step the number of texts B_t and the tokens of its longest text S_t: the payload's size."""
    present_TB = examples_TB != ABSENT
    longest_T = np.where(present_TB, lengths[examples_TB], 0).max(axis=1)
    return present_TB.sum(axis=1), longest_T


def cohort_batch(
    tokens: TokenizedTexts, examples_of_members: Sequence[npt.NDArray[np.int64]], step: int, pad_id: int
) -> CohortBatch:
    """Return the input of one step of a cohort; a member that has no batch left is masked, never removed.

    Args:
        tokens: the data set.
        examples_of_members: for each member its examples [T, B] by step.
        step: which.
        pad_id: token id of padding.
    """
    rows = [member[step] if step < len(member) else np.zeros(0, np.int64) for member in examples_of_members]
    rows = [row[row != ABSENT] for row in rows]
    sizes = tuple((len(row), int(tokens.lengths[row].max()) if len(row) else 0) for row in rows)
    batch, length = max(size[0] for size in sizes), max(size[1] for size in sizes)
    index_CB = np.stack([np.pad(row, (0, batch - len(row)), constant_values=ABSENT) for row in rows])
    ids_NS, mask_NS = pad_batch(tokens, index_CB.ravel(), length, pad_id)
    lengths_CB = mask_NS.sum(axis=1).reshape(index_CB.shape)
    mask_NS[:, 0] = True
    labels_CB = None
    if tokens.labels is not None:
        labels_CB = torch.from_numpy(np.where(index_CB == ABSENT, -100, tokens.labels[index_CB]))
    return CohortBatch(
        torch.from_numpy(ids_NS), torch.from_numpy(mask_NS), labels_CB, torch.from_numpy(lengths_CB), sizes
    )
