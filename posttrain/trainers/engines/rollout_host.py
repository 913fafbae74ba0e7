"""What the parts that make rollouts read of their trainer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from accelerate import Accelerator

from posttrain.objectives.base import Objective
from posttrain.trainers.engines.turns import Turns
from posttrain.trainers.forward.base import Scorer
from posttrain.trainers.seam.config import PolicyConfig


class RolloutHost(Protocol):
    """What rollouts read of their trainer. The names are TRL's, but for `scorer` and `check_sampled`."""

    args: PolicyConfig
    objective: Objective
    train_dataset: Any
    accelerator: Accelerator
    model: Any
    ref_model: Any
    beta: float
    state: Any
    scorer: Scorer
    tools: Any
    environment_factories: Any
    turns: Turns
    num_generations: int
    num_iterations: int
    max_completion_length: int
    temperature: float
    top_p: float
    top_k: int | None
    min_p: float | None
    repetition_penalty: float
    eos_token_ids: Any
    _step: int
    _tokenizer: Any
    _metrics: Any
    _batch_environments: list[str | None]
    _multi_environment: bool

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[Any, ...]: ...

    def check_sampled(self, logprobs: Iterable[Iterable[float]]) -> None: ...
