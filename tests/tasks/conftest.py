from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elsa_ray.tasks.pydocs import read_pydocs
from elsa_ray.tasks.table import Table


@pytest.fixture(scope="session")
def pydocs_table() -> Table:
    return read_pydocs()


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    def write(name: str, *rows: Any) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return name

    return write
