"""A process that trains keeps the memory that it has freed: the next step finds it mapped."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

MEASURE = """
import ctypes, resource, sys, threading
from elsa_ray.runtime.heap import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def faults_of_a_step(num_bytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    activations = [libc.malloc(num_bytes) for _ in range(4)]
    for activation in activations:
        libc.memset(activation, 1, num_bytes)
    for activation in activations:
        libc.free(activation)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def step_again_and_again():
    print([faults_of_a_step(80 * 2**20) for _ in range(3)][-1])

if sys.argv[2] == "thread":
    thread = threading.Thread(target=step_again_and_again)
    thread.start()
    thread.join()
else:
    step_again_and_again()
"""


def page_faults(choice: str, where: str) -> int:
    done = subprocess.run([sys.executable, "-c", MEASURE, choice, where], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked")
@pytest.mark.parametrize("where", ["main", "thread"])
def test_a_later_step_finds_its_memory_mapped(where: str) -> None:
    """Relatively: how many faults a megabyte is depends on the size of the system's pages."""
    assert page_faults("keep", where) * 10 < page_faults("let go", where)
