"""PPO-ptx: the texts' loss is the model's own, stands beside the policy's, is drawn in order, and resumes exactly."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_run import arguments, judged, rows
from torch.testing import assert_close

from posttrain.data import DataError
from posttrain.run.plan import make_plan
from posttrain.trainers import PPOMaxConfig, PPOMaxTrainer, SALSAConfig, SALSATrainer
from posttrain.trainers.policy.text_rows import TokenTexts, read_texts
from posttrain.trainers.policy.texts_beside import TextOrder

WORDS = ["the cat sat", "on a mat", "and then it slept", "for a while", "in the sun", "all of the day"]
OWN: dict[str, Any] = {
    "critic_learning_rate": 1e-3,
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "learning_rate": 0.1,
}
PTX: dict[str, Any] = {**OWN, "ptx_coef": 0.5, "ptx_batch_size": 4}


def built(model: Any, tokenizer: Any, folder: Any, texts: list[str] | None = WORDS, **settings: Any) -> Any:
    more = {} if texts is None else {"ptx_dataset": Dataset.from_dict({"text": texts})}
    return PPOMaxTrainer(
        copy.deepcopy(model), judged, PPOMaxConfig(**arguments(folder, **settings)), rows(24),
        processing_class=tokenizer, **more,
    )  # fmt: skip


def trained(*where: Any, **settings: Any) -> Any:
    made = built(*where, **settings)
    made.train()
    return made


def weights(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def loss_of(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Mean over the tokens of all texts, in float64, one by one."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]])
        logprobs = model(ids).logits[0, :-1].double().log_softmax(-1).gather(1, ids[0, 1:, None])
        total, tokens = total - logprobs.sum(), tokens + ids.size(1) - 1
    return total / tokens


@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_the_step_is_the_policys_plus_that_of_the_texts(tiny_model, tokenizer, tmp_path, layout):
    """At a sampling temperature that is not 1: the texts are scored at 1 all the same."""
    run = {"max_steps": 1, "layout": layout, "temperature": 0.7, "lr_scheduler_type": "constant"}
    alone = trained(tiny_model, tokenizer, tmp_path, None, **OWN, **run)
    both = trained(tiny_model, tokenizer, tmp_path, **PTX, **run)
    drawn = [WORDS[i] for i in TextOrder(len(WORDS), 3).take(4)]
    model = copy.deepcopy(tiny_model)
    loss = loss_of(model, tokenizer, drawn)
    loss.backward()
    for start, one, two in zip(model.parameters(), weights(alone.model), weights(both.model), strict=True):
        assert_close(two - one, -0.1 * 0.5 * start.grad, rtol=1e-3, atol=2e-6)
    (logged,) = [one for one in both.state.log_history if "ppo_max/ptx_loss" in one]
    assert logged["ppo_max/ptx_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert logged["ppo_max/ptx_tokens"] == sum(len(text) for text in drawn)  # each character, and the end
    assert logged["ppo_max/ptx_passes"] == pytest.approx(4 / 6)
    (before,) = [one for one in alone.state.log_history if "ppo_max/value_loss" in one]
    assert logged["loss"] - before["loss"] == pytest.approx(0.5 * loss.item(), abs=1e-4)
    assert logged["num_tokens"] == before["num_tokens"]  # the texts have an account of their own


def test_micro_batches_move_nothing(tiny_model, tokenizer, tmp_path):
    run = {"max_steps": 1, "num_generations": 4, **PTX}
    whole = trained(tiny_model, tokenizer, tmp_path, per_device_train_batch_size=8, **run)
    split = trained(
        tiny_model, tokenizer, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, **run
    )
    assert_close(weights(split.model), weights(whole.model), rtol=1e-5, atol=2e-6)
    limited = built(
        tiny_model, tokenizer, tmp_path, per_device_train_batch_size=8, max_tokens_per_micro_batch=24, **run
    )
    sizes: list[tuple[int, int]] = []
    score = limited.ptx.scorer.score

    def watched(model: Any, rows: Any) -> Any:
        sizes.append(tuple(rows.joined[0].shape))
        return score(model, rows)

    limited.ptx.scorer.score = watched
    limited.train()
    assert len(sizes) > 1
    assert all(count * width <= 24 or count == 1 for count, width in sizes)
    assert sum(count for count, _ in sizes) == PTX["ptx_batch_size"]
    assert_close(weights(limited.model), weights(whole.model), rtol=1e-5, atol=2e-6)


def test_a_resume_draws_on_where_it_was(tiny_model, tokenizer, tmp_path):
    settings = {
        **PTX, "optim": "adamw_torch", "critic_warmup": 1, "num_iterations": 2, "max_steps": 5,
        "save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant",
    }  # fmt: skip
    whole = trained(tiny_model, tokenizer, tmp_path / "a", **settings)
    assert whole.ptx.order.drawn == 4 * 4  # none in the step in which the critic learned alone
    again = built(tiny_model, tokenizer, tmp_path / "b", **settings)
    checkpoint = str(tmp_path / "a" / "checkpoint-3")
    again.train(resume_from_checkpoint=checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(weights(again.model), weights(whole.model), strict=True))
    with pytest.raises(ValueError, match="the texts are not those the run began with"):
        built(tiny_model, tokenizer, tmp_path / "b", WORDS[:5], **settings).train(
            resume_from_checkpoint=checkpoint
        )
    without = {**settings, "ptx_coef": 0.0}
    with pytest.raises(ValueError, match="one of this run and its checkpoint learns from texts"):
        built(tiny_model, tokenizer, tmp_path / "b", None, **without).train(resume_from_checkpoint=checkpoint)


def test_each_pass_takes_every_text_once_in_another_order():
    order = TextOrder(7, seed=1)
    taken = [*order.take(3), *order.take(8), *order.take(10)]
    passes = [taken[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert passes[0] != passes[1] != passes[2]
    later = TextOrder(7, seed=1)
    later.drawn = 11
    assert later.take(10) == taken[11:]
    assert TextOrder(7, seed=2).take(21) != taken


def test_rows_are_read_and_counted(tokenizer, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("abc", " ", "abcdefgh")))
    found = TokenTexts(read_texts(str(path), chat=False), tokenizer, 6)
    assert found.in_words() == "2 of 3 texts, 8 tokens to learn; 1 cut at ptx_max_length; 1 dropped (1 empty)"
    assert [sum(learned) for _, learned in found.rows] == [3, 5]  # nothing foresees the first token
    path.write_text(json.dumps({"prompt": "1+1=", "completion": "2"}) + "\n")
    ((ids, learned),) = TokenTexts(read_texts(str(path), chat=False), tokenizer, 6).rows
    assert learned == [False] * 4 + [True] * 2  # of an answer the prompt is read only
    assert ids[-1] == tokenizer.eos_token_id
    with pytest.raises(DataError, match="1 nothing left to learn within ptx_max_length"):
        TokenTexts(read_texts(str(path), chat=False), tokenizer, 4)
    path.write_text(json.dumps({"text": 3}) + "\n")
    with pytest.raises(DataError, match="the text of row 1 is 3"):
        read_texts(str(path), chat=False)


def test_what_cannot_be_is_refused(tiny_model, tokenizer, tmp_path, load):
    with pytest.raises(ValueError, match=r"ptx_coef 0.5 has no texts"):
        built(tiny_model, tokenizer, tmp_path, None, **PTX)
    with pytest.raises(ValueError, match="no effect at ptx_coef 0"):
        built(tiny_model, tokenizer, tmp_path, **OWN)
    tiny_model.save_pretrained(tmp_path / "sft2")
    soup = SALSAConfig(
        **arguments(tmp_path, beta=0.1), others=[str(tmp_path / "sft2")], objective="ppo",
        objective_settings={"ptx_coef": 0.5},
    )  # fmt: skip
    with pytest.raises(ValueError, match="learned from by PPOTrainer and PPOMaxTrainer alone"):
        SALSATrainer(copy.deepcopy(tiny_model), judged, soup, rows(24), processing_class=tokenizer)
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "abc"}\n')

    def refusals(processes: int = 1, **objective: Any) -> str:
        return " ".join(make_plan(load(method="ppo", objective=objective), processes=processes).refusals)

    assert "go together" in refusals(ptx_coef=0.5)
    assert "go together" in refusals(ptx_data=str(texts))
    assert "no file" in refusals(ptx_data=str(tmp_path / "none.jsonl"), ptx_coef=0.5)
    assert "3 is no multiple of the 2 processes" in refusals(
        2, ptx_data=str(texts), ptx_coef=0.5, ptx_batch_size=3
    )
    plan = make_plan(load(method="ppo", objective={"ptx_data": str(texts), "ptx_coef": 0.5}))
    assert any(
        "as many as responses per optimizer step, each cut at 1,024 tokens" in one for one in plan.data
    )


def test_the_entropy_is_pulled_to_its_target(tiny_model, tokenizer, tmp_path):
    """Above any entropy there is, it is a bonus: the loss is c_e (H* - H)."""
    run = {**OWN, "max_steps": 1}
    plain = trained(tiny_model, tokenizer, tmp_path, None, **run)
    pulled = trained(
        tiny_model, tokenizer, tmp_path, None, **run, target_entropy=30.0, target_entropy_coef=0.2
    )
    bonus = trained(tiny_model, tokenizer, tmp_path, None, **run, entropy_coef=0.2)
    assert_close(weights(pulled.model), weights(bonus.model), rtol=0, atol=1e-6)
    assert any(
        not torch.equal(a, b) for a, b in zip(weights(pulled.model), weights(plain.model), strict=True)
    )
    ends = [one.state.log_history[0] for one in (plain, pulled)]
    distance = 30.0 - ends[0]["entropy"]
    assert ends[1]["loss"] - ends[0]["loss"] == pytest.approx(0.2 * distance, rel=1e-4)
