"""The results of a sweep: a record a run, a line a condition with means over seeds, as JSON and as Markdown.

Everything is made from the run folders, so that it can be made again at any time. A value that a run does not have is
missing: it is counted, and never averaged.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from elsa_ray.config.errors import InputError, unknown_name
from elsa_ray.config.sweep import Cell, Condition, Grid, SweepConfig, TargetConfig, value_text
from elsa_ray.records import human
from elsa_ray.records.reading import RunRecord
from elsa_ray.records.statistics import Estimate, estimate, paired_difference
from elsa_ray.records.totals import Totals
from elsa_ray.world.roles import Role

SECONDS_TO_TARGET, BYTES_TO_TARGET = "simulated_seconds_to_target", "bytes_to_target"
CURVE_FIELDS = ("round", "simulated_seconds", "num_bytes", "accuracy", "loss")
_ABOUT = (
    *("protocol", "executor", "precision", "rounds_completed", "stop_reason", "wall_seconds"),
    *("config_sha256", "data_sha256", "versions", "hardware"),
)
_OF_THE_HOST = ("wall_seconds", "host_peak_memory_bytes", "clients_total", "edges_total")
_ROLES = "bytes_by_role."
_SHARES = ("accuracy", "best_accuracy", "macro_f1")

Status = Literal["finished", "failed", "interrupted", "unfinished", "not run"]


@dataclass(frozen=True)
class CellRecord:
    """One run of a sweep.

    Attributes:
        row, values, seed: which.
        status: only of a ``finished`` one figures are taken.
        message: what the run has said last, if it is not finished.
        folder: relative to the sweep's.
        date: when the run ended, of the host; ISO.
        metrics: by their names; None for one that the run does not have.
        about: what the figures were computed from, by and on.
        curve: the tested rounds; of each ``CURVE_FIELDS``.
    """

    row: str
    values: dict[str, Any]
    seed: int
    status: Status
    message: str = ""
    folder: str | None = None
    date: str | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    curve: Sequence[Mapping[str, Any]] = ()

    @property
    def is_finished(self) -> bool:
        """Whether the run has figures."""
        return self.status == "finished"

    def as_json(self) -> dict[str, Any]:
        """Return plain values, without the curve."""
        return {
            **{name: getattr(self, name) for name in ("row", "values", "seed", "status", "message", "folder", "date")},
            "metrics": dict(self.metrics),
            **self.about,
        }


@dataclass(frozen=True)
class TableLine:
    """A condition: what its seeds have shown.

    Attributes:
        condition: which.
        cells: its runs, in the order of the seeds.
        means: of each metric over the finished runs that have it.
        differences: of each metric to the baseline, over the seeds that both have; None for the baseline.
    """

    condition: Condition
    cells: tuple[CellRecord, ...]
    means: Mapping[str, Estimate]
    differences: Mapping[str, Estimate] | None

    @property
    def num_finished(self) -> int:
        """Runs that have figures."""
        return sum(cell.is_finished for cell in self.cells)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        differences = self.differences
        return {
            "row": self.condition.row,
            "values": dict(self.condition.values),
            "num_seeds": len(self.cells),
            "num_finished": self.num_finished,
            "means": {name: asdict(mean) for name, mean in self.means.items()},
            "differences": differences and {name: asdict(difference) for name, difference in differences.items()},
        }


def check_metrics(config: SweepConfig) -> None:
    """Refuse a metric that no summary has.

    Raises:
        InputError: with the nearest name.
    """
    for number, metric in enumerate(config.metrics):
        _check_metric(f"metrics.{number}", metric)


def _check_metric(where: str, metric: str) -> None:
    known: Any = {**Totals().figures(), **dict.fromkeys(_OF_THE_HOST)}
    known["bytes_by_role"] = dict.fromkeys(role.label for role in Role)
    del known["stop_reason"]
    *sections, last = metric.split(".")
    for section in sections:
        if not isinstance(known.get(section), dict):
            raise unknown_name(where, metric, known)
        known = known[section]
    # An empty mapping is filled by the run: its keys are not known before.
    if known and last not in known:
        prefix = "".join(f"{section}." for section in sections)
        raise unknown_name(where, metric, [prefix + name for name in known])
    if isinstance(known.get(last), dict):
        raise InputError(where, f"{metric}, which is no number", f"one number of it, such as {metric}.NAME")


def table_metrics(config: SweepConfig) -> list[str]:
    """Return the names of the table's columns: the metrics, and what it took to reach the target."""
    return [*config.metrics, *([SECONDS_TO_TARGET, BYTES_TO_TARGET] if config.target else [])]


def finished_record(config: SweepConfig, cell: Cell, run: RunRecord, *, folder: str, date: str) -> CellRecord:
    """Return the record of a finished run.

    Args:
        config: the grid's, which names the metrics.
        cell: which.
        run: its folder's content.
        folder: relative to the sweep's.
        date: when the run ended.
    """
    tested = [line for line in run.rounds if line["loss"] is not None]
    return CellRecord(
        cell.condition.row,
        dict(cell.condition.values),
        cell.seed,
        "finished",
        folder=folder,
        date=date,
        metrics=_metrics(config, run),
        about={name: run.figures.get(name) for name in _ABOUT},
        curve=[{name: line[name] for name in CURVE_FIELDS} for line in tested],
    )


