"""The public functions: run an experiment, plan it, compare runs."""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console

from elsa_ray.config.errors import InputError
from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.config.load import load_config, make_config
from elsa_ray.experiment import rounds
from elsa_ray.model.adapters import Adapters
from elsa_ray.prepare import PRECISIONS, Prepared, load_backbone, make_recipe, make_tripartite, prepare, with_frame
from elsa_ray.records.adapter import export_adapter
from elsa_ray.records.compare import compare_runs
from elsa_ray.records.folder import (
    CONFIG,
    REPORT,
    RunFolder,
    forget_parts,
    has_parts,
    has_records,
    kept_for_one,
    new_default_folder,
)
from elsa_ray.records.log import logged_to
from elsa_ray.records.profile import Profile, profile_table, write_profile
from elsa_ray.records.progress import RunProgress, print_start, print_summary, print_table
from elsa_ray.records.reading import EARLY_ENDS, RunRecord, read_run
from elsa_ray.records.report import write_report
from elsa_ray.records.round import Round
from elsa_ray.records.storage import Mirror, Storage, StorageError, is_uri, remembered_storage
from elsa_ray.records.summary import make_summary
from elsa_ray.runtime.checkpoints import (
    Checkpoint,
    Checkpoints,
    StoredCheckpoint,
    checkpoint_numbers,
    cut_after,
    keep_last,
    read_checkpoint,
)
from elsa_ray.runtime.executor import Executor, InlineExecutor, NoExecutor
from elsa_ray.runtime.fingerprint import NumericFingerprint, describe_workers, differences
from elsa_ray.runtime.forms import WrongDataError
from elsa_ray.runtime.hardware import describe_hardware
from elsa_ray.runtime.provenance import ChangedError, Provenance, check_same_data, check_unchanged, provenance_of
from elsa_ray.signals import sigterm_kept, uninterrupted

_LOGGER = logging.getLogger("elsa_ray")

ConfigSource = ExperimentConfig | Mapping[str, Any] | str | Path


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


def run(
    config: ConfigSource,
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    address: str | None = None,
    console: Console | None = None,
    profile: bool = False,
) -> Run:
    """Run an experiment to its end and record it.

    Args:
        config: a config, plain values, or the path of a YAML file.
        overrides: ``a.b=c`` texts.
        out: the run folder; by default a new one under ``runs/``. With a URI such as ``s3://bucket/run`` it is that
            new one, which is copied to the URI after every round.
        address: of a running Ray cluster.
        console: where progress is shown; None shows nothing.
        profile: show at the end where the wall time went, by actor and stage; ``profile.json`` has it in any case.

    Raises:
        InputError: the input is wrong; nothing was started.
        WorkerError: a worker failed; all finished rounds are kept in the folder.
        StorageError: the folder is whole, but could not be copied to the URI.
    """
    console = console or Console(quiet=True)
    wanted = _read(config, overrides)
    _check_address(address, wanted)
    storage = Storage.at(str(out), "--out") if is_uri(out) else None
    with console.status("preparing data, network and plan"):
        prepared = prepare(wanted)
    provenance = provenance_of(prepared.config)
    if storage is not None:
        storage.claim()
    with RunFolder.create(None if storage else out, prepared.config) as folder, kept_for_one(folder.path):
        mirror = Mirror(folder.path, storage, console)
        return _Recorder(prepared, provenance, folder, mirror, console, shows_profile=profile).record(address)


def resume(
    run: str | Path,
    *,
    overrides: Sequence[str] = (),
    address: str | None = None,
    console: Console | None = None,
    profile: bool = False,
) -> Run:
    """Go on with a run that was interrupted, has failed or was killed, from its last checkpoint.

    Its records and adapters become those that it would have had without the interruption, wall-clock figures excepted.
    Of a run that has finished, its summary is returned, without adapters; nothing is computed, but what a kill has left
    undone after the last round is done: its report, its copy on storage.

    Args:
        run: its folder, or the URI that it was copied to: then it is copied into a new folder under ``runs/`` first.
        overrides: ``runtime.b=c`` texts; else only ``protocol.client_failure`` can be changed, while no client has
            failed.
        address: of a running Ray cluster.
        console: where progress is shown; None shows nothing.
        profile: show at the end where the wall time went, by actor and stage; ``profile.json`` has it in any case.

    Raises:
        InputError: there is no run or no checkpoint; something has changed that the run rests on, or is overridden; or
            the run is at work.
        WorkerError: a worker failed; all finished rounds are kept in the folder.
        StorageError: the folder is whole, but could not be copied to its URI.
    """
    console = console or Console(quiet=True)
    if not is_uri(run):
        return _resume(Path(run), overrides, address, remembered_storage(Path(run)), console, profile)
    storage = Storage.at(str(run), "--resume")
    folder = new_default_folder(storage.name)
    try:
        with console.status(f"copying {storage.uri}"):
            storage.fetch(folder)
    except InputError:
        shutil.rmtree(folder)
        raise
    return _resume(folder, overrides, address, storage, console, profile)


