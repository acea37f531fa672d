"""Routes: the path of least total latency between two nodes, found by one search an end rather than one a pair.

Equal latency: the fewest hops; equal again: the smallest sequence of node ids, compared as texts. Clients never forward
for others. Latencies are summed as whole femtoseconds, so that "equal" is exact and does not depend on the order.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elsa_ray.network.graph import Network

FEMTOSECONDS_PER_SECOND = 10**15


@dataclass(frozen=True, slots=True)
class Route:
    """A path: its directed links in order, the latency in seconds, and the narrowest capacity in bytes per second."""

    links: tuple[int, ...]
    capacities: tuple[int, ...]
    """The capacity that each link draws from; a shared medium that is crossed twice occurs twice."""
    latency_seconds: float
    bottleneck_bytes_per_second: float
    """The rate of a transfer that is alone; inf where source and target are the same."""

    def seconds_alone(self, num_bytes: float) -> float:
        """Return how long a transfer takes that shares with nobody."""
        return self.latency_seconds + num_bytes / self.bottleneck_bytes_per_second


class Router:
    """Finds routes in a network, and keeps the searches that it has made."""

    def __init__(self, network: Network) -> None:
        """Index the links; nothing is searched yet."""
        self._network = network
        # Arrays, not lists: of millions of links no number is an object.
        self._source, self._target = (array("i", ends.tobytes()) for ends in (network.link_source, network.link_target))
        self._latency = [round(seconds * FEMTOSECONDS_PER_SECOND) for seconds in network.link_latency_seconds.tolist()]
        self._capacity = array("i", network.link_capacity.tobytes())
        self._bandwidth = array("d", network.capacity_bytes_per_second.tobytes())
        self._forwards = [kind != "client" for kind in network.node_kinds]
        self._links_out = _Adjacency(network.link_source, network.link_target, self._forwards)
        self._links_in = _Adjacency(network.link_target, network.link_source, self._forwards)
        by_name = sorted(range(len(network.node_names)), key=network.node_names.__getitem__)
        self._name_rank = array("i", [0]) * len(by_name)
        for rank, node in enumerate(by_name):
            self._name_rank[node] = rank
        self._trees_from: dict[int, _Tree] = {}
        self._trees_to: dict[int, _Tree] = {}
        self._between_gateways: dict[tuple[int, int], tuple[int, ...] | None] = {}

    @property
    def network(self) -> Network:
        """The network that the routes are in."""
        return self._network

    def route(self, source: int, target: int) -> Route | None:
        """Return the route between two nodes, by index, or None where there is none.

        It uses a search from or to either node if there was one; else it makes one at the end that is no client.
        """
        if source == target:
            return Route((), (), 0.0, math.inf)
        links = self._links_between(source, target)
        return None if links is None else self._describe(links)

    def _links_between(self, source: int, target: int) -> tuple[int, ...] | None:
        """Return the links of a route; between the gateways of two ends it is found only once."""
        first, last = self._links_out.only_link(source), self._links_in.only_link(target)
        if first < 0 and last < 0:
            return self._search_links(source, target)
        ends = (self._target[first] if first >= 0 else source, self._source[last] if last >= 0 else target)
        if ends[0] == target or ends[1] == source:  # the one link joins the ends themselves
            return (first if first >= 0 else last,)
        if ends not in self._between_gateways:
            is_upward = first >= 0 and last < 0
            self._between_gateways[ends] = self._search_links(*ends, is_upward=is_upward) if ends[0] != ends[1] else ()
        between = self._between_gateways[ends]
        if between is None:
            return None
        return (*((first,) if first >= 0 else ()), *between, *((last,) if last >= 0 else ()))

    def _search_links(self, source: int, target: int, *, is_upward: bool = False) -> tuple[int, ...] | None:
        is_upward = is_upward or (self._forwards[target] and not self._forwards[source])
        if target in self._trees_to or (is_upward and source not in self._trees_from):
            return self._walk(self._tree_to(target), source)
        return self._walk(self._tree_from(source), target)

    def routes(self, sources: Sequence[int], targets: Sequence[int]) -> list[Route | None]:
        """Return the route of each pair; searches start at the nodes that occur most often, on that side."""
        self.search(sources, targets)
        return [self.route(source, target) for source, target in zip(sources, targets, strict=True)]

    def search(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Make the searches that the routes of these pairs need, from the nodes that occur most often, on that side."""
        as_source, as_target = Counter(sources), Counter(targets)
        for source, target in zip(sources, targets, strict=True):
            if source == target or target in self._trees_to or source in self._trees_from:
                continue
            if as_target[target] > as_source[source]:
                self._tree_to(target)
            elif as_target[target] < as_source[source]:
                self._tree_from(source)

    def _tree_to(self, target: int) -> _Tree:
        if target not in self._trees_to:
            tree = self._search(target, toward_root=True)
            # All next hops differ, so the smallest sequence of ids is the one that goes on with the smallest id.
            tree.order = self._name_rank
            for node in tree.hops:
                if node != target:
                    tree.link[node] = self._best_link(tree, node)
            self._trees_to[target] = tree
        return self._trees_to[target]

    def _tree_from(self, source: int) -> _Tree:
        if source not in self._trees_from:
            tree = self._search(source, toward_root=False)
            self._order_by_sequence(tree)
            self._trees_from[source] = tree
        return self._trees_from[source]

    def _search(self, root: int, *, toward_root: bool) -> _Tree:
        """Find the least (latency, hops) between the root and all nodes that forward; Dijkstra's algorithm."""
        tree = _Tree(root, toward_root)
        links, far_end = (self._links_in, self._source) if toward_root else (self._links_out, self._target)
        frontier = [(0, 0, root)]
        while frontier:
            latency, hops, node = heapq.heappop(frontier)
            if node in tree.hops:
                continue
            tree.latency[node], tree.hops[node] = latency, hops
            for link in links.to_forwarders(node):
                neighbour = far_end[link]
                if neighbour not in tree.hops:
                    heapq.heappush(frontier, (latency + self._latency[link], hops + 1, neighbour))
        return tree

    def _order_by_sequence(self, tree: _Tree) -> None:
        """Choose each node's link, and order the nodes of equal hops by the sequence of ids from the root to them.

        Sequences of one length compare by all but their last id first: that is the order of the nodes before.
        """
        order = dict.fromkeys(tree.hops, 0)
        tree.order = order
        levels: dict[int, list[int]] = {}
        for node, hops in tree.hops.items():
            levels.setdefault(hops, []).append(node)
        for hops in sorted(levels)[1:]:
            level = levels[hops]
            for node in level:
                tree.link[node] = self._best_link(tree, node)
            level.sort(key=lambda node: (order[self._source[tree.link[node]]], self._name_rank[node]))
            for position, node in enumerate(level):
                order[node] = position

    def _best_link(self, tree: _Tree, node: int) -> int:
        """Return the link by which the best path between the node and the root touches the node; -1 for none."""
        links, far_end = (self._links_out, self._target) if tree.toward_root else (self._links_in, self._source)
        best, best_link = (math.inf, 0, 0), -1
        # The one client that can be in a tree is its root.
        for link in links.to_forwarders(node) if self._forwards[tree.root] else links.of(node):
            neighbour = far_end[link]
            if neighbour in tree.hops:
                total = tree.latency[neighbour] + self._latency[link]
                candidate = (total, tree.hops[neighbour] + 1, tree.order[neighbour])
                if candidate < best:
                    best, best_link = candidate, link
        return best_link

    def _walk(self, tree: _Tree, node: int) -> tuple[int, ...] | None:
        """Return the links of the path between the node and the tree's root, in the direction of travel."""
        far_end = self._target if tree.toward_root else self._source
        path = []
        while node != tree.root:
            # A client is in no tree but its own: it forwards for nobody, so its links are looked up when asked for.
            link = tree.link[node] if node in tree.link else self._best_link(tree, node)
            if link < 0:
                return None
            path.append(link)
            node = far_end[link]
        return tuple(path) if tree.toward_root else tuple(reversed(path))

    def _describe(self, links: tuple[int, ...]) -> Route:
        capacities = tuple([self._capacity[link] for link in links])
        latency = sum([self._latency[link] for link in links])
        if len(set(capacities)) == len(capacities):
            bottleneck = min([self._bandwidth[capacity] for capacity in capacities])
        else:
            crossed = Counter(capacities)
            bottleneck = min(self._bandwidth[capacity] / times for capacity, times in crossed.items())
        # A quotient of whole numbers is rounded once, correctly.
        return Route(links, capacities, latency / FEMTOSECONDS_PER_SECOND, bottleneck)


