"""Which split each client gets with ``split: auto``: the fastest training step that memory and privacy allow.

A reconstruction: the paper says that the split is dynamic and resource-aware, not by which rule (methods.md 1.8).

``balanced_splits`` makes the slowest edge's step short, for rounds wait for the slowest: a client with a fast device
spares a crowded edge for those with slow ones. It tries several prices of edge time, and for each price
``choose_splits`` minimises the sum of the clients' own step times, of equal sums the largest: where ``max_splits``
binds, the largest alone would say nothing about all the others.

The price of a change enters twice: the transfer of blocks that a node lacks is spread over the steps to come
(``switch_seconds_NX``), and a client's present split counts with a discount (hysteresis). Where all could stay as they
are, those who change gain more than the hysteresis together; so does each by itself, unless its present split lost its
place among the ``max_splits``.

Shapes: N clients, L blocks, X options (splits, most private first).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from elsa_ray.config.errors import InputError
from elsa_ray.model.adapters import AdapterLayout
from elsa_ray.model.cost import step_flops
from elsa_ray.model.shape import ModelShape
from elsa_ray.model.split import Part, Split

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

DEFAULT_MIN_FRONT = 2
NO_OPTION = -1
"""Stands for the present split of a client that has none."""

_FIELD = "protocol.split.auto"

PRICES = tuple(step / 8 for step in range(9))
"""Prices of edge time that are tried, in units of the even share."""

Score = tuple[int, float, float]
"""Clients without a split, the sum of the others' costs, the largest cost: smaller is better, in this order."""


def split_options(num_layers: int, *, min_front: int | None = None, min_back: int = 0) -> tuple[Split, ...]:
    """Return every split that leaves the edge a block and keeps the floors, most private first.

    More blocks on the client hide more, and of equal numbers more blocks in front of the first cut. So the lowest index
    among equally fast options is the most private one.

    Args:
        num_layers: L.
        min_front: privacy floor, p. None stands for 2, or for what a shallower model allows.
        min_back: least o.

    Raises:
        InputError: no split keeps the floors.
    """
    most_front = num_layers - 1 - min_back
    floor = min(DEFAULT_MIN_FRONT, max(most_front, 1)) if min_front is None else min_front
    if floor > most_front:
        raise InputError(
            _FIELD,
            f"min_front {floor} + min_back {min_back} of {num_layers} blocks",
            f"min_front + min_back <= {num_layers - 1}, so that the edge has a block",
        )
    splits = [
        Split(front, num_layers - front - back, back)
        for front in range(floor, most_front + 1)
        for back in range(min_back, num_layers - front)
    ]
    return tuple(sorted(splits, key=lambda split: (split.middle, -split.front)))


def step_flops_NX(
    shape: ModelShape, layout: AdapterLayout, options: Sequence[Split], *, batch_N: Ints, length_N: Ints
) -> tuple[Ints, Ints]:
    """Return the FLOPs of a training step on the client and on the edge, each [N, X].

    Args:
        shape: the model.
        layout: its trained tensors.
        options: the splits.
        batch_N: texts of each client's usual step.
        length_N: tokens of each text.
    """
    steps = [step_flops(shape, layout, option) for option in options]
    on_client = [step.front_forward + step.back_forward_backward + step.front_backward for step in steps]
    on_edge = [step.middle_forward + step.middle_backward for step in steps]
    client_NX, edge_NX = (
        np.stack([flops.total(batch_N, length_N) for flops in side], axis=1) for side in (on_client, on_edge)
    )
    return client_NX, edge_NX


def step_seconds_NX(
    client_flops_NX: npt.ArrayLike,
    edge_flops_NX: npt.ArrayLike,
    *,
    client_flops_per_second_N: npt.ArrayLike,
    edge_flops_per_second_N: npt.ArrayLike,
    edge_slots_N: npt.ArrayLike,
    active_members_N: npt.ArrayLike,
    network_seconds_N: npt.ArrayLike,
) -> Floats:
    """Predict the seconds of one training step (methods.md 1.8): computation on both sides and the four messages.

    An edge's slots are shared evenly by its active members; one member uses one slot at most. Every cut has the same
    width, so the messages take the same time under every option.

    Args:
        client_flops_NX, edge_flops_NX: of a step.
        client_flops_per_second_N: of each client's device.
        edge_flops_per_second_N: of one slot of each client's edge.
        edge_slots_N: of that edge; one number for all will do.
        active_members_N: clients that train through that edge at a time, this one included.
        network_seconds_N: of the four messages over the client's links, latencies included.
    """
    slots_N, members_N = np.asarray(edge_slots_N, np.float64), np.asarray(active_members_N, np.float64)
    edge_rate_N = np.asarray(edge_flops_per_second_N, np.float64) * np.minimum(1.0, slots_N / members_N)
    client_rate_N = np.asarray(client_flops_per_second_N, np.float64)
    seconds_NX: Floats = (
        np.asarray(client_flops_NX, np.float64) / client_rate_N[:, None]
        + np.asarray(edge_flops_NX, np.float64) / edge_rate_N[:, None]
        + np.asarray(network_seconds_N, np.float64)[:, None]
    )
    return seconds_NX


