"""Images on a run's page: before and after side by side, each with its reward."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from posttrain.observe.image_grid import EACH, PROMPTS, image_grid
from posttrain.observe.run_page import write_report
from posttrain.observe.writer import RunWriter


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (2, 2), shade).save(file, format="PNG")
    return file.getvalue()


def columns(prompts: list[str], shade: int, reward: float) -> dict[str, list[Any]]:
    return {
        "prompt": prompts,
        "image": [png(shade) for _ in prompts],
        "reward": [reward for _ in prompts],
        "rewards/bright": [shade / 255 for _ in prompts],
        "advantage": [None for _ in prompts],
    }


def run_with(tmp_path: Path) -> RunWriter:
    writer = RunWriter(tmp_path)
    writer.write_recipe({"method": "grpo_guard", "model": {"scratch": {}}})
    writer.start(0, total=3)
    writer.log(1, {"loss": 0.5, "reward": 0.1})
    return writer


def test_held_out_images_stand_before_and_after(tmp_path):
    writer = run_with(tmp_path)
    writer.write_evaluation("before", {"reward": 0.1}, columns(["<7>", "8"], 10, 0.125))
    writer.write_evaluation("after", {"reward": 0.9}, columns(["<7>", "8"], 250, 0.875))
    page = write_report(tmp_path).read_text()
    assert "before training" in page
    assert "&lt;7&gt;" in page
    assert page.count(base64.b64encode(png(10)).decode()) == 2
    assert page.count(base64.b64encode(png(250)).decode()) == 2
    assert page.index("0.125</figcaption>") < page.index("0.875</figcaption>")
    assert 'title="bright 0.98"' in page


def test_without_held_out_images_the_first_and_last_rollout_are_shown(tmp_path):
    writer = run_with(tmp_path)
    writer.write_completions(1, columns(["a"] * 20, 10, 0.5))
    writer.write_completions(10, columns(["a"] * 20, 250, 0.5))
    writer.write_completions(20, columns(["a"] * 20, 99, 0.5))
    grid = image_grid(tmp_path, last_step=10)
    assert "rollout of step 1<" in grid
    assert "rollout of step 10<" in grid
    assert grid.count("<img") == 2 * EACH


def test_many_prompts_are_counted(tmp_path):
    writer = run_with(tmp_path)
    writer.write_evaluation("after", {}, columns([str(i) for i in range(PROMPTS + 3)], 1, 0.0))
    assert "3 further prompts" in image_grid(tmp_path, last_step=1)


def test_a_run_of_text_has_no_images(tmp_path):
    writer = run_with(tmp_path)
    writer.write_completions(1, {"prompt": ["a"], "completion": ["b"], "reward": [1.0]})
    assert image_grid(tmp_path, last_step=1) == ""
