"""When would these transfers finish? The library behind ``elsa-ray net``.

Fluid, flow-level: the standard model of network simulators, right for transfers much longer than a round trip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias, overload

import networkx as nx

from elsa_ray.config.errors import InputError, unknown_name
from elsa_ray.config.units import BYTES, SECONDS, parse_quantity
from elsa_ray.network.files import load_network
from elsa_ray.network.graph import Network, build_network, natural_key
from elsa_ray.network.models import NetworkModel, Way, find_model
from elsa_ray.network.routes import Router
from elsa_ray.network.schedule import CapacitySchedule

TRANSFER_COLUMNS = ("id", "src", "dst", "num_bytes", "start_seconds")
FINISH_COLUMNS = ("id", "start_seconds", "finish_seconds", "seconds_alone")

Topology: TypeAlias = Network | nx.Graph | nx.DiGraph | str | Path
Rows = Sequence[Mapping[str, Any]]
Columns = Mapping[str, Sequence[Any]]


@overload
def finish_times(
    graph: Topology, transfers: Columns, *, where: str = ..., model: str | NetworkModel = ...
) -> dict[str, list[Any]]: ...


@overload
def finish_times(
    graph: Topology, transfers: Rows, *, where: str = ..., model: str | NetworkModel = ...
) -> list[dict[str, Any]]: ...


def finish_times(
    graph: Topology,
    transfers: Rows | Columns,
    *,
    where: str = "transfers",
    model: str | NetworkModel = "fluid",
) -> list[dict[str, Any]] | dict[str, list[Any]]:
    """Return when each transfer finishes, and how long it would take alone.

    A transfer takes the path of least latency, waits that latency (times a factor, in ``tcp``), then shares every
    directed link that it crosses max-min fairly with all transfers active at that moment. Zero bytes cost latency only;
    source = destination costs nothing. Completions within 1e-12 relative are one instant.

    Args:
        graph: a network, a networkx graph with the attributes of a topology file, or a topology file.
        transfers: rows (mappings), or columns (a mapping of sequences), with ``id``, ``src``, ``dst`` (node ids),
            ``num_bytes`` and ``start_seconds`` (numbers >= 0, or texts with a unit).
        where: what to call the transfers in error messages, such as their file.
        model: ``fluid``, ``tcp``, or a model of your own.

    Returns:
        ``id`` as given, ``start_seconds``, ``finish_seconds`` and ``seconds_alone``, in the order of the input: rows
        for rows, columns for columns.

    Raises:
        InputError: the graph, the model or a transfer is wrong, no path joins a transfer's ends, or it never finishes
            because its path carries nothing for ever; it names the row, counted from 1.
    """
    network = _as_network(graph)
    chosen = find_model(model, "model") if isinstance(model, str) else model
    rows = _rows_of_columns(transfers, where) if isinstance(transfers, Mapping) else transfers
    read = _read_transfers(rows, network, where)
    ways = _find_all_ways(network, chosen, read, where)
    schedule = CapacitySchedule(
        network.capacity_bytes_per_second.tolist(), network.bandwidths, usable_part=chosen.usable_part
    )
    finishes = _play(schedule, read, ways)
    stuck = next((number for number, finish in enumerate(finishes) if finish == math.inf), None)
    if stuck is not None:
        allowed = "a path whose bandwidth does not stay 0 for ever"
        raise InputError(f"{where} row {stuck + 1}", "a transfer that never finishes", allowed)
    table = [
        {
            "id": transfer.id,
            "start_seconds": transfer.start_seconds,
            "finish_seconds": finish,
            "seconds_alone": seconds,
        }
        for transfer, finish, seconds in zip(read, finishes, _seconds_alone(schedule, read, ways), strict=True)
    ]
    if isinstance(transfers, Mapping):
        return {column: [row[column] for row in table] for column in FINISH_COLUMNS}
    return table


@dataclass(frozen=True, slots=True)
class _Transfer:
    id: Any
    source: int
    target: int
    num_bytes: float
    start_seconds: float


def _find_all_ways(network: Network, model: NetworkModel, transfers: Sequence[_Transfer], where: str) -> list[Way]:
    router = Router(network)
    router.search([transfer.source for transfer in transfers], [transfer.target for transfer in transfers])
    find_way = cache(partial(model.way, router))
    ways = []
    for number, transfer in enumerate(transfers, start=1):
        way = find_way(transfer.source, transfer.target)
        if way is None:
            source, target = network.node_names[transfer.source], network.node_names[transfer.target]
            allowed = f"a node that {source} reaches (clients forward for nobody)"
            raise InputError(f"{where} row {number}: dst", target, allowed)
        ways.append(way)
    return ways


def _play(schedule: CapacitySchedule, transfers: Sequence[_Transfer], ways: Sequence[Way]) -> list[float]:
    """Return each transfer's finish, in seconds; inf for one that never finishes."""
    arrives = [transfer.start_seconds + way.latency_seconds for transfer, way in zip(transfers, ways, strict=True)]
    # Flows are numbered by id, not by place in the input, so that the input's order cannot change a bit.
    in_id_order = sorted(range(len(transfers)), key=lambda row: natural_key(str(transfers[row].id)))
    carried = [row for row in in_id_order if transfers[row].num_bytes > 0 and ways[row].capacities]
    finishes = list(arrives)
    upcoming = sorted(range(len(carried)), key=lambda flow: (arrives[carried[flow]], flow), reverse=True)
    sharing = schedule.sharing(0.0)
    changes = schedule.changes(0.0)
    num_active = 0
    while upcoming or num_active:
        completion, change = sharing.next_completion(), changes.next_seconds
        arrival = arrives[carried[upcoming[-1]]] if upcoming else None
        now = min((time for time in (completion, arrival, change) if time is not None), default=math.inf)
        if now == math.inf:
            for flow in sharing.rates():
                finishes[carried[flow]] = math.inf
            break
        if completion is not None:
            for flow, finish in sharing.complete_until(now):
                finishes[carried[flow]] = finish
                num_active -= 1
        if change is not None:
            for capacity, bytes_per_second in changes.pop_until(now):
                sharing.set_capacity(capacity, bytes_per_second, now)
        while upcoming and arrives[carried[upcoming[-1]]] == now:
            flow = upcoming.pop()
            row, way = carried[flow], ways[carried[flow]]
            sharing.start(
                flow,
                transfers[row].num_bytes,
                way.capacities,
                now,
                way.coefficients,
                weight=way.weight,
                bound_bytes_per_second=way.bound_bytes_per_second,
            )
            num_active += 1
    return finishes


