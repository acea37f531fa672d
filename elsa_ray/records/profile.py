"""Where the host's wall time went, by actor and stage: ``profile.json``, and a table of it.

The host's clock is not read here: the figures come from whoever has measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elsa_ray.protocols.wall_time import DRIVER, WallSeconds, WallStage
from elsa_ray.records.answers import TextTable
from elsa_ray.records.human import human_seconds, human_share
from elsa_ray.records.json_text import json_text, write_whole

PROFILE = "profile.json"
_MOST_ROWS = 16
"""Actors in the table, but for the driver; the file has all."""


class Profile:
    """Adds up the rounds of one process; of each actor, the stages add up to the rounds' wall time."""

    def __init__(self) -> None:
        self._by_actor: dict[str, dict[WallStage, float]] = {DRIVER: dict.fromkeys(WallStage, 0.0)}

    def add(self, seconds_by_actor: Mapping[str, WallSeconds]) -> None:
        """Add what each actor has spent its time on, records included, up to the end of a round.

        The driver is there all the time. An actor that was not, or did not tell, has waited for the rest.
        """
        before = self.wall_seconds
        for stage, seconds in seconds_by_actor[DRIVER].items():
            self._by_actor[DRIVER][stage] += seconds
        passed = self.wall_seconds - before
        for actor in dict.fromkeys([*self._by_actor, *seconds_by_actor]):
            if actor == DRIVER:
                continue
            own = self._by_actor.setdefault(actor, {**dict.fromkeys(WallStage, 0.0), WallStage.WAITING: before})
            told = seconds_by_actor.get(actor, {})
            for stage, seconds in told.items():
                own[stage] += seconds
            own[WallStage.WAITING] += max(0.0, passed - sum(told.values()))

    @property
    def wall_seconds(self) -> float:
        """The rounds' wall time: that of the driver."""
        return sum(self._by_actor[DRIVER].values())

    def figures(self, run_seconds: float) -> dict[str, Any]:
        """Return the sums as plain values.

        Args:
            run_seconds: of this process's part of the run; what is not in the rounds is its beginning and its end.
        """
        by_actor = {actor: {str(stage): seconds for stage, seconds in s.items()} for actor, s in self._by_actor.items()}
        return {
            "schema_version": 1,
            "wall_seconds": self.wall_seconds,
            "wall_seconds_outside_of_rounds": max(0.0, run_seconds - self.wall_seconds),
            "wall_seconds_by_actor": by_actor,
        }


def write_profile(folder: Path, figures: Mapping[str, Any]) -> None:
    """Write ``profile.json`` into a run folder."""
    write_whole(folder / PROFILE, json_text(dict(figures), indent=2) + "\n")


def read_profile(folder: Path) -> dict[str, Any] | None:
    """Return the content of a run's ``profile.json``; None if it has none that can be read."""
    try:
        figures: dict[str, Any] = json.loads((folder / PROFILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return figures


def profile_table(figures: Mapping[str, Any]) -> TextTable:
    """Return the profile as text, an actor a row; of many actors, the busiest."""
    by_actor = dict(figures["wall_seconds_by_actor"])
    driver = by_actor.pop(DRIVER)
    busiest = sorted(by_actor, key=lambda name: by_actor[name][WallStage.WAITING])[:_MOST_ROWS]
    rows = [_row(DRIVER, driver), *(_row(name, by_actor[name]) for name in by_actor if name in busiest)]
    rest = [own for name, own in by_actor.items() if name not in busiest]
    if rest:
        mean = {stage: sum(own[stage] for own in rest) / len(rest) for stage in WallStage}
        rows.append(_row(f"{len(rest)} others, on average", mean))
    note = (
        f"Of {human_seconds(figures['wall_seconds'])} in all rounds; beginning and end of the run took "
        f"{human_seconds(figures['wall_seconds_outside_of_rounds'])} more. Codec: encoding and decoding; messages: "
        "handing over calls and results; waiting: nothing to do. Without Ray the actors take turns in one process."
    )
    return TextTable("Where the host's wall time went", ("actor", "in all", *WallStage), tuple(rows), note)


def _row(name: str, stages: Mapping[Any, float]) -> tuple[str, ...]:
    total = sum(stages.values())
    shares = [f"{human_seconds(stages[stage])} ({human_share(stages[stage] / (total or 1.0))})" for stage in WallStage]
    return (name, human_seconds(total), *shares)
