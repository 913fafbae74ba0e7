"""What a judge's server may do wrong, on loopback: time-outs, malformed answers, 429, nobody there."""

from __future__ import annotations

import json
import time

import pytest
from test_alpaca import at, honest, server

from posttrain.evaluation.transport import JudgeRefused, Transport

pytest.importorskip("alpaca_eval")
pytest.importorskip("openai")
pytestmark = pytest.mark.evaluation


def ask(url, tmp_path, prompts=6, **settings):
    transport = Transport(at(url, **settings), tmp_path / "judgements.jsonl")
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
        pytest.raises(JudgeRefused, match="check --judge, --base-url and the key"),
    ):
        ask(url, tmp_path, prompts=50, workers=2)
    assert count[0] <= 4
