"""Which model a vLLM server runs, and whether its tokens are ours: asked before a run leans on either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from posttrain.rollout.base import EngineRefused
from posttrain.rollout.vllm.client import Server

_AT_ONCE = 8192  # ids in one question
_PROBE = "Two cafés, 12345 + 0.5;\n\tdef f(x): return x  # naïve ünïcode 你好\n\nUser: <b>end</b>"


def served_model(server: Server, name: str) -> tuple[str, int | None]:
    """The server's own name of the model that the recipe calls `name`, and the longest text it takes, where it says.

    Raises EngineRefused where it serves several, none of that name.
    """
    models = {one["id"]: one.get("max_model_len") for one in server.get("/v1/models", read=_listed)}
    if name in models:
        return name, models[name]
    if len(models) != 1:
        raise EngineRefused(
            f"{server.role.name} {server.url}: it serves {', '.join(sorted(models)) or 'no model'}, and none of them "
            f"is {name!r}; write one of its names"
        )
    return next(iter(models.items()))


def tokenizer_fault(server: Server, model: str, tokenizer: Any) -> str | None:
    """How the tokenizer of a vLLM server differs from this one, as `difference` says it.

    Raises EngineRefused where the server cannot be asked about its tokenizer.
    """

    def decoded(ids: list[int]) -> str:
        question = {"model": model, "tokens": ids}
        return server.post("/detokenize", question, read=field("prompt"))

    def cut(text: str) -> list[int]:
        question = {"model": model, "prompt": text, "add_special_tokens": True}
        return server.post("/tokenize", question, read=field("tokens"))

    return difference(tokenizer, decoded, cut)


def field(name: str) -> Callable[[Any], Any]:
    """Reads this field of an answer; ValueError for an answer without it."""

    def read(answer: Any) -> Any:
        if not isinstance(answer, dict) or name not in answer:
            raise ValueError(f"an answer without {name!r}")
        return answer[name]

    return read


def difference(
    tokenizer: Any,
    decoded: Callable[[list[int]], str],
    cut: Callable[[str], list[int]],
    **decoding: Any,
) -> str | None:
    """How another tokenizer, asked by `decoded` and `cut`, differs from this one; None where every id stands for the
    same text, and a text with letters, numbers, code and other scripts falls into the same ids.

    decoding  options of this one's `decode`, where the other joins tokens in its own way
    """
    for start in range(0, len(tokenizer), _AT_ONCE):
        ids = list(range(start, min(start + _AT_ONCE, len(tokenizer))))
        if decoded(ids) != tokenizer.decode(ids, **decoding):
            return f"its tokens {start} to {ids[-1]} are other texts"
    return None if cut(_PROBE) == tokenizer(_PROBE)["input_ids"] else "it cuts a text into other tokens"


def _listed(answer: Any) -> Any:
    if not isinstance(answer, dict) or not isinstance(answer.get("data"), list):
        raise ValueError("no list of models")
    return answer["data"]
