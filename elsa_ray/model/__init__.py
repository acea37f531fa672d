"""The split model: its three parts, LoRA for cohorts, and what it costs in FLOPs and bytes."""