def _metrics(config: SweepConfig, run: RunRecord) -> dict[str, float | None]:
    figures = {metric: _figure(run.figures, metric) for metric in config.metrics}
    if config.target is None:
        return figures
    seconds, num_bytes = _until(config.target, run.rounds)
    return {**figures, SECONDS_TO_TARGET: seconds, BYTES_TO_TARGET: num_bytes}


def _figure(figures: Mapping[str, Any], metric: str) -> float | None:
    value: Any = figures
    for key in metric.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None and metric.startswith(_ROLES):
        # Roles without a byte are left out of the summary.
        return 0
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _until(target: TargetConfig, rounds: Sequence[Mapping[str, Any]]) -> tuple[float | None, float | None]:
    """Return simulated seconds and bytes at the end of the first round whose test reaches the target."""
    for line in rounds:
        score = line[target.metric]
        if score is not None and target.is_reached(score):
            return line["simulated_seconds"], line["num_bytes"]
    return None, None


def make_table(grid: Grid, records: Sequence[CellRecord]) -> list[TableLine]:
    """Return a line for each condition of the grid, in its order.

    Args:
        grid: what was to run.
        records: one for each of the grid's cells, in its order.
    """
    cells: dict[str, list[CellRecord]] = {condition.label: [] for condition in grid.conditions}
    for cell, record in zip(grid.cells, records, strict=True):
        cells[cell.condition.label].append(record)
    lines = []
    for condition in grid.conditions:
        own, baseline = cells[condition.label], grid.baseline_of(condition)
        means, differences = {}, {}
        for metric in table_metrics(grid.config):
            values = _by_seed(own, metric)
            means[metric] = estimate(list(values.values()))
            if baseline is not None:
                differences[metric] = paired_difference(values, _by_seed(cells[baseline.label], metric))
        lines.append(TableLine(condition, tuple(own), means, differences if baseline is not None else None))
    return lines


def _by_seed(cells: Sequence[CellRecord], metric: str) -> dict[int, float]:
    values = {cell.seed: cell.metrics[metric] for cell in cells if cell.is_finished}
    return {seed: value for seed, value in values.items() if value is not None}


def results_json(grid: Grid, records: Sequence[CellRecord], lines: Sequence[TableLine]) -> dict[str, Any]:
    """Return all results as plain values."""
    return {
        "schema_version": 1,
        "name": grid.config.name,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "grid": grid.config.model_dump(mode="json"),
        "cells": [record.as_json() for record in records],
        "table": [line.as_json() for line in lines],
    }


def results_markdown(
    grid: Grid, records: Sequence[CellRecord], lines: Sequence[TableLine], plots: Mapping[str, str]
) -> str:
    """Return the results as a page.

    Args:
        grid: what was to run.
        records: one for each cell.
        lines: the table.
        plots: path of each plot by its title.
    """
    config = grid.config
    parts = [f"# {config.name}", *_header(grid, records), *_means(grid, lines)]
    if config.baseline is not None and len(config.rows) > 1:
        parts += _differences(grid, lines)
    parts += _missing(records)
    for title, path in plots.items():
        parts.append(f"## {title}\n\n![{title}]({path})")
    return "\n\n".join(parts) + "\n"


def _header(grid: Grid, records: Sequence[CellRecord]) -> list[str]:
    config = grid.config
    finished = [record for record in records if record.is_finished]
    factors = [f"{len(config.rows)} rows", *(f"{len(values)} of {key}" for key, values in config.vary.items())]
    runs = f"{' × '.join(factors)} × {len(config.seeds)} seeds = {len(records)} runs, {len(finished)} finished"
    days = sorted({record.date[:10] for record in finished if record.date})
    facts = {
        "runs": f"{runs}; seeds {', '.join(map(str, config.seeds))}",
        "base": f"`{config.base}`",
        "date": " to ".join(dict.fromkeys([days[0], days[-1]])) if days else human.NOTHING,
        "computed by": _told(finished, _computed_by),
        "hardware": _told(finished, lambda about: _listed(about["hardware"])),
        "versions": _told(finished, lambda about: _listed(about["versions"])),
    }
    return ["\n".join(f"- {name}: {_escaped(text)}" for name, text in facts.items())]


def _told(records: Sequence[CellRecord], tell: Callable[[Mapping[str, Any]], str]) -> str:
    """Return what all runs tell; where they differ, each with the number of runs that tell it."""
    counts = Counter(tell(record.about) for record in records)
    if len(counts) <= 1:
        return next(iter(counts), human.NOTHING)
    return "; ".join(f"{text} ({count} runs)" for text, count in counts.items())


