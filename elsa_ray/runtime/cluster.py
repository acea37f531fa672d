"""Attaches to the Ray cluster that there is, or starts one on this machine."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from typing import Any

import ray

from elsa_ray.config.errors import InputError

_KNOCK_SECONDS = 10.0


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray.

    Attributes:
        address: of the cluster; None for one that was started here.
        is_ours: it was connected (and, without an address, started) here, so ``leave`` ends that.
    """

    address: str | None
    is_ours: bool

    def leave(self) -> None:
        """Disconnect. Only a cluster that was started here is shut down; one that was found keeps running."""
        if self.is_ours:
            ray.shutdown()


def is_there(address: str | None) -> bool:
    """Tell whether a run with this address attaches to a cluster; else it starts one here."""
    return ray.is_initialized() or (address or os.environ.get("RAY_ADDRESS") or "local") != "local"


def join_cluster(address: str | None) -> Cluster:
    """Connect to ``address``, else to RAY_ADDRESS, else start Ray on this machine.

    Raises:
        InputError: nothing answers at the address.
    """
    if ray.is_initialized():
        connected = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", connected):
            raise InputError("--address", address, f"{connected}: this process is connected to that cluster already")
        return Cluster(connected, is_ours=False)
    where = "--address" if address else "RAY_ADDRESS"
    address = address or os.environ.get("RAY_ADDRESS") or None
    quiet: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "namespace": f"elsa-ray-{os.getpid()}",
    }
    if address is None or address == "local":
        ray.init(address="local", include_dashboard=False, **quiet)
        return Cluster(None, is_ours=True)
    try:
        _knock(address)
        ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError, ImportError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        allowed = "the address of a running Ray cluster (host:port or auto), or none to start one here"
        if isinstance(error, RuntimeError) and "RAY_AUTH_MODE" not in os.environ:
            # Somebody answers. To an address that it is given, Ray shows its token only if it is told to.
            allowed += "; if that cluster asks for a token, set RAY_AUTH_MODE=token"
        raise InputError(where, f"{address} ({reason})", allowed) from None
    return Cluster(address, is_ours=True)


def _knock(address: str) -> None:
    """Open and close a connection to ``host:port``: Ray itself tries an address without anybody for minutes.

    Raises:
        OSError: nobody answers.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()
