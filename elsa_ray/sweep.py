"""Runs a grid of experiments, each in a process of its own, and leaves out what is finished already.

A process a run: its memory is given back, its peak is its own, a crash takes nothing else along, and each run starts
from the same state, however many went before.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rich.console import Console

from elsa_ray.config.errors import InputError, unknown_name
from elsa_ray.config.sweep import Cell, Grid, load_grid, row_error
from elsa_ray.prepare import prepare
from elsa_ray.records.sweep_folder import RESULTS_MD, SweepFolder
from elsa_ray.records.sweep_progress import SweepProgress, figures_text, print_cells
from elsa_ray.records.sweep_table import CellRecord, check_metrics
from elsa_ray.records.uri import refuse_uri
from elsa_ray.resuming import can_go_on, has_changed

_POLL_SECONDS = 0.05
_REFUSED = 2
"""The exit code of a run that was not begun because of its input."""
_CONCLUDE_SECONDS = 120
"""How long a run that is told to end may take to write its records."""


@dataclass(frozen=True)
class Sweep:
    """A grid that was gone through.

    Attributes:
        folder: its runs and tables.
        records: one for each cell of the grid, also for such as were not asked for.
        failed: labels of the runs that were started and did not come to their end.
    """

    folder: Path
    records: tuple[CellRecord, ...]
    failed: tuple[str, ...]


def sweep(
    grid_path: str | Path,
    *,
    out: str | Path | None = None,
    jobs: int = 1,
    only: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    dry_run: bool = False,
    console: Console | None = None,
) -> Sweep:
    """Run what is not finished of a grid, and make its tables and plots.

    Args:
        grid_path: the grid file.
        out: the sweep's folder, new or an earlier one of the grid; by default ``runs/sweep-NAME``.
        jobs: runs at once.
        only: rows to run now; by default all. Tables show the whole grid in any case.
        seeds: of the grid's, to run now; by default all.
        dry_run: list the runs and their states; nothing is run or written.
        console: where progress is shown; None shows nothing.

    Raises:
        InputError: grid, base, a cell's config or an option is wrong; nothing was started.
        KeyboardInterrupt: by Ctrl-C; the runs under way have kept their finished rounds, and the tables are made.
    """
    console = console or Console(quiet=True)
    if jobs < 1:
        raise InputError("--jobs", jobs, "1 or more runs at once")
    refuse_uri("--out", out)
    grid = load_grid(grid_path)
    check_metrics(grid.config)
    cells = _chosen(grid, only, seeds)
    folder = SweepFolder(Path(out) if out is not None else Path("runs") / f"sweep-{grid.config.name}")
    folder.check()
    _check_whole(folder.unfinished(cells), console)
    if dry_run:
        records = [folder.record(grid, cell) for cell in cells]
        print_cells(cells, [record.status for record in records], console)
        return Sweep(folder.path, tuple(records), ())
    failed: list[str] = []
    with folder.opened() as lock:
        waiting = folder.unfinished(cells)
        num_finished = len({cell.key for cell in cells}) - len(waiting)
        _say(console, f"{len(waiting)} runs to do, {num_finished} finished before, in {folder.path}")
        try:
            with SweepProgress(console, len(waiting)) as progress:
                _run_all(waiting, folder, jobs, progress, lock, failed)
        finally:
            records = folder.write_results(grid)
            _say(console, f"results: {folder.path / RESULTS_MD}")
    return Sweep(folder.path, tuple(records), tuple(failed))


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def _chosen(grid: Grid, only: Sequence[str], seeds: Sequence[int] | None) -> list[Cell]:
    """Return the cells of the rows and seeds that are asked for."""
    for row in only:
        if row not in grid.config.rows:
            raise unknown_name("--only", row, grid.config.rows)
    for seed in seeds or ():
        if seed not in grid.config.seeds:
            raise InputError("--seeds", seed, f"seeds of the grid: {', '.join(map(str, grid.config.seeds))}")
    rows = only or list(grid.config.rows)
    wanted = grid.config.seeds if seeds is None else seeds
    return [cell for cell in grid.cells if cell.condition.row in rows and cell.seed in wanted]


def _check_whole(cells: Sequence[Cell], console: Console) -> None:
    """Prepare one cell of each condition, weights excepted: what only data, model or network can tell is told now."""
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(cell.condition.label, cell)
    with console.status("checking each row against data, model and network"):
        for cell in first.values():
            try:
                prepare(cell.config)
            except InputError as error:
                raise row_error(cell.condition, error) from None


def _run_all(
    cells: Sequence[Cell], folder: SweepFolder, jobs: int, progress: SweepProgress, lock: int, failed: list[str]
) -> None:
    """Run all cells, so many at once, half-run ones from their checkpoints on.

    The labels of those that fail are added to ``failed`` as it happens.
    """
    waiting, running = deque(cells), dict[str, tuple[Cell, subprocess.Popen[bytes]]]()
    resumed, refused = set[str](), set[str]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.popleft()
                if cell.key not in refused and can_go_on(folder.folder(cell)):
                    resumed.add(cell.key)
                    process = start_resume(cell, folder.folder(cell), folder.log_path(cell), lock)
                else:
                    place = folder.make_place(cell)
                    process = start_run(folder.config_path(cell), place, folder.log_path(cell), lock)
                running[cell.key] = cell, process
                if cell.key not in refused:
                    progress.begun(cell)
            time.sleep(_POLL_SECONDS)
            for cell, process in list(running.values()):
                if process.poll() is not None:
                    del running[cell.key]
                    is_refused = process.returncode == _REFUSED and cell.key in resumed - refused
                    # A cluster that does not answer is no reason to give up what was computed.
                    if is_refused and has_changed(folder.folder(cell), [_runtime_override(cell)]):
                        # Data or versions are others than when it was begun: it is run anew, as any other.
                        refused.add(cell.key)
                        waiting.appendleft(cell)
                        continue
                    run = folder.finished_run(cell)
                    if run is None:
                        failed.append(cell.label)
                        _say_killed(process.returncode, folder.log_path(cell))
                    progress.ended(cell, figures_text(run.figures) if run else f"failed: {folder.last_words(cell)}")
    finally:
        _end([process for _, process in running.values()])


def start_run(config: Path, folder: Path, log: Path, lock: int) -> subprocess.Popen[bytes]:
    """Start a run in a process that does not hear the terminal's Ctrl-C: the sweep alone tells it to end, and once.

    Args:
        config: its complete config.
        folder: the run folder, which is not there yet.
        log: where all lies that it says.
        lock: descriptor that stays open as long as it runs.
    """
    with log.open("wb") as output:
        return _start(["run", str(config), "--out", str(folder)], output, lock)


def start_resume(cell: Cell, folder: Path, log: Path, lock: int) -> subprocess.Popen[bytes]:
    """Go on with a cell's run as ``start_run`` starts one, with the ``runtime`` that the cell has now.

    Args:
        cell: the run's.
        folder: the run folder.
        log: where all lies that it has said; what it says is added.
        lock: as for ``start_run``.
    """
    with log.open("ab") as output:
        return _start(["run", "--resume", str(folder), "--set", _runtime_override(cell)], output, lock)


def _runtime_override(cell: Cell) -> str:
    return f"runtime={json.dumps(cell.config.model_dump(mode='json')['runtime'])}"


def _start(arguments: Sequence[str], output: BinaryIO, lock: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "elsa_ray", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=(lock,),
    )


def _say_killed(return_code: int, log: Path) -> None:
    """Add to what a run has said what killed it: out of memory, a process has no last words."""
    if return_code < 0:
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"killed by {signal.Signals(-return_code).name}\n")


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Tell runs to end, and wait until they have written what is finished."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _CONCLUDE_SECONDS
    try:
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for process in processes:
            process.kill()
            process.wait()
