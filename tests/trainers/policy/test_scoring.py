"""Scores of all ranks, weighted and put in order, without a model: the judge of a stand-in for TRL's trainer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from posttrain.rewards.runner import RewardError, Scores
from posttrain.trainers.engines.scored_rollout import Rollout
from posttrain.trainers.policy import judging
from posttrain.trainers.policy.judging import Judge, in_order, require_judged, state_snapshot

NAN = float("nan")


class Host:
    """A trainer's names that judging reads."""

    def __init__(self, rank: int = 0, ranks: int = 1, **attributes: Any) -> None:
        self.accelerator = SimpleNamespace(
            process_index=rank, num_processes=ranks, device=torch.device("cpu"), is_main_process=rank == 0
        )
        self.logged: dict[str, list[Any]] = {}
        vars(self).update(attributes)

    def _log_completion_extra(self, column: str, values: list[Any]) -> None:
        self.logged.setdefault(column, []).extend(values)

    def _log_metric(self, name: str, value: float) -> None:
        self.logged.setdefault(name, []).append(value)


def judge_of(host: Host, runner: Any = None, last: Rollout | None = None) -> Judge:
    judge = Judge(host, runner, lambda *_: pytest.fail("nothing here is TRL's to judge"))
    judge.rollout = last
    return judge


def rollout(per_function: list[list[float]], answers: list[str | None] | None = None) -> Rollout:
    size = len(per_function)
    return Rollout(["p"] * size, ["c"] * size, [[1]] * size, {}, torch.tensor(per_function), answers, {})


def test_two_weighted_rewards_of_which_some_are_missing():
    last = rollout([[1.0, 10.0], [NAN, 10.0], [2.0, NAN], [NAN, NAN]], ["a", None, "b", "c"])
    judge = judge_of(Host(reward_weights=torch.tensor([2.0, -0.5])), last=last)
    groups = judge.groups(2)
    assert groups.rewards.shape == (2, 2)
    # 2*1 - 0.5*10, -0.5*10 alone, 2*2 alone, and nothing at all: that is no reward, not a reward of 0
    assert groups.rewards[0].tolist() == [-3.0, -5.0]
    assert groups.rewards[1, 0] == 4.0
    assert groups.rewards[1, 1].isnan()
    assert groups.weights.tolist() == [2.0, -0.5]
    assert groups.rewards_per_function.shape == (2, 2, 2)
    assert groups.rewards_per_function[1, 0].nan_to_num(-1.0).tolist() == [2.0, -1.0]
    assert groups.answers == [["a", None], ["b", "c"]]
    judge.rollout = rollout([[1.0, 1.0]])
    assert judge.groups(1).answers is None


