"""The rewards `clip_score` and `pickscore` in use: a frozen CLIP model that compares images with their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from posttrain.rewards.image_model_reward import CLIP_SCORE, ImageModelReward
from posttrain.rollout.adapter_base import ModelFault


def image_text_scores(images: Tensor, texts: Tensor, logit_scale: Tensor, kind: str, scale: float) -> Tensor:
    """Of B images and their prompts, embeddings (B, D) each, of any length. (B,), float32."""
    cosine = torch.cosine_similarity(images.float(), texts.float(), dim=-1)
    if kind == CLIP_SCORE:
        return scale * cosine.clamp(min=0)
    return scale * logit_scale.float().exp() * cosine


class ClipScorer:
    """Raises ModelFault where the folder holds no CLIP model, or no processor."""

    def __init__(self, spec: ImageModelReward, device: Any) -> None:
        self.spec, self.device = spec, torch.device(spec.device or device)
        try:
            model: Any = CLIPModel.from_pretrained(spec.folder)
            self.processor: Any = CLIPProcessor.from_pretrained(spec.processor)
        except (OSError, ValueError) as error:
            raise ModelFault(f"reward {spec.title!r}: {str(error).strip().splitlines()[0]}") from None
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.longest = int(model.config.text_config.max_position_embeddings)

    @torch.no_grad()
    def scores(self, images: Sequence[Any], prompts: Sequence[str]) -> list[float]:
        """One an image."""
        found: list[float] = []
        for start in range(0, len(images), self.spec.batch_size):
            some = slice(start, start + self.spec.batch_size)
            found += self._of_batch([image.convert("RGB") for image in images[some]], list(prompts[some]))
        return found

    def _of_batch(self, images: list[Any], prompts: list[str]) -> list[float]:
        texts = list(dict.fromkeys(prompts))
        read = self.processor(
            text=texts,
            images=images,
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=self.longest,
        ).to(self.device)
        made = self.model(**read)
        rows = torch.tensor([texts.index(prompt) for prompt in prompts], device=self.device)
        scores = image_text_scores(
            made.image_embeds, made.text_embeds[rows], self.model.logit_scale, self.spec.kind, self.spec.scale
        )
        return scores.tolist()