def missing_blocks_NX(options: Sequence[Split], held_NL: Bools, *parts: Part) -> Ints:
    """Return how many blocks of the given parts of each option a node lacks.

    Args:
        options: the splits.
        held_NL: whether the client (or, for the middle part, its edge) holds a block already.
        parts: front and back for clients, middle for edges.
    """
    needed_LX = np.zeros((held_NL.shape[1], len(options)), np.int64)
    for x, option in enumerate(options):
        for part in parts:
            needed_LX[option.layers(part), x] = 1
    lacking_NL = (~held_NL).astype(np.int64)
    missing: Ints = lacking_NL @ needed_LX
    return missing


def switch_seconds_NX(
    missing_blocks_NX: npt.ArrayLike, *, block_num_bytes: int, bytes_per_second_N: npt.ArrayLike, horizon_steps: float
) -> Floats:
    """Return what the transfer of missing frozen blocks adds to each of the steps to come.

    Zero where a node holds all blocks of an option.

    Args:
        missing_blocks_NX: blocks that the node lacks.
        block_num_bytes: of one frozen block (``weights_down``).
        bytes_per_second_N: bottleneck of the way from the cloud to the node.
        horizon_steps: steps over which the transfer is spread: those until splits may change again, or to the end.
    """
    missing_NX = np.asarray(missing_blocks_NX, np.float64)
    seconds_a_block_N = block_num_bytes / np.asarray(bytes_per_second_N, np.float64)
    seconds_NX: Floats = missing_NX * seconds_a_block_N[:, None] / horizon_steps
    return seconds_NX


def fits_NX(
    *,
    client_bytes_NX: npt.ArrayLike,
    client_memory_bytes_N: npt.ArrayLike,
    client_name: Callable[[int], str],
    edge_member_bytes_NX: npt.ArrayLike,
    edge_frozen_bytes: int,
    edge_memory_bytes_N: npt.ArrayLike,
    active_members_N: npt.ArrayLike,
    edge_name: Callable[[int], str],
) -> Bools:
    """Return which options fit the memory of the client and its share of the edge's memory.

    The share is an equal part of what the frozen blocks leave: while so many members train there and each keeps to it,
    the edge keeps to its memory. With the frozen blocks of all options it may hold fewer.

    Args:
        client_bytes_NX: see ``client_memory_bytes``.
        client_memory_bytes_N: of each client's device; may be infinite.
        client_name: of the client in a row, for the error.
        edge_member_bytes_NX: see ``edge_member_bytes``.
        edge_frozen_bytes: of the blocks that an edge holds.
        edge_memory_bytes_N: of each client's edge; may be infinite.
        active_members_N: clients that train through that edge at a time, this one included.
        edge_name: of the edge of the client in a row, for the error.

    Raises:
        InputError: no option fits a client. It names the first one that cannot hold any, or else the edge that lacks
            most; the bytes that are missing, and what is allowed.
    """
    client_NX = np.asarray(client_bytes_NX, np.float64)
    memory_N, edge_memory_N = np.asarray(client_memory_bytes_N, np.float64), np.asarray(edge_memory_bytes_N, np.float64)
    members_N = np.asarray(active_members_N, np.float64)
    edge_NX = edge_frozen_bytes + members_N[:, None] * np.asarray(edge_member_bytes_NX, np.float64)
    on_client_NX, on_edge_NX = client_NX <= memory_N[:, None], edge_NX <= edge_memory_N[:, None]
    fits: Bools = on_client_NX & on_edge_NX
    if fits.any(axis=1).all():
        return fits
    without = np.flatnonzero(~on_client_NX.any(axis=1))
    if len(without):
        n = int(without[0])
        needed = client_NX[n].min()
        found = f"{client_name(n)} with {memory_N[n]:,.0f} bytes for training, {needed - memory_N[n]:,.0f} too few"
        allowed = f"at least {needed:,.0f} bytes, the least that a split needs; or a smaller batch_size or max_length"
        raise InputError("world.clients.device", found, allowed)
    # Of the options that a client can hold, the one that asks least of the edge.
    needed_N = np.ceil(np.where(on_client_NX, edge_NX, np.inf).min(axis=1))
    n = int(np.argmax(needed_N - edge_memory_N))
    needed, memory = needed_N[n], edge_memory_N[n]
    found = (
        f"{edge_name(n)} with {memory:,.0f} bytes for training, {needed - memory:,.0f} too few where {members_N[n]:,g} "
        "clients train at a time"
    )
    allowed = (
        f"at least {needed:,.0f} bytes, for each may need as much as {client_name(n)}; or more edges, a smaller "
        "participation, batch_size or max_length"
    )
    raise InputError("world.edges.device", found, allowed)


