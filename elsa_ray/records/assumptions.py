"""What a run's simulated figures rest on, in sentences: models, devices, defaults, stand-ins."""

from __future__ import annotations

from elsa_ray.config.availability import Always
from elsa_ray.config.faults import FaultsConfig
from elsa_ray.config.section import Section
from elsa_ray.config.task import SizesDataset, TaskConfig
from elsa_ray.config.topology import (
    AccessMix,
    FileTopology,
    GeneratedTopology,
    HierarchicalTopology,
    NamedTopology,
    StarTopology,
    WaxmanTopology,
)
from elsa_ray.network.access import access_profiles
from elsa_ray.protocols.setting import Setting
from elsa_ray.records.human import human_bandwidth, human_flops, human_seconds, sizes_text
from elsa_ray.records.world_text import network_text, policy_text
from elsa_ray.world.devices import Device, profiles


def assumptions(setting: Setting, executor: str) -> list[str]:
    """Return one sentence an assumption.

    Args:
        setting: the run's circumstances.
        executor: its name: ray, inline or none.
    """
    return [
        setting.network_model.sentence,
        _topology_sentence(setting),
        *_links_sentences(setting),
        *_clients_sentences(setting),
        _device_sentence("Edge servers", setting.fleet.edge, setting.config.world.edges.slots),
        "Time of aggregation, encoding, decoding and scheduling on the devices is not simulated; the cloud computes "
        "in no time.",
        "Energy: computation above idle of clients and edge servers, the clients' radios, and the idle power of those "
        "that take part in a round, for its whole length; no routers, no cloud.",
        f"An edge round {policy_text(setting.config.world.round_policy)}.",
        *_adversity_sentences(setting),
        *_payload_sentences(setting),
        *_data_sentences(setting),
        *_executor_sentences(setting, executor),
    ]


def links_text(topology: GeneratedTopology) -> str:
    """Return the medians and rates of a generated topology's links in one line."""
    core = human_bandwidth(topology.core_bandwidth)
    if isinstance(topology, WaxmanTopology):
        core += f" in a square of {topology.side_kilometres:g} km"
    elif not isinstance(topology, StarTopology):
        core += f" at {human_seconds(topology.core_latency)}"
    return (
        f"access {_access_text(topology)}, "
        f"edge {human_bandwidth(topology.edge_bandwidth)} at {human_seconds(topology.edge_latency)}, "
        f"core {core}, cloud at {human_seconds(topology.cloud_latency)}"
    )


def _access_text(topology: GeneratedTopology) -> str:
    if topology.access is None:
        return (
            f"{human_bandwidth(topology.access_up)} up and {human_bandwidth(topology.access_down)} down at "
            f"{human_seconds(topology.access_latency)} (medians, spread {topology.spread:g})"
        )
    shares = topology.access.mix if isinstance(topology.access, AccessMix) else {topology.access: 1.0}
    told = []
    for name, share in sorted(shares.items()):
        profile = access_profiles()[name]
        part = f"{100 * share:g} % " if len(shares) > 1 else ""
        told.append(
            f"{part}{name}: {human_bandwidth(profile.up_bytes_per_second)} up and "
            f"{human_bandwidth(profile.down_bytes_per_second)} down, "
            f"round trip {human_seconds(profile.round_trip_seconds)}"
        )
    return f"{', '.join(told)} (medians, spread {topology.spread:g})"


def device_text(device: Device) -> str:
    """Return a device's figures in one line."""
    return (
        f"{device.name}: {human_flops(device.flops_per_second)}, {device.idle_watts:g} W idle and "
        f"{device.active_watts:g} W more when computing, "
        f"{device.radio_joules_per_byte * 1e9:g} nJ a byte sent or received"
    )


def _topology_sentence(setting: Setting) -> str:
    topology, network = setting.config.topology, setting.network
    if isinstance(topology, FileTopology | NamedTopology):
        told = (
            f" Its figures: {network.figures}." if network.figures else " It does not say where its figures are from."
        )
        return f"Topology: {network.where}.{told}"
    unused = {"access_up", "access_down", "access_latency"} if topology.access is not None else set()
    defaults = _default_fields(topology, but={"kind", "clients", "edges", "routers", "access", "cell_clients", *unused})
    told = f" Defaults, not measurements: {', '.join(defaults)}." if defaults else ""
    kind = "" if isinstance(topology, HierarchicalTopology) else f" ({topology.kind})"
    return f"Topology: generated{kind}; {links_text(topology)}.{told}"


