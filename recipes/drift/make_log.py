"""Makes a feedback log from a small grammar: users who ask for things, and complain when they are shouted at.

    python recipes/drift/make_log.py --out recipes/smoke/data

The log has WildFeedback's shape, one turn a row. Its rule can be checked by a program: a good answer has no capital
letter and no exclamation mark (`violates`). Beside it lie a warm-up corpus, from which a model learns to shout now and
then and to listen a little, pairs of a good and a bad answer for methods that do not sample, and single answers with
thumbs up or down, one good to three bad.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from posttrain.data.feedback_logs import Complaint, feedback_log
from posttrain.trainers.staged.feedback_prompt import MARKER, plain_lines, with_feedback

THINGS = {
    "an animal": ["cat", "dog", "owl", "fox", "bee", "cow", "hen", "ant"],
    "a colour": ["red", "blue", "green", "pink", "grey", "teal", "gold", "black"],
    "a fruit": ["fig", "plum", "pear", "lime", "kiwi", "apple", "grape", "mango"],
    "a tool": ["saw", "axe", "file", "drill", "clamp", "level", "rasp", "hammer"],
}
ASKS = ["name {}", "tell me {}", "i want {}", "think of {}"]
COMPLAINTS = ["do not shout", "too loud", "calm down please", "lower your voice"]
THANKS = ["thank you", "that is fine", "much better"]


def violates(answer: str) -> bool:
    """Whether an answer breaks the rule."""
    return answer != answer.lower() or "!" in answer or not answer.strip()


def say(thing: str, *, loud: bool) -> str:
    return f"{thing.upper()}!" if loud else f"{thing}."


def conversation(rng: random.Random) -> list[tuple[str, str, bool | None]]:
    """Turns as (role, text, whether the user is satisfied with the answer before)."""
    turns: list[tuple[str, str, bool | None]] = []
    for _ in range(rng.choice([1, 1, 2])):
        kind = rng.choice(sorted(THINGS))
        ask = rng.choice(ASKS).format(kind)
        mood = None
        if turns:  # the next request takes the place of the thanks, and carries their judgement
            mood = turns.pop()[2]
        turns.append(("User", ask, mood))
        turns.append(("Agent", say(rng.choice(THINGS[kind]), loud=rng.random() < 0.6), None))
        if violates(turns[-1][1]):
            turns.append(("User", rng.choice(COMPLAINTS), False))
            turns.append(("Agent", say(rng.choice(THINGS[kind]), loud=rng.random() < 0.2), None))
        calm = not violates(turns[-1][1])
        turns.append(("User", rng.choice(THANKS if calm else COMPLAINTS), calm))
        if not calm:
            break
    return turns


def log_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """`count` conversations in WildFeedback's shape."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        for number, (role, text, satisfied) in enumerate(conversation(rng)):
            rows.append(
                {
                    "UtterranceId": number,
                    "TurnId": number // 2 + 1,
                    "Role": role,
                    "Content": text,
                    "Satisfaction": satisfied is True,
                    "Disatisfaction": satisfied is False,
                }
            )
    return rows


def warm_up_rows(count: int, seed: int) -> list[dict[str, str]]:
    """Prompts with completions of a model that shouts at 60 % of requests, and at 15 % of those with a complaint."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        kind = rng.choice(sorted(THINGS))
        prompt = [{"role": "user", "content": rng.choice(ASKS).format(kind)}]
        guided = rng.random() < 0.3
        if guided:
            row = Complaint(prompt, say(rng.choice(THINGS[kind]), loud=True), rng.choice(COMPLAINTS))
            text = with_feedback(prompt, row, chat=False)
        else:
            text = plain_lines(prompt) + MARKER
        loud = rng.random() < (0.15 if guided else 0.6)
        rows.append({"prompt": str(text), "completion": say(rng.choice(THINGS[kind]), loud=loud)})
    return rows


def pair_rows(count: int, seed: int) -> list[dict[str, str]]:
    """A calm answer preferred to a loud one."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        kind = rng.choice(sorted(THINGS))
        prompt = plain_lines([{"role": "user", "content": rng.choice(ASKS).format(kind)}]) + MARKER
        rows.append(
            {
                "prompt": prompt,
                "chosen": say(rng.choice(THINGS[kind]), loud=False),
                "rejected": say(rng.choice(THINGS[kind]), loud=True),
            }
        )
    return rows


def complaint_rows(log: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log's complaints as rows for method drift."""
    return [
        {
            "prompt": row.prompt,
            "rejected": [{"role": "assistant", "content": row.rejected}],
            "user_preference": {"role": "user", "content": row.complaint},
        }
        for row in feedback_log(list(log)).complaints
    ]


def thumb_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Of each pair one answer, every fourth time the good one."""
    return [
        {"prompt": pair["prompt"], "completion": pair["rejected" if i % 4 else "chosen"], "label": i % 4 == 0}
        for i, pair in enumerate(pair_rows(count, seed))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--conversations", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    log = log_rows(args.conversations, args.seed)
    files = {
        "wildfeedback.jsonl": log,
        "complaints.jsonl": complaint_rows(log),
        "warm_up.jsonl": warm_up_rows(4 * args.conversations, args.seed + 1),
        "pairs.jsonl": pair_rows(args.conversations, args.seed + 2),
        "thumbs.jsonl": thumb_rows(args.conversations, args.seed + 2),
    }
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (out / name).write_text(text, encoding="utf-8")
        print(f"{out / name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