def choose_splits(seconds_NX: Floats, fits_NX: Bools, held_N: Ints, max_splits: int, hysteresis: float = 0.1) -> Ints:
    """Return each client's option: the fastest that fits, with at most ``max_splits`` different ones over all clients.

    If the clients' own best options are few enough, the result is exactly those. Else a set of options is grown one by
    one, each time by the one that helps most, and then improved by exchanging one option for another until nothing
    helps: the usual heuristic for k-medians. It starts from the present options, from nothing, and from each option
    that is somebody's best; the cheapest result counts.

    Args:
        seconds_NX: predicted seconds of a step, the price of a change included; finite where an option fits.
        fits_NX: whether memory allows it; some option for each client.
        held_N: index of each client's present option, or -1.
        max_splits: most different options.
        hysteresis: a client leaves its present option only for a gain above this share of its step.

    Raises:
        InputError: no set of ``max_splits`` options was found that fits all clients.
    """
    if not len(held_N):
        return held_N
    cost_NX = np.where(fits_NX, seconds_NX, np.inf)
    stays_N = held_N != NO_OPTION
    cost_NX[stays_N, held_N[stays_N]] *= 1 - hysteresis
    options = _selected(cost_NX, held_N, max_splits)
    chosen_N = _cheapest(cost_NX, held_N, options)
    without = int(np.isinf(cost_NX[np.arange(len(chosen_N)), chosen_N]).sum())
    if without:
        raise InputError(
            f"{_FIELD}.max_splits", f"{max_splits}, which leaves {without} clients without a split that fits", "more"
        )
    return chosen_N


def balanced_splits(
    alone_NX: Floats,
    edge_seconds_NX: Floats,
    fits_NX: Bools,
    held_N: Ints,
    *,
    edge_N: Ints,
    edge_slots: int,
    participation: float,
    max_splits: int,
    hysteresis: float = 0.1,
) -> Ints:
    """Return each client's option such that the slowest edge's step is short: its slowest member's, or its own load's.

    What a client leaves to its edge delays the others there. So several prices of edge time are tried, from none at all
    to an even share for every member, and for each the clients choose (``choose_splits``); so is every single option
    for all. Of these choices the one with the shortest step counts (``step_seconds_of_choice``), of equal ones the one
    of the least sum over the clients, then the first.

    Args:
        alone_NX: seconds of a step if the client had its edge for itself, the price of a change included.
        edge_seconds_NX: seconds of it on a slot of the edge.
        fits_NX: whether memory allows it; some option for each client.
        held_N: index of each client's present option, or -1.
        edge_N: the clients' edges.
        edge_slots: of each edge.
        participation: share of an edge's members that train at a time.
        max_splits: most different options.
        hysteresis: see ``choose_splits``; the present choice as a whole also stays unless the step gains as much.

    Raises:
        InputError: no set of ``max_splits`` options was found that fits all clients.
    """
    if not len(held_N):
        return held_N
    members_N = np.maximum(1.0, np.bincount(edge_N)[edge_N] * participation / edge_slots)
    rows, choices = np.arange(len(held_N)), []
    for share in PRICES:
        priced_NX = alone_NX + share * (members_N - 1)[:, None] * edge_seconds_NX
        choices.append(choose_splits(priced_NX, fits_NX, held_N, max_splits, hysteresis))
    choices += [np.full(len(held_N), option) for option in np.flatnonzero(fits_NX.all(axis=0)).tolist()]

    def figures(chosen_N: Ints) -> tuple[float, float]:
        alone_N, at_edge_N = alone_NX[rows, chosen_N], edge_seconds_NX[rows, chosen_N]
        seconds = step_seconds_of_choice(alone_N, at_edge_N, edge_N, edge_slots=edge_slots, participation=participation)
        return seconds, float(alone_N.sum())

    best_N = min(choices, key=figures)
    stays = (held_N != NO_OPTION).all() and len(np.unique(held_N)) <= max_splits and fits_NX[rows, held_N].all()
    if stays and figures(best_N)[0] >= (1 - hysteresis) * figures(held_N)[0]:
        return held_N
    return best_N


