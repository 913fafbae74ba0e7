"""The memory of image methods: what a block keeps against autograd's own hooks, parameters, parts of the estimate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from posttrain.planning.image_blocks import FLUX_TOKENS, SD3_TOKENS, blocks_of, is_target
from posttrain.planning.image_memory import estimate_images
from posttrain.planning.image_shapes import read_image_shape
from posttrain.planning.memory import Launch
from posttrain.recipe import load_recipe

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def bytes_saved(model: nn.Module, forward: Any) -> int:
    """Of distinct storages that autograd saves, weights left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}
    held = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = forward().square().mean()
    del loss
    return sum(seen.values())


SD3 = {
    "patch_size": 2, "in_channels": 16, "num_attention_heads": 4, "joint_attention_dim": 32,
    "pooled_projection_dim": 32, "caption_projection_dim": 64, "out_channels": 16,
}  # fmt: skip
FLUX = {"in_channels": 64, "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 16}
UNET = {
    "in_channels": 4, "out_channels": 4, "cross_attention_dim": 32, "attention_head_dim": 4, "norm_num_groups": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
SIZES: dict[str, tuple[str, dict[str, Any], int]] = {
    "sd3 small": ("sd3", {**SD3, "sample_size": 32, "num_layers": 3, "attention_head_dim": 16}, 32),
    "sd3.5 larger": (
        "sd3",
        {**SD3, "sample_size": 48, "num_layers": 4, "attention_head_dim": 32, "caption_projection_dim": 128,
         "dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
        48,
    ),
    "flux small": (
        "flux",
        {**FLUX, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 32, "axes_dims_rope": (8, 12, 12)},
        32,
    ),
    "flux larger": (
        "flux",
        {**FLUX, "num_layers": 2, "num_single_layers": 4, "attention_head_dim": 64, "axes_dims_rope": (16, 24, 24)},
        48,
    ),
    "unet small": ("unet", {**UNET, "sample_size": 16, "block_out_channels": [16, 32, 32], "layers_per_block": 1}, 16),
    "unet larger": ("unet", {**UNET, "sample_size": 32, "block_out_channels": [32, 64, 64], "layers_per_block": 2}, 32),
}  # fmt: skip


def network(kind: str, config: dict[str, Any]) -> Any:
    import diffusers

    names = {"sd3": "SD3Transformer2DModel", "flux": "FluxTransformer2DModel", "unet": "UNet2DConditionModel"}
    more = {"pos_embed_max_size": config["sample_size"] // 2} if kind == "sd3" else {}
    return getattr(diffusers, names[kind])(**{**config, **more})


def forward_of(kind: str, model: Any, config: dict[str, Any], side: int, rows: int) -> Any:
    times = torch.full((rows,), 0.5)
    if kind == "sd3":
        words, pooled = torch.randn(rows, SD3_TOKENS, 32), torch.randn(rows, 32)
        return lambda: model(torch.randn(rows, 16, side, side), words, pooled, times).sample
    if kind == "flux":
        words, pooled, patches = torch.randn(rows, FLUX_TOKENS, 32), torch.randn(rows, 16), (side // 2) ** 2
        return lambda: (
            model(
                torch.randn(rows, patches, 64),
                words,
                pooled,
                times,
                torch.zeros(patches, 3),
                torch.zeros(FLUX_TOKENS, 3),
            ).sample
        )
    return lambda: model(torch.randn(rows, 4, side, side), times, torch.randn(rows, 77, 32)).sample


@pytest.mark.flow
@pytest.mark.parametrize("adapter", [False, True], ids=["whole", "adapter"])
@pytest.mark.parametrize("name", SIZES)
def test_blocks_keep_what_autograd_saves(name, adapter):
    kind, config, side = SIZES[name]
    torch.manual_seed(0)
    model = network(kind, config)
    targets = None
    if adapter:
        targets = frozenset(TARGETS)
        model = get_peft_model(model, LoraConfig(r=2, target_modules=TARGETS))
    rows = 2
    saved = bytes_saved(model, forward_of(kind, model, config, side, rows))
    blocks = blocks_of(kind, config, side)  # type: ignore[arg-type]
    counted = rows * sum(block.bytes_kept(targets, 4, 4) for block in blocks)
    assert counted == pytest.approx(saved, rel=0.1), counted / saved
    if adapter:
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert sum(block.adapter_parameters(2, frozenset(TARGETS)) for block in blocks) == parameters


def test_targets_are_read_as_peft_reads_them():
    assert is_target("attn.to_q", frozenset({"to_q"}))
    assert is_target("to_q", frozenset({"to_q"}))
    assert not is_target("attn.add_to_q", frozenset({"to_q"}))


GRPO: dict[str, Any] = {
    "method": "flow_grpo",
    "model": {"path": "stabilityai/stable-diffusion-3.5-medium", "image_size": 512, "dtype": "bfloat16"},
    "data": {"path": "prompts.jsonl"},
    "rewards": [{"name": "jpeg_size"}],
    "rollout": {"group_size": 4, "cfg_scale": 4.5},
    "train": {"max_steps": 1, "per_device_train_batch_size": 4},
}


def memory_of(tmp_path: Path, **changes: Any) -> Any:
    import yaml

    sections: dict[str, Any] = {**GRPO}
    for name, value in changes.items():
        sections[name] = {**sections[name], **value} if isinstance(value, dict) else value
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in sections.items() if value is not None}))
    recipe: Any = load_recipe(path)
    shape = read_image_shape(recipe.model)
    assert shape is not None
    return estimate_images(recipe, shape, Launch()), shape


def test_parts_of_the_estimate_by_hand(tmp_path):
    plain, shape = memory_of(tmp_path)
    assert shape.latents == 16 * 64 * 64
    assert plain.weights == 2 * (2_469_663_936 + 5_664_440_483)
    assert plain.gradients == 2 * 2_469_663_936
    assert plain.optimizer == 4 * 2_469_663_936  # AdamW's moments follow bfloat16 weights
    assert plain.reference == 0
    # four images, 10 steps: 11 latents and 10 means, and one prompt's states a row, in float32
    assert plain.rollout == 4 * 4 * (21 * shape.latents + 333 * 4096 + 2048)
    half, _ = memory_of(tmp_path, rollout={"cfg_scale": 1.0, "group_size": 4})
    assert plain.layers == 2 * half.layers
    assert memory_of(tmp_path, train={"beta": 0.1})[0].reference == 2 * 2_469_663_936
    lora, _ = memory_of(tmp_path, model={"peft": {"r": 32, "target_modules": TARGETS}}, train={"beta": 0.1})
    # 24 layers, of which 13 have a second attention: four maps each
    adapter = 32 * (1536 + 1536) * 4 * (24 + 13)
    assert lora.gradients == 4 * adapter
    assert lora.reference == 0
    assert lora.layers < plain.layers
    checkpointed, _ = memory_of(tmp_path, train={"gradient_checkpointing": True})
    assert checkpointed.layers == 8 * 24 * (32 * 32 + 333) * 1536 * 2


def test_pairs_have_two_rows_and_keep_what_they_train(tmp_path):
    pairs, shape = memory_of(
        tmp_path, method="diffusion_dpo", rewards=None, rollout=None,
        model={"path": "stable-diffusion-v1-5/stable-diffusion-v1-5", "image_size": 512, "dtype": "float32"},
    )  # fmt: skip
    assert shape.latents == 4 * 64 * 64
    assert pairs.reference == pairs.gradients == 4 * 859_520_964
    assert pairs.rollout == 0


@pytest.mark.flow
def test_a_folder_says_its_parameters(tmp_path):
    from image_pipelines import unet

    from posttrain.rollout.flow.diffusers_flow import load_pipeline

    folder = unet(tmp_path)
    recipe = tmp_path / "r.yaml"
    pairs = {name: value for name, value in GRPO.items() if name not in ("rewards", "rollout")}
    recipe.write_text(json.dumps({**pairs, "method": "diffusion_dpo", "model": {"path": str(folder)}}))
    section: Any = load_recipe(recipe).model
    shape, (model, frame) = read_image_shape(section), load_pipeline(str(folder))
    assert shape is not None
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    parts = (frame.pipeline.vae, frame.pipeline.text_encoder)
    assert shape.frozen == sum(p.numel() for part in parts for p in part.parameters())
    assert shape.latents == 4 * 8 * 8


def test_the_small_models_parameters(tmp_path):
    from posttrain.rollout.flow.small_flow import scratch_flow

    model = scratch_flow(image_size=8, channels=3, classes=["a", "b"], hidden_size=16, layers=3)
    path = tmp_path / "r.yaml"
    scratch = {"image_size": 8, "channels": 3, "classes": ["a", "b"], "hidden_size": 16, "layers": 3}
    path.write_text(json.dumps({**GRPO, "model": {"scratch": scratch}}))
    section: Any = load_recipe(path).model
    shape = read_image_shape(section)
    assert shape is not None
    assert shape.parameters == sum(p.numel() for p in model.parameters())
