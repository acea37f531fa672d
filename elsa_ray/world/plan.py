"""A plan: everything that one global round asks of the world, as columns.

Activities are transfers, computations and gathers, with dependencies between them. A work item is one client's training
in one edge round: the chain of activities from its model's download to its adapters' upload. A gather is the moment in
which an edge (or the cloud) closes a round: when all its members have arrived, or at its deadline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

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

    types: ClassVar[dict[str, type[np.number[Any]]]] = {}
    """Of the columns that are not int64: less where less will do, for of millions of rows that is half the memory."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))  # type: ignore[arg-type]

    def take(self, rows: npt.ArrayLike) -> Self:
        """Return the given rows (indices or a mask)."""
        rows = np.asarray(rows)
        return type(self)(**{name: getattr(self, name)[rows] for name in self.names()})

    def with_columns(self, **columns: Ints) -> Self:
        """Return the same rows with some columns replaced."""
        cast = {name: np.asarray(column, getattr(self, name).dtype) for name, column in columns.items()}
        return type(self)(**{**vars(self), **cast})

    @classmethod
    def concatenate(cls, tables: Sequence[Self]) -> Self:
        """Return the tables' rows one after another."""
        return cls(**{name: np.concatenate([getattr(table, name) for table in tables]) for name in cls.names()})

    @classmethod
    def empty(cls) -> Self:
        """Return a table without rows."""
        return cls(**{name: np.zeros(0, cls.type_of(name)) for name in cls.names()})

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the columns' names."""
        return tuple(field.name for field in fields(cls))  # type: ignore[arg-type]

    @classmethod
    def type_of(cls, name: str) -> type[np.number[Any]]:
        """Return the type of a column's numbers."""
        return cls.types.get(name, np.int64)


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

    types = {
        **dict.fromkeys(("kind", "label"), np.int8),
        **dict.fromkeys(("round_index", "client", "source", "target", "step", "work"), np.int32),
    }

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

    types = {"deadline_seconds": np.float64}

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
    """Builds a plan column by column: each call adds the rows of many clients at once.

    Every call takes a ``group``, one for all rows or one for each. In the plan the rows of a group stand together, in
    the order of the calls, and groups in their order; so all edges can be planned in one call, and yet each edge's rows
    follow one another. The numbers that the calls return are the builder's own: they serve as ``after`` and the like.
    """

    def __init__(self, round_index: int) -> None:
        self._round_index = round_index
        self._activities = _Chunks(Activities)
        self._work = _Chunks(WorkItems)
        self._gathers = _Chunks(Gathers)
        self._predecessors: list[Ints] = []
        self._successors: list[Ints] = []

    def work_items(self, *, group: npt.ArrayLike = 0, **columns: npt.ArrayLike) -> Ints:
        """Add work items; returns their rows. Columns as in WorkItems without ``round_index``."""
        return self._work.add(group, {"round_index": self._round_index, "calibrates": 0, **columns})

    def transfers(self, *, after: npt.ArrayLike = (), group: npt.ArrayLike = 0, **columns: npt.ArrayLike) -> Ints:
        """Add transfers; returns their rows.

        Args:
            after: rows that must end first, one for each new row (-1 for none), or a single one for all.
            group: of the rows.
            columns: client, source, target, label (a Role), num_bytes, uncompressed_bytes; optionally step and work.
        """
        return self._add(ActivityKind.TRANSFER, after, group, {"flops": 0, **columns})

    def computations(
        self, *, node: npt.ArrayLike, after: npt.ArrayLike = (), group: npt.ArrayLike = 0, **columns: npt.ArrayLike
    ) -> Ints:
        """Add computations; returns their rows. Columns: client, label (a Stage), flops; optionally step, work."""
        at = {"source": node, "target": node, "num_bytes": 0, "uncompressed_bytes": 0}
        return self._add(ActivityKind.COMPUTE, after, group, {**at, **columns})

    def gathers(
        self,
        node: npt.ArrayLike,
        *,
        edge_round: int,
        opener: npt.ArrayLike,
        deadline_seconds: float | None,
        quorum: npt.ArrayLike = 0,
        group: npt.ArrayLike = 0,
    ) -> Ints:
        """Add a gather at each of some nodes; returns their activities' rows. ``depend`` says what they wait for.

        Args:
            node: the edges, or the cloud.
            edge_round: its ordinal at that node.
            opener: rows whose end opens them; -1 is the start of the plan.
            deadline_seconds: counted from the opening; None for none.
            quorum: so many of its own members' arrivals close one; 0 for all.
            group: of the rows.
        """
        at = {"client": -1, "source": node, "target": node, "label": 0, "num_bytes": 0, "uncompressed_bytes": 0}
        rows = self._add(ActivityKind.GATHER, (), group, {**at, "flops": 0})
        deadline = np.inf if deadline_seconds is None else deadline_seconds
        columns = {"node": node, "edge_round": edge_round, "opener": opener, "deadline_seconds": deadline}
        self._gathers.add(group, {"activity": rows, "quorum": quorum, **columns})
        return rows

    def gather(
        self,
        node: int,
        waits_for: npt.ArrayLike,
        *,
        edge_round: int,
        opener: int,
        deadline_seconds: float | None,
        quorum: int = 0,
        group: int = 0,
    ) -> int:
        """Add one gather that waits for some rows; returns its activity's row. See ``gathers``."""
        (row,) = self.gathers(
            node, edge_round=edge_round, opener=opener, deadline_seconds=deadline_seconds, quorum=quorum, group=group
        ).tolist()
        self.depend(row, waits_for)
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
        predecessors, successors = np.broadcast_arrays(np.asarray(predecessor, np.int32), np.asarray(successor))
        real = predecessors.ravel() >= 0
        self._predecessors.append(predecessors.ravel()[real])
        self._successors.append(successors.ravel()[real].astype(np.int32))

    def build(self, *, keep_late: bool, parked_clients: Sequence[int] = ()) -> Plan:
        """Return the plan, its rows in the order of their groups."""
        activities, row_of = self._activities.sorted_table()
        work, work_row_of = self._work.sorted_table()
        gathers, gather_of = self._gathers.sorted_table()
        none = np.zeros(0, np.int32)
        return Plan(
            round_index=self._round_index,
            activities=activities.with_columns(work=_renumbered(activities.work, work_row_of)),
            predecessors=_renumbered(np.concatenate([*self._predecessors, none]), row_of),
            successors=_renumbered(np.concatenate([*self._successors, none]), row_of),
            work=work.with_columns(gather=_renumbered(work.gather, gather_of)),
            gathers=gathers.with_columns(
                activity=_renumbered(gathers.activity, row_of), opener=_renumbered(gathers.opener, row_of)
            ),
            keep_late=keep_late,
            parked_clients=tuple(parked_clients),
        )

    def _add(self, kind: ActivityKind, after: npt.ArrayLike, group: npt.ArrayLike, columns: dict[str, Any]) -> Ints:
        defaults = {"kind": int(kind), "round_index": self._round_index, "step": -1, "work": -1}
        rows = self._activities.add(group, {**defaults, **columns})
        if np.size(after):
            self.depend(rows, after)
        return rows


