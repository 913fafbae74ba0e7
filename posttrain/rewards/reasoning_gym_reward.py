"""The reward for problems of the package reasoning-gym: its own scorer."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from posttrain.rewards.hooks import judges_each

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@judges_each
def reasoning_gym(
    completions: Sequence[str], *, puzzle: Sequence[str], read: Literal["tag", "whole"] = "tag", **_: Any
) -> list[float | None]:
    """What the package gives an answer, 0 to 1; many tasks have grades between.

    The answer is what stands in the last <answer>...</answer>, nothing where there is none; with read "whole" it is the
    whole completion. `puzzle` is the column that data: {name: reasoning_gym} makes.
    """
    return [_score(text, made, read) for text, made in zip(completions, puzzle, strict=True)]


def answer_in(completion: str, read: str = "tag") -> str | None:
    if read == "whole":
        return completion.strip()
    found = _TAGGED.findall(completion)
    return found[-1].strip() if found else None


def _score(completion: str, puzzle: str, read: str) -> float:
    answer = answer_in(completion, read)
    if answer is None:
        return 0.0
    made = json.loads(puzzle)
    source = _source(made["task"], json.dumps(made["config"], sort_keys=True))
    return float(source.score_answer(answer, source[made["index"]]))


@functools.lru_cache(maxsize=8)
def _source(task: str, config: str) -> Any:
    import reasoning_gym as package

    return package.create_dataset(task, **json.loads(config))
