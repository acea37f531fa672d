"""Links that hold flows, and flows in bundles: what each is at, and how far its service has come.

A link counts the *service* that a flow of weight 1 has got from it; a flow completes when that count reaches the flow's
*tag* (the virtual time of fair queueing). What holds whom, and at which level, is found in ``bottlenecks``.

Services, tags, weights and loads are whole numbers of 2**-80, so that sums of many are exact, in whatever order.
"""

from __future__ import annotations

import math
from math import ldexp
from typing import Any

_FRACTION_BITS = 80
_ONE = 1 << _FRACTION_BITS


def fixed(value: float) -> int:
    """Return a finite number as a whole number of 2**-80."""
    return int(ldexp(value, _FRACTION_BITS))


def unfixed(value: int) -> float:
    """Return a whole number of 2**-80 as a float."""
    return value / _ONE


class Link:
    """A capacity that flows cross; once they could fill it, also what it holds, and what passes it held elsewhere."""

    __slots__ = (
        "anchor",
        "capacity",
        "crossed_by",
        "demand",
        "drag",
        "drops",
        "due",
        "ends",
        "falls",
        "flows",
        "follows",
        "gain",
        "held",
        "held_weight",
        "index",
        "is_close",
        "is_contended",
        "is_tight",
        "is_touched",
        "level",
        "limit",
        "listeners",
        "looks",
        "low",
        "num_ended",
        "num_falls_kept",
        "other",
        "passes",
        "rises",
        "service",
        "since",
    )

    def __init__(self, index: int, capacity: float) -> None:
        self.index = index
        self.capacity = capacity
        self.flows: dict[int, None] = {}  # a dict as an ordered set
        self.demand = 0.0
        """What all flows would load if only their limits held them."""
        self.is_contended = False
        self.due = math.inf

    def contend(self) -> None:
        """Begin to hold bundles."""
        self.is_contended = True
        self.num_ended = 0
        """Flows that have ended here since."""
        self.is_touched = False
        self.level = math.inf  # not full
        self.other = 0
        """The load of what is held elsewhere, but for what it follows."""
        self.held: dict[Bundle, None] = {}
        self.held_weight = 0
        self.service = 0
        self.since = -math.inf
        self.passes: dict[Link, Pair] = {}
        """The links that what is held here crosses too."""
        self.listeners: dict[Link, Pair] = {}
        """Those of them whose ``other`` has our part."""
        self.crossed_by: dict[Link, Pair] = {}
        """The links that hold what crosses this one."""
        self.follows: Link | None = None
        self.limit = math.inf
        """The level of ``follows`` at which this link is full."""
        self.ends: list[tuple[int, int, Bundle]] = []
        self.rises: list[tuple[float, int, Bundle | Link]] = []
        self.falls: list[tuple[float, int, Bundle | Link]] = []
        self.num_falls_kept = 0
        # While it follows though it is full: level = gain - drag * (level of ``follows``), as long as that is not
        # below ``low``; ``anchor`` is the service of ``follows`` at ``since``.
        self.gain = 0.0
        self.drag = 0.0
        self.low = 0.0
        self.anchor = 0
        self.looks = 0
        """How often it was looked at since a tag of its bundles has changed."""
        self.drops: list[tuple[float, int, Link]] = []
        self.is_close = False
        """It holds nothing and is nearly full, so that it has to know all loads exactly."""
        self.is_tight = False
        """It was full with what full followers might send, so that it has to know their levels."""

    def is_full_follower(self) -> bool:
        """Tell whether its level is not kept up to date, but a function of another link's."""
        return self.follows is not None and bool(self.held)

    def level_now(self) -> float:
        """Return the present level."""
        if self.follows is not None and self.held:
            return max(0.0, self.gain - self.drag * self.follows.level)
        return self.level

    def service_at(self, now: float) -> int:
        """Return the service of a flow of weight 1 since the link began to hold bundles."""
        if now <= self.since:
            return self.service
        if self.follows is not None and self.held:
            gained = fixed(self.gain * (now - self.since))
            return self.service + max(0, gained - int(self.drag * (self.follows.service_at(now) - self.anchor)))
        return self.service + fixed(self.level * (now - self.since))


class Pair:
    """The bundles that one link holds and that cross another one."""

    __slots__ = ("bundles", "load", "weight")

    def __init__(self) -> None:
        self.bundles: dict[Bundle, None] = {}
        self.weight = 0
        self.load = 0
        """What of the other link's ``other`` is theirs; more than they load where that link holds nothing."""


class Bundle:
    """Active flows that cross the same contended links with the same weights, and have the same limit.

    Its own service goes on when it changes hands; the tags of its flows are in it.
    """

    __slots__ = ("cap", "count", "due", "ends", "holder", "key", "offset", "service", "since", "tag", "uses")

    def __init__(self, key: Any, uses: tuple[tuple[Link, int, int], ...], cap: float) -> None:
        self.key = key
        self.uses = uses
        """For each contended link: it, a flow's weight there, and its load there at the limit."""
        self.cap = cap
        """The level that its own limit allows."""
        self.count = 0
        self.ends: list[tuple[int, int]] = []  # a heap of (tag, flow id); entries of flows that left stay for a while
        self.tag = -1
        """The least tag."""
        self.holder: Link | None = None  # none: its limit
        self.service = 0
        self.since = 0.0
        self.offset = 0
        """The holder's service less its own."""
        self.due = math.inf

    def service_at(self, now: float) -> int:
        """Return the service of each of its flows since it was made."""
        holder = self.holder
        if holder is not None:
            return holder.service_at(now) - self.offset
        if now <= self.since:
            return self.service
        return self.service + fixed(self.cap * (now - self.since))

    def level(self) -> float:
        """Return the present level of its flows."""
        return self.cap if self.holder is None else self.holder.level_now()
