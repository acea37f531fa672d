"""Runs the loop of an experiment and writes down each round, whatever ends it."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console

from elsa_ray.config.errors import InputError
from elsa_ray.experiment import rounds
from elsa_ray.model.adapters import Adapters
from elsa_ray.prepare import Prepared
from elsa_ray.records.adapter import export_adapter
from elsa_ray.records.folder import RunFolder, forget_parts
from elsa_ray.records.log import logged_to
from elsa_ray.records.mirror import Mirror, StorageError
from elsa_ray.records.profile import Profile, profile_table, write_profile
from elsa_ray.records.progress import RunProgress, print_start, print_summary, print_table
from elsa_ray.records.report import write_report
from elsa_ray.records.round import Round
from elsa_ray.records.summary import make_summary
from elsa_ray.runtime.checkpoints import Checkpoint, Checkpoints, checkpoint_numbers
from elsa_ray.runtime.fingerprint import Workers, describe_workers, differences, joined
from elsa_ray.runtime.hardware import describe_hardware
from elsa_ray.runtime.provenance import Provenance
from elsa_ray.signals import uninterrupted
from elsa_ray.starting import started_executor
from elsa_ray.world.timeline import WorldState

_LOGGER = logging.getLogger("elsa_ray")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: its records.
        summary: the content of summary.json.
        adapters: the final global adapters by name; None if nothing was trained.
    """

    folder: Path
    summary: dict[str, Any]
    adapters: Adapters | None


