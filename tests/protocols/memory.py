"""What a client's part of the model takes, asked of the memory model for each client by itself."""

from __future__ import annotations

from elsa_ray.model.memory import client_memory_bytes
from elsa_ray.model.split import Split
from elsa_ray.prepare import Prepared


def needed(prepared: Prepared, client: int, split: Split) -> int:
    setting = prepared.setting
    examples = setting.task.partition[client]
    return int(
        client_memory_bytes(
            setting.shape,
            setting.layout,
            split,
            batch=min(prepared.config.protocol.batch_size, len(examples)),
            length=int(setting.task.train.lengths[examples].max()),
            num_heads=setting.task.backbone.config.num_attention_heads,
            optimizer_kind="adamw",
        )
    )
