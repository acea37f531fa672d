"""Max-min fair levels that are kept up to date: what a change does not reach is not computed anew.

A *level* is a rate over its flow's weight. In a max-min fair sharing each flow is held either by its own limit or by
one full link, its bottleneck, and all flows that a link holds have one level (Bertsekas and Gallager, *Data Networks*,
1992, section 6.5.2). So a link that holds a thousand flows needs no thousand updates when its level changes: it counts
the *service* that a flow of weight 1 has got from it, and a flow completes when that count reaches the flow's *tag*
(the virtual time of fair queueing). Flows of the same links and limit are a *bundle*, and change hands together.

After a change the links that it touches find their levels again, the lowest first: a link gives up bundles that are
held lower elsewhere, takes those that are held higher, and its new level touches the links that its bundles cross. The
k-th lowest level is final once the lower ones are, so this ends, and what it ends with is max-min fair.

A link that is not full, and whose load moves with one other link only, is not told of each change there: that link
remembers up to which level it may rise before this one is full. Nor is one told that many links load, and that is far
from full: what each of them loads is then counted with room to rise, and found exactly once the sum would be too much.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from typing import Any

from elsa_ray.network.bundles import Bundle, Link, Pair, fixed, unfixed

_TIE = 1e-13
"""Levels that differ by less, relatively, are equal: nothing changes hands between them."""
_ROUNDING = 1e-15
"""A level that changes by less has not changed."""
FEW = 8
"""A link that holds what crosses so few others tells them all of each change."""
_MOST_LOOKS = 6
"""So often a full follower is looked at before one of its flows completes; each time it follows more closely."""
_MARGIN = 1e-9
_SLACK_BITS = 43
"""A load above the capacity by one part in 2**43 is a rounding."""


class Bottlenecks:
    """Which link holds which bundle, and at which level."""

    def __init__(self, announce: Callable[[float, Any], None]) -> None:
        """Start empty; ``announce`` is told when (absolute seconds) a link or a bundle at its limit completes next."""
        self._announce = announce
        self._touched: list[tuple[float, int, Link]] = []
        self._numbers = itertools.count()  # heaps order what is equal by when it was put in
        self.now = -math.inf
        """Absolute seconds; whoever moves the clock sets it before any change."""

    def touch(self, link: Link) -> None:
        """Let the link find its level again."""
        if not link.is_touched:
            link.is_touched = True
            heapq.heappush(self._touched, (link.level, next(self._numbers), link))

    def make(self, key: Any, uses: tuple[tuple[Link, float], ...], cap: float, now: float) -> Bundle:
        """Return a new bundle without flows, held where its first flow probably will be.

        Args:
            key: kept in the bundle.
            uses: contended links, each with a flow's weight there.
            cap: the level that the flows' own limits allow.
            now: absolute seconds.
        """
        uses_fixed = tuple([(link, fixed(weight), fixed(cap * weight)) for link, weight in uses])
        bundle = Bundle(key, uses_fixed, cap)
        bundle.since = now
        holder, level = None, cap
        for link, _ in uses:
            if link.level < level:
                holder, level = link, link.level
        self._hold(bundle, holder, 0, now)
        return bundle

    def add(self, bundle: Bundle, num_flows: int) -> None:
        """Count flows in; a negative number counts out."""
        bundle.count += num_flows
        holder = bundle.holder
        if holder is None:
            for link, _, load in bundle.uses:
                link.other += num_flows * load
                self.touch(link)
            return
        for link, weight, _ in bundle.uses:
            if link is holder:
                link.held_weight += num_flows * weight
            else:
                holder.passes[link].weight += num_flows * weight
            self.touch(link)

    def remove(self, bundle: Bundle) -> None:
        """Forget a bundle without flows."""
        if bundle.holder is not None:
            self._let_go(bundle)
        bundle.count = -1
        bundle.due = math.inf

    def set_tag(self, bundle: Bundle, tag: int) -> None:
        """Tell that the bundle's least tag has changed."""
        bundle.tag = tag
        holder = bundle.holder
        if holder is not None:
            holder.looks = 0
        if holder is None:
            self._announce_bundle(bundle)
            return
        if len(holder.ends) > 4 * len(holder.held) + 64:
            holder.ends = [(held.offset + held.tag, next(self._numbers), held) for held in holder.held]
            heapq.heapify(holder.ends)
        else:
            heapq.heappush(holder.ends, (bundle.offset + tag, next(self._numbers), bundle))
        self.touch(holder)

    def next_end(self, link: Link) -> tuple[float, Bundle] | None:
        """Return when the link's next flow completes, in absolute seconds, and in which bundle; None if it holds none.

        Infinite while the link carries nothing.
        """
        ends = link.ends
        while ends:
            tag, _, bundle = ends[0]
            if bundle.holder is link and bundle.offset + bundle.tag == tag and bundle.count > 0:
                left = tag - link.service
                if left <= 0:
                    return link.since, bundle
                return (link.since + unfixed(left) / link.level if link.level > 0 else math.inf), bundle
            heapq.heappop(ends)
        return None

    def share(self) -> None:
        """Find the levels that the touched links, and whatever hangs on them, have from ``now`` on."""
        touched = self._touched
        while touched:
            link = heapq.heappop(touched)[2]
            if link.is_contended:
                self._find_level(link)
            link.is_touched = False  # what it has just done to itself needs no second look

    def _find_level(self, link: Link) -> None:
        if link.is_full_follower():
            self.wake(link)
        while True:
            if not link.held:
                if not self._is_overfull(link) or not self._take_highest(link, 0.0):
                    self._settle(link, math.inf)
                    return
                continue
            spare = self._capacity(link) - link.other
            level = spare / link.held_weight if spare > 0 and link.held_weight else 0.0
            if self._give_up(link, level * (1 - _TIE)) or self._take_highest(link, level * (1 + _TIE)):
                continue
            self._settle(link, level)
            return

    def _capacity(self, link: Link) -> int:
        return fixed(link.capacity)

    def _is_overfull(self, link: Link) -> bool:
        """Tell whether a link that holds nothing has more than it can carry; else see that it will be told in time."""
        if len(link.crossed_by) == 1:
            ((source, pair),) = link.crossed_by.items()
            if source.is_full_follower():
                self.wake(source)  # it has to heed this link's limit
            if link.follows is None:
                link.other -= pair.load
                pair.load = 0
                link.follows = source
                del source.listeners[link]
            if pair.weight > 0:
                limit = (self._capacity(link) - link.other) / pair.weight
                if source.level <= limit * (1 + _TIE):
                    if limit != link.limit:
                        link.limit = limit
                        self._push_rise(source, limit, link)
                    return False
            self._listen(link)
        elif link.follows is not None:
            self._listen(link)
        capacity = self._capacity(link)
        bearable = capacity + (capacity >> _SLACK_BITS)
        # What counts as close: the more links load it, the more it costs to count them anew.
        close = capacity * min(len(link.crossed_by), 8) // 64
        if link.other > bearable and not link.is_close:
            self._make_exact(link)
            link.is_close = capacity - link.other < close
        elif link.is_close and capacity - link.other > 2 * close:
            link.is_close = False
        if link.other > bearable:
            for source in list(link.crossed_by):
                if source.is_full_follower():
                    link.is_tight = True
                    self.wake(source)
        elif link.is_tight and link.other < capacity * 3 // 4:
            link.is_tight = False
        return link.other > bearable

    def _make_exact(self, link: Link) -> None:
        """Count what crosses a link that holds nothing as it is, without room to rise."""
        for source, pair in link.crossed_by.items():
            if link in source.listeners and not source.is_full_follower():
                load = int(source.level * pair.weight)
                link.other += load - pair.load
                pair.load = load
                self._push_fall(link, source.level, source)

    def _has_room(self, other: Link, pair: Pair, load: int) -> bool:
        """Tell whether a link needs not know that a pair loads it so much now, as it is counted with more anyway."""
        if other.held or other.is_close or other.is_tight:
            return False
        if load > pair.load:
            room = self._capacity(other) - other.other - (load - pair.load)
            if room <= 0:
                return False
            more = load + min(load >> 2, room >> 1)
            other.other += more - pair.load
            pair.load = more
        return True

    def _listen(self, link: Link) -> None:
        """End that the link follows another one: from now on its load is known at any time."""
        source = link.follows
        assert source is not None
        link.follows = None
        link.limit = math.inf
        pair = link.crossed_by[source]
        source.listeners[link] = pair
        if source.level < math.inf:
            pair.load = int(source.level * pair.weight)
            link.other += pair.load
            self._push_fall(link, source.level, source)
        self.touch(source)

    def _follow(self, link: Link, due: float) -> float:
        """Let a full link follow the only other one that holds what crosses it, if that spares work.

        Its level then is known at any time, but it is told nothing, unless something could change hands. It is looked
        at again before it can complete anything. Return when, in absolute seconds; ``due`` where it does not follow.
        """
        ((source, pair),) = link.crossed_by.items()
        if len(source.passes) <= FEW or due == math.inf or link.looks > _MOST_LOOKS or not 0 < source.level < math.inf:
            return due
        if source.follows is not None or any(other.follows is link and other.held for other in link.passes):
            return due
        gain = (self._capacity(link) - link.other + pair.load) / link.held_weight
        drag = pair.weight / link.held_weight
        high = gain / (1 + drag)  # where both levels meet
        link.follows = source  # so that its own entry counts for nothing below
        while link.falls and not self._passes(link, -link.falls[0][0], link.falls[0][2]):
            heapq.heappop(link.falls)
        if link.falls:
            high = min(high, (gain + link.falls[0][0]) / drag)
        low = source.level * (1 - 0.5 ** (link.looks + 1))
        while link.rises and not self._rises(link, link.rises[0][0], link.rises[0][2]):
            heapq.heappop(link.rises)
        if link.rises:
            low = max(low, (gain - link.rises[0][0]) / drag)
        most = gain - drag * low
        is_spared = low < source.level * (1 - _MARGIN) and source.level * (1 + _MARGIN) < high
        for other, passing in link.listeners.items():
            load = int(most * passing.weight)
            if other.held or other.is_tight or other.follows is not None:
                is_spared = False
                continue
            if other.other + load - passing.load > self._capacity(other) and not other.is_close:
                self._make_exact(other)
            if other.other + load - passing.load > self._capacity(other):
                other.is_tight = True
                is_spared = False
        if not is_spared:
            link.follows = None
            self._push_fall(link, source.level, source)
            return due
        for other, passing in link.listeners.items():
            load = int(most * passing.weight)
            other.other += load - passing.load
            passing.load = load
        link.other -= pair.load
        pair.load = 0
        del source.listeners[link]
        if self.now > link.since:
            link.service += fixed(link.level * (self.now - link.since))
            link.since = self.now
        link.gain, link.drag, link.low, link.limit = gain, drag, low, high
        link.anchor = source.service_at(self.now)
        heapq.heappush(source.drops, (-low, next(self._numbers), link))
        self._push_rise(source, high, link)
        return self.now + max(0.0, (due - self.now) * link.level / most)

    def wake(self, link: Link) -> None:
        """End that a full link follows another one: from now on its level is kept up to date."""
        source = link.follows
        assert source is not None
        level, service = link.level_now(), link.service_at(self.now)
        link.follows = None
        link.limit = math.inf
        link.level, link.service, link.since = level, service, self.now
        pair = link.crossed_by[source]
        source.listeners[link] = pair
        pair.load = int(source.level * pair.weight)
        link.other += pair.load
        self._push_fall(link, source.level, source)
        for other, passing in link.listeners.items():
            load = int(level * passing.weight)
            other.other += load - passing.load
            passing.load = load
            self._push_fall(other, level, link)
        self.touch(link)

    def look_again(self, link: Link) -> None:
        """Find when a full follower really completes, as things stand."""
        link.looks += 1
        self.touch(link)
        self.share()

    def _give_up(self, link: Link, level: float) -> bool:
        """Let go one lot of bundles whose limits, or other links, are below ``level``; tell whether there was one."""
        rises = link.rises
        while rises and rises[0][0] < level:
            cap, _, thing = heapq.heappop(rises)
            if isinstance(thing, Bundle):
                if thing.holder is link and thing.count >= 0:
                    self._move(thing, None)
                    return True
            elif thing.follows is link and thing.limit == cap and thing.is_contended:
                if thing.held:
                    self.wake(thing)
                else:
                    self._listen(thing)
                self.touch(thing)
        for other, pair in link.listeners.items():
            if other.level < level and other.held:
                for bundle in list(pair.bundles):
                    self._move(bundle, other)
                return True
        return False

    def _take_highest(self, link: Link, level: float) -> bool:
        """Take the lot of bundles that are held highest elsewhere, if that is above ``level``; tell whether it was."""
        while link.falls:
            height, _, thing = link.falls[0]
            if -height <= level:
                return False
            heapq.heappop(link.falls)
            if self._passes(link, -height, thing):
                for bundle in [thing] if isinstance(thing, Bundle) else list(link.crossed_by[thing].bundles):
                    self._move(bundle, link)
                return True
        return False

    def _settle(self, link: Link, level: float) -> None:
        """Let the link have its level from now on, and tell those that have to know."""
        old = link.level
        has_changed = level != old and not abs(level - old) <= _ROUNDING * min(level, old)
        if has_changed:
            if old < math.inf:
                link.service = link.service_at(self.now)
            link.since = self.now
            link.level = level
        if level == math.inf:
            link.service = 0
            link.due = math.inf
            return
        for other, pair in link.listeners.items():
            load = int(link.level * pair.weight)
            if (has_changed or load != pair.load) and not self._has_room(other, pair, load):
                other.other += load - pair.load
                pair.load = load
                self._push_fall(other, link.level, link)
                self.touch(other)
        while link.drops and -link.drops[0][0] > link.level:
            low, _, follower = heapq.heappop(link.drops)
            if follower.follows is link and follower.held and follower.low == -low:
                self.touch(follower)
        following = self.next_end(link)
        due = math.inf if following is None else following[0]
        if len(link.crossed_by) == 1 and link.level > 0:
            due = self._follow(link, due)
        if due != link.due:
            link.due = due
            if due < math.inf:
                self._announce(due, link)

    def _announce_bundle(self, bundle: Bundle) -> None:
        left = bundle.tag - bundle.service
        due = bundle.since
        if left > 0:
            due = due + unfixed(left) / bundle.cap if bundle.cap > 0 else math.inf
        if due != bundle.due:
            bundle.due = due
            if due < math.inf:
                self._announce(due, bundle)

    def _move(self, bundle: Bundle, to: Link | None) -> None:
        """Let another link, or its own limit, hold the bundle from now on."""
        now = self.now
        service = bundle.service_at(now)
        if bundle.holder is None:
            for link, _, load in bundle.uses:
                link.other -= bundle.count * load
            bundle.due = math.inf
        else:
            self._let_go(bundle)
        self._hold(bundle, to, service, now)

    def _let_go(self, bundle: Bundle) -> None:
        holder = bundle.holder
        assert holder is not None
        for link, weight, _ in bundle.uses:
            if link is holder:
                del link.held[bundle]
                link.held_weight -= bundle.count * weight
            else:
                pair = holder.passes[link]
                del pair.bundles[bundle]
                pair.weight -= bundle.count * weight
                if not pair.bundles:
                    self._part(holder, link, pair)
            self.touch(link)

    def _part(self, holder: Link, link: Link, pair: Pair) -> None:
        if link.is_full_follower():
            self.wake(link)
        del holder.passes[link]
        del link.crossed_by[holder]
        if link.follows is holder:
            link.follows = None
            link.limit = math.inf
        else:
            link.other -= pair.load
            del holder.listeners[link]

    def _hold(self, bundle: Bundle, holder: Link | None, service: int, now: float) -> None:
        bundle.holder = holder
        count = bundle.count
        if holder is None:
            bundle.service = service
            bundle.since = now
            for link, _, load in bundle.uses:
                link.other += count * load
                self._push_fall(link, bundle.cap, bundle)
                self.touch(link)
            if bundle.tag >= 0:
                self._announce_bundle(bundle)
            return
        if not holder.held:
            if holder.follows is not None:
                self._listen(holder)
            holder.service = 0
            holder.since = now
        bundle.offset = holder.service_at(now) - service
        for link, weight, _ in bundle.uses:
            if link is holder:
                link.held[bundle] = None
                link.held_weight += count * weight
            else:
                pair = holder.passes.get(link)
                if pair is None:
                    pair = holder.passes[link] = link.crossed_by[holder] = holder.listeners[link] = Pair()
                pair.bundles[bundle] = None
                pair.weight += count * weight
            self.touch(link)
        self._push_rise(holder, bundle.cap, bundle)
        if bundle.tag >= 0:
            heapq.heappush(holder.ends, (bundle.offset + bundle.tag, next(self._numbers), bundle))

    def _push_rise(self, link: Link, level: float, thing: Bundle | Link) -> None:
        """Remember what leaves ``link`` (a bundle), or is full (another link), once its level is above ``level``."""
        if len(link.rises) > 4 * (len(link.held) + len(link.passes)) + 64:
            kept: list[tuple[float, Bundle | Link]] = [(bundle.cap, bundle) for bundle in link.held]
            kept += [(other.limit, other) for other in link.passes if other.follows is link]
            link.rises = [(limit, next(self._numbers), whose) for limit, whose in kept]
            heapq.heapify(link.rises)
        else:
            heapq.heappush(link.rises, (level, next(self._numbers), thing))

    def _push_fall(self, link: Link, level: float, thing: Bundle | Link) -> None:
        """Remember what passes ``link`` at this level, to hold it here once that is too high."""
        heapq.heappush(link.falls, (-level, next(self._numbers), thing))
        if len(link.falls) > 2 * link.num_falls_kept + 64:
            kept = {entry[2]: entry for entry in link.falls if self._passes(link, -entry[0], entry[2])}
            link.falls = list(kept.values())
            heapq.heapify(link.falls)
            link.num_falls_kept = len(link.falls)

    def _rises(self, link: Link, level: float, thing: Bundle | Link) -> bool:
        """Tell whether this still is what leaves ``link``, or is full, above this level."""
        if isinstance(thing, Bundle):
            return thing.holder is link and thing.count >= 0
        return thing.follows is link and thing.limit == level

    def _passes(self, link: Link, level: float, thing: Bundle | Link) -> bool:
        """Tell whether this bundle at its limit, or what this other link holds, still passes ``link`` at this level."""
        if isinstance(thing, Bundle):
            return thing.holder is None and thing.count >= 0
        return thing.level == level and thing in link.crossed_by and link.follows is not thing
