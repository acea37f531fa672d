"""Makes the parts of a run from its config: network, task, model, protocol, world, executor."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from elsa_ray.clustering.fingerprints import make_frame
from elsa_ray.codecs.chain import build_chain, check_matching
from elsa_ray.config.errors import InputError
from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.config.misbehaviour import Misbehaviour, check_misbehaviour_of_task
from elsa_ray.config.plugins import find_class
from elsa_ray.config.protocol import CodecChains
from elsa_ray.config.split import AutoSplitConfig
from elsa_ray.config.task import SizesDataset
from elsa_ray.model.adapters import AdapterLayout, Adapters, initial_adapters, make_layout
from elsa_ray.model.cost import step_flops
from elsa_ray.model.families import family_of
from elsa_ray.model.shape import ModelShape
from elsa_ray.model.split import whole
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.network.generate import make_network
from elsa_ray.network.graph import Network
from elsa_ray.network.routes import Router
from elsa_ray.protocols.elsa import Elsa
from elsa_ray.protocols.fedavg import FedAvg
from elsa_ray.protocols.protocol import Protocol
from elsa_ray.protocols.setting import Setting
from elsa_ray.runtime.hardware import resolve_numerics
from elsa_ray.tasks.model_facts import check_has_weights
from elsa_ray.tasks.task import Task, load_task
from elsa_ray.tasks.weights import load_model
from elsa_ray.training.misbehaviour import misbehaviour_of_clients
from elsa_ray.training.probing import answer_probes
from elsa_ray.training.recipe import Chains, Recipe
from elsa_ray.world.availability import make_availability
from elsa_ray.world.devices import StepSize, devices_of_clients, find_device
from elsa_ray.world.faults import make_faults
from elsa_ray.world.fleet import Fleet
from elsa_ray.world.plan import Floats
from elsa_ray.world.traces import read_device_capacities
from elsa_ray.world.world import Adversity, World

PROTOCOLS: dict[str, type[Protocol]] = {"elsa": Elsa, "fedavg": FedAvg}
PRECISIONS = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Prepared:
    """All that the loop needs but the weights.

    Attributes:
        config: with ``auto`` resolved.
        setting: circumstances.
        protocol: the method.
        world: the simulated field.
    """

    config: ExperimentConfig
    setting: Setting
    protocol: Protocol
    world: World


def prepare(config: ExperimentConfig) -> Prepared:
    """Build everything that needs no weight, and so find every mistake in the input first.

    Raises:
        InputError: anything in config, data or topology is wrong.
    """
    if config.runtime.executor != "none":
        _check_can_be_trained(config)
    network, rate_N = _as_measured(config, make_network(config.topology, config.seed, Path()))
    config = _resolved(config, network)
    _check_policy(config)
    task = load_task(config.task, num_clients=len(network.clients), seed=config.seed, base_folder=Path())
    causal_lm = config.task.kind == "causal_lm"
    family = family_of(task.backbone.config)
    shape = family.shape(task.backbone.config, causal_lm=causal_lm)
    if config.task.max_length > shape.max_positions:
        raise InputError("task.max_length", config.task.max_length, f"at most {shape.max_positions} with this model")
    layout = make_layout(shape, family, config.task.lora, causal_lm=causal_lm)
    fleet = Fleet(
        devices_of_clients(config.world.clients.device, len(network.clients), config.seed, "world.clients.device"),
        find_device(config.world.edges.device, "world.edges.device"),
    ).training(_usual_step(config, task, shape, layout))
    if rate_N is not None:
        fleet = fleet.with_flops_per_second(rate_N)
    router = Router(network)
    setting = Setting(
        config=config,
        task=task,
        network=network,
        router=router,
        shape=shape,
        layout=layout,
        chains=make_chains(config),
        fleet=fleet,
        misbehaviour=_misbehaviour(config, len(network.clients)),
    )
    protocol = find_class("protocol.name", "elsa_ray.protocols", config.protocol.name, PROTOCOLS)
    adversity = Adversity(
        config.world.faults,
        make_faults(config.world.faults, network, config.seed),
        make_availability(config.world.availability, len(network.clients), config.seed),
        config.seed,
    )
    world = World(
        network,
        router,
        fleet=fleet,
        edge_slots=config.world.edges.slots,
        model=setting.network_model,
        adversity=adversity,
    )
    return Prepared(config, setting, protocol(config.protocol, setting), world)


def _check_can_be_trained(config: ExperimentConfig) -> None:
    """Refuse what can only be planned.

    Raises:
        InputError: the model has no weights here, or the data set no texts.
    """
    check_has_weights(config.task.model, Path())
    if isinstance(config.task.dataset, SizesDataset):
        found = f"a data set of sizes with runtime.executor {config.runtime.executor}"
        allowed = "texts; sizes alone can be timed and not trained (elsa-ray plan, or runtime.executor: none)"
        raise InputError("task.dataset.sizes", found, allowed)


def _check_policy(config: ExperimentConfig) -> None:
    over_sample, participation = config.world.round_policy.over_sample, config.protocol.participation
    if over_sample is not None and participation == 1:
        allowed = "null, or protocol.participation below 1: with 1 there is nobody more to sample"
        raise InputError("world.round_policy.over_sample", over_sample, allowed)


def _as_measured(config: ExperimentConfig, network: Network) -> tuple[Network, Floats | None]:
    """Return the network with the bandwidths, and the clients' FLOP/s, that a file says; None where none does."""
    told = config.world.clients.capacities
    if told is None:
        return network, None
    capacities = read_device_capacities(told.file, len(network.clients), config.seed, told.flops_per_sample)
    if told.links:
        network = network.with_client_bandwidths(capacities.bytes_per_second)
    return network, capacities.flops_per_second


