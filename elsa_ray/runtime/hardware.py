"""What this machine is: its flags decide ``auto`` once, and its description goes into the summary."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from elsa_ray.config.errors import InputError
from elsa_ray.config.numerics import NumericsConfig


def resolve_numerics(numerics: NumericsConfig) -> NumericsConfig:
    """Return the section with ``auto`` decided by the hardware: cuda if there is one, bf16 where it is native.

    Raises:
        InputError: cuda is asked for and there is none.
    """
    has_cuda = torch.cuda.is_available()
    device = numerics.device
    if device == "auto":
        device = "cuda" if has_cuda else "cpu"
    if device == "cuda" and not has_cuda:
        raise InputError("numerics.device", "cuda", "cpu or auto: this machine has no usable GPU")
    precision = numerics.precision
    if precision == "auto":
        has_bf16 = torch.cuda.is_bf16_supported() if device == "cuda" else bool(cpu_flags() & _BF16_FLAGS)
        precision = "bf16" if has_bf16 else "fp32"
    return numerics.model_copy(update={"device": device, "precision": precision})


_BF16_FLAGS = {"amx_bf16", "avx512_bf16"}


def describe_hardware() -> dict[str, Any]:
    """Return what a reader must know to judge wall-clock figures and bit-reproducibility."""
    description: dict[str, Any] = {
        "machine": platform.machine(),
        "processor": cpu_name(),
        "cpus": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
    }
    if torch.cuda.is_available():
        description["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return description


def _cpu_info(field: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def cpu_flags() -> set[str]:
    """Return the instruction sets of the CPU, as Linux names them; empty elsewhere."""
    return set(_cpu_info("flags").split())


def cpu_name() -> str:
    """Return what the CPU calls itself."""
    return _cpu_info("model name") or platform.processor()
