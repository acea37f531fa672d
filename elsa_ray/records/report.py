"""The report of a run: one HTML page with everything inside, made from the run's files alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from elsa_ray.config.errors import InputError
from elsa_ray.config.load import dump_config
from elsa_ray.config.task import SizesDataset
from elsa_ray.network import make_network
from elsa_ray.network.graph import Network
from elsa_ray.records import human
from elsa_ray.records.answers import all_tables
from elsa_ray.records.charts import SERIES, bar_chart, line_chart
from elsa_ray.records.drawing import MOST_CLIENTS_DRAWN, topology_svg
from elsa_ray.records.folder import REPORT
from elsa_ray.records.intervals import clients_of_round, longest_round
from elsa_ray.records.json_text import write_whole
from elsa_ray.records.profile import profile_table, read_profile
from elsa_ray.records.reading import RunRecord, read_run
from elsa_ray.records.timeline_charts import gantt_svg, links_svg
from elsa_ray.world.roles import Role

_MOST_NODES_DRAWN = 500
"""Besides clients: placing more takes longer than planning the run."""


@dataclass(frozen=True)
class Chart:
    """A chart on the page: its title, the SVG, and a line below."""

    title: str
    svg: Markup
    note: str = ""


def write_report(run_path: str | Path, out: str | Path | None = None) -> Path:
    """Write a run's report and return its path.

    Args:
        run_path: the run folder; the run may have been interrupted, or go on.
        out: the HTML file; by default ``report.html`` in the folder.

    Raises:
        InputError: the folder is no run, or its topology file is not there any more, or ``out`` cannot be written.
    """
    run = read_run(run_path)
    path = Path(out) if out is not None else run.path / REPORT
    try:
        write_whole(path, render_report(run))
    except OSError as error:
        raise InputError("--out", f"{path} ({error.strerror})", "a file that can be written") from error
    return path


def render_report(run: RunRecord) -> str:
    """Return the report as HTML; no part of it is loaded from elsewhere."""
    environment = Environment(
        loader=PackageLoader("elsa_ray.records", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    network = make_network(run.config.topology, run.config.seed, run.path)
    profile = read_profile(run.path)
    figures = run.figures
    return environment.get_template("report.html.jinja").render(
        human=human,
        config=run.config,
        config_text=dump_config(run.config),
        figures=figures,
        finished=run.summary is not None,
        headline=_headline(run, len(network.clients)),
        about=_about(run, network),
        learning=_learning_charts(run),
        spending=_spending_charts(figures),
        answers=all_tables(figures),
        pictures=_pictures_of_a_round(run, network),
        profile=[profile_table(profile)] if profile is not None else [],
        topology=_topology_chart(run, network),
        rounds=run.rounds,
        previous_bytes=[0, *(line["num_bytes"] for line in run.rounds)],
    )


def _headline(run: RunRecord, num_clients: int) -> list[tuple[str, str, str]]:
    """Return the great figures: label, value, remark."""
    figures = run.figures
    metrics, tiles = figures["metrics"], []
    if figures["accuracy"] is not None:
        tiles.append(
            ("accuracy", human.human_share(figures["accuracy"]), f"best {human.human_share(metrics['best_accuracy'])}")
        )
    elif metrics["perplexity"] is not None:
        tiles.append(
            ("perplexity", human.human_number(metrics["perplexity"]), f"loss {human.human_number(figures['loss'])}")
        )
    ratio = human.human_ratio(figures["compression_ratio_fp32"])
    rounds = f"{figures['rounds_completed']} rounds"
    took_part = figures["clients_participated"]
    dropped = f"{figures['clients_dropped']} dropped, {figures['clients_parked']} parked"
    energy = human.human_joules(figures["simulated_energy_joules"])
    return [
        *tiles,
        ("simulated time", human.human_seconds(figures["simulated_seconds"]), rounds),
        ("bytes sent", human.human_bytes(figures["bytes_total"]), f"{ratio} smaller than fp32"),
        ("simulated energy", energy, "clients and edge servers"),
        ("clients", f"{took_part:,}", f"of {num_clients:,}; {dropped}"),
        ("wall-clock time", human.human_seconds(figures["wall_seconds"]), f"executor {figures['executor']}"),
    ]


def _about(run: RunRecord, network: Network) -> dict[str, str]:
    config, figures = run.config, run.figures
    has_texts = not isinstance(config.task.dataset, SizesDataset)
    partition = f", partition {config.task.partition.kind}" if has_texts else ""
    about = {
        "protocol": f"{config.protocol.name}, split {human.split_name(config)}, codec {human.codec_name(config)}",
        "model": f"{config.task.model}, LoRA of rank {config.task.lora.rank}",
        "data": f"{human.data_name(config)}, {config.task.kind}{partition}",
        "network": f"{len(network.clients):,} clients, {len(network.edges):,} edge servers",
        "precision": str(figures.get("precision") or human.NOTHING),
        "seed": str(config.seed),
        "ended by": str(figures["stop_reason"] or "not ended yet"),
    }
    for name in ("config_sha256", "data_sha256"):
        if name in figures:
            about[name.replace("_", " ")] = str(figures[name])
    return about


def _learning_charts(run: RunRecord) -> list[Chart]:
    """Return the score over rounds, simulated time and bytes; nothing where nothing was evaluated."""
    measure = "accuracy" if run.config.task.kind == "classification" else "loss"
    lines = [line for line in run.rounds if line[measure] is not None]
    if not lines:
        return []
    scores = [line[measure] for line in lines]
    over: dict[str, tuple[Sequence[float], Callable[[float], str] | None]] = {
        "rounds": ([line["round"] + 1 for line in lines], None),
        "simulated time": ([line["simulated_seconds"] for line in lines], human.human_seconds),
        "bytes sent": ([line["num_bytes"] for line in lines], human.human_bytes),
    }
    charts = []
    for number, (axis, (x, x_format)) in enumerate(over.items()):
        svg = line_chart(
            f"learning{number}", x, scores, x_label=axis, y_label=measure, x_format=x_format, whole_x=x_format is None
        )
        charts.append(Chart(f"{measure.capitalize()} over {axis}", Markup(svg)))
    return charts


def _spending_charts(figures: dict[str, Any]) -> list[Chart]:
    charts = []
    if figures["bytes_by_role"]:
        svg = bar_chart("roles", figures["bytes_by_role"], human.human_bytes, color=SERIES[1])
        charts.append(Chart("Bytes by role", Markup(svg), "What the links carried, headers included."))
    spent = {
        kind: value for kind, value in figures["simulated_seconds_by_activity"]["mean_per_client"].items() if value
    }
    if spent:
        svg = bar_chart("simulated", spent, human.human_seconds, color=SERIES[2])
        note = "Mean of a client that took part, over the whole run: all of its time from opening to gather."
        charts.append(Chart("Where simulated time went", Markup(svg), note))
    wall = figures["wall_seconds_by_phase"]
    if wall:
        svg = bar_chart("wall", wall, human.human_seconds, color=SERIES[3])
        charts.append(Chart("Where wall-clock time went", Markup(svg), "On the machine that computed the run."))
    return charts


def _pictures_of_a_round(run: RunRecord, network: Network) -> list[Chart]:
    """Return what clients did and how busy links were in the round that took longest."""
    line = longest_round(run)
    if line is None:
        return []
    charts, which = [], f"round {line['round'] + 1}, the longest"
    shown = clients_of_round(run, line, network)
    if shown is not None:
        everybody = "All clients with work" if len(shown.names) == shown.num_clients else (
            f"The slowest and some typical ones of {shown.num_clients:,} clients, spread over the order in which they "
            "were done"
        )  # fmt: skip
        note = f"{everybody}; who is busy last on top. Queues are for a slot of the edge, or for the client."
        charts.append(Chart(f"A round: {which}", Markup(gantt_svg(shown)), note))
    if line["links"]:
        span = line["simulated_seconds"] - line["begin_simulated_seconds"]
        note = (
            "The links with the greatest use of those that several clients share, with the mean over the round; the "
            "dotted line is a link's capacity. Each transfer's bytes are spread evenly over the time in which it "
            "flowed, so that a band shows the load, not each change of rate."
        )
        charts.append(Chart(f"Busiest links: {which}", Markup(links_svg(line["links"], span)), note))
    return charts


def _topology_chart(run: RunRecord, network: Network) -> Chart:
    num_drawn = len(network.node_kinds) - len(network.clients)
    if num_drawn > _MOST_NODES_DRAWN:
        return Chart("Topology", Markup(""), f"Not drawn: {num_drawn:,} nodes besides the clients.")
    edge_of_client = _edges_of_clients(run, network)
    note = "Square: cloud. Diamonds: edge servers. Rings: routers."
    if len(network.clients) > MOST_CLIENTS_DRAWN:
        note += " Numbers: clients that attach there."
    elif edge_of_client:
        note += " Dots: clients, in the colour of the edge that they train through; faint ones took no part."
    else:
        note += " Dots: clients."
    return Chart("Topology", Markup(topology_svg(network, edge_of_client)), note)


def _edges_of_clients(run: RunRecord, network: Network) -> dict[str, str]:
    """Return the edge of each client by what it has sent up; nothing where the table cannot be read."""
    if len(network.clients) > MOST_CLIENTS_DRAWN:
        return {}
    try:
        table = run.transfers
    except InputError:
        return {}
    labels = [role.label for role in (Role.ADAPTER_UP, Role.ACTIVATION_UP)]
    is_up = partial(pc.is_in, value_set=pc.cast(labels, table.schema.field("role").type.value_type))
    sent = table.filter(is_up(pc.cast(table["role"], "string"))).select(["src", "dst"]).to_pylist()
    edges = {network.node_names[node] for node in network.edges}
    clients = {network.node_names[node] for node in network.clients}
    return {row["src"]: row["dst"] for row in sent if row["dst"] in edges and row["src"] in clients}
