"""The C library's heap: memory that a training step frees stays with the process for the next step."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask glibc to give no freed memory back to the system, from now on and for this process.

    The activations of each step are as large as those of the one before. Given back in between, every page of them is
    cleared and mapped anew by the system: a tenth of the time of small models. What the process holds is its peak.

    Returns:
        Whether the C library can be asked (that of Linux can, others go on as they are).
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        # Without the second, large blocks would be mapped by themselves, and given back when they are freed.
        return bool(mallopt(_M_TRIM_THRESHOLD, _NEVER) and mallopt(_M_MMAP_MAX, 0))
    return False