def step_seconds_of_choice(
    alone_N: Floats, edge_seconds_N: Floats, edge_N: Ints, *, edge_slots: int, participation: float
) -> float:
    """Predict a step of the slowest edge: no shorter than its slowest member's, nor than its slots need for all."""
    load_K = np.bincount(edge_N, weights=edge_seconds_N) * participation / edge_slots
    return float(max(alone_N.max(), load_K.max()))


def _selected(cost_NX: Floats, held_N: Ints, max_splits: int) -> list[int]:
    """Return at most ``max_splits`` options, in the order of their indices."""
    wanted: list[int] = np.unique(_cheapest(cost_NX, held_N, list(range(cost_NX.shape[1])))).tolist()
    if len(wanted) <= max_splits:
        return wanted
    can_stay_N = np.isfinite(cost_NX[np.arange(len(held_N)), held_N]) & (held_N != NO_OPTION)
    held: list[int] = np.unique(held_N[can_stay_N]).tolist()
    starts = [held] if len(held) <= max_splits else []
    starts += [[], *([option] for option in wanted)]
    cost_XN = np.ascontiguousarray(cost_NX.T)
    # Many starts grow into the same set: it is improved once.
    grown = dict.fromkeys(tuple(sorted(_grown(cost_XN, start, max_splits))) for start in starts)
    found = [_exchanged(cost_XN, list(options)) for options in grown]
    scores = [_score(cost_XN[options].min(axis=0)) for options in found]
    return sorted(found[scores.index(min(scores))])


def _cheapest(cost_NX: Floats, held_N: Ints, options: list[int]) -> Ints:
    """Return each client's cheapest of some options: of equal ones the present one, else the first."""
    rows = np.arange(len(cost_NX))
    chosen_N = np.array(options, np.int64)[np.argmin(cost_NX[:, options], axis=1)]
    stays_N = np.isin(held_N, options) & (cost_NX[rows, held_N] <= cost_NX[rows, chosen_N])
    return np.where(stays_N, held_N, chosen_N)


def _grown(cost_XN: Floats, start: list[int], max_splits: int) -> list[int]:
    """Add the option that helps most, as long as one helps and there is room."""
    options = list(start)
    cost_N = cost_XN[options].min(axis=0, initial=np.inf)
    while len(options) < max_splits:
        best, score = _best_addition(cost_XN, cost_N)
        if score >= _score(cost_N):
            break
        options.append(best)
        cost_N = np.minimum(cost_N, cost_XN[best])
    return options


def _exchanged(cost_XN: Floats, options: list[int]) -> list[int]:
    """Exchange one option for another, the best exchange first, as long as one helps."""
    options, score = list(options), _score(cost_XN[options].min(axis=0))
    while True:
        exchanges = []
        for position in range(len(options)):
            others = options[:position] + options[position + 1 :]
            best, score_then = _best_addition(cost_XN, cost_XN[others].min(axis=0, initial=np.inf))
            exchanges.append((score_then, position, [*others, best]))
        score_then, _, then = min(exchanges)
        if score_then >= score:
            return options
        options, score = then, score_then


def _best_addition(cost_XN: Floats, cost_N: Floats) -> tuple[int, Score]:
    """Return the option that helps most beside those that give ``cost_N``, and the score with it."""
    scores = [_score(np.minimum(cost_N, option_N)) for option_N in cost_XN]
    best = min(range(len(scores)), key=scores.__getitem__)
    return best, scores[best]


def _score(cost_N: Floats) -> Score:
    finite = cost_N[np.isfinite(cost_N)]
    return len(cost_N) - len(finite), float(finite.sum()), float(finite.max(initial=0.0))
