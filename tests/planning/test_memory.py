"""The memory estimate against sums done by hand and models actually built."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_recipe import POLICY, SFT, Load

from posttrain.planning.activations import (
    Arithmetic,
    head_backward,
    head_forward,
    layer_bytes,
    layer_weights,
)
from posttrain.planning.memory import (
    CPU_LIBRARIES,
    CPU_WORKER,
    CUDA_CONTEXT,
    CUDA_ROUNDING,
    GIB,
    HEAP_KEPT,
    Launch,
    Memory,
    estimate,
    workers_of_a_reward,
)
from posttrain.planning.shapes import PUBLISHED, Shape, read_shape
from posttrain.recipe.sections import ModelSection, ScratchSection
from posttrain.run.plan import make_plan

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
    assert memory.weights == 1000 * 2 + 56 * 4  # the adapter stays float32
    assert memory.reference == 0


def test_a_base_in_four_bits(load: Load) -> None:
    # 2 layers of 4*4 + 4*2 + 4*2 + 4*4 + 3*4*8 = 144 weights in maps, of 1000
    model = {**HUB, "peft": {"r": 2}, "dtype": "bfloat16"}
    plain, mapped = memory_of(load, model=model), 2 * 144
    quantised = memory_of(load, model={**model, "quantization": "nf4"})
    assert plain.weights - quantised.weights == pytest.approx(mapped * (2 - 0.516))


def test_the_moments_of_a_step_by_hand(load: Load) -> None:
    # 16 tokens (7 of the prompt, 9 new), 8 rows, float32, on a CPU: 15 positions of each row are scored
    cpu = Launch(device="cpu")
    how = Arithmetic()
    one = 8 * 16 * layer_bytes(SHAPE, how, 16)
    head = head_backward(SHAPE, how, 8 * 15)
    plain = memory_of(load, cpu, train={"gradient_checkpointing": False})
    assert (plain.layers, plain.head) == (2 * one, head)
    assert plain.last_layer == one + 8 * 16 * 3 * 8 * 4  # three gradients of the feed-forward's width, 8
    checkpointed = memory_of(load, cpu)
    assert (checkpointed.layers, checkpointed.head) == (2 * 8 * 16 * 4 * 4, head)
    assert checkpointed.last_layer == plain.last_layer
    # on a GPU only the 9 new tokens are scored
    on_gpu = memory_of(load, train={"gradient_checkpointing": False})
    assert on_gpu.head == head_backward(SHAPE, Arithmetic(cuda=True), 8 * 9)
    # keys and values of 8 rows in 2 layers, one head of 2; 10 words' logits three times
    cache, logits = 8 * 16 * 2 * 2 * 2 * 4, 8 * 10 * 12
    assert plain.generation == cache + logits
    three = memory_of(load, cpu, train={"steps_per_generation": 3})
    scoring = 8 * 16 * layer_bytes(SHAPE, how, 16) + head_forward(SHAPE, how, 8 * 15)
    assert three.generation == max(3 * (cache + logits), scoring)


def test_the_second_gradient_of_a_large_embedding_can_be_the_end_of_the_backward(load: Load) -> None:
    large = Shape(100_000, 4, 2, 2, 1, 2, 8, tied=True, source="test", counted=1000)
    one_token = {"per_device_train_batch_size": 1, "max_length": 1, "max_steps": 1}
    full = estimate(load(SFT, train=one_token), large, Launch())
    assert full.last_layer == 100_000 * 4 * 4
    adapted = estimate(load(SFT, train=one_token, model={**HUB, "peft": {"r": 1}}), large, Launch())
    assert adapted.last_layer < 10_000


def test_the_shorter_of_two_limits_of_a_prompt_counts(load: Load) -> None:
    def last_layer(**data: int) -> float:
        return memory_of(load, data=data).last_layer  # the longest prompt there has 7 tokens

    assert last_layer(max_prompt_tokens=3) < last_layer(max_prompt_tokens=7)
    assert last_layer(max_prompt_tokens=7) == last_layer(max_prompt_tokens=9) == last_layer()


def test_what_else_of_a_recipe_decides(load: Load) -> None:
    assert memory_of(load, train={"gradient_accumulation_steps": 2, "steps_per_generation": 2}).accumulates
    assert not memory_of(load).accumulates
    plain, eager = (
        memory_of(load, model={**HUB, "attn_implementation": name}).last_layer for name in ("sdpa", "eager")
    )
    assert plain != eager
    dpo = {"method": "dpo", "model": {"scratch": {}}, "data": {"path": "x"}, "train": {"max_steps": 1}}
    once = {"precompute_ref_log_probs": True}
    assert estimate(load(dpo, train=once), SHAPE, Launch()).reference == 0


def test_autocast_brings_the_weights_in_16_bits(load: Load) -> None:
    plain, cast = (
        memory_of(load, train={"gradient_checkpointing": False, "bf16": bf16}) for bf16 in (False, True)
    )
    how = Arithmetic(autocast=True, cuda=True)
    assert cast.head == 2 * layer_weights(SHAPE) * 2 + head_backward(SHAPE, how, 8 * 9)
    assert cast.weights == plain.weights
    checkpointed = memory_of(load, train={"bf16": True})
    forward = head_forward(SHAPE, how, 8 * 9) + 2 * layer_weights(SHAPE) * 2
    assert checkpointed.head == max(forward, head_backward(SHAPE, how, 8 * 9))


def test_the_copies_in_16_bits_last_to_the_end_of_a_checkpointed_forward(load: Load) -> None:
    wide = Shape(10, 4, 2, 2, 1, 2, 10**6, tied=False, source="test", counted=1000)
    how = Arithmetic(autocast=True, cuda=True)
    memory = memory_of(load, shape=wide, train={"bf16": True})
    assert memory.head == head_forward(wide, how, 8 * 9) + 2 * layer_weights(wide) * 2


def test_an_engine_that_samples_between_trainings_takes_nothing_beside_them(load: Load) -> None:
    drift: dict[str, Any] = {
        "method": "drift",
        "model": {"path": "someone/model"},
        "data": {"path": "x.jsonl"},
        "rollout": {"engine": "vllm"},
        "train": {"num_train_epochs": 1},
    }
    memory = estimate(load(drift), SHAPE, Launch(device_gib=80))
    assert memory.engine == 0
    assert memory.notes == ()


def test_a_pair_is_two_rows_and_a_single_row_has_no_padding(load: Load) -> None:
    dpo = {
        "method": "dpo",
        "model": {"scratch": {}},
        "data": {"path": "x.jsonl"},
        "train": {"max_steps": 1, "max_length": 16, "per_device_train_batch_size": 1},
    }
    pair = estimate(load(dpo), SHAPE, Launch(device="cpu"))
    one = 2 * 16 * layer_bytes(SHAPE, Arithmetic(padded=True), 16)
    assert pair.last_layer == one + 2 * 16 * 3 * 8 * 4
    assert pair.reference == 4000
    text = {**dpo, "method": "sft"}
    alone = estimate(load(text), SHAPE, Launch(device="cpu"))
    assert alone.last_layer == 16 * layer_bytes(SHAPE, Arithmetic(padded=False), 16) + 16 * 3 * 8 * 4


PARTS: dict[str, Any] = {
    "weights": 1,
    "gradients": 20,
    "optimizer": 300,
    "reference": 4000,
    "layers": 50_000,
    "head": 600_000,
    "last_layer": 7_000_000,
    "generation": 10**8,
}


def test_the_peak_is_what_is_held_and_the_largest_moment() -> None:
    held = 1 + 300 + 4000
    assert Memory(**PARTS).tensors == held + 10**8
    assert Memory(**PARTS | {"generation": 0}).tensors == held + 20 + 7_000_000
    early = Memory(**PARTS | {"generation": 0, "last_layer": 5})
    assert early.tensors == held + 650_000
    assert replace(early, accumulates=True).tensors == held + 650_020
    around: dict[str, Any] = {"engine": 2e9, "base": 3e10, "workers": 4e11, "allocator": 5e12}
    assert replace(early, **around).peak == held + 650_000 + 2e9 + 3e10 + 4e11 + 5e12


def test_the_rows_add_up_to_the_peak() -> None:
    """Those at the peak; what stands at another time is in brackets."""
    less = {"generation": 0.5, "base": 9.0, "allocator": 3.0}
    changes: list[dict[str, Any]] = [
        {**less},
        {**less, "last_layer": 5},
        {**less, "last_layer": 5, "accumulates": True},
        {**less, "gradients": 0},
        {"base": 9.0},
    ]
    for change in changes:
        memory = Memory(**PARTS | change)
        rows = dict(memory.rows())
        parts = [name for name in rows if name not in ("tensors", "peak") and not name.startswith("(")]
        assert sum(rows[name] for name in parts) == rows["peak"] == memory.peak
        assert rows["tensors"] == memory.tensors
        assert sum(name.startswith("(") for name in rows) == 1


def test_what_is_not_tensors(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = memory_of(load)
    assert (gpu.base, gpu.workers) == (CUDA_CONTEXT, 0)
    assert gpu.allocator == pytest.approx(CUDA_ROUNDING * gpu.tensors)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    cpu = memory_of(load, Launch(device="cpu"))
    assert cpu.base == CPU_LIBRARIES["policy"]
    assert cpu.workers == 3 * CPU_WORKER
    everything = 2 * 8 * 16 * layer_bytes(SHAPE, Arithmetic(), 16)  # checkpointing leaves the same gaps
    assert cpu.allocator == pytest.approx(HEAP_KEPT[False] * everything)
    adapted = memory_of(load, Launch(device="cpu"), model={**HUB, "peft": {"r": 2}})
    how = Arithmetic(trained=frozenset(name for name, _, _ in SHAPE.linears), rank=2)
    assert adapted.allocator == pytest.approx(HEAP_KEPT[True] * 2 * 8 * 16 * layer_bytes(SHAPE, how, 16))


def test_a_reward_has_as_many_workers_as_its_runner_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain.rewards.runner import RewardRunner

    for cores in (1, 2, 6, 64):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        with RewardRunner(["exact_match"]) as runner:
            (pool,) = runner._pools()
            assert workers_of_a_reward() == pool.workers


def test_a_colocated_engine_takes_its_share(load: Load) -> None:
    memory = memory_of(
        load, Launch(device_gib=80), rollout={"engine": "vllm", "vllm": {"gpu_memory_utilization": 0.25}}
    )
    assert memory.engine == 20 * GIB
    assert memory.generation == 0


def test_scratch_parameters_equal_the_model_that_is_built() -> None:
    from posttrain.trainers.models.ingredients import model_and_tokenizer

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
    sizes = {"Qwen/Qwen2.5-0.5B": 0.49e9, "Qwen/Qwen2.5-1.5B": 1.54e9, "Qwen/Qwen2.5-7B": 7.61e9} | {
        "Qwen/Qwen2.5-3B": 3.09e9,
        "Qwen/Qwen2.5-14B": 14.7e9,
        "Qwen/Qwen2.5-32B": 32.5e9,
        "Qwen/Qwen2.5-72B": 72.7e9,
    }
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
    assert "GiB per device are more than 80 GiB hold" in warning
    assert make_plan(recipe, processes=8, zero=3, device_gib=80).warnings == []


def test_a_tenth_of_the_device_is_to_spare(load: Load) -> None:
    recipe = load()
    plan = make_plan(recipe)
    assert plan.memory is not None
    peak = plan.memory.peak / GIB
    assert make_plan(recipe, device_gib=peak / 0.89).warnings == []
    (warning,) = make_plan(recipe, device_gib=peak / 0.91).warnings
    assert "with a tenth to spare" in warning


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
    def layers(**train: Any) -> float:
        return estimate(load(SFT, train={"max_steps": 1, **train}), SHAPE, Launch()).layers

    assert layers(max_length=20) * 2 == layers(max_length=40)
    assert (
        "train.max_length would say"
        in estimate(load(SFT, train={"max_length": None}), SHAPE, Launch()).notes[0]
    )


def test_a_limit_of_tokens_bounds_what_a_micro_batch_keeps(load: Load) -> None:
    """8 rows of 7 + 9 tokens are 128: at 32 a quarter of it; a limit below a row cannot cut the row."""
    whole = memory_of(load)
    quarter = memory_of(load, train={"max_tokens_per_micro_batch": 32})
    assert quarter.layers == whole.layers / 4
    assert quarter.head < whole.head
    one = memory_of(load, train={"max_tokens_per_micro_batch": 1})
    assert one.layers == whole.layers / 8
    assert memory_of(load, train={"max_tokens_per_micro_batch": 10_000}) == whole


def test_texts_beside_count_where_they_are_longer_than_the_responses(load: Load) -> None:
    """PPO-ptx: 8 rows of 7 + 9 tokens, and as many texts of 32 tokens, or of 8; their gradients wait for the policy."""

    def ppo(**objective: Any) -> Memory:
        return memory_of(load, method="ppo", objective=objective)

    texts = {"ptx_data": "texts.jsonl", "ptx_coef": 0.5}
    without, longer, shorter = ppo(), ppo(**texts, ptx_max_length=32), ppo(**texts, ptx_max_length=8)
    assert longer.layers == 2 * without.layers
    assert longer.head > without.head
    assert (shorter.layers, shorter.head) == (without.layers, without.head)
    assert (without.accumulates, shorter.accumulates) == (False, True)
    limited = memory_of(
        load,
        method="ppo",
        objective={**texts, "ptx_max_length": 32},
        train={"max_tokens_per_micro_batch": 32},
    )
    assert limited.layers == longer.layers / 8
