"""What federated fine-tuning of a very large model sends: adapters, activations at the cuts, or outputs on prompts.

    python experiments/benchmarks/behemoth.py [experiments/llama_405b.yaml]

Prints Markdown. Nothing is trained and no weight is loaded. Formulas are those of methods.md 2.3; bytes and seconds of
adapters (fedavg) and activations (elsa) come from plans of the config, those of outputs from its network: every client
sends its outputs on the prompts to the cloud, and gets the consensus back. How long a client thinks over the prompts is
not part of it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import elsa_ray
from elsa_ray.config.load import load_config
from elsa_ray.config.task import LoraConfig
from elsa_ray.model.adapters import AdapterLayout, make_layout
from elsa_ray.model.families import family_of
from elsa_ray.model.shape import ModelShape
from elsa_ray.model.split import Part, cut
from elsa_ray.network import Network, finish_times
from elsa_ray.prepare import prepare
from elsa_ray.records.human import human_bytes, human_seconds
from elsa_ray.tasks.model_facts import facts_config

CONFIG = "experiments/llama_405b.yaml"
WIRE_BYTES = 2
"""bf16."""
PROMPTS, TOKENS, TOKEN_BYTES = 1000, 200, 2
"""The fixed payload of outputs: prompts, tokens of each answer, bytes of a token's number."""
RANK = 16
MODELS = (
    "gpt2", "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "qwen2.5-7b", "llama-3.1-8b", "qwen2.5-14b", "qwen2.5-32b",
    "llama-3.1-70b", "llama-3.1-405b",
)  # fmt: skip
TARGETS = {
    "q, v": ["q_proj", "v_proj"],
    "q, k, v, o": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "all seven": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
NETWORKS = {
    "fibre (1 Gbit/s, 5 ms)": ("1 Gbit/s", "1 Gbit/s", "5 ms"),
    "5G (50 up, 300 down, 15 ms)": ("50 Mbit/s", "300 Mbit/s", "15 ms"),
    "rural LTE (5 up, 20 down, 50 ms)": ("5 Mbit/s", "20 Mbit/s", "50 ms"),
}


def described(model: str, targets: list[str] | None, rank: int = RANK) -> tuple[ModelShape, AdapterLayout]:
    """Return a bundled language model's shape and trained tensors; None targets are query and value."""
    config = facts_config(model)
    family = family_of(config)
    shape = family.shape(config, causal_lm=True)
    section = LoraConfig(rank=rank, targets=targets if targets is not None else "auto")
    return shape, make_layout(shape, family, section, causal_lm=True)


def adapter_numbers(layout: AdapterLayout) -> int:
    """Return P_LoRA, the numbers of all adapters."""
    return sum(tensor.num_elements for tensor in layout.tensors)


def outputs_bytes() -> int:
    """Return the bytes of a client's outputs in one direction."""
    return PROMPTS * TOKENS * TOKEN_BYTES


def break_even_prompts(layout: AdapterLayout) -> float:
    """Return the prompts from which on outputs are more bytes than adapters."""
    return adapter_numbers(layout) * WIRE_BYTES / (TOKENS * TOKEN_BYTES)


def break_even_tokens(shape: ModelShape, layout: AdapterLayout, front: int, back: int) -> float:
    """Return the tokens a round from which on a split sends more than the exchange of all adapters.

    A token crosses the cuts four times with D numbers; the adapters of the middle blocks are what a split saves, twice.
    """
    middle = layout.part(cut(shape.num_layers, front, back), Part.MIDDLE)
    return 2 * sum(tensor.num_elements for tensor in middle) / (4 * shape.hidden_size)


def planned(path: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the summary of a plan."""
    with tempfile.TemporaryDirectory() as folder:
        return elsa_ray.plan(path, overrides=overrides, out=Path(folder) / "plan").summary


def outputs_seconds(path: str, overrides: Sequence[str]) -> float:
    """Return the time from all clients' sending of their outputs until all have the consensus, on this network."""
    network = prepare(load_config(path, [*overrides, "runtime.executor=none"])).setting.network
    clients = [network.node_names[node] for node in network.clients]
    (cloud,) = (network.node_names[node] for node in network.clouds)
    gathered = _all_done(network, [(client, cloud) for client in clients], 0.0)
    return _all_done(network, [(cloud, client) for client in clients], gathered)


def _all_done(network: Network, ends: Sequence[tuple[str, str]], start: float) -> float:
    """Return when the last of equal messages that start together has arrived."""
    rows = [
        {"id": number, "src": source, "dst": target, "num_bytes": outputs_bytes(), "start_seconds": start}
        for number, (source, target) in enumerate(ends)
    ]
    return max(row["finish_seconds"] for row in finish_times(network, rows))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    for line in (header, ["---", *["---:"] * (len(header) - 1)], *rows):
        print(f"| {' | '.join(line)} |")
    print()


def network_seconds(summary: dict[str, Any]) -> float:
    """Return what the round waited for transfers."""
    waited_for = summary["breakdown"]["rounds_waited_for"]
    return sum(waited_for.get(part, 0.0) for part in ("latency", "bandwidth", "sharing"))


def print_rounds(path: str) -> None:
    """Print bytes, memory and seconds of a round for each way of federating, on each network."""
    config = load_config(path)
    clients = config.topology.clients
    fedavg = (
        f"protocol={{name: fedavg, rounds: 1, local_steps: {config.protocol.local_steps}, "
        f"batch_size: {config.protocol.batch_size}, wire_dtype: {config.protocol.wire_dtype}}}"
    )
    ways = {"adapters (fedavg)": [fedavg], "split activations (elsa)": []}
    rows = {name: [] for name in [*ways, f"outputs on {PROMPTS:,} prompts"]}
    for up, down, latency in NETWORKS.values():
        on = [f"topology.access_up={up}", f"topology.access_down={down}", f"topology.access_latency={latency}"]
        for name, overrides in ways.items():
            summary = planned(path, [*overrides, *on])
            if not rows[name]:
                own = summary["breakdown"]["tiers"]["client"]
                memory = human_bytes(summary["breakdown"]["memory_bytes"]["client"])
                both = [human_bytes(own[f"bytes_{way}"] / clients) for way in ("sent", "received")]
                rows[name] += [*both, memory]
            seconds = (network_seconds(summary), summary["simulated_seconds"])
            rows[name].append(f"{human_seconds(seconds[0])} of {human_seconds(seconds[1])}")
        outputs = rows[f"outputs on {PROMPTS:,} prompts"]
        outputs += [] if outputs else [human_bytes(outputs_bytes())] * 2 + ["–"]
        outputs.append(human_seconds(outputs_seconds(path, on)))
    print_table(
        ["a client, a round", "sent", "received", "memory", *NETWORKS], [[name, *row] for name, row in rows.items()]
    )


def print_adapters(model: str) -> None:
    """Print the adapters of a Llama by target, and where the ways cost the same."""
    rows = []
    for name, targets in TARGETS.items():
        shape, layout = described(model, targets)
        numbers = adapter_numbers(layout)
        rows.append(
            [
                name,
                f"{numbers // RANK:,} r",
                human_bytes(numbers * WIRE_BYTES),
                f"{break_even_tokens(shape, layout, 1, 1):,.0f} tokens",
                f"{break_even_prompts(layout):,.0f} prompts",
            ]
        )
    print_table(
        [f"{model}, adapters on", "numbers", f"bf16, r = {RANK}", "split costs more from", "outputs cost more from"],
        rows,
    )


def print_models() -> None:
    """Print how many times smaller outputs are than adapters, for models of all sizes."""
    rows = []
    for model in MODELS:
        shape, layout = described(model, None)
        num_bytes = adapter_numbers(layout) * WIRE_BYTES
        rows.append(
            [
                model,
                f"{shape.num_parameters / 1e9:.2f} G",
                human_bytes(num_bytes),
                f"{num_bytes / outputs_bytes():.2f}",
                f"{break_even_prompts(layout):,.0f} prompts",
                f"{break_even_tokens(shape, layout, 1, 1):,.0f} tokens",
            ]
        )
    header = [
        "model",
        "parameters",
        "adapters",
        f"over {human_bytes(outputs_bytes())}",
        "outputs cost more from",
        "split costs more from",
    ]
    print_table(header, rows)


def main() -> None:
    """Print the tables."""
    path = sys.argv[1] if len(sys.argv) > 1 else CONFIG
    print_rounds(path)
    print_adapters("llama-3.1-405b")
    print_models()


if __name__ == "__main__":
    main()
