"""The turns of responses with tools, over TRL's loop: in step on all ranks, with who wrote which token.

TRL's loop runs on each rank by itself, and a rank whose responses are done leaves it; where generating is a matter of
all ranks (a server's errors, sharded weights), the others would wait for it for ever. So the ranks agree before each
turn whether there is one, and a rank that is done takes part with a prompt that nobody reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from posttrain.environments.tool_use import COUNTS
from posttrain.environments.toolbox import Toolbox
from posttrain.rollout.base import Sampling, stable_seed


class TurnsHost(Protocol):
    """What turns read of their trainer. The names are TRL's."""

    accelerator: Accelerator
    args: Any
    model: Any
    state: Any
    tools: Any
    max_completion_length: int
    max_tool_calling_iterations: int
    _tokenizer: Any
    _metrics: Any

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int
    ) -> Any: ...


class Turns:
    """
    toolbox  what the model calls, where it runs in a process of its own
    number   of the turn in hand: 0 the first, before any tool; in an idle turn too
    taken    whether the last rollout had tools
    """

    def __init__(self, host: TurnsHost) -> None:
        self.host = host
        self.toolbox: Toolbox | None = None
        self.number = 0
        self.taken = False
        self._idle = False  # in a turn of other ranks
        self._prompts: list[list[int]] = []
        self._masks: list[list[int]] = []

    def begin(self) -> None:
        """Before a rollout: environments draw anew, the same after a resume."""
        self.number, self.taken, self._masks = 0, False, []
        if self.toolbox is not None:
            host = self.host
            mode = "train" if host.model.training else "eval"
            self.toolbox.episode_seed = stable_seed(
                host.args.seed, "episodes", mode, host.state.global_step, host.accelerator.process_index
            )

    # In TRL's loop

    @contextmanager
    def loop(self, prompt_ids: list[list[int]]) -> Iterator[None]:
        """While active, TRL's loop runs; then this rank takes part in the turns that other ranks still have."""
        self._prompts = prompt_ids
        with _reads_no_tokens(self.host._tokenizer):
            try:
                yield
                while self._any_rank(False):
                    self.number += 1
                    self._idle = True
                    self.host._generate_single_turn([prompt_ids[0]], None, {}, 1)
            finally:
                self.number, self._prompts, self._idle = 0, [], False

    def next(self) -> None:
        """Before each turn; does nothing before a response's first."""
        if self.in_loop and not self._idle:
            self._any_rank(True)
            self.number += 1

    @property
    def in_loop(self) -> bool:
        return bool(self._prompts)

    def _any_rank(self, here: bool) -> bool:
        accelerator = self.host.accelerator
        if accelerator.num_processes == 1:
            return here
        flag = torch.tensor(float(here), device=accelerator.device)
        return bool(torch.as_tensor(accelerator.reduce(flag, reduction="sum")) > 0)

    def sampling(self, base: Sampling, prompt_ids: Sequence[list[int]]) -> Sampling | list[Sampling]:
        """How a turn is sampled now: from seeds of its own, and no more tokens than the response may still get."""
        host, rank = self.host, self.host.accelerator.process_index
        if not self.in_loop:
            first = stable_seed(host.args.seed, "turn", host.state.global_step, len(prompt_ids[0]))
            return replace(base, seed=first + rank * len(prompt_ids))
        first = stable_seed(host.args.seed, "turn", host.state.global_step, "behind tools", self.number)
        first += rank * len(self._prompts)
        rooms = [1] * len(prompt_ids) if self._idle else self._rooms(prompt_ids)
        return [replace(base, seed=first + i, max_new_tokens=max(1, room)) for i, room in enumerate(rooms)]

    def _rooms(self, prompt_ids: Sequence[list[int]]) -> list[int]:
        """Tokens that each response may still get."""
        taken = [
            len(ids) - len(self._prompts[row])
            for ids, row in zip(prompt_ids, self._rows(prompt_ids), strict=True)
        ]
        return [self.host.max_completion_length - count for count in taken]

    def _rows(self, prompt_ids: Sequence[list[int]]) -> list[int]:
        """The responses that a turn's prompts belong to: TRL hands over some, in their order, each its prompt and what
        has come since. Of a group's responses any may stand for another: their prompt is one."""
        rows, row = [], -1
        for ids in prompt_ids:
            row += 1
            while self._prompts[row] != ids[: len(self._prompts[row])]:
                row += 1
            rows.append(row)
        return rows

    # After the loop

    def note(self, masks: list[list[int]], completions: Sequence[Any]) -> None:
        """What the loop has made: 1 where the model wrote a token, 0 where a tool did; the messages. Logs it."""
        self.taken, self._masks = True, masks
        host, mode = self.host, "train" if self.host.model.training else "eval"
        unanswered = sum(bool(messages and messages[-1].get("tool_calls")) for messages in completions)
        turns = sum(sum(one["role"] == "assistant" for one in messages) for messages in completions)
        world = [mask.count(0) for mask in masks]
        use = self.toolbox.use.take() if self.toolbox is not None else {}
        parts = gather_object([[len(masks), turns, unanswered, sum(world), sum(map(len, masks)), use]])
        responses, turns, unanswered, world_tokens, tokens = (
            sum(part[i] for part in parts) for i in range(5)
        )
        logged = host._metrics[mode]
        logged["tools/turns"].append(turns / max(1, responses))
        logged["tools/unanswered"].append(unanswered / max(1, responses))
        logged["tools/token_share"].append(world_tokens / max(1, tokens))
        if self.toolbox is not None:
            for name in (*COUNTS[1:], "seconds"):
                logged[f"tools/{name}"].append(sum(part[5][name] for part in parts))

    def tell(self, environments: Sequence[Any] | None, completions: Sequence[Any]) -> None:
        """Before they are asked for a reward: to each environment the messages of its response."""
        if self.toolbox is not None:
            self.toolbox.hear(environments, completions)

    def note_unscored(self) -> None:
        """After that: how many responses of all ranks their environments did not judge. Logs it."""
        if self.toolbox is not None and self.toolbox.environment_factory is not None:
            mode = "train" if self.host.model.training else "eval"
            counted = sum(gather_object([self.toolbox.use.take_unscored()]))
            self.host._metrics[mode]["tools/unscored"].append(counted)

    def written(self, completion_ids: Sequence[Sequence[int]]) -> list[int]:
        """Tokens of each response that the model wrote."""
        if not self.taken:
            return [len(ids) for ids in completion_ids]
        return [sum(mask) for mask in self._masks]


@contextmanager
def _reads_no_tokens(tokenizer: Any) -> Iterator[None]:
    """TRL cuts a turn that has no room left to no tokens at all, and its parser takes that for a batch of none."""
    parse = tokenizer.parse_response

    def parse_response(response: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(response, list) and not response:
            return {"role": "assistant", "content": ""}
        return parse(response, *arguments, **named)

    tokenizer.parse_response = parse_response
    try:
        yield
    finally:
        del tokenizer.parse_response
