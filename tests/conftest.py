from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

# Laws hold on a slow machine too: by default an example of more than 200 ms fails, whatever else keeps the cores busy.
settings.register_profile(
    "patient", parent=settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")
# Ray gives its workers less of a core than any other process: they would wait for the tests beside them.
os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small matrices are slower on many threads, and slower still where several test runs share the cores."""
    torch.set_num_threads(1)
