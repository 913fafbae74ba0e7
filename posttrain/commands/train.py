"""`posttrain train RECIPE`: every check first, torch only afterwards."""

from __future__ import annotations

import os
import sys
import time
from argparse import ArgumentParser, Namespace

from posttrain import exit_codes
from posttrain.data import DataError
from posttrain.plan import add_recipe_arguments, make_plan, print_plan
from posttrain.planning.launcher import launch_fault, precision_fault
from posttrain.recipe import Recipe, RecipeError, load_recipe
from posttrain.rewards.runner import RewardError
from posttrain.rollout.base import EngineError
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

    Exits with 3 when the rollout engine cannot be reached or is lost, with 4 when a reward fails and its on_error is
    raise; what was trained is saved by then. With 5 at the first reward, loss, gradient or weight that is not finite;
    the last checkpoint stays as it is. With 130 after Ctrl-C.
    """
    # Every process of a launch sees the same fault; one of them says it.
    speaks = os.environ.get("RANK", "0") == "0"
    try:
        recipe = _checked(args, speaks)
        from posttrain.train import run

        return run(recipe, resume=args.resume)
    except (RecipeError, DataError) as error:
        if speaks:
            print(
                error if isinstance(error, RecipeError) else f"{args.recipe}: data: {error}", file=sys.stderr
            )
        return exit_codes.REFUSED
    except EngineError as error:
        return _stopped(f"{args.recipe}: {error}", exit_codes.ENGINE_LOST, speaks)
    except RewardError as error:
        return _stopped(f"{args.recipe}: {error}", exit_codes.REWARD_FAILED, speaks)
    except NotFinite as error:
        return _stopped(f"{args.recipe}: {error}", exit_codes.NOT_FINITE, speaks)
    except KeyboardInterrupt:
        # before or after the steps: nothing is in hand that a checkpoint would save
        if speaks:
            print(
                f"{args.recipe}: stopped; --resume continues the last checkpoint, if there is one",
                file=sys.stderr,
            )
        return exit_codes.STOPPED


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
