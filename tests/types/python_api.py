"""What a type checker sees of the Python API; `make types` reads this file, nothing runs it."""

# pyright: reportUnnecessaryTypeIgnoreComment=true
# so that a mistake below that the checker no longer sees is a fault of its own

from __future__ import annotations

from typing import Literal, assert_type

from posttrain.trainers import (
    BAPOConfig,
    BAPOTrainer,
    BGPOConfig,
    DRIFTConfig,
    GRPOConfig,
    RPOConfig,
    RPOTrainer,
    SALSAConfig,
)

config = BAPOConfig(output_dir="out", target=0.5, learning_rate=1e-6, layout="auto", num_generations=8)
assert_type(config.target, float | None)
assert_type(config.preset, Literal["paper", "recipe"])
assert_type(config.learning_rate, float)  # transformers'
assert_type(config.num_generations, int | None)  # TRL's
assert_type(config.max_tokens_per_micro_batch, int | None)  # ours, of every policy method

BAPOConfig(output_dir="out", tarqet=0.5)  # pyright: ignore[reportCallIssue]
BAPOConfig(output_dir="out", target="half")  # pyright: ignore[reportArgumentType]
GRPOConfig(output_dir="out", target=0.5)  # pyright: ignore[reportCallIssue]  # BAPO's

trainer = BAPOTrainer(model="model", reward_funcs=len, args=config, train_dataset=None)
assert_type(trainer.args.target, float | None)
BAPOTrainer("model", len, args=GRPOConfig(output_dir="out"))  # pyright: ignore[reportArgumentType]

assert_type(BGPOConfig(output_dir="out", samples=4).block_length, int | None)  # the sampler's
assert_type(SALSAConfig(output_dir="out", others=["sft2"]).others, list[str])
assert_type(DRIFTConfig(output_dir="out").iterations, int)
assert_type(RPOTrainer("model", args=RPOConfig(output_dir="out", eta=0.01)).args.eta, float)
