"""The ``protocol.split`` field: the same cut for all clients, or ``auto``, which chooses one for each."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from elsa_ray.config.section import Section


class SplitConfig(Section):
    """Blocks on the client before the edge (``front``, p >= 1) and after it (``back``, o >= 0)."""

    front: int = Field(default=1, ge=1)
    back: int = Field(default=1, ge=0)


class AutoSplit(Section):
    """How splits are chosen: the fastest step that device memory and the privacy floor allow."""

    min_front: Annotated[int, Field(ge=1)] | None = None
    """Privacy floor: least blocks in front of the first cut. Default 2, or what a shallower model has to spare."""
    min_back: int = Field(default=0, ge=0)
    """Least blocks behind the second cut."""
    max_splits: Annotated[int, Field(gt=0)] = 4
    """Most different splits at a time; clients train in cohorts of one split, so each more makes them smaller."""
    hysteresis: float = Field(default=0.1, ge=0, lt=1)
    """A client changes its split only for a predicted gain above this share of the step."""


class AutoSplitConfig(Section):
    """``auto``, or ``{auto: {...}}`` with settings of one's own."""

    auto: AutoSplit = AutoSplit()


def normalised_split(value: Any) -> Any:
    """Return ``auto`` in its long form, and anything else as it is."""
    return {"auto": {}} if value == "auto" else value


# The tags are no keys of a section: pydantic puts them into the path of a mistake, where they must not pass for one.
def _split_kind(value: Any) -> str | None:
    if isinstance(value, dict):
        return "auto split" if "auto" in value else "fixed split"
    if isinstance(value, SplitConfig | AutoSplitConfig):
        return "auto split" if isinstance(value, AutoSplitConfig) else "fixed split"
    return None


SplitChoice = Annotated[
    Annotated[SplitConfig, Tag("fixed split")] | Annotated[AutoSplitConfig, Tag("auto split")],
    Discriminator(
        _split_kind,
        custom_error_type="split_kind",
        custom_error_message="{front: P, back: O}, auto, or {auto: {min_front: P, max_splits: K, ...}}",
        custom_error_context={"expected": "auto"},
    ),
    BeforeValidator(normalised_split, json_schema_input_type=Literal["auto"] | SplitConfig | AutoSplitConfig),
]
"""The type of the field ``split``."""
