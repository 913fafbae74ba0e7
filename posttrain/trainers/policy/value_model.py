"""A model that gives each token's state a value: a language model's layers, and one linear map on top."""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from posttrain.rollout.adapter_base import holds_adapter
from posttrain.trainers.forward.base import Rows
from posttrain.trainers.models.policy_folder import load_dense
from posttrain.trainers.models.reference import share_from_main
from posttrain.trainers.models.reward_heads import load_reward_model, score_of
from posttrain.trainers.models.whole_weights import whole_weights_everywhere
from posttrain.trainers.seam.faults import NotUnderThisEngine
from posttrain.trainers.seam.trl_seam import disable_dropout_in_model


class ValueHead(nn.Linear):
    """(..., H) -> (...), without a bias. Starts at 0, so that the first values are 0 and not noise."""

    def __init__(self, hidden_size: int, **where: Any) -> None:
        super().__init__(hidden_size, 1, bias=False, **where)
        nn.init.zeros_(self.weight)

    def forward(self, states: Tensor) -> Tensor:
        return super().forward(states.to(self.weight.dtype)).squeeze(-1).float()


class ValueModel(nn.Module):
    """`forward(rows)` gives (B, T): the value of the state before each completion token, 0 where there is none."""

    def __init__(self, trunk: nn.Module, head: ValueHead) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, rows: Rows) -> Tensor:
        ids, mask = rows.joined
        length, width = rows.completion_ids.size(1), ids.size(1)
        used = mask.any(dim=0).nonzero()
        # columns of padding alone cost the same as any other: they are cut off on both sides
        start, end = (int(used[0]), int(used[-1]) + 1) if used.numel() else (0, width)
        start, end = min(start, width - length - 1), max(end, width - length + 1)
        ids, mask = ids[:, start:end], mask[:, start:end]
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)
        out = self.trunk(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False)
        inside = length - (width - end)
        values = self.head(out.last_hidden_state[:, -inside - 1 : -1])
        return pad(values * mask[:, -inside:], (0, width - end))


def value_model(policy: Any, folder: str | None) -> ValueModel:
    """A value model with the policy's layers as they are now, or a saved model's; a reward model brings its head.

    Each rank holds all of it. ValueError under ZeRO-3, where no process has the policy's weights to copy, and for a
    folder whose model has other than one score.
    """
    if folder is None:
        if is_deepspeed_zero3_enabled():
            raise NotUnderThisEngine(
                "critic: under ZeRO-3 no process holds the policy's weights to copy; name a critic_model, set "
                "share_trunk, or use ZeRO-2, FSDP2 or DDP"
            )
        model: Any = copy.deepcopy(policy)
        model = model.unload() if is_peft_model(model) else model
        # a fused or packed head would still run the policy's layers: back to the class's own forward
        vars(model).pop("forward", None)
        share_from_main(model)
        trunk, head = model.base_model, None
    else:
        with whole_weights_everywhere():
            model, head = _from_folder(folder)
        trunk = model.base_model
    parameter = next(trunk.parameters())
    trunk.requires_grad_(True)
    disable_dropout_in_model(trunk)
    made = ValueHead(
        trunk.config.get_text_config().hidden_size, dtype=parameter.dtype, device=parameter.device
    )
    if head is not None:
        with torch.no_grad():
            made.weight.copy_(head)
    return ValueModel(trunk, made)


def _from_folder(folder: str) -> tuple[Any, Tensor | None]:
    names = [] if holds_adapter(folder) else AutoConfig.from_pretrained(folder).architectures or []
    if holds_adapter(folder) or not any("SequenceClassification" in name for name in names):
        return load_dense(folder), None
    model = load_reward_model(folder)
    return model, score_of(model)
