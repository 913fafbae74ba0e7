"""What was trained on images, as diffusers reads it: whole pipelines and adapters, of every kind of network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from image_pipelines import flux, sd3, unet
from peft import LoraConfig
from torch.testing import assert_close

from posttrain import trainers
from posttrain.cli import main
from posttrain.rollout.flow.diffusers_flow import READERS, load_pipeline
from posttrain.run.exporting_images import write_images_model
from posttrain.run.saved_weights import ExportFault

pytestmark = pytest.mark.flow
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
LIGHT, DARK = [[220] * 16] * 16, [[20] * 16] * 16
PAIR = {"prompt": "a cat", "chosen_image": LIGHT, "rejected_image": DARK}
MAKERS: dict[str, Any] = {
    "StableDiffusionPipeline": (unet, {"times": "ddpm", "error": "epsilon"}),
    "StableDiffusion3Pipeline": (sd3, {}),
    "FluxPipeline": (flux, {}),
}


@pytest.fixture(scope="module", params=MAKERS)
def begun(request, tmp_path_factory) -> tuple[str, Path]:
    """Class of a pipeline, and its folder."""
    return request.param, MAKERS[request.param][0](tmp_path_factory.mktemp(request.param))


def trained(name: str, folder: Path, place: Path, **named: Any) -> Any:
    model, frame = load_pipeline(str(folder), image_size=16)
    config = vars(trainers)["__getattr__"]("DiffusionDPOConfig")(
        output_dir=str(place), use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, max_steps=1,
        per_device_train_batch_size=2, learning_rate=0.5, optim="sgd", beta=2000.0, max_grad_norm=0.0,
        **MAKERS[name][1],
    )  # fmt: skip
    make = vars(trainers)["__getattr__"]("DiffusionDPOTrainer")
    made = make(model, config, Dataset.from_list([PAIR] * 2), frame=frame, **named)
    made.train()
    made.save_model(str(place / "model"))
    return made


def velocity(model: Any, frame: Any) -> torch.Tensor:
    latents = torch.randn(1, *frame.latent_shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model(latents, torch.tensor([0.6]), **frame.read_prompts(["a cat"]))


@pytest.mark.parametrize("adapter", [False, True], ids=["whole", "adapter"])
def test_a_pipeline_of_diffusers_loads_what_was_trained(adapter, begun, tmp_path):
    import diffusers

    name, folder = begun
    lora = LoraConfig(r=2, lora_alpha=6, target_modules=TARGETS, init_lora_weights="gaussian")
    made = trained(name, folder, tmp_path, **({"peft_config": lora} if adapter else {}))
    said = write_images_model(tmp_path / "model", tmp_path / "out", merge=False, dtype="auto")
    assert name in said
    kind: Any = getattr(diffusers, name)
    if name == "StableDiffusion3Pipeline":
        absent: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None}
        assert adapter or "(..., text_encoder_3=None, tokenizer_3=None)" in said
    else:
        absent = {}
    read = kind.from_pretrained(str(folder if adapter else tmp_path / "out"), **absent)
    if adapter:
        read.load_lora_weights(str(tmp_path / "out"))
    mine = velocity(made.model.eval(), made.frame)
    assert_close(velocity(READERS[name][0](read).eval(), made.frame), mine, atol=1e-5, rtol=1e-4)
    assert (velocity(load_pipeline(str(folder), image_size=16)[0], made.frame) - mine).abs().max() > 1e-4
    if adapter:
        write_images_model(tmp_path / "model", tmp_path / "merged", merge=True, dtype="auto")
        merged = kind.from_pretrained(str(tmp_path / "merged"), **absent)
        assert_close(velocity(READERS[name][0](merged).eval(), made.frame), mine, atol=1e-5, rtol=1e-4)
    else:
        with pytest.raises(ExportFault, match="is no adapter"):
            write_images_model(tmp_path / "model", tmp_path / "not", merge=True, dtype="auto")


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    """A UNet's adapter: planned, trained, looked at, exported from its checkpoint, and read by diffusers."""
    from diffusers import StableDiffusionPipeline

    monkeypatch.chdir(tmp_path)
    unet(Path("base"))
    Path("pairs.jsonl").write_text("".join(json.dumps(PAIR) + "\n" for _ in range(4)))
    recipe = {
        "method": "diffusion_dpo",
        "model": {"path": "base/whole", "peft": {"r": 2, "target_modules": TARGETS}},
        "data": {"path": "pairs.jsonl", "eval": {"path": "pairs.jsonl", "limit": 2}},
        "objective": {"times": "ddpm", "error": "epsilon", "sample_steps": 2},
        "train": {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True},
        "output": {"name": "pairs", "save_steps": 1, "report_to": []},
    }
    Path("r.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "r.yaml"]) == 0
    assert "data:image/png" in Path("runs/pairs/report.html").read_text()
    capsys.readouterr()
    assert main(["export", "runs/pairs", "--out", "lora", "--checkpoint", "1"]) == 0
    assert (
        "StableDiffusionPipeline.from_pretrained('base/whole').load_lora_weights reads it"
        in capsys.readouterr().out
    )
    pipeline: Any = StableDiffusionPipeline.from_pretrained("base/whole")
    pipeline.load_lora_weights("lora")
    assert pipeline.get_active_adapters()
    assert main(["export", "runs/pairs", "--out", "whole", "--merge", "--dtype", "float16"]) == 0
    again: Any = StableDiffusionPipeline.from_pretrained("whole", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    again.set_progress_bar_config(disable=True)
    (image,) = again("a cat", num_inference_steps=1, height=16, width=16).images
    assert image.size == (16, 16)
