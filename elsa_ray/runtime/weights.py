"""A frozen model as read-only arrays that many processes can share, and back without a copy.

Ray's object store hands numpy arrays to every worker of a node as views of the same memory.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class PackedModel:
    """Config and tensors of a model.

    Attributes:
        config: of the architecture.
        causal_lm: which of transformers' classes it is.
        tensors: parameters and buffers by name, with their torch type; bf16 numbers travel as int16.
    """

    config: PretrainedConfig
    causal_lm: bool
    tensors: dict[str, tuple[npt.NDArray[np.generic], str]]


def pack_model(model: PreTrainedModel, *, causal_lm: bool) -> PackedModel:
    """Return the model's tensors as arrays; made of a model on the CPU they are views of its memory."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    tensors = {name: _to_array(tensor.detach()) for name, tensor in named.items()}
    return PackedModel(model.config, causal_lm, tensors)


def unpack_model(packed: PackedModel) -> PreTrainedModel:
    """Build the model around the arrays, without copying them and without drawing a random number."""
    auto = AutoModelForCausalLM if packed.causal_lm else AutoModelForSequenceClassification
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(packed.config, attn_implementation="sdpa")
    for name, (array, dtype) in packed.tensors.items():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        tensor = _to_tensor(array, dtype)
        if attribute in module._parameters:
            module._parameters[attribute] = torch.nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[attribute] = tensor
    model.tie_weights()
    return model.eval()


def _to_array(tensor: torch.Tensor) -> tuple[npt.NDArray[np.generic], str]:
    tensor = tensor.contiguous().cpu()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy(), dtype


def _to_tensor(array: npt.NDArray[np.generic], dtype: str) -> torch.Tensor:
    with warnings.catch_warnings():
        # The memory is shared and read-only; nothing here ever writes to a frozen weight.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
