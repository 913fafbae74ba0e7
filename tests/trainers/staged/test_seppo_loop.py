"""SePPO end to end at toy size: which checkpoint scores, what rounds share, and that a kill changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from staged_helpers import LORA, WORDS, KillAt, Killed, lines, make_model, options, policies, same
from transformers import TrainerCallback

from posttrain.rollout.base import Sampling
from posttrain.trainers.models.policy_folder import load_dense
from posttrain.trainers.staged.seppo import SePPOConfig, SePPOTrainer

WINNERS = Dataset.from_list([{"prompt": f"name {w}:", "chosen": w} for w in WORDS])


@pytest.fixture
def model(tokenizer):
    return make_model(tokenizer)


class WatchedSePPO(SePPOTrainer):
    def prepare_trainer(self, stage, trainer):
        super().prepare_trainer(stage, trainer)
        trainer.model.train()
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        with torch.no_grad():
            _, pairs = trainer._forward(trainer.model, batch)
            reference = load_dense(self.reference(stage), base=self.base)
            logps = reference(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(
                -1
            )
        taken = logps[:, :-1].gather(2, batch["input_ids"][:, 1:, None]).squeeze(2)
        direct = (taken * batch["completion_mask"][:, 1:]).sum(1)
        scored = torch.cat([pairs.ref_chosen_logps, pairs.ref_rejected_logps])
        self.watched.append((pairs.chosen_margin.abs().max().item(), (scored - direct).abs().max().item()))


def seppo(model, tokenizer, folder, *, peft=None, kill=None, watch=None, **settings):
    trainer = (WatchedSePPO if watch is not None else SePPOTrainer)(
        copy.deepcopy(model),
        WINNERS,
        options(SePPOConfig, folder, **{"rounds": 3, "steps_per_round": 2, **settings}),
        tokenizer,
        sampling=Sampling(max_new_tokens=6),
        peft_config=copy.deepcopy(peft),
        callbacks=[History()] if kill is None else [KillAt(kill)],
    )
    trainer.watched = watch
    return trainer


class History(TrainerCallback):
    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "loss" in logs:
            self.logs.append({"step": state.global_step, **logs})


@pytest.mark.parametrize(
    ("reference", "peft"),
    [("initial", None), ("latest", LORA), ("random", None), ("random", LORA)],
    ids=lambda v: v if isinstance(v, str) else ("full" if v is None else "lora"),
)
def test_the_drawn_checkpoint_is_the_reference(reference, peft, model, tokenizer, tmp_path):
    watched = []
    trainer = seppo(
        model, tokenizer, tmp_path, peft=peft, watch=watched, reference=reference, seed=0, learning_rate=1e-2
    )
    trainer.train()
    draws = trainer.pool.draws
    if reference == "random":
        assert draws[0] == 0
        assert draws == [trainer.pool.draw(k, "random") for k in (1, 2, 3)]
        assert draws[1:] != [1, 2]  # this seed looks back at least once
    else:
        assert draws == {"initial": [0, 0, 0], "latest": [0, 1, 2]}[reference]
    for k, (margin, error) in enumerate(watched):
        assert error < 1e-4  # scored by the checkpoint that the pool names
        assert (margin == 0.0) == (draws[k] == k)  # and equal to the policy exactly when it is the latest
    assert len(trainer.pool) == 4


def test_rounds_share_one_optimizer_and_one_schedule(model, tokenizer, tmp_path):
    trainer = seppo(model, tokenizer, tmp_path, lr_scheduler_type="linear", learning_rate=6e-3)
    history = trainer.callbacks[0]
    trainer.train()
    assert [log["step"] for log in history.logs] == [1, 2, 3, 4, 5, 6]
    assert [log["learning_rate"] for log in history.logs] == pytest.approx(
        [6e-3, 5e-3, 4e-3, 3e-3, 2e-3, 1e-3]
    )
    assert all("seppo/flip_rate" in log for log in history.logs)
    moments = torch.load(tmp_path / "stages" / "002" / "optimizer" / "optimizer.pt", weights_only=True)[
        "state"
    ]
    assert moments[0]["step"].item() == 6
    assert not (tmp_path / "stages" / "000" / "optimizer").exists()


@pytest.mark.parametrize(("peft", "kill"), [(None, 4), (LORA, 3)], ids=["full", "lora"])
def test_a_killed_seppo_run_continues_with_the_same_numbers(peft, kill, model, tokenizer, tmp_path):
    whole = seppo(model, tokenizer, tmp_path / "whole", peft=peft, seed=5)
    whole.train()
    with pytest.raises(Killed):
        seppo(model, tokenizer, tmp_path / "broken", peft=peft, seed=5, kill=kill).train()
    resumed = seppo(model, tokenizer, tmp_path / "broken", peft=peft, seed=5)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.pool.draws == whole.pool.draws
    assert all(same(a, b) for a, b in zip(policies(whole), policies(resumed), strict=True))


def test_rounds_walk_through_the_rows(model, tokenizer, tmp_path):
    trainer = seppo(model, tokenizer, tmp_path)
    trainer.train()
    prompts = [
        row["prompt"] for i in range(3) for row in lines(tmp_path / "stages" / f"00{i}" / "pairs.jsonl")
    ]
    assert len(prompts) == 12
    assert set(prompts[:7]) == {row["prompt"] for row in WINNERS}


def test_what_would_break_the_sign_is_refused(model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="dropout-free"):
        seppo(model, tokenizer, tmp_path, disable_dropout=False)
    with pytest.raises(ValueError, match="precompute_ref_log_probs"):
        seppo(model, tokenizer, tmp_path, precompute_ref_log_probs=True)
    with pytest.raises(ValueError, match="max_steps is 5, but 3 rounds of 2 steps are 6"):
        seppo(model, tokenizer, tmp_path, max_steps=5)
    with pytest.raises(ValueError, match="sync_ref_model"):
        seppo(model, tokenizer, tmp_path, sync_ref_model=True)
