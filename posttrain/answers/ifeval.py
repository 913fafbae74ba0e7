"""Whether a text follows instructions that a program can check: IFEval's, by the checkers of the lm-eval package.

IFEval: Zhou et al. 2023, https://arxiv.org/abs/2311.07911. For its grader and for the reward of the same name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from posttrain.answers.punkt import NEEDED, find_punkt


def ifeval_checkers() -> Callable[[Any, list[str]], dict[str, Any]]:
    """lm-eval's `process_results` for IFEval. ImportError or LookupError with what to install, and where."""
    find_punkt()
    try:
        import langdetect
        from lm_eval.tasks.ifeval.utils import process_results
    except ModuleNotFoundError as error:
        raise ImportError(NEEDED.format(error.name)) from None
    langdetect.DetectorFactory.seed = 0  # its guesses are random otherwise, and grading twice would differ
    return process_results


@cache
def _settings_of() -> dict[str, list[str]]:
    """What each instruction of IFEval has to be told."""
    ifeval_checkers()
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    return {
        name: [
            key
            for key in inspect.signature(checker.build_description).parameters
            if key not in ("self", "kwargs")
        ]
        for name, checker in INSTRUCTION_DICT.items()
    }


def followed(
    text: str,
    names: Sequence[str],
    settings: Sequence[Mapping[str, Any]],
    *,
    prompt: str = "",
    loose: bool = False,
) -> list[bool]:
    """For each instruction whether `text` follows it. An empty text follows none.

    names, settings  IFEval's `instruction_id_list` and `kwargs`, one of each per instruction
    prompt           what one instruction ("repeat the request") compares the text with
    loose            also without its first line, its last line, or asterisks, as IFEval's loose accuracy has it
    Raises KeyError for an instruction the checkers do not know, or one whose settings are not all there: the checkers
    would draw what is missing at random.
    """
    known = _settings_of()
    for name, one in zip(names, settings, strict=True):
        missing = [key for key in known[name] if one.get(key) is None]
        if missing:
            raise KeyError(f"{name} needs {', '.join(missing)}")
    given = [{key: value for key, value in one.items() if value is not None} for one in settings]
    asked = {"key": 0, "prompt": prompt, "instruction_id_list": list(names), "kwargs": given}
    found = ifeval_checkers()(asked, [text])
    return [bool(one) for one in found[f"inst_level_{'loose' if loose else 'strict'}_acc"]]
