"""A tiny pipeline of the kind of Stable Diffusion 1.5: its points on the line, DDIM, pairs, rounds, adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from image_judges import bright
from image_pipelines import unet
from peft import LoraConfig
from torch.testing import assert_close

from posttrain import trainers
from posttrain.rollout.flow.diffusers_flow import load_pipeline
from posttrain.rollout.flow.flow_folder import load_flow
from posttrain.rollout.flow.flow_sampler import guided, sample_plainly
from posttrain.rollout.flow.row_noise import row_noise, row_uniform

pytestmark = pytest.mark.flow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return unet(tmp_path_factory.mktemp("unet"))


@pytest.fixture(scope="module")
def folder_of_v(tmp_path_factory) -> Path:
    return unet(tmp_path_factory.mktemp("unet-v"), prediction="v_prediction")


@pytest.fixture(params=["epsilon", "v_prediction"])
def either(request, folder, folder_of_v) -> Path:
    return folder if request.param == "epsilon" else folder_of_v


def test_images_are_made_as_ddim_makes_them(either):
    """Latents of the pipeline with DDIM's scheduler, guidance among them, from the same noise."""
    from diffusers import DDIMScheduler

    model, frame = load_pipeline(str(either))
    pipeline = frame.pipeline
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    told, none = frame.read_prompts(["a cat", "a dog"]), frame.no_prompts(2)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        mine = sample_plainly(guided(model, told, none, 7.5), noise, frame.denoising_times(4))
        theirs = pipeline(
            prompt=["a cat", "a dog"], num_inference_steps=4, guidance_scale=7.5, latents=noise.clone(), height=16,
            width=16, output_type="latent",
        ).images  # fmt: skip
    assert_close(mine, theirs, atol=2e-4, rtol=1e-3)


def test_more_steps_than_the_schedule_has_are_refused(folder):
    _, frame = load_pipeline(str(folder))
    assert len(frame.denoising_times(1000).times) == 1001
    with pytest.raises(ValueError, match="1001 denoising steps, and its schedule has 1000"):
        frame.denoising_times(1001)


PLAIN: dict[str, Any] = {
    "use_cpu": True, "report_to": "none", "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True,
    "per_device_train_batch_size": 2, "learning_rate": 1e-3, "max_steps": 2, "optim": "sgd", "sample_steps": 2,
    "beta": 200.0, "times": "ddpm", "error": "epsilon", "max_grad_norm": 0.0,
}  # fmt: skip


def trainer(method: str, path: Path, place: Path, **changes: Any) -> Any:
    model, frame = load_pipeline(str(path))
    shades = [[[200 + i] * 16] * 16 for i in range(4)], [[[20 * i] * 16] * 16 for i in range(4)]
    rows = Dataset.from_list(
        [
            {
                "prompt": "a cat" if i % 2 else "a dog",
                "image": light,
                "chosen_image": light,
                "rejected_image": dark,
            }
            for i, (light, dark) in enumerate(zip(*shades, strict=True))
        ]
    )
    named = {name: changes.pop(name) for name in ("peft_config",) if name in changes}
    config = vars(trainers)["__getattr__"](f"{method}Config")
    make = vars(trainers)["__getattr__"](f"{method}Trainer")
    rounds = {"rounds": 2, "steps_per_round": 1} if method == "SePPODiffusion" else {}
    return make(
        model, config(output_dir=str(place), **{**PLAIN, **rounds, **changes}), rows, frame=frame, **named
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_errors_are_those_of_the_schedulers_own_points(kind, folder, folder_of_v, tmp_path):
    """The network asked as diffusers' training scripts ask it: points by add_noise, steps by their number."""
    from diffusers import DDPMScheduler

    made = trainer("DiffusionDPO", folder if kind == "epsilon" else folder_of_v, tmp_path, error=kind)
    batch = made._prepare_inputs(made._collate([made.train_dataset[i] for i in (1, 2)]))
    found = made.errors(made.model.eval(), batch)
    key = (made.args.seed, "diffusion_dpo", "evaluation")
    steps = (row_uniform(2, [1, 2], *key, "time")[:, 0].double() * 1000).long()
    noise = row_noise((4, 8, 8), [1, 2], *key, "noise")
    pipeline = made.frame.pipeline
    scheduler: Any = DDPMScheduler.from_config(pipeline.scheduler.config)
    point = scheduler.add_noise(batch["winners"], noise, steps)
    with torch.no_grad():
        output = pipeline.unet(point, steps, encoder_hidden_states=batch["prompt"]).sample
    target = noise if kind == "epsilon" else scheduler.get_velocity(batch["winners"], noise, steps)
    assert_close(found.winner, (output - target).square().flatten(1).mean(1), rtol=1e-3, atol=1e-6)
    assert_close(found.winner, found.ref_winner)


def test_an_adapter_is_trained_saved_and_read_again(folder, tmp_path):
    """Through rounds; one of diffusion_dpo is in tests/run/test_export_images.py."""
    adapter = LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    made = trainer(
        "SePPODiffusion", folder, tmp_path, peft_config=adapter, learning_rate=0.1, error="epsilon"
    )
    made.train()
    first = next(entry for entry in made.state.log_history if "loss" in entry)
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3)
    made.save_model(str(tmp_path / "model"))
    again, frame = load_flow(str(tmp_path / "model"))
    points, times = torch.randn(1, 4, 8, 8), torch.tensor([0.5])
    told = frame.read_prompts(["a cat"])
    made.model.eval()
    with torch.no_grad():
        assert_close(again(points, times, **told), made.model(points, times, **told), atol=1e-5, rtol=1e-4)
        assert (
            again(points, times, **told) - load_pipeline(str(folder))[0](points, times, **told)
        ).abs().max() > 1e-6


def test_all_weights_are_trained_through_rounds_and_resumed(folder_of_v, tmp_path):
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "error": "v_prediction"}
    whole = trainer("SePPODiffusion", folder_of_v, tmp_path, sample_guidance=3.0, **settings)
    whole.train()
    resumed = trainer("SePPODiffusion", folder_of_v, tmp_path, sample_guidance=3.0, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    whole.save_model(str(tmp_path / "model"))
    again, _ = load_flow(str(tmp_path / "model"))
    for one, other in zip(whole.model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not any(p.requires_grad for p in whole.frame.pipeline.vae.parameters())
    assert not any(p.requires_grad for p in whole.frame.pipeline.text_encoder.parameters())


def test_what_a_model_of_noise_cannot_be_trained_by(folder, tmp_path):
    with pytest.raises(ValueError, match="times: uniform are of a flow"):
        trainer("DiffusionDPO", folder, tmp_path, times="uniform")
    model, frame = load_pipeline(str(folder))
    config = vars(trainers)["__getattr__"]("FlowGRPOConfig")(
        output_dir=str(tmp_path), use_cpu=True, num_generations=2, per_device_train_batch_size=2
    )
    with pytest.raises(ValueError, match="FlowGRPOTrainer trains flow models, and this is a model of noise"):
        vars(trainers)["__getattr__"]("FlowGRPOTrainer")(
            model, [bright], config, Dataset.from_list([{"prompt": "a"}]), frame=frame
        )
