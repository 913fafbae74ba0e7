"""iTool end to end at toy size: what is read, searched and trained on, and that neither kills nor ranks change it."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from itool_runs import ROWS, itool_run, itool_tokenizer
from places import SUPPORT
from staged_helpers import LORA, KillAt, Killed, lines, policies, same
from torch.testing import assert_close

from posttrain.preferences.call_search import in_lockstep
from posttrain.rollout.base import Sampling
from posttrain.trainers.models.load import character_tokenizer
from posttrain.trainers.staged import itool
from posttrain.trainers.staged.call_reader import CallPolicy, GoldReader, judgement_prompt, letter_ids

GOLD = '[weather(city="Oslo", days=3)]'


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    trainer = itool_run(tmp_path_factory.mktemp("itool") / "whole")
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def policy(whole):
    return CallPolicy(
        whole.pool.path(1), itool_tokenizer(), base=whole.base, device=torch.device("cpu"), rows=2
    )


def worked(trainer, stage, name):
    found = itool.read_worked(trainer.output_dir / "stages" / f"{stage:03d}", name)
    return [found[i] for i in sorted(found)]


def test_pairs_stand_behind_one_partial_call_in_the_tokens_that_were_written(whole):
    tokenizer = itool_tokenizer()
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in ROWS]
    for stage in range(2):
        searched = worked(whole, stage, "search")
        assert len(searched) == 6  # 60 % of ten rows
        written = [pair for row in searched for pair in row["pairs"]]
        pairs = lines(whole.output_dir / "stages" / f"{stage:03d}" / "pairs.jsonl")
        assert len(pairs) == len(written) > 4
        for pair, found in zip(pairs, written, strict=True):
            assert any(pair["prompt_ids"] == prompt + found["prefix"] for prompt in prompts)
            assert (pair["chosen_ids"], pair["rejected_ids"]) == (found["chosen"], found["rejected"])
            assert pair["chosen_ids"] != pair["rejected_ids"]
        ends = [pair["chosen_ids"][-1] == tokenizer.eos_token_id for pair in pairs]
        assert not all(ends)  # no end token behind a fragment that goes on
    assert len(whole.pool) == 3
    assert whole.state.global_step == whole.state.max_steps == 4


def test_the_account_has_every_row_and_step(whole):
    counts = json.loads((whole.output_dir / "stages" / "001" / "counts.json").read_text())
    assert counts["rows_in"] == counts["trained"] + sum(counts["dropped"].values())
    assert counts["dropped"]["row is none of the hardest"] == 4


def test_the_rows_searched_are_those_of_highest_perplexity_under_the_stages_policy(whole, policy):
    tokenizer = itool_tokenizer()
    found = []
    for row in ROWS:
        prompt = tokenizer(row["prompt"])["input_ids"]
        gold = tokenizer(row["answer"])["input_ids"]
        with torch.no_grad():
            logits = policy.model(torch.tensor([prompt + gold])).logits[0].double()
        logps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        found.append(math.exp(-logps.gather(1, torch.tensor(gold)[:, None]).mean().item()))
    assert worked(whole, 1, "perplexity") == pytest.approx(found, rel=1e-4)
    assert worked(whole, 0, "perplexity") != pytest.approx(found, rel=1e-4)


def test_a_batch_of_unequal_rows_is_what_each_is_alone(policy):
    prompts, answers = [[5, 6, 7], [8], [9, 10]], [[11], [12, 13, 14, 15], [16, 17]]
    together = policy.logps(prompts, answers)
    alone = [policy.logps([p], [a])[0] for p, a in zip(prompts, answers, strict=True)]
    for mine, its in zip(together, alone, strict=True):
        assert mine == pytest.approx(its, abs=1e-5)
    assert policy.judgements(prompts) == [pytest.approx(policy.judgements([p])[0], abs=1e-6) for p in prompts]


def test_priors_are_of_the_policy_and_not_of_the_heat(policy):
    hot = [Sampling(temperature=2.5, max_new_tokens=6, seed=1)]
    (one,) = policy.write([[5, 6, 7]], hot)
    assert list(one.logps) == pytest.approx(policy.logps([[5, 6, 7]], [list(one.tokens)])[0], abs=1e-5)
    drawn = policy.engine.generate([[5, 6, 7]], hot)[0]
    assert tuple(drawn.token_ids) == one.tokens
    assert list(one.logps) != pytest.approx(list(drawn.logprobs), abs=1e-2)


def test_a_letter_is_its_own_token_and_none_that_contains_it(policy):
    tokenizer = itool_tokenizer()
    assert tokenizer.decode(letter_ids(tokenizer)) == "ABCD"
    ids = judgement_prompt(tokenizer, "weather in Oslo>", GOLD)
    (shares,) = policy.judgements([ids])
    with torch.no_grad():
        all_shares = policy.model(torch.tensor([ids])).logits[0, -1].softmax(-1)
    assert shares == pytest.approx(all_shares[letter_ids(tokenizer)].tolist(), abs=1e-6)
    # "(", ")" and "a" stand within "(a)", yet none of their probability goes to A
    near = {tokenizer(c, add_special_tokens=False)["input_ids"][0] for c in "()a"}
    assert not near & set(letter_ids(tokenizer))
    assert tokenizer.decode(ids).endswith("(")
    with pytest.raises(ValueError, match="'A' is no token of its tokenizer"):
        letter_ids(character_tokenizer("abc()"))


def test_fragments_are_scored_by_structure_and_as_released_by_words():
    tokenizer = itool_tokenizer()
    ours = GoldReader(tokenizer, GOLD, "corrected")
    released = GoldReader(tokenizer, GOLD, "reference")

    def ours_of(before, fragment, ended=False):
        return ours.score(before, fragment, ended)

    assert ours_of("[weather(city=", '"Oslo", days=') == pytest.approx(0.6)
    assert ours_of("[weather(city=", '"Bonn", days=') == pytest.approx(0.1)
    assert ours_of("", "[wea") == pytest.approx(0.1)  # nothing to be right about yet
    assert ours_of("", "[clo") == pytest.approx(-0.4)  # and nothing that it could become
    assert ours_of("", "clouds)]", True) == pytest.approx(-0.6)
    assert ours_of("", "[wea", True) == pytest.approx(-0.6)
    assert ours_of('[weather(city="Oslo", days=', "3)]", True) == pytest.approx(0.6)
    assert ours_of('[weather(city="Oslo"', ")]") == pytest.approx(0.4)  # it ends too early
    assert ours_of('[weather(city="Oslo", days=3, ', "4)]") == pytest.approx(0.4)  # and is no call
    # values in each other's place: the words are there
    swapped = '[weather(city=3, days="Oslo")]'
    assert released.score("", swapped, True) == pytest.approx(0.6)
    assert ours_of("", swapped, True) == pytest.approx(0.1 + 1 / 3 - 0.5)
    assert released.score("[weather(city=", '"Oslo", days=', False) == pytest.approx(-0.1 + 1.0 - 0.5)
    plain = GoldReader(tokenizer, "Good day to you", "corrected")
    assert plain.score("", "Good day", False) == pytest.approx(0.6)
    assert plain.score("", GOLD, True) == pytest.approx(-0.6)


def test_compat_reaches_tree_and_pairs(tmp_path, monkeypatch):
    seen = []

    def watched(root, text, overlap, rule):
        seen.append(rule.sums)
        return real(root, text, overlap, rule)

    real = itool.step_pairs
    monkeypatch.setattr(itool, "step_pairs", watched)
    itool_run(tmp_path / "run", rows=ROWS[:3], compat="reference", iterations=1, max_steps=1).train()
    assert set(seen) == {True}


def test_most_pairs_and_rows_without_room_are_counted(tmp_path):
    long = {"prompt": "x" * 230, "answer": GOLD}
    trainer = itool_run(tmp_path / "run", rows=[long, *ROWS[:4]], max_pairs=2, iterations=1, max_steps=1)
    trainer.train()
    counts = json.loads((trainer.output_dir / "stages" / "000" / "counts.json").read_text())
    assert counts["trained"] == 2
    assert counts["dropped"]["row leaves a call no room within max_length"] == 1
    assert counts["dropped"]["pair beyond max_pairs"] > 0


class Killing:
    """`in_lockstep` that is killed at its call number `at`."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, *arguments):
        self.left -= 1
        if self.left == 0:
            raise Killed
        return in_lockstep(*arguments)


