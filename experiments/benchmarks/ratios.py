"""What `make bench` makes of its figures: how many times faster elsa_ray is, and the table of it. Pure functions.

A row is one contestant's work: ``task``, ``precision``, ``contestant``, and either ``failed`` (why) or ``clients`` (a
round), ``wall_seconds`` and ``cpu_seconds`` (one of each timed round; round k of all contestants is one repetition),
``peak_memory_bytes``, ``first_test_loss`` and ``test_loss``: before the first round and after the last.
"""

from __future__ import annotations

import statistics

LOSS_TOLERANCE = 0.01
TITLES = {
    "no-op": "no-op clients (bookkeeping only)",
    "tiny": "tiny BERT + LoRA",
    "minilm": "minilm + LoRA",
}
NAMES = {"ours": "elsa_ray", "flower": "Flower", "pfl": "pfl-research", "plain": "bare torch loop"}
ASKED = {
    ("tiny", "fp32", "flower"): 4.0,
    ("tiny", "fp32", "pfl"): 1.5,
    ("tiny", "bf16", "flower"): 6.0,
    ("tiny", "bf16", "pfl"): 2.5,
    ("minilm", "fp32", "flower"): 1.15,
    ("minilm", "fp32", "pfl"): 1.15,
    ("minilm", "bf16", "flower"): 2.0,
    ("minilm", "bf16", "pfl"): 2.0,
}
"""How many times the throughput elsa_ray should have, by its own precision; the others compute in fp32."""
ASKED_MILLISECONDS = 1.0
"""The most that bookkeeping may take, a client."""

Row = dict


def milliseconds(row: Row, kind: str = "wall_seconds") -> float:
    """Return the median over the timed rounds, a client."""
    return 1000 * statistics.median(row[kind]) / row["clients"]


def ratios(rows: list[Row]) -> list[dict]:
    """Return how many times the others' throughput elsa_ray has, in fp32 and in bf16, for each of their rows.

    A ratio is the median of those of the repetitions. An fp32 row of elsa_ray is not set against a bf16 row.
    """
    done = [row for row in rows if "failed" not in row]
    answer = []
    for ours in (row for row in done if row["contestant"] == "ours"):
        for theirs in (row for row in done if row["contestant"] != "ours" and row["task"] == ours["task"]):
            if (ours["precision"], theirs["precision"]) == ("fp32", "bf16"):
                continue
            pairs = zip(ours["wall_seconds"], theirs["wall_seconds"], strict=True)
            scale = ours["clients"] / theirs["clients"]
            each = [scale * their_seconds / our_seconds for our_seconds, their_seconds in pairs]
            difference = abs(ours["test_loss"] - theirs["test_loss"]) / theirs["test_loss"]
            is_in_fp32 = theirs["precision"] == "fp32"
            key = ours["task"], ours["precision"], theirs["contestant"]
            answer.append(
                {
                    "task": ours["task"],
                    "precision": ours["precision"],
                    "against": theirs["contestant"],
                    "their_precision": theirs["precision"],
                    "ratio": statistics.median(each),
                    "ratio_min": min(each),
                    "ratio_max": max(each),
                    "cpu_ratio": milliseconds(theirs, "cpu_seconds") / milliseconds(ours, "cpu_seconds"),
                    "memory_ratio": theirs["peak_memory_bytes"] / ours["peak_memory_bytes"],
                    "loss_difference": difference,
                    "is_same_loss": difference <= LOSS_TOLERANCE,
                    "asked": ASKED.get(key) if is_in_fp32 else None,
                }
            )
    return answer


def table(report: dict) -> str:
    """Return the figures as Markdown: a line for each contestant and work, and below it what is wrong with any."""
    found = {(r["task"], r["precision"], r["against"], r["their_precision"]): r for r in report["ratios"]}
    lines = [
        "| | ms a client | CPU ms a client | peak memory | test loss | elsa_ray fp32 | elsa_ray bf16 |",
        "|---|---|---|---|---|---|---|",
    ]
    notes, task = [], None
    for row in report["rows"]:
        if row["task"] != task:
            task = row["task"]
            lines.append(f"| **{TITLES[task]}** | | | | | | |")
        name = f"{NAMES[row['contestant']]}, {row['precision']}"
        if "failed" in row:
            lines.append(f"| {name} | failed | | | | | |")
            notes.append(f"{TITLES[task]}, {name}: {row['failed']}")
            continue
        ours_than_it = [
            _ratio(found.get((task, precision, row["contestant"], row["precision"]))) for precision in ("fp32", "bf16")
        ]
        cells = [
            name,
            f"{milliseconds(row):.2f}",
            f"{milliseconds(row, 'cpu_seconds'):.2f}",
            f"{row['peak_memory_bytes'] / 1e9:.2f} GB",
            f"{row['first_test_loss']:.3f} to {row['test_loss']:.4f}",
            *ours_than_it,
        ]
        lines.append(f"| {' | '.join(cells)} |")
        if (task, row["contestant"]) == ("no-op", "ours") and milliseconds(row) > ASKED_MILLISECONDS:
            notes.append(f"missed: {milliseconds(row):.2f} ms a client of bookkeeping, asked {ASKED_MILLISECONDS}")
    for ratio in report["ratios"]:
        what = f"{TITLES[ratio['task']]}, elsa_ray {ratio['precision']} and {NAMES[ratio['against']]}"
        if not ratio["is_same_loss"]:
            notes.append(f"not the same work: {what}: their losses differ by {ratio['loss_difference']:.1%}")
        if ratio["asked"] is not None and ratio["ratio"] < ratio["asked"]:
            notes.append(f"missed: {what}: {ratio['ratio']:.2f} times, asked {ratio['asked']}")
    return "\n".join([*lines, "", about(report), *(f"- {note}" for note in notes)])


def about(report: dict) -> str:
    """Return what a reader must know of the figures, as one paragraph."""
    work, hardware = report["work"], report["hardware"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    clients = ", ".join(f"{count} ({task})" for task, count in work["clients"].items())
    note = f" {report['note']}." if report["note"] else ""
    return (
        f"The last two columns: how many times the line's client throughput elsa_ray has. {report['date']}, "
        f"{hardware['cpus']} CPUs of {hardware['processor']}. Clients a round: {clients}; each {work['local_steps']} "
        f"local steps of {work['batch']} x {work['tokens']} tokens, LoRA of rank {work['lora_rank']}. Medians of "
        f"{report['repetitions']} alternated rounds.{note} Versions: {versions}."
    )


def _ratio(ratio: dict | None) -> str:
    if ratio is None:
        return ""
    asked = "" if ratio["asked"] is None else f" (asked {ratio['asked']:g})"
    return f"{ratio['ratio']:.2f} x{asked}{'' if ratio['is_same_loss'] else ', other loss'}"
