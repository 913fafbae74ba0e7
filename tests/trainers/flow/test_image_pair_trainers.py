"""Trainers on pairs of images: the loss by hand, references, rounds, resume, an adapter, micro-batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from flow_helpers import small_flow, weights
from image_pair_run import METHODS, image_pairs, pair_trainer, runs
from peft import LoraConfig
from places import SUPPORT
from safetensors.torch import load_file
from torch.testing import assert_close

from posttrain.rollout.flow.row_noise import row_noise, row_uniform
from posttrain.trainers.flow.swapped_weights import SwappedWeights


def moved(trainer: Any) -> None:
    """The policy is no longer the reference."""
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.05)


@pytest.mark.parametrize("shared", [True, False])
def test_loss_by_hand(shared, tmp_path):
    made = pair_trainer("DiffusionDPO", tmp_path, share_noise=shared, share_time=shared, beta=3.0)
    start = small_flow()
    moved(made)
    rows = [made.train_dataset[i] for i in (1, 6)]
    inputs = made._collate(rows)
    expected = []
    for i, row in enumerate(rows):
        key = (made.args.seed, "diffusion_dpo", 0)
        t = row_uniform(2, [row["row"]], *key, "time")[0]
        noise = row_noise((1, 4, 4), [row["row"]], *key, "noise")
        other = noise if shared else row_noise((1, 4, 4), [row["row"]], *key, "loser's noise")
        label = made.frame.read_prompts([row["prompt"]])["classes"]

        def error(model: Any, clean: Any, noise: Any, t: Any, label: Any = label) -> Any:
            return (model((1 - t) * clean + t * noise, t.reshape(1), label) - (noise - clean)).square().mean()

        winner, loser = inputs["winners"][i : i + 1], inputs["losers"][i : i + 1]
        late = t[0] if shared else t[1]
        gain = [
            error(start, winner, noise, t[0]) - error(made.model, winner, noise, t[0]),
            error(start, loser, other, late) - error(made.model, loser, other, late),
        ]
        expected.append(-torch.nn.functional.logsigmoid(1.5 * (gain[0] - gain[1])))
    made.model.train()
    assert_close(made.compute_loss(made.model, inputs), torch.stack(expected).mean(), rtol=1e-5, atol=1e-6)
    assert made.model.training


def test_a_swap_leaves_the_policy_to_the_bit():
    model, other = small_flow(), small_flow(5)
    before = [p.detach().clone() for p in model.parameters()]
    swapped = SwappedWeights.of(other)
    with swapped.inside(model) as reference:
        assert not reference.training
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, theirs)
    for mine, was in zip(model.parameters(), before, strict=True):
        assert torch.equal(mine, was)
    assert all(torch.equal(swapped.tensors[name], value) for name, value in other.named_parameters())


@pytest.mark.parametrize("method", METHODS)
def test_the_first_step_is_a_tie_and_teaches(method, tmp_path):
    """Policy and reference are one model: log 2 to the bit, nothing flipped, and still both images pull."""
    made = pair_trainer(method, tmp_path, max_steps=None, rounds=1, steps_per_round=1)
    made.train()
    (log,) = [entry for entry in made.state.log_history if "loss" in entry]
    assert log["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert log[f"{made.method}/winner_margin"] == 0
    assert log.get(f"{made.method}/flip_rate", 0) == 0
    assert log["grad_norm"] > 0


def test_winners_come_to_be_denoised_better_than_losers(tmp_path):
    made = pair_trainer(
        "DiffusionDPO", tmp_path, max_steps=60, optim="adamw_torch", learning_rate=3e-3, beta=50.0
    )
    made.train()
    measured = made.evaluate()
    assert measured["eval_loss"] < 0.6
    assert made.state.log_history[-1]["eval_diffusion_dpo/accuracy"] > 0.7


def test_rounds_draw_from_the_pool_and_sample_from_what_they_measure_with(tmp_path):
    made = pair_trainer("SePPODiffusion", tmp_path, rounds=4, steps_per_round=2, max_steps=None, save_strategy="steps",
                        save_steps=2)  # fmt: skip
    made.train()
    assert len(made.pool) == 4
    assert made.pool.draws == [made.pool.draw(k, "random") for k in (1, 2, 3, 4)]
    drawn = load_file(made.pool.path(made.pool.draws[-1]) / "trained.safetensors")
    assert all(torch.equal(made.reference.tensors[name], value) for name, value in drawn.items())
    saved = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    third = load_file(made.pool.path(2) / "trained.safetensors")
    assert saved.keys() == third.keys()
    assert all(torch.equal(saved[name], third[name]) for name in saved)

    inputs = made._collate([made.train_dataset[i] for i in range(3)])
    with made.reference.inside(made.model) as reference:
        sampled = made.losers(reference, inputs, (0, "x"))
    other = small_flow()
    other.load_state_dict({**other.state_dict(), **drawn})
    assert torch.equal(sampled, made.losers(other.eval(), inputs, (0, "x")).detach())
    assert not torch.equal(sampled, made.losers(made.model.eval(), inputs, (0, "x")).detach())


@pytest.mark.parametrize("reference", ["initial", "latest"])
def test_other_references(reference, tmp_path):
    made = pair_trainer(
        "SePPODiffusion", tmp_path, rounds=3, steps_per_round=1, max_steps=None, reference=reference
    )
    made.train()
    assert made.pool.draws == ([0, 0, 0] if reference == "initial" else [0, 1, 2])


@pytest.mark.parametrize(
    ("method", "at", "place"),
    [("DiffusionDPO", 3, "whole"), ("SePPODiffusion", 2, "whole"), ("SePPODiffusion", 3, "other")],
)
def test_resume_goes_on_bit_for_bit(method, at, place, tmp_path):
    """At the end of a round and within one, in the run's folder and in another."""
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch"}
    whole = pair_trainer(method, tmp_path / "whole", **settings)
    whole.train()
    resumed = pair_trainer(method, tmp_path / place, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{at}"))
    for one, other in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(one, other)


def test_a_fresh_run_begins_its_pool_anew_and_a_resume_without_one_stops(tmp_path):
    old = pair_trainer("SePPODiffusion", tmp_path, save_strategy="steps", save_steps=3)
    old.train()
    shut = pair_trainer("SePPODiffusion", tmp_path / "elsewhere")
    (tmp_path / "pool").rename(tmp_path / "lost")
    with pytest.raises(FileNotFoundError, match="a resume needs the folder 'pool' beside the checkpoint"):
        shut.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    (tmp_path / "lost").rename(tmp_path / "pool")
    again = pair_trainer("SePPODiffusion", tmp_path, model=small_flow(7))
    again.train()
    first = load_file(again.pool.path(0) / "trained.safetensors")
    assert all(torch.equal(first[name], value) for name, value in small_flow(7).named_parameters())


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_alone_is_trained_and_kept(method, tmp_path):
    adapter = LoraConfig(r=2, target_modules=["wide", "back"])
    made = pair_trainer(method, tmp_path, peft_config=adapter)
    base = [p.detach().clone() for n, p in made.model.named_parameters() if "lora" not in n]
    made.train()
    assert all("lora" in name for name in made.reference.tensors)
    after = [p for n, p in made.model.named_parameters() if "lora" not in n]
    assert all(torch.equal(a, b) for a, b in zip(base, after, strict=True))
    assert any(p.abs().max() > 0 for n, p in made.model.named_parameters() if "lora_B" in n)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return runs(8, 1, tmp_path_factory.mktemp("whole"))


def assert_same(found: dict[str, Any], whole: dict[str, Any]) -> None:
    for method in METHODS:
        for one, other in zip(whole[method]["weights"], found[method]["weights"], strict=True):
            assert_close(one, other, rtol=1e-5, atol=2e-6)
        assert found[method]["logs"] == pytest.approx(whole[method]["logs"], rel=1e-4, abs=1e-5)


def test_micro_batches_move_nothing(whole, tmp_path):
    assert_same(runs(2, 4, tmp_path), whole)


@pytest.mark.distributed
def test_ranks_move_nothing(whole, tmp_path):
    out = tmp_path / "found.pt"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(SUPPORT / "image_pair_run.py"), "2", "2", str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(torch.load(out, weights_only=True), whole)


def test_max_steps_and_rounds_must_agree(tmp_path):
    with pytest.raises(ValueError, match="max_steps is 5, but 2 rounds of 2 steps are 4"):
        pair_trainer("SePPODiffusion", tmp_path, max_steps=5)


def test_columns_are_asked_for(tmp_path):
    rows: Dataset = image_pairs().remove_columns("rejected_image")
    with pytest.raises(ValueError, match="'rejected_image'"):
        pair_trainer("DiffusionDPO", Path(tmp_path), rows=rows)
