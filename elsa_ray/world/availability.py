"""When clients are there: who can be sampled, who goes off in the middle of a round, and who comes next.

Times are simulated seconds from the start of the run. A client is there from the start of an interval on, up to but not
including its end.

Shapes: N clients, I intervals.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from elsa_ray.config.availability import Always, AvailabilityConfig, Bernoulli, Diurnal, FedScaleTrace, Markov, Trace
from elsa_ray.world.draws import uniforms
from elsa_ray.world.plan import Bools, Floats, Ints
from elsa_ray.world.traces import Intervals, read_behaviour_trace, read_intervals


class Availability(ABC):
    """Says when clients are there."""

    @abstractmethod
    def present(self, seconds: float, round_index: int) -> Bools:
        """Return who is there [N] at an instant, which is the start of that global round."""

    @abstractmethod
    def off_seconds(self, seconds: float) -> Floats:
        """Return when each client [N] that is there at an instant goes off next; infinite for never, and for others."""

    @abstractmethod
    def next_arrival(self, seconds: float) -> float:
        """Return when the next client comes that is not there at an instant; infinite if none does."""


def make_availability(config: AvailabilityConfig, num_clients: int, seed: int) -> Availability | None:
    """Return when the clients are there; None where they always are.

    Raises:
        InputError: a trace file is wrong.
    """
    match config:
        case Always():
            return None
        case Bernoulli():
            return CoinAvailability(num_clients, config.probability, seed)
        case Markov():
            return MarkovAvailability(num_clients, config.mean_on_seconds, config.mean_off_seconds, seed)
        case Diurnal():
            return PeriodicAvailability(_nights(config, num_clients, seed), num_clients)
        case Trace():
            return PeriodicAvailability(read_intervals(config.file, num_clients), num_clients)
        case FedScaleTrace():
            return PeriodicAvailability(read_behaviour_trace(config.file, num_clients, seed), num_clients)


class CoinAvailability(Availability):
    """A coin for each client and global round; who is there stays for the round."""

    def __init__(self, num_clients: int, probability: float, seed: int) -> None:
        self._clients = np.arange(num_clients)
        self._probability, self._seed = probability, seed

    def present(self, seconds: float, round_index: int) -> Bools:
        """See Availability."""
        drawn: Bools = uniforms(self._clients, self._seed, "availability", round_index) < self._probability
        return drawn

    def off_seconds(self, seconds: float) -> Floats:
        """Never in a round."""
        return np.full(len(self._clients), math.inf)

    def next_arrival(self, seconds: float) -> float:
        """Waiting does not help: the next coin is tossed for the next round."""
        return math.inf


class MarkovAvailability(Availability):
    """Exponential times there and away, each client by itself; at time zero in the chain's own proportion.

    Args:
        num_clients: N.
        mean_on_seconds, mean_off_seconds: of the two times.
        seed: the run's.
    """

    def __init__(self, num_clients: int, mean_on_seconds: float, mean_off_seconds: float, seed: int) -> None:
        self._clients = np.arange(num_clients)
        self._means, self._seed = (mean_off_seconds, mean_on_seconds), seed
        self._restart()

    def present(self, seconds: float, round_index: int) -> Bools:
        """See Availability."""
        self._advance(seconds)
        return self._is_on.copy()

    def off_seconds(self, seconds: float) -> Floats:
        """See Availability."""
        self._advance(seconds)
        return np.where(self._is_on, self._until, math.inf)

    def next_arrival(self, seconds: float) -> float:
        """See Availability."""
        self._advance(seconds)
        return float(np.where(self._is_on, math.inf, self._until).min(initial=math.inf))

    def _restart(self) -> None:
        off, on = self._means
        self._is_on = uniforms(self._clients, self._seed, "availability", "first") < on / (on + off)
        self._until = self._spans(self._clients, 0)
        self._seconds = 0.0
        self._changes_of = np.zeros(len(self._clients), np.int64)

    def _spans(self, clients: Ints, change: int) -> Floats:
        """Draw how long the clients stay as they are after so many changes."""
        mean = np.where(self._is_on[clients], self._means[1], self._means[0])
        spans: Floats = -np.log(uniforms(clients, self._seed, "availability", change)) * mean
        return spans

    def _advance(self, seconds: float) -> None:
        """Go on to an instant. What is remembered is only where the chains are; every draw has a seed of its own."""
        if seconds < self._seconds:
            self._restart()
        self._seconds = seconds
        due = np.flatnonzero(self._until <= seconds)
        while len(due):
            self._is_on[due] = ~self._is_on[due]
            self._changes_of[due] += 1
            for change in np.unique(self._changes_of[due]).tolist():
                own = due[self._changes_of[due] == change]
                self._until[own] += self._spans(own, change)
            due = due[self._until[due] <= seconds]


@dataclass(frozen=True)
class _Next:
    """For one instant: whether each interval holds, and when it starts and ends next."""

    holds: Bools
    start: Floats
    end: Floats


class PeriodicAvailability(Availability):
    """Intervals of clients, each of which may repeat with a period.

    Args:
        intervals: of all clients, none touching the next one of its client.
        num_clients: N.
    """

    def __init__(self, intervals: Intervals, num_clients: int) -> None:
        self._intervals, self._num_clients = intervals, num_clients

    def present(self, seconds: float, round_index: int) -> Bools:
        """See Availability."""
        there = np.zeros(self._num_clients, bool)
        there[self._intervals.client[self._at(seconds).holds]] = True
        return there

    def off_seconds(self, seconds: float) -> Floats:
        """See Availability."""
        client, repeat = self._intervals.client, self._intervals.repeat_seconds
        now = self._at(seconds)
        off = np.full(self._num_clients, math.inf)
        off[client[now.holds]] = now.end[now.holds]
        # Who comes again at the instant at which it goes has not gone; who does so for two periods never goes.
        while True:
            own_off = np.where(off[client] < seconds + 2 * repeat, off[client], math.inf)
            again = self._at(np.where(np.isfinite(own_off), own_off, seconds))
            stays = again.holds & np.isfinite(own_off)
            off[client[~np.isfinite(own_off)]] = math.inf
            if not stays.any():
                return off
            off[client[stays]] = again.end[stays]

    def next_arrival(self, seconds: float) -> float:
        """See Availability."""
        there = self.present(seconds, 0)
        start = self._at(seconds).start
        return float(start[~there[self._intervals.client]].min(initial=math.inf))

    def _at(self, seconds: float | Floats) -> _Next:
        """Look at an instant, or at one of its own for each interval."""
        own = self._intervals
        repeats = np.isfinite(own.repeat_seconds)
        period = np.where(repeats, own.repeat_seconds, 1.0)
        # The turn of the period whose interval starts last before the instant.
        turn = np.where(repeats, np.maximum(np.floor((seconds - own.start_seconds) / period), own.first_turn), 0.0)
        # The quotient may have been rounded down past a whole number.
        turn += repeats & (own.start_seconds + (turn + 1) * period <= seconds)
        start = own.start_seconds + turn * np.where(repeats, period, 0.0)
        end = own.end_seconds + turn * np.where(repeats, period, 0.0)
        holds = (start <= seconds) & (seconds < end)
        following = own.start_seconds + (turn + 1) * np.where(repeats, period, math.inf)
        later = np.where(start > seconds, start, following)
        return _Next(holds, later, end)


def _nights(config: Diurnal, num_clients: int, seed: int) -> Intervals:
    """Return each client's part of every period; it starts at a phase of its own."""
    clients, period = np.arange(num_clients), config.period_seconds
    if config.on_share == 1:
        return Intervals.of(clients, np.zeros(num_clients), np.full(num_clients, math.inf))
    phase = uniforms(clients, seed, "availability", "phase") * config.spread * period
    # Whoever starts late in the period may have started in the one before time zero too.
    return Intervals.of(clients, phase, phase + config.on_share * period, np.full(num_clients, period), first_turn=-1)
