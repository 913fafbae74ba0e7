"""A model of images before it is loaded: its kind, its network's config, what it weighs. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.planning.image_blocks import CLIP_TOKENS, FLUX_TOKENS, SD3_TOKENS, Block, Kept, Kind, blocks_of
from posttrain.planning.shapes import count_parameters
from posttrain.recipe.image_sections import FlowModelSection, FlowScratchSection
from posttrain.rollout.adapter_base import BaseMissing, base_of, holds_adapter
from posttrain.rollout.flow.flow_folder import NOISE_MODELS, OWN, SAVED, index_fault, pipeline_of

KINDS: dict[str, tuple[Kind, str]] = {
    "StableDiffusion3Pipeline": ("sd3", "transformer"),
    "FluxPipeline": ("flux", "transformer"),
    "StableDiffusionPipeline": ("unet", "unet"),
}
"""Class of a pipeline -> kind, and the part that is trained."""
_IDLE = ("safety_checker", "image_encoder", "feature_extractor")  # not loaded


@dataclass(frozen=True)
class ImageShape:
    """
    parameters  of the network that is trained
    frozen      of autoencoder and text encoders
    blocks      of the network on latents of one image
    latents     numbers of one image's latents
    told        numbers of one prompt's conditions
    pixels      a side
    decoder     channels of the autoencoder's two widest stages in pixels, the first the image's own
    """

    parameters: int
    frozen: int
    blocks: tuple[Block, ...]
    latents: int
    told: int
    pixels: int
    decoder: tuple[int, int]
    source: str

    def adapter_parameters(self, rank: int, targets: frozenset[str]) -> int:
        return sum(block.adapter_parameters(rank, targets) for block in self.blocks)


_SD3_VAE = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 16}
_PUBLISHED: dict[str, dict[str, Any]] = {
    "stabilityai/stable-diffusion-3.5-medium": {
        "class": "StableDiffusion3Pipeline",
        "parameters": 2_469_663_936,
        "frozen": 5_664_440_483,
        "vae": _SD3_VAE,
        "network": {
            "sample_size": 128, "patch_size": 2, "in_channels": 16, "num_layers": 24, "num_attention_heads": 24,
            "attention_head_dim": 64, "joint_attention_dim": 4096, "pooled_projection_dim": 2048,
            "dual_attention_layers": list(range(13)), "qk_norm": "rms_norm",
        },
    },
    "black-forest-labs/FLUX.1-dev": {
        "class": "FluxPipeline",
        "parameters": 11_901_408_320,
        "frozen": 4_969_190_819,
        "vae": _SD3_VAE,
        "network": {
            "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24,
            "attention_head_dim": 128, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
        },
    },
    "stable-diffusion-v1-5/stable-diffusion-v1-5": {
        "class": "StableDiffusionPipeline",
        "parameters": 859_520_964,
        "frozen": 206_714_343,
        "vae": {"block_out_channels": [128, 256, 512, 512], "latent_channels": 4},
        "network": {
            "sample_size": 64, "in_channels": 4, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2,
            "cross_attention_dim": 768, "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
            "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        },
    },
}  # fmt: skip
"""Configs and counts of pipelines that recipes name, so that a machine without them can plan: parameters of diffusers'
and transformers' classes with these configs; of SD3.5-M with the table of positions that its checkpoint holds."""
_PUBLISHED["runwayml/stable-diffusion-v1-5"] = _PUBLISHED["stable-diffusion-v1-5/stable-diffusion-v1-5"]
_PUBLISHED["CompVis/stable-diffusion-v1-4"] = _PUBLISHED["stable-diffusion-v1-5/stable-diffusion-v1-5"]


def published_fault(path: str, *, noise_models: bool) -> str | None:
    """Why a pipeline of the hub that is known here cannot be trained, or None."""
    if path not in _PUBLISHED:
        return None
    kind = _PUBLISHED[path]["class"]
    scheduler = "PNDMScheduler" if kind in NOISE_MODELS else "FlowMatchEulerDiscreteScheduler"
    index = {"_class_name": kind, "scheduler": ["diffusers", scheduler]}
    return index_fault(path, index, noise_models=noise_models)


def published_noise_model(path: str) -> bool:
    return path in _PUBLISHED and _PUBLISHED[path]["class"] in NOISE_MODELS


