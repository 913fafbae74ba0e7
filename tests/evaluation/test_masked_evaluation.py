"""`posttrain eval generate --engine masked_diffusion`: a benchmark through the sampler, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch

from posttrain.cli import main
from posttrain.evaluation import masked_diffusion, store
from posttrain.rollout.base import Sampling
from posttrain.rollout.masked.masked_engine import MaskedDiffusionEngine
from posttrain.rollout.masked.predictor import MaskPredictor, load_mask_model, scratch_mask_model
from posttrain.rollout.masked.sampler_options import DiffusionSampling

TASK = """
name: puzzles
title: Puzzles
licence: MIT
source: made here
data: {file: puzzles.jsonl, rows: 4, sha256: null}
gold: {rule: columns, columns: {numbers: input, target: output}}
prompt: {template: "{input}={output}>"}
sampling: {samples: 1, max_new_tokens: 8, temperature: 0.0}
answer: {grader: countdown}
"""


@pytest.fixture
def folder(tmp_path, tokenizer):
    rows = [{"input": f"{a},{a + 1},2", "output": str(2 * a + 3)} for a in range(1, 5)]
    (tmp_path / "puzzles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "puzzles.yaml").write_text(TASK)
    model = scratch_mask_model(tokenizer, hidden_size=32, heads=2, max_positions=64)
    with torch.no_grad():  # random weights so large that an answer depends on what is already revealed
        for parameter in model.parameters():
            parameter.mul_(20 if parameter.dim() == 2 else 1)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def generate(folder, *more):
    words = ["eval", "generate", str(folder / "model"), str(folder / "puzzles.yaml"), "--data", str(folder)]
    return main([*words, "--out", str(folder / "out"), "--device", "cpu", *more])


def test_a_benchmark_is_answered_by_the_sampler_with_the_schedule_asked_for(folder, tokenizer, capsys):
    flags = ["--engine", "masked_diffusion", "--diffusion-steps", "4", "--block-length", "4"]
    assert generate(folder, *flags) == 0
    run = store.read_json(folder / "out" / "puzzles" / "run.json")
    assert run["engine"]["name"] == masked_diffusion.ENGINE
    assert (run["engine"]["diffusion_steps"], run["engine"]["block_length"]) == (4, 4)
    lines = (folder / "out" / "puzzles" / "generations.jsonl").read_text().splitlines()
    answers = {row["prompt"]: row["text"] for row in map(json.loads, lines)}
    assert len(answers) == 4
    asked = DiffusionSampling(diffusion_steps=4, block_length=4)
    assert answers == sampled(folder, tokenizer, list(answers), asked)
    assert answers != sampled(folder, tokenizer, list(answers), DiffusionSampling())  # the schedule shows


def sampled(folder, tokenizer, prompts, options):
    predictor = MaskPredictor.of(
        load_mask_model(str(folder / "model"), dtype="float32"), tokenizer.mask_token_id
    )
    engine = MaskedDiffusionEngine.of(predictor, options, pad_token_id=tokenizer.pad_token_id)
    sampling = Sampling(temperature=0.0, max_new_tokens=8, stop_token_ids=(tokenizer.eos_token_id,))
    done = engine.generate([tokenizer(prompt)["input_ids"] for prompt in prompts], sampling)
    texts = [tokenizer.decode(one.token_ids, skip_special_tokens=True) for one in done]
    return dict(zip(prompts, texts, strict=True))


def test_a_model_that_looks_both_ways_is_not_read_left_to_right(folder, capsys):
    assert generate(folder) == 2
    assert "wants --engine masked_diffusion" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--block-length", "4"], "--block-length: only with --engine masked_diffusion"),
        (["--cfg-scale", "0"], "--cfg-scale: only with --engine masked_diffusion"),
        (["--engine", "masked_diffusion", "--block-length", "3"], "does not divide max_new_tokens 8"),
        (["--engine", "masked_diffusion", "--end-token", "<|eot|>"], "'<|eot|>' is not in the tokenizer's"),
        (["--engine", "masked_diffusion", "--top-p", "0.9"], "no top_p"),
        (["--engine", "masked_diffusion", "--adapter", "x"], "merge the adapter first"),
    ],
)
def test_what_cannot_be_is_refused(folder, capsys, flags, message):
    assert generate(folder, *flags) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag", [("--diffusion-steps", "0"), ("--block-length", "-4"), ("--cfg-scale", "-1")]
)
def test_numbers_out_of_range_are_refused(folder, capsys, flag):
    with pytest.raises(SystemExit, match="2"):
        generate(folder, "--engine", "masked_diffusion", *flag)
    assert f"argument {flag[0]}: must be a number >=" in capsys.readouterr().err
