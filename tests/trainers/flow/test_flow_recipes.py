"""Recipes of image methods from file to page: supervised, then from rewards, stopped and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from posttrain.observe.writer import read_evaluation, read_metrics, read_samples
from posttrain.recipe import RecipeError, load_recipe
from posttrain.rollout.flow.flow_folder import load_flow
from posttrain.run.train import run

SFT: dict[str, Any] = {
    "method": "flow_sft",
    "model": {"scratch": {"image_size": 4, "classes": ["dark", "light"], "hidden_size": 16, "layers": 1}},
    "data": {"path": "images.jsonl", "eval": {"path": "images.jsonl"}},
    "train": {"max_steps": 3, "per_device_train_batch_size": 4, "use_cpu": True},
    "output": {"name": "start", "report_to": []},
}
GUARD: dict[str, Any] = {
    "method": "grpo_guard",
    "model": {"path": "runs/start/model"},
    "data": {"path": "images.jsonl", "eval": {"path": "images.jsonl"}},
    "rewards": [{"name": "image_statistic"}, {"name": "jpeg_size", "weight": 0}],
    "objective": {"clip": 1e-3},
    "rollout": {"group_size": 4, "denoising_steps": 3, "eval_denoising_steps": 3},
    "train": {"max_steps": 4, "per_device_train_batch_size": 8, "num_iterations": 2, "use_cpu": True},
    "output": {"name": "guard", "report_to": [], "save_steps": 3, "save_total_limit": None},
}


def recipe(sections: dict[str, Any], *overrides: str) -> Any:
    Path("r.yaml").write_text(yaml.safe_dump(sections))
    return load_recipe("r.yaml", overrides)


@pytest.fixture
def start(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shades = [("dark", 0), ("light", 255)] * 4
    lines = [json.dumps({"prompt": name, "image": [[shade] * 4] * 4}) for name, shade in shades]
    Path("images.jsonl").write_text("\n".join(lines))
    assert run(recipe(SFT)) == 0
    return tmp_path / "runs"


def test_from_images_to_rewards_and_back_from_a_checkpoint(start):
    assert "loss" in read_evaluation(start / "start")["after"]
    assert "before training" in (start / "start" / "report.html").read_text()

    assert run(recipe(GUARD)) == 0
    whole = start / "guard"
    measured = read_evaluation(whole)
    assert measured["after"]["problems"] == 8
    samples = read_samples(whole, "after")
    assert samples is not None
    mean = sum(samples["rewards/image_statistic"]) / 8
    assert measured["after"]["reward"] == pytest.approx(mean, abs=1e-6)
    page = (whole / "report.html").read_text()
    assert page.count("<figure") == 2 * 8
    assert "light" in page
    assert "share of denoising steps" in page
    assert "generated tokens" not in page
    assert [row["step"] for row in read_metrics(whole) if "loss" in row] == [1, 2, 3, 4]

    assert (
        run(
            recipe(GUARD, "output.name=again", "output.dir=other"),
            resume=str(whole / "checkpoints/checkpoint-3"),
        )
        == 0
    )
    (one, _), (other, _) = load_flow(str(whole / "model")), load_flow("other/again/model")
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)

    with pytest.raises(
        RecipeError, match="rollout.denoising_steps was 3, not 4: the checkpoint holds rollouts"
    ):
        run(recipe(GUARD, "rollout.denoising_steps=4", "train.max_steps=6"), resume="last")


def test_a_prompt_of_no_class_is_refused_before_the_first_step(start):
    Path("odd.jsonl").write_text(
        "\n".join(json.dumps({"prompt": name}) for name in ("dark", "grey", "light"))
    )
    with pytest.raises(RecipeError, match="data: prompt 'grey' is none of the model's classes"):
        run(recipe(GUARD, "data.path=odd.jsonl"))


def test_an_adapter_is_trained_from_a_recipe(start):
    changed = {
        **GUARD,
        "model": {"path": "runs/start/model", "peft": {"r": 2, "target_modules": ["wide", "back"]}},
    }
    assert run(recipe(changed)) == 0
    assert (start / "guard" / "model" / "adapter_config.json").is_file()
    (one, _), (base, _) = load_flow(str(start / "guard" / "model")), load_flow(str(start / "start" / "model"))
    pairs = list(zip(one.named_parameters(), base.named_parameters(), strict=True))
    moved = {name for (name, a), (_, b) in pairs if not torch.equal(a, b)}
    assert moved
    assert all("wide" in name or "back" in name for name in moved)