def _links_sentences(setting: Setting) -> list[str]:
    """Return the figures of links that no config states."""
    if isinstance(setting.config.topology, GeneratedTopology):
        return []
    return [f"Links: {network_text(setting.network)}."]


def _default_fields(section: Section, *, but: set[str]) -> list[str]:
    fields = type(section).model_fields
    return [name for name, field in fields.items() if name not in but and getattr(section, name) == field.default]


def _clients_sentences(setting: Setting) -> list[str]:
    kinds, capacities = setting.fleet.kinds(), setting.config.world.clients.capacities
    if capacities is not None:
        links = " and bandwidths of their links" if capacities.links else ""
        return [
            f"Clients: speeds{links} from {capacities.file}, at {capacities.flops_per_sample:g} FLOPs for the sample "
            f"that it times; power and memory of {', '.join(sorted({device.name for device in kinds}))}."
        ]
    if len(kinds) == 1:
        return [_device_sentence("Clients", next(iter(kinds)), 1)]
    return [_device_sentence(f"{number} of the clients", device, 1) for device, number in kinds.items()]


def _device_sentence(whose: str, device: Device, slots: int) -> str:
    origin = _origin(device)
    at_once = f", {slots} computations at once, each at the full rate" if slots > 1 else ", one computation at a time"
    return f"{whose}: {device_text(device)}{at_once} ({origin})."


def _adversity_sentences(setting: Setting) -> list[str]:
    """Return what is assumed of faults; nothing where there are none."""
    world, sentences = setting.config.world, []
    if not isinstance(world.availability, Always) or world.faults != FaultsConfig():
        sentences.append(
            "Faults: whoever waits for work that is given up knows it at the instant; a client that goes off loses "
            "its work in hand, a crashed edge all that is not with the cloud."
        )
    if world.round_policy.late == "keep" and world.round_policy.staleness is None:
        sentences.append("Work that arrives in a later round counts fully, however late it is.")
    return sentences


def _origin(device: Device) -> str:
    """Say where a device's figures come from, and how many of them nobody has measured."""
    if device.name == "custom":
        return "the config's figures"
    profile = profiles().get(device.name)
    if profile is None or profile.device != device:
        return "the figures of its file"
    assumed = sum(source.startswith("assumed") for source in profile.sources.values())
    return f"a profile; {assumed} of its {len(profile.sources)} figures are assumed, see elsa-ray device show"


def _payload_sentences(setting: Setting) -> list[str]:
    sentences = []
    if setting.config.task.preloaded:
        sentences.append(
            "task.preloaded: the frozen backbone lies on all devices already; its transfer is not counted."
        )
    else:
        sentences.append("task.preloaded is false: frozen blocks are sent once to each device, in fp32.")
    names = ("activation", "gradient", "adapter", "update")
    chains = {name: chain for name in names if (chain := getattr(setting.chains, name)) is not None}
    bounds = [name for name, chain in chains.items() if not chain.size_is_exact]
    if bounds:
        sentences.append(
            f"Payload sizes of {', '.join(bounds)} are upper bounds: their codecs' output varies in length."
        )
    return sentences


def _data_sentences(setting: Setting) -> list[str]:
    dataset, length = setting.config.task.dataset, setting.task.planned_length
    if not isinstance(dataset, SizesDataset):
        return []
    sentence = f"Data: {sizes_text(dataset)}, each planned at task.max_length, {length} tokens; real texts are shorter."
    if setting.config.task.partition != TaskConfig.model_fields["partition"].default:
        sentence += " task.partition has no meaning here: there are no examples to deal."
    return [sentence]


def _executor_sentences(setting: Setting, executor: str) -> list[str]:
    if executor != "none":
        return []
    sentences = ["Executor none: nothing was trained; times, bytes and joules only, and no accuracy."]
    inquiry = setting.inquiry
    if inquiry is not None and inquiry.clustering is not None:
        sentences.append("Stand-in for fingerprints: clients stay at their nearest edge, as if all behaved alike.")
    if inquiry is not None and inquiry.trust is not None:
        sentences.append("Stand-in for answers to probes: every client is trusted fully.")
    return sentences
