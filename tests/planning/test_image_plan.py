"""Recipes of image methods: what they may say, what is refused before anything is loaded, and what the plan tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.recipe import RecipeError, load_recipe
from posttrain.run.plan import make_plan

IMAGES: dict[str, Any] = {
    "method": "grpo_guard",
    "model": {"scratch": {"classes": ["0", "1"]}},
    "data": {"path": "rows.jsonl", "eval": {"path": "rows.jsonl"}},
    "rewards": [{"name": "image_statistic"}],
    "rollout": {"group_size": 4, "cfg_scale": 2.0},
    "train": {"max_steps": 3, "per_device_train_batch_size": 8, "use_cpu": True},
}


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(
        "".join(json.dumps({"prompt": str(i % 2), "label": i % 2}) + "\n" for i in range(8))
    )

    def run(**changes: Any):
        sections = {
            **IMAGES,
            **{name: value for name, value in changes.items() if not isinstance(value, dict)},
        }
        for name, value in changes.items():
            if isinstance(value, dict):
                sections[name] = {**sections.get(name, {}), **value}
        Path("r.yaml").write_text(yaml.safe_dump({k: v for k, v in sections.items() if v is not None}))
        return make_plan(load_recipe("r.yaml"))

    return run


def test_a_plan_that_can_start_says_how_images_are_made(planned):
    plan = planned()
    assert plan.refusals == []
    text = "\n".join(plan.batch)
    assert "2 prompts x 4 responses = 8 completions per rollout" in text
    assert "made in 10 steps (sde, noise 0.7), and its first 9 are trained on" in text
    assert "9 forward and backward passes" in text
    assert "each of 16 rows for the guidance" in text
    assert "all rows of a pass stand at the same step" in text
    assert plan.memory is not None
    assert "parameters, by model.scratch" in plan.memory_note


def test_the_resolved_recipe_is_the_same_recipe(planned, tmp_path):
    recipe = planned().recipe
    Path("again.yaml").write_text(yaml.safe_dump(recipe.resolved()))
    again = load_recipe("again.yaml")
    assert again.resolved() == recipe.resolved()
    assert again.flow_rollout.cfg_scale == 2.0
    assert "max_new_tokens" not in recipe.resolved()["rollout"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": {"guided_training": False}}, "cfg_scale 2 guides the images"),
        ({"rollout": {"sampler": "cps"}}, "another log-prob than the one RatioNorm is derived for"),
        ({"objective": {"trained_share": 0.05}}, "is less than one step"),
        ({"method": "flow_grpo", "rollout": {"sampler": "cps"}, "objective": {"trained_share": 1.0}}, "no noise in"),
        ({"rewards": [{"name": "math_answer"}]}, "'math_answer' judges texts"),
        ({"rewards": [{"model": "some/judge"}]}, "a reward model scores texts"),
        ({"rewards": [{"name": "image_statistic", "args": {"of": "smell"}}]}, "of is 'smell'"),
        ({"rewards": [{"name": "pickscore", "args": {"folder": "./nowhere"}}]}, "there is no folder"),
        ({"rollout": {"group_size": 3}}, "do not divide into groups of 3"),
        ({"train": {"per_device_train_batch_size": 40}}, "one rollout takes 10 prompts"),
        ({"data": {"chat": True}}, "'chat' does nothing without a method for texts"),
        ({"model": {"scratch": None, "path": "runs/nowhere/model"}}, "no folder 'runs/nowhere/model'"),
        ({"train": {"gradient_accumulation_steps": 2, "steps_per_generation": 1}}, "would mix two"),
    ],
)  # fmt: skip
def test_refusals(planned, changes, words):
    assert any(words in refusal for refusal in planned(**changes).refusals), planned(**changes).refusals


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rollout": {"temperature": 1.0}}, "unknown key 'temperature'"),
        ({"rollout": {"noise_level": 1.2, "sampler": "cps"}}, "write at most 1"),
        ({"model": {"mask": {"token": "x"}}}, "'mask' has no effect"),
        ({"model": {"scratch": {"hidden_size": 7}}}, "must be even"),
        ({"model": {"embedded_guidance": 2.0}}, "'embedded_guidance' is of a pipeline"),
        ({"train": {"layout": "padded"}}, "'layout'"),
        ({"objective": {"clip": 0}}, "clip"),
    ],
)
def test_faults_of_the_recipe(planned, changes, words):
    with pytest.raises(RecipeError, match=words):
        planned(**changes)


def test_image_rewards_are_refused_where_text_is_written(planned):
    plan = planned(
        method="grpo", model={"scratch": {"alphabet": "01"}, "path": None}, rollout=None,
        rewards=[{"name": "image_statistic"}],
    )  # fmt: skip
    assert any("'image_statistic' judges images" in refusal for refusal in plan.refusals)


def pipeline(folder: Path, scheduler: str, name: str = "StableDiffusion3Pipeline") -> dict[str, Any]:
    folder.mkdir()
    index = {"_class_name": name, "scheduler": ["diffusers", scheduler]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return {"scratch": None, "path": str(folder)}


def test_a_pipeline_without_a_flow_scheduler_is_refused(planned, tmp_path):
    plan = planned(model=pipeline(tmp_path / "sd15", "PNDMScheduler", "StableDiffusionPipeline"))
    (refusal,) = [one for one in plan.refusals if "scheduler" in one]
    assert "PNDMScheduler, which is no flow scheduler" in refusal
    assert "method diffusion_dpo or seppo_diffusion" in refusal


@pytest.mark.parametrize("method", ["flow_grpo", "grpo_guard", "flow_sft"])
def test_a_model_of_noise_that_is_not_here_is_refused_by_its_name(planned, method):
    image_rows(image=[[0] * 4] * 4)
    rest = {} if method != "flow_sft" else PAIRS
    plan = planned(
        method=method, model={"scratch": None, "path": "stable-diffusion-v1-5/stable-diffusion-v1-5"}, **rest
    )
    assert any("which is no flow scheduler" in one for one in plan.refusals), plan.refusals


@pytest.mark.flow
def test_pairs_train_a_model_of_noise_at_its_own_steps(planned, tmp_path):
    shade = [[0] * 4] * 4
    image_rows(chosen_image=shade, rejected_image=shade)
    model = pipeline(tmp_path / "sd15", "DDIMScheduler", "StableDiffusionPipeline")
    for path in (model, {"scratch": None, "path": "stable-diffusion-v1-5/stable-diffusion-v1-5"}):
        plan = planned(method="diffusion_dpo", model=path, objective={}, **PAIRS)
        assert any("write times: ddpm and error: epsilon" in one for one in plan.refusals), plan.refusals
        plan = planned(
            method="diffusion_dpo", model=path, objective={"times": "ddpm", "error": "epsilon"}, **PAIRS
        )
        assert plan.refusals == []
    assert plan.memory is not None
    assert "0.86 billion parameters and 0.21 billion frozen" in plan.memory_note
    (tmp_path / "sd15" / "scheduler").mkdir()
    said = tmp_path / "sd15" / "scheduler" / "scheduler_config.json"
    said.write_text(json.dumps({"prediction_type": "sample"}))
    plan = planned(
        method="diffusion_dpo", model=model, objective={"times": "ddpm", "error": "epsilon"}, **PAIRS
    )
    assert any("its network says 'sample'" in one for one in plan.refusals)


def test_launches_that_keep_weights_in_parts_are_refused(planned, monkeypatch):
    recipe = planned().recipe
    assert make_plan(recipe, processes=2).refusals == []
    words = "ZeRO and FSDP keep in parts what its steps read whole"
    assert any(words in one for one in make_plan(recipe, processes=2, zero=2).refusals)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert any(words in one for one in make_plan(recipe).refusals)


def test_digits_without_pairs_say_how_to_get_them(planned):
    pytest.importorskip("sklearn")
    for args, method, words in (
        ({}, "diffusion_dpo", "no column 'chosen_image', which method 'diffusion_dpo' reads"),
        ({}, "diffusion_dpo", "digits have it with args: {pairs: true}"),
        ({"prompts_only": True}, "seppo_diffusion", "digits have it without args"),
    ):
        data = {"path": None, "name": "digits", "args": args, "eval": None}
        refusals = planned(method=method, data=data, objective=None, **PAIRS).refusals
        assert any(words in one for one in refusals), refusals


def test_a_language_model_is_refused(planned, tmp_path):
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    plan = planned(model={"scratch": None, "path": str(tmp_path / "llama")})
    assert any("holds a llama, and a flow model is needed" in refusal for refusal in plan.refusals)


def test_flow_sft_needs_images(planned):
    plan = planned(
        method="flow_sft",
        rewards=None,
        rollout=None,
        objective=None,
        train={"per_device_train_batch_size": 4},
    )
    assert any("no column 'image', which method 'flow_sft' reads" in refusal for refusal in plan.refusals)


PAIRS: dict[str, Any] = {"rewards": None, "rollout": None, "train": {"per_device_train_batch_size": 4}}


def image_rows(**columns: Any) -> None:
    rows = [{"prompt": str(i % 2), **columns} for i in range(8)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("method", "objective", "words"),
    [
        ("diffusion_dpo", {}, "no column 'chosen_image'"),
        ("diffusion_dpo", {"times": "ddpm"}, "those of a model of noise, whose error is epsilon"),
        ("seppo_diffusion", {}, "no column 'image'"),
        ("seppo_diffusion", {"rounds": 2}, "max_steps is 3, but rounds x steps_per_round = 60"),
    ],
)
def test_refusals_of_methods_on_pairs(planned, method, objective, words):
    refusals = planned(method=method, objective=objective, **PAIRS).refusals
    assert any(words in refusal for refusal in refusals), refusals


@pytest.mark.parametrize(
    ("method", "objective"),
    [
        ("diffusion_dpo", {"times": "ddpm", "error": "epsilon"}),
        ("seppo_diffusion", {"rounds": 3, "steps_per_round": 1}),
    ],
)
def test_methods_on_pairs_are_planned(planned, method, objective):
    shade = [[0] * 4] * 4
    image_rows(image=shade, chosen_image=shade, rejected_image=shade)
    assert planned(method=method, objective=objective, **PAIRS).refusals == []