Table = TypeVar("Table", bound=Columns)


class _Chunks(Generic[Table]):
    """Rows of a table as they are added, and the group of each."""

    def __init__(self, table: type[Table]) -> None:
        self._table = table
        self._chunks: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in table.names()}
        self._groups: list[Ints] = []
        self._num_rows = 0

    def __len__(self) -> int:
        return self._num_rows

    def add(self, group: npt.ArrayLike, columns: dict[str, npt.ArrayLike]) -> Ints:
        """Add rows, the columns broadcast to one length; returns their numbers."""
        arrays = {
            name: np.atleast_1d(np.asarray(column, self._table.type_of(name))) for name, column in columns.items()
        }
        (count,) = np.broadcast_shapes(*(array.shape for array in arrays.values()))
        for name, array in arrays.items():
            # A value for all rows takes no room until the table is built.
            self._chunks[name].append(np.broadcast_to(array, count))
        self._groups.append(np.broadcast_to(np.asarray(group, np.int32), count))
        rows = np.arange(self._num_rows, self._num_rows + count, dtype=np.int32)
        self._num_rows += count
        return rows

    def sorted_table(self) -> tuple[Table, Ints | None]:
        """Return the rows in the order of their groups, and each row's new number; None where all keep theirs."""
        if not self._num_rows:
            return self._table.empty(), None
        groups = np.concatenate(self._groups)
        order: Ints | None = None
        new_number: Ints | None = None
        if (groups[1:] < groups[:-1]).any():
            order = np.argsort(groups, kind="stable").astype(np.int32)
            new_number = np.empty(len(order), np.dtype("i"))
            new_number[order] = np.arange(len(order))
        del groups
        columns = {}
        for name, chunks in self._chunks.items():  # one after the other: two of all columns are twice the memory
            column = np.concatenate(chunks)
            columns[name] = column if order is None else column[order]
        return self._table(**columns), new_number


def _renumbered(numbers: Ints, new_number: Ints | None) -> Ints:
    """Return the rows' new numbers; -1, which is no row, stays."""
    if new_number is None:
        return numbers
    return np.where(numbers >= 0, new_number[numbers], -1).astype(numbers.dtype)
