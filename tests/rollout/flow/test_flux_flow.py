"""A tiny Flux pipeline out of diffusers: packing, its own sampler's latents, an adapter, all weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from image_judges import bright
from image_pipelines import flux, sd3
from peft import LoraConfig
from torch.testing import assert_close

from posttrain import trainers
from posttrain.rollout.adapter_base import ModelFault
from posttrain.rollout.flow.diffusers_flow import load_pipeline
from posttrain.rollout.flow.flow_folder import load_flow
from posttrain.rollout.flow.flow_sampler import guided, sample_plainly
from posttrain.rollout.flow.flux_flow import packed, unpacked

pytestmark = pytest.mark.flow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return flux(tmp_path_factory.mktemp("flux"))


def test_latents_are_packed_and_back():
    latents = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    patches = packed(latents)
    assert patches.shape == (2, 6, 12)
    assert patches[0, 1].tolist() == latents[0, :, :2, 2:4].flatten().tolist()
    assert torch.equal(unpacked(patches, 4, 6), latents)


@pytest.mark.parametrize(("dynamic", "embeds"), [(True, True), (False, False)], ids=["dev", "schnell"])
def test_steps_without_noise_are_the_pipelines(dynamic, embeds, folder, tmp_path):
    """Latents of the pipeline's own sampler from the same noise: times, packing, places and the embedded guidance."""
    place = folder if dynamic else flux(tmp_path, dynamic=dynamic, embeds=embeds)
    told_guidance: dict[str, Any] = {"embedded_guidance": 2.0} if embeds else {}
    model, frame = load_pipeline(str(place), image_size=16, **told_guidance)
    frame.pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    told = frame.read_prompts(["a cat", "a dog"])
    with torch.no_grad():
        mine = sample_plainly(guided(model, told, None, 1.0), noise, frame.denoising_times(3))
        theirs = frame.pipeline(
            prompt=["a cat", "a dog"], num_inference_steps=3, guidance_scale=2.0, latents=packed(noise), height=16,
            width=16, output_type="latent",
        ).images  # fmt: skip
    assert_close(packed(mine), theirs, atol=1e-5, rtol=1e-4)
    frame.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "flow_pipeline.json").read_text())
    assert said == {"pipeline": str(place), "image_size": 16, **told_guidance}


def trained(path: Path, place: Path, **changes: Any) -> Any:
    model, frame = load_pipeline(str(path), image_size=16)
    settings: dict[str, Any] = {
        "output_dir": str(place), "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
        "logging_steps": 1, "per_device_train_batch_size": 2, "num_generations": 2, "denoising_steps": 2,
        "learning_rate": 1e-2, "max_steps": 2, "num_iterations": 2, "clip": 1e-2, "trained_share": 1.0,
    }  # fmt: skip
    named = {name: changes.pop(name) for name in ("peft_config",) if name in changes}
    config = vars(trainers)["__getattr__"]("GRPOGuardConfig")(**{**settings, **changes})
    made = vars(trainers)["__getattr__"]("GRPOGuardTrainer")(
        model, [bright], config, Dataset.from_list([{"prompt": "a cat"}]), frame=frame, **named
    )
    made.train()
    return made


@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "whole"])
def test_it_is_trained_saved_and_read_again(adapter, folder, tmp_path):
    lora = LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights="gaussian")
    made = trained(folder, tmp_path, **({"peft_config": lora} if adapter else {}))
    logs = [entry for entry in made.state.log_history if "loss" in entry]
    assert abs(logs[0]["grpo_guard/log_ratio"]) < 1e-5
    assert logs[1]["grpo_guard/log_ratio_std"] > 0
    made.save_model(str(tmp_path / "model"))
    again, frame = load_flow(str(tmp_path / "model"))
    assert frame.latent_shape == (4, 8, 8)
    latents, times, told = torch.randn(1, 4, 8, 8), torch.tensor([0.5]), frame.read_prompts(["a cat"])
    made.model.eval()
    with torch.no_grad():
        assert_close(again(latents, times, **told), made.model(latents, times, **told), atol=1e-5, rtol=1e-4)


def test_what_it_cannot_be_read_with(folder, tmp_path):
    with pytest.raises(ModelFault, match="a multiple of 4"):
        load_pipeline(str(folder), image_size=18)
    with pytest.raises(ModelFault, match="its network embeds no guidance"):
        load_pipeline(str(sd3(tmp_path)), embedded_guidance=2.0)
