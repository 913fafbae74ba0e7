"""The padded layout: rows are scored through TRL's own forward with its fused LM head.

Objectives do not know this file. What they ask for beyond log-probs (`Objective.needs`) is taken from the same
forward: the hidden states that feed the LM head, and the best candidate tokens of each position, found in the tiles
of logits the log-probs are made of, so that the (B, T, V) logits never exist.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from posttrain.trainers.forward.base import LOGPROBS_ONLY, Rows, Scored, Wanted
from posttrain.trainers.forward.head_tiles import TileCandidates, reading_tiles

IGNORED = -100
"""The label of a position that is not scored."""


def loss_mask(inputs: Mapping[str, Any]) -> Tensor:
    """Completion tokens that take part in the loss: tools' output and masked truncations excluded. (B, T)."""
    mask = inputs["completion_mask"]
    return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask


class PaddedScorer:
    """TRL's layout: every row padded to the longest prompt and the longest completion, scored by TRL's own forward.

    forward  TRL's `_get_per_token_logps_and_entropies`
    probe    reads what the objective needs out of that forward; None where it needs nothing
    """

    def __init__(self, forward: Callable[..., Any], probe: ForwardProbe | None = None) -> None:
        self._forward = forward
        self._probe = probe

    def score(self, model: Any, rows: Rows, wanted: Wanted = LOGPROBS_ONLY) -> Scored:
        ids, mask = rows.joined
        probe = self._probe if wanted.for_method else None
        with nullcontext({}) if probe is None else probe.taking(rows.completion_ids) as outputs:
            logprobs, entropy, aux_loss = self._forward(
                model,
                ids,
                mask,
                rows.completion_ids.size(1),
                batch_size=wanted.rows_at_once,
                compute_entropy=wanted.entropy,
                compute_aux_loss=wanted.aux_loss,
                **rows.extras,
            )
        return Scored(logprobs, entropy, aux_loss, outputs)


class ForwardProbe:
    """Reads the LM head's input, and the candidates it ranks highest, out of a running forward pass.

    Where both are read, the input comes times the logits' scale over the sampling temperature: the head's gradient
    is with respect to that.

    Only forwards through TRL's fused head can be read for candidates: it sees the tiles that head works through.
    """

    def __init__(self, model: nn.Module, needs: frozenset[str], num_candidates: int) -> None:
        unknown = needs - {"hidden", "trunk", "candidates"}
        if unknown:
            raise ValueError(
                f"the forward pass cannot supply {sorted(unknown)}; it has 'hidden', 'trunk' and 'candidates'"
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
            probe._take(seen[-1], tiles)
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
        states = hidden[:, -length - 1 : -1]
        self._taken = {"trunk": states} if "trunk" in self._needs else {}
        if "hidden" in self._needs:
            self._taken["hidden"] = states.detach()
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
