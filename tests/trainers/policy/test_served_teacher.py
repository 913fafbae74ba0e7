"""A teacher behind a server says what it says in this process; another tokenizer or temperature is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from rollout_fakes import http_server
from served_double import ServedModel
from tiny_run import arguments, rows
from torch.testing import assert_close

from posttrain.rollout.base import EngineLost, EngineRefused
from posttrain.run.plan import make_plan
from posttrain.trainers import OPDConfig, OPDTrainer
from posttrain.trainers.forward.base import Rows
from posttrain.trainers.models.load import character_tokenizer, scratch_llama

RUN: dict[str, Any] = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0}


@pytest.fixture
def teacher(tokenizer):
    model = scratch_llama(tokenizer, hidden_size=48, layers=1, heads=2, max_positions=128, seed=5)
    with torch.no_grad():
        model.lm_head.weight *= 10  # surer of itself than random weights are
    return model


@pytest.fixture
def served(teacher, tokenizer):
    return ServedModel(teacher, tokenizer, name="big/model")


def build(
    model: Any, tokenizer: Any, folder: Any, url: str | None, teacher: Any = None, **settings: Any
) -> Any:
    own = {} if url is None else {"teacher_server": url, "teacher_retries": 0, "teacher_timeout_s": 5.0}
    args = OPDConfig(**arguments(folder, **{**RUN, **own, **settings}))
    return OPDTrainer(copy.deepcopy(model), None, args, rows(24), processing_class=tokenizer, teacher=teacher)


def test_a_run_is_that_with_the_teacher_here(tiny_model, tokenizer, tmp_path, teacher, served):
    here = build(tiny_model, tokenizer, tmp_path, None, teacher)
    here.train()
    with http_server(served.answer) as url:
        there = build(tiny_model, tokenizer, tmp_path, url, teacher_batch_size=5)
        there.train()
    for one, two, start in zip(
        there.model.parameters(), here.model.parameters(), tiny_model.parameters(), strict=True
    ):
        assert_close(one, two, rtol=1e-4, atol=1e-6)
        assert not torch.equal(two, start)
    found = [
        [line["opd/reverse_kl"] for line in made.state.log_history if "opd/reverse_kl" in line]
        for made in (there, here)
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-4)
    assert abs(found[1][0]) > 0.1
    asked = [len(body["prompt"]) for path, body in served.asked if path == "/v1/completions"]
    assert sorted(asked) == [2, 2, 5, 5, 5, 5]  # twelve responses of two rollouts


def test_each_number_stands_at_its_token(tiny_model, tokenizer, tmp_path, served):
    with http_server(served.answer) as url:
        teacher = build(tiny_model, tokenizer, tmp_path, url).served
        told = teacher.logprobs(
            Rows.of_lists([[5, 6, 7], [8]], [[9, 10], [11, 12, 13]], filler=0, device="cpu")
        )
    for row, ids in enumerate(([5, 6, 7, 9, 10], [8, 11, 12, 13])):
        logprobs = served.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        expected = logprobs.gather(1, torch.tensor(ids)[1:, None])[:, 0][-2 if row == 0 else -3 :]
        assert_close(told[row, : len(expected)], expected, rtol=1e-4, atol=1e-5)
    assert told[0, 2] == 0  # behind the end of the shorter one


def test_what_cannot_be_is_refused_before_the_first_step(tiny_model, tokenizer, tmp_path, teacher, served):
    with http_server(served.answer) as url:
        with pytest.raises(ValueError, match=r"at temperature 1, and responses are sampled at 0.7"):
            build(tiny_model, tokenizer, tmp_path, url, temperature=0.7)
        with pytest.raises(ValueError, match="leave one of them out"):
            build(tiny_model, tokenizer, tmp_path, url, teacher)
        served.tokenizer = character_tokenizer("9876543210>abc")
        with pytest.raises(EngineRefused, match="another tokenizer than the policy: its tokens 0 to"):
            build(tiny_model, tokenizer, tmp_path, url)
        served.spoiled["/detokenize"] = (404, b"")
        with pytest.raises(EngineRefused, match="teacher server .*has no /detokenize"):
            build(tiny_model, tokenizer, tmp_path, url)
    with pytest.raises(EngineLost, match=r"teacher server .*Is it running\? .*vllm serve MODEL"):
        build(tiny_model, tokenizer, tmp_path, url)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda served: vars(served).update(longest=6), r"takes 6; start it with a larger --max-model-len"),
        (lambda served: served.spoiled.update({"/v1/completions": (500, b"died")}), "HTTP 500: died"),
        (
            lambda served: served.spoiled.update(
                {"/v1/completions": (200, json.dumps({"choices": []}).encode())}
            ),
            "garbage: answers to texts",
        ),
        (
            lambda served: served.spoiled.update(
                {"/v1/completions": (200, b'{"choices": [{"index": 0, "prompt_logprobs": [null]}]}')}
            ),
            "garbage: log-probs of 1 tokens",
        ),
    ],
    ids=["too_long", "dead", "empty", "short"],
)
def test_a_server_that_does_not_say_it_stops_the_run(tiny_model, tokenizer, tmp_path, served, change, words):
    change(served)
    with http_server(served.answer) as url:
        made = build(tiny_model, tokenizer, tmp_path, url, teacher_batch_size=1)
        with pytest.raises((EngineLost, EngineRefused), match=words):
            made.train()


def test_plan_knows_it(load):
    def plan(rollout: Any = None, **objective: Any) -> Any:
        more = {} if rollout is None else {"rollout": rollout}
        return make_plan(load(method="opd", rewards=None, model={"scratch": {}}, objective=objective, **more))

    found = plan(teacher_server="http://127.0.0.1:9", teacher_model="/models/that/lie/elsewhere")
    assert found.refusals == []
    assert any(
        "teacher_server 'localhost' is no address" in one for one in plan(teacher_server="localhost").refusals
    )
    hot = plan({"group_size": 4, "temperature": 0.7}, teacher_server="http://127.0.0.1:9")
    assert any("temperature 0.7, and a teacher's server gives log-probs at 1" in one for one in hot.refusals)