def _resume(
    run: Path,
    overrides: Sequence[str],
    address: str | None,
    storage: Storage | None,
    console: Console,
    profile: bool,
) -> Run:
    record = read_run(run)
    if record.summary is not None and record.summary["stop_reason"] not in EARLY_ENDS:
        return _conclude_finished(record, record.summary, storage, console)
    with kept_for_one(run):
        config = load_config(run / CONFIG, overrides)
        _check_address(address, config)
        stored = _last_checkpoint(run, console)
        provenance = provenance_of(config)
        prepared, before = _checked(record, stored, config, provenance, console)
        if storage is not None:
            storage.take_over(run)
        cut_after(run, stored.num_rounds)  # Before the oldest go: these are damaged, and count for nothing.
        keep_last(run, max(1, config.runtime.keep_checkpoints))
        with RunFolder.reopen(run, prepared.config, stored.num_rounds, before.records) as folder:
            mirror = Mirror(folder.path, storage, console)
            recorder = _Recorder(prepared, provenance, folder, mirror, console, before, shows_profile=profile)
            return recorder.record(address)


def _checked(
    record: RunRecord, stored: StoredCheckpoint, config: ExperimentConfig, provenance: Provenance, console: Console
) -> tuple[Prepared, Checkpoint]:
    """Prepare a run that goes on, and return the state to go on from.

    Raises:
        ChangedError: something is not as it was that the run rests on.
        InputError: the run cannot be prepared here.
    """
    some_failed = any(line.get("failures") for line in record.rounds[: stored.num_rounds])
    check_unchanged(stored.provenance, provenance, some_failed=some_failed)
    with console.status("preparing data, network and plan"):
        prepared = prepare(config)
    check_same_data(stored.data_sha256, prepared.setting.task.data_sha256)
    return prepared, stored.checkpoint(type(prepared.protocol.start(None)))


def _conclude_finished(record: RunRecord, summary: dict[str, Any], storage: Storage | None, console: Console) -> Run:
    """Tell that a run has finished, and do what a kill after its summary has left undone."""
    run = record.path
    lacks_report = not (run / REPORT).is_file()
    if lacks_report or has_parts(run) or storage is not None:
        with kept_for_one(run):
            if lacks_report:
                write_report(run)
            forget_parts(run)
            keep_last(run, record.config.runtime.keep_checkpoints)
            if storage is not None:
                storage.take_over(run)
            Mirror(run, storage, console).finish(for_good=True)
    reason, num_rounds = summary["stop_reason"], summary["rounds_completed"]
    text = f"{run} has finished already, by {reason}, after {num_rounds} rounds"
    made = "; its report was not there, and is made" if lacks_report else ""
    console.print(text + made, soft_wrap=True, markup=False, highlight=False)
    return Run(run.resolve(), summary, None)


def can_go_on(run: Path) -> bool:
    """Whether a run's folder has a checkpoint to go on from; whether all else is as it was, ``resume`` finds out."""
    try:
        _last_checkpoint(run, Console(quiet=True))
    except InputError:
        return False
    return True


def has_changed(run: Path, overrides: Sequence[str]) -> bool:
    """Whether something is not as it was that a run rests on, so that ``resume`` will always refuse it."""
    console = Console(quiet=True)
    try:
        config = load_config(run / CONFIG, overrides)
        _checked(read_run(run), _last_checkpoint(run, console), config, provenance_of(config), console)
    except ChangedError:
        return True
    except InputError:
        return False
    return False


def _last_checkpoint(run: Path, console: Console) -> StoredCheckpoint:
    """Return the last checkpoint that is whole and whose records are; later ones are told of.

    Raises:
        InputError: there is none, or another version of the code has written it.
    """
    for number in checkpoint_numbers(run):
        try:
            stored = read_checkpoint(run, number)
            if has_records(run, number):
                return stored
            reason = "the records of its rounds are not"
        except WrongDataError as error:
            reason = str(error)
        text = f"the checkpoint after {number} rounds cannot be used ({reason})"
        console.print(text, soft_wrap=True, markup=False, highlight=False)
    allowed = f"a run that has finished a round; to start anew: elsa-ray run {run / CONFIG}"
    raise InputError(str(run), "no checkpoint that can be used", allowed)


def plan(
    config: ConfigSource,
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    console: Console | None = None,
) -> Run:
    """Time an experiment without training: the same timeline and bytes, no weight loaded. See ``run``."""
    return run(config, overrides=[*overrides, "runtime.executor=none"], out=out, console=console)


