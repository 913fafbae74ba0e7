"""Configs of the image trainers: transformers' own arguments, the sampler's, and a method's settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from posttrain.rollout.flow.flow_sampler import FlowSampling
from posttrain.trainers.seam.config import flat_config


@dataclass
class FlowArguments(TrainingArguments):
    """transformers' TrainingArguments with what a rollout of images asks for.

    num_generations       G, images of one prompt
    steps_per_generation  micro-batches of one rollout; None: gradient_accumulation_steps
    num_iterations        passes over a rollout
    beta                  strength of the KL to the model as it was at the start
    """

    num_generations: int = field(default=24, metadata={"help": "Images of one prompt."})
    steps_per_generation: int | None = field(default=None, metadata={"help": "Micro-batches of one rollout."})
    num_iterations: int = field(default=1, metadata={"help": "Passes over a rollout."})
    beta: float = field(default=0.0, metadata={"help": "Strength of the KL to the model at the start."})
    shuffle_dataset: bool = field(default=True, metadata={"help": "Whether prompts are shuffled each epoch."})
    reward_timeout_s: float = field(default=30.0, metadata={"help": "Seconds one reward call may take."})
    reward_on_error: str = field(default="raise", metadata={"help": "'raise' or 'skip'."})
    reward_workers: int | None = field(
        default=None, metadata={"help": "Worker processes per reward function."}
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "One per reward; None: all 1."}
    )
    record_steps: list[int] = field(default_factory=list, metadata={"help": "Not for images."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.remove_unused_columns = False
        if self.steps_per_generation is None:
            self.steps_per_generation = self.gradient_accumulation_steps
        if self.num_generations < 2:
            raise ValueError(
                f"num_generations {self.num_generations} leaves nothing to compare with; use 2 or more"
            )
        if self.reward_on_error not in ("raise", "skip"):
            raise ValueError(f"reward_on_error is 'raise' or 'skip', not {self.reward_on_error!r}")
        micro_batches = self.steps_per_generation * self.num_iterations
        if micro_batches % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation x num_iterations = {micro_batches} is not a multiple of "
                f"gradient_accumulation_steps = {self.gradient_accumulation_steps}: an optimizer step would mix two "
                "rollouts"
            )
        images = self.per_device_train_batch_size * self.steps_per_generation * self.world_size
        if images % self.num_generations:
            raise ValueError(
                f"a rollout of {images} images does not divide into groups of {self.num_generations}; change "
                "per_device_train_batch_size, steps_per_generation or num_generations"
            )
        if self.record_steps:
            raise ValueError(
                "record_steps: `posttrain replay` reads token batches, which image methods do not have"
            )


FlowConfig = flat_config("FlowConfig", FlowArguments, FlowSampling, __name__)
