"""A contestant of `make bench`: its process, the line to it, and the processor time and memory of all it starts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

START_SECONDS, ROUND_SECONDS, END_SECONDS, LEAVE_SECONDS = 300.0, 300.0, 60.0, 15.0
"""The longest waits for a contestant."""


class Entry:
    """A contestant's process and the line to it (see ``Turns`` in contestants/work.py).

    What goes wrong is kept in ``failed``, and the contestant is out.

    Args:
        name: of the contestant.
        precision: of its computation.
        command: that starts it; the work folder and the file for its result are appended.
        work: the work folder.
        folder: for its socket, log and result.
    """

    def __init__(self, name: str, precision: str, command: list[str], work: Path, folder: Path) -> None:
        self.name, self.precision, self.failed = name, precision, ""
        self.wall_seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.idle_seconds = self.idle_cpu_seconds = 0.0
        self.peak_memory_bytes = 0
        self.after = folder / f"{name}-{precision}.safetensors"
        self._mark = str(folder / f"{name}-{precision}.socket")
        self._log = folder / f"{name}-{precision}.log"
        self._command, self._work = command, work
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped_at = 0.0, 0.0

    def __enter__(self) -> Entry:
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(self._mark)
        self._door.listen()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()
        self._door.close()

    def get_ready(self) -> None:
        """Start the contestant, and wait until it is ready for its first round."""
        self._attempt(self._start)
        self._attempt(self._get_ready)

    def warm_up(self) -> None:
        """Let it play a round that does not count, and watch its memory."""
        self._attempt(self._warm_up)

    def play(self) -> None:
        """Let it play a round."""
        self._attempt(self._play)

    def finish(self) -> None:
        """Let it write its result and end."""
        self._attempt(self._finish)
        self._end()

    def _attempt(self, step: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            step()
        except (OSError, RuntimeError, ValueError) as error:
            log = self._log.read_text(errors="replace").strip() if self._log.exists() else ""
            self.failed = " | ".join(filter(None, [str(error), *log.splitlines()[-1:]]))
            print(f"{self.name}, {self.precision}: {error}\n{log[-4000:]}", file=sys.stderr)
            self._end()

    def _start(self) -> None:
        quiet = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        # Ray would put its workers behind everything else on the machine.
        quiet |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_worker_niceness": "0"}
        command = [*self._command, str(self._work), str(self.after)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **quiet, "BENCH_SOCKET": self._mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _get_ready(self) -> None:
        self._accept()
        self._hear(START_SECONDS)

    def _warm_up(self) -> None:
        done = threading.Event()
        watch = threading.Thread(target=self._watch_memory, args=(done,), daemon=True)
        watch.start()
        try:
            self._say_go()
            self._hear(ROUND_SECONDS)
        finally:
            done.set()
            watch.join()
        self._stopped_at = time.perf_counter(), self._cpu_seconds()

    def _play(self) -> None:
        (stopped, cpu_then), cpu_before = self._stopped_at, self._cpu_seconds()
        self.idle_seconds += time.perf_counter() - stopped
        self.idle_cpu_seconds += cpu_before - cpu_then
        self._say_go()
        self.wall_seconds.append(self._hear(ROUND_SECONDS))
        self._stopped_at = time.perf_counter(), self._cpu_seconds()
        self.cpu_seconds.append(self._stopped_at[1] - cpu_before)

    def _finish(self) -> None:
        self._say_go()
        deadline = time.monotonic() + END_SECONDS
        while not self.after.exists() and self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        with suppress(subprocess.TimeoutExpired):  # of a Ray that is slow to end nothing is wanted any more
            self._process.wait(timeout=LEAVE_SECONDS)
        if not self.after.exists():
            raise RuntimeError(f"no result after {END_SECONDS:.0f} s")

    def _accept(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        self._door.settimeout(1.0)
        while True:
            try:
                connection, _ = self._door.accept()
            except TimeoutError:
                if self._process.poll() is not None:
                    raise RuntimeError(f"ended with exit code {self._process.returncode}") from None
                if time.monotonic() > deadline:
                    raise RuntimeError(f"not ready after {START_SECONDS:.0f} s") from None
            else:
                self._connection, self._line = connection, connection.makefile("rw")
                return

    def _say_go(self) -> None:
        self._line.write("go\n")
        self._line.flush()

    def _hear(self, limit_seconds: float) -> float:
        """Return the seconds that the contestant tells."""
        self._connection.settimeout(limit_seconds)
        try:
            told = self._line.readline()
        except TimeoutError:
            raise RuntimeError(f"no word from it within {limit_seconds:.0f} s") from None
        if not told:
            raise RuntimeError("it has ended")
        return float(told)

    def _family(self) -> list[psutil.Process]:
        if self._process is None or self._process.returncode is not None:  # its number may be another's by now
            return []
        try:
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _cpu_seconds(self) -> float:
        total = 0.0
        for process in self._family():
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def _watch_memory(self, done: threading.Event) -> None:
        """Keep the most that all its processes hold together; shared pages count once."""
        while True:
            total = 0
            for process in self._family():
                with suppress(psutil.Error):
                    total += process.memory_full_info().pss
            self.peak_memory_bytes = max(self.peak_memory_bytes, total)
            if done.wait(0.5):
                return

    def _end(self) -> None:
        """End all processes that have come from this contestant: they are its children, or carry its mark."""
        family = self._family()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process in family or process.environ().get("BENCH_SOCKET") == self._mark:
                    process.kill()
        if self._process is not None:
            self._process.wait()
