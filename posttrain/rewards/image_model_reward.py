"""Rewards of images that a CLIP model gives: what a recipe says of them. They are scored where the trainer is, on its
device; no torch here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from posttrain.rewards.hooks import checks_settings, judges_each
from posttrain.rewards.resolve import RewardSpec
from posttrain.rewards.signature import RewardSpecError

CLIP_SCORE, PICKSCORE = "clip_score", "pickscore"


@dataclass(frozen=True)
class ImageModelReward:
    """
    kind        clip_score or pickscore
    folder      folder or hub name of the CLIP model; processor: of its tokenizer and image processor
    scale       what the score is multiplied by
    batch_size  images of one forward
    device      None: the trainer's
    """

    kind: Literal["clip_score", "pickscore"]
    folder: str
    processor: str
    scale: float
    batch_size: int = 16
    device: str | None = None
    weight: float = 1.0
    label: str | None = None

    @property
    def title(self) -> str:
        """The name under which it is logged."""
        return self.label or self.kind

    @classmethod
    def of(cls, spec: RewardSpec) -> ImageModelReward:
        """From the reward as a recipe or Python names it. RewardSpecError without a folder."""
        args = dict(spec.args)
        folder = args.get("folder")
        if not isinstance(folder, str):
            raise RewardSpecError(
                f"reward {spec.name!r} needs args.folder, the folder or hub name of its CLIP model"
            )
        kind: Any = spec.name
        scale = args.get("scale", 2.5 if kind == CLIP_SCORE else 1.0)
        return cls(
            kind, folder, args.get("processor") or folder, float(scale), int(args.get("batch_size", 16)),
            args.get("device"), spec.weight, spec.label,
        )  # fmt: skip


def scored_beside(spec: RewardSpec) -> bool:
    """Whether the trainer scores it, not a worker."""
    return spec.function is None and spec.name in (CLIP_SCORE, PICKSCORE)


def _check_clip(folder: str, batch_size: int = 16, **_: Any) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it is 1 or more")
    place = Path(folder)
    if not place.exists():
        if folder.count("/") != 1 or folder.startswith((".", "/", "~", "runs/")):
            raise ValueError(f"there is no folder {folder!r}; name a CLIP model's folder, or a hub name")
        return
    try:
        kind = json.loads((place / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind != "clip":
        raise ValueError(f"folder {folder!r} holds no CLIP model: its config.json says {kind!r}, not 'clip'")


def _elsewhere(name: str) -> RuntimeError:
    return RuntimeError(
        f"{name} loads a model, so the trainer scores it; name it in a recipe's rewards, or hand its RewardSpec to a "
        "trainer, not to a RewardRunner"
    )


@judges_each
@checks_settings(_check_clip)
def clip_score(
    completions: Sequence[Image.Image],
    *,
    prompts: Sequence[Any],
    folder: str,
    processor: str | None = None,
    scale: float = 2.5,
    batch_size: int = 16,
    device: str | None = None,
    **_: Any,
) -> list[float | None]:
    """scale * max(cos(image, prompt), 0) of a CLIP model's embeddings (CLIPScore, arXiv 2104.08718, without its words
    before the caption). `folder` names the model, `processor` another folder of tokenizer and image processor."""
    raise _elsewhere(CLIP_SCORE)


@judges_each
@checks_settings(_check_clip)
def pickscore(
    completions: Sequence[Image.Image],
    *,
    prompts: Sequence[Any],
    folder: str,
    processor: str | None = None,
    scale: float = 1.0,
    batch_size: int = 16,
    device: str | None = None,
    **_: Any,
) -> list[float | None]:
    """scale * exp(logit_scale) * cos(image, prompt) of a CLIP model trained on preferences (PickScore, arXiv
    2305.01569, eq. 1); Flow-GRPO's release divides it by 26 (scale: 0.03846)."""
    raise _elsewhere(PICKSCORE)
