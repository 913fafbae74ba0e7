"""Benchmarks of masked-diffusion models: `posttrain eval generate MODEL TASK --engine masked_diffusion`.

A diffusion model's score depends on its sampler as much as on its weights, so the schedule is asked for and stored in
run.json. No torch at import time: the command's help is made from here.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import asdict
from math import inf
from typing import TYPE_CHECKING, Any

from posttrain.rollout.masked.sampler_options import DiffusionSampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.evaluation.engine_bridge import EvaluationEngine

ENGINE = "masked_diffusion"


def _at_least(kind: Callable[[str], float], lowest: float) -> Callable[[str], float]:
    """A number of the command line, not below `lowest`."""

    def parse(text: str) -> float:
        number = kind(text)
        if not lowest <= number < inf:
            raise ArgumentTypeError(f"must be a number >= {lowest}, not {text}")
        return number

    return parse


_OPTIONS: dict[str, dict[str, Any]] = {
    "diffusion_steps": {
        "type": _at_least(int, 1),
        "help": "forward passes per canvas (default: one per token)",
    },
    "block_length": {
        "type": _at_least(int, 1),
        "help": "the canvas is filled in blocks of this size (default: one block)",
    },
    "remasking": {"choices": ("low_confidence", "random", "entropy", "margin")},
    "cfg_scale": {"type": _at_least(float, 0), "help": "weight of classifier-free guidance"},
    "cache": {
        "choices": ("none", "prefix", "dual"),
        "help": "keys and values kept within a block: faster, and another distribution",
    },
    "confidence": {
        "type": _at_least(float, 0),
        "help": "reveal every token of at least this probability, in place of --diffusion-steps",
    },
    "end_rule": {"choices": ("free", "last", "never"), "help": "when an end token may be revealed"},
}


def add_arguments(parser: ArgumentParser, title: str = "with --engine masked_diffusion") -> None:
    group = parser.add_argument_group(title)
    for name, words in _OPTIONS.items():
        group.add_argument(f"--{name.replace('_', '-')}", **words)
    group.add_argument("--mask-token", help="where the tokenizer does not name it")
    group.add_argument(
        "--end-token", action="append", default=[], help="besides the tokenizer's own; may be repeated"
    )
    group.add_argument("--trust-remote-code", action="store_true", help="run the code the checkpoint brings")


def given(args: Namespace) -> list[str]:
    """Flags of this engine that were written."""
    values = vars(args)
    names = [*_OPTIONS, "mask_token", "end_token", "trust_remote_code"]
    return [
        f"--{name.replace('_', '-')}" for name in names if values[name] or isinstance(values[name], float)
    ]


def load(args: Namespace, *, dtype: str, device: str) -> tuple[EvaluationEngine, PreTrainedTokenizerBase]:
    """The model bidirectional, probed, with the sampler's options."""
    import torch

    from posttrain.evaluation.engine_bridge import EvaluationEngine, end_tokens, positions
    from posttrain.rollout.masked.block_reader import refuse_cache
    from posttrain.rollout.masked.masked_engine import MaskedDiffusionEngine
    from posttrain.rollout.masked.predictor import (
        MaskPredictor,
        check_mask_predictor,
        load_mask_model,
        mask_id_of,
        own_code,
    )
    from posttrain.rollout.model_folder import tokenizer_of

    own_code(args.model, trust_remote_code=args.trust_remote_code)
    tokenizer: Any = tokenizer_of(args.model, trust_remote_code=args.trust_remote_code)
    mask_id = mask_id_of(tokenizer, args.mask_token)
    vocabulary = tokenizer.get_vocab()
    unknown = [token for token in args.end_token if token not in vocabulary]
    if unknown:
        raise ValueError(f"--end-token {unknown[0]!r} is not in the tokenizer's vocabulary")
    model: Any = load_mask_model(args.model, dtype=dtype, trust_remote_code=args.trust_remote_code)
    model.to(torch.device(device))
    predictor = MaskPredictor.of(model, mask_id)
    check_mask_predictor(predictor)
    chosen = {name: vars(args)[name] for name in _OPTIONS if vars(args)[name] is not None}
    options = DiffusionSampling(**chosen)
    refuse_cache(predictor, options.cache)
    ends = end_tokens(model, tokenizer) | {vocabulary[token] for token in args.end_token}
    pad = tokenizer.pad_token_id
    engine = MaskedDiffusionEngine.of(predictor, options, pad_token_id=pad if pad is not None else min(ends))
    described = {"dtype": engine.dtype, "device": device, **asdict(options)}
    return EvaluationEngine(engine, frozenset(ends), positions(model), described), tokenizer
