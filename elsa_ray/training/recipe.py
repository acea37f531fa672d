"""What every worker must know to do its part of the training; the same for the whole run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from elsa_ray.clustering.fingerprints import FingerprintFrame
from elsa_ray.codecs.chain import CodecChain, Memory
from elsa_ray.codecs.codec import CodecContext, Maker
from elsa_ray.codecs.wire import adapter_memories_after, decode_adapters, encode_adapters
from elsa_ray.config.misbehaviour import Misbehaviour
from elsa_ray.config.protocol import ProtocolConfig
from elsa_ray.model.adapters import Adapters, AdapterTensor
from elsa_ray.training.inquiry import Inquiry
from elsa_ray.world.plan import WorkKey
from elsa_ray.world.roles import Role


@dataclass(frozen=True)
class Chains:
    """The codec chains by kind of payload.

    Attributes:
        activation, gradient: of the step messages.
        adapter: of models as they are.
        update: of what clients send, which is then trained minus received; None: they send models, by ``adapter``.
        calibration_texts: of a client, of which its keys and bases are made; None for those of its first batch.
    """

    activation: CodecChain
    gradient: CodecChain
    adapter: CodecChain
    update: CodecChain | None = None
    calibration_texts: int | None = None

    def of_step(self, role: Role) -> CodecChain:
        """Return the chain of a message of a split step."""
        return self.activation if role in (Role.ACTIVATION_UP, Role.ACTIVATION_DOWN) else self.gradient

    @property
    def of_upload(self) -> CodecChain:
        """The chain of a client's adapter_up."""
        return self.update if self.update is not None else self.adapter

    @property
    def refresh_rounds(self) -> int | None:
        """Global rounds from one calibration to the next, for all codecs of the chain; None if none has one."""
        stages = [self.activation.stages[position] for position in self.activation.calibrated]
        return min((stage.calibration.refresh_rounds for stage in stages if stage.calibration), default=None)

    @property
    def edge_calibrates(self) -> bool:
        """Whether the edge makes calibrations of its own, for the second cut."""
        stages = [self.activation.stages[position] for position in self.activation.calibrated]
        return any(stage.calibration.maker is Maker.SENDER for stage in stages if stage.calibration)

    @property
    def remembers(self) -> bool:
        """Whether calibrations outlive the round in which they were made."""
        return self.refresh_rounds is not None and self.refresh_rounds > 1


@dataclass(frozen=True)
class Recipe:
    """Immutable settings of the training.

    Attributes:
        seed: the run's.
        protocol: local work and optimiser.
        chains: codecs.
        pad_id: token id of padding.
        adapter_dtype: type in which adapters and moments are kept: fp64 in fp64 runs, else fp32.
        num_labels: classes of the task; 0 for causal_lm.
        inquiry: what is asked of models on the public probes; None for nothing.
        misbehaviour: what each client does, None for an honest one; empty where all are honest.
        frame: what makes fingerprints comparable; None where nobody is clustered.
    """

    seed: int
    protocol: ProtocolConfig
    chains: Chains
    pad_id: int
    adapter_dtype: torch.dtype
    num_labels: int = 0
    inquiry: Inquiry | None = None
    misbehaviour: tuple[Misbehaviour | None, ...] = ()
    frame: FingerprintFrame | None = None

    def misbehaviour_of(self, key: WorkKey) -> Misbehaviour | None:
        """Return what the client of a work item does; None if it is honest."""
        return self.misbehaviour[key.client] if self.misbehaviour else None

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
        return self._unpacked(self.chains.adapter, role, tensors, payload, context)

    def pack_upload(
        self,
        tensors: Sequence[AdapterTensor],
        received: Adapters,
        trained: Adapters,
        context: CodecContext,
        errors: Mapping[str, Memory],
    ) -> tuple[bytes, dict[str, Memory]]:
        """Encode what a client sends after its training; returns the payload, and what it has lost so far.

        Args:
            tensors: those that the client holds.
            received: the model as the client got it.
            trained: the model that it sends.
            context: of the message.
            errors: what earlier messages have lost, by tensor; who is missing has lost nothing.
        """
        chain = self.chains.of_upload
        sent = [trained[tensor.name] for tensor in tensors]
        if self.chains.update is not None:
            sent = [values - received[tensor.name] for values, tensor in zip(sent, tensors, strict=True)]
        # By name: a split that has changed brings other tensors.
        held = [errors.get(tensor.name, ()) for tensor in tensors]
        payload = encode_adapters(chain, Role.ADAPTER_UP, sent, context, held)
        if not chain.remembers_error:
            return payload, {}
        lost = adapter_memories_after(chain, sent, context, held)
        return payload, {tensor.name: own for tensor, own in zip(tensors, lost, strict=True)}

    def unpack_upload(
        self, tensors: Sequence[AdapterTensor], received: Adapters, payload: bytes, context: CodecContext
    ) -> Adapters:
        """Decode what a client has sent to its model; ``received`` is the model as the client had got it."""
        decoded = self._unpacked(self.chains.of_upload, Role.ADAPTER_UP, tensors, payload, context)
        if self.chains.update is None:
            return decoded
        return {name: received[name] + update for name, update in decoded.items()}

    def _unpacked(
        self, chain: CodecChain, role: Role, tensors: Sequence[AdapterTensor], payload: bytes, context: CodecContext
    ) -> Adapters:
        shapes = [tensor.shape for tensor in tensors]
        values = decode_adapters(chain, role, payload, shapes, context, self.adapter_dtype)
        return {tensor.name: value for tensor, value in zip(tensors, values, strict=True)}
