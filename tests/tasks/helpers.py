"""Texts and processes that several tests share."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

SHARED_DATA = Path(__file__).parents[2].parent / "shared" / "data"


def run_python(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    process = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Graphs have nodes, edges and weights!",
    "A socket listens on a port for connections",
    "Tensors of gradients flow backwards through the layers",
    "short one",
    "Ünïcode and CAPITALS are folded",
] * 4
