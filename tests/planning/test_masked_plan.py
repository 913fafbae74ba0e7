"""What `posttrain plan` knows of masked-diffusion runs: schedule, passes, the checkpoint's own code, its shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.planning.activations import Arithmetic
from posttrain.planning.masked_costs import logits_bytes, sampler_faults, sampling_bytes
from posttrain.planning.shapes import read_shape
from posttrain.recipe import load_recipe
from posttrain.recipe.sections import ModelSection
from posttrain.run.plan import make_plan

RECIPE = """
method: bgpo
model: {{path: {path}{trust}}}
data: {{name: countdown, args: {{size: 64, held_out: 16}}}}
rewards: [{{name: countdown}}]
objective: {{samples: 8}}
rollout: {{group_size: 4, max_new_tokens: 32, block_length: {block}, diffusion_steps: 16}}
train: {{max_steps: 2, learning_rate: 1.0e-4, per_device_train_batch_size: 8}}
"""
LLADA = {
    "model_type": "llada",
    "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM"},
    "d_model": 64,
    "mlp_hidden_size": 192,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 4,
    "vocab_size": 100,
    "weight_tying": False,
}


@pytest.fixture
def plan_of(tmp_path):
    folder = tmp_path / "llada"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLADA))

    def plan(*, trust: str = "", block: int = 8):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE.format(path=folder, trust=trust, block=block))
        return make_plan(load_recipe(str(recipe)))

    return plan


def test_code_that_comes_with_a_checkpoint_wants_trust(plan_of):
    (refusal,) = plan_of().refusals
    assert refusal.startswith("model: ")
    assert "modeling_llada.LLaDAModelLM" in refusal
    assert refusal.endswith("set model.trust_remote_code: true")
    assert plan_of(trust=", trust_remote_code: true").refusals == []


def test_the_schedule_and_the_passes_are_told(plan_of):
    lines = plan_of(trust=", trust_remote_code: true").batch
    assert "a canvas of 32 tokens is filled in 4 blocks of 8, 16 forward passes" in lines
    assert "a likelihood costs 8 forward passes, one at a time in memory" in lines


def test_an_impossible_schedule_is_refused(plan_of):
    (refusal,) = plan_of(trust=", trust_remote_code: true", block=9).refusals
    assert refusal.startswith(
        "rollout: block_length 9 does not divide max_new_tokens 32; choose one of 1, 2, 4"
    )


def test_a_cache_where_the_checkpoints_code_keeps_none_is_refused(tmp_path):
    for name, config in (
        ("llada", LLADA),
        ("llama", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        recipe = tmp_path / f"{name}.yaml"
        text = RECIPE.format(path=tmp_path / name, trust=", trust_remote_code: true", block=8)
        recipe.write_text(text.replace("diffusion_steps: 16", "diffusion_steps: 16, cache: dual"))
        found = list(sampler_faults(load_recipe(recipe)))
        assert bool(found) == (name == "llada")
        assert not found or "cache: dual is not possible with this model" in found[0]


def test_confidence_and_a_number_of_passes_are_one_too_many(tmp_path):
    recipe = tmp_path / "r.yaml"
    text = RECIPE.format(path=tmp_path, trust="", block=8)
    recipe.write_text(text.replace("diffusion_steps: 16", "diffusion_steps: 16, confidence: 0.9"))
    assert "diffusion_steps 16 does as well" in "".join(sampler_faults(load_recipe(recipe)))


def test_lladas_own_names_tell_its_shape(plan_of, tmp_path):
    plan_of()
    shape = read_shape(ModelSection(path=str(tmp_path / "llada")))
    assert (shape.hidden, shape.layers, shape.intermediate, shape.kv_heads) == (64, 2, 192, 4)
    assert read_shape(ModelSection(path="GSAI-ML/LLaDA-8B-Instruct")).parameters == pytest.approx(
        8.02e9, rel=1e-2
    )
    assert read_shape(ModelSection(path="Dream-org/Dream-v0-Instruct-7B")).parameters == pytest.approx(
        7.6e9, rel=1e-2
    )


def test_logits_and_the_samplers_block_by_hand(plan_of):
    recipe = plan_of(trust=", trust_remote_code: true").recipe
    shape = read_shape(recipe.model)
    # 8 rows of 40 tokens over 100 words: in float32 once, and thrice in the backward
    numbers = 8 * 40 * 100
    found = logits_bytes(recipe, shape, 8, 40, Arithmetic())
    assert (found.forward, found.backward) == (numbers * 4, numbers * 16)
    # in 16 bits as they come, and in float32
    found = logits_bytes(recipe, shape, 8, 40, Arithmetic(autocast=True))
    assert (found.forward, found.backward) == (numbers * 6, numbers * 18)
    # 12 completions at once: the canvas in the model's type and a block of 8 in float64, or five such blocks
    whole, block = 12 * 40 * 100 * 4, 12 * 8 * 100 * 8
    assert sampling_bytes(recipe, shape, 12, 40, 4) == max(whole + block, 5 * block) == 5 * block
    assert sampling_bytes(recipe, shape, 12, 400, 4) == 10 * whole + block
    assert sampling_bytes(recipe, shape, 100, 40, 4) == 5 * block / 12 * 64  # sampler_rows at a time


def test_models_scored_through_a_fused_head_have_no_logits():
    recipe = load_recipe(str(Path(__file__).resolve().parents[2] / "recipes/smoke/bapo_sort.yaml"))
    shape = read_shape(ModelSection(path="Qwen/Qwen2.5-0.5B"))
    assert logits_bytes(recipe, shape, 8, 40, Arithmetic()) is None
    assert sampling_bytes(recipe, shape, 8, 40, 4) == 0