class _Adjacency:
    """The links at each node, of one direction, in order; those to nodes that forward are kept apart from the others.

    Args:
        near, far: the links' ends.
        forwards: which nodes do.
    """

    def __init__(self, near: NDArray[np.int32], far: NDArray[np.int32], forwards: Sequence[bool]) -> None:
        to_forwarder = np.array(forwards, bool)[far]
        self._all = _grouped(near, np.arange(len(near)), len(forwards))
        self._to_forwarders = _grouped(near[to_forwarder], np.flatnonzero(to_forwarder), len(forwards))
        self._forwards = forwards

    def of(self, node: int) -> Sequence[int]:
        """Return the links at a node."""
        links, first = self._all
        return links[first[node] : first[node + 1]]

    def to_forwarders(self, node: int) -> Sequence[int]:
        """Return those links at a node that join it with a node that forwards."""
        links, first = self._to_forwarders
        return links[first[node] : first[node + 1]]

    def only_link(self, node: int) -> int:
        """Return the one link of a client that hangs on a single node which forwards; -1 for any other node."""
        links, first = self._all
        if self._forwards[node] or first[node + 1] - first[node] != 1:
            return -1
        return links[first[node]] if len(self.to_forwarders(node)) else -1


def _grouped(owner: NDArray[np.int32], links: NDArray[np.int64], num_nodes: int) -> tuple[array[int], array[int]]:
    """Return the links sorted by their owner, and where each owner's begin."""
    first = np.zeros(num_nodes + 1, np.intc)
    np.cumsum(np.bincount(owner, minlength=num_nodes), out=first[1:])
    in_order = links[np.argsort(owner, kind="stable")].astype(np.intc)
    return array("i", in_order.tobytes()), array("i", first.tobytes())


class _Tree:
    """One search: for each node that forwards, its latency (femtoseconds), hops and link to or from the root."""

    __slots__ = ("hops", "latency", "link", "order", "root", "toward_root")

    def __init__(self, root: int, toward_root: bool) -> None:
        self.root = root
        self.toward_root = toward_root
        self.latency: dict[int, int] = {}
        self.hops: dict[int, int] = {}
        self.link: dict[int, int] = {}
        self.order: Mapping[int, int] | Sequence[int] = ()


def find_routes(network: Network, sources: Sequence[int], targets: Sequence[int]) -> list[Route | None]:
    """Return the route from each source to its target, by node index; None for a pair that no path joins."""
    return Router(network).routes(sources, targets)