def test_ranks_scores_come_back_in_the_order_of_the_responses():
    def scores(values, answers, failures, extra, metrics):
        return Scores(values, answers, {"r": {"none": failures, "inf": 0}}, extra=extra, metrics=metrics)

    first = scores([[1.0], [2.0], [5.0], [6.0]], ["a", None, "e", "f"], 1, {"x": [1, 2, 5, 6]}, {"m": [1.0]})
    second = scores([[3.0], [None]], None, 2, {"y": ["c", "d"]}, {"m": [2.0], "n": [3.0]})
    whole = in_order([([[0, 1], [4, 5]], first), ([[2, 3]], second)], 6)
    assert whole.values == [[1.0], [2.0], [3.0], [None], [5.0], [6.0]]
    assert whole.answers == ["a", None, None, None, "e", "f"]
    assert whole.counts == {"r": {"none": 3, "inf": 0}}
    assert whole.extra == {"x": [1, 2, None, None, 5, 6], "y": [None, None, "c", "d", None, None]}
    assert whole.metrics == {"m": [1.0, 2.0], "n": [3.0]}
    assert in_order([([[0, 1]], second)], 2).answers is None


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_scores_every_second_group_and_hands_on_its_own_logs(monkeypatch, rank):
    asked: list[list[str]] = []

    class Runner:
        def score(self, completions, *, columns, group_size, **named):
            asked.append(
                [completions, columns["gold"], named["prompts"], named["completion_ids"], group_size]
            )
            assert named["messages"] is None
            assert named["trainer_state"]["global_step"] == 4
            return Scores([[float(c)] for c in completions], None, {"r": {}}, extra={"x": list(completions)})

    def gather(parts):  # the other rank did the same for the other groups
        if not isinstance(parts[0], tuple):
            return parts * 2
        groups, _ = parts[0]
        other = [[g + (2 if rank == 0 else -2) for g in group] for group in groups]
        return [*parts, (other, Scores([[float(i)] for g in other for i in g], None, {"r": {}}))]

    monkeypatch.setattr(judging, "gather_object", gather)
    state = SimpleNamespace(global_step=4, log_history=[])
    host = Host(rank, 2, state=state, environments=None)
    judge = judge_of(host, Runner())
    rows = [
        {"prompt": f"p{i}", "completion": str(i), "messages": None, "ids": [i], "written": 1}
        | {"columns": {"gold": i * 10}}
        for i in range(8)
    ]
    scores = judge._score_groups(rows, ["gold"], 2)
    mine = [0, 1, 4, 5] if rank == 0 else [2, 3, 6, 7]
    assert asked == [
        [[str(i) for i in mine], [i * 10 for i in mine], [f"p{i}" for i in mine], [[i] for i in mine], 2]
    ]
    assert scores.values == [[float(i)] for i in range(8)]
    judge._pass_on_logs({"x": list("abcdefgh")}, {"m": [1.0, 3.0]}, 4)
    assert host.logged == {"x": list("abcd" if rank == 0 else "efgh"), "m": [1.0, 3.0]}


def test_a_failure_elsewhere_is_raised_here_with_its_rank(monkeypatch):
    class Runner:
        def score(self, *_: Any, **__: Any) -> Scores:
            return Scores([[0.0]], None, {})

    monkeypatch.setattr(
        judging, "gather_object", lambda parts: [None, "KeyError: x"] if parts == [None] else parts
    )
    state = SimpleNamespace(log_history=[])
    judge = judge_of(Host(0, 2, state=state, environments=None), Runner())
    rows = [{"prompt": "p", "completion": "c", "messages": None, "ids": [1], "written": 1, "columns": {}}]
    with pytest.raises(RewardError, match="on rank 1: KeyError: x"):
        judge._score_groups(rows, [], 1)


def test_nan_is_not_judged_of_a_function_and_a_fault_of_a_model():
    values = torch.tensor([[NAN, 1.0], [2.0, NAN]])
    require_judged(values, ["f", "g"], [])
    with pytest.raises(RewardError, match="reward 'g' gave nan for response 1,"):
        require_judged(values, ["f", "g"], [1])
    with pytest.raises(RewardError, match="reward 'f' gave -inf for response 0,"):
        require_judged(torch.tensor([[-torch.inf, 1.0]]), ["f", "g"], [])


def test_the_state_s_snapshot_holds_plain_values_and_the_latest_logs():
    state = SimpleNamespace(
        global_step=3, epoch=0.5, best=None, callbacks=object(), log_history=[{"a": i} for i in range(150)]
    )
    snapshot = state_snapshot(state)
    assert {k: v for k, v in snapshot.items() if k != "log_history"} == {
        "global_step": 3,
        "epoch": 0.5,
        "best": None,
    }
    assert snapshot["log_history"] == [{"a": i} for i in range(50, 150)]


def test_advantages_take_the_place_of_those_that_were_logged():
    host = Host(_logs={"advantages": [9.0, 7.0, 8.0]})
    judge = judge_of(host, last=rollout([[0.0]] * 2))
    judge.record_advantages(torch.tensor([1.0, -1.0]))
    assert host._logs["advantages"] == [9.0, 1.0, -1.0]
    assert judge.rollout is not None
    assert judge.rollout.advantages == [1.0, -1.0]
