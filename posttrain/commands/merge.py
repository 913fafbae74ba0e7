"""`posttrain merge ADAPTER --out DIR`: a LoRA adapter and its base as one whole model folder."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from posttrain.planning.saved_model import DTYPES, model_of
from posttrain.process import exit_codes


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("adapter", help="folder of an adapter, or of a run with model.peft (its model)")
    parser.add_argument("--out", required=True, help="folder for the whole model")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=DTYPES,
        help="of the saved weights (default: that of the base model)",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code the base model brings")


def main(args: Namespace) -> int:
    """Write a LoRA adapter merged into its base model: weights, generation config, tokenizer and chat template."""
    from posttrain.rollout.adapter_base import ModelFault, base_of, holds_adapter

    out = Path(args.out)
    try:
        args.adapter = model_of(args.adapter)
    except ValueError as error:
        return _refused(str(error))
    if not Path(args.adapter).is_dir():
        return _refused(f"there is no folder {args.adapter}")
    if not holds_adapter(args.adapter):
        return _refused(f"{args.adapter} holds no adapter_config.json, so it is not a saved adapter")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _refused(f"{out} is not empty; name another folder")
    try:
        base = base_of(args.adapter)
        import transformers.utils.logging

        from posttrain.rollout.model_folder import save_merged

        transformers.utils.logging.disable_progress_bar()
        model = save_merged(args.adapter, out, dtype=args.dtype, trust_remote_code=args.trust_remote_code)
    except ModelFault as error:
        return _refused(str(error))
    except (
        OSError,
        ValueError,
    ) as error:  # transformers' own: a base with code of its own, an unknown architecture
        return _refused(str(error).strip().partition("\n")[0])
    print(f"{args.adapter} merged into {base} ({str(model.dtype).removeprefix('torch.')})\nwritten: {out}")
    return exit_codes.DONE


def _refused(message: str) -> int:
    print(f"posttrain merge: {message}", file=sys.stderr)
    return exit_codes.REFUSED
