"""Plays the conversations of `posttrain eval drift` and measures their turns. Interrupted, it goes on.

conversations.jsonl has a line for each turn: all that was said, with the response's token ids, so that other measures
can be taken later. divergences.jsonl has the measures of each turn. Both are appended to batch by batch; a batch that
was cut off is made again whole, so that a resumed file equals that of an uninterrupted run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.evaluation import store
from posttrain.evaluation.drift_models import ChatModel
from posttrain.evaluation.drift_task import DriftTask, TurnSampling
from posttrain.evaluation.engine_bridge import Response
from posttrain.evaluation.generate import sample_seed
from posttrain.evaluation.speaker import Message
from posttrain.evaluation.tasks import BenchmarkSampling
from posttrain.rollout.answer_divergence import mean_divergences, response_logits

RUN = "drift_run.json"
CONVERSATIONS = "conversations.jsonl"
DIVERGENCES = "divergences.jsonl"
RESULTS = "drift.json"
PAGE = "report.html"
BASE, REMINDERS = "base", "reminders"
USER_TOKENS = 120
"""The longest message of a model that plays the user."""

Row = dict[str, Any]
Key = tuple[str, int, int]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DriftSetup:
    """What is played and how; turns and reminders count from 1, conversations from 0."""

    task: DriftTask
    turns: int
    remind: tuple[int, ...]
    conversations: int
    sampling: TurnSampling
    seed: int = 0
    batch_size: int = 16
    restate_goal: bool = False

    @property
    def arms(self) -> tuple[str, ...]:
        return (BASE, REMINDERS) if self.remind else (BASE,)

    def batches(self) -> Iterator[range]:
        for start in range(0, self.conversations, self.batch_size):
            yield range(start, min(start + self.batch_size, self.conversations))

    def message(self, arm: str, conversation: int, turn: int, request: str) -> str:
        """The user's words: the request, the goal before it at first, the reminder after it where one is due."""
        parts = [request]
        if turn == 1 and self.task.goal_in == "user":
            parts.insert(0, self.task.about(conversation, self.task.goal))
        if arm == REMINDERS and turn in self.remind:
            parts.append(self.task.about(conversation, self.task.reminder))
        return "\n\n".join(parts)

    def opening(self, conversation: int) -> list[Message]:
        if self.task.goal_in == "user":
            return []
        return [{"role": "system", "content": self.task.about(conversation, self.task.goal)}]


# ---- playing


def room_fault(setup: DriftSetup, tested: ChatModel, models: Sequence[ChatModel], played: bool) -> str | None:
    """Why the longest conversation could outgrow a model's positions, where it could.

    played  whether a model plays the user, whose messages are then counted at their longest
    """
    task, longest = setup.task, 0
    for conversation in range(min(setup.conversations, len(task.topics))):
        messages = setup.opening(conversation)
        for turn in range(1, setup.turns + 1):
            scripted = not played or turn == 1
            request = task.request(turn, conversation) if scripted else ""
            arm = REMINDERS if setup.remind else BASE
            messages += [
                {"role": "user", "content": setup.message(arm, conversation, turn, request)},
                {"role": "assistant", "content": ""},
            ]
        additions = [task.about(conversation, text) for text in (task.goal, task.placebo)]
        longest = max(longest, *(len(tested.ids_of(messages[:-1], text)) for text in additions))
    longest += USER_TOKENS * (setup.turns - 1) if played else 0
    for one in models:
        limit = one.max_positions
        if limit is not None and longest + setup.turns * setup.sampling.max_new_tokens > limit:
            room = (limit - longest) // setup.turns
            return (
                f"{setup.turns} turns of up to {setup.sampling.max_new_tokens} new tokens may need "
                f"{longest + setup.turns * setup.sampling.max_new_tokens:,} positions, {one.path} has {limit:,}; "
                + (
                    f"set --max-new-tokens {room} or less, or fewer --turns"
                    if room > 0
                    else "set fewer --turns"
                )
            )
    return None


def play(
    setup: DriftSetup, tested: ChatModel, user: ChatModel | None, out: Path, progress: Progress
) -> dict[Key, Row]:
    """All turns of all conversations, (arm, conversation, turn) -> its line; those that `out` holds are not made again.

    The reminders' conversations are the base's up to the first reminder, and draw from the same seeds after it.
    """
    path = out / CONVERSATIONS
    rows = keyed(path)
    total = len(setup.arms) * setup.conversations * setup.turns
    with store.LineWriter(path) as writer:
        for arm in setup.arms:
            for turn in range(1, setup.turns + 1):
                for batch in setup.batches():
                    missing = [c for c in batch if (arm, c, turn) not in rows]
                    if missing:
                        made = _turns(setup, tested, user, rows, arm, turn, batch)
                        writer.write([made[c] for c in missing])
                        rows.update({(arm, c, turn): made[c] for c in missing})
                    progress(len(rows), total)
    return rows


def keyed(path: Path) -> dict[Key, Row]:
    """The lines of one of the two files by arm, conversation and turn."""
    return {(row["arm"], row["conversation"], row["turn"]): row for row in store.read_lines(path)}


def history(setup: DriftSetup, rows: dict[Key, Row], arm: str, conversation: int, turn: int) -> list[Message]:
    """All messages before the response of a turn, the user's message of that turn included."""
    messages = setup.opening(conversation)
    for past in range(1, turn + 1):
        row = rows[arm, conversation, past]
        messages.append({"role": "user", "content": row["user"]})
        if past < turn:
            messages.append({"role": "assistant", "content": row["response"]})
    return messages


