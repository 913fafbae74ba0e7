"""`posttrain export RUN --out DIR`: the weights of a run's checkpoint as a plain transformers folder."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from pydantic import ValidationError

from posttrain.planning.saved_model import DTYPES
from posttrain.process import exit_codes
from posttrain.recipe.errors import suggest
from posttrain.recipe.sections import HubSection
from posttrain.run.hub import hub_warnings, sent


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", help="a run's folder, runs/NAME")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; must be new or empty")
    parser.add_argument(
        "--checkpoint",
        default="last",
        metavar="N",
        help="step of the checkpoint (of a run in stages: how many stages); default: last, the newest weights",
    )
    parser.add_argument("--merge", action="store_true", help="merge a LoRA adapter into its base model")
    parser.add_argument(
        "--dtype", default="auto", help=f"of the written weights: {', '.join(DTYPES)} (default, as saved)"
    )
    parser.add_argument(
        "--push", metavar="REPO", help="push the folder to this private repository of the Hugging Face hub"
    )


def main(args: Namespace) -> int:
    """Write a run's weights as a transformers folder (of an adapter: peft's; of images: diffusers'), with generation
    config, tokenizer, chat template and model card, from any checkpoint: whole, ZeRO's or FSDP's shards."""
    if args.dtype not in DTYPES:
        known = suggest(args.dtype, DTYPES) or f"; write one of {', '.join(DTYPES)}"
        return _refused(f"--dtype: there is no {args.dtype!r}{known}")
    hub = None
    if args.push is not None:
        try:
            hub = HubSection(repo=args.push)
        except ValidationError as error:
            return _refused(f"--push: {error.errors()[0]['msg'].removeprefix('Value error, ')}")
        for warning in hub_warnings(hub):
            print(f"posttrain export: {warning.replace('output.hub:', '--push:')}", file=sys.stderr)
    import transformers.utils.logging

    from posttrain.run.exporting import export_run

    transformers.utils.logging.disable_progress_bar()
    run_dir, out = Path(args.run), Path(args.out)
    try:
        made = export_run(run_dir, out, which=args.checkpoint, merge=args.merge, dtype=args.dtype)
    except (
        OSError,
        ValueError,
    ) as error:  # ours, and transformers' own: an unknown architecture, a base gone
        return _refused(str(error).strip().partition("\n")[0])
    print(f"{run_dir}: {made.in_words()}\nwritten: {out}")
    if made.read_by:
        print(f"read by: {made.read_by}")
    if made.masked:
        print(
            "masked diffusion: load it with posttrain (eval --engine masked_diffusion, chat), not as a decoder"
        )
    if hub is None:
        return exit_codes.DONE
    arrived, said = sent(out, hub)
    print(said, file=sys.stdout if arrived else sys.stderr)
    return exit_codes.DONE if arrived else exit_codes.REFUSED


def _refused(message: str) -> int:
    print(f"posttrain export: {message}", file=sys.stderr)
    return exit_codes.REFUSED
