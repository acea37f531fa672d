"""Incidents: what befalls links, nodes and clients in a round, each with its time."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from elsa_ray.world.plan import Columns, Floats, Ints


class IncidentKind(IntEnum):
    """What has happened."""

    CLIENT_UNAVAILABLE = 0
    CLIENT_SLOWED = 1
    CLIENT_OFF = 2
    PAYLOAD_CORRUPTED = 3
    LINKS_DEGRADED = 4
    LINKS_RESTORED = 5
    EDGE_CRASHED = 6
    EDGE_RECOVERED = 7
    CLOUD_DOWN = 8
    CLOUD_UP = 9

    @property
    def label(self) -> str:
        """The name in records."""
        return self.name.lower()


@dataclass(frozen=True)
class IncidentRows(Columns):
    """One row an incident, in the order in which they happened.

    Attributes:
        kind: an IncidentKind.
        seconds: when.
        node: where; -1 for links.
        client: whose; -1 for none.
        detail: place of its detail among the texts.
    """

    kind: Ints
    seconds: Floats
    node: Ints
    client: Ints
    detail: Ints


@dataclass(frozen=True)
class Incidents:
    """The incidents of a round, and the texts of their details."""

    rows: IncidentRows
    details: tuple[str, ...] = ("",)

    def followed_by(self, later: Incidents) -> Incidents:
        """Return these incidents and then others."""
        moved = later.rows.with_columns(detail=later.rows.detail + len(self.details))
        return Incidents(IncidentRows.concatenate([self.rows, moved]), (*self.details, *later.details))

    def counts(self) -> dict[str, int]:
        """Return how many of each kind there were, by its label."""
        kinds = np.bincount(self.rows.kind, minlength=len(IncidentKind))
        return {kind.label: int(kinds[kind]) for kind in IncidentKind if kinds[kind]}


@dataclass
class IncidentLog:
    """Collects the incidents of a round."""

    _chunks: list[IncidentRows] = field(default_factory=list)
    _place_of_detail: dict[str, int] = field(default_factory=lambda: {"": 0})

    def add(self, kind: IncidentKind, seconds: float, *, node: int = -1, client: int = -1, detail: str = "") -> None:
        """Add one."""
        self.add_clients(kind, seconds, np.array([node]), np.array([client]), [detail])

    def add_clients(self, kind: IncidentKind, seconds: float, nodes: Ints, clients: Ints, details: list[str]) -> None:
        """Add one a client; a single detail is that of all."""
        places = [self._place_of_detail.setdefault(detail, len(self._place_of_detail)) for detail in details]
        count = len(clients)
        self._chunks.append(
            IncidentRows(
                kind=np.full(count, int(kind)),
                seconds=np.full(count, seconds),
                node=np.asarray(nodes, np.int64),
                client=np.asarray(clients, np.int64),
                detail=np.broadcast_to(np.array(places, np.int64), count).copy(),
            )
        )

    def sort(self) -> None:
        """Put them into the order of their times; what is equal stays in order."""
        if self._chunks:
            rows = IncidentRows.concatenate(self._chunks)
            self._chunks = [rows.take(np.argsort(rows.seconds, kind="stable"))]

    def incidents(self) -> Incidents:
        """Return all."""
        rows = IncidentRows.concatenate(self._chunks) if self._chunks else IncidentRows.empty()
        return Incidents(rows, tuple(self._place_of_detail))
