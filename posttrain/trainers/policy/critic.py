"""The critic of a policy trainer: values of a rollout before it is trained on, and what the critic learns from it.

Every rank holds all of the critic, whatever shards the policy: gradients are summed over ranks here, so that it
learns alike under DDP, ZeRO and FSDP2. A critic of its own makes its backward while a micro-batch is in hand; a value
head on the policy's trunk adds its loss to the policy's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import TrainerCallback

from posttrain.objectives.base import Groups, Objective, StepTotals, TokenBatch
from posttrain.trainers.forward.base import Rows, Scorer, Wanted
from posttrain.trainers.forward.padded import loss_mask
from posttrain.trainers.policy.value_model import ValueHead, ValueModel, value_model
from posttrain.trainers.seam.finite import StepNotes


class CriticHost(Protocol):
    """What a critic reads of its trainer. The names are TRL's and transformers', but for `scorer` and `step_notes`."""

    accelerator: Accelerator
    args: Any
    state: Any
    model: Any
    scorer: Scorer
    is_deepspeed_enabled: bool
    _metrics: Any

    @property
    def step_notes(self) -> StepNotes: ...


class Critic(TrainerCallback):
    """What an objective that `uses_critic` needs beside the policy. Steps just before the policy's optimizer does.

    settings  of the objective: share_trunk, critic_model, critic_learning_rate, critic_warmup, value_coef
    name      under which the objective's metrics are logged
    """

    def __init__(self, host: CriticHost, objective: Objective, name: str) -> None:
        self.host, self.objective, self.name = host, objective, name
        settings: Any = _settings_of(objective)
        args = host.args
        self.shares = bool(settings.share_trunk)
        self.warmup, self.coefficient = int(settings.critic_warmup), float(settings.value_coef)
        if args.fp16:
            raise ValueError(
                "critic: fp16 scales the policy's loss, and the critic's steps are not scaled; take bf16"
            )
        if self.warmup and host.is_deepspeed_enabled and args.weight_decay:
            raise ValueError(
                "critic_warmup: DeepSpeed's optimizer decays the weights in these steps too, and the policy must stay "
                "as it is; set weight_decay 0"
            )
        policy = host.accelerator.unwrap_model(host.model)
        self.module: nn.Module
        if self.shares:
            parameter = next(policy.parameters())
            hidden = policy.config.get_text_config().hidden_size
            self.module = ValueHead(hidden, dtype=torch.float32, device=parameter.device)
        else:
            self.module = value_model(policy, settings.critic_model)
            if args.gradient_checkpointing:
                trunk: Any = self.module.trunk
                trunk.gradient_checkpointing_enable(
                    args.gradient_checkpointing_kwargs or {"use_reentrant": False}
                )
        self.module.to(host.accelerator.device)
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(),
            lr=settings.critic_learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            weight_decay=args.weight_decay,
        )
        self._loss = torch.zeros((), dtype=torch.float64, device=host.accelerator.device)

    @property
    def alone(self) -> bool:
        """Whether the critic learns in this step and the policy does not."""
        return self.host.state.global_step < self.warmup

    # Before training on a rollout

    @torch.no_grad()
    def valued(self, groups: Groups, output: Mapping[str, Any]) -> Groups:
        """The groups of all ranks with `values` and `mask`. output: this rank's share, as TRL buffers it."""
        accelerator = self.host.accelerator
        mask = loss_mask(output).float()
        values = self._values_of(output) * mask
        both = torch.stack([values, mask], dim=2)  # one gather
        whole = torch.as_tensor(accelerator.gather(accelerator.pad_across_processes(both, dim=1)))
        shape = (*groups.rewards.shape, whole.size(1))
        return replace(groups, values=whole[..., 0].view(shape), mask=whole[..., 1].view(shape))

    def _values_of(self, output: Mapping[str, Any]) -> Tensor:
        rows, at_once = Rows.of_buffer(output), self.host.args.per_device_train_batch_size
        if isinstance(self.module, ValueHead):
            wanted = Wanted(for_method=True, rows_at_once=at_once)
            return self.module(self.host.scorer.score(self.host.model, rows, wanted).outputs["trunk"])
        starts = range(0, rows.completion_ids.size(0), at_once)
        return torch.cat([self._forward(_some(rows, slice(start, start + at_once))) for start in starts])

    def _forward(self, rows: Rows) -> Tensor:
        with self.host.accelerator.autocast():
            return self.module(rows)

    # While a micro-batch is in hand

    def learn(
        self, batch: TokenBatch, inputs: Mapping[str, Any], totals: StepTotals, trunk: Tensor | None
    ) -> Tensor | float:
        """Takes the value loss of this micro-batch. What is to be added to the policy's loss, if anything.

        trunk  (B, T, H) of the policy's forward, with gradient, where the critic is a head on it
        """
        ranks = self.host.accelerator.num_processes
        if isinstance(self.module, ValueModel):
            values = self._forward(Rows.of_buffer(inputs))
            loss = self.objective.critic_loss(values, batch, totals)
            (loss * ranks).backward()
            added: Tensor | float = 0.0
        else:
            if trunk is None:
                raise RuntimeError("Critic: the forward pass gave no trunk, which a shared critic reads")
            values = self.module(trunk.detach() if self.alone else trunk)
            loss = self.objective.critic_loss(values, batch, totals)
            added = loss * ranks * self.coefficient
        self.host.step_notes.note("the critic's values", values, batch.mask)
        self._loss += loss.detach().double()
        return added

    # The step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Sums gradients over ranks, clips them, steps; while the critic is alone the policy's are taken away."""
        accelerator = self.host.accelerator
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.module.parameters()]
        if accelerator.num_processes > 1:
            flat = torch.cat([one.reshape(-1) for one in gradients])
            flat = torch.as_tensor(accelerator.reduce(flat, reduction="mean"))
            parts = flat.split([one.numel() for one in gradients])
            gradients = [part.view_as(one) for part, one in zip(parts, gradients, strict=True)]
        for parameter, gradient in zip(self.module.parameters(), gradients, strict=True):
            parameter.grad = gradient
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), args.max_grad_norm or torch.inf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.as_tensor(accelerator.reduce(self._loss, reduction="sum"))
        self._loss = torch.zeros_like(self._loss)
        logged = self.host._metrics["train"]
        logged[f"{self.name}/value_loss"].append(total.item())
        logged[f"{self.name}/critic_grad_norm"].append(float(norm))
        if self.alone:  # no gradient is no update: neither weight decay nor the optimizer's averages move
            for parameter in self.host.model.parameters():
                parameter.grad = None

    # Resume

    def state(self) -> dict[str, Any]:
        return {"weights": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """ValueError where the checkpoint's critic is another one."""
        try:
            self.module.load_state_dict(state["weights"])
        except RuntimeError as error:
            raise ValueError(
                f"the checkpoint's critic is not this run's: {error}; resume with the settings it was made with"
            ) from None
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # a resume may change it


def take_trunk(batch: TokenBatch) -> tuple[TokenBatch, Tensor | None]:
    """The batch without the policy's states, whose graph it must not keep, and these."""
    if "trunk" not in batch.forward:
        return batch, None
    others = {name: value for name, value in batch.forward.items() if name != "trunk"}
    return replace(batch, forward=others), batch.forward["trunk"]


def _settings_of(objective: Any) -> Any:
    """Of the objective that brings the critic: a method that wraps one is asked for it."""
    while "share_trunk" not in vars(objective):
        objective = objective.base_objective
    return objective


def _some(rows: Rows, part: slice) -> Rows:
    return Rows(
        rows.prompt_ids[part],
        rows.prompt_mask[part],
        rows.completion_ids[part],
        rows.completion_mask[part],
    )
