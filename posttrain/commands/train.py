"""`posttrain train RECIPE`: every check first, torch only afterwards."""

from __future__ import annotations

import os
import re
import sys
import time
from argparse import ArgumentParser, Namespace

from posttrain.data import DataError
from posttrain.environments.tool_specs import EnvironmentFault
from posttrain.observe.progress import ProgressView
from posttrain.planning.launcher import (
    attention_fault,
    launch_fault,
    optimizer_fault,
    precision_fault,
    started,
)
from posttrain.process import exit_codes, launched
from posttrain.process.phases import PHASES
from posttrain.process.roll import ROLL
from posttrain.process.stop_requests import REQUESTS, guard_outputs
from posttrain.process.storage import StorageError, storage_fault
from posttrain.recipe import Recipe, RecipeError, load_recipe
from posttrain.rewards.runner import RewardError
from posttrain.rollout.adapter_base import ModelFault
from posttrain.rollout.base import EngineError
from posttrain.run.plan import Plan, add_recipe_arguments, make_plan, print_plan
from posttrain.run.run_folder import AUTO, how_to_go_on, opened, resume_of
from posttrain.trainers.seam.faults import NotFinite, NotUnderThisEngine

LATER_S = 3.0
"""How long the other processes give the one that speaks, where all of them fail together."""


def add_arguments(parser: ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="last",
        metavar="CHECKPOINT",
        help="continue the run's last checkpoint, or the one named; auto: the last one where there is one, else begin",
    )


def main(args: Namespace) -> int:
    """Train what a recipe says; start it alone or under accelerate launch or torchrun.

    The exit codes stand in posttrain/process/exit_codes.py and docs/faults.md.
    """
    launched.begin()
    before = REQUESTS.listen()
    try:
        return _main(args)
    finally:
        REQUESTS.forget(before)


def _main(args: Namespace) -> int:
    guard_outputs()
    # Every process of a launch sees the same fault; one of them says it.
    code, line = _train(args, speaks := os.environ.get("RANK", "0") == "0")
    if line and speaks:
        print(line, file=sys.stderr, flush=True)
    launched.end(code, line or REQUESTS.said)
    REQUESTS.ended = code
    if code != exit_codes.DONE and not speaks:
        time.sleep(LATER_S)  # a launcher ends all processes as soon as one of them has ended
    return code


def _train(args: Namespace, speaks: bool) -> tuple[int, str]:
    """The exit code, and the line that says why; "" where it has been said."""
    recipe: Recipe | None = None
    try:
        plan = _checked(args)
        recipe = plan.recipe
        with opened(recipe, args.resume) as start:
            if speaks and not start.ended:
                print_plan(plan)
            if speaks and start.compared is not None and start.compared.note is not None:
                print(f"{recipe.path}: {start.compared.note}", file=sys.stderr)
            with ProgressView(recipe.output.name, enabled=speaks) as view:
                PHASES.say("loading libraries")
                from posttrain.run.train import run_opened

                return run_opened(recipe, start, view, plan.data), ""
    except RecipeError as error:
        return exit_codes.REFUSED, str(error)
    except DataError as error:
        return exit_codes.REFUSED, f"{args.recipe}: data: {error}"
    except KeyboardInterrupt as error:
        # before or after the steps: nothing is in hand that a checkpoint would save
        go_on = "" if recipe is None else f"; {_go_on(recipe)}"
        return exit_codes.STOPPED, f"{args.recipe}: stopped ({error or 'Ctrl-C'}){go_on}"
    except Exception as error:
        code, line = _fault(error, recipe)
        if code == exit_codes.UNEXPECTED:
            launched.end(code, f"{args.recipe}: {type(error).__name__}: {error}")
            raise
        return code, f"{args.recipe}: {line}"


def _fault(error: Exception, recipe: Recipe | None) -> tuple[int, str]:
    """The exit code of what ended a run, and the line that says it."""
    for kind, code in (
        (EngineError, exit_codes.ENGINE_LOST),
        (RewardError, exit_codes.REWARD_FAILED),
        (EnvironmentFault, exit_codes.REWARD_FAILED),
        (ModelFault, exit_codes.REFUSED),
        (NotUnderThisEngine, exit_codes.REFUSED),
        (NotFinite, exit_codes.NOT_FINITE),
        (StorageError, exit_codes.NOT_WRITTEN),
    ):
        if isinstance(error, kind):
            return code, str(error)
    go_on = "" if recipe is None else f"; {_go_on(recipe)}"
    if (fault := storage_fault(error)) is not None:
        return exit_codes.NOT_WRITTEN, f"the run's folder cannot be written: {fault}; make room{go_on}"
    if peer_is_lost(error):
        return exit_codes.PROCESS_LOST, f"{ROLL.in_words()}{go_on}"
    return exit_codes.UNEXPECTED, ""


def peer_is_lost(error: Exception) -> bool:
    """Whether a collective failed because a process that takes part has ended or fallen silent: as gloo, NCCL and
    the store of the processes' addresses say it."""
    lost = r"closed by peer|reset by peer|Broken pipe|[Tt]imed out|[Tt]imeout"
    by_gloo = "gloo" in str(error) and re.search(lost, str(error)) is not None
    return by_gloo or type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")


def _go_on(recipe: Recipe) -> str:
    return how_to_go_on(recipe, same_launcher=started() > 1)


def _checked(args: Namespace) -> Plan:
    """The recipe's plan. RecipeError where anything known by now stands against the run."""
    fault = launch_fault()
    if fault is not None:
        raise RecipeError(fault)
    recipe = load_recipe(args.recipe, args.set)
    if args.resume == AUTO:
        args.resume, again = resume_of(recipe)
        recipe = load_recipe(args.recipe, [*args.set, *again])
    fault = precision_fault(recipe.train) or attention_fault(recipe.model) or optimizer_fault(recipe.train)
    if fault is not None:
        raise RecipeError(f"{recipe.path}: {fault}")
    plan = make_plan(recipe, resume=args.resume is not None)
    plan.require()
    return plan
