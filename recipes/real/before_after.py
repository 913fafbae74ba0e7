"""What a run on instructions changed: answers before and after side by side, and what it cost beside the reward.

    python recipes/real/before_after.py [runs/real-instructions] [--pairs 4]

For the held-out prompts: the share followed of each kind of instruction; and qualities nobody trained for: how fluent
the answers are to the model that training began with (nats per token, nearer to 0 is more fluent), repeated runs of
three words, words per answer, and how many of the answers are different ones. A policy that has found a way to please
the reward, and no more, shows in these.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.answers.ifeval import followed
from posttrain.data.instructions import Instructions
from posttrain.observe.pairs import read_held_out
from posttrain.rewards.builtin import repetition
from posttrain.rewards.instruction_reward import read_column
from posttrain.settings.base import checked

Rows = list[dict[str, Any]]


def asked(rows: Rows, task: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The test rows, by their prompt's text, of the instructions task with these settings."""
    by_prompt = {
        str(row["prompt"]): row for row in checked(Instructions, task).rows("test", completions=False)
    }
    return {
        row["prompt"]: found for row in rows for text, found in by_prompt.items() if text in row["prompt"]
    }


@torch.no_grad()
def fluency(model: Any, tokenizer: Any, rows: Rows) -> float:
    """Mean log-prob of the answers' tokens, in nats per token."""
    total, count = 0.0, 0
    for row in rows:
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        answer = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
        if answer:
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            total += logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum().item()
            count += len(answer)
    return total / max(1, count)


def qualities(rows: Rows, model: Any, tokenizer: Any) -> dict[str, float]:
    texts = [row["completion"] for row in rows]
    return {
        "reward": statistics.mean(row["reward"] for row in rows),
        "fluency to the start (nats per token)": fluency(model, tokenizer, rows),
        "repeated runs of three words": -statistics.mean(one or 0.0 for one in repetition(texts)),
        "words per answer": statistics.mean(len(text.split()) for text in texts),
        "different answers": len(set(texts)) / len(texts),
    }


def by_kind(rows: Rows, tasks: dict[str, dict[str, Any]]) -> dict[str, float]:
    found: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        task = tasks.get(row["prompt"])
        if task is not None:
            names, settings = task["instruction_id_list"], read_column(task["kwargs"]) or []
            for name, kept in zip(names, followed(row["completion"], names, settings), strict=True):
                found[name.partition(":")[2]].append(kept)
    return {name: statistics.mean(kept) for name, kept in sorted(found.items())}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/real-instructions"))
    parser.add_argument("--pairs", type=int, default=4)
    args = parser.parse_args()
    before, after = (read_held_out(args.run, when) for when in ("before", "after"))
    if not before or not after:
        print(
            f"{args.run}: no held-out answers from before and after; the run has not come to its end",
            file=sys.stderr,
        )
        return 2
    recipe = yaml.safe_load((args.run / "recipe.yaml").read_text())
    start, task = recipe["model"]["path"], recipe["data"].get("args") or {}
    tokenizer = AutoTokenizer.from_pretrained(start)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32).eval()
    console, tasks = Console(), asked(before, task)
    answers = Table("asked", "before", "after", title="Held-out prompts", show_lines=True)
    step = max(1, len(before) // args.pairs)
    for one, other in list(zip(before, after, strict=True))[::step][: args.pairs]:
        request = tasks.get(one["prompt"], {}).get("prompt", one["prompt"])
        answers.add_row(request, *(f"{row['completion']}\n[{row['reward']:.2f}]" for row in (one, other)))
    console.print(answers)
    table = Table("", "before", "after")
    for measured in (lambda rows: qualities(rows, model, tokenizer), lambda rows: by_kind(rows, tasks)):
        old, new = measured(before), measured(after)
        for name in old:
            table.add_row(name, f"{old[name]:.2f}", f"{new[name]:.2f}")
        table.add_section()
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
