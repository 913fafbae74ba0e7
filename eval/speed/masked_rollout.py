"""Rollouts of a masked-diffusion model with keys and values kept within a block, against none: time, and what changes.

    OMP_NUM_THREADS=1 python eval/speed/masked_rollout.py [--pairs 5 --prompt 256 --tokens 128 --block 32 --rows 8]
    OMP_NUM_THREADS=1 python eval/speed/masked_rollout.py --model runs/smoke-mdlm/model

Without `--model`: CPU seconds of one rollout of a random Llama (hidden 256, 4 layers, vocabulary 4k), one pass per
token, the ways in turn; ratios to `none`, pair by pair. With the model of recipes/smoke/mdlm_countdown.yaml: what the
ways change. Greedy accuracy on 256 held-out problems and the share of answers that are those of `none`; and of 64
samples of each of 64 problems at temperature 1 the accuracy and the total variation distance between the answers of
a way and of `none`, beside that of two draws of `none`.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  # after the number of threads is set
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: E402

from posttrain.data.countdown import Countdown  # noqa: E402
from posttrain.rewards.puzzles import countdown  # noqa: E402
from posttrain.rollout.base import Sampling  # noqa: E402
from posttrain.rollout.masked.masked_engine import MaskedDiffusionEngine  # noqa: E402
from posttrain.rollout.masked.predictor import MaskPredictor, load_mask_model, mask_id_of  # noqa: E402
from posttrain.rollout.masked.sampler_options import DiffusionSampling  # noqa: E402

LENGTH = 6
WAYS: dict[str, dict[str, Any]] = {"none": {}, "prefix": {"cache": "prefix"}, "dual": {"cache": "dual"}}
SURE = {"dual, confidence .9": {"cache": "dual", "confidence": 0.9}, "confidence .9": {"confidence": 0.9}}


def random_predictor() -> MaskPredictor:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=1024,
    )  # fmt: skip
    config.is_causal = False
    return MaskPredictor.of(LlamaForCausalLM(config).eval(), mask_id=3)


def speed(args: argparse.Namespace) -> None:
    predictor = random_predictor()
    words = random.Random(0)
    prompts = [[words.randrange(4, 4096) for _ in range(args.prompt)] for _ in range(args.rows)]
    sampling = Sampling(max_new_tokens=args.tokens, seed=0)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(args.pairs):
        for name, way in WAYS.items():
            engine = MaskedDiffusionEngine.of(
                predictor, DiffusionSampling(block_length=args.block, **way), pad_token_id=0
            )
            begun = time.process_time()
            engine.generate(prompts, sampling)
            found[name].append(time.process_time() - begun)
    for name, seconds in found.items():
        ratios = [base / own for base, own in zip(found["none"], seconds, strict=True)]
        print(
            f"| {name} | {statistics.median(seconds):.2f} s | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}-{max(ratios):.2f}) |"
        )


class Answers:
    """The fine-tuned model's answers to held-out problems, by one way after another."""

    def __init__(self, folder: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        model = load_mask_model(folder, dtype="float32").eval()
        self.predictor = MaskPredictor.of(model, mask_id_of(self.tokenizer))
        task = Countdown(held_out=256, largest=9, operators="+-", in_order=True)
        self.rows = list(task.rows("test", completions=False))

    def of(self, way: dict[str, Any], problems: int, **sampling: Any) -> tuple[list[str], float]:
        """Texts, problem-major, and the forward passes a canvas took, on average."""
        prompts = [self.tokenizer(row["prompt"])["input_ids"] for row in self.rows[:problems]]
        engine = MaskedDiffusionEngine.of(
            self.predictor, DiffusionSampling(**way), pad_token_id=self.tokenizer.pad_token_id
        )
        ends = (self.tokenizer.eos_token_id,)
        found = engine.generate(
            prompts, Sampling(max_new_tokens=LENGTH, stop_token_ids=ends, **sampling), return_trace=True
        )
        passes = statistics.mean(max(order) + 1 for _, order in found)
        return [self.tokenizer.decode(one.token_ids, skip_special_tokens=True) for one, _ in found], passes

    def accuracy(self, texts: list[str], each: int) -> float:
        rows = [row for row in self.rows for _ in range(each)][: len(texts)]
        judged = countdown(texts, numbers=[r["numbers"] for r in rows], target=[r["target"] for r in rows])
        return statistics.mean(float(one or 0.0) for one in judged)


def apart(one: list[str], other: list[str], each: int) -> float:
    """Total variation distance between two samples of answers, the mean over problems."""
    distances = []
    for start in range(0, len(one), each):
        mine, its = Counter(one[start : start + each]), Counter(other[start : start + each])
        distances.append(sum(abs(mine[key] - its[key]) for key in mine | its) / (2 * each))
    return statistics.mean(distances)


def change(folder: str) -> None:
    answers, each = Answers(folder), 64
    base, _ = answers.of({}, 256, temperature=0.0)
    sampled, _ = answers.of({}, 64, n=each, seed=1)
    print(
        "| way | passes | greedy accuracy | greedy answers as none's | accuracy at T = 1 | distance to none |"
    )
    print("|---|---|---|---|---|---|")
    for name, way in (WAYS | SURE).items():
        greedy, passes = answers.of(way, 256, temperature=0.0)
        drawn, _ = answers.of(way, 64, n=each, seed=100_000)  # a row's draws follow seed + row: no overlap
        same = statistics.mean(a == b for a, b in zip(greedy, base, strict=True))
        print(
            f"| {name} | {passes:.1f} | {answers.accuracy(greedy, 1):.3f} | {same:.0%} | "
            f"{answers.accuracy(drawn, each):.3f} | {apart(drawn, sampled, each):.3f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--model")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    print(f"{datetime.now(UTC).date()}, load {os.getloadavg()[0]:.2f}")
    if args.model is None:
        speed(args)
    else:
        change(args.model)


if __name__ == "__main__":
    main()
