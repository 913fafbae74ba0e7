"""The built-in tool `python`: a program of the model's in the sandbox that the reward for programs runs in."""

from __future__ import annotations

from posttrain.rewards.code_reward import require_protection
from posttrain.rewards.sandbox.limits import ProgramLimits
from posttrain.rewards.sandbox.run_program import ProgramEnd, run_script

SECONDS = 5.0
"""Of a program, unless said: below the time a call may take, so that what it had printed is told."""


def python(code: str, *, seconds: float = SECONDS, memory_mb: int = 512, allow_unsafe: bool = False) -> str:
    """Runs a Python program and gives back what it prints. It has the standard library, no network and no files.

    Args:
        code: the program; print what you want to know
    """
    protection = require_protection(allow_unsafe)
    limits = ProgramLimits(seconds=seconds, memory_mb=memory_mb, output_kb=64)
    return in_words(run_script([code], "", limits, protection.enclosure), limits)


def in_words(end: ProgramEnd, limits: ProgramLimits) -> str:
    """What the model is told of a program that has ended: first how, which a long output must not push out."""
    output, errors = end.output.decode(errors="replace"), end.errors.decode(errors="replace")
    said = output if not errors else f"{output}\n{errors}" if output.strip() else errors
    ended = ""
    if end.reason == "timeout":
        ended = f"[ended: it ran for more than {limits.seconds:g} s]"
    elif end.reason == "output":
        ended = f"[ended: it printed more than {limits.output_kb} KiB]"
    elif end.code and not errors:
        ended = f"[exit code {end.code}]"
    return "\n".join(part for part in (ended, said.strip("\n")) if part) or "[it printed nothing]"
