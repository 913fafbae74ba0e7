"""Terms of a likelihood estimate on a rollout's canvases: noise that no rank or padding can change, and the passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from posttrain.objectives.masked_base import DiffusionObjective, Level
from posttrain.ops.masked_elbo import Noise, masked_logprobs
from posttrain.rollout.base import stable_seed
from posttrain.rollout.masked.predictor import MaskPredictor
from posttrain.rollout.masked.response_canvas import Canvas


def draw_noise(
    objective: DiffusionObjective, canvas: Canvas, rows: Tensor, *, iterations: int, seed: int, step: int
) -> Noise:
    """Noise of every row from a generator of its own, keyed by its place in the global rollout.

    A row's noise depends on seed, step, place and its own lengths alone: on no other row, no padding, no number of
    ranks, and a resumed run draws it again. Drawn on the CPU, where it is the same on every kind of device.
    """
    device, width = canvas.tokens.device, canvas.scored.shape[1]
    lengths = canvas.scored.sum(1).tolist()
    prompts = canvas.present[:, : canvas.prompt_length].sum(1).tolist()
    drawn: list[Noise] = []
    for row, length, prompt in zip(rows.tolist(), lengths, prompts, strict=True):
        generator = torch.Generator().manual_seed(stable_seed(seed, "noise", step, row))
        scored = torch.ones(1, length, dtype=torch.bool)
        present = torch.ones(1, prompt, dtype=torch.bool)
        noise = objective.draw_noise(scored, present, iterations, generator)
        hidden = noise.prompt_masks
        if hidden is not None:
            hidden = pad(hidden, (canvas.prompt_length - prompt, 0))
        drawn.append(Noise(pad(noise.masks, (0, width - length)), noise.weights, hidden))
    prompt_masks = [noise.prompt_masks for noise in drawn if noise.prompt_masks is not None]
    return Noise(
        torch.cat([noise.masks for noise in drawn]).to(device),
        torch.cat([noise.weights for noise in drawn]).to(device, torch.float32),
        torch.cat(prompt_masks).to(device) if prompt_masks else None,
    )


def pass_terms(predictor: MaskPredictor, canvas: Canvas, noise: Noise, j: int, level: Level) -> Tensor:
    """The term of pass j alone, with gradient if the model has any. (B, 1) or (B, 1, L)."""
    logprobs = masked_logprobs(
        predictor.logits_fn(canvas.present, slice(canvas.prompt_length, None)),
        canvas.tokens,
        canvas.prompt_length,
        noise.passes(j, j + 1),
        mask_id=predictor.mask_id,
        completion_only=True,
    )
    return (logprobs.sum(-1) if level == "sequence" else logprobs).unsqueeze(1)


@torch.no_grad()
def all_terms(
    predictor: MaskPredictor, canvas: Canvas, noise: Noise, level: Level, *, rows_at_once: int
) -> Tensor:
    """Terms of all passes without gradient, in parts of `rows_at_once` rows. (B, n) or (B, n, L), float32."""
    parts = []
    for start in range(0, canvas.tokens.shape[0], rows_at_once):
        part = canvas.rows(start, start + rows_at_once)
        own = rows_of(noise, start, start + rows_at_once)
        terms = [pass_terms(predictor, part, own, j, level) for j in range(noise.num_passes)]
        parts.append(torch.cat(terms, dim=1))
    return torch.cat(parts)


def rows_of(noise: Noise, start: int, stop: int) -> Noise:
    prompt = None if noise.prompt_masks is None else noise.prompt_masks[start:stop]
    return Noise(noise.masks[start:stop], noise.weights[start:stop], prompt)


# In TRL's buffer a rollout is a dict of tensors whose first axis is the response: it shuffles and splits them.


def to_buffer(canvas: Canvas, noise: Noise) -> dict[str, Tensor]:
    buffer = {
        "canvas_ids": canvas.tokens,
        "canvas_present": canvas.present,
        "canvas_scored": canvas.scored,
        "noise_masks": noise.masks,
        "noise_weights": noise.weights,
    }
    return buffer if noise.prompt_masks is None else buffer | {"noise_prompt_masks": noise.prompt_masks}


def from_buffer(inputs: dict[str, Any]) -> tuple[Canvas, Noise]:
    canvas = Canvas(inputs["canvas_ids"], inputs["canvas_present"], inputs["canvas_scored"])
    noise = Noise(inputs["noise_masks"], inputs["noise_weights"], inputs.get("noise_prompt_masks"))
    return canvas, noise
