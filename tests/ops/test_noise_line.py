"""Models of noise on the straight line: their points, the velocity they say, errors of each kind, DDIM's step."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from posttrain.ops.flow_step import ode_step
from posttrain.ops.noise_line import point_weight, velocity_of
from posttrain.preferences.diffusion_dpo import ddpm_alpha_bars, drawn_times, squared_errors, time_on_line


def test_a_network_that_says_the_truth_says_the_lines_velocity():
    image, noise = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)
    a = ddpm_alpha_bars()[[3, 400, 999]]
    t = time_on_line(a).view(-1, 1, 1)
    point = (1 - t) * image + t * noise
    wide = a.view(-1, 1, 1)
    assert_close(point * point_weight(wide), wide.sqrt() * image + (1 - wide).sqrt() * noise)
    v = wide.sqrt() * noise - (1 - wide).sqrt() * image
    for output, prediction in ((noise, "epsilon"), (v, "v_prediction")):
        assert_close(velocity_of(output, point, a, prediction), noise - image, atol=1e-10, rtol=0)
    with pytest.raises(ValueError, match="no prediction 'sample'"):
        velocity_of(noise, point, a, "sample")


def test_errors_are_those_of_what_the_network_says():
    """Of a network that is off by a known amount, in each of the three kinds."""
    generator = torch.Generator().manual_seed(0)
    image, noise, off = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(3))
    a = ddpm_alpha_bars()[[0, 100, 700, 990]]
    times, wide = time_on_line(a), a.view(-1, 1)
    point = (1 - times.view(-1, 1)) * image + times.view(-1, 1) * noise
    truth = {"epsilon": noise, "v_prediction": wide.sqrt() * noise - (1 - wide).sqrt() * image}
    for kind, said in truth.items():
        velocity = velocity_of(said + off, point, a, kind)
        assert_close(
            squared_errors(velocity, image, noise, times, kind), off.square().mean(1), atol=1e-9, rtol=1e-9
        )
    with pytest.raises(ValueError, match="choose velocity, epsilon or v_prediction"):
        squared_errors(off, image, noise, times, "sample")


def test_eulers_step_on_the_line_is_ddims():
    """DDIM's step without noise by its own formula: the image and the noise it says, at the next alpha-bar."""
    generator = torch.Generator().manual_seed(0)
    z, said = (torch.randn(2, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    now, after = ddpm_alpha_bars()[[700, 40]], ddpm_alpha_bars()[[600, 0]]
    a, b = now.view(-1, 1), after.view(-1, 1)
    ddim = b.sqrt() * (z - (1 - a).sqrt() * said) / a.sqrt() + (1 - b).sqrt() * said
    point = z / point_weight(a)
    step = ode_step(point, velocity_of(said, point, now, "epsilon"), time_on_line(now), time_on_line(after))
    assert_close(step * point_weight(b), ddim)


def test_times_are_drawn_from_a_models_own_steps():
    own = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    drawn = drawn_times(torch.tensor([0.0, 0.34, 0.66, 0.67, 0.999]), "ddpm", own)
    assert drawn.tolist() == pytest.approx([0.1, 0.5, 0.5, 0.9, 0.9])
