"""SIGTERM treated as Ctrl-C, so that a run that is told to end keeps what it has finished."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Termination:
    """A handler of SIGTERM that does what Ctrl-C does, and whether the signal came."""

    came: bool = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Remember it, and interrupt whatever the main thread does."""
        self.came = True
        on_interrupt = signal.getsignal(signal.SIGINT)
        if not callable(on_interrupt):
            raise KeyboardInterrupt
        on_interrupt(signal.SIGINT, frame)


@contextmanager
def terminable() -> Iterator[Termination]:
    """Let SIGTERM inside do what Ctrl-C does; outside of the main thread signals are left alone.

    An event loop answers Ctrl-C by cancelling its work in good order; an exception of our own, raised wherever the loop
    happens to be, would break the loop itself.
    """
    termination = Termination()
    if threading.current_thread() is not threading.main_thread():
        yield termination
        return

    before = signal.signal(signal.SIGTERM, termination)
    try:
        yield termination
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Put the SIGTERM handler back that a library replaces inside."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Keep Ctrl-C and SIGTERM until the block has ended: what belongs together is written together.

    Raises:
        KeyboardInterrupt: at its end, if one of them came inside, or if SIGTERM came before and got lost: where code in
            C has called Python, an exception out of nowhere may be cleared.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    # A handler that was not set from Python is None.
    before = {
        number: signal.signal(number, lambda number, frame: came.append(number)) or signal.SIG_DFL
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for first in came[:1]:
            signal.raise_signal(first)
    on_sigterm = before[signal.SIGTERM]
    if isinstance(on_sigterm, Termination) and on_sigterm.came:
        raise KeyboardInterrupt
