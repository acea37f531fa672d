"""A plan: everything that one global round asks of the world, as columns.

Activities are transfers, computations and gathers, with dependencies between them. A work item is one client's training
in one edge round: the chain of activities from its model's download to its adapters' upload. A gather is the moment in
which an edge (or the cloud) closes a round: when all its members have arrived, or at its deadline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class ActivityKind(IntEnum):
    """What an activity does."""

    TRANSFER = 0
    COMPUTE = 1
    GATHER = 2


class Stage(IntEnum):
    """Which computation of a training step (or of a whole work item) a compute activity is."""

    NONE = 0
    FRONT_FORWARD = 1
    MIDDLE_FORWARD = 2
    BACK = 3
    MIDDLE_BACKWARD = 4
    FRONT_BACKWARD = 5
    LOCAL_TRAINING = 6
    PROBING = 7

    @property
    def label(self) -> str:
        """The name in records."""
        return self.name.lower()


class WorkKey(NamedTuple):
    """Names a work item for the whole run: where its model came from, and whose it is. Keys sort in client order."""

    round_index: int
    edge_round: int
    client: int


class Columns:
    """Rows as equally long arrays."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))  # type: ignore[arg-type]

    def take(self, rows: npt.ArrayLike) -> Self:
        """Return the given rows (indices or a mask)."""
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        return type(self)(**{name: getattr(self, name)[np.asarray(rows)] for name in names})

    def with_columns(self, **columns: Ints) -> Self:
        """Return the same rows with some columns replaced."""
        return type(self)(**{**vars(self), **columns})

    @classmethod
    def concatenate(cls, tables: Sequence[Self]) -> Self:
        """Return the tables' rows one after another."""
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        return cls(**{name: np.concatenate([getattr(table, name) for table in tables]) for name in names})

    @classmethod
    def empty(cls) -> Self:
        """Return a table without rows."""
        return cls(**{field.name: np.zeros(0, np.int64) for field in fields(cls)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Activities(Columns):
    """One row an activity.

    Attributes:
        kind: an ActivityKind.
        round_index: the global round that planned it.
        client: client index, -1 for none.
        source, target: node indices; the same for computations and gathers.
        label: a Role for transfers, a Stage for computations.
        step: local step, -1 outside of steps.
        num_bytes: of a transfer, header included.
        uncompressed_bytes: the same content in fp32 without a header.
        flops: of a computation.
        work: row of the work item, -1 for none.
    """

    kind: Ints
    round_index: Ints
    client: Ints
    source: Ints
    target: Ints
    label: Ints
    step: Ints
    num_bytes: Ints
    uncompressed_bytes: Ints
    flops: Ints
    work: Ints


@dataclass(frozen=True)
class WorkItems(Columns):
    """One row a work item.

    Attributes:
        round_index, edge_round, client: its WorkKey.
        edge: index of the edge node it trains through; -1 without one.
        num_examples: the client's, its weight in the aggregation.
        num_steps: optimiser steps.
        front, middle, back: the split.
        gather: row of the gather that waits for it; -1 for work carried over from an earlier round.
        calibrates: 1 where its codecs are calibrated anew, else 0.
    """

    round_index: Ints
    edge_round: Ints
    client: Ints
    edge: Ints
    num_examples: Ints
    num_steps: Ints
    front: Ints
    middle: Ints
    back: Ints
    gather: Ints
    calibrates: Ints

    def key(self, row: int) -> WorkKey:
        """Return the key of a row."""
        return WorkKey(int(self.round_index[row]), int(self.edge_round[row]), int(self.client[row]))


@dataclass(frozen=True)
class Gathers(Columns):
    """One row a gather.

    Attributes:
        activity: row of its activity.
        node: the edge or the cloud.
        edge_round: its ordinal at that node.
        opener: row of the activity whose end opens it; -1 is the start of the plan.
        deadline_seconds: counted from the opening; infinite without one.
        quorum: so many of its own members' arrivals close it; 0 for all.
    """

    activity: Ints
    node: Ints
    edge_round: Ints
    opener: Ints
    deadline_seconds: Floats
    quorum: Ints


@dataclass(frozen=True)
class Plan:
    """One global round.

    Attributes:
        round_index: which.
        activities: the rows; a row's number breaks ties in time.
        predecessors, successors: pairs of rows; the successor starts when all its predecessors have ended.
        work: the work items.
        gathers: the gathers; the last one ends the round.
        keep_late: work that misses its gather goes on and arrives later; else it is abandoned.
        parked_clients: clients left out because no edge is reachable.
    """

    round_index: int
    activities: Activities
    predecessors: Ints
    successors: Ints
    work: WorkItems
    gathers: Gathers
    keep_late: bool = False
    parked_clients: tuple[int, ...] = ()


class PlanBuilder:
    """Builds a plan column by column: each call adds the rows of many clients at once."""

    def __init__(self, round_index: int) -> None:
        self._round_index = round_index
        self._num_rows = 0
        self._chunks: list[Activities] = []
        self._predecessors: list[Ints] = []
        self._successors: list[Ints] = []
        self._work: list[WorkItems] = []
        self._num_work = 0
        self._gathers: list[tuple[int, int, int, int, float, int]] = []

    def work_items(self, **columns: npt.ArrayLike) -> Ints:
        """Add work items; returns their rows. Columns as in WorkItems without ``round_index``."""
        table = WorkItems(**_broadcast(round_index=self._round_index, **{"calibrates": 0, **columns}))
        rows = np.arange(self._num_work, self._num_work + len(table))
        self._work.append(table)
        self._num_work += len(table)
        return rows

    def transfers(self, *, after: npt.ArrayLike = (), **columns: npt.ArrayLike) -> Ints:
        """Add transfers; returns their rows.

        Args:
            after: rows that must end first, one for each new row (-1 for none), or a single one for all.
            columns: client, source, target, label (a Role), num_bytes, uncompressed_bytes; optionally step and work.
        """
        return self._add(ActivityKind.TRANSFER, after, {"flops": 0, **columns})

    def computations(self, *, node: npt.ArrayLike, after: npt.ArrayLike = (), **columns: npt.ArrayLike) -> Ints:
        """Add computations; returns their rows. Columns: client, label (a Stage), flops; optionally step, work."""
        at = {"source": node, "target": node, "num_bytes": 0, "uncompressed_bytes": 0}
        return self._add(ActivityKind.COMPUTE, after, {**at, **columns})

    def gather(
        self,
        node: int,
        waits_for: npt.ArrayLike,
        *,
        edge_round: int,
        opener: int,
        deadline_seconds: float | None,
        quorum: int = 0,
    ) -> int:
        """Add a gather at a node; returns its activity's row.

        Args:
            node: the edge or the cloud.
            waits_for: rows that must end first.
            edge_round: its ordinal at that node.
            opener: row whose end opens it; -1 is the start of the plan.
            deadline_seconds: counted from the opening; None for none.
            quorum: so many of its own members' arrivals close it; 0 for all.
        """
        at = {"client": -1, "source": node, "target": node, "label": 0, "num_bytes": 0, "uncompressed_bytes": 0}
        (row,) = self._add(ActivityKind.GATHER, (), {**at, "flops": 0})
        self.depend(row, waits_for)
        deadline = np.inf if deadline_seconds is None else deadline_seconds
        self._gathers.append((int(row), node, edge_round, opener, deadline, quorum))
        return int(row)

    @property
    def round_index(self) -> int:
        """The global round that is planned."""
        return self._round_index

    @property
    def num_gathers(self) -> int:
        """Gathers so far."""
        return len(self._gathers)

    def depend(self, successor: npt.ArrayLike, predecessor: npt.ArrayLike) -> None:
        """Let rows wait for others; the arguments are broadcast, and -1 is no predecessor."""
        predecessors, successors = np.broadcast_arrays(np.asarray(predecessor, np.int64), np.asarray(successor))
        real = predecessors.ravel() >= 0
        self._predecessors.append(predecessors.ravel()[real])
        self._successors.append(successors.ravel()[real].astype(np.int64))

    def build(self, *, keep_late: bool, parked_clients: Sequence[int] = ()) -> Plan:
        """Return the plan."""
        activity, node, edge_round, opener, deadlines, quorum = zip(*self._gathers, strict=True)
        gathers = Gathers(
            activity=np.array(activity, np.int64),
            node=np.array(node, np.int64),
            edge_round=np.array(edge_round, np.int64),
            opener=np.array(opener, np.int64),
            deadline_seconds=np.array(deadlines, np.float64),
            quorum=np.array(quorum, np.int64),
        )
        return Plan(
            round_index=self._round_index,
            activities=Activities.concatenate(self._chunks),
            predecessors=np.concatenate([*self._predecessors, np.zeros(0, np.int64)]),
            successors=np.concatenate([*self._successors, np.zeros(0, np.int64)]),
            work=WorkItems.concatenate(self._work) if self._work else WorkItems.empty(),
            gathers=gathers,
            keep_late=keep_late,
            parked_clients=tuple(parked_clients),
        )

    def _add(self, kind: ActivityKind, after: npt.ArrayLike, columns: dict[str, Any]) -> Ints:
        defaults = {"step": -1, "work": -1}
        table = Activities(**_broadcast(kind=int(kind), round_index=self._round_index, **{**defaults, **columns}))
        rows = np.arange(self._num_rows, self._num_rows + len(table))
        self._chunks.append(table)
        self._num_rows += len(table)
        if np.size(after):
            self.depend(rows, after)
        return rows


def _broadcast(**columns: npt.ArrayLike) -> dict[str, Ints]:
    names = list(columns)
    arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(columns[name], np.int64)) for name in names))
    return {name: array.copy() for name, array in zip(names, arrays, strict=True)}