@pytest.mark.parametrize("kill", ["in the second search", "in training"])
def test_a_killed_run_continues_with_the_same_numbers(kill, whole, tmp_path, monkeypatch):
    folder = tmp_path / "broken"
    if kill == "in training":
        broken = itool_run(folder, callbacks=[KillAt(3)])
    else:
        broken = itool_run(folder)
        monkeypatch.setattr(itool, "in_lockstep", Killing(4))  # two batches a stage: the second of the second
    with pytest.raises(Killed):
        broken.train()
    monkeypatch.undo()
    if kill != "in training":
        with (folder / "stages" / "001" / "search-0.jsonl").open("a") as file:
            file.write('{"row": 3, "val')  # the kill came within a line
        assert len(worked(broken, 1, "search")) == 3
    resumed = itool_run(folder)
    resumed.train(resume_from_checkpoint=True)
    assert all(same(a, b) for a, b in zip(policies(whole), policies(resumed), strict=True))
    for name in ("perplexity", "search"):
        assert worked(resumed, 1, name) == worked(whole, 1, name)


def test_an_adapter_is_searched_with_and_trained(tmp_path):
    trainer = itool_run(
        tmp_path / "run", peft=copy.deepcopy(LORA), iterations=2, max_steps=1, learning_rate=1e-1
    )
    trainer.train()
    first, second = (worked(trainer, stage, "perplexity") for stage in range(2))
    assert first != second


@pytest.mark.distributed
def test_two_ranks_search_and_end_as_one(whole, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(SUPPORT / "itool_runs.py"), str(tmp_path / "two")],
        env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    stages = [tmp_path / "two" / "stages" / f"{stage:03d}" for stage in range(2)]
    assert len(list(stages[0].glob("search-*.jsonl"))) == 2
    found = itool.read_worked(stages[0], "perplexity")
    assert [found[i] for i in sorted(found)] == pytest.approx(worked(whole, 0, "perplexity"), rel=1e-5)
    found = itool.read_worked(stages[0], "search")
    assert [tokens_of(found[i]) for i in sorted(found)] == [
        tokens_of(row) for row in worked(whole, 0, "search")
    ]
    two = itool_run(tmp_path / "two")
    assert len(two.pool) == len(whole.pool) == 3
    mine, its = policies(two)[1], policies(whole)[1]
    for key in its:
        assert_close(mine[key], its[key], rtol=0, atol=1e-4)  # sums over ranks, through Adam's division


def tokens_of(row):
    return [(pair["prefix"], pair["chosen"], pair["rejected"]) for pair in row["pairs"]], row["refused"]


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="leave the generator out"):
        itool.IToolTrainer(
            "model", ROWS, itool.IToolConfig(output_dir=str(tmp_path), use_cpu=True), itool_tokenizer(),
            generator=lambda *_: [],
        )  # fmt: skip
    with pytest.raises(ValueError, match="no row"):
        itool_run(tmp_path / "none", rows=[])
