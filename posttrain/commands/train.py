"""`posttrain train RECIPE`: every check first, torch only afterwards."""

from __future__ import annotations

import os
import sys
import time
from argparse import ArgumentParser, Namespace

from posttrain import exit_codes
from posttrain.data import DataError
from posttrain.plan import add_recipe_arguments, make_plan, print_plan
from posttrain.planning.launcher import launch_fault, precision_fault, started
from posttrain.recipe import Recipe, RecipeError, load_recipe
from posttrain.rewards.runner import RewardError
from posttrain.rollout.adapter_base import ModelFault
from posttrain.rollout.base import EngineError
from posttrain.run_folder import how_to_go_on, opened
from posttrain.stop_requests import REQUESTS, guard_outputs
from posttrain.storage import StorageError, storage_fault
from posttrain.trainers.faults import NotFinite

LATER_S = 3.0
"""How long the other processes give the one that speaks, where all of them fail together."""


def add_arguments(parser: ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="last",
        metavar="CHECKPOINT",
        help="continue the run's last checkpoint, or the one named",
    )


def main(args: Namespace) -> int:
    """Train what a recipe says; start it alone or under accelerate launch or torchrun.

    The exit codes stand in posttrain/exit_codes.py and docs/faults.md.
    """
    # Every process of a launch sees the same fault; one of them says it.
    speaks = os.environ.get("RANK", "0") == "0"
    REQUESTS.listen()
    guard_outputs()
    recipe: Recipe | None = None
    try:
        recipe = _checked(args, speaks)
        with opened(recipe, args.resume) as start:
            if speaks and start.compared is not None and start.compared.note is not None:
                print(f"{recipe.path}: {start.compared.note}", file=sys.stderr)
            from posttrain.train import run_opened

            return run_opened(recipe, start)
    except (RecipeError, DataError) as error:
        if speaks:
            print(
                error if isinstance(error, RecipeError) else f"{args.recipe}: data: {error}", file=sys.stderr
            )
        return exit_codes.REFUSED
    except KeyboardInterrupt as error:
        # before or after the steps: nothing is in hand that a checkpoint would save
        go_on = "" if recipe is None else f"; {how_to_go_on(recipe, same_launcher=started() > 1)}"
        return _stopped(f"{args.recipe}: stopped ({error or 'Ctrl-C'}){go_on}", exit_codes.STOPPED, speaks)
    except Exception as error:
        code, message = _fault(error)
        if code == exit_codes.UNEXPECTED:
            raise
        return _stopped(f"{args.recipe}: {message}", code, speaks)


def _fault(error: Exception) -> tuple[int, str]:
    """The exit code of what ended a run, and the line that says it."""
    if isinstance(error, EngineError):
        return exit_codes.ENGINE_LOST, str(error)
    if isinstance(error, RewardError):
        return exit_codes.REWARD_FAILED, str(error)
    if isinstance(error, ModelFault):
        return exit_codes.REFUSED, str(error)
    if isinstance(error, NotFinite):
        return exit_codes.NOT_FINITE, str(error)
    if isinstance(error, StorageError):
        return exit_codes.NOT_WRITTEN, str(error)
    if (fault := storage_fault(error)) is not None:
        return (
            exit_codes.NOT_WRITTEN,
            f"the run's folder cannot be written: {fault}; make room, then --resume",
        )
    return exit_codes.UNEXPECTED, str(error)


def _stopped(message: str, code: int, speaks: bool) -> int:
    """`code`, once the message is out: a launcher ends all processes as soon as one of them has ended."""
    if speaks:
        print(message, file=sys.stderr, flush=True)
    else:
        time.sleep(LATER_S)
    return code


def _checked(args: Namespace, speaks: bool) -> Recipe:
    fault = launch_fault()
    if fault is not None:
        raise RecipeError(fault)
    recipe = load_recipe(args.recipe, args.set)
    fault = precision_fault(recipe.train)
    if fault is not None:
        raise RecipeError(f"{recipe.path}: {fault}")
    plan = make_plan(recipe, resume=args.resume is not None)
    plan.require()
    if speaks:
        print_plan(plan)
    return recipe
