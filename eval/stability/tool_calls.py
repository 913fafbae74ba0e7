"""How many held-out calls of the six tools are right before iTool and after each of its iterations, greedily.

python -m posttrain train recipes/smoke/sft_api.yaml && python -m posttrain train recipes/smoke/itool_api.yaml
python eval/stability/tool_calls.py [--run runs/smoke-itool] [--requests 200]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

from transformers import AutoTokenizer

from posttrain.data.api_calls import ApiCalls
from posttrain.rewards.tool_call_reward import tool_call_match
from posttrain.rollout.base import Sampling
from posttrain.trainers.engines.answers import EngineGenerator, prompt_ids, stop_ids, transformers_engine_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/smoke-itool"))
    parser.add_argument("--requests", type=int, default=200)
    options = parser.parse_args()
    rows = list(ApiCalls().rows("test", completions=False))[: options.requests]
    states = options.run / "checkpoints"
    for folder in sorted((states / "policies").glob("[0-9]*")):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        generator = EngineGenerator(tokenizer, transformers_engine_of(tokenizer, base=states / "base"))
        sampling = Sampling(temperature=0.0, max_new_tokens=80, stop_token_ids=stop_ids(tokenizer))
        texts = generator(folder, [prompt_ids(tokenizer, row["prompt"]) for row in rows], sampling)
        generator.close()
        answers = [row["answer"] for row in rows]
        exact = tool_call_match(texts, answer=answers, partial_credit=False)
        pieces = tool_call_match(texts, answer=answers)
        right, credit = (fmean(s for s in scores if s is not None) for scores in (exact, pieces))
        print(f"policy {folder.name}: {right:.3f} of {len(rows)} calls right, {credit:.3f} of their pieces")


if __name__ == "__main__":
    main()
