from __future__ import annotations

import copy
import json
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from posttrain.objectives.bapo import BAPO
from posttrain.objectives.base import Groups, StepTotals, TokenBatch
from posttrain.objectives.bnpo import BNPO
from posttrain.objectives.capo import CAPO
from posttrain.objectives.copo import COPO
from posttrain.objectives.grpo import GRPO
from posttrain.objectives.ppo import PPO
from posttrain.objectives.step import step_losses
from posttrain.observe import recorder, replay
from posttrain.observe.recorder import load_record, record_step
from posttrain.observe.replay import replay_file

P, G, T = 3, 4, 5
REWARDS = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
ANSWERS = [["7", "3", None, "4"], ["1", "1", "2", "2"], ["9", "8", "9", "9"]]


def groups() -> Groups:
    return Groups(REWARDS, REWARDS.unsqueeze(-1), torch.ones(1), ANSWERS)


def micro_batches(seed: int = 0) -> tuple[list[TokenBatch], list[Tensor]]:
    """Two micro-batches of six responses, shuffled as a trainer does, with ratios well off one."""
    draw = torch.Generator().manual_seed(seed)
    rows = list(torch.randperm(P * G, generator=draw).split(6))
    batches = []
    for row in rows:
        old = -torch.rand(6, T, generator=draw) - 0.5
        new = old + 0.6 * torch.randn(6, T, generator=draw)
        mask = (torch.arange(T) < torch.randint(1, T + 1, (6, 1), generator=draw)).float()
        advantages = GRPO().advantages(groups())["advantages"].flatten()[row].unsqueeze(1)
        batches.append(TokenBatch(new, old, mask, advantages, step={"learning_rate": 1e-4}))
    return batches, rows


def totals_of(batches: list[TokenBatch]) -> StepTotals:
    return StepTotals(torch.stack([b.mask.sum() for b in batches]).sum(), torch.tensor(float(P * G)), T)


def record(folder: Path, **changes: object) -> Path:
    batches, rows = micro_batches()
    arguments = {"groups": groups(), "rows": rows} | changes
    return record_step(folder, 7, batches, totals_of(batches), "grpo", {"clip_low": 0.2}, **arguments)  # type: ignore[arg-type]  # test options


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    batches, rows = micro_batches()
    batches[0] = replace(
        batches[0],
        ref_logprobs=batches[0].old_logprobs - 1,
        entropy=batches[0].mask * 0.5,
        streams={"local_weight": torch.rand(6, 1)},
        forward={"hidden": torch.randn(6, T, 2)},
    )
    state = {"rows": {"m": torch.ones(2, 3)}, "count": 4}
    path = record_step(
        tmp_path, 7, batches, totals_of(batches), "bapo", {"target": 0.5}, groups=groups(), rows=rows, state=state
    )  # fmt: skip
    assert path.name == "step-000007.rank0.safetensors"
    back = load_record(path.with_suffix(".json"))
    assert (back.step, back.objective, back.settings) == (7, "bapo", {"target": 0.5})
    assert (back.known, back.world_size, back.ranks, back.left_out) == ({"learning_rate": 1e-4}, 1, [0], {})
    for ours, theirs in zip(back.batches, batches, strict=True):
        for name in ("logprobs", "old_logprobs", "mask", "advantages"):
            assert torch.equal(vars(ours)[name], vars(theirs)[name])
    assert torch.equal(back.batches[0].forward["hidden"], batches[0].forward["hidden"])
    assert torch.equal(back.batches[0].streams["local_weight"], batches[0].streams["local_weight"])
    assert torch.equal(back.batches[0].entropy, batches[0].entropy)  # type: ignore[arg-type]  # recorded
    assert back.batches[1].ref_logprobs is None
    assert back.groups is not None
    assert back.groups.answers == ANSWERS
    assert [r.tolist() for r in back.rows or []] == [r.tolist() for r in rows]
    assert torch.equal(back.state["rows"]["m"], torch.ones(2, 3))
    assert back.state["count"] == 4
    assert (float(back.totals.num_tokens), back.totals.max_completion_length) == (
        float(totals_of(batches).num_tokens),
        T,
    )


