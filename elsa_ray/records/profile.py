"""Where the host's wall time went, by actor and stage: ``profile.json``, and a table of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elsa_ray.protocols.protocol import DRIVER, Stage, StageSeconds
from elsa_ray.records.answers import TextTable
from elsa_ray.records.human import human_seconds, human_share
from elsa_ray.records.json_text import json_text, write_whole
from elsa_ray.records.round import Round

PROFILE = "profile.json"


class Profile:
    """Adds up rounds, their records included; of each actor, the stages add up to the wall time."""

    def __init__(self) -> None:
        self._wall_seconds = 0.0
        self._by_actor: dict[str, StageSeconds] = {}

    def add(self, finished: Round, wall_seconds: float) -> None:
        """Add a round that has taken so long in all.

        What is not the training (plan, simulated network, conclusion, records) is the driver's computing, for which the
        others wait.
        """
        self._wall_seconds += wall_seconds
        for actor, stages in (finished.results.wall_seconds or {DRIVER: {}}).items():
            own = self._by_actor.setdefault(actor, dict.fromkeys(Stage, 0.0))
            for stage, seconds in stages.items():
                own[stage] += seconds
            outside = max(0.0, wall_seconds - sum(stages.values()))
            own[Stage.COMPUTE if actor == DRIVER else Stage.WAITING] += outside

    def figures(self) -> dict[str, Any]:
        """Return the sums as plain values."""
        by_actor = {actor: {str(stage): seconds for stage, seconds in s.items()} for actor, s in self._by_actor.items()}
        return {"schema_version": 1, "wall_seconds": self._wall_seconds, "wall_seconds_by_actor": by_actor}

    def write(self, folder: Path) -> None:
        """Write ``profile.json`` into a run folder."""
        write_whole(folder / PROFILE, json_text(self.figures(), indent=2) + "\n")


def read_profile(folder: Path) -> dict[str, Any] | None:
    """Return the content of a run's ``profile.json``; None if it has none."""
    path = folder / PROFILE
    if not path.exists():
        return None
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return figures


def profile_table(figures: Mapping[str, Any]) -> TextTable:
    """Return the profile as text, an actor a row."""
    rows = []
    for actor, stages in figures["wall_seconds_by_actor"].items():
        total = sum(stages.values())
        shares = [f"{human_seconds(stages[s])} ({human_share(stages[s] / total if total else 0.0)})" for s in Stage]
        rows.append((actor, human_seconds(total), *shares))
    return TextTable(
        "Where the host's wall time went",
        ("actor", "in all", *(str(stage) for stage in Stage)),
        tuple(rows),
        f"Of {human_seconds(figures['wall_seconds'])} in all rounds of this process. codec: encoding and decoding; "
        "messages: handing calls to Ray; waiting: nothing to do, or receiving. In a run without Ray the actors take "
        "turns in one process.",
    )