def _usual_step(config: ExperimentConfig, task: Task, shape: ModelShape, layout: AdapterLayout) -> StepSize:
    """Return the size of a step on a full batch of texts of the mean length: what a device's rate is taken for."""
    texts, length = config.protocol.batch_size, max(1, math.ceil(task.mean_length_C.mean()))
    flops = step_flops(shape, layout, whole(shape.num_layers)).whole.total(texts, length)
    return StepSize(float(flops), float(texts * length * shape.hidden_size * shape.num_layers), shape.num_layers)


def _misbehaviour(config: ExperimentConfig, num_clients: int) -> tuple[Misbehaviour | None, ...]:
    """Return what each client does; nothing at all where all are honest."""
    specs = config.world.misbehaviour
    if not specs:
        return ()
    check_misbehaviour_of_task(specs, causal_lm=config.task.kind == "causal_lm")
    return misbehaviour_of_clients(specs, num_clients, config.seed)


def _resolved(config: ExperimentConfig, network: Network) -> ExperimentConfig:
    """Return the config with every ``auto`` that can change a number decided, to be stored with the run."""
    numerics = resolve_numerics(config.numerics)
    if numerics.edges_per_group == "auto":
        members = config.protocol.participation * len(network.clients) / len(network.edges)
        # Clients of one cohort share their split: where there are several, each needs a cohort's worth of clients.
        split = getattr(config.protocol, "split", None)
        num_splits = split.auto.max_splits if isinstance(split, AutoSplitConfig) else 1
        needed = math.ceil(num_splits * numerics.cohort / members)
        numerics = numerics.model_copy(update={"edges_per_group": min(needed, len(network.edges))})
    return config.model_copy(update={"numerics": numerics})


def make_chains(config: ExperimentConfig) -> Chains:
    """Build the codec chains of a config.

    Raises:
        InputError: a codec is unknown or its parameters are wrong.
    """
    codec = getattr(config.protocol, "codec", CodecChains())
    wire_dtype = config.protocol.wire_dtype
    where = "protocol.codec"
    activation = build_chain(codec.activation, wire_dtype, f"{where}.activation", for_adapters=False)
    gradient = build_chain(codec.gradient, wire_dtype, f"{where}.gradient", for_adapters=False)
    check_matching(activation, gradient, f"{where}.gradient")
    adapter = build_chain(codec.adapter, wire_dtype, f"{where}.adapter", for_adapters=True)
    update = None
    if codec.update is not None:
        update = build_chain(codec.update, wire_dtype, f"{where}.update", for_adapters=True)
    if codec.calibration_texts is not None and not activation.is_calibrated:
        raise InputError(f"{where}.calibration_texts", codec.calibration_texts, "a codec in activation that needs them")
    return Chains(activation, gradient, adapter, update, codec.calibration_texts)


def make_recipe(prepared: Prepared) -> Recipe:
    """Return what every worker must know."""
    config, setting = prepared.config, prepared.setting
    adapter_dtype = torch.float64 if config.numerics.precision == "fp64" else torch.float32
    return Recipe(
        config.seed,
        config.protocol,
        setting.chains,
        setting.task.backbone.config.pad_token_id,
        adapter_dtype,
        num_labels=setting.task.num_labels,
        inquiry=setting.inquiry,
        misbehaviour=setting.misbehaviour,
    )


def with_frame(prepared: Prepared, recipe: Recipe, model: PreTrainedModel, adapters: Adapters) -> Recipe:
    """Return the recipe with what makes fingerprints comparable: the base model's axes on the probes (card 1.4 a).

    The cloud computes it once, before the first round, from a copy of the model.

    Raises:
        InputError: the probes are too few, or too much alike.
    """
    inquiry = recipe.inquiry
    if inquiry is None or inquiry.dimensions is None:
        return recipe
    base = make_tripartite(prepared, deepcopy(model))
    stacked = {name: tensor[None].to(base.device) for name, tensor in adapters.items()}
    (answers,) = answer_probes(base, stacked, inquiry.probes, recipe.pad_id)
    return replace(recipe, frame=make_frame(answers.states_QD.astype(np.float64), inquiry.dimensions))


def load_backbone(prepared: Prepared) -> tuple[PreTrainedModel, Adapters]:
    """Load the frozen model in fp32 on the CPU, and the first adapters.

    Raises:
        InputError: the weights cannot be had, or there are no texts to train on.
    """
    _check_can_be_trained(prepared.config)
    setting = prepared.setting
    model = load_model(setting.task.backbone, setting.task.kind, prepared.config.seed)
    adapters = initial_adapters(setting.layout, model, prepared.config.seed, make_recipe(prepared).adapter_dtype)
    return model, adapters


def make_tripartite(prepared: Prepared, model: PreTrainedModel) -> TripartiteModel:
    """Turn the loaded model into the cohort's backbone, in the run's precision and on its device."""
    numerics, setting = prepared.config.numerics, prepared.setting
    model = model.to(device=numerics.device, dtype=PRECISIONS[numerics.precision])
    return TripartiteModel(model, family_of(model.config), setting.shape, setting.layout)
