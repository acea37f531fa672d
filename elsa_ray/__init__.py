"""elsa_ray: fine-tune split language models over simulated edge networks, on Ray.

The public names load what they need when they are first used, so that importing this package is cheap.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "InputError": "elsa_ray.config.errors",
    "Run": "elsa_ray.recording",
    "StorageError": "elsa_ray.records.mirror",
    "WorkerError": "elsa_ray.runtime.failure",
    "compare": "elsa_ray.api",
    "network": "elsa_ray",
    "plan": "elsa_ray.api",
    "resume": "elsa_ray.resuming",
    "run": "elsa_ray.api",
}
__all__ = ["InputError", "Run", "StorageError", "WorkerError", "compare", "network", "plan", "resume", "run"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'elsa_ray' has no attribute {name!r}")
    if name == "network":
        return importlib.import_module("elsa_ray.network")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
