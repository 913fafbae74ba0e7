"""`posttrain COMMAND ...`, and `python -m posttrain` the same. Thin: a table, and the look-up.

A command's module is imported when it is called, so that `posttrain plan` stays without torch. The module of an
entry has `add_arguments(parser)` beside the function that is named.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib import import_module

from posttrain import __version__
from posttrain.recipe_errors import suggest

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("train what a recipe says", "posttrain.commands.train:main"),
    "launch": (
        "start a run with torchrun or accelerate launch, and end with the run's own exit code",
        "posttrain.commands.launch:main",
    ),
    "plan": ("check a recipe: batch arithmetic, memory, refusals; no GPU needed", "posttrain.plan:main"),
    "report": ("draw a run as one HTML page, and sum it up here", "posttrain.commands.report:main"),
    "replay": ("compute a recorded step again under other objectives", "posttrain.observe.replay:main"),
    "methods": ("list the methods, or the settings of one", "posttrain.commands.methods:main"),
    "soup": ("average the weights of models that share their start", "posttrain.commands.soup:main"),
    "merge": ("write a LoRA adapter and its base as one model folder", "posttrain.commands.merge:main"),
    "data feedback": (
        "turn logs of conversations with complaints into rows for method drift",
        "posttrain.data.feedback_command:main",
    ),
    "data preview": (
        "show rows as the trainer reads them: tokens, their boundaries, what is learned from",
        "posttrain.commands.data_preview:main",
    ),
    "data overlap": (
        "count test rows that share runs of words with training rows",
        "posttrain.data.overlap:main",
    ),
    "eval": (
        "evaluate models on benchmarks: tasks, generate, grade, judge, report",
        "posttrain.evaluation.command:main",
    ),
}
"""name -> (help, "module:function"). A room adds its line when its module exists."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code is 0, or 2 where what was asked for cannot be done."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    if words[0] == "--version":
        print(f"posttrain {__version__}")
        return 0
    # The longest match first: "data overlap" before a command "data".
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return run_command(name, words[length:])
    within = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    hint = (
        f": {', '.join(within)}"
        if within
        else suggest(" ".join(words[:2]), COMMANDS) or suggest(words[0], COMMANDS)
    )
    print(f"posttrain: no command '{' '.join(words[: 2 if within else 1])}'{hint}", file=sys.stderr)
    return 2


def run_command(name: str, words: Sequence[str]) -> int:
    text, place = COMMANDS[name]
    module_name, function = place.split(":")
    module = vars(import_module(module_name))
    parser = ArgumentParser(prog=f"posttrain {name}", description=module["main"].__doc__ or text)
    module["add_arguments"](parser)
    return module[function](parser.parse_args(words))


def usage() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:{width}}  {text}" for name, (text, _) in COMMANDS.items()]
    return "\n".join(["usage: posttrain COMMAND ...", "", *lines, "", "posttrain COMMAND --help says more."])
