"""Responses that take turns with tools: whose token is whose, in masks, counts, metrics, reports and after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tool_runs import LOTS, lots, tool_trainer

from posttrain.trainers.engines.attach import own_model_engine
from posttrain.trainers.policy.bindings import (
    GRPOConfig,
    GRPOTrainer,
    REINFORCEPlusPlusConfig,
    REINFORCEPlusPlusTrainer,
)
from posttrain.trainers.policy.ppo_trainer import PPOConfig, PPOTrainer
from posttrain.trainers.reporting.rollout_columns import last_rollout


class Listening:
    """An engine that keeps what it was asked and what it answered."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.calls = engine, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("engine", "calls"):
            object.__setattr__(self, name, value)
        else:
            setattr(self.engine, name, value)

    def generate(self, prompts: Any, sampling: Any) -> Any:
        made = self.engine.generate(prompts, sampling)
        self.calls.append((prompts, sampling, made))
        return made


def trained(
    folder: Path, steps: int = 1, *, own_engine: bool = True, resume: str | None = None, **extra: Any
) -> Any:
    made = tool_trainer(
        GRPOTrainer, GRPOConfig, folder, lots(folder), max_steps=steps, log_completions=False, **extra
    )
    made.buffers = []
    keep = made._generate_and_score_completions

    def kept(inputs: Any) -> Any:
        output = keep(inputs)
        made.buffers.append({k: v.clone() for k, v in output.items() if isinstance(v, torch.Tensor)})
        return output

    made._generate_and_score_completions = kept
    if own_engine:
        made.listening = Listening(own_model_engine(made))
        made.use_engine(made.listening)
    made.train(resume_from_checkpoint=resume)
    made.turns.toolbox.close()
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trained(tmp_path_factory.mktemp("tools"), record_steps=[1])


def test_what_a_tool_says_is_read_and_not_trained_on(run: Any) -> None:
    """Each response is its turns as they were sampled, and between them what the template makes of the answers."""
    (output,), rollout = run.buffers, run.rollout
    tokenizer = run.processing_class
    turns: dict[int, list[list[int]]] = {row: [] for row in range(12)}
    for number, (prompts, _, made) in enumerate(run.listening.calls):
        rows = range(12) if number == 0 else find_rows(prompts, rollout, output)
        for row, one in zip(rows, made, strict=True):
            turns[row].append(one.token_ids)
    assert 2 < max(map(len, turns.values())) <= 4  # max_tool_calling_iterations + 1
    for row, ids in enumerate(rollout.completion_ids):
        mask = output["tool_mask"][row, : len(ids)].tolist()
        own = [token for token, mine in zip(ids, mask, strict=True) if mine]
        assert own == [token for turn in turns[row] for token in turn][: len(own)]
        spoken = [m["content"] for m in rollout.messages[row] if m["role"] == "tool"]
        world = tokenizer.decode([token for token, mine in zip(ids, mask, strict=True) if not mine])
        assert world == "".join(f"={text}>" for text in spoken)
        assert rollout.written[row] == sum(mask)
        assert len(ids) <= 40
    assert sum(map(sum, (output["tool_mask"] == 0).tolist())) > 0
    assert torch.equal(run.judge.groups(4).written.flatten(), torch.tensor(rollout.written))


def find_rows(prompts: list[list[int]], rollout: Any, output: dict[str, Any]) -> list[int]:
    """By what stands before a later turn, which is a beginning of prompt and response."""
    wholes = [
        [t for t, real in zip(p.tolist(), m.tolist(), strict=True) if real] + ids
        for p, m, ids in zip(output["prompt_ids"], output["prompt_mask"], rollout.completion_ids, strict=True)
    ]
    rows, row = [], -1
    for ids in prompts:
        row = next(r for r in range(row + 1, 12) if wholes[r][: len(ids)] == ids)
        rows.append(row)
    return rows


