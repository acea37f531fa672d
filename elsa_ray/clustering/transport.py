"""The transportation problem: clients to edges at least total cost, each edge with so many places.

``least_cost`` is exact, by successive shortest paths. Every client starts at its cheapest edge; as long as an edge has
too many, one leaves it along the cheapest chain of moves that ends at a free place. Only edges are nodes of that
search: the price of a move from edge a to edge b is the least difference of cost among a's members. Costs are rounded
to whole numbers, so that sums are exact and the search always ends.

``near_least_cost`` is for sizes where that takes too long: in rounds, edges take those who would lose most by going
elsewhere (regret); chains of moves seat who is left over; then the members of each two edges are exchanged, and moved
to free places, as long as that pays.

Shapes: N clients, K edges, M members of an edge; P = K + 1 places to be at, the last of which is the parking. It takes
everybody, at a cost above that of any chain of moves.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

PARKED = -1
"""Stands for the edge of a client that has none."""
NEVER = 1 << 61
"""The whole-number cost of what is impossible; anything from half of it on counts as such."""
EXCHANGE_PASSES = 2
"""How often the heuristic goes through all pairs of edges."""


def least_cost(cost_NK: Floats, capacity: int, handicap_N: Floats | None = None) -> Ints:
    """Return each client's edge, PARKED for none, such that the fewest are parked and the rest costs the least.

    Args:
        cost_NK: infinite where an edge cannot serve a client. Differences below 2**-44 (of 100 edges; the fewer, the
            finer) of the range of costs are rounded away.
        capacity: places of each edge.
        handicap_N: of clients with equal costs, the one that has more of it gives way; else the one of higher index.
    """
    order = _first_to_give_way(len(cost_NK), handicap_N)
    seats = _Seats(_whole_costs(cost_NK[order]), capacity)
    seats.relieve()
    return seats.edge_of_client()[np.argsort(order)]


def near_least_cost(cost_NK: Floats, capacity: int, handicap_N: Floats | None = None) -> Ints:
    """Return an assignment as ``least_cost`` does, of nearly least cost.

    Args:
        cost_NK, capacity: as for ``least_cost``.
        handicap_N: as for ``least_cost``; it is also subtracted from the client's regret, in the unit of the costs.
    """
    order = _first_to_give_way(len(cost_NK), handicap_N)
    cost_NK, handicap_N = cost_NK[order], None if handicap_N is None else handicap_N[order]
    seats = _Seats(_whole_costs(cost_NK), capacity, _by_regret(cost_NK, capacity, handicap_N))
    seats.make_room()
    for _ in range(EXCHANGE_PASSES):
        seats.exchange()
    return seats.edge_of_client()[np.argsort(order)]


def _first_to_give_way(num_clients: int, handicap_N: Floats | None) -> Ints:
    """Return the clients in the order in which equal ones leave full edges."""
    handicap_N = np.zeros(num_clients) if handicap_N is None else handicap_N
    return np.lexsort((-np.arange(num_clients), -handicap_N))


def _whole_costs(cost_NK: Floats) -> Ints:
    """Return the costs [N, P] as whole numbers, so fine that a chain of P moves, parking too, can just be summed."""
    num_places = cost_NK.shape[1] + 1
    largest = 1 << (58 - 2 * num_places.bit_length())
    possible_NK = np.isfinite(cost_NK)
    whole_NP = np.full((len(cost_NK), num_places), NEVER, np.int64)
    whole_NP[:, -1] = num_places * largest
    if possible_NK.any():
        least, most = cost_NK[possible_NK].min(), cost_NK[possible_NK].max()
        unit = (most - least) / largest if most > least else 1.0
        whole_NP[:, :-1][possible_NK] = np.rint((cost_NK[possible_NK] - least) / unit)
    return whole_NP


def _by_regret(cost_NK: Floats, capacity: int, handicap_N: Floats | None) -> Ints:
    """Return edges: in rounds, all who wait ask for their cheapest open edge, and it takes those of most regret.

    Of equal regrets the last client's counts: the clients are in the order in which they give way.
    """
    num_clients, num_edges = cost_NK.shape
    edge_N = np.full(num_clients, PARKED, np.int64)
    free_K = np.full(num_edges, capacity, np.int64)
    handicap_N = np.zeros(num_clients) if handicap_N is None else handicap_N
    waiting = np.flatnonzero(np.isfinite(cost_NK).any(axis=1))
    while len(waiting):
        cost_WK = np.where(free_K > 0, cost_NK[waiting], np.inf)
        rows = np.arange(len(waiting))
        wish_W = np.argmin(cost_WK, axis=1)
        best_W = cost_WK[rows, wish_W]
        can_W = np.isfinite(best_W)
        cost_WK[rows, wish_W] = np.inf
        regret_W = np.where(can_W, cost_WK.min(axis=1), 0.0) - np.where(can_W, best_W, 0.0) - handicap_N[waiting]
        order = np.lexsort((-waiting, -regret_W, wish_W))
        order = order[can_W[order]]
        first_K = np.searchsorted(wish_W[order], np.arange(num_edges))
        rank = np.arange(len(order)) - first_K[wish_W[order]]
        taken = order[rank < free_K[wish_W[order]]]
        edge_N[waiting[taken]] = wish_W[taken]
        free_K -= np.bincount(wish_W[taken], minlength=num_edges)
        can_W[taken] = False
        waiting = waiting[can_W]
    return edge_N


class _Seats:
    """Who sits where, and what it would cost to move somebody from one place to another."""

    def __init__(self, cost_NP: Ints, capacity: int, edge_N: Ints | None = None) -> None:
        """Seat everybody at the given edge, or where it costs the least (of equal places the first)."""
        num_places = cost_NP.shape[1]
        self._cost_NP = cost_NP
        self._parking = num_places - 1
        self._capacity_P = np.full(num_places, capacity, np.int64)
        self._capacity_P[self._parking] = len(cost_NP)
        self._place_N = np.argmin(cost_NP, axis=1) if edge_N is None else np.where(edge_N < 0, self._parking, edge_N)
        self._load_P = np.bincount(self._place_N, minlength=num_places)
        self._price_PP = np.empty((num_places, num_places), np.int64)
        self._mover_PP = np.empty((num_places, num_places), np.int64)
        for place in range(num_places):
            self._price_moves_from(place)

    def edge_of_client(self) -> Ints:
        """Return the edge of each client, PARKED for none."""
        return np.where(self._place_N == self._parking, PARKED, self._place_N).astype(np.int64)

    def relieve(self) -> None:
        """Lead one client after the other out of full edges; least total cost before is least total cost after."""
        for _ in range(int(np.maximum(self._load_P - self._capacity_P, 0).sum())):
            chain = self._cheapest_chain(self._load_P > self._capacity_P, self._price_PP)
            self._move_along(chain)

    def make_room(self) -> None:
        """Seat those parked for whom a chain of moves makes room."""
        is_parking = np.arange(len(self._load_P)) == self._parking
        while True:
            # Seats that were not chosen at least cost may have cycles of moves that pay: nothing is free here.
            chain = self._cheapest_chain(is_parking, np.maximum(self._price_PP, 0))
            if len(chain) < 2:
                return
            self._move_along(chain)

    def exchange(self) -> None:
        """Exchange members of each two places, and move them to free places, as long as that pays."""
        num_places = len(self._load_P)
        for first in range(num_places):
            for second in range(first + 1, num_places):
                there, back = self._price_PP[first, second], self._price_PP[second, first]
                moves = (there < 0 and self._free(second)) or (back < 0 and self._free(first))
                if there + back < 0 or moves:
                    self._exchange_between(first, second)

    def _free(self, place: int) -> int:
        return int(self._capacity_P[place] - self._load_P[place])

    def _members(self, place: int) -> Ints:
        return np.flatnonzero(self._place_N == place)

    def _price_moves_from(self, place: int) -> None:
        members = self._members(place)
        if not len(members):
            self._price_PP[place], self._mover_PP[place] = NEVER, -1
            return
        cost_MP = self._cost_NP[members]
        extra_MP = np.where(cost_MP < NEVER, cost_MP - cost_MP[:, [place]], NEVER)
        cheapest = np.argmin(extra_MP, axis=0)
        self._mover_PP[place] = members[cheapest]
        self._price_PP[place] = extra_MP[cheapest, np.arange(len(cheapest))]
        self._price_PP[place, place] = NEVER

    def _cheapest_chain(self, start_P: Bools, price_PP: Ints) -> list[int]:
        """Return the places along which moves cost the least, from a start to a free place; shortest paths by Bellman
        and Ford. Only the start is returned where no free place can be reached."""
        total_P = np.where(start_P, 0, NEVER)
        before_P = np.full(len(total_P), -1)
        places = np.arange(len(total_P))
        while True:
            through_PP = np.where((total_P < NEVER // 2)[:, None], total_P[:, None] + price_PP, NEVER)
            source = np.argmin(through_PP, axis=0)
            better = through_PP[source, places] < np.minimum(total_P, NEVER // 2)
            if not better.any():
                break
            before_P[better] = source[better]
            total_P[better] = through_PP[source, places][better]
        is_goal = (self._load_P < self._capacity_P) & ~start_P
        end = int(np.argmin(np.where(is_goal, total_P, NEVER)))
        if not is_goal[end] or total_P[end] >= NEVER // 2:
            return [int(np.argmax(start_P))]
        chain = [end]
        while before_P[chain[-1]] >= 0:
            chain.append(int(before_P[chain[-1]]))
        return chain[::-1]

    def _move_along(self, chain: list[int]) -> None:
        """Move one member of each place to the next."""
        movers = [int(self._mover_PP[a, b]) for a, b in pairwise(chain)]
        for mover, place in zip(movers, chain[1:], strict=True):
            self._place_N[mover] = place
        self._load_P[chain[0]] -= 1
        self._load_P[chain[-1]] += 1
        for place in chain:
            self._price_moves_from(place)

    def _exchange_between(self, first: int, second: int) -> None:
        leaving_first, extra_first = self._by_extra_cost(first, second)
        leaving_second, extra_second = self._by_extra_cost(second, first)
        both = min(len(extra_first), len(extra_second))
        num_pairs = int((extra_first[:both] + extra_second[:both] < 0).sum())
        num_first = num_pairs + min(self._free(second), int((extra_first[num_pairs:] < 0).sum()))
        num_second = num_pairs
        if num_first == num_pairs:
            num_second += min(self._free(first), int((extra_second[num_pairs:] < 0).sum()))
        self._place_N[leaving_first[:num_first]] = second
        self._place_N[leaving_second[:num_second]] = first
        self._load_P[first] += num_second - num_first
        self._load_P[second] += num_first - num_second
        self._price_moves_from(first)
        self._price_moves_from(second)

    def _by_extra_cost(self, place: int, other: int) -> tuple[Ints, Ints]:
        """Return the members of a place that can go to another, and what that costs more, the cheapest first."""
        members = self._members(place)
        members = members[self._cost_NP[members, other] < NEVER]
        extra_M = self._cost_NP[members, other] - self._cost_NP[members, place]
        order = np.argsort(extra_M, kind="stable")
        return members[order], extra_M[order]
