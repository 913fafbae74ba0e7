"""A reward model behind a server: the same scores as in this process, and a server that fails stops the run."""

from __future__ import annotations

import copy
import json
import string

import pytest
import torch
from rollout_fakes import http_server
from served_double import ServedModel
from tiny_run import arguments, rows
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from posttrain.data.scratch_tokenizer import ROLES, by_characters
from posttrain.planning.rewards import reward_lines, reward_model_faults
from posttrain.recipe import RecipeError
from posttrain.rewards.model_reward import ModelReward
from posttrain.rollout.base import EngineLost, EngineRefused
from posttrain.trainers import GRPOConfig, GRPOTrainer
from posttrain.trainers.models.load import character_tokenizer
from posttrain.trainers.models.reward_heads import as_reward_model
from posttrain.trainers.models.reward_scorer import RewardScorer
from posttrain.trainers.models.scoring_apis import text_of
from posttrain.trainers.models.served_scorer import ServedScorer

PROMPTS, ANSWERS = [f"{i}+{i}=" for i in range(9)], ["four " * (1 + i % 4) for i in range(9)]


@pytest.fixture
def folder(tiny_model, tokenizer, tmp_path):
    scorer = as_reward_model(copy.deepcopy(tiny_model), tokenizer.pad_token_id)
    torch.nn.init.normal_(scorer.score.weight, generator=torch.Generator().manual_seed(0))
    scorer.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    return str(tmp_path / "rm")


@pytest.fixture
def served(folder, tokenizer):
    return ServedModel(RewardScorer(ModelReward(folder), "cpu").model, tokenizer)


def spec(folder: str, url: str, **more) -> ModelReward:
    return ModelReward(folder, server=url, **{"batch_size": 4, "timeout_s": 5.0, "retries": 0, **more})


def test_the_scores_are_those_of_the_model_here(folder, served):
    here = RewardScorer(ModelReward(folder, max_length=20), "cpu")
    with http_server(served.answer) as url:
        there = ServedScorer(spec(folder, url, max_length=20))
        assert there.tells(there.tokenizer).endswith(f"; on {url} (vLLM) as served, 4 rows per forward")
        scores = here.score(PROMPTS, ANSWERS)
        assert max(scores) - min(scores) > 0.01
        assert there.score(PROMPTS, ANSWERS) == pytest.approx(scores, abs=1e-5)
        assert there.cut == here.cut > 0
        served.longest = 16  # the server takes less than the recipe allows
        assert ServedScorer(spec(folder, url, max_length=20)).max_length == 16
    sizes = sorted(len(body["input"]) for path, body in served.asked if path == "/classify")
    assert sizes[:2] == [1, 1]  # a question at the start of each
    assert sorted(sizes[2:]) == [1, 4, 4]


@pytest.mark.parametrize(
    ("kind", "title", "route"),
    [("sglang", "SGLang", "/classify"), ("tei", "text-embeddings-inference", "/predict")],
)
def test_other_servers_are_told_apart_and_give_the_same_scores(folder, served, kind, title, route):
    scores = RewardScorer(ModelReward(folder), "cpu").score(PROMPTS, ANSWERS)
    served.kind = kind
    with http_server(served.answer) as url:
        there = ServedScorer(spec(folder, url))
        assert there.place() == f"{url} ({title}) as served"
        assert there.score(PROMPTS, ANSWERS) == pytest.approx(scores, abs=1e-5)
        asked = {path for path, _ in served.asked}
        assert route in asked
        assert not asked & {"/v1/classify", "/rerank", "/score"}
        served.asked.clear()
        assert ServedScorer(spec(folder, url, api=kind)).score(PROMPTS, ANSWERS) == pytest.approx(
            scores, abs=1e-5
        )
        if kind == "tei":  # named, it is not asked who it is
            assert [path for path, _ in served.asked].count("/info") == 1
        served.tokenizer = character_tokenizer("0123456789>")
        with pytest.raises(EngineRefused, match="is not that of .*name the model that it serves"):
            ServedScorer(spec(folder, url))


@pytest.mark.parametrize(
    ("kind", "path", "answer", "error", "words"),
    [
        ("sglang", "/classify", [{"embedding": [1.0, 2.0]}], EngineRefused, "gives 2 scores"),
        ("sglang", "/classify", [], EngineLost, "scores of 0 rows, and 1 were asked about"),
        ("sglang", "/classify", [{"embedding": [float("nan")]}], EngineLost, "no finite number"),
        ("sglang", "/classify", {"data": []}, EngineLost, "no list of scores.*address of a SGLang server"),
        (
            "sglang",
            "/get_model_info",
            {"model_path": "writer", "is_generation": True},
            EngineRefused,
            r"it writes text \(writer\).*--is-embedding",
        ),
        ("tei", "/predict", [[{"score": 1.0}, {"score": 0.0}]], EngineRefused, "gives 2 scores"),
        ("tei", "/predict", {"error": "x"}, EngineLost, "no list of scores"),
        ("tei", "/predict", [[{"label": "x"}]], EngineLost, "an answer without 'score'"),
        ("tei", "/decode", [], EngineLost, "no list of one answer"),
        (
            "tei",
            "/info",
            {"model_id": "m", "model_type": {"embedding": {"pooling": "cls"}}},
            EngineRefused,
            "'m' is no sequence classifier",
        ),
        (
            "tei",
            "/info",
            {"model_id": "m", "model_type": {"reranker": {}}, "max_client_batch_size": 2},
            EngineRefused,
            "it takes 2 rows a call, and rewards.batch_size is 4",
        ),
    ],
)
def test_what_those_servers_do_wrong_is_said_too(folder, served, kind, path, answer, error, words):
    served.kind, served.spoiled[path] = kind, (200, json.dumps(answer).encode())
    with http_server(served.answer) as url, pytest.raises(error, match=words):
        ServedScorer(spec(folder, url))


