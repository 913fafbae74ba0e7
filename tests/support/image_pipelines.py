"""Tiny pipelines of diffusers with random weights: text encoders that read letters, an autoencoder, a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

LETTERS = [chr(i) for i in range(97, 123)]
TOKENS = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]


def clip_tokenizer(place: Path) -> Any:
    from transformers import CLIPTokenizer

    place.mkdir(parents=True, exist_ok=True)
    (place / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(TOKENS)}))
    (place / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(place / "vocab.json"), str(place / "merges.txt"), model_max_length=16)


def clip_text_config(**changes: Any) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(TOKENS), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=16, bos_token_id=len(TOKENS) - 2, eos_token_id=len(TOKENS) - 1,
        pad_token_id=len(TOKENS) - 1, **changes,
    )  # fmt: skip


def autoencoder(*, quant: bool, **changes: Any) -> Any:
    """Halves the sides of an image of 16 pixels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(4, 4), norm_num_groups=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1, sample_size=16, use_quant_conv=quant, use_post_quant_conv=quant, **changes,
    )  # fmt: skip


def sd3(place: Path) -> Path:
    """Two CLIP encoders, no T5."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(quant=False, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=CLIPTextModelWithProjection(clip_text_config()),
        tokenizer=clip_tokenizer(place / "words"),
        text_encoder_2=CLIPTextModelWithProjection(clip_text_config()),
        tokenizer_2=clip_tokenizer(place / "words"),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.save_pretrained(place / "whole")
    return place / "whole"


def unet(place: Path, *, prediction: str = "epsilon", **scheduled: Any) -> Path:
    """Of the kind of Stable Diffusion 1.5: a UNet of two blocks, a schedule of a thousand steps."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    scheduler = PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True, steps_offset=1,
        prediction_type=prediction, **scheduled,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        unet=network,
        scheduler=scheduler,
        vae=autoencoder(quant=True, scaling_factor=0.18215),
        text_encoder=CLIPTextModel(clip_text_config()),
        tokenizer=clip_tokenizer(place / "words"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(place / "whole")
    return place / "whole"


def flux(place: Path, *, dynamic: bool = True, embeds: bool = True) -> Path:
    """One block of each kind; CLIP, and a T5 of letters."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5Config, T5EncoderModel

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=embeds,
    )  # fmt: skip
    words = T5Config(
        vocab_size=len(TOKENS), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, dropout_rate=0.0,
        pad_token_id=len(TOKENS) - 1, eos_token_id=len(TOKENS) - 1,
    )  # fmt: skip
    pipeline = FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic),
        vae=autoencoder(quant=False, shift_factor=0.1, scaling_factor=0.4),
        text_encoder=CLIPTextModel(clip_text_config()),
        tokenizer=clip_tokenizer(place / "words"),
        text_encoder_2=T5EncoderModel(words),
        tokenizer_2=t5_tokenizer(),
    )
    pipeline.save_pretrained(place / "whole")
    return place / "whole"


def t5_tokenizer() -> Any:
    """Words of letters, without a file of SentencePiece."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<|endoftext|>", eos_token="<|endoftext|>", model_max_length=16
    )