def test_replay_equals_the_direct_computation(tmp_path: Path) -> None:
    """GRPO and BAPO by hand: advantages from the rewards, bounds over both micro-batches, loss and gradient."""
    batches, rows = micro_batches()
    _, (grpo, bapo) = replay_file(
        record(tmp_path), ["grpo", "bapo"], ["bapo.target=0.6", "grpo.clip_high=0.3"]
    )
    for objective, found in ((GRPO(clip_low=0.2, clip_high=0.3), grpo), (BAPO(target=0.6), bapo)):
        advantages = objective.advantages(groups())["advantages"].flatten()
        leaves = [b.logprobs.clone().requires_grad_() for b in batches]
        ours = [
            replace(b, logprobs=leaf, advantages=advantages[row].unsqueeze(1), index=i)
            for i, (b, leaf, row) in enumerate(zip(batches, leaves, rows, strict=True))
        ]
        step = objective.observe_step(
            [replace(b, logprobs=b.logprobs.detach()) for b in ours], lambda value: value
        )
        ours = [replace(b, step=step) for b in ours]
        shares = [objective.reduce(objective.token_loss(b), b.mask, totals_of(batches)) for b in ours]
        loss = shares[0] + shares[1]
        loss.backward()
        assert found.loss == pytest.approx(float(loss.detach()), rel=1e-6)
        for gradient, leaf in zip(found.gradients, leaves, strict=True):
            torch.testing.assert_close(gradient, leaf.grad, rtol=1e-6, atol=1e-9)
    assert grpo.bounds == pytest.approx((0.8, 1.3))
    assert bapo.bounds is not None
    assert bapo.bounds[1] > 1.2  # these rollouts are stale enough for the search to move
    assert bapo.metrics["clip_high"] == pytest.approx(bapo.bounds[1])


def test_advantage_rules_are_computed_anew_from_the_recorded_rewards(tmp_path: Path) -> None:
    _, rows = micro_batches()
    _, (bnpo, copo) = replay_file(record(tmp_path), ["bnpo", "copo"], [])
    expected = BNPO().advantages(groups())["advantages"].flatten()
    for found, row in zip(bnpo.advantages, rows, strict=True):
        torch.testing.assert_close(found[:, 0], expected[row])
    streams = {name: value.flatten() for name, value in COPO().advantages(groups()).items()}
    blend = (
        streams["local_weight"] * streams["advantages"]
        + streams["global_weight"] * streams["global_advantages"]
    )
    for found, row in zip(copo.advantages, rows, strict=True):
        torch.testing.assert_close(found[:, 0], blend[row])
    # the third group has equal rewards: no signal for BNPO, some for COPO
    assert bnpo.signal.as_dict()["equal_rewards"] > 0 == copo.signal.as_dict()["equal_rewards"]


def test_what_only_the_rewards_know_is_told_apart(tmp_path: Path) -> None:
    """Group 0 holds a response nobody judged, group 2 has equal rewards."""
    rewards = REWARDS.clone()
    rewards[0, 3] = float("nan")
    batches, rows = micro_batches()
    _, (grpo,) = replay_file(record(tmp_path, groups=replace(groups(), rewards=rewards)), [], [])
    lengths = torch.zeros(P * G)
    for batch, row in zip(batches, rows, strict=True):
        lengths[row] = batch.mask.sum(1)
    counts = grpo.signal.as_dict()
    assert counts["unjudged"] == lengths[3]
    assert counts["equal_rewards"] == lengths[8:].sum()