def _turns(
    setup: DriftSetup,
    tested: ChatModel,
    user: ChatModel | None,
    rows: dict[Key, Row],
    arm: str,
    turn: int,
    batch: range,
) -> dict[int, Row]:
    if arm == REMINDERS and turn < min(setup.remind):
        return {c: rows[BASE, c, turn] | {"arm": arm} for c in batch}
    requests = _requests(setup, user, rows, arm, turn, batch)
    begun: dict[int, Row] = {
        c: {"arm": arm, "conversation": c, "turn": turn, "user": setup.message(arm, c, turn, requests[c])}
        for c in batch
    }
    known = rows | {(arm, c, turn): row for c, row in begun.items()}
    prompts = [tested.ids_of(history(setup, known, arm, c, turn)) for c in batch]
    seeds = [sample_seed(setup.seed, f"{c}/{turn}", 0) for c in batch]
    answers = tested.generator.generate(prompts, seeds, _sampling(setup.sampling))
    for c, prompt, seed, answer in zip(batch, prompts, seeds, answers, strict=True):
        begun[c] |= {
            "response": _text(tested, answer),
            "prompt_tokens": len(prompt),
            "token_ids": [*answer.token_ids, *([] if answer.end is None else [answer.end])],
            "truncated": answer.finish == "length",
            "seed": seed,
        }
    return begun


def _requests(
    setup: DriftSetup,
    user: ChatModel | None,
    rows: dict[Key, Row],
    arm: str,
    turn: int,
    batch: range,
) -> dict[int, str]:
    if user is None or turn == 1:
        return {c: setup.task.request(turn, c) for c in batch}
    prompts = [user.ids_of(_seen_by_user(setup, rows, arm, c, turn)) for c in batch]
    seeds = [sample_seed(setup.seed, f"user/{c}/{turn}", 0) for c in batch]
    sampling = setup.sampling.model_copy(update={"max_new_tokens": USER_TOKENS})
    answers = user.generator.generate(prompts, seeds, _sampling(sampling))
    return {c: _text(user, answer).strip() for c, answer in zip(batch, answers, strict=True)}


def _seen_by_user(
    setup: DriftSetup, rows: dict[Key, Row], arm: str, conversation: int, turn: int
) -> list[Message]:
    """The conversation with its sides exchanged. What is to be played stands in the first message: some templates know
    no system message, and most begin with the user's."""
    brief = setup.task.about(conversation, setup.task.user_brief or "")
    first = rows[arm, conversation, 1]
    start = (
        f"{brief}\n\nYour first message was:\n{first['user']}\n\nThe assistant answered:\n{first['response']}"
    )
    messages: list[Message] = [{"role": "user", "content": start}]
    for past in range(2, turn):
        row = rows[arm, conversation, past]
        messages.append({"role": "assistant", "content": row["user"]})
        messages.append({"role": "user", "content": row["response"]})
    return messages


def _text(one: ChatModel, answer: Response) -> str:
    return str(one.tokenizer.decode(answer.token_ids, skip_special_tokens=True))


def _sampling(wanted: TurnSampling) -> BenchmarkSampling:
    return BenchmarkSampling(
        samples=1, max_new_tokens=wanted.max_new_tokens, temperature=wanted.temperature, top_p=wanted.top_p,
        top_k=0, min_p=None,
    )  # fmt: skip


# ---- measuring


def measure(
    setup: DriftSetup,
    tested: ChatModel,
    reference: ChatModel,
    rows: dict[Key, Row],
    out: Path,
    progress: Progress,
) -> dict[Key, Row]:
    """KL and JS of each turn, in nats per token, with the reference's own: (arm, conversation, turn) -> line."""
    path = out / DIVERGENCES
    found = keyed(path)
    with store.LineWriter(path, sync=False) as writer:
        for arm, conversation, turn in rows:
            key = (arm, conversation, turn)
            if key not in found:
                same = (BASE, conversation, turn)
                if arm == REMINDERS and turn < min(setup.remind) and same in found:
                    found[key] = found[same] | {"arm": arm}
                else:
                    found[key] = _measured(setup, tested, reference, rows, key)
                writer.write([found[key]])
            progress(len(found), len(rows))
    return found


def _measured(
    setup: DriftSetup, tested: ChatModel, reference: ChatModel, rows: dict[Key, Row], key: Key
) -> Row:
    """One turn. The history's ids are those of the tested model's template, for both models.

    kl, js                      D_t: the tested model against the reference
    placebo_kl, placebo_js      noise floor: the reference against itself with an irrelevant sentence added
    reference_kl, reference_js  the reference in the tested model's place; with the goal restated only, else 0
    """
    arm, conversation, turn = key
    messages = history(setup, rows, *key)
    response = rows[key]["token_ids"]
    goal, placebo = (setup.task.about(conversation, text) for text in (setup.task.goal, setup.task.placebo))
    vocabulary = len(tested.tokenizer)
    spoken = tested.ids_of(messages)
    q = response_logits(tested.model, spoken, response)
    plain = q if reference is tested else response_logits(reference.model, spoken, response)
    p = plain
    if setup.restate_goal:
        p = response_logits(reference.model, tested.ids_of(messages, goal), response)
    beside = response_logits(reference.model, tested.ids_of(messages, placebo), response)
    pairs = {"": (q, p), "placebo_": (plain, beside), "reference_": (plain, p)}
    row: Row = {"arm": arm, "conversation": conversation, "turn": turn, "tokens": len(response)}
    for prefix, (left, right) in pairs.items():
        row[f"{prefix}kl"], row[f"{prefix}js"] = mean_divergences(left, right, vocabulary)
    return row
