"""Partial rollouts: a long completion is cut at a token budget and goes on in a later round, with its tokens marked.

Whole groups only: a group is handed out when all its completions have ended. To keep the batch full while long ones
wait, the rows of one batch more than is trained on are always under way; the oldest ended groups go first.
Each token keeps the weight version and the log-prob it was sampled with, so its ratio is right by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain.rollout.base import Completion, Sampling, stable_seed

Generate = Callable[[list[list[int]], list[Sampling]], list[Completion]]


def join(parts: Sequence[Completion]) -> Completion:
    """The parts of one completion as one; neighbours of the same version are one segment."""
    segments: list[tuple[int, int]] = []
    for part in parts:
        for version, length in part.segments:
            if segments and segments[-1][0] == version:
                segments[-1] = (version, segments[-1][1] + length)
            else:
                segments.append((version, length))
    return Completion(
        [token for part in parts for token in part.token_ids],
        [value for part in parts for value in part.logprobs],
        parts[-1].finish,
        tuple(segments),
    )


@dataclass
class Group:
    """One prompt's completions under way.

    number  in the order drawn, over the whole run: seeds its samples
    rows    the dataset's rows, one a completion (they are equal but for what a trainer adds)
    """

    number: int
    prompt: list[int]
    rows: list[Any]
    parts: list[list[Completion]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.parts:
            self.parts = [[] for _ in self.rows]

    def ended(self, limit: int) -> bool:
        return all(_ended(parts, limit) for parts in self.parts)


def _length(parts: Sequence[Completion]) -> int:
    return sum(len(part.token_ids) for part in parts)


def _ended(parts: Sequence[Completion], limit: int) -> bool:
    return bool(parts) and (parts[-1].finish == "stop" or _length(parts) >= limit)


class Pool:
    """The groups under way on one rank.

    sampling  of a whole completion; its max_new_tokens is the limit all parts together have
    budget    tokens a completion may get in one slice
    seed      of the run and rank
    """

    def __init__(self, sampling: Sampling, budget: int, seed: int) -> None:
        self.sampling, self.budget, self.seed = sampling, budget, seed
        self.groups: list[Group] = []
        self.drawn = 0  # groups drawn over the whole run
        self.drawn_rounds = -1  # the last round whose rows are here

    def draw(self, prompts: Sequence[list[int]], rows: Sequence[Any], group_size: int) -> None:
        """Adds a batch: prompts and rows hold `group_size` neighbours per group."""
        for start in range(0, len(prompts), group_size):
            self.groups.append(Group(self.drawn, prompts[start], list(rows[start : start + group_size])))
            self.drawn += 1

    def run(self, wanted: int, generate: Generate) -> list[Group]:
        """Slices until `wanted` groups have ended; these, the oldest first, leave the pool.

        Every group under way gets at least one slice, so none waits longer than its own length takes.
        """
        if len(self.groups) < wanted:
            raise ValueError(f"{wanted} groups are wanted, {len(self.groups)} are under way")
        self._slice(generate)
        while sum(group.ended(self.sampling.max_new_tokens) for group in self.groups) < wanted:
            self._slice(generate)
        ready = [group for group in self.groups if group.ended(self.sampling.max_new_tokens)][:wanted]
        self.groups = [group for group in self.groups if group not in ready]
        return ready

    def _slice(self, generate: Generate) -> None:
        limit = self.sampling.max_new_tokens
        open_parts: list[list[Completion]] = []
        prompts: list[list[int]] = []
        samplings: list[Sampling] = []
        for group in self.groups:
            for index, parts in enumerate(group.parts):
                if _ended(parts, limit):
                    continue
                open_parts.append(parts)
                prompts.append([*group.prompt, *(token for part in parts for token in part.token_ids)])
                samplings.append(
                    replace(
                        self.sampling,
                        n=1,
                        max_new_tokens=min(self.budget, limit - _length(parts)),
                        # Neighbours of a group follow each other, so that their first slice is one request.
                        seed=stable_seed(self.seed, group.number, len(parts)) + index,
                    )
                )
        if not prompts:
            return
        for parts, completion in zip(open_parts, generate(prompts, samplings), strict=True):
            parts.append(completion)

    # Checkpoints hold plain values only.

    def state_dict(self) -> dict[str, Any]:
        return {
            "drawn": self.drawn,
            "drawn_rounds": self.drawn_rounds,
            "groups": [
                {
                    "number": group.number,
                    "prompt": group.prompt,
                    "rows": group.rows,
                    "parts": [[to_plain(part) for part in parts] for parts in group.parts],
                }
                for group in self.groups
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.drawn, self.drawn_rounds = state["drawn"], state["drawn_rounds"]
        self.groups = [
            Group(
                one["number"],
                one["prompt"],
                one["rows"],
                [[from_plain(part) for part in parts] for parts in one["parts"]],
            )
            for one in state["groups"]
        ]


def to_plain(completion: Completion) -> dict[str, Any]:
    return {
        "token_ids": list(completion.token_ids),
        "logprobs": list(completion.logprobs),
        "finish": completion.finish,
        "segments": [list(segment) for segment in completion.segments],
        "logged": completion.logged,
    }


def from_plain(state: Mapping[str, Any]) -> Completion:
    segments = tuple((version, length) for version, length in state["segments"])
    logged = state.get("logged", False)  # a checkpoint of before there were any
    return Completion(state["token_ids"], state["logprobs"], state["finish"], segments, logged)
