"""Plans told row by row, each row with a name, and played on a small network into a log that a test can compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import networkx as nx
import numpy as np

from elsa_ray.network.graph import Network, build_network
from elsa_ray.network.models import Fluid
from elsa_ray.network.routes import Router
from elsa_ray.world.disturbances import UNDISTURBED, Disturbances
from elsa_ray.world.incidents import IncidentKind
from elsa_ray.world.plan import Plan, PlanBuilder, Stage
from elsa_ray.world.player import Field, initial_state, play
from elsa_ray.world.roles import Role
from elsa_ray.world.timeline import Outcome, Timeline, WorldState
from elsa_ray.world.troubles import Troubles

Log = list[tuple[str, float | None, float | None]]


def make_network(*links: tuple[Any, ...], directed: bool = False) -> Network:
    """Build a network of links (source, target, bandwidth, latency, other attributes)."""
    graph = nx.DiGraph() if directed else nx.Graph()
    for source, target, bandwidth, latency, *more in links:
        figures = {"bandwidth_bytes_per_second": bandwidth, "latency_seconds": latency}
        graph.add_edge(source, target, **figures, **(more[0] if more else {}))
    return build_network(graph, "story", roles_required=False)


class Scene:
    """The place of a story: a network, speeds and slots of its nodes, and the world's state as it goes on."""

    def __init__(
        self,
        network: Network,
        *,
        speeds: Mapping[str, float] | None = None,
        slots: Mapping[str, int] | None = None,
        clients: Sequence[str] = (),
    ) -> None:
        names = network.node_names
        self.network = network
        self.field = Field(
            find_path=partial(Fluid().way, Router(network)),  # type: ignore[arg-type]
            capacity_bytes_per_second=network.capacity_bytes_per_second.tolist(),
            flops_per_second=[(speeds or {}).get(name, 1.0) for name in names],
            slots=[(slots or {}).get(name, 1) for name in names],
            client_nodes=[network.index(name) for name in clients],
        )
        self.state: WorldState = initial_state()
        self.names: dict[tuple[int, int], str] = {}

    def play(self, story: Story, disturbances: Disturbances = UNDISTURBED) -> Timeline:
        """Play a story on top of what still goes on."""
        plan = story.build()
        self.names |= {(plan.round_index, row): name for row, name in enumerate(story.names)}
        return self.play_plan(plan, disturbances)

    def play_plan(self, plan: Plan, disturbances: Disturbances = UNDISTURBED) -> Timeline:
        """Play a plan whose rows have no names."""
        timeline, self.state = play(plan, self.state, self.field, disturbances)
        return timeline

    def log(self, timeline: Timeline) -> Log:
        """Return (what, start, finish) of each row, carried over first; None for what has not started or ended.

        A row that was dropped or skipped, or goes on, says so behind its name.
        """
        entries: Log = []
        for row, name in enumerate(self._row_names(timeline)):
            outcome = Outcome(int(timeline.outcome[row]))
            what = name if outcome is Outcome.DONE else f"{name} {outcome.label}"
            entries.append((what, _seconds(timeline.start_seconds[row]), _seconds(timeline.finish_seconds[row])))
        return entries

    def times(self, *timelines: Timeline) -> dict[str, tuple[float, float]]:
        """Return start and finish of all rows that ended in these timelines, by name."""
        return {
            name: (float(timeline.start_seconds[row]), float(timeline.finish_seconds[row]))
            for timeline in timelines
            for row, name in enumerate(self._row_names(timeline))
            if timeline.outcome[row] == Outcome.DONE
        }

    def carried(self, timeline: Timeline) -> dict[str, int]:
        """Return the bytes that the links carried, by name, of rows that ended."""
        return {
            name: int(timeline.carried_bytes[row])
            for row, name in enumerate(self._row_names(timeline))
            if timeline.outcome[row] != Outcome.PENDING
        }

    def incidents(self, timeline: Timeline) -> list[tuple[float, str, str, int, str]]:
        """Return (when, what, node, client, detail) of each incident; no node is an empty text."""
        rows, details = timeline.incidents.rows, timeline.incidents.details
        columns = (rows.seconds, rows.kind, rows.node, rows.client, rows.detail)
        return [
            (
                float(seconds),
                IncidentKind(kind).label,
                self.network.node_names[node] if node >= 0 else "",
                client,
                details[detail],
            )
            for seconds, kind, node, client, detail in zip(*(column.tolist() for column in columns), strict=True)
        ]

    def _row_names(self, timeline: Timeline) -> list[str]:
        # The step column is the row's number in its own story.
        rounds, numbers = timeline.activities.round_index.tolist(), timeline.activities.step.tolist()
        return [self.names[key] for key in zip(rounds, numbers, strict=True)]


