"""The public functions: run an experiment, go on with it, plan it, compare runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.config.load import load_config, make_config
from elsa_ray.experiment import rounds
from elsa_ray.prepare import prepare
from elsa_ray.recording import Recorder, Run
from elsa_ray.records.compare import compare_runs
from elsa_ray.records.folder import RunFolder, kept_for_one
from elsa_ray.records.mirror import Mirror
from elsa_ray.records.progress import print_start
from elsa_ray.records.storage import Storage
from elsa_ray.records.uri import is_uri
from elsa_ray.resuming import resume
from elsa_ray.runtime.executor import NoExecutor
from elsa_ray.runtime.provenance import provenance_of
from elsa_ray.starting import check_address

__all__ = ["ConfigSource", "Run", "compare", "dry_run", "plan", "resume", "run"]

ConfigSource = ExperimentConfig | Mapping[str, Any] | str | Path


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
    check_address(address, wanted)
    storage = Storage.at(str(out), "--out") if is_uri(out) else None
    with console.status("preparing data, network and plan"):
        prepared = prepare(wanted)
    provenance = provenance_of(prepared.config)
    if storage is not None:
        storage.claim()
    with RunFolder.create(None if storage else out, prepared.config) as folder, kept_for_one(folder.path):
        mirror = Mirror(folder.path, storage, console)
        return Recorder(prepared, provenance, folder, mirror, console, shows_profile=profile).record(address)


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
    check_address(address, wanted)
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


def _read(config: ConfigSource, overrides: Sequence[str]) -> ExperimentConfig:
    if isinstance(config, ExperimentConfig):
        return make_config(config.model_dump(mode="json"), overrides) if overrides else config
    if isinstance(config, Mapping):
        return make_config(dict(config), overrides)
    return load_config(config, overrides)
