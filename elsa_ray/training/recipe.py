"""What every worker must know to do its part of the training; the same for the whole run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from elsa_ray.codecs.chain import CodecChain
from elsa_ray.codecs.codec import CodecContext
from elsa_ray.codecs.wire import decode_adapters, encode_adapters
from elsa_ray.config.protocol import ProtocolConfig
from elsa_ray.model.adapters import Adapters, AdapterTensor
from elsa_ray.world.plan import WorkKey
from elsa_ray.world.roles import Role


@dataclass(frozen=True)
class Chains:
    """The codec chains by kind of payload."""

    activation: CodecChain
    gradient: CodecChain
    adapter: CodecChain

    def of_step(self, role: Role) -> CodecChain:
        """Return the chain of a message of a split step."""
        return self.activation if role in (Role.ACTIVATION_UP, Role.ACTIVATION_DOWN) else self.gradient


@dataclass(frozen=True)
class Recipe:
    """Immutable settings of the training.

    Attributes:
        seed: the run's.
        protocol: local work and optimiser.
        chains: codecs.
        pad_id: token id of padding.
        adapter_dtype: type in which adapters and moments are kept: fp64 in fp64 runs, else fp32.
    """

    seed: int
    protocol: ProtocolConfig
    chains: Chains
    pad_id: int
    adapter_dtype: torch.dtype

    def learning_rate(self, round_index: int) -> float:
        """Return the rate of a global round."""
        optimizer = self.protocol.optimizer
        return optimizer.learning_rate * optimizer.decay**round_index

    def context(self, key: WorkKey, role: Role, step: int = -1) -> CodecContext:
        """Return what both ends know about a message of a work item."""
        return CodecContext(self.seed, key.round_index, key.edge_round, step, key.client, role.label)

    def trunk_context(self, round_index: int, edge_node: int, role: Role) -> CodecContext:
        """Return what both ends know about a message between an edge and the cloud; -2 - node stands for a client."""
        return CodecContext(self.seed, round_index, 0, -1, -2 - edge_node, role.label)

    def pack(self, role: Role, tensors: Sequence[AdapterTensor], adapters: Adapters, context: CodecContext) -> bytes:
        """Encode the named tensors of an adapter set, in the layout's order."""
        return encode_adapters(self.chains.adapter, role, [adapters[tensor.name] for tensor in tensors], context)

    def unpack(self, role: Role, tensors: Sequence[AdapterTensor], payload: bytes, context: CodecContext) -> Adapters:
        """Decode the named tensors of an adapter set."""
        shapes = [tensor.shape for tensor in tensors]
        values: list[Tensor] = decode_adapters(self.chains.adapter, role, payload, shapes, context)
        named = zip(tensors, values, strict=True)
        return {tensor.name: value.to(self.adapter_dtype) for tensor, value in named}