class Story:
    """Builds a plan row by row; each method returns the row's number, for ``after``."""

    def __init__(self, network: Network, *, round_index: int = 0, keep_late: bool = False) -> None:
        self._network, self._keep_late = network, keep_late
        self._builder = PlanBuilder(round_index)
        self.names: list[str] = []

    def work(self, client: int, *, gather: int = 0, edge_round: int = 0, edge: str | None = None) -> int:
        """Add a work item that the gather of that ordinal (in this story) waits for."""
        (item,) = self._builder.work_items(
            edge_round=edge_round,
            client=client,
            edge=-1 if edge is None else self._network.index(edge),
            num_examples=1,
            num_steps=1,
            front=1,
            middle=1,
            back=1,
            gather=gather,
        )
        return int(item)

    def send(
        self, name: str, source: str, target: str, num_bytes: int, *, after: Sequence[int] = (), work: int = -1
    ) -> int:
        (row,) = self._builder.transfers(
            client=-1,
            source=self._network.index(source),
            target=self._network.index(target),
            label=Role.CONTROL,
            step=len(self.names),
            num_bytes=num_bytes,
            uncompressed_bytes=num_bytes,
            work=work,
        )
        return self._named(name, int(row), after)

    def compute(self, name: str, node: str, flops: int, *, after: Sequence[int] = (), work: int = -1) -> int:
        (row,) = self._builder.computations(
            node=self._network.index(node),
            client=-1,
            label=Stage.LOCAL_TRAINING,
            step=len(self.names),
            flops=flops,
            work=work,
        )
        return self._named(name, int(row), after)

    def gather(
        self,
        name: str,
        node: str,
        waits_for: Sequence[int] = (),
        *,
        edge_round: int = 0,
        opener: int = -1,
        deadline: float | None = None,
        quorum: int = 0,
    ) -> int:
        row = self._builder.gather(
            self._network.index(node),
            [],
            edge_round=edge_round,
            opener=opener,
            deadline_seconds=deadline,
            quorum=quorum,
        )
        return self._named(name, row, waits_for)

    @property
    def num_gathers(self) -> int:
        """Gathers so far: the ordinal of the next one."""
        return self._builder.num_gathers

    def troubles(self, **of_rows: dict[str, float]) -> Troubles:
        """Return what befalls rows, by their name: columns of Troubles."""
        troubles = Troubles.none(len(self.names))
        for name, columns in of_rows.items():
            for column, value in columns.items():
                getattr(troubles, column)[self.names.index(name)] = value
        return troubles

    def depend(self, row: int, after: int) -> None:
        """Let a row wait for another one, whichever comes first in the plan."""
        self._builder.depend(row, after)

    def build(self) -> Plan:
        plan = self._builder.build(keep_late=self._keep_late)
        step = np.arange(len(plan.activities))
        activities = type(plan.activities)(**{**vars(plan.activities), "step": step})
        return type(plan)(**{**vars(plan), "activities": activities})

    def _named(self, name: str, row: int, after: Sequence[int]) -> int:
        assert row == len(self.names), "rows and names go together"
        self.names.append(name)
        self._builder.depend(row, np.array(after, np.int64))
        return row


def _seconds(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def assert_equal(first: object, second: object) -> None:
    """Compare nested values, arrays bit for bit with NaN equal to NaN."""
    assert type(first) is type(second)
    if isinstance(first, np.ndarray):
        assert isinstance(second, np.ndarray) and first.dtype == second.dtype
        assert np.array_equal(first, second, equal_nan=first.dtype.kind == "f")
    elif hasattr(first, "__dataclass_fields__"):
        for field in fields(first):  # type: ignore[arg-type]
            assert_equal(getattr(first, field.name), getattr(second, field.name))
    elif isinstance(first, tuple):
        assert isinstance(second, tuple) and len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_equal(one, other)
    else:
        assert first == second
