"""The reward of a written policy: a judge model behind an OpenAI-compatible server, shown precedents."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from posttrain.judges.judge_server import JudgeClient, JudgeServer
from posttrain.judges.policy_judge import PolicyJudge, PolicyVerdict
from posttrain.judges.precedents import COMPLIES, Exchange, PrecedentBook, read_policy, read_precedents
from posttrain.rewards.hooks import MachineReport, checks_settings, judges_each, looks_at_machine

log = logging.getLogger(__name__)

CACHE = "runs/judgements/policy.jsonl"
SECONDS, RETRIES, PARALLEL = 12.0, 1, 8
_FIRST_WAIT = 0.5


def _check(
    *,
    policy: str,
    base_url: str,
    precedents: str | None = None,
    k: int = 4,
    max_tokens: int = 512,
    seconds: float = SECONDS,
    retries: int = RETRIES,
    parallel: int = PARALLEL,
) -> None:
    read_policy(policy)
    fault = JudgeServer("", base_url).fault()
    if fault is not None:
        raise ValueError(fault.replace("--base-url", "base_url"))
    for name, value, least in (("k", k, 1), ("max_tokens", max_tokens, 1), ("retries", retries, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}; at least {least}")
    if parallel < 1:
        raise ValueError(f"parallel is {parallel}; at least one question has to be asked at a time")
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds is {seconds:g}; a number above 0")
    if precedents is not None and not read_precedents(precedents):
        raise ValueError(f"precedents {precedents!r} holds none; leave it out to judge by the policy alone")


def _look(
    group_size: int,
    timeout_s: float,
    *,
    base_url: str = "",
    model: str = "",
    seconds: float = SECONDS,
    retries: int = RETRIES,
    parallel: int = PARALLEL,
    **_: Any,
) -> MachineReport:
    """For `posttrain plan`: whether a group of questions that nobody answers fits a call's time. Nobody is asked."""
    longest = math.ceil(group_size / parallel) * ((retries + 1) * seconds + _FIRST_WAIT * (2**retries - 1))
    warnings = []
    if longest > timeout_s:
        warnings.append(
            f"{group_size} questions that nobody answers, {parallel} at a time, {retries + 1} times {seconds:g} s "
            f"each, take {longest:g} s, and a call has timeout_s {timeout_s:g}: it would be ended and fail instead of "
            "leaving them unjudged; raise timeout_s, or lower args.seconds"
        )
    return MachineReport(
        [f"asks {model} at {base_url} while training; not asked by plan"] if base_url else [], warnings, []
    )


@judges_each
@checks_settings(_check)
@looks_at_machine(_look)
def policy_precedents(
    completions: Sequence[str],
    *,
    prompts: Sequence[Any] | None = None,
    policy: str,
    model: str,
    base_url: str,
    precedents: str | None = None,
    k: int = 4,
    cache: str = "runs/judgements/policy.jsonl",
    api_key_env: str = "OPENAI_API_KEY",
    max_tokens: int = 512,
    seconds: float = 12.0,
    retries: int = 1,
    parallel: int = 8,
    log_extra: Callable[[str, list[Any]], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **_: Any,
) -> list[float | None]:
    """1.0 where the judge finds that a completion complies with the policy, 0.0 where it violates it, None where there
    is no verdict: nobody answers, or the answer ends without one. After Yang et al. 2025 (arXiv 2507.20503).

    policy       file with the policy's text
    model        of the judge, as its server calls it; `base_url` such as http://127.0.0.1:8000/v1
    precedents   file of `posttrain data precedents`; the `k` that share most with prompt and completion (BM25) are
                 shown. None: the policy alone
    cache        file of answers, by all that was asked: what stands there is never asked again
    api_key_env  environment variable with the server's key, where it wants one
    seconds      of one request, tried `retries` times more; `parallel` at a time

    JudgeLost where the server refuses everybody: key, model or address are wrong.
    """
    judge = _judge_of(
        policy, model, base_url, precedents, k, cache, api_key_env, max_tokens, seconds, retries, parallel
    )
    asked_before = prompts if prompts is not None else [""] * len(completions)
    exchanges = [
        Exchange(prompt_text(prompt), text) for prompt, text in zip(asked_before, completions, strict=True)
    ]
    asked, kept = judge.asked, judge.kept
    verdicts = judge.judge(exchanges)
    if log_extra is not None:
        log_extra("policy_precedents", [_in_words(one) for one in verdicts])
    if log_metric is not None:
        faults = Counter(one.fault for one in verdicts if one.verdict is None)
        log_metric("policy_precedents/unjudged", sum(faults.values()) / max(1, len(verdicts)))
        log_metric("policy_precedents/asked", float(judge.asked - asked))
        log_metric("policy_precedents/from_cache", float(judge.kept - kept))
        log_metric(
            "policy_precedents/precedents", sum(one.precedents for one in verdicts) / max(1, len(verdicts))
        )
        for fault, count in faults.items():
            log_metric(f"policy_precedents/unjudged/{fault.replace(' ', '_')}", count / len(verdicts))
    return [None if one.verdict is None else float(one.verdict == COMPLIES) for one in verdicts]


@lru_cache(maxsize=8)
def _judge_of(
    policy: str,
    model: str,
    base_url: str,
    precedents: str | None,
    k: int,
    cache: str,
    api_key_env: str,
    max_tokens: int,
    seconds: float,
    retries: int,
    parallel: int,
) -> PolicyJudge:
    """One for all calls of a worker: files are read and the index is made once."""
    key = os.environ.get(api_key_env, "").strip() or None
    server = JudgeServer(
        model, base_url, key, timeout_s=seconds, retries=retries, first_wait_s=_FIRST_WAIT, workers=parallel
    )
    client = JudgeClient(server, check=f"args.model, args.base_url and the key in {api_key_env}")
    book = None if precedents is None else PrecedentBook(read_precedents(precedents))
    return PolicyJudge(
        client, read_policy(policy), book, k=k, cache=Path(cache), max_tokens=max_tokens, say=log.warning
    )


def prompt_text(prompt: Any) -> str:
    """A prompt as the judge reads it: text as it is, of a conversation who said what, the only message without that."""
    if isinstance(prompt, str):
        return prompt
    said = [dict(one) for one in prompt if isinstance(one, Mapping)]
    if len(said) == 1:
        return str(said[0].get("content") or "")
    return "\n".join(f"[{one.get('role')}] {one.get('content') or ''}" for one in said)


def _in_words(one: PolicyVerdict) -> str:
    if one.verdict is None:
        return f"unjudged: {one.fault}"
    return f"{one.verdict}, {one.precedents} precedents: {one.reasoning}"
