"""The section ``protocol.client_failure``: what becomes of a client whose own computation fails.

It can change numbers, so it is no part of ``runtime``. A dead worker or node is no failure of a client: its work is
done again elsewhere, ``runtime.retries`` times.
"""

from __future__ import annotations

from typing import Literal

from elsa_ray.config.section import Section

OnFailure = Literal["drop", "retry", "stop"]
OnLastingFailure = Literal["drop", "stop"]


class ClientFailureConfig(Section):
    """For each way to fail: ``stop`` the run, ``retry`` (``runtime.retries`` times, then stop), or ``drop``.

    A dropped client has the outcome ``failed`` and the weight 0 in this round, costs the simulated time and bytes that
    were planned, and is there again in the next round.
    """

    raises: OnFailure = "stop"
    """Its training raises an error: bad data, a broken codec."""
    hangs: OnFailure = "stop"
    """Its training does not get on for ``runtime.timeout_seconds``; needs ``runtime.executor: ray``."""
    kills_worker: OnLastingFailure = "stop"
    """Whichever worker trains its cohort dies, ``1 + runtime.retries`` times in a row: too little memory, a crash.
    ``drop`` drops the whole cohort: nobody is left to say which member it was."""
    diverges: OnLastingFailure = "drop"
    """Its loss or its adapters are not finite."""
