"""Layouts of the forward pass agree: losses, weights and logged numbers of whole runs, whichever packs the rows."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from letter_rewards import judged_with_answers
from tiny_run import arguments, judged, rows
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.trainers.forward.choose_layout import choose_layout
from posttrain.trainers.forward.head import HeadOptions
from posttrain.trainers.policy import bindings
from posttrain.trainers.policy.group_order import group_ordered

SGD = {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
METHODS: dict[str, dict[str, Any]] = {
    "GRPO": {"beta": 0.05, "num_iterations": 2, "entropy_coef": 0.01},
    "BAPO": {"target": 0.55},
    "COPO": {"rho": 0.9},
    # a rate at which shifts are within what is counted, or nothing would be rejected
    "CAPO": {"objective_threshold": 0.6, "policy_threshold": 0.2, "num_candidates": 8, "learning_rate": 0.02},
    "GSPO": {},
}


def trained(method: str, model: Any, tokenizer: Any, folder: Any, **extra: Any) -> dict[str, Any]:
    settings = {**SGD, **METHODS[method], **extra}
    config = getattr(bindings, f"{method}Config")(**arguments(folder, **settings))
    trainer = getattr(bindings, f"{method}Trainer")(
        copy.deepcopy(model), judged_with_answers, config, rows(), processing_class=tokenizer
    )
    trainer.train()
    return {
        "weights": [p.detach() for p in trainer.model.parameters()],
        "logs": [log for log in trainer.state.log_history if "loss" in log],
        "layout": trainer.layout.name,
    }


def agree(one: dict[str, Any], other: dict[str, Any]) -> None:
    for mine, its in zip(one["weights"], other["weights"], strict=True):
        assert_close(mine, its, rtol=1e-5, atol=2e-6)
    for mine, its in zip(one["logs"], other["logs"], strict=True):
        assert mine.keys() == its.keys()
        for name in mine:
            if not name.endswith(("time", "runtime", "per_second")):
                assert mine[name] == pytest.approx(its[name], rel=1e-4, abs=2e-5), name
        assert its["grad_norm"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_shared_prompts_train_as_padded_rows_do(method, tiny_model, tokenizer, tmp_path):
    padded = trained(method, tiny_model, tokenizer, tmp_path / "padded", layout="padded")
    shared = trained(method, tiny_model, tokenizer, tmp_path / "shared")
    assert shared["layout"] == "shared"
    agree(shared, padded)


@pytest.mark.parametrize(
    "extra",
    [
        {"layout": "trimmed"},
        {"gradient_checkpointing": True},
        {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4},
        {"max_tokens_per_micro_batch": 20},
        {"layout": "trimmed", "max_tokens_per_micro_batch": 40},
        {"layout": "padded", "max_tokens_per_micro_batch": 40},
    ],
    ids=lambda extra: ",".join(f"{key}={value}" for key, value in extra.items()),
)
def test_neither_layout_nor_split_moves_a_run(extra, tiny_model, tokenizer, tmp_path):
    padded = trained("GRPO", tiny_model, tokenizer, tmp_path / "padded", layout="padded")
    agree(trained("GRPO", tiny_model, tokenizer, tmp_path / "other", **extra), padded)


def test_a_bound_over_the_step_sees_every_part(tiny_model, tokenizer, tmp_path):
    """BAPO's bounds are over all micro-batches, whether TRL or a token limit made them; no second forward on-policy."""
    whole = trained("BAPO", tiny_model, tokenizer, tmp_path / "whole", layout="padded")
    agree(trained("BAPO", tiny_model, tokenizer, tmp_path / "split", max_tokens_per_micro_batch=20), whole)


def test_a_model_that_cannot_share_prompts_is_trimmed_and_says_why(tokenizer, tmp_path):
    config = AutoConfig.for_model(
        "gemma2", vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1, pad_token_id=0, bos_token_id=2, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    made = {
        "args": bindings.GRPOConfig(**arguments(tmp_path)),
        "train_dataset": rows(),
        "processing_class": tokenizer,
    }
    layout = bindings.GRPOTrainer(copy.deepcopy(model), judged, **made).layout
    assert layout.name == "trimmed"
    assert "caps its attention" in layout.reason
    made["args"] = bindings.GRPOConfig(**arguments(tmp_path, layout="shared"))
    with pytest.raises(ValueError, match="layout 'shared' cannot be used with Gemma2ForCausalLM"):
        bindings.GRPOTrainer(copy.deepcopy(model), judged, **made)


def test_groups_come_side_by_side_in_the_order_the_shuffle_gave():
    parts = [
        {"group": torch.tensor([1, 0, 1]), "row": torch.tensor([3, 0, 2]), "a": [30, 0, 20], "n": torch.tensor(9)},
        {"group": torch.tensor([0, 2, 2]), "row": torch.tensor([1, 5, 4]), "a": [10, 50, 40], "n": torch.tensor(9)},
    ]  # fmt: skip
    first, second = group_ordered(parts)
    assert first["row"].tolist() + second["row"].tolist() == [2, 3, 0, 1, 4, 5]
    assert first["a"] + second["a"] == [20, 30, 0, 10, 40, 50]
    assert first["n"] == second["n"] == 9
    images = [{**part, "pixel_values": torch.zeros(7)} for part in parts]
    assert group_ordered(images) is images


@pytest.mark.parametrize(
    ("device", "precision", "hidden", "asked", "expected"),
    [
        ("cpu", "no", 16, "auto", "shared"),
        ("cuda", "bf16", 2048, "auto", "shared"),
        ("cuda", "bf16", 576, "auto", "launches would outweigh it"),
        ("cuda", "no", 2048, "auto", "in float32"),
        ("cuda", "no", 576, "shared", "shared"),
    ],
)
def test_on_cuda_shared_prompts_are_taken_where_they_were_measured_to_be_faster(
    device, precision, hidden, asked, expected
):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(
                "llama", vocab_size=8, hidden_size=hidden, intermediate_size=8, num_hidden_layers=1,
                num_attention_heads=8,
            )
        )  # fmt: skip
    accelerator: Any = SimpleNamespace(device=torch.device(device), mixed_precision=precision)
    layout = choose_layout(asked, model, None, accelerator=accelerator, head=HeadOptions())  # type: ignore[arg-type]  # not asked
    assert layout.name == ("shared" if expected == "shared" else "trimmed")
    assert expected in f"{layout.name} {layout.reason}"


@pytest.mark.parametrize(("iterations", "passes"), [(1, [4, 4]), (2, [4 + 3 + 4, 4 + 3])])
def test_bounds_over_four_micro_batches_cost_no_second_forward_on_policy(
    iterations, passes, tiny_model, tokenizer, tmp_path
):
    """In later passes over a rollout the others are read again, and the old log-probs cost a pass at its start."""
    split = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}
    config = bindings.BAPOConfig(
        **arguments(tmp_path, **SGD, **split, target=0.55, num_iterations=iterations, max_steps=2)
    )
    trainer = bindings.BAPOTrainer(
        tiny_model, judged_with_answers, config, rows(), processing_class=tokenizer
    )
    scorer, counts = trainer.scorer, []
    score = scorer.score

    def counted(model: Any, part: Any, *wanted: Any) -> Any:
        size = wanted[0].rows_at_once if wanted and wanted[0].rows_at_once else len(part.prompt_ids)
        counts.append((trainer.state.global_step, -(-len(part.prompt_ids) // size)))
        return score(model, part, *wanted)

    scorer.score = counted  # type: ignore[method-assign]  # spied on
    trainer.train()
    assert [sum(passes for at, passes in counts if at == step) for step in (0, 1)] == passes
