"""Memory that runs on images take on a CPU, against what `posttrain plan` says they will.

    python eval/memory/images.py [--cases unet_dpo_small ...]

As measure.py, whose child, figures and table these are: a recipe in a process of its own, with a pipeline of random
weights that is written to a temporary folder. Needs the extra flow (diffusers); no network.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from measure import follow, table

WORDS = ["<|startoftext|>", "<|endoftext|>", *(f"{letter}</w>" for letter in "abcdefgh"), *"abcdefgh"]


@dataclass(frozen=True)
class ImageCase:
    """`width` of the network's narrowest part, `side` of its latents; rows: per_device_train_batch_size."""

    kind: str
    method: str
    width: int
    side: int
    rows: int
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)


LORA: dict[str, Any] = {"peft": {"r": 8, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}}
CASES = {
    "unet_dpo_small": ImageCase("unet", "diffusion_dpo", 64, 32, 2),
    "unet_dpo_mid": ImageCase("unet", "diffusion_dpo", 96, 48, 2),
    "unet_dpo_mid_lora": ImageCase("unet", "diffusion_dpo", 96, 48, 2, model=LORA),
    "sd3_guard_small": ImageCase("sd3", "grpo_guard", 256, 32, 2),
    "sd3_guard_mid": ImageCase("sd3", "grpo_guard", 512, 48, 2),
    "sd3_guard_mid_lora": ImageCase("sd3", "grpo_guard", 512, 48, 2, model=LORA),
}


def tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def words_config() -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=64, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip


def autoencoder(channels: int) -> Any:
    """Sides by eight, as Stable Diffusion's, and narrow."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=channels, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        shift_factor=0.0, scaling_factor=1.0,
    )  # fmt: skip


def write_pipeline(case: ImageCase, folder: Path) -> None:
    import diffusers
    import torch
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    words = tokenizer(folder / "words")
    if case.kind == "unet":
        w = case.width
        network = diffusers.UNet2DConditionModel(
            sample_size=case.side, block_out_channels=(w, 2 * w, 2 * w), layers_per_block=2, cross_attention_dim=64,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        pipeline: Any = diffusers.StableDiffusionPipeline(
            unet=network, vae=autoencoder(4), text_encoder=CLIPTextModel(words_config()), tokenizer=words,
            scheduler=diffusers.PNDMScheduler(
                beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True, steps_offset=1
            ),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    else:
        transformer = diffusers.SD3Transformer2DModel(
            sample_size=case.side, patch_size=2, in_channels=16, out_channels=16, num_layers=8,
            attention_head_dim=64, num_attention_heads=case.width // 64, joint_attention_dim=128,
            caption_projection_dim=case.width, pooled_projection_dim=128, pos_embed_max_size=case.side // 2,
        )  # fmt: skip
        pipeline = diffusers.StableDiffusion3Pipeline(
            transformer=transformer, vae=autoencoder(16),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            text_encoder=CLIPTextModelWithProjection(words_config()), tokenizer=words,
            text_encoder_2=CLIPTextModelWithProjection(words_config()), tokenizer_2=words,
            text_encoder_3=None, tokenizer_3=None,
        )  # fmt: skip
    pipeline.save_pretrained(folder / "whole")


def write_recipe(name: str, folder: Path) -> Path:
    import yaml

    case = CASES[name]
    light, dark = [[[220] * 32] * 32, [[20] * 32] * 32]
    rows = [{"prompt": word, "chosen_image": light, "rejected_image": dark} for word in "abcdefgh"]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rewarded = case.method != "diffusion_dpo"
    recipe: dict[str, Any] = {
        "method": case.method,
        "model": {"path": str(folder / "whole"), **case.model},
        "data": {"path": str(folder / "rows.jsonl")},
        "train": {"max_steps": 2, "per_device_train_batch_size": case.rows, "use_cpu": True, **case.train},
        "output": {"name": name, "dir": str(folder / "runs"), "report_to": []},
    }
    if rewarded:
        recipe["rewards"] = [{"name": "image_statistic"}]
        recipe["rollout"] = {"group_size": case.rows, "denoising_steps": 3, "sampler_rows": case.rows}
    else:
        recipe["objective"] = {"times": "ddpm", "error": "epsilon"}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def measure_images(name: str) -> dict[str, Any]:
    from posttrain.recipe import load_recipe
    from posttrain.run.plan import make_plan

    child = str(Path(__file__).with_name("measure.py"))
    with tempfile.TemporaryDirectory(prefix="posttrain-images-") as made:
        folder, result = Path(made), Path(made) / "result.json"
        # in a process of its own: what it takes is no run's
        subprocess.run([sys.executable, __file__, "--write", name, made], check=True, capture_output=True)
        recipe = write_recipe(name, folder)
        plan = make_plan(load_recipe(str(recipe)))
        plan.require()
        assert plan.memory is not None
        root = str(Path(__file__).resolve().parent.parent.parent)
        environment = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}
        began = time.monotonic()
        with (folder / "log.txt").open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, child, "--child", str(result), "train", str(recipe)],
                stdout=stream, stderr=subprocess.STDOUT, env=environment,
            )  # fmt: skip
            workers = follow(process)
        if process.returncode != 0 or not result.is_file():
            tail = (folder / "log.txt").read_text(errors="replace")[-2000:]
            return {"case": name, "failed": process.returncode, "log": tail}
        found = json.loads(result.read_text())
    rows = {row: round(size) for row, size in plan.memory.rows()}
    measured = found["trainer"] + sum(workers.values())
    return {
        "case": name,
        "hardware": platform.processor() or platform.machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python eval/memory/images.py --cases {name}",
        "seconds": round(time.monotonic() - began, 1),
        "measured": measured,
        "estimated": rows["peak"],
        "ratio": round(rows["peak"] / measured, 3),
        "workers": sorted(workers.values()),
        **found,
        "estimate": rows,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="*", choices=list(CASES), metavar="CASE", help=", ".join(CASES))
    lines = []
    for name in parser.parse_args().cases or list(CASES):
        lines.append(measure_images(name))
        print(json.dumps(lines[-1]), flush=True)
    print(table(lines), file=sys.stderr)
    return 1 if any("failed" in line for line in lines) else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write_pipeline(CASES[sys.argv[2]], Path(sys.argv[3]))
    else:
        sys.exit(main())