class Recorder:
    """Runs the loop and writes down each round, whatever ends it.

    A new run is kept before anything is loaded: as a checkpoint after no round, without adapters, which are loaded or
    made from the seed.

    Args:
        prepared: the run's parts.
        provenance: what the run rests on.
        folder: for its records.
        mirror: keeps the storage like the folder.
        console: where progress is shown.
        before: the state to go on from; None for a new run.
        shows_profile: whether a table shows at the end where the wall time went.

    Raises:
        InputError: the protocol's state has a type that no checkpoint can hold.
    """

    def __init__(
        self,
        prepared: Prepared,
        provenance: Provenance,
        folder: RunFolder,
        mirror: Mirror,
        console: Console,
        before: Checkpoint | None = None,
        *,
        shows_profile: bool = False,
    ) -> None:
        self._shows_profile = shows_profile
        self._prepared, self._folder, self._console, self._before = prepared, folder, console, before
        self._mirror = mirror
        self._state = before.protocol if before is not None else prepared.protocol.start(None)
        self._world_state = before.world if before is not None else prepared.world.start()
        self._rounds_before = self._state.round_index
        self._checkpoints = Checkpoints(
            folder.path,
            prepared.config.runtime.keep_checkpoints,
            provenance,
            prepared.setting.task.data_sha256,
            type(self._state),
        )
        self._worker_memory_bytes = 0
        self._profile = Profile()
        self._workers: Workers = {}
        self._begin = perf_counter()

    def record(self, address: str | None) -> Run:
        """Run to the end, or until something ends it; what is finished is kept in any case."""
        with logged_to(self._folder.path / "run.log"):
            return self._record(address)

    def _record(self, address: str | None) -> Run:
        print_start(self._prepared.setting, self._console)
        if self._before is not None:
            text = f"going on after round {self._rounds_before}" if self._rounds_before else "going on from the start"
            self._console.print(text)
            _LOGGER.info(text)
        try:
            with RunProgress(self._prepared.setting, self._console) as progress:
                self._loop(address, progress)
        except KeyboardInterrupt:
            _LOGGER.warning("interrupted")
            self._keep_what_is_finished("interrupted")
            self._tell_how_to_go_on()
            raise
        except Exception as error:
            _LOGGER.exception("failed: %s", error)
            self._keep_what_is_finished("failed")
            if self._state.round_index > self._rounds_before or not isinstance(error, InputError):
                self._tell_how_to_go_on()
            raise
        return self._conclude(None)

    def _loop(self, address: str | None, progress: RunProgress) -> None:
        if self._before is None:
            with uninterrupted():
                self._keep(self._world_state)
            self._mirror.catch_up()
        with started_executor(self._prepared, address, progress) as (executor, adapters):
            self._workers = executor.fingerprints()
            self._tell_of_unlike_workers()
            if not self._rounds_before:
                self._state = self._prepared.protocol.start(adapters)
            executor.take_wall_seconds()  # of the start, in which workers that are there wait for others
            for finished in rounds(self._prepared, self._state, executor, self._world_state):
                with uninterrupted():
                    self._write(finished)
                self._mirror.catch_up()
                executor.observe(finished.report, finished.results, finished.wall_seconds)
                progress.round(finished)
                self._profile.add(executor.take_wall_seconds())
                _LOGGER.info("round %d of %s is finished", finished.state.round_index, self._prepared.config.name)
            self._worker_memory_bytes = executor.peak_memory_bytes()

    def _keep_what_is_finished(self, stop_reason: str) -> None:
        """Conclude a run that has ended early; a second mistake must not hide the first."""
        try:
            self._conclude(stop_reason)
        except StorageError as error:
            self._console.print(str(error), soft_wrap=True, markup=False, highlight=False)
        except Exception as error:
            _LOGGER.exception("while concluding: %s", error)
            self._console.print(f"the records are incomplete: {error}", markup=False, highlight=False)

    def _tell_how_to_go_on(self) -> None:
        if checkpoint_numbers(self._folder.path):
            text = f"to go on: elsa-ray run --resume {shlex.quote(str(self._folder.path))}"
            self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def _write(self, finished: Round) -> None:
        """Record a round, and write the checkpoint after it."""
        self._folder.write_round(finished, self._prepared.setting)
        self._state = finished.state
        self._keep(finished.world_state)

    def _keep(self, world_state: WorldState) -> None:
        """Write the checkpoint after all rounds so far."""
        workers = {kind: tuple(dict.fromkeys(prints)) for kind, prints in self._all_workers().items()}
        records, wall_seconds = self._folder.state(), self._wall_seconds()
        self._checkpoints.write(Checkpoint(self._state, world_state, records, wall_seconds, workers))

    def _all_workers(self) -> Workers:
        """Return the fingerprints of all workers that the run has had, those before an interruption included."""
        return joined(self._before.workers if self._before is not None else {}, self._workers)

    def _tell_of_unlike_workers(self) -> None:
        """Tell where those of now are unlike those before an interruption; the executor tells of the others."""
        among_themselves = differences(self._workers)
        for line in differences(self._all_workers()):
            if line not in among_themselves:
                text = f"not bit-reproducible: {line}"
                self._console.print(text, soft_wrap=True, markup=False, highlight=False)
                _LOGGER.warning(text)

    def _wall_seconds(self) -> float:
        """Return the host's time for the run so far, that of the parts before an interruption included."""
        return perf_counter() - self._begin + (self._before.wall_seconds if self._before is not None else 0.0)

    def _conclude(self, stop_reason: str | None) -> Run:
        """Write summary, adapter and report of all finished rounds, and show them."""
        self._folder.close()
        workers = self._all_workers()
        summary = make_summary(
            self._prepared.setting,
            self._folder.totals,
            stop_reason=stop_reason,
            hardware={**describe_hardware(), "workers": describe_workers(workers)},
            unlike_workers=differences(workers) if workers else None,
            wall_seconds=self._wall_seconds(),
            worker_memory_bytes=self._worker_memory_bytes,
        )
        profile = self._profile.figures(perf_counter() - self._begin)
        with self._console.status("writing adapter and report"):
            if self._state.adapters is not None:
                export_adapter(self._folder.path, self._state.adapters, self._prepared.setting)
            write_profile(self._folder.path, profile)
            # After the adapter: what has a summary of its end is not gone on with.
            self._folder.finish(summary)
            write_report(self._folder.path)
        if stop_reason is None:
            forget_parts(self._folder.path)
        print_summary(summary, self._folder.path, self._console)
        if self._shows_profile:
            print_table(profile_table(profile), self._console)
        self._mirror.finish(for_good=stop_reason is None)
        return Run(self._folder.path, summary, self._state.adapters)
