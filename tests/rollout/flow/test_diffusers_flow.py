"""A tiny Stable Diffusion 3 pipeline out of diffusers: read, sampled, trained with an adapter and whole, read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from image_judges import bright
from image_pipelines import sd3
from peft import LoraConfig
from torch.testing import assert_close

from posttrain.ops.flow_step import sigma_schedule
from posttrain.rollout.adapter_base import ModelFault
from posttrain.rollout.flow.diffusers_flow import load_pipeline
from posttrain.rollout.flow.flow_folder import load_flow
from posttrain.rollout.flow.flow_sampler import guided, sample_plainly
from posttrain.trainers.flow.bindings import GRPOGuardConfig, GRPOGuardTrainer

pytestmark = pytest.mark.flow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return sd3(tmp_path_factory.mktemp("sd3"))


def test_steps_without_noise_are_the_pipelines(folder):
    """Latents of the pipeline's own sampler, with guidance, from the same noise."""
    model, frame = load_pipeline(str(folder))
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    told, none = frame.read_prompts(["a cat", "a dog"]), frame.no_prompts(2)
    with torch.no_grad():
        mine = sample_plainly(guided(model, told, none, 4.5), noise, frame.denoising_times(5))
        theirs = frame.pipeline(
            prompt=["a cat", "a dog"], num_inference_steps=5, guidance_scale=4.5, latents=noise.clone(), height=16,
            width=16, output_type="latent",
        ).images  # fmt: skip
    assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    assert_close(frame.pipeline.scheduler.sigmas.double(), sigma_schedule(5, 3.0), atol=1e-6, rtol=0)


def test_images_go_to_latents_and_back(folder):
    _, frame = load_pipeline(str(folder))
    latents = 0.3 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    images = frame.to_images(latents)
    assert [image.size for image in images] == [(16, 16)] * 2
    assert frame.to_latents(images).shape == (2, 4, 8, 8)
    theirs = frame.pipeline.vae.decode(latents / 1.5 + 0.06).sample
    (first, _) = frame.pipeline.image_processor.postprocess(theirs.detach(), output_type="pil")
    assert first.tobytes() == images[0].tobytes()


def trainer(model: Any, frame: Any, place: Path, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "output_dir": str(place), "use_cpu": True, "report_to": "none", "save_strategy": "no", "logging_steps": 1,
        "disable_tqdm": True, "per_device_train_batch_size": 4, "num_generations": 4, "denoising_steps": 3,
        "cfg_scale": 2.0, "learning_rate": 1e-2, "max_steps": 2, "num_iterations": 2, "beta": 0.01, "clip": 1e-3,
    }  # fmt: skip
    named = {name: changes.pop(name) for name in ("peft_config",) if name in changes}
    rows = Dataset.from_list([{"prompt": "a cat"}, {"prompt": "a dog"}])
    return GRPOGuardTrainer(
        model, [bright], GRPOGuardConfig(**{**settings, **changes}), rows, frame=frame, **named
    )


def velocity_of(model: Any, frame: Any) -> torch.Tensor:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(latents, torch.tensor([0.5]), **frame.read_prompts(["a cat"]))


def test_an_adapter_is_trained_saved_and_read_again(folder, tmp_path):
    model, frame = load_pipeline(str(folder))
    before = velocity_of(model, frame)
    adapter = LoraConfig(
        r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights="gaussian"
    )
    made = trainer(model, frame, tmp_path, peft_config=adapter)
    made.train()
    logs = [entry for entry in made.state.log_history if "loss" in entry]
    assert abs(logs[0]["grpo_guard/log_ratio"]) < 1e-5
    assert logs[1]["grpo_guard/log_ratio_std"] > 0
    made.save_model(str(tmp_path / "model"))
    again, its_frame = load_flow(str(tmp_path / "model"))
    made.model.eval()
    assert_close(velocity_of(again, its_frame), velocity_of(made.model, frame), atol=1e-5, rtol=1e-4)
    assert (velocity_of(again, its_frame) - before).abs().max() > 1e-4


def test_all_weights_are_trained_saved_read_again_and_resumed(folder, tmp_path):
    def fresh() -> Any:
        model, frame = load_pipeline(str(folder))
        return trainer(model, frame, tmp_path, save_strategy="steps", save_steps=1)

    made = fresh()
    made.train()
    made.save_model(str(tmp_path / "model"))
    again, its_frame = load_flow(str(tmp_path / "model"))
    assert_close(velocity_of(again, its_frame), velocity_of(made.model, made.frame), atol=1e-6, rtol=1e-5)
    resumed = fresh()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for one, other in zip(made.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_sizes_that_cannot_be_made_are_refused(folder):
    assert load_pipeline(str(folder), image_size=8)[1].latent_shape == (4, 4, 4)
    with pytest.raises(ModelFault, match="a multiple of 2, at most 16"):
        load_pipeline(str(folder), image_size=9)