def _computed_by(about: Mapping[str, Any]) -> str:
    executor, precision = about["executor"], about["precision"]
    return f"executor {executor}, {f'in {precision}' if precision else 'nothing trained'}"


def _listed(facts: Mapping[str, Any]) -> str:
    """Return facts in one line; what has facts of its own, such as the workers, stands in the runs' summaries."""
    listed = {name: fact if isinstance(fact, list) else [fact] for name, fact in facts.items() if fact is not None}
    return ", ".join(
        f"{name} {', '.join(map(str, each))}"
        for name, each in listed.items()
        if not any(isinstance(fact, Mapping) for fact in each)
    )


def _means(grid: Grid, lines: Sequence[TableLine]) -> list[str]:
    metrics = table_metrics(grid.config)
    table = [["row", *grid.config.vary, "n", *(_title(grid.config, metric) for metric in metrics)]]
    for line in lines:
        figures = [_estimate_text(line.means[metric], metric, line.num_finished) for metric in metrics]
        table.append([*_names(line), f"{line.num_finished}/{len(line.cells)}", *figures])
    note = (
        "Mean over seeds ± half of the 95 % confidence interval (Student's t, n − 1 degrees of freedom); no interval "
        "from one seed. n: runs that are finished, of all that belong here; a figure that fewer of them have tells so."
    )
    return ["## Results", note, _markdown_table(table, 1 + len(grid.config.vary))]


def _differences(grid: Grid, lines: Sequence[TableLine]) -> list[str]:
    metrics = table_metrics(grid.config)
    table = [["row", *grid.config.vary, *(_title(grid.config, metric) for metric in metrics)]]
    for line in lines:
        if line.differences is not None:
            figures = [_difference_text(line.differences[metric], metric, line.num_finished) for metric in metrics]
            table.append([*_names(line), *figures])
    note = (
        "Mean over the seeds that both have of (row − baseline), ± half of the 95 % confidence interval of that mean; "
        "shares in percentage points (pp)."
    )
    title = f"## Differences to {_escaped(grid.config.baseline or '')}, paired by seed"
    return [title, note, _markdown_table(table, 1 + len(grid.config.vary))]


def _missing(records: Sequence[CellRecord]) -> list[str]:
    missing = [record for record in records if not record.is_finished]
    if not missing:
        return []
    table = [["row", "values", "seed", "state", "last words"]]
    for record in missing:
        values = ", ".join(f"{key}={value_text(value)}" for key, value in record.values.items())
        table.append([record.row, values, str(record.seed), record.status, record.message])
    note = "Runs without figures; the command that made this page takes them up again."
    return ["## Missing", note, _markdown_table(table, len(table[0]))]


def _names(line: TableLine) -> list[str]:
    return [line.condition.row, *map(value_text, line.condition.values.values())]


def _title(config: SweepConfig, metric: str) -> str:
    target = config.target
    if target is None or metric not in (SECONDS_TO_TARGET, BYTES_TO_TARGET):
        return metric_title(metric)
    sign = "≥" if target.is_reached(target.value + 1) else "≤"
    until = f"until {target.metric.replace('_', ' ')} {sign} {metric_text(target.metric, target.value)}"
    return f"{'simulated seconds' if metric == SECONDS_TO_TARGET else 'bytes'} {until}"


def metric_title(metric: str) -> str:
    """Return a metric's name as people read it."""
    return metric.removeprefix("metrics.").replace("_", " ")


def metric_text(metric: str, value: float | None) -> str:
    """Return a metric's value with its unit, by the metric's name."""
    if metric.rpartition(".")[2] in _SHARES:
        return human.human_share(value)
    for unit, write in (
        ("bytes", human.human_bytes),
        ("joules", human.human_joules),
        ("seconds", human.human_seconds),
    ):
        if unit in metric:
            return write(value)
    return human.human_number(value)


def _estimate_text(mean: Estimate, metric: str, num_finished: int) -> str:
    if mean.mean is None:
        return human.NOTHING
    text = metric_text(metric, mean.mean)
    if mean.half_width is not None:
        text = f"{text} ± {metric_text(metric, mean.half_width)}"
    return text + _of_how_many(mean, num_finished)


def _difference_text(difference: Estimate, metric: str, num_finished: int) -> str:
    if difference.mean is None:
        return human.NOTHING
    sign = "+" if difference.mean > 0 else "−" if difference.mean < 0 else ""
    text = sign + metric_text(metric, abs(difference.mean))
    if difference.half_width is not None:
        text = f"{text} ± {metric_text(metric, difference.half_width)}"
    return text.replace(" %", " pp") + _of_how_many(difference, num_finished)


def _of_how_many(figure: Estimate, num_finished: int) -> str:
    return "" if figure.num_values == num_finished else f" (n = {figure.num_values})"


def _markdown_table(table: Sequence[Sequence[str]], num_left: int) -> str:
    """Return a table whose first row is its header and whose first columns stand left."""
    header, *lines = [[_escaped(text) for text in line] for line in table]
    rule = ["---" if column < num_left else "---:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *lines])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
