"""The memory estimate against sums done by hand and models actually built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest_recipe import POLICY, SFT, Load

from posttrain.plan import make_plan
from posttrain.planning.memory import GIB, Launch, Memory, estimate
from posttrain.planning.shapes import PUBLISHED, Shape, read_shape
from posttrain.sections import ModelSection, ScratchSection

# 1000 parameters that are easy to divide: only the count matters below.
SHAPE = Shape(10, 4, 2, 2, 1, 2, 8, tied=False, source="test", counted=1000)


def memory_of(load: Load, launch: Launch = Launch(), shape: Shape = SHAPE, **changes: Any) -> Memory:  # noqa: B008
    return estimate(load(**changes), shape, launch, prompt_tokens=7)


HUB = {"scratch": None, "path": "someone/model"}


def test_full_float32_adamw_is_sixteen_bytes_a_parameter(load: Load) -> None:
    memory = memory_of(load)
    assert (memory.weights, memory.gradients, memory.optimizer, memory.reference) == (4000, 4000, 8000, 0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train": {"beta": 0.1}}, (4000, 4000, 8000, 4000)),
        ({"train": {"optim": "sgd"}}, (4000, 4000, 0, 0)),
        ({"train": {"optim": "adamw_8bit"}}, (4000, 4000, 2000, 0)),
        # torch's AdamW keeps its two moments in the type of the parameter
        ({"model": {**HUB, "dtype": "bfloat16"}}, (2000, 2000, 4000, 0)),
    ],
)
def test_what_the_options_change(load: Load, changes: dict[str, Any], expected: tuple[int, ...]) -> None:
    memory = memory_of(load, **changes)
    assert (memory.weights, memory.gradients, memory.optimizer, memory.reference) == expected


@pytest.mark.parametrize(
    ("zero", "expected"),
    [(0, (4000, 4000, 8000)), (1, (4000, 4000, 2000)), (2, (4000, 1000, 2000)), (3, (1000, 1000, 2000))],
)
def test_stages_split_over_four_processes(load: Load, zero: int, expected: tuple[int, ...]) -> None:
    memory = memory_of(load, Launch(processes=4, zero=zero))
    assert (memory.weights, memory.gradients, memory.optimizer) == expected


def test_deepspeed_with_bf16_keeps_the_float32_weights_with_the_optimizer(load: Load) -> None:
    memory = memory_of(load, Launch(processes=2, zero=1), train={"bf16": True})
    assert (memory.weights, memory.gradients, memory.optimizer) == (2000, 2000, 6000)


def test_an_adapter_trains_only_itself_and_needs_no_reference(load: Load) -> None:
    # r=2 on q_proj (4 -> 4) and v_proj (4 -> 2) of two layers: 2 * (2*8 + 2*6) = 56
    peft = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
    memory = memory_of(load, model={**HUB, "peft": peft, "dtype": "bfloat16"}, train={"beta": 0.1})
    assert memory.gradients == 56 * 4
    assert memory.optimizer == 56 * 8
    assert memory.weights == (1000 + 56) * 2
    assert memory.reference == 0


def test_activations_and_cache_by_hand(load: Load) -> None:
    # 16 tokens (7 of the prompt, 9 new), 8 rows, float32; a layer keeps 6*4 + 2*2 + 4*8 = 60 numbers a token
    layer = 8 * 16 * 60 * 4
    assert memory_of(load, train={"gradient_checkpointing": False}).activations == 2 * layer
    assert memory_of(load).activations == 2 * 8 * 16 * 4 * 4 + layer
    # keys and values of 8 rows in 2 layers, one head of 2
    assert memory_of(load).generation == 8 * 16 * 2 * 2 * 2 * 4
    assert memory_of(load, train={"steps_per_generation": 3}).generation == 3 * 8 * 16 * 2 * 2 * 2 * 4


def test_the_peak_is_what_is_held_and_the_larger_of_two(load: Load) -> None:
    memory = Memory(1, 2, 3, 4, 5, 6, 0, ())
    assert memory.peak == 1 + 3 + 4 + 7
    assert Memory(1, 2, 3, 4, 5, 60, 10, ()).peak == 1 + 3 + 4 + 60 + 10


def test_a_colocated_engine_takes_its_share(load: Load) -> None:
    memory = memory_of(
        load, Launch(device_gib=80), rollout={"engine": "vllm", "vllm": {"gpu_memory_utilization": 0.25}}
    )
    assert memory.engine == 20 * GIB
    assert memory.generation == 0


def test_scratch_parameters_equal_the_model_that_is_built() -> None:
    from posttrain.trainers.build import model_and_tokenizer

    section = ModelSection(scratch=ScratchSection(hidden_size=16, layers=3, heads=2, alphabet="abc"))
    shape = read_shape(section)
    assert shape is not None
    model, tokenizer = model_and_tokenizer(section)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.vocabulary == len(tokenizer)


def test_a_folder_is_counted_by_its_headers_and_by_its_config(tmp_path: Path, tiny_model: Any) -> None:
    tiny_model.save_pretrained(tmp_path)
    true = sum(parameter.numel() for parameter in tiny_model.parameters())
    by_headers = read_shape(ModelSection(path=str(tmp_path)))
    assert by_headers is not None
    assert by_headers.parameters == by_headers.counted == true
    (tmp_path / "model.safetensors").unlink()
    by_config = read_shape(ModelSection(path=str(tmp_path)))
    assert by_config is not None
    assert by_config.counted is None
    assert by_config.parameters == true


def test_published_configs_have_the_published_sizes() -> None:
    sizes = {"Qwen/Qwen2.5-0.5B": 0.49e9, "Qwen/Qwen2.5-1.5B": 1.54e9, "Qwen/Qwen2.5-7B": 7.61e9}
    for name, size in sizes.items():
        shape = read_shape(ModelSection(path=f"{name}-Instruct"))
        assert shape is not None
        assert shape.parameters == pytest.approx(size, rel=0.01)
    assert set(sizes) <= set(PUBLISHED)


def test_a_config_of_another_kind_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    assert read_shape(ModelSection(path=str(tmp_path))) is None


def test_too_little_memory_is_warned_of(load: Load) -> None:
    recipe = load(POLICY, model={"scratch": None, "path": "Qwen/Qwen2.5-7B-Instruct"})
    (warning,) = make_plan(recipe, device_gib=80).warnings
    assert "GiB a device are more than 80 GiB hold" in warning
    assert make_plan(recipe, processes=8, zero=3, device_gib=80).warnings == []


def test_prompts_are_measured_where_a_tokenizer_lies_here(
    load: Load, tokenizer: Any, tiny_model: Any
) -> None:
    tokenizer.save_pretrained("m")
    tiny_model.save_pretrained("m")
    rows = [{"prompt": "x" * n, "answer": "1"} for n in (3, 4, 5, 6)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"name": None, "args": {}, "path": "rows.jsonl", "max_prompt_tokens": 4}
    changes: dict[str, Any] = {"model": {"scratch": None, "path": "m"}, "data": data}
    plan = make_plan(load(**changes))
    assert plan.refusals == []
    assert "longest prompt: 6 tokens; 2 longer than 4 will be dropped" in plan.data
    data["on_long"] = "error"
    (refusal,) = make_plan(load(**changes)).refusals
    assert refusal.startswith("data: 2 of 4 prompts are longer than max_prompt_tokens")


def test_text_families_are_measured_by_max_length(load: Load) -> None:
    def activations(**train: Any) -> float:
        return estimate(load(SFT, train={"max_steps": 1, **train}), SHAPE, Launch()).activations

    assert activations(max_length=20) * 2 == activations(max_length=40)
    assert (
        "train.max_length would say"
        in estimate(load(SFT, train={"max_length": None}), SHAPE, Launch()).notes[0]
    )
