"""The list ``world.misbehaviour``: clients that are broken or hostile, who they are and what they do.

The attacks are those of methods.md 1.15 and of section 4, item 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from elsa_ray.config.errors import InputError
from elsa_ray.config.section import Section

ClientIndex = Annotated[int, Field(ge=0)]


class _Deed(Section):
    """What all kinds have: who does it. Exactly one of the two is given."""

    share: float | None = Field(default=None, gt=0, le=1)
    """Share of all clients, rounded down; they are drawn by seed among those that are still honest."""
    clients: Annotated[list[ClientIndex], Field(min_length=1)] | None = None
    """Or the clients' indices."""


class LabelFlip(_Deed):
    """Train on the label C - 1 - y in place of y, of C classes."""

    kind: Literal["label_flip"]


class SignFlip(_Deed):
    """Send the update with the wrong sign: received - scale * (trained - received)."""

    kind: Literal["sign_flip"]
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class ScaledUpdate(_Deed):
    """Send the update too large: received + factor * (trained - received)."""

    kind: Literal["scaled_update"]
    factor: float = Field(default=10.0, gt=0, allow_inf_nan=False)


class GaussianUpdate(_Deed):
    """Send noise in place of the update: received + deviation * rms * a standard normal draw."""

    kind: Literal["gaussian_update"]
    deviation: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """In units of the honest update's root mean square, tensor by tensor."""


class ProbeLiar(_Deed):
    """Train honestly, but answer the public probes at random."""

    kind: Literal["probe_liar"]


class StaleReplay(_Deed):
    """Send again and again what was sent the first time."""

    kind: Literal["stale_replay"]


class NanPayload(_Deed):
    """Send numbers that are none."""

    kind: Literal["nan_payload"]


def _says_not_who(deed: _Deed) -> _Deed:
    if deed.share is not None or deed.clients is not None:
        raise ValueError("neither share nor clients here: the sleeper says who")
    return deed


def _says_who(deed: _Deed) -> _Deed:
    if (deed.share is None) == (deed.clients is None):
        raise ValueError("exactly one of share and clients")
    return deed


WakefulDeed = Annotated[
    LabelFlip | SignFlip | ScaledUpdate | GaussianUpdate | ProbeLiar | StaleReplay | NanPayload,
    Field(discriminator="kind"),
]


class Sleeper(_Deed):
    """Be honest for some global rounds, then do one of the others."""

    kind: Literal["sleeper"]
    rounds: int = Field(ge=1)
    """Honest global rounds, from the first on."""
    then: Annotated[WakefulDeed, AfterValidator(_says_not_who)]
    """What it does afterwards, without ``share`` and ``clients``."""


Misbehaviour = LabelFlip | SignFlip | ScaledUpdate | GaussianUpdate | ProbeLiar | StaleReplay | NanPayload | Sleeper
"""What a misbehaving client does."""

MisbehaviourConfig = Annotated[
    Annotated[Misbehaviour, Field(discriminator="kind")],
    AfterValidator(_says_who),
]
"""An entry of the list."""


def check_misbehaviour_of_task(
    specs: Sequence[Misbehaviour], *, causal_lm: bool, where: str = "world.misbehaviour"
) -> None:
    """Refuse what the task has no use for.

    Raises:
        InputError: labels are to be flipped where the text itself is what is predicted.
    """
    for position, spec in enumerate(specs):
        deed, path = (spec.then, f"{position}.then") if isinstance(spec, Sleeper) else (spec, f"{position}")
        if causal_lm and isinstance(deed, LabelFlip):
            raise InputError(f"{where}.{path}.kind", deed.kind, "any other kind: causal_lm has no labels to flip")