def test_log_probs_stand_beside_their_tokens_in_every_turn(run: Any) -> None:
    (output,) = run.buffers
    mask = (output["completion_mask"] * output["tool_mask"]).bool()
    sampled = output["sampling_per_token_logps"]
    assert (sampled[~mask] == 0).all()
    fresh = trained_twin(run)
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
    seen = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = fresh(ids, attention_mask=seen, position_ids=positions).logits
    width = output["completion_ids"].size(1)
    scored = (
        logits[:, -width - 1 : -1].log_softmax(-1).gather(2, output["completion_ids"].unsqueeze(2))[..., 0]
    )
    assert torch.allclose(scored[mask], sampled[mask], atol=1e-4)
    assert (output["weight_version"][mask] == 0).all()


def trained_twin(run: Any) -> Any:
    """The model before its step."""
    from tool_runs import talking_model

    return talking_model(run.processing_class).eval()


def test_later_turns_get_no_more_than_the_room_that_is_left(run: Any) -> None:
    first = run.listening.calls[0][0]
    seeds: list[int] = []
    for prompts, sampling, made in run.listening.calls[1:]:
        for ids, one, completion in zip(prompts, sampling, made, strict=True):
            lengths = {len(p) for p in first if ids[: len(p)] == p}
            assert one.max_new_tokens in {max(1, 40 - (len(ids) - length)) for length in lengths}
            assert len(completion.token_ids) <= one.max_new_tokens
            seeds.append(one.seed)
    assert len(seeds) == len(set(seeds))


def test_the_account_and_the_metrics_tell_the_model_from_the_world(run: Any) -> None:
    rollout = run.rollout
    (logged,) = [entry for entry in run.state.log_history if "tools/turns" in entry]
    tokens = sum(map(len, rollout.completion_ids))
    written = sum(rollout.written)
    assert logged["signal/tool"] == pytest.approx(1 - written / tokens)
    assert logged["tools/token_share"] == pytest.approx(1 - written / tokens)
    assert logged["completions/mean_length"] == pytest.approx(written / 12)
    said = [[m for m in messages if m["role"] == "assistant"] for messages in rollout.messages]
    assert logged["tools/turns"] == pytest.approx(sum(map(len, said)) / 12)
    assert logged["tools/unanswered"] == pytest.approx(
        sum(bool(one[-1].get("tool_calls")) for one in said) / 12
    )
    assert logged["tools/call_frequency"] > 0.5
    assert logged["tools/timeouts"] == logged["tools/crashes"] == 0
    columns = last_rollout(run)
    assert columns is not None
    row = max(range(12), key=lambda r: len(rollout.messages[r]))
    lines = columns["transcript"][row].splitlines()
    place = lines.index("[model calls] poke(x='b')")
    assert next(line for line in lines[place:] if "calls" not in line) in ("[poke] aa", "[poke] bb")
    assert columns["written_tokens"] == rollout.written
    assert columns["tool_calls"][row] == sum(len(m.get("tool_calls") or ()) for m in rollout.messages[row])


def test_a_recorded_step_replays_without_the_world_s_tokens(run: Any, tmp_path: Path) -> None:
    from posttrain.observe.recorder import load_record
    from posttrain.observe.replay import replay_step

    folder = Path(run.args.output_dir).parent / "records"
    record = load_record(next(folder.glob("*.safetensors")))
    assert record.groups is not None
    assert record.groups.written is not None
    assert sum(int(batch.mask.sum()) for batch in record.batches) == sum(run.rollout.written)
    found = replay_step(record, run.objective, "grpo")
    assert found.loss_tokens == sum(run.rollout.written)


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """Prompts hold what an environment drew, answers too: both are drawn again as they were."""
    saving = {"save_strategy": "steps", "save_steps": 1, "num_iterations": 2}
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = trained(tmp_path / "whole", 4, **saving)
    cut = trained(tmp_path / "cut", 4, resume=str(tmp_path / "whole" / "checkpoint-1"), **saving)
    for a, b in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.rollout.completion_ids == cut.rollout.completion_ids


