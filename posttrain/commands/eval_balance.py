"""`posttrain eval balance RUN`: a family over the KL coefficient, measured, and the best coefficient per prompt."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from rich.console import Console

from posttrain.data import DataError
from posttrain.observe.balance_page import show_balance, write_balance_page
from posttrain.observe.progress import ProgressView
from posttrain.process import exit_codes
from posttrain.process.phases import PHASES
from posttrain.recipe import RecipeError
from posttrain.rewards.runner import RewardError
from posttrain.rollout.adapter_base import ModelFault
from posttrain.rollout.base import EngineError

RESULT, PAGE = "balance.json", "balance.html"
FEATURES = ("length", "reference_entropy", "pass_rate")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a run with train.beta_family and data.eval")
    parser.add_argument(
        "--samples", type=int, default=8, metavar="N", help="a prompt and coefficient (default 8)"
    )
    parser.add_argument(
        "--calibration", type=float, default=0.5, metavar="SHARE",
        help="of the held-out prompts, that choices are made on (default 0.5)",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="held-out prompts (default: all)")
    parser.add_argument(
        "--features", nargs="+", choices=FEATURES, default=list(FEATURES),
        help="what the balance model reads of a prompt (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=int, default=256, metavar="N", help="responses sampled at a time (default 256)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", metavar="DIR", help=f"where {RESULT} and {PAGE} go (default: RUN)")


def main(args: Namespace) -> int:
    """Measure the policies of a run with train.beta_family on its held-out prompts: reward and KL of each coefficient,
    and the best coefficient per prompt by a calibration set, by bins of the reference's pass rate and by a small
    learned model, which train.beta_by: learned reads."""
    try:
        return _run(args)
    except DataError as error:
        line = f"{args.run}: data: {error}"
    except RecipeError as error:
        line = str(error)
    except (ValueError, ModelFault, EngineError, RewardError, OSError) as error:
        line = f"posttrain eval balance: {error}"
    print(line, file=sys.stderr)
    return exit_codes.REFUSED


def _run(args: Namespace) -> int:
    for name in ("samples", "batch_size"):
        if vars(args)[name] < 1:
            raise ValueError(f"--{name.replace('_', '-')} {vars(args)[name]}: at least 1")
    if not 0 < args.calibration < 1:
        raise ValueError(f"--calibration {args.calibration:g}: a share between 0 and 1")
    out = Path(args.out or args.run)
    PHASES.say("loading libraries")
    with ProgressView(f"coefficients of {args.run}"):
        from posttrain.run.family_curves import FamilyAsked, choices_of, measure_family

        asked = FamilyAsked(
            samples=args.samples, calibration=args.calibration, at_once=args.batch_size, limit=args.limit,
            features=tuple(args.features), seed=args.seed,
        )  # fmt: skip
        found = choices_of(measure_family(args.run, asked), asked).for_json()
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULT).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_balance_page(found, Path(args.run).resolve().name, out / PAGE)
    console = Console(highlight=False)
    show_balance(found, console if console.is_terminal else Console(highlight=False, width=160))
    told = f"train: {{beta_by: learned, beta_model: {out / RESULT}, beta: {max(found['values']):g}, beta_low: 0}}"
    console.print(f"report: {out / PAGE}\nto train with it: {told}", markup=False, soft_wrap=True)
    return exit_codes.DONE
