from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small matrices are slower on many threads, and slower still where several test runs share the cores."""
    torch.set_num_threads(1)
