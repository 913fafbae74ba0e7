"""`posttrain data difficulty RECIPE`: the pass rate of the start model on each row of the training data."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from rich.console import Console

from posttrain.commands.train import LATER_S
from posttrain.data import DataError
from posttrain.data.measured_rows import COLUMNS, SUFFIXES, part_files
from posttrain.data.rows import settle
from posttrain.environments.tool_specs import EnvironmentFault
from posttrain.observe.difficulty_tables import print_difficulty
from posttrain.observe.progress import ProgressView
from posttrain.planning.launcher import launch_fault
from posttrain.process import exit_codes
from posttrain.process.dealt import Place, place_alone
from posttrain.process.phases import PHASES
from posttrain.process.stop_requests import REQUESTS
from posttrain.recipe import Recipe, RecipeError, load_recipe
from posttrain.recipe.recipe import plain
from posttrain.rewards.runner import RewardError
from posttrain.rollout.adapter_base import ModelFault
from posttrain.rollout.base import EngineError
from posttrain.run.plan import add_recipe_arguments, make_plan
from posttrain.trainers.seam.faults import NotFinite

SAMPLES = 8
AT_ONCE = 256
_DEFAULTS = {"samples": SAMPLES, "pass_at": 1.0, "reward": None, "out": None, "batch_size": AT_ONCE}
_CODES = {
    ModelFault: exit_codes.REFUSED,
    EngineError: exit_codes.ENGINE_LOST,
    RewardError: exit_codes.REWARD_FAILED,
    EnvironmentFault: exit_codes.REWARD_FAILED,
    NotFinite: exit_codes.NOT_FINITE,
    OSError: exit_codes.NOT_WRITTEN,
}


class _Refused(ValueError):
    """What the command line asks for and cannot be."""


def add_arguments(parser: ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, metavar="N", help=f"responses a row (default {SAMPLES})"
    )
    parser.add_argument(
        "--pass-at", type=float, default=1.0, metavar="R",
        help="a response passes with a reward of at least this (default 1.0)",
    )  # fmt: skip
    parser.add_argument(
        "--reward", metavar="NAME", help="the one reward that decides; default: the weighted sum of all"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help=".jsonl or .parquet; default: RECIPE's name with .difficulty.jsonl, here",
    )
    parser.add_argument(
        "--batch-size", type=int, default=AT_ONCE, metavar="N",
        help=f"responses sampled at a time, at least those of one row (default {AT_ONCE})",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on with a measurement that was interrupted")
    parser.add_argument(
        "--replace", action="store_true",
        help=f"write over columns of the data that are called {', '.join(COLUMNS)}",
    )  # fmt: skip


def main(args: Namespace) -> int:
    """Measure the start model's pass rate on each row of a recipe's training data, sampled and judged as the recipe
    says, and write the rows with it. Ctrl-C keeps what is done; --resume goes on. Of several processes (torchrun) each
    measures its share."""
    before = REQUESTS.listen()
    place = Place(int(os.environ.get("RANK", "0")))
    try:
        code, line = _measured(args, place)
    finally:
        REQUESTS.forget(before)
    if line:
        print(f"process {place.rank}: {line}" if place.rank else line, file=sys.stderr, flush=True)
    if code != exit_codes.DONE and place.rank:
        time.sleep(
            LATER_S
        )  # a launcher ends all processes as soon as one of them has ended; the first says why
    return code


def _measured(args: Namespace, place: Place) -> tuple[int, str]:
    """The exit code, and the line that says why; "" where all is said."""
    try:
        if (fault := launch_fault()) is not None:
            raise _Refused(fault)
        return _run(args, _alone())
    except RecipeError as error:
        return exit_codes.REFUSED, str(error)
    except DataError as error:
        return exit_codes.REFUSED, f"{args.recipe}: data: {error}"
    except _Refused as error:
        return exit_codes.REFUSED, f"posttrain data difficulty: {error}"
    except KeyboardInterrupt as error:
        told = _go_on(args) if place.rank == 0 else ""
        return exit_codes.STOPPED, f"stopped ({str(error) or 'Ctrl-C'}){told}"
    except tuple(_CODES) as error:
        code = next(code for kind, code in _CODES.items() if isinstance(error, kind))
        return code, f"{args.recipe}: {error}{_go_on(args)}"


def _alone() -> Place:
    try:
        return place_alone()
    except ValueError as error:
        raise _Refused(str(error)) from None


def _run(args: Namespace, place: Place) -> tuple[int, str]:
    out = _out(args)
    if out.exists() and args.resume and not part_files(out):
        if place.rank == 0:
            print(f"{out} is whole: nothing is left to measure")
        return exit_codes.DONE, ""
    _check(args, out, place)
    given = load_recipe(args.recipe, args.set)
    PHASES.say("loading libraries")
    with ProgressView(f"difficulty of {given.path}", enabled=place.rank == 0) as view:
        from posttrain.run.difficulty import Asked, measure, measured_recipe

        recipe = measured_recipe(given, args.samples)
        make_plan(recipe).require()
        if place.world > 1 and vars(recipe.rollout)["engine"] == "vllm_server":
            raise _Refused(
                f"{place.world} processes were started, and servers are asked by one, all at once; start one process"
            )
        asked = Asked(args.samples, max(1, args.batch_size // args.samples), args.pass_at, args.reward)
        outcome = measure(
            recipe,
            asked,
            out,
            resume=args.resume,
            replace_columns=args.replace,
            say=view.message,
            place=place,
        )
    if outcome is None:
        return exit_codes.DONE, ""
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=100)
    print_difficulty(outcome.batches, console)
    left_out = outcome.counts.read - outcome.counts.used
    dropped = f"; {left_out} that training does not use, without a rate" if left_out else ""
    console.print(f"{out}: {outcome.counts.read} rows{dropped}", markup=False, soft_wrap=True)
    console.print(_use(given, out), markup=False, soft_wrap=True)
    return exit_codes.DONE, ""


def _out(args: Namespace) -> Path:
    return Path(args.out or f"{Path(args.recipe).stem}.difficulty.jsonl")


def _check(args: Namespace, out: Path, place: Place) -> None:
    if args.samples < 1:
        raise _Refused(f"--samples {args.samples}: at least 1")
    if args.batch_size < 1:
        raise _Refused(f"--batch-size {args.batch_size}: at least 1")
    if not math.isfinite(args.pass_at):
        raise _Refused(f"--pass-at {args.pass_at}: a number")
    if out.suffix not in SUFFIXES:
        raise _Refused(f"--out {out}: write a name that ends in {' or '.join(SUFFIXES)}")
    if not out.resolve().parent.is_dir():
        raise _Refused(f"--out {out}: no folder {out.resolve().parent}; make it first")
    if place.rank:
        return  # what lies there may be the first process's already, which looks at it
    if out.exists():
        raise _Refused(f"--out {out} exists; name another file, or remove it")
    if (parts := part_files(out)) and not args.resume:
        raise _Refused(f"{parts[0].path} holds rows that are measured; --resume goes on, or remove it")


def _go_on(args: Namespace) -> str:
    parts = part_files(_out(args))
    if not parts:
        return ""
    batches = [batch for part in parts for batch in part.read(mend=False)[1]]
    words = ["posttrain", "data", "difficulty", args.recipe]
    words += [word for change in args.set for word in ("--set", change)]
    for name, default in _DEFAULTS.items():
        if vars(args)[name] != default:
            words += [f"--{name.replace('_', '-')}", str(vars(args)[name])]
    words += ["--replace"] if args.replace else []
    done = sum(len(batch.rates) for batch in batches)
    return f"; {done} rows are measured and kept. Go on with: {shlex.join([*words, '--resume'])}"


def _use(recipe: Recipe, out: Path) -> str:
    """What a recipe writes to train on these rows."""
    named, settled = recipe.data, settle(recipe.data)
    implied = {
        key: plain(vars(settled)[key])
        for key in ("prompt", "answer")
        if vars(settled)[key] != vars(named)[key]
    }
    words = {"path": str(out), **implied, "filter": "0 < pass_rate < 1"}
    instead = "" if named.name is None else f", in place of name: {named.name}"
    return f"to train on the rows between: data: {json.dumps(words, ensure_ascii=False)}{instead}"
