"""What a judge's server may do wrong, on loopback: time-outs, malformed answers, 429, nobody there."""

from __future__ import annotations

import json
import threading
import time

import pytest
from test_alpaca import at, honest, server

from posttrain.evaluation.transport import GIVE_UP, NO_VERDICT, Transport
from posttrain.judges.judge_server import JudgeLost, JudgeServer

pytest.importorskip("alpaca_eval")
pytest.importorskip("openai")
pytestmark = pytest.mark.evaluation


def ask(url, tmp_path, prompts=6, readable=None, trouble=None, **settings):
    transport = Transport(at(url, **settings), tmp_path / "judgements.jsonl", None, trouble, readable)
    template = '<|im_start|>user\n{} "output": """a""" "output": """b"""\n<|im_end|>'
    out = transport([template.format(i) for i in range(prompts)], model_name="gpt", max_tokens=1)
    return transport, out["completions"]


def test_too_many_requests_are_waited_for(tmp_path):
    def busy(n, text):
        return (
            (429, {"Retry-After": "0.01"}, json.dumps({"error": {"message": "slow down"}}))
            if n % 2
            else honest(text)
        )

    with server(busy) as (url, _):
        transport, texts = ask(url, tmp_path, retries=8)
    assert None not in texts
    assert transport.errors == {}


@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        (lambda n, text: (429, {}, "{}"), "429"),
        (lambda n, text: (503, {}, "{}"), "status 503"),
        (lambda n, text: (200, {"Content-Type": "text/html"}, "<html>gateway</html>"), "malformed answer"),
        (lambda n, text: (200, {}, '{"choices": ['), "malformed answer"),
        (lambda n, text: (200, {}, '{"choices": []}'), "malformed answer"),
        (lambda n, text: (400, {}, '{"error": {"message": "context too long"}}'), "status 400"),
        (lambda n, text: time.sleep(0.4) or honest(text), "time-out"),
    ],
)
def test_failures_are_counted_by_reason_and_asked_again_next_time(behave, reason, tmp_path):
    with server(behave) as (url, _):
        transport, texts = ask(
            url, tmp_path, prompts=3, retries=1, timeout_s=0.2 if reason == "time-out" else 5.0
        )
    assert texts == [None] * 3
    assert transport.errors == {reason: 3}
    with server(lambda n, text: honest(text)) as (url, count):
        transport, texts = ask(url, tmp_path, prompts=3)
        assert None not in texts
        assert count[0] == 3


def test_nobody_there_is_no_connection(tmp_path):
    transport, texts = ask("http://127.0.0.1:9/v1", tmp_path, prompts=2, retries=0)
    assert transport.errors == {"no connection": 2}


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_at_once(status, tmp_path):
    with (
        server(lambda n, text: (status, {}, '{"error": {"message": "no"}}')) as (url, count),
        pytest.raises(JudgeLost, match="check --judge, --base-url and the key"),
    ):
        ask(url, tmp_path, prompts=50, workers=2)
    assert count[0] <= 4


@pytest.mark.parametrize(
    ("behave", "words"),
    [
        (
            lambda n, text: (503, {}, '{"error": {"message": "loading\\nweights"}}'),
            "status 503: .*loading weights",
        ),
        (lambda n, text: (429, {}, '{"error": {"message": "quota"}}'), "429: .*quota"),
        (lambda n, text: (200, {"Content-Type": "text/html"}, "<html>log in</html>"), "malformed answer"),
        (
            lambda n, text: (400, {}, '{"error": {"message": "no logprobs here"}}'),
            "status 400: .*no logprobs here",
        ),
        (lambda n, text: time.sleep(0.4) or honest(text), "time-out: no answer within 0.2 s"),
    ],
    ids=["5xx", "429", "html", "4xx", "slow"],
)
def test_a_judge_that_is_down_ends_the_judging_after_a_few_questions(behave, words, tmp_path):
    said = []
    patience = 0.2 if "time-out" in words else 5.0
    with server(behave) as (url, count), pytest.raises(JudgeLost, match=words) as lost:
        ask(url, tmp_path, prompts=400, workers=2, retries=1, timeout_s=patience, trouble=said.append)
    assert count[0] <= 2 * (GIVE_UP + 2)
    assert "the same command goes on" in str(lost.value)
    assert "\n" not in str(lost.value)
    assert len(said) == ("status 4" not in words)  # what is not tried again needs no word


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "http://no-such-host.invalid/v1"])
def test_nobody_there_and_no_such_name_end_it_too(url, tmp_path):
    with pytest.raises(JudgeLost, match="no connection"):
        ask(url, tmp_path, prompts=50, retries=1)


def test_some_failures_among_answers_do_not_end_it(tmp_path):
    """Four in a row, then an answer, and so on; and questions that are refused by themselves."""
    with server(lambda n, text: honest(text) if n % GIVE_UP == 0 else (500, {}, "{}")) as (url, _):
        transport, texts = ask(url, tmp_path / "a", prompts=40, retries=0, workers=1)
    assert transport.errors == {"status 500": 32}
    too_long = (400, {}, '{"error": {"message": "context length"}}')
    with server(lambda n, text: honest(text) if n == 1 else too_long) as (url, _):
        transport, texts = ask(url, tmp_path / "b", prompts=40, retries=0, workers=1)
    assert transport.errors == {"status 400": 39}


def test_answers_without_a_verdict_end_it_and_are_asked_for_again(tmp_path):
    def verdict(answer):
        return answer["text"] in ("m", "M")

    chat = honest('"output": """a""" "output": """b"""')
    chat["choices"][0]["message"]["content"] = "I cannot decide."
    with (
        server(lambda n, text: chat) as (url, count),
        pytest.raises(JudgeLost, match="no verdict .last: 'I cannot decide.'"),
    ):
        ask(url, tmp_path, prompts=200, workers=2, readable=verdict)
    assert count[0] <= NO_VERDICT + 2
    with server(lambda n, text: honest(text)) as (url, count):
        _, texts = ask(url, tmp_path, prompts=30, readable=verdict)
        assert count[0] == 30
    assert set(texts) <= {"m", "M"}


def test_an_interrupt_leaves_the_queue_unasked(tmp_path):
    started = threading.Event()

    def slow(n, text):
        started.set()
        time.sleep(0.05)
        return honest(text)

    class Stop(BaseException):
        pass

    def stop(seen):
        raise Stop

    with server(slow) as (url, count):
        transport = Transport(at(url, workers=2), tmp_path / "judgements.jsonl", stop)
        with pytest.raises(Stop):
            transport([f"<|im_start|>user\n{i}\n<|im_end|>" for i in range(200)], model_name="gpt")
        assert started.is_set()
        assert count[0] < 20


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "no key for OpenAI"),
        ({"base_url": "localhost:8000/v1"}, "no address"),
        ({"base_url": "http://:80/v1"}, "no address"),
        ({"base_url": "http://h:port/v1"}, "no address"),
        ({"api_key": "sk-ключ"}, "characters that no key has"),
        ({"api_key": "sk-1"}, None),
        ({"base_url": "http://[::1]:8000/v1"}, None),
    ],
)
def test_an_address_or_key_that_cannot_be_is_said_before(settings, words):
    fault = JudgeServer("judge", **settings).fault()
    assert (fault is None) if words is None else words in fault