def test_a_server_named_as_another_is_refused(folder, served):
    with http_server(served.answer) as url:
        with pytest.raises(EngineRefused, match="has no /info. It is no text-embeddings-inference server"):
            ServedScorer(spec(folder, url, api="tei"))
        with pytest.raises(EngineLost, match="an answer without 'text'"):
            ServedScorer(spec(folder, url, api="sglang"))


def test_a_row_is_sent_as_the_text_that_falls_into_its_tokens(tokenizer):
    with_start = PreTrainedTokenizerFast(tokenizer_object=by_characters(string.printable[:95]), **ROLES)
    backend = with_start.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", with_start.bos_token_id)]
    )
    ids = with_start("one two<eos>")["input_ids"]
    assert ids[0] == with_start.bos_token_id
    assert text_of(with_start, ids) == "one two<eos>"
    plain = tokenizer("one two<eos>")["input_ids"]
    assert text_of(tokenizer, plain) == "one two<eos>"
    assert text_of(tokenizer, plain[3:]) == " two<eos>"
    with pytest.raises(
        EngineRefused, match="no text falls into the tokens of 'ne two<eos>': its start was cut off"
    ):
        text_of(with_start, ids[1:])


def test_a_run_logs_it_as_any_reward_model_and_ends_loudly_with_it(
    tiny_model, tokenizer, tmp_path, folder, served
):
    with http_server(served.answer) as url:
        args = GRPOConfig(**arguments(tmp_path / "run", max_steps=3, num_iterations=1))
        made = GRPOTrainer(
            tiny_model,
            [spec(folder, url, label="people")],
            args,
            rows(24),
            processing_class=tokenizer,
        )
        scored = made.judge.score

        def then_down(*given, **named):
            if made.state.global_step == 2:
                served.spoiled["/classify"] = (503, b"gone")
            return scored(*given, **named)

        made.judge.score = then_down
        with pytest.raises(EngineLost, match=r"reward server .*HTTP 503: gone.*\n.*saved as of step 2"):
            made.train()
    logged = made.state.log_history[0]
    assert logged["rewards/people/mean"] == pytest.approx(logged["reward"])
    assert logged["reward_models/people/cut_share"] == 0.0


@pytest.mark.parametrize(
    ("spoiled", "error", "words"),
    [
        ({"/classify": (200, b'{"data": []}')}, EngineLost, "garbage: scores of rows"),
        ({"/classify": (200, b'{"data": [{"index": 0, "probs": [null]}]}')}, EngineLost, "no finite number"),
        ({"/classify": (200, b'{"data": [{"index": 0, "probs": [1, 2]}]}')}, EngineRefused, "gives 2 scores"),
        ({"/classify": (404, b"")}, EngineRefused, "has no /classify. It is no vLLM server that runs"),
        ({"/v1/models": (401, b"")}, EngineRefused, "wrong API key .*rewards.api_key_env"),
        (
            {"/v1/models": (200, json.dumps({"data": [{"id": "a"}, {"id": "b"}]}).encode())},
            EngineRefused,
            "it serves a, b, and none of them is",
        ),
        ({"/detokenize": (200, b'{"prompt": "?"}')}, EngineRefused, "is not that of .*are other texts"),
        ({"/tokenize": (200, b'{"tokens": [1]}')}, EngineRefused, "it cuts a text into other tokens"),
    ],
)
def test_what_a_server_does_wrong_is_said_before_the_first_step(folder, served, spoiled, error, words):
    served.spoiled = spoiled
    with http_server(served.answer) as url, pytest.raises(error, match=words):
        ServedScorer(spec(folder, url))


def test_another_tokenizer_and_a_server_that_is_not_there_are_refused(folder, served):
    served.tokenizer = character_tokenizer("0123456789>")
    with (
        http_server(served.answer) as url,
        pytest.raises(EngineRefused, match="name the model that it serves"),
    ):
        ServedScorer(spec(folder, url))
    with pytest.raises(EngineLost, match="reward server .*Is it running"):
        ServedScorer(spec(folder, url))


def test_what_a_recipe_says_of_it(load, folder):
    recipe = load(rewards=[{"model": folder, "server": "http://127.0.0.1:9", "retries": 1, "timeout_s": 7.0}])
    assert reward_model_faults(recipe) == []
    (line,) = reward_lines(recipe)
    assert line.endswith(
        "on http://127.0.0.1:9, 16 rows per call, 7 s a call with 1 retries, then the run stops"
    )
    assert reward_model_faults(load(rewards=[{"model": folder, "server": "127.0.0.1"}])) == [
        "rewards[0]: server '127.0.0.1' is no address; write it as http://host:port"
    ]
    for section, words in (
        ({"model": folder, "retries": 1}, "'retries' has no effect on a reward model;"),
        (
            {"model": folder, "server": "http://a:1", "device": "cpu"},
            "'device' has no effect on a reward model on",
        ),
        ({"name": "exact_match", "server": "http://a:1"}, "'server' has no effect on a function"),
    ):
        with pytest.raises(RecipeError, match=words):
            load(rewards=[section])
