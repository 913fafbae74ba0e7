"""A model that answers one conversation at a time, its text handed on while it is made: what `posttrain chat` talks to.

A causal model is read token by token; a masked-diffusion model fills its canvas and gives the answer as a whole.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from transformers import PretrainedConfig

from posttrain.evaluation import masked_diffusion
from posttrain.evaluation.engine_bridge import EvaluationEngine, end_tokens, positions
from posttrain.evaluation.tasks import BenchmarkSampling
from posttrain.rollout.adapter_base import base_of, holds_adapter
from posttrain.rollout.model_folder import load_dense, tokenizer_of

Message = dict[str, str]
LONGEST_CAUSAL = 512
LONGEST_CANVAS = 128
_MASKED_TYPES = ("llada", "dream")


class NoRoom(ValueError):
    """The last message alone fills the model's positions."""


@dataclass(frozen=True)
class Wishes:
    """How to answer. None: as the model's generation config says (temperature 0, greedy, for a canvas).

    max_new_tokens  the longest answer; None: 512, of a canvas 128, or what the positions leave
    """

    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    seed: int | None = None


@dataclass
class Speaker:
    """`write(ids, limit, wishes, on_text)` makes the answer; the rest is the same for every kind of model."""

    tokenizer: Any
    limit: int | None
    longest: int
    write: Callable[[list[int], int, Wishes, Callable[[str], None]], None]
    forgotten: int = field(default=0, init=False)

    @property
    def speaks(self) -> bool:
        """Whether there is a chat template; without one, a message is a text to go on with."""
        return self.tokenizer.chat_template is not None

    def answer(self, messages: list[Message], wishes: Wishes, on_text: Callable[[str], None]) -> None:
        """Hands the answer's text on in pieces. `forgotten` then says how many of the oldest turns did not fit.

        Raises NoRoom, and ValueError where the chat template refuses the conversation.
        """
        wanted = wishes.max_new_tokens or self.longest
        system = messages[:1] if messages[0]["role"] == "system" else []
        turns = messages[len(system) :]
        self.forgotten = 0
        ids = self.ids_of([*system, *turns])
        while self.limit is not None and len(ids) + wanted > self.limit and len(turns) > 2:
            turns = turns[2:]  # a question and its answer
            self.forgotten += 2
            ids = self.ids_of([*system, *turns])
        room = wanted if self.limit is None else min(wanted, self.limit - len(ids))
        if room < 1:
            raise NoRoom(
                f"a message of {len(ids)} tokens fills the model's {self.limit} positions; write less"
            )
        self.write(ids, room, wishes, on_text)

    def ids_of(self, messages: list[Message]) -> list[int]:
        if not self.speaks:
            return list(self.tokenizer(messages[-1]["content"])["input_ids"])
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            what = "the system message (--system)" if messages[0]["role"] == "system" else "this conversation"
            raise ValueError(f"the model's chat template refuses {what}: {error}") from None
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def load_speaker(args: Namespace, *, dtype: str, device: str) -> Speaker:
    """The speaker of `args.model`, a model folder, an adapter's or a hub name; ValueError or OSError where it is none.

    args  of the command, with the options of evaluation.masked
    """
    if is_masked(args.model) or masked_diffusion.given(args):
        generator, tokenizer = masked_diffusion.load(args, dtype=dtype, device=device)
        return Speaker(
            tokenizer, generator.max_positions, LONGEST_CANVAS, _canvas_writer(generator, tokenizer)
        )
    tokenizer = tokenizer_of(args.model)
    model: Any = load_dense(args.model, dtype=dtype)
    model.to(torch.device(device)).eval()
    return Speaker(tokenizer, positions(model), LONGEST_CAUSAL, _causal_writer(model, tokenizer))


def is_masked(path: str) -> bool:
    """Whether the model's config says that it fills masks rather than goes on from the left."""
    config, _ = PretrainedConfig.get_config_dict(base_of(path) if holds_adapter(path) else path)
    heads = config.get("architectures") or []
    return (
        config.get("is_causal") is False
        or str(config.get("model_type", "")).lower().startswith(_MASKED_TYPES)
        or any(str(head).endswith("ForMaskedLM") for head in heads)
    )


def _causal_writer(model: Any, tokenizer: Any) -> Any:
    ends = sorted(end_tokens(model, tokenizer))

    def write(ids: list[int], limit: int, wishes: Wishes, on_text: Callable[[str], None]) -> None:
        if wishes.seed is not None:
            torch.manual_seed(wishes.seed)
        prompt = torch.tensor([ids], device=model.device)
        model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=limit,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0],
            streamer=_Pieces(tokenizer, on_text),
            **_sampling(wishes),
        )

    return write


def _sampling(wishes: Wishes) -> dict[str, Any]:
    """Only what was wished: the rest is the generation config's."""
    if wishes.temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    chosen = {"temperature": wishes.temperature, "top_p": wishes.top_p}
    given = {name: value for name, value in chosen.items() if value is not None}
    return {"do_sample": True, **given} if given else {}


class _Pieces:
    """A streamer of transformers' generate: the text of the tokens so far, in whole characters."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        self._tokenizer = tokenizer
        self._on_text = on_text
        self._ids: list[int] | None = None  # None: the prompt comes first
        self._said = ""

    def put(self, value: torch.Tensor) -> None:
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.reshape(-1).tolist()
        self._say(whole=False)

    def end(self) -> None:
        self._say(whole=True)

    def _say(self, *, whole: bool) -> None:
        text = str(
            self._tokenizer.decode(
                self._ids or [],
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,  # which would change what has been handed on ("do n't")
            )
        )
        if not whole and text.endswith("\ufffd"):
            return  # half of a character: its other bytes come with the next token
        if text.startswith(self._said) and len(text) > len(self._said):
            self._on_text(text[len(self._said) :])
            self._said = text


def _canvas_writer(generator: EvaluationEngine, tokenizer: Any) -> Any:
    def write(ids: list[int], limit: int, wishes: Wishes, on_text: Callable[[str], None]) -> None:
        sampling = BenchmarkSampling(
            max_new_tokens=limit,
            temperature=wishes.temperature or 0.0,
            top_p=wishes.top_p if wishes.top_p is not None else 1.0,
            samples=1,
            top_k=0,
            min_p=None,
        )
        seed = wishes.seed if wishes.seed is not None else int(torch.seed() % 2**62)
        found = generator.generate([ids], [seed], sampling)[0]
        on_text(str(tokenizer.decode(found.token_ids, skip_special_tokens=True)))

    return write
