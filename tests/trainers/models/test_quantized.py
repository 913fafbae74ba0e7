"""Adapters on a base in 4 bits: trained and saved as adapters, the base's numbers near the whole model's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from posttrain.recipe import load_recipe
from posttrain.rollout.model_folder import load_dense
from posttrain.run.train import run
from posttrain.trainers.models.ingredients import model_and_tokenizer
from posttrain.trainers.models.load import scratch_llama

RECIPE = """\
method: {method}
model: {{path: {model}, quantization: nf4, peft: {{r: 4}}}}
data: {{name: sort{data}}}
{rest}
output: {{name: {method}, dir: {runs}, report_to: []}}
"""
SHORT = "max_steps: 2, per_device_train_batch_size: 8, use_cpu: true, learning_rate: 1.0e-2"
REST = {
    "sft": f"train: {{{SHORT}, max_length: 32}}",
    "grpo": f"rewards: [{{name: exact_match}}]\nrollout: {{group_size: 4, max_new_tokens: 6}}\ntrain: {{{SHORT}}}",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("base")
    scratch_llama(tokenizer, hidden_size=64, layers=2, heads=2, max_positions=64).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe_of(method: str, base: Path, tmp_path: Path):
    path = tmp_path / f"{method}.yaml"
    data = ", args: {demonstrations: 1}" if method == "sft" else ""
    text = RECIPE.format(method=method, model=base, data=data, runs=tmp_path / "runs", rest=REST[method])
    path.write_text(text)
    return load_recipe(path)


@pytest.mark.bnb
def test_linear_maps_are_in_four_bits_and_near(base: Path, tmp_path: Path) -> None:
    model, _ = model_and_tokenizer(recipe_of("sft", base, tmp_path).model)
    weight = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    assert weight.dtype == torch.uint8
    assert weight.numel() * 2 == 64 * 192  # two weights per byte
    assert model.lm_head.weight.dtype == torch.float32
    whole = load_dense(base)
    ids = torch.arange(5, 21)[None]
    with torch.no_grad():
        error = (model(ids).logits - whole(ids).logits).norm() / whole(ids).logits.norm()
    assert 0 < error < 0.2


@pytest.mark.bnb
@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_a_run_saves_an_adapter_of_the_whole_base(method: str, base: Path, tmp_path: Path) -> None:
    recipe = recipe_of(method, base, tmp_path)
    assert run(recipe) == 0
    saved = Path(recipe.output.run_dir) / "model"
    assert (saved / "adapter_config.json").is_file()
    merged, before = load_dense(saved), load_dense(base)
    name = "model.layers.0.mlp.up_proj.weight"
    assert merged.get_parameter(name).dtype == torch.float32
    moved = not torch.equal(merged.get_parameter(name), before.get_parameter(name))
    assert moved == (method == "sft")  # no response of the random model is right: equal rewards, no gradient
