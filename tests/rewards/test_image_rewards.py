"""Rewards for images: by hand, and through the runner's processes."""

from __future__ import annotations

import io
import math

import numpy
import pytest
from image_judges import bright, reads_text
from PIL import Image

from posttrain.rewards.image_rewards import image_class, image_statistic, jpeg_size, save_classifier
from posttrain.rewards.resolve import RewardSpec, RewardSpecError, describe, faults
from posttrain.rewards.runner import RewardRunner


def plain(*colour: int, size: int = 4) -> Image.Image:
    return Image.new(
        "L" if len(colour) == 1 else "RGB", (size, size), colour[0] if len(colour) == 1 else colour
    )


def test_brightness_and_colours_by_hand():
    images = [plain(0), plain(255), plain(255, 0, 0), plain(51, 102, 153)]
    assert image_statistic(images)[:2] == [0.0, 1.0]
    assert image_statistic(images, of="red") == pytest.approx([0, 1, 1, 0.2])
    assert image_statistic(images, of="blue") == pytest.approx([0, 1, 0, 0.6])
    assert image_statistic(images, of="saturation") == pytest.approx([0, 0, 1, (153 - 51) / 153])
    assert image_statistic(images[:2], target=0.25) == pytest.approx([-0.25, -0.75])


def test_contrast_is_the_spread():
    half = plain(0)
    half.paste(255, (0, 0, 2, 4))
    assert image_statistic([half, plain(100)], of="contrast") == pytest.approx([1.0, 0.0])


def test_jpeg_size_is_of_the_file():
    flat = plain(128, size=64)
    noise = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (64, 64), dtype=numpy.uint8))
    file = io.BytesIO()
    noise.save(file, format="JPEG", quality=80)
    small, large = jpeg_size([flat, noise], quality=80, smaller=False)
    assert large == file.tell() / 1000
    assert small < large / 3
    assert jpeg_size([noise], quality=80) == [-large]
    with pytest.raises(RewardSpecError, match="between 1 and 100"):
        describe(RewardSpec("jpeg_size", {"quality": 0}))


def test_classifier_by_hand(tmp_path):
    """Two pixels, two classes: the logits are the pixels themselves, through a layer that does nothing."""
    one = numpy.eye(4)
    last = numpy.array([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    save_classifier(tmp_path, ["left", "right"], [(one, numpy.zeros(4)), (last, [0.0, 0.5])], image_size=2)
    image = plain(0, size=2)
    image.putpixel((0, 0), 255)  # logits 2 and 0.5
    given = {"folder": str(tmp_path), "label": ["left", "right", "up"]}
    share = 1 / (1 + math.exp(-1.5))
    assert image_class([image] * 3, **given) == pytest.approx([share, 1 - share, None])
    assert image_class([image] * 3, value="right", **given) == [1.0, 0.0, None]
    assert image_class([image] * 3, value="logit", **given) == [2.0, 0.5, None]
    assert image_class(
        [image], folder=str(tmp_path), prompts=["left"], value="log_probability"
    ) == pytest.approx([math.log(share)])


def test_classifier_is_looked_for_before_the_run(tmp_path):
    (found,) = faults(RewardSpec("image_class", {"folder": str(tmp_path)}), ["prompt"])
    assert "classifier.npz" in found
    with pytest.raises(ValueError, match="do not lead from 4 pixels to 1 classes"):
        save_classifier(tmp_path, ["a"], [(numpy.zeros((5, 1)), [0.0])], image_size=2)


def test_images_reach_the_workers_and_their_groups():
    shades = [0, 51, 102, 255]
    with RewardRunner(["image_statistic", RewardSpec("bright", function=bright)], workers=1) as runner:
        scores = runner.score([plain(shade) for shade in shades], group_size=2, of_images=True)
    wanted = [shade / 255 for shade in shades]
    assert [row[0] for row in scores.values] == pytest.approx(wanted)
    assert [row[1] for row in scores.values] == pytest.approx(wanted)


def test_what_a_reward_judges_is_read_from_its_annotation():
    assert describe("image_statistic").completions_as == "images"
    assert describe("math_answer").completions_as == "text"
    assert describe(RewardSpec("f", function=bright)).says_which
    assert describe(RewardSpec("f", function=reads_text)).completions_as == "text"

    def says_nothing(completions, **_):
        return [0.0 for _ in completions]

    silent = describe(RewardSpec("f", function=says_nothing))
    assert (silent.completions_as, silent.says_which) == ("text", False)
    asked = describe(RewardSpec("f", function=says_nothing, completions_as="images"))
    assert (asked.completions_as, asked.says_which) == ("images", True)