def read_image_shape(model: FlowModelSection) -> ImageShape | None:
    """The model's shape, or None where nothing here tells it."""
    if model.scratch is not None:
        return _small(model.scratch.model_dump(), "model.scratch")
    assert model.path is not None
    if model.path in _PUBLISHED and not Path(model.path).is_dir():
        known = _PUBLISHED[model.path]
        kind, _ = KINDS[known["class"]]
        return _shaped(kind, known, model.image_size, "its published config.json")
    folder = Path(model.path)
    config = _json(folder / "config.json")
    if holds_adapter(folder):
        try:
            return read_image_shape(model.model_copy(update={"path": base_of(folder), **_size_of(folder)}))
        except BaseMissing:
            return None
    if config.get("model_type") == OWN:
        return _small(config, str(folder))
    pipeline = pipeline_of(folder)
    if pipeline is None or not pipeline.is_dir():
        return None
    return _from_folder(pipeline, model.image_size or _size_of(folder).get("image_size"))


def _size_of(folder: Path) -> dict[str, Any]:
    size = _json(folder / SAVED).get("image_size")
    return {} if size is None else {"image_size": size}


def _from_folder(folder: Path, image_size: int | None) -> ImageShape | None:
    index = _json(folder / "model_index.json")
    if index.get("_class_name") not in KINDS:
        return None
    kind, part = KINDS[index["_class_name"]]
    parts = [place for place in folder.iterdir() if place.is_dir() and place.name not in (part, *_IDLE)]
    known = {
        "parameters": count_parameters(folder / part) or 0,
        "frozen": sum(count_parameters(place) or 0 for place in parts),
        "vae": _json(folder / "vae" / "config.json"),
        "network": _json(folder / part / "config.json"),
    }
    try:
        return _shaped(kind, known, image_size, str(folder))
    except (KeyError, TypeError, IndexError):  # a config of a form that is not known here
        return None


def _shaped(kind: Kind, known: Mapping[str, Any], image_size: int | None, source: str) -> ImageShape:
    network, widths = known["network"], known["vae"]["block_out_channels"]
    factor = 2 ** (len(widths) - 1)
    pixels = image_size or (128 if kind == "flux" else network["sample_size"]) * factor
    side = pixels // factor
    channels = network["in_channels"] // (4 if kind == "flux" else 1)
    told = {
        "sd3": lambda: SD3_TOKENS * network["joint_attention_dim"] + network["pooled_projection_dim"],
        "flux": lambda: FLUX_TOKENS * network["joint_attention_dim"] + network["pooled_projection_dim"],
        "unet": lambda: CLIP_TOKENS * network["cross_attention_dim"],
    }[kind]()
    return ImageShape(
        parameters=known["parameters"],
        frozen=known["frozen"],
        blocks=tuple(blocks_of(kind, network, side)),
        latents=channels * side**2,
        told=told,
        pixels=pixels,
        decoder=(widths[0], widths[min(1, len(widths) - 1)]),
        source=source,
    )


def _small(config: Mapping[str, Any], source: str) -> ImageShape:
    """Of rollout.flow.small_flow.FlowMLP."""
    sizes = {name: field.default for name, field in FlowScratchSection.model_fields.items()} | dict(config)
    h, pixels = sizes["hidden_size"], sizes["channels"] * sizes["image_size"] ** 2
    layer = 2 * (h * 2 * h) + 2 * h * h + 2 * h + 2 * h + h  # told, wide, back, with their biases
    ends = (pixels * h + h) + 2 * (h * h + h) + (len(sizes["classes"]) + 1) * h + (h * pixels + pixels)
    kept = (
        *(Kept(2 * h, wide=True), Kept(h, whole=True)),  # the norm's two, and what the wide map reads
        *(Kept(2 * h), Kept(2 * h, of=("back",)), Kept(h), Kept(h, of=("told",)), Kept(h, whole=True)),
    )
    linears = {"told": (h, 2 * h), "wide": (h, 2 * h), "back": (2 * h, h)}
    return ImageShape(
        parameters=sizes["layers"] * layer + ends,
        frozen=0,
        blocks=tuple(Block(1, kept, linears, h) for _ in range(sizes["layers"])),
        latents=pixels,
        told=1,
        pixels=sizes["image_size"],
        decoder=(0, 0),
        source=source,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