def test_two_ranks_replay_as_the_one_they_are_a_split_of(tmp_path: Path) -> None:
    batches, rows = micro_batches()
    totals = totals_of(batches)
    for rank in (0, 1):
        path = record_step(
            tmp_path / "two", 7, batches[rank : rank + 1], totals, "bapo", {}, groups=groups(),
            rows=rows[rank : rank + 1], rank=rank, world_size=2,
        )  # fmt: skip
    one = record(tmp_path / "one")
    for wanted in ("bapo", "grpo", "bnpo"):
        _, (single,) = replay_file(one, [f"x={wanted}"], [])
        found, (double,) = replay_file(path, [f"x={wanted}"], [])
        assert found.ranks == [0, 1]
        assert double.notes == []
        assert double.loss == pytest.approx(single.loss, rel=1e-6)
        torch.testing.assert_close(double.gradient, single.gradient)
        assert double.bounds == pytest.approx(single.bounds)
    (tmp_path / "two" / "step-000007.rank1.safetensors").unlink()
    _, (half,) = replay_file(tmp_path / "two", [], [])
    assert "ranks [0] of 2" in half.notes[0]


@dataclass(frozen=True)
class Stumbling(GRPO):
    def keep(self, batch: TokenBatch) -> Tensor | None:
        return batch.streams["missing"]


def test_an_error_on_one_rank_does_not_hang_the_others(tmp_path: Path) -> None:
    """Rank 1 fails before the counts are summed, while rank 0 waits for it there."""
    batches, _ = micro_batches()
    for rank in (0, 1):
        streams = {"missing": torch.ones(6, 1)} if rank == 0 else {}
        part = [replace(batches[rank], streams=streams)]
        record_step(tmp_path, 7, part, totals_of(batches), "grpo", {}, rank=rank, world_size=2)
    back = load_record(tmp_path)
    with pytest.raises(KeyError, match="missing"):
        replay._run_ranks(back, Stumbling(), back.batches)


def test_without_rewards_the_recorded_advantages_stand_and_are_named(tmp_path: Path) -> None:
    path = record(tmp_path, groups=None, rows=None)
    back, (grpo,) = replay_file(path, [], [])
    assert grpo.label == "grpo"
    assert grpo.notes == ["advantages as recorded: the record holds no rewards"]
    torch.testing.assert_close(grpo.advantages[0][:, :1], back.batches[0].advantages)
    with pytest.raises(ValueError, match="COPO needs rewards and answers"):
        replay_file(path, ["copo"], [])


def test_texts_beside_are_said_to_be_left_out(tmp_path: Path) -> None:
    found = load_record(record(tmp_path))
    settings = {"baseline": "group", "loss_over": "responses"}
    with_texts = replay.replay_step(found, PPO(**settings, ptx_data="texts.jsonl", ptx_coef=0.5), "ppo")
    without = replay.replay_step(found, PPO(**settings), "ppo")
    assert with_texts.loss == without.loss
    assert [note for note in with_texts.notes if note not in without.notes] == [
        "texts beside (PPO-ptx) are not in a record: loss and gradient are those of the responses alone"
    ]


def test_the_recorded_settings_are_those_of_the_bare_name(tmp_path: Path) -> None:
    batches, rows = micro_batches()
    path = record_step(
        tmp_path, 1, batches, totals_of(batches), "grpo", {"clip_low": 0.5, "clip_high": 0.5},
        groups=groups(), rows=rows,
    )  # fmt: skip
    _, (as_it_ran, fresh) = replay_file(path, ["grpo", "fresh=grpo"], [])
    assert as_it_ran.bounds == pytest.approx((0.5, 1.5))
    assert fresh.bounds == pytest.approx((0.8, 1.2))


def with_forward(batches: list[TokenBatch], candidates: int = 4) -> list[TokenBatch]:
    """Hidden states and candidates as a forward pass would leave them, over a vocabulary of nine."""
    draw = torch.Generator().manual_seed(3)
    found = []
    for batch in batches:
        logits = torch.randn(6, T, 9, generator=draw)
        top = logits.topk(candidates, dim=-1)
        forward = {
            "hidden": torch.randn(6, T, 2, generator=draw),
            "actions": top.indices[..., 1],
            "candidate_ids": top.indices,
            "candidate_logits": top.values,
        }
        found.append(replace(batch, forward=forward))
    return found


