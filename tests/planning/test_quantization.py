"""A base model in 4 bits: what plan asks of the rest of the recipe."""

from __future__ import annotations

import pytest

from posttrain.planning import quantization
from posttrain.planning.quantization import NF4_BYTES, quantization_faults
from posttrain.recipe import RecipeError, load_recipe

RECIPE = """\
method: {method}
model: {{path: someone/model, quantization: nf4{peft}}}
data: {{name: sort}}
{rest}
output: {{name: q}}
"""
POLICY = "rewards: [{name: exact_match}]\nrollout: {max_new_tokens: 8}\ntrain: {max_steps: 1}"


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: object())


def faults(tmp_path, method="grpo", peft=", peft: {r: 4}", rest=POLICY) -> list[str]:
    path = tmp_path / "q.yaml"
    path.write_text(RECIPE.format(method=method, peft=peft, rest=rest))
    return list(quantization_faults(load_recipe(path)))


def test_an_adapter_on_four_bits_is_fine(tmp_path) -> None:
    assert faults(tmp_path) == []


def test_without_an_adapter_nothing_could_be_trained(tmp_path) -> None:
    assert "give 'peft'" in faults(tmp_path, peft="")[0]


def test_a_vllm_engine_cannot_be_sent_the_weights(tmp_path) -> None:
    rest = POLICY.replace("max_new_tokens: 8", "max_new_tokens: 8, engine: vllm")
    assert "rollout.engine: transformers" in faults(tmp_path, rest=rest)[0]


def test_methods_that_load_models_of_their_own_are_refused(tmp_path) -> None:
    rest = "rollout: {max_new_tokens: 8}\ntrain: {max_steps: 1}"
    assert "loads further models" in faults(tmp_path, method="seppo", rest=rest)[0]
    assert "masked-diffusion" in faults(tmp_path, method="mdlm_sft", rest="train: {max_steps: 1}")[0]


def test_the_package_is_named_where_it_is_missing(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    assert "pip install 'posttrain[bnb]'" in faults(tmp_path)[0]


def test_a_model_from_scratch_has_nothing_to_quantise(tmp_path) -> None:
    path = tmp_path / "q.yaml"
    path.write_text(
        RECIPE.format(method="grpo", peft="", rest=POLICY).replace("path: someone/model", "scratch: {}")
    )
    with pytest.raises(RecipeError, match="'quantization' has no effect on a model from scratch"):
        load_recipe(path)


def test_bytes_per_parameter() -> None:
    # 4 bits + 8 bits per 64 + 32 bits per 64 * 256 = 4.127 bits, the paper's figure
    assert pytest.approx(4.127, abs=5e-4) == NF4_BYTES * 8
