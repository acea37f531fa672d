"""Whom the attacks are tried on: clients of the last round, what is seen of their texts, and what the texts were.

Shapes: T tokens, N texts, B texts of a step, S tokens, D hidden width.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from elsa_ray.config.errors import InputError
from elsa_ray.privacy.capture import Observed, Truth
from elsa_ray.privacy.rows import TokenRows, joined, real_rows
from elsa_ray.world.plan import WorkKey


@dataclass(frozen=True)
class Victim:
    """A client in its last work item. Each of its texts counts once: where it is sent for the first time.

    Attributes:
        work: the work item.
        states, gradients: seen rows; their token ids are the truth, for scoring.
        label_N: of the texts, the truth; None for causal_lm.
    """

    work: WorkKey
    states: TokenRows
    gradients: TokenRows
    label_N: Tensor | None

    @property
    def num_texts(self) -> int:
        """N."""
        return int(self.states.text_T.max()) + 1


def victims_of(observed: Observed, truth: Truth) -> list[Victim]:
    """Return the clients of the last round; of several splits, those with the commonest, of equals the smallest.

    Raises:
        InputError: nothing was sent through a cut.
    """
    cut = sorted(work for work, seen in observed.works.items() if seen.split.is_cut)
    if not cut:
        raise InputError("protocol", "no payload at a cut", "a protocol that splits the model, such as elsa")
    last = {work.client: work for work in cut if work.round_index == cut[-1].round_index}
    splits = Counter(observed.works[work].split for work in last.values())
    commonest = min(splits, key=lambda split: (-splits[split], split))
    chosen = sorted(work for work in last.values() if observed.works[work].split == commonest)
    return [_victim(observed, truth, work) for work in chosen]


def earlier_work(observed: Observed, work: WorkKey) -> WorkKey | None:
    """Return the same client's last work item of an earlier round; None if there is none with the same split."""
    split = observed.works[work].split
    candidates = [
        other
        for other, seen in observed.works.items()
        if other.client == work.client and other.round_index < work.round_index and seen.split == split
    ]
    return max(candidates, default=None)


def _victim(observed: Observed, truth: Truth, work: WorkKey) -> Victim:
    place_of_example: dict[int, int] = {}
    states, gradients, labels = list[TokenRows](), list[TokenRows](), list[Tensor]()
    for seen, true in zip(observed.works[work].steps, truth.steps[work], strict=True):
        new = [position for position, example in enumerate(true.examples_B.tolist()) if example not in place_of_example]
        if not new:
            continue
        for example in true.examples_B[new].tolist():
            place_of_example[example] = len(place_of_example)
        text_B = torch.tensor([place_of_example[example] for example in true.examples_B[new].tolist()])
        ids_BS, lengths_B = true.ids_BS[new], seen.lengths_B[new]
        states.append(real_rows(seen.states_BSD[new], ids_BS, lengths_B, text_B))
        gradients.append(real_rows(seen.gradients_BSD[new], ids_BS, lengths_B, text_B))
        labels += [] if true.labels_B is None else [true.labels_B[new]]
    return Victim(work, joined(states), joined(gradients), torch.cat(labels) if labels else None)
