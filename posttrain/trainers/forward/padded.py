"""The scorer: log-probs of a micro-batch, through TRL's padded forward with its fused LM head.

Objectives do not know this file. What they ask for beyond log-probs (`Objective.needs`) is taken from the same
forward: the hidden states that feed the LM head, and the best candidate tokens of each position, found in the tiles
of logits the log-probs are made of, so that the (B, T, V) logits never exist.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.trainers.forward.head_tiles import TileCandidates, reading_tiles

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
IGNORED = -100
"""The label of a position that is not scored."""


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

    Where both are read, the input comes times the logits' scale over the sampling temperature: the head's gradient
    is with respect to that.

    Only forwards through TRL's fused head can be read for candidates: it sees the tiles that head works through.
    """

    def __init__(self, model: nn.Module, needs: frozenset[str], num_candidates: int) -> None:
        unknown = needs - {"hidden", "candidates"}
        if unknown:
            raise ValueError(
                f"the forward pass cannot supply {sorted(unknown)}; it has 'hidden' and 'candidates'"
            )
        self._needs = needs
        self._num_candidates = num_candidates
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
                with probe._reading(kwargs.get("labels")) as tiles:
                    outputs = inner(*args, **kwargs)
            finally:
                handle.remove()
            probe._take(seen[-1].detach(), tiles)
            return outputs

        model.forward = types.MethodType(forward, model)

    def _reading(self, labels: Tensor | None) -> AbstractContextManager[TileCandidates | None]:
        if "candidates" not in self._needs:
            return nullcontext()
        if labels is None:
            raise RuntimeError("ForwardProbe: candidates are read from a fused head, which wants `labels`")
        return reading_tiles((labels[:, 1:] != IGNORED).reshape(-1), self._num_candidates)

    def _take(self, hidden: Tensor, tiles: TileCandidates | None) -> None:
        actions = self._actions
        if actions is None:
            raise RuntimeError("ForwardProbe: a forward was read outside `taking()`")
        # Position t-1 predicts token t, so the T completion tokens belong to the T positions before the last.
        batch, length = actions.shape
        self._taken = {"hidden": hidden[:, -length - 1 : -1]} if "hidden" in self._needs else {}
        if tiles is not None:
            if "hidden" in self._taken:  # so that the head times it is the logits of the loss
                self._taken["hidden"] = self._taken["hidden"] * tiles.slope
            ids, logits = (part.view(batch, -1, part.size(-1))[:, -length:] for part in tiles.result())
            self._taken |= {"candidate_ids": ids, "candidate_logits": logits}

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