def _seconds_alone(schedule: CapacitySchedule, transfers: Sequence[_Transfer], ways: Sequence[Way]) -> Iterator[float]:
    """Yield how long each transfer would take without all others, under the same schedule."""
    changing = set(schedule.changing)
    for transfer, way in zip(transfers, ways, strict=True):
        if changing.isdisjoint(way.capacities):
            yield way.seconds_alone(transfer.num_bytes)
        else:
            (finish,) = _play(schedule, [transfer], [way])
            yield finish - transfer.start_seconds


def _as_network(graph: Topology) -> Network:
    if isinstance(graph, Network):
        return graph
    if isinstance(graph, str | Path):
        return load_network(graph, roles_required=False)
    return build_network(graph, "graph", roles_required=False)


def _rows_of_columns(columns: Columns, where: str) -> list[dict[str, Any]]:
    check_columns(columns, TRANSFER_COLUMNS, where)
    lengths = {name: len(columns[name]) for name in TRANSFER_COLUMNS}
    if len(set(lengths.values())) > 1:
        raise InputError(where, f"columns of different lengths: {lengths}", "columns of one length")
    values = [_plain(columns[name]) for name in TRANSFER_COLUMNS]
    return [dict(zip(TRANSFER_COLUMNS, row, strict=True)) for row in zip(*values, strict=True)]


def _plain(column: Sequence[Any]) -> list[Any]:
    """Return the column as a list; an array's numbers as Python's own."""
    return column.tolist() if hasattr(column, "tolist") else list(column)


def check_columns(found: Mapping[str, Any] | Sequence[str], expected: Sequence[str], where: str) -> None:
    """Refuse missing and unknown columns.

    Raises:
        InputError: it names the first such column.
    """
    for column in found:
        if column not in expected:
            raise unknown_name(f"{where}: columns", str(column), expected)
    for column in expected:
        if column not in found:
            raise InputError(f"{where}: columns", f"no {column}", ",".join(expected))


def _read_transfers(rows: Rows, network: Network, where: str) -> list[_Transfer]:
    seen: dict[str, int] = {}
    transfers = []
    for number, row in enumerate(rows, start=1):
        place = f"{where} row {number}"
        if not isinstance(row, Mapping):
            raise InputError(place, row, "a mapping with " + ",".join(TRANSFER_COLUMNS))
        check_columns(row, TRANSFER_COLUMNS, place)
        label = "" if row["id"] is None else str(row["id"])
        if not label.strip():
            raise InputError(f"{place}: id", "nothing", "an id that no other row has")
        if seen.setdefault(label, number) != number:
            raise InputError(f"{place}: id", label, f"an id that no other row has (row {seen[label]} has it)")
        transfers.append(
            _Transfer(
                row["id"],
                _node(row["src"], network, f"{place}: src"),
                _node(row["dst"], network, f"{place}: dst"),
                _number(row["num_bytes"], BYTES, f"{place}: num_bytes"),
                _number(row["start_seconds"], SECONDS, f"{place}: start_seconds"),
            )
        )
    return transfers


def _node(found: object, network: Network, where: str) -> int:
    name = "" if found is None else str(found)
    if name not in network:
        error = unknown_name(where, name, network.node_names)
        raise InputError(where, name or "nothing", f"the id of a node of {network.where}", nearest=error.nearest)
    return network.index(name)


def _number(found: object, units: dict[str, float], where: str) -> float:
    allowed = "a finite number >= 0"
    if hasattr(found, "item"):
        found = found.item()
    try:
        return parse_quantity(found, units, allowed)
    except (ValueError, OverflowError):
        raise InputError(where, "nothing" if found in (None, "") else found, allowed) from None
