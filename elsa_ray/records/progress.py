"""What a person sees of a run: its start, its progress, its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from elsa_ray.config.topology import GeneratedTopology
from elsa_ray.protocols.setting import Setting
from elsa_ray.records.answers import TextTable, all_tables, short_tables
from elsa_ray.records.assumptions import device_text, links_text
from elsa_ray.records.human import (
    codec_name,
    data_name,
    human_bytes,
    human_flops,
    human_joules,
    human_number,
    human_ratio,
    human_seconds,
    human_share,
    split_name,
)
from elsa_ray.records.round import Round
from elsa_ray.records.world_text import adversity_text, network_text, policy_text
from elsa_ray.tasks.task import Task


class RunProgress:
    """Shows rounds as they end: a bar on a terminal, one line a round elsewhere. Use it as a context manager.

    Args:
        setting: the run's circumstances.
        console: where to.
    """

    def __init__(self, setting: Setting, console: Console) -> None:
        self._console = console
        self._num_rounds = setting.config.protocol.rounds
        self._num_clients = setting.num_clients
        self._bar: Progress | None = None
        self._last_status = ""
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            columns = (
                TextColumn("rounds"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console, expand=True)
            self._task = self._bar.add_task("", total=self._num_rounds)
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def status(self, text: str) -> None:
        """Tell what is going on before the first round or between two."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=escape(text))
        elif text != self._last_status:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        self._last_status = text

    def announce(self, text: str) -> None:
        """Tell what stays on the screen."""
        console = self._bar.console if self._bar is not None else self._console
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    def round(self, round_: Round) -> None:
        """Show a round that has ended."""
        number = round_.report.round_index + 1
        text = round_text(round_, self._num_clients)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=number, description=text)
        else:
            self._console.print(f"round {number}/{self._num_rounds}: {text}", highlight=False, soft_wrap=True)


def round_text(round_: Round, num_clients: int) -> str:
    """Return a round's clients, simulated clock, bytes so far, and score in one line."""
    report = round_.report
    parts = [f"{len(report.participated)} of {num_clients} clients"]
    for clients, word in ((report.dropped, "dropped"), (report.late, "late"), (report.failed, "failed")):
        if clients:
            parts.append(f"{len(clients)} {word}")
    parts += [f"{human_seconds(report.simulated_seconds)} simulated", human_bytes(report.num_bytes)]
    if report.score is not None and report.score.accuracy is not None:
        parts.append(f"accuracy {human_share(report.score.accuracy)}")
    elif report.score is not None:
        parts.append(f"loss {human_number(report.score.loss)}")
    return ", ".join(parts)


def print_start(setting: Setting, console: Console) -> None:
    """Show what will run, with the defaults that shape its result."""
    config, task = setting.config, setting.task
    local = config.protocol.local_steps
    work = f"{local} local steps" if local is not None else f"{config.protocol.local_epochs} local epochs"
    learns = f"{len(task.label_names)} labels" if task.label_names else "next tokens"
    topology = config.topology
    links = (
        links_text(topology)
        if isinstance(topology, GeneratedTopology)
        else (f"{setting.network.where}: {network_text(setting.network)}")
    )
    adversity = adversity_text(config.world)
    rows = {
        "protocol": f"{config.protocol.name}, {config.protocol.rounds} rounds of {work}, "
        f"batches of {config.protocol.batch_size}",
        "model": f"{task.backbone.name}: {setting.shape.num_layers} blocks, "
        f"{setting.shape.num_parameters:,} parameters, "
        f"LoRA of rank {setting.layout.rank}, split {split_name(config)}",
        "data": f"{data_name(config)}: {_amount(task)}, {learns}",
        "network": f"{setting.num_clients} clients, {len(setting.network.edges)} edges; {links}; "
        f"shared by the model {setting.network_model.name}",
        "client": _clients_text(setting),
        "edge": f"{device_text(setting.fleet.edge)}; {config.world.edges.slots} slots",
        "edge round": policy_text(config.world.round_policy),
        **({"goes wrong": adversity} if adversity is not None else {}),
        "payloads": f"codec {codec_name(config)}, wire {config.protocol.wire_dtype}",
        "computed by": f"{config.runtime.executor}, in {config.numerics.precision} on {config.numerics.device}",
        "seed": str(config.seed),
    }
    _print_rows(rows, f"elsa-ray: {config.name}", console)


def _amount(task: Task) -> str:
    if task.planned_length is not None:
        return f"{task.partition.num_examples:,} in all, each {task.planned_length} tokens"
    return f"{len(task.train):,} training and {len(task.test):,} test texts"


def _clients_text(setting: Setting) -> str:
    kinds, capacities = setting.fleet.kinds(), setting.config.world.clients.capacities
    if capacities is not None:
        rates = [device.flops_per_second for device in setting.fleet.clients]
        return f"from {capacities.file}: {human_flops(min(rates))} to {human_flops(max(rates))}"
    if len(kinds) == 1:
        return device_text(next(iter(kinds)))
    return "\n".join(f"{number} × {device_text(device)}" for device, number in kinds.items())


def print_summary(summary: Mapping[str, Any], folder: Path, console: Console) -> None:
    """Show the end of a run: of a plan with all tables of its breakdown, else with those that say why it took so long.

    Args:
        summary: as ``make_summary`` returns it.
        folder: the run's.
        console: where to.
    """
    tables = all_tables(summary) if summary["executor"] == "none" else short_tables(summary)
    for table in tables:
        print_table(table, console)
    metrics = summary["metrics"]
    rows = {"ended by": f"{summary['stop_reason']}, after {summary['rounds_completed']} rounds"}
    if summary["accuracy"] is not None:
        best = f" (best {human_share(metrics['best_accuracy'])})"
        rows["accuracy"] = human_share(summary["accuracy"]) + best
    if summary["loss"] is not None:
        rows["loss"] = human_number(summary["loss"])
    if metrics["perplexity"] is not None:
        rows["perplexity"] = human_number(metrics["perplexity"])
    ratios = [human_ratio(summary[f"compression_ratio_{kind}"]) for kind in ("fp32", "bf16")]
    clients = [f"{summary['clients_participated']} of {summary['clients_total']} took part"]
    for what in ("dropped", "failed", "parked", "distrusted"):
        if summary[f"clients_{what}"]:
            clients.append(f"{summary[f'clients_{what}']} {what}")
    rows |= {
        "simulated time": human_seconds(summary["simulated_seconds"]),
        "bytes sent": f"{human_bytes(summary['bytes_total'])} ({ratios[0]} smaller than fp32, {ratios[1]} than bf16)",
        "simulated energy": human_joules(summary["simulated_energy_joules"]),
        "clients": ", ".join(clients),
        "wall-clock time": human_seconds(summary["wall_seconds"]),
        "host memory": human_bytes(summary["host_peak_memory_bytes"]),
        "folder": str(folder),
    }
    _print_rows(rows, f"{summary['name']}: {summary['protocol']}", console)


def _print_rows(rows: Mapping[str, str], title: str, console: Console) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console.print(table, highlight=False)


def print_table(text: TextTable, console: Console) -> None:
    """Show a table, with its note below."""
    table = Table(title=text.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for number, title in enumerate(text.header):
        table.add_column(title, justify="left" if number < text.num_texts else "right", header_style="dim")
    for row in text.rows:
        table.add_row(*map(escape, row))
    console.print()
    console.print(table, highlight=False)
    console.print(text.note, style="dim", markup=False, highlight=False)
