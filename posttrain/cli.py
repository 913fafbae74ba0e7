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
from posttrain.process.quiet import leave_out_noise
from posttrain.process.stop_requests import REQUESTS
from posttrain.recipe.errors import suggest

COMMANDS: dict[str, tuple[str, str]] = {
    "init": (
        "write a commented recipe to start from, for a model and a data file",
        "posttrain.commands.init:main",
    ),
    "train": ("train what a recipe says", "posttrain.commands.train:main"),
    "launch": (
        "start a run with torchrun or accelerate launch, and end with the run's own exit code",
        "posttrain.commands.launch:main",
    ),
    "plan": ("check a recipe: batch arithmetic, memory, refusals; no GPU needed", "posttrain.run.plan:main"),
    "report": ("draw a run as one HTML page, and sum it up here", "posttrain.commands.report:main"),
    "chat": ("talk to a model, or ask it one thing", "posttrain.commands.chat:main"),
    "replay": ("compute a recorded step again under other objectives", "posttrain.observe.replay:main"),
    "methods": ("list the methods, or the settings of one", "posttrain.commands.methods:main"),
    "soup": ("average the weights of models that share their start", "posttrain.commands.soup:main"),
    "export": (
        "write a run's checkpoint, whole or sharded, as a plain transformers folder",
        "posttrain.commands.export:main",
    ),
    "merge": ("write a LoRA adapter and its base as one model folder", "posttrain.commands.merge:main"),
    "data feedback": (
        "turn logs of conversations with complaints into rows for method drift",
        "posttrain.data.feedback_command:main",
    ),
    "data preview": (
        "show rows as the trainer reads them: tokens, their boundaries, what is learned from",
        "posttrain.commands.data_preview:main",
    ),
    "data describe": (
        "know a data set before training: lengths, duplicates, languages, faults, labels",
        "posttrain.commands.data_describe:main",
    ),
    "data difficulty": (
        "measure the start model's pass rate on each row of a recipe's data",
        "posttrain.commands.data_difficulty:main",
    ),
    "data precedents": (
        "collect reasoned precedents of a written policy from labelled responses",
        "posttrain.commands.data_precedents:main",
    ),
    "data overlap": (
        "count test rows that share runs of words with training rows",
        "posttrain.data.overlap:main",
    ),
    "eval balance": (
        "measure a family over the KL coefficient, and choose the best one per prompt",
        "posttrain.commands.eval_balance:main",
    ),
    "eval": (
        "evaluate models: tasks, generate, grade, judge, report; drift over a conversation; guard a policy",
        "posttrain.evaluation.command:main",
    ),
}
"""name -> (help, "module:function"). A room adds its line when its module exists."""

GROUPS: dict[str, tuple[str, ...]] = {
    "A run": ("init", "plan", "train", "launch", "report"),
    "Its model": ("chat", "eval", "eval balance", "export", "merge", "soup"),
    "Data": (
        "data describe",
        "data preview",
        "data difficulty",
        "data overlap",
        "data feedback",
        "data precedents",
    ),
    "Methods": ("methods", "replay"),
}
"""How `posttrain --help` orders the commands; what stands in no group comes last."""

MEANT: dict[str, str] = {
    "run": "train",
    "start": "train",
    "finetune": "train",
    "sft": "train RECIPE, with method: sft",
    "resume": "train RECIPE --resume",
    "check": "plan",
    "validate": "plan",
    "new": "init",
    "create": "init",
    "template": "init",
    "evaluate": "eval",
    "benchmark": "eval",
    "generate": "eval generate",
    "grade": "eval grade",
    "judge": "eval judge",
    "guard": "eval guard",
    "policy": "eval guard",
    "precedents": "data precedents",
    "tasks": "eval tasks",
    "ask": "chat",
    "talk": "chat",
    "preview": "data preview",
    "describe": "data describe",
    "overlap": "data overlap",
    "difficulty": "data difficulty",
    "pass_rate": "data difficulty",
    "average": "soup",
    "list": "methods",
    "settings": "methods NAME",
    "push": "export RUN --out DIR --push NAME, or train with output.hub in the recipe",
    "upload": "export RUN --out DIR --push NAME, or train with output.hub in the recipe",
    "convert": "export",
    "gather": "export",
    "serve": "launch/serve_vllm.sh MODEL, a script of the repository",
    "version": "--version",
}
"""Words that people type for what has another name here."""


def entry() -> int:
    """`main` as a process's own work: nothing comes after it."""
    code = main()
    REQUESTS.end(code)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code is 0, or 2 where what was asked for cannot be done (`train`: exit_codes.py)."""
    leave_out_noise()
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
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
    print(f"posttrain: {_unknown(words)}", file=sys.stderr)
    return 2


def _unknown(words: Sequence[str]) -> str:
    """One line on a command that is not there: the nearest one, what it is called here, or where all are listed."""
    within = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if within:
        given = " ".join(words[:2])
        near = suggest(given, within) if len(words) > 1 else ""
        return f"no command '{given}'{near or ': ' + ', '.join(within)}"
    meant = MEANT.get(words[0].lower())
    if meant is not None:
        return f"no command '{words[0]}'; here it is: {meant if 'launch/' in meant else f'posttrain {meant}'}"
    near = suggest(" ".join(words[:2]), COMMANDS) or suggest(words[0], COMMANDS)
    return f"no command '{words[0]}'{near or '; posttrain --help lists them'}"


def run_command(name: str, words: Sequence[str]) -> int:
    text, place = COMMANDS[name]
    module_name, function = place.split(":")
    module = vars(import_module(module_name))
    parser = ArgumentParser(prog=f"posttrain {name}", description=module["main"].__doc__ or text)
    module["add_arguments"](parser)
    return module[function](parser.parse_args(words))


def usage() -> str:
    """All commands in groups, a line each."""
    width = max(len(name) for name in COMMANDS)
    grouped = {title: [name for name in names if name in COMMANDS] for title, names in GROUPS.items()}
    rest = [name for name in COMMANDS if not any(name in names for names in grouped.values())]
    lines = []
    for title, names in {**grouped, "More": rest}.items():
        if names:
            lines += ["", title, *(f"  {name:{width}}  {COMMANDS[name][0]}" for name in names)]
    return "\n".join(["usage: posttrain COMMAND ...", *lines, "", "posttrain COMMAND --help says more."])
