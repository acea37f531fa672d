"""What a client's part of the model takes, there and at its edge, asked of the memory model for each by itself."""

from __future__ import annotations

from typing import Any

from elsa_ray.model.memory import client_memory_bytes, edge_frozen_bytes, edge_member_bytes
from elsa_ray.model.split import Split
from elsa_ray.prepare import Prepared


def needed(prepared: Prepared, client: int, split: Split) -> int:
    setting = prepared.setting
    return int(client_memory_bytes(setting.shape, setting.layout, split, **_step(prepared, client)))


def needed_at_edge(prepared: Prepared, client: int, split: Split) -> int:
    setting = prepared.setting
    return int(edge_member_bytes(setting.shape, setting.layout, split, **_step(prepared, client)))


def frozen_at_edge(prepared: Prepared, split: Split) -> int:
    return edge_frozen_bytes(prepared.setting.shape, [split])


def _step(prepared: Prepared, client: int) -> dict[str, Any]:
    setting = prepared.setting
    examples = setting.task.partition[client]
    return {
        "batch": min(prepared.config.protocol.batch_size, len(examples)),
        "length": int(setting.task.train.lengths[examples].max()),
        "num_heads": setting.task.backbone.config.num_attention_heads,
        "optimizer_kind": "adamw",
    }