def test_rewards_are_told_how_many_tokens_the_model_wrote(tmp_path: Path) -> None:
    def tokens(completions, *, completion_tokens, completion_ids, **_):
        return [
            float(count) + len(ids) / 1000
            for count, ids in zip(completion_tokens, completion_ids, strict=True)
        ]

    run = trained(tmp_path, rewards=[tokens])
    found = run.rollout.rewards_per_function[:, 0].tolist()
    whole = [len(ids) for ids in run.rollout.completion_ids]
    assert found == pytest.approx([w + n / 1000 for w, n in zip(run.rollout.written, whole, strict=True)])


def test_trl_s_own_generation_takes_the_same_turns(tmp_path: Path) -> None:
    run = trained(tmp_path, own_engine=False)
    (logged,) = [entry for entry in run.state.log_history if "tools/turns" in entry]
    assert logged["tools/turns"] > 1
    assert logged["signal/tool"] == pytest.approx(logged["tools/token_share"])


@pytest.mark.parametrize(
    ("trainer", "config", "settings"),
    [
        (PPOTrainer, PPOConfig, {"critic_warmup": 0, "beta": 0.05}),
        (REINFORCEPlusPlusTrainer, REINFORCEPlusPlusConfig, {"beta": 0.05}),
    ],
)
def test_methods_with_a_number_per_token_leave_the_world_s_out(
    trainer: Any, config: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    run = tool_trainer(trainer, config, tmp_path, lots(tmp_path), max_steps=1, **settings)
    run.use_engine(own_model_engine(run))
    run.train()
    run.turns.toolbox.close()
    groups = run.step.groups
    assert groups.mask is not None
    assert torch.equal(groups.mask.sum(2), groups.written.to(groups.mask))
    advantages = run._buffered_inputs[0]["advantages"]
    world = run._buffered_inputs[0]["tool_mask"] == 0
    assert world.any()
    assert (advantages[world[:, : advantages.size(1)]] == 0).all()


def test_an_environment_that_cannot_begin_stops_the_run_at_a_saved_state(tmp_path: Path) -> None:
    from posttrain.environments.tool_specs import EnvironmentFault

    broken = LOTS.replace("self.pokes = 0", "self.pokes = 1 / 0")
    run = tool_trainer(GRPOTrainer, GRPOConfig, tmp_path, lots(tmp_path, broken), max_steps=1)
    with pytest.raises(EnvironmentFault, match=r"reset: ZeroDivisionError(.|\n)*No step was complete yet"):
        run.train()
    run.turns.toolbox.close()


def test_a_tool_that_hangs_costs_its_time_once_and_the_run_goes_on(tmp_path: Path) -> None:
    hanging = LOTS.replace("self.pokes += 1", "self.pokes += 1\n        while self.pokes == 2: pass")
    run = tool_trainer(
        GRPOTrainer,
        GRPOConfig,
        tmp_path,
        lots(tmp_path, hanging, timeout_s=0.2),
        max_steps=1,
        max_completion_length=160,
    )
    run.use_engine(own_model_engine(run))
    run.train()
    run.turns.toolbox.close()
    (logged,) = [entry for entry in run.state.log_history if "tools/turns" in entry]
    assert logged["tools/timeouts"] == logged["tools/lost_environments"] > 0
    lost = run.rollout.rewards_per_function[:, 0].isnan()
    assert int(lost.sum()) == logged["tools/lost_environments"]
    told = [m["content"] for one in run.rollout.messages for m in one if "no answer within" in m["content"]]
    assert told  # and they are unjudged, not wrong


def test_a_turn_without_room_left_is_an_empty_one(tmp_path: Path) -> None:
    """The answer may fill the last token: then nothing is left to sample, and nothing is parsed."""
    for length in (6, 7, 8):
        folder = tmp_path / str(length)
        folder.mkdir()
        run = trained(folder, max_completion_length=length)
        assert max(map(len, run.rollout.completion_ids)) <= length