def compare(runs: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Return the figures of several run folders, a row each.

    Raises:
        InputError: a folder holds no run.
    """
    return compare_runs([Path(folder) for folder in runs])


def dry_run(
    config: ConfigSource, *, overrides: Sequence[str] = (), address: str | None = None, console: Console
) -> None:
    """Check an experiment and show what its first round would cost and where it would be computed.

    Nothing is trained, no run folder is made, and no Ray is started: without a cluster's address, the placement is that
    of a Ray on this machine.
    """
    wanted = _read(config, overrides)
    _check_address(address, wanted)
    with console.status("preparing data, network and plan"):
        prepared = prepare(wanted)
    print_start(prepared.setting, console)
    with NoExecutor() as executor:
        first = next(rounds(prepared, prepared.protocol.start(None), executor))
    console.print(
        f"round 1 would take {first.report.simulated_seconds:.2f} simulated seconds and {first.report.num_bytes:,} "
        f"bytes with {len(first.report.participated)} clients; {prepared.config.protocol.rounds} rounds are planned"
    )
    if prepared.config.runtime.executor == "ray":
        from elsa_ray.runtime.ray_executor import planned_placement

        for line in planned_placement(prepared.setting, address).lines():
            console.print(line, highlight=False, markup=False, soft_wrap=True)


class _Recorder:
    """Runs the loop and writes down each round, whatever ends it."""

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
        self._checkpoints = Checkpoints(
            folder.path,
            prepared.config.runtime.keep_checkpoints,
            provenance,
            prepared.setting.task.data_sha256,
            type(self._state),
        )
        self._worker_memory_bytes = 0
        self._profile = Profile()
        self._fingerprints: Mapping[str, Sequence[NumericFingerprint]] = {}
        self._begin = perf_counter()

    def record(self, address: str | None) -> Run:
        """Run to the end, or until something ends it; what is finished is kept in any case."""
        with logged_to(self._folder.path / "run.log"):
            return self._record(address)

    def _record(self, address: str | None) -> Run:
        print_start(self._prepared.setting, self._console)
        if self._before is not None:
            text = f"going on after round {self._state.round_index}"
            self._console.print(text)
            _LOGGER.info(text)
        try:
            with RunProgress(self._prepared.setting, self._console) as progress:
                self._loop(address, progress)
        except KeyboardInterrupt:
            _LOGGER.warning("interrupted")
            self._keep_what_is_finished("interrupted")
            raise
        except Exception as error:
            _LOGGER.exception("failed: %s", error)
            self._keep_what_is_finished("failed")
            raise
        return self._conclude(None)

    def _loop(self, address: str | None, progress: RunProgress) -> None:
        with _executor(self._prepared, address, progress) as (executor, adapters):
            self._fingerprints = executor.fingerprints()
            world_state = None
            if self._before is None:
                self._state = self._prepared.protocol.start(adapters)
            else:
                world_state = self._before.world
            executor.take_wall_seconds()  # of the start, in which workers that are there wait for others
            for finished in rounds(self._prepared, self._state, executor, world_state):
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
        if checkpoint_numbers(self._folder.path):
            text = f"to go on: elsa-ray run --resume {shlex.quote(str(self._folder.path))}"
            self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def _write(self, finished: Round) -> None:
        """Record a round, and write the checkpoint after it."""
        self._folder.write_round(finished, self._prepared.setting)
        self._state = finished.state
        records = self._folder.state()
        self._checkpoints.write(Checkpoint(finished.state, finished.world_state, records, self._wall_seconds()))

    def _wall_seconds(self) -> float:
        """Return the host's time for the run so far, that of the parts before an interruption included."""
        return perf_counter() - self._begin + (self._before.wall_seconds if self._before is not None else 0.0)

    def _conclude(self, stop_reason: str | None) -> Run:
        """Write summary, adapter and report of all finished rounds, and show them."""
        self._folder.close()
        summary = make_summary(
            self._prepared.setting,
            self._folder.totals,
            stop_reason=stop_reason,
            hardware={**describe_hardware(), "workers": describe_workers(self._fingerprints)},
            unlike_workers=differences(self._fingerprints) if self._fingerprints else None,
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


@contextmanager
def _executor(
    prepared: Prepared, address: str | None, progress: RunProgress
) -> Iterator[tuple[Executor, Adapters | None]]:
    """Load the weights and start the configured executor."""
    kind = prepared.config.runtime.executor
    if kind == "none":
        yield NoExecutor(), None
        return
    progress.status("loading the model")
    model, adapters = load_backbone(prepared)
    recipe = with_frame(prepared, make_recipe(prepared), model, adapters)
    if kind == "inline":
        with InlineExecutor(prepared.setting, make_tripartite(prepared, model), recipe) as executor:
            yield executor, adapters
        return
    from elsa_ray.runtime.ray_executor import RayExecutor

    model = model.to(PRECISIONS[prepared.config.numerics.precision])
    with sigterm_kept():
        ray_executor = RayExecutor(
            prepared.setting,
            model,
            recipe,
            address=address,
            status=progress.status,
            announce=progress.announce,
        )
    with ray_executor:
        yield ray_executor, adapters


def _check_address(address: str | None, config: ExperimentConfig) -> None:
    """Refuse a cluster that would not be used.

    Raises:
        InputError: the executor is another than Ray.
    """
    executor = config.runtime.executor
    if address is not None and executor != "ray":
        found = f"{address} together with runtime.executor: {executor}"
        raise InputError("--address", found, "an address with runtime.executor: ray, or none")


def _read(config: ConfigSource, overrides: Sequence[str]) -> ExperimentConfig:
    if isinstance(config, ExperimentConfig):
        return make_config(config.model_dump(mode="json"), overrides) if overrides else config
    if isinstance(config, Mapping):
        return make_config(dict(config), overrides)
    return load_config(config, overrides)
