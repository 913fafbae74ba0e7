"""The scorer: log-probs of a micro-batch, through TRL's padded forward with its fused LM head.

Objectives do not know this file. What they ask for beyond log-probs (`Objective.needs`) is taken from the same
forward: the hidden states that feed the LM head, and the best candidate tokens of each position, found chunk by
chunk so that the (B, T, V) logits never exist.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

VISION_KEYS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)
_CANDIDATE_CHUNK = 512  # tokens whose logits exist at once while candidates are picked


def loss_mask(inputs: Mapping[str, Any]) -> Tensor:
    """Completion tokens that take part in the loss: tools' output and masked truncations excluded. (B, T)."""
    mask = inputs["completion_mask"]
    return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask


def model_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A slice of the rollout buffer as arguments of TRL's `_get_per_token_logps_and_entropies`."""
    return {
        "input_ids": torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
        "attention_mask": torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
        "logits_to_keep": inputs["completion_ids"].size(1),
        **{key: inputs[key] for key in VISION_KEYS if key in inputs},
    }


class ForwardProbe:
    """Reads the LM head's input, and the candidates it ranks highest, out of a running forward pass.

    The candidates are computed inside the model's own forward, by calling its LM head module: under ZeRO-3 and
    FSDP2 the head is then available without any gathering of ours.
    """

    def __init__(self, model: nn.Module, num_candidates: int, temperature: float) -> None:
        self._num_candidates = num_candidates
        self._temperature = temperature
        self._taking = False
        self.hidden: Tensor | None = None
        self.candidate_logits: Tensor | None = None
        self.candidate_ids: Tensor | None = None
        self._positions = 0
        self._wrap_forward(model)

    def _wrap_forward(self, model: Any) -> None:
        inner = model.forward
        probe = self

        def forward(this: Any, *args: Any, **kwargs: Any) -> Any:
            if not probe._taking:
                return inner(*args, **kwargs)
            seen: list[Tensor] = []
            handle = this.base_model.register_forward_hook(lambda _m, _i, out: seen.append(out.last_hidden_state))
            try:
                outputs = inner(*args, **kwargs)
            finally:
                handle.remove()
            probe._take(this, seen[-1].detach())
            return outputs

        model.forward = types.MethodType(forward, model)

    def _take(self, model: Any, hidden: Tensor) -> None:
        # Position t-1 predicts token t, so the completion's T tokens belong to the T positions before the last.
        hidden = hidden[:, -self._positions - 1 : -1]
        flat = hidden.reshape(-1, hidden.size(-1))
        head = model.get_output_embeddings()
        values, ids = [], []
        with torch.no_grad():
            for chunk in flat.split(_CANDIDATE_CHUNK):
                logits = head(chunk).float() / self._temperature
                top = logits.topk(min(self._num_candidates, logits.size(-1)), dim=-1)
                values.append(top.values)
                ids.append(top.indices)
        shape = (*hidden.shape[:2], -1)
        self.hidden = hidden
        self.candidate_logits = torch.cat(values).view(shape)
        self.candidate_ids = torch.cat(ids).view(shape)

    @contextmanager
    def taking(self, positions: int) -> Iterator[None]:
        """While active, every forward of the model leaves its hidden states and candidates here."""
        self._taking, self._positions = True, positions
        try:
            yield
        finally:
            self._taking = False

    def outputs(self) -> dict[str, Tensor]:
        """"hidden" (B, T, H), "candidate_logits" (B, T, K) float32 and "candidate_ids" (B, T, K)."""
        if self.hidden is None or self.candidate_logits is None or self.candidate_ids is None:
            raise RuntimeError("ForwardProbe.outputs: no forward has run inside `taking()`")
        return {
            "hidden": self.hidden,
            "candidate_logits": self.candidate_logits,
            "candidate_ids": self.candidate_ids,
        }
