"""Images from noise: the sampler's trajectories, its noise, guidance, and a flow that is known."""

from __future__ import annotations

import pytest
import torch
from flow_helpers import CLASSES, small_flow
from torch.testing import assert_close

from posttrain.ops.flow_step import sigma_schedule, step_logprobs
from posttrain.rollout.flow.flow_sampler import FlowSampler, FlowSampling, StepRule, guided, sample_plainly
from posttrain.rollout.flow.image_frame import DenoisingTimes, mixed_conditions
from posttrain.rollout.flow.row_noise import row_noise, row_uniform
from posttrain.rollout.flow.small_flow import ClassFrame, FlowMLP, scratch_flow


def sampler(**changes):
    model = small_flow()
    return model, FlowSampler(ClassFrame(model.config), FlowSampling(denoising_steps=5, **changes), "cpu", 0)


def test_trajectories_are_their_own_samples():
    """x' = mean + s noise, and the log-prob is that of the stored latent."""
    model, made_by = sampler()
    prompts, rows = ["a", "d", "b"], [4, 0, 7]
    made = made_by.trajectories(model, prompts, rows, rollout=2)
    noise = row_noise((6, 1, 4, 4), rows, 0, "rollout", 2)
    assert_close(made.latents[:, 0], noise[:, 0])
    velocity = guided(model, made_by.frame.read_prompts(prompts), None, 1.0)
    for i in range(5):
        steps = torch.full((3,), i)
        latent = made.latents[:, i]
        step = made_by.rule.at(steps, latent, velocity(latent, made_by.rule.time_of(steps)))
        assert_close(step.mean, made.means[:, i])
        assert_close(made.latents[:, i + 1], step.mean + step.spread.view(-1, 1, 1, 1) * noise[:, i + 1])
        assert_close(made.logprobs[:, i], step_logprobs(made.latents[:, i + 1], step.mean, step.spread))


def test_an_images_noise_does_not_hang_on_its_neighbours():
    model, made_by = sampler(sampler_rows=2)
    whole = made_by.trajectories(model, ["a", "b", "c", "d", "a"], range(5), 0)
    alone = made_by.trajectories(model, ["d"], [3], 0)
    assert_close(whole.latents[3], alone.latents[0])
    other = made_by.trajectories(model, ["d"], [3], 1)
    assert (whole.latents[3] - other.latents[0]).abs().max() > 0.1


def test_noise_is_normal_and_its_own():
    noise = row_noise((2000,), range(5), 0, "x")
    assert noise.mean().abs() < 0.03
    assert noise.std() == pytest.approx(1, abs=0.03)
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.08
    assert torch.equal(row_noise((3,), [1, 2], 0, "x")[1], row_noise((3,), [2], 0, "x")[0])
    assert row_uniform(4, [1], 0, "x").shape == (1, 4)


def test_steps_without_noise_follow_a_known_flow():
    """Towards one image x_0 the velocity is (x - x_0) / t: Euler's steps end there exactly, whatever their number."""
    target = torch.full((2, 1, 3, 3), 0.25)

    def velocity(latents, times):
        return (latents - target) / times.view(-1, 1, 1, 1)

    noise = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    for steps in (1, 7):
        assert_close(
            sample_plainly(velocity, noise, DenoisingTimes(sigma_schedule(steps, 2.0))),
            target,
            atol=1e-5,
            rtol=0,
        )


@pytest.mark.parametrize(("kind", "level"), [("sde", 0.7), ("sde", 0.2), ("cps", 0.05)])
def test_noisy_steps_keep_the_marginals(kind, level):
    """Data x_0 ~ N(1, 0.5^2): with the exact velocity, the last latents have that mean and spread. (CPS keeps them as
    its noise goes to 0: each step shrinks what it does not draw anew.)"""
    count = 4000
    rule = StepRule(FlowSampling(denoising_steps=60, sampler=kind, noise_level=level), sigma_schedule(60))
    mean, spread = 1.0, 0.5

    def velocity(latents, times):
        t = times.view(-1, 1)
        variance = (1 - t) ** 2 * spread**2 + t**2
        clean = mean + (1 - t) * spread**2 / variance * (latents - (1 - t) * mean)
        noise = t / variance * (latents - (1 - t) * mean)
        return noise - clean

    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(count, 1, generator=generator)
    for i in range(60):
        steps = torch.full((count,), i)
        step = rule.at(steps, latent, velocity(latent, rule.time_of(steps)))
        latent = step.mean + step.spread.unsqueeze(1) * torch.randn(count, 1, generator=generator)
    assert latent.mean().item() == pytest.approx(mean, abs=0.05)
    assert latent.std().item() == pytest.approx(spread, abs=0.05)


def test_guidance_by_hand():
    model = small_flow()
    frame = ClassFrame(model.config)
    latents, times = torch.randn(2, 1, 4, 4), torch.tensor([0.3, 0.9])
    told, none = frame.read_prompts(["b", "c"]), frame.no_prompts(2)
    towards, away = model(latents, times, **told), model(latents, times, **none)
    assert_close(guided(model, told, none, 4.5)(latents, times), away + 4.5 * (towards - away))
    assert_close(guided(model, told, None, 1.0)(latents, times), towards)


def test_prompts_are_class_names():
    frame = ClassFrame(small_flow().config)
    assert frame.read_prompts([" b ", "d"])["classes"].tolist() == [1, 3]
    assert frame.no_prompts(1)["classes"].tolist() == [len(CLASSES)]
    with pytest.raises(ValueError, match="'e' is none of the model's classes"):
        frame.read_prompts(["e"])


def test_pixels_go_to_latents_and_back():
    frame = ClassFrame(scratch_flow(image_size=4, channels=3, classes=["a"]).config)
    latents = torch.linspace(-1, 1, 48).view(1, 3, 4, 4)
    (image,) = frame.to_images(latents)
    assert image.size == (4, 4)
    assert_close(frame.to_latents([image]), latents, atol=1 / 127, rtol=0)
    assert frame.to_images(torch.full((1, 3, 4, 4), 9.0))[0].getpixel((0, 0)) == (255, 255, 255)


def test_model_is_saved_and_read_again(tmp_path):
    model = small_flow(shift=3.0)
    model.save_pretrained(tmp_path)
    again = FlowMLP.from_pretrained(tmp_path)
    latents, times = torch.randn(2, 1, 4, 4), torch.tensor([0.3, 0.9])
    classes = torch.tensor([0, 4])
    assert torch.equal(model(latents, times, classes), again(latents, times, classes))
    assert ClassFrame(again.config).shift == 3.0
    assert_close(ClassFrame(again.config).denoising_times(10).times, sigma_schedule(10, 3.0))


def test_conditions_are_mixed_row_by_row():
    kept, instead = {"x": torch.ones(3, 2)}, {"x": torch.zeros(3, 2)}
    mixed = mixed_conditions(kept, instead, torch.tensor([True, False, True]))["x"]
    assert mixed[:, 0].tolist() == [1, 0, 1]
