"""The C library's heap: memory that a training step frees stays with the process for the next step."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h of glibc
_NEVER = -1


def keep_freed_memory() -> bool:
    """Ask glibc to give no freed memory back to the system, from now on and for this process.

    The activations of each step are as large as those of the one before. Given back in between, every page of them is
    cleared and mapped anew by the system: a tenth of the time of small models. What the process holds is its peak, so
    this is for processes that do nothing else, and that start no others by a copy of themselves.

    Returns:
        Whether the C library can be asked (that of Linux can, others go on as they are).
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        # Large blocks would be mapped by themselves, and given back when they are freed; threads that are started from
        # now on would have heaps of their own, too small for large blocks.
        settings = ((_M_TRIM_THRESHOLD, _NEVER), (_M_MMAP_MAX, 0), (_M_ARENA_MAX, 1))
        return all([bool(mallopt(name, value)) for name, value in settings])
    return False
