"""Runs an experiment that SIGKILL ends before chosen changes of files, and goes on with it.

A program of its own, ``python -m tests.runtime.killed``, which pays for the imports once: each part of a run is a fork
of it. From standard input it takes a trial a line, in JSON: ``config``, ``out``, ``address`` and ``moments``. The run
is killed before its so manyth change of a file in its folder, each resumption likewise, by a moment each; 0 lets it
come to its end. What was killed before its first checkpoint is begun anew. For each trial it prints how its parts have
ended.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from elsa_ray import api, recording, resuming
from elsa_ray.config.errors import InputError
from elsa_ray.records.json_text import write_whole

EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")


def changed_path(event: str, arguments: tuple[Any, ...]) -> str:
    """Return the path that an audit event is going to change; empty if it changes none."""
    if event not in EVENTS or (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
        return ""
    return arguments[0] if isinstance(arguments[0], str) else os.fsdecode(arguments[0])


def die_before(moment: int, folder: Path) -> Callable[[], int]:
    """Kill this process before a change in a folder, counted from 1; returns what tells the count so far."""
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if changed_path(event, arguments).startswith(str(folder)):
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    return lambda: count


def ended(do: Callable[[], object], moment: int, folder: Path) -> str:
    """Do something in a fork; returns ``SIGKILL``, ``done after COUNT changes``, or what went wrong."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            num_changes = die_before(moment, folder)
            do()
            told = f"done after {num_changes()} changes"
        except InputError as error:
            told = str(error)
        except BaseException:
            told = traceback.format_exc()
        os.write(writer, told.encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as stream:
        told = stream.read()
    _, status = os.waitpid(child, 0)
    return told or signal.Signals(-os.waitstatus_to_exitcode(status)).name


def run_trial(config: str, out: Path, address: str | None, moments: list[int]) -> list[str]:
    """Run, be killed and go on; returns how each part has ended."""
    ends: list[str] = []
    console = Console(file=out.with_suffix(".txt").open("w"))
    for moment in moments:
        is_lost = not ends or "to start anew" in ends[-1] or "a run folder" in ends[-1]
        if is_lost:
            shutil.rmtree(out, ignore_errors=True)
            ends.append(ended(lambda: api.run(config, out=out, address=address, console=console), moment, out))
        else:
            ends.append(ended(lambda: api.resume(out, address=address, console=console), moment, out))
    return ends


def main() -> None:
    torch.set_num_threads(1)
    # Its drawings take most of a small run's time.
    recording.write_report = resuming.write_report = lambda run: write_whole(run / "report.html", "")
    for line in sys.stdin:
        trial = json.loads(line)
        ends = run_trial(trial["config"], Path(trial["out"]), trial["address"], trial["moments"])
        sys.stdout.write(json.dumps(ends) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
