"""The reward `drift_penalty` in use: a frozen reference that is told the goal, beside the policy that is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import DistributedType

from posttrain.data.tokens import prompt_ids
from posttrain.rewards.drift_reward import DriftReward
from posttrain.rewards.runner import RewardError
from posttrain.rollout.answer_divergence import (
    mean_divergences,
    mean_log_ratio,
    response_logits,
    with_goal,
)
from posttrain.rollout.model_folder import load_dense, tokenizer_of
from posttrain.trainers.models.whole_weights import whole_weights_everywhere


class DriftScorer:
    """`score(policy, ...)` gives minus the divergence of each answer, in nats per token; `kl` and `js` are the sums of
    D and of JS over the last call's answers.

    Every rank holds the whole reference, in float32 on a CPU and in bfloat16 on a GPU. RewardError where its tokenizer
    is not the policy's.
    """

    def __init__(self, spec: DriftReward, tokenizer: Any, device: Any) -> None:
        self.title, self.measure, self.device = spec.title, spec.measure, torch.device(device)
        theirs = tokenizer_of(spec.reference)
        if theirs.get_vocab() != tokenizer.get_vocab():
            raise RewardError(
                f"reward {self.title!r}: the tokenizer of {spec.reference} is not the policy's, and a KL over the "
                "vocabulary needs one; take a reference of the same family, or the model that training starts from"
            )
        dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        with whole_weights_everywhere():
            model: Any = load_dense(spec.reference, dtype=dtype)
        if model.config.to_dict().get("is_causal") is False:
            raise RewardError(
                f"reward {self.title!r}: {spec.reference} looks both ways; it needs a causal model"
            )
        self.reference = model.to(self.device).requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.kl = self.js = 0.0

    def tells(self) -> str:
        return f"reward {self.title}: the reference on {self.device}, two forwards an answer, one answer at a time"

    @torch.no_grad()
    def score(
        self, policy: Any, prompts: Sequence[Any], answers: Sequence[Sequence[int]], goals: Sequence[Any]
    ) -> list[float]:
        """
        policy   the model in training, whole
        answers  token ids as sampled, the end token among them
        goals    a text for each
        """
        found: list[float] = []
        self.kl = self.js = 0.0
        with evaluating(policy):
            for place, (prompt, answer, goal) in enumerate(zip(prompts, answers, goals, strict=True)):
                if not isinstance(goal, str) or not goal.strip():
                    raise RewardError(
                        f"reward {self.title!r}: response {place} has no goal in its column 'goal'; it is the text "
                        "that the reference is told once more"
                    )
                found.append(self._score(policy, prompt, list(answer), goal))
        return found

    def _score(self, policy: Any, prompt: Any, answer: list[int], goal: str) -> float:
        if not answer:
            return 0.0  # nothing was said, so nothing has drifted
        q = response_logits(policy, prompt_ids(self.tokenizer, prompt), answer)
        told = prompt_ids(self.tokenizer, with_goal(prompt, goal))
        p = response_logits(self.reference, told, answer).to(q.device)
        kl, js = mean_divergences(q, p, len(self.tokenizer), q.device)
        self.kl, self.js = self.kl + kl, self.js + js
        return -kl if self.measure == "vocabulary" else -mean_log_ratio(q, p, answer, len(self.tokenizer))


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """No dropout inside; the mode is as before afterwards."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


def require_whole_policy(title: str, accelerator: Any) -> None:
    """RewardError where no process holds the whole policy: FSDP, and ZeRO's third stage."""
    plugin = (
        accelerator.state.deepspeed_plugin
        if accelerator.distributed_type == DistributedType.DEEPSPEED
        else None
    )
    if accelerator.distributed_type == DistributedType.FSDP or (
        plugin is not None and plugin.zero_stage == 3
    ):
        raise RewardError(
            f"reward {title!r} reads the policy's distribution over the vocabulary, and no process holds the whole of "
            "it under FSDP or ZeRO-3; start it with DDP or ZeRO-2"
        )