def best_two(forward: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The two likeliest of the candidates, or the likeliest and the sampled id where that is neither."""
    ids, logits, actions = (forward[name] for name in ("candidate_ids", "candidate_logits", "actions"))
    order = logits.argsort(dim=-1, descending=True)
    ids, logits = ids.gather(-1, order), logits.gather(-1, order)
    found = (ids == actions.unsqueeze(-1)).int().argmax(dim=-1, keepdim=True)
    second = torch.cat([torch.zeros_like(found), found.clamp(min=1)], dim=-1)
    return {
        **forward,
        "candidate_ids": ids.gather(-1, second),
        "candidate_logits": logits.gather(-1, second),
    }


def test_a_micro_batch_without_what_the_objective_reads_is_named(tmp_path: Path) -> None:
    batches, rows = micro_batches()
    first, second = with_forward(batches)
    less = {name: value for name, value in second.forward.items() if name != "hidden"}
    batches = [first, replace(second, forward=less)]
    path = record_step(tmp_path, 1, batches, totals_of(batches), "capo", {}, groups=groups(), rows=rows)
    with pytest.raises(ValueError, match="reads hidden of the forward pass, which the record does not hold"):
        replay_file(path, ["capo"], ["capo.num_candidates=4"])


def test_curvature_is_judged_again_with_the_recorded_moments(tmp_path: Path) -> None:
    """CAPO: what it derived from the forward pass is not replayed, its moments are."""
    settings = {"num_candidates": 4, "policy_threshold": 1e-9, "objective_threshold": 0.0}
    capo = CAPO(**settings)
    batches, rows = micro_batches()
    batches = [replace(b, step={"learning_rate": 1e-3, "peak_learning_rate": 1e-3}) for b in batches]
    batches = with_forward(batches)
    capo.finish_step([capo.prepare(b) for b in batches], lambda value: value)  # moments of an earlier step
    state = copy.deepcopy(capo.state_dict())
    direct = step_losses(
        capo, batches, max_completion_length=T, known={"learning_rate": 1e-3, "peak_learning_rate": 1e-3}
    )
    path = record_step(
        tmp_path, 3, direct.batches, totals_of(batches), "capo", settings, groups=groups(), rows=rows, state=state
    )  # fmt: skip
    assert set(load_record(path).batches[0].forward) == {
        "hidden",
        "actions",
        "candidate_ids",
        "candidate_logits",
    }
    _, (as_it_ran, lax) = replay_file(
        path, ["capo", "lax=capo"], ["lax.policy_threshold=1.0", "lax.num_candidates=4"]
    )
    assert as_it_ran.loss == pytest.approx(float(sum(direct.losses)), rel=1e-6)
    for ours, theirs in zip(as_it_ran.masks, direct.masks, strict=True):
        assert torch.equal(ours, theirs > 0)
    assert 0 < as_it_ran.kept_share < 1
    assert as_it_ran.signal.as_dict()["curvature"] > 0
    assert as_it_ran.notes == []
    assert lax.notes == []
    assert lax.kept_share > as_it_ran.kept_share

    # fewer candidates are the best of the recorded ones and the sampled id, as a run with as many would have had
    few = CAPO(**{**settings, "num_candidates": 2})
    few.load_state_dict(state)
    cut = [replace(b, forward=best_two(b.forward)) for b in batches]
    expected = step_losses(
        few, cut, max_completion_length=T, known={"learning_rate": 1e-3, "peak_learning_rate": 1e-3}
    )
    _, (replayed, by_sgd) = replay_file(
        path,
        ["capo", "sgd=capo"],
        [
            *("capo.num_candidates=2", "sgd.optimizer_model=sgd", "sgd.num_candidates=2"),
            *("sgd.policy_threshold=1e-9", "sgd.objective_threshold=0"),
        ],
    )
    for ours, theirs in zip(replayed.masks, expected.masks, strict=True):
        assert torch.equal(ours, theirs > 0)
    assert by_sgd.notes == []  # it keeps no moments
    without = [
        "capo.objective_threshold=null",
        "capo.policy_threshold=null",
    ]  # or calibrate has nothing to find
    _, (calibrating,) = replay_file(path, ["capo"], ["capo.calibrate=true", *without])
    assert calibrating.notes == ["running statistics start empty"]
    with pytest.raises(ValueError, match="wants 50 candidates per token and the record holds 4"):
        replay_file(path, ["wide=capo"], [])
    with pytest.raises(ValueError, match="num_candidates"):
        replay_file(path, ["capo"], ["capo.num_candidates=1"])
    with pytest.raises(ValueError, match="CAPO reads candidates and hidden of the forward pass"):
        replay_file(record(tmp_path / "grpo"), ["capo"], [])


def test_outputs_too_large_are_left_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "MAX_FORWARD_BYTES", 1000)
    batches, _ = micro_batches()
    batches = [
        replace(b, forward={"hidden": torch.randn(6, T, 20), "actions": torch.ones(6, T)}) for b in batches
    ]
    back = load_record(record_step(tmp_path, 1, batches, totals_of(batches), "grpo", {}))
    assert set(back.left_out) == {"batch0/forward/hidden", "batch1/forward/hidden"}
    assert set(back.batches[0].forward) == {"actions"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objective", "bapoo"], "no objective 'bapoo'; did you mean 'bapo'?"),
        (
            ["--objective", "bapo", "--set", "bapo.targt=1"],
            "bapo has no setting 'targt'; did you mean 'target'?",
        ),
        (["--objective", "bapo", "--set", "bapo.target=high"], "bapo.target"),
        (["--objective", "bapo", "--set", "bapo.target=7"], "is no share"),
        (["--objective", "bapo", "--set", "target=1"], "write OBJECTIVE.SETTING=VALUE"),
        (["--objective", "bapo", "--set", "grpo.clip_low=1"], "no --objective 'grpo'"),
        (["--objective", "bapo", "--objective", "bapo"], "two of the same label"),
        (["--objective", "sft"], "no objective 'sft'"),
    ],
)
def test_mistakes_are_one_line_with_a_remedy(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = ArgumentParser()
    replay.add_arguments(parser)
    assert replay.main(parser.parse_args([str(record(tmp_path)), *arguments])) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_command_prints_a_table_and_draws_a_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = record(tmp_path)
    parser = ArgumentParser()
    replay.add_arguments(parser)
    arguments = [
        str(path),
        "--objective",
        "grpo",
        "--objective",
        "wide=bapo",
        "--set",
        "wide.low=[0.5, 0.5, 0.1]",
    ]
    assert replay.main(parser.parse_args(arguments)) == 0
    out = capsys.readouterr().out
    _, (grpo, wide) = replay_file(path, ["grpo", "wide=bapo"], ["wide.low=[0.5, 0.5, 0.1]"])
    assert f"{grpo.loss:.6g}" in out
    assert f"{wide.loss:.6g}" in out
    assert wide.bounds is not None
    assert wide.bounds[0] == pytest.approx(0.5)
    assert path.with_suffix(".replay.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(path.with_suffix(".json").read_text())["objective"] == "grpo"


def test_a_file_that_is_no_record_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    replay.add_arguments(parser)
    assert replay.main(parser.parse_args([str(tmp_path / "x.safetensors")])) == 2
    assert "not a recorded step" in capsys.readouterr().err
    assert replay.main(parser.parse_args([str(tmp_path)])) == 2
    assert "one recorded step; found: none" in capsys.readouterr().err
