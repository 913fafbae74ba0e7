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

from posttrain.ops.logprobs import top_candidates

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

    def __init__(
        self, model: nn.Module, needs: frozenset[str], num_candidates: int, temperature: float
    ) -> None:
        unknown = needs - {"hidden", "candidates"}
        if unknown:
            raise ValueError(
                f"the forward pass cannot supply {sorted(unknown)}; it has 'hidden' and 'candidates'"
            )
        self._needs = needs
        self._num_candidates = num_candidates
        self._temperature = temperature
        self._actions: Tensor | None = None  # set while taking
        self._taken: dict[str, Tensor] = {}
        self._wrap_forward(model)

    def _wrap_forward(self, model: Any) -> None:
        inner = model.forward
        probe = self

        def forward(this: Any, *args: Any, **kwargs: Any) -> Any:
            if probe._actions is None:
                return inner(*args, **kwargs)
            seen: list[Tensor] = []
            handle = this.base_model.register_forward_hook(
                lambda _m, _i, out: seen.append(out.last_hidden_state)
            )
            try:
                outputs = inner(*args, **kwargs)
            finally:
                handle.remove()
            probe._take(this, seen[-1].detach())
            return outputs

        model.forward = types.MethodType(forward, model)

    def _take(self, model: Any, hidden: Tensor) -> None:
        actions = self._actions
        if actions is None:
            raise RuntimeError("ForwardProbe: a forward was read outside `taking()`")
        # Position t-1 predicts token t, so the T completion tokens belong to the T positions before the last.
        hidden = hidden[:, -actions.size(1) - 1 : -1]
        self._taken = {"hidden": hidden} if "hidden" in self._needs else {}
        if "candidates" not in self._needs:
            return
        head = model.get_output_embeddings()
        parts = []
        with torch.no_grad():
            flat = hidden.reshape(-1, hidden.size(-1))
            for states, sampled in zip(
                flat.split(_CANDIDATE_CHUNK), actions.reshape(-1).split(_CANDIDATE_CHUNK), strict=True
            ):
                parts.append(
                    top_candidates(head(states).float() / self._temperature, sampled, self._num_candidates)
                )
        shape = (*actions.shape, -1)
        self._taken["candidate_ids"] = torch.cat([ids for ids, _ in parts]).view(shape)
        self._taken["candidate_logits"] = torch.cat([logits for _, logits in parts]).view(shape)

    @contextmanager
    def taking(self, actions: Tensor) -> Iterator[dict[str, Tensor]]:
        """While active, a forward of the model fills the yielded dict with what `needs` names.

        actions  (B, T)  the sampled ids of the completion
        """
        self._actions, self._taken = actions, {}
        found: dict[str, Tensor] = {}
        try:
            yield found
            found.update(self._taken)
        finally:
            self._actions, self._taken = None, {}
