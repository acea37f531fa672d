"""The numeric fingerprint of a worker: all that decides which bits its arithmetic gives, besides its input."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from elsa_ray.runtime.hardware import cpu_flags, cpu_name

_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16")
_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "TORCHINDUCTOR_MAX_AUTOTUNE",
)


@dataclass(frozen=True)
class NumericFingerprint:
    """Workers with equal ones give equal bits for equal work; with unequal ones nobody promises it.

    Attributes:
        machine, processor: architecture and name of the CPU; libraries choose kernels by both.
        cpu_capability: what torch's own kernels use.
        cpu_flags: instructions that matrix products choose by.
        gpu: its name and compute capability; None where it computes on the CPU.
        torch: its version.
        libraries: for matrix products, as torch was built with them.
        threads: of matrix products.
        matmul_precision: of fp32 products.
        variables: of the environment, that steer these libraries.
    """

    machine: str
    processor: str
    cpu_capability: str
    cpu_flags: tuple[str, ...]
    gpu: str | None
    torch: str
    libraries: str
    threads: int
    matmul_precision: str
    variables: tuple[tuple[str, str], ...]

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits; equal for equal fingerprints."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


class FingerprintLog:
    """Fingerprints of all workers that a run has had: the numbers of one that was replaced are in its results too.

    Args:
        kinds: of workers, in order.

    Attributes:
        by_kind: one of each worker by kind, and one more of each successor that is unlike all before it.
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        self.by_kind: dict[str, list[NumericFingerprint]] = {kind: [] for kind in kinds}
        self._names: set[str] = set()

    def add(self, kind: str, name: str, fingerprint: NumericFingerprint) -> None:
        """Take note of a worker that has started, for the first time or again."""
        own = self.by_kind[kind]
        if name not in self._names or fingerprint not in own:
            own.append(fingerprint)
        self._names.add(name)


Workers = Mapping[str, Sequence[NumericFingerprint]]
"""Fingerprints of workers by kind."""

ALONE = "this process"
"""The kind of what does all work by itself."""


def joined(before: Workers, now: Workers) -> dict[str, list[NumericFingerprint]]:
    """Return the workers of a run that goes on, and of its earlier part whoever is unlike all of the same kind.

    What did all work by itself was of every kind. Nothing that has worked yet is of no kind.

    Args:
        before: of the finished rounds.
        now: of the rounds to come.
    """
    everybody = [own for prints in before.values() for own in prints]
    result: dict[str, list[NumericFingerprint]] = {}
    for kind, prints in (now or before).items():
        earlier = everybody if kind == ALONE else [*before.get(kind, ()), *before.get(ALONE, ())]
        result[kind] = [*prints, *(own for own in dict.fromkeys(earlier) if own not in prints)]
    return result


def this_process(device: str) -> NumericFingerprint:
    """Return the fingerprint of this process.

    Args:
        device: where it computes: cpu or cuda.
    """
    flags = cpu_flags()
    gpu = None
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        gpu = f"{torch.cuda.get_device_name()} ({major}.{minor})"
    return NumericFingerprint(
        machine=platform.machine(),
        processor=cpu_name(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        cpu_flags=tuple(flag for flag in _FLAGS if flag in flags),
        gpu=gpu,
        torch=torch.__version__,
        libraries=_libraries(torch.__config__.show()),
        threads=torch.get_num_threads(),
        matmul_precision=torch.get_float32_matmul_precision(),
        variables=tuple((name, os.environ[name]) for name in _VARIABLES if name in os.environ),
    )


def differences(workers: Workers) -> list[str]:
    """Say in what the workers of a kind differ; empty where all kinds are of one fingerprint each.

    Which pool trains a cohort is an accident of time, so pools must be alike for a run to give the same bits again.
    Kinds may differ from each other: pools on CPUs and edges on GPUs are two kinds.

    Args:
        workers: fingerprints by kind of worker.
    """
    told = []
    for kind, prints in workers.items():
        for field in fields(NumericFingerprint):
            values = Counter(str(getattr(own, field.name)) for own in prints)
            if len(values) > 1:
                found = ", ".join(f"{number} × {value}" for value, number in sorted(values.items()))
                told.append(f"{kind} differ in {field.name}: {found}")
    return told


def describe_workers(workers: Workers) -> list[dict[str, Any]]:
    """Return the distinct fingerprints of each kind of worker with their numbers, as plain values."""
    rows = []
    for kind, prints in workers.items():
        for own, number in sorted(Counter(prints).items(), key=lambda pair: pair[0].id):
            values = asdict(own) | {"variables": dict(own.variables), "cpu_flags": list(own.cpu_flags)}
            rows.append({"workers": kind, "count": number, "id": own.id, **values})
    return rows


def _libraries(told: str) -> str:
    """Return the lines of torch's description that name libraries for matrix products."""
    names = ("Math Kernel Library", "MKL-DNN", "OpenBLAS", "CUDA Runtime", "CuDNN", "Magma")
    lines = [line.strip(" -") for line in told.splitlines() if any(name in line for name in names)]
    blas = [part.strip() for part in told.replace("\n", ",").split(",") if "BLAS_INFO=" in part]
    return "; ".join([*lines, *(part.split()[-1] for part in blas)])
