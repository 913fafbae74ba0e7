"""Questions to an OpenAI-compatible judge: retried, timed, counted, and kept on disk as they come.

An answer is asked for once: a later run takes it from judgements.jsonl, and asks again only where there was
none.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.evaluation import store

# arguments of the package's own client, which have no meaning for a request
_NOT_SENT = (
    "model_name",
    "requires_chatml",
    "is_chat",
    "price_per_token",
    "num_procs",
    "batch_size",
    "client_kwargs",
)
_UNSUPPORTED = ("tokens_to_favor", "tokens_to_avoid")


class JudgeRefused(RuntimeError):
    """The judge refuses everybody: wrong key, wrong model, wrong address."""


@dataclass(frozen=True)
class Server:
    """Where the judge is and how patient to be. `retries` counts attempts after the first."""

    model: str
    base_url: str | None = None
    api_key: str | None = None
    timeout_s: float = 60.0
    retries: int = 5
    first_wait_s: float = 1.0
    workers: int = 5


class Transport:
    """`fn_completions` for the alpaca_eval package: prompts in, answers out, None where there was none.

    `progress` is called with the number of prompts seen so far.
    """

    def __init__(self, server: Server, path: Path, progress: Callable[[int], None] | None = None) -> None:
        import openai

        self.server = server
        self.errors: dict[str, int] = {}
        self.asked = 0
        self.seen = 0
        self._openai = openai
        self._client = openai.OpenAI(
            base_url=server.base_url,
            # a server of one's own wants no key, but the client refuses to start without
            api_key=server.api_key or "none",
            timeout=server.timeout_s,
            max_retries=0,
        )
        self._path = path
        self._lock = threading.Lock()
        self._refusal: JudgeRefused | None = None
        self._progress = progress
        self._known = {
            row["key"]: row["answer"] for row in store.read_lines(path) if row["answer"] is not None
        }

    def __call__(self, prompts: Sequence[str], **settings: Any) -> dict[str, list[Any]]:
        """The package's signature: one answer a prompt, as text and in whole."""
        for name in _UNSUPPORTED:
            if settings.get(name):
                raise ValueError(f"the annotator asks for {name}, which only OpenAI's tokenizer can give")
        sent = {k: v for k, v in settings.items() if k not in _NOT_SENT}
        with (
            store.LineWriter(self._path, sync=False) as writer,
            ThreadPoolExecutor(self.server.workers) as pool,
        ):
            answers = list(pool.map(lambda prompt: self._answer(prompt, sent, writer), prompts))
        return {
            "completions": [None if a is None else a["text"] for a in answers],
            "completions_all": answers,
        }

    def _answer(self, prompt: str, sent: dict[str, Any], writer: store.LineWriter) -> dict[str, Any] | None:
        from alpaca_eval.utils import prompt_to_chatml

        messages = prompt_to_chatml(prompt.strip())
        key = store.digest([self.server.model, messages, sent])
        if key not in self._known:
            if self._refusal is not None:
                raise self._refusal  # one refusal is an answer for all
            answer, error = self._ask(messages, sent)
            with self._lock:
                self.asked += 1
                if answer is None:
                    self.errors[error] = self.errors.get(error, 0) + 1
                else:
                    self._known[key] = answer
                writer.write([{"key": key, "answer": answer, "error": error or None}])
        with self._lock:
            self.seen += 1
            if self._progress is not None:
                self._progress(self.seen)
        return self._known.get(key)

    def _ask(self, messages: list[dict[str, str]], sent: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
        """One judgement, or None and why; transient failures are retried with growing, jittered waits."""
        openai = self._openai
        error = ""
        for attempt in range(self.server.retries + 1):
            try:
                reply = self._client.chat.completions.create(
                    model=self.server.model,
                    messages=messages,  # type: ignore[arg-type]  # plain dicts are what the client sends
                    **sent,
                )
                return _read(reply)
            except (
                openai.AuthenticationError,
                openai.PermissionDeniedError,
                openai.NotFoundError,
            ) as refusal:
                self._refusal = JudgeRefused(
                    f"the judge {self.server.model!r} at {self._client.base_url} refuses ({refusal.status_code}): "
                    f"{refusal.message}; check --judge, --base-url and the key"
                )
                raise self._refusal from None
            except openai.RateLimitError as busy:
                error, wait = "429", _retry_after(busy)
            except openai.APITimeoutError:
                error, wait = "time-out", None
            except openai.APIConnectionError:
                error, wait = "no connection", None
            except openai.APIStatusError as status:
                if status.status_code < 500:
                    return None, f"status {status.status_code}"
                error, wait = f"status {status.status_code}", None
            except (openai.APIResponseValidationError, ValueError):
                error, wait = "malformed answer", None
            if attempt < self.server.retries:
                growing = self.server.first_wait_s * 2**attempt * random.uniform(0.75, 1.25)
                time.sleep(min(60.0, growing if wait is None else max(wait, 0.0)))
        return None, error


def _retry_after(error: Any) -> float | None:
    try:
        return float(error.response.headers["retry-after"])
    except (KeyError, ValueError):
        return None


def _read(reply: Any) -> tuple[dict[str, Any], str]:
    """The first choice as the package's parsers want it. ValueError where the reply has none."""
    # what the client cannot read it hands back as it came
    if isinstance(reply, str) or "choices" not in reply.model_fields_set or not reply.choices:
        raise ValueError("no choices")
    choice = reply.choices[0].model_dump()
    message = choice.get("message") or {}
    text = message.get("content") or " "
    calls = message.get("tool_calls")
    if calls:
        text = calls[0]["function"]["arguments"]
    return {**choice, "text": text}, ""
