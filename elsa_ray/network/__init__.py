"""The network: a topology as arrays, routes through it, and the fluid max-min fair sharing of its links.

Numbers only; it imports neither torch nor ray.
"""

from __future__ import annotations

from elsa_ray.network.files import load_network, named_topologies, save_network_yaml
from elsa_ray.network.finish_times import finish_times
from elsa_ray.network.generate import hierarchical, make_network
from elsa_ray.network.graph import Network, build_network
from elsa_ray.network.transfers_csv import read_transfers_csv, write_finish_times_csv

__all__ = [
    "Network",
    "build_network",
    "finish_times",
    "hierarchical",
    "load_network",
    "make_network",
    "named_topologies",
    "read_transfers_csv",
    "save_network_yaml",
    "write_finish_times_csv",
]
