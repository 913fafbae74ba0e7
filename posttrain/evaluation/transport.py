"""Questions to an OpenAI-compatible judge: retried, timed, counted, and kept on disk as they come.

An answer is asked for once: a later run takes it from judgements.jsonl, and asks again only where there was
none, or none that holds a verdict. A judge that is down or cannot judge ends the judging after a few questions.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from posttrain.evaluation import store
from posttrain.evaluation.answer_files import short

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


GIVE_UP = 5
"""Questions in a row that the judge leaves without an answer, each after all its retries, before the judging ends."""
NO_VERDICT = 20
"""Answers without a single verdict among them before the judging ends."""


class JudgeLost(RuntimeError):
    """The judge refuses everybody (key, model, address), does not answer any more, or answers without verdicts.

    What it has answered is kept: the same command goes on.
    """


@dataclass(frozen=True)
class JudgeServer:
    """Where the judge is and how patient to be. `retries` counts attempts after the first."""

    model: str
    base_url: str | None = None
    api_key: str | None = None
    timeout_s: float = 60.0
    retries: int = 5
    first_wait_s: float = 1.0
    workers: int = 5

    def fault(self) -> str | None:
        """Why no request can be made at all, or None."""
        if self.base_url is None and not self.api_key:
            return "there is no key for OpenAI's judge: set the variable that --api-key-env names, or give --base-url"
        if self.base_url is not None:
            try:
                parts = urlsplit(self.base_url)
                whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
            except ValueError:
                whole = False
            if not whole:
                return f"--base-url {self.base_url!r} is no address; write it as http://HOST:PORT/v1"
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            return "the judge's key holds characters that no key has (a line break, a letter beyond ASCII)"
        return None


class Transport:
    """`fn_completions` for the alpaca_eval package: prompts in, answers out, None where there was none.

    progress  called with the number of prompts seen so far
    trouble   called with a sentence at the first failure of each kind, while it is tried again
    readable  whether an answer holds a verdict; set by the annotator's parser before the first prompt
    """

    def __init__(
        self,
        server: JudgeServer,
        path: Path,
        progress: Callable[[int], None] | None = None,
        trouble: Callable[[str], None] | None = None,
        readable: Callable[[Any], bool] | None = None,
    ) -> None:
        try:
            import openai
        except ModuleNotFoundError:
            raise ImportError(
                "a judge is asked through the openai package: pip install 'posttrain[eval]'"
            ) from None
        self.server = server
        self.errors: dict[str, int] = {}
        self.asked = 0
        self.seen = 0
        self.readable = readable or (lambda answer: True)
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
        self._stop = threading.Event()
        self._lost: JudgeLost | None = None
        self._progress = progress
        self._trouble = trouble
        self._troubles: set[str] = set()
        self._failed_in_a_row = 0
        self._answered = 0
        self._verdicts = 0
        self._known = {
            row["key"]: row["answer"] for row in store.read_lines(path) if row["answer"] is not None
        }

    def __call__(self, prompts: Sequence[str], **settings: Any) -> dict[str, list[Any]]:
        """The package's signature: one answer per prompt, as text and in whole."""
        for name in _UNSUPPORTED:
            if settings.get(name):
                raise ValueError(f"the annotator asks for {name}, which only OpenAI's tokenizer can give")
        sent = {k: v for k, v in settings.items() if k not in _NOT_SENT}
        with store.LineWriter(self._path, sync=False) as writer:
            pool = ThreadPoolExecutor(self.server.workers)
            try:
                answers = list(pool.map(lambda prompt: self._answer(prompt, sent, writer), prompts))
            except BaseException:
                self._stop.set()  # nobody waits for a retry any more, nor begins another question
                raise
            finally:
                pool.shutdown(cancel_futures=True)
        return {
            "completions": [None if a is None else a["text"] for a in answers],
            "completions_all": answers,
        }

    def _answer(self, prompt: str, sent: dict[str, Any], writer: store.LineWriter) -> dict[str, Any] | None:
        from alpaca_eval.utils import prompt_to_chatml

        messages = prompt_to_chatml(prompt.strip())
        key = store.digest([self.server.model, messages, sent])
        if key not in self._known or not self.readable(self._known[key]):
            if self._lost is not None:
                raise self._lost
            answer, error, detail = self._ask(messages, sent)
            with self._lock:
                self.asked += 1
                if answer is None:
                    self.errors[error] = self.errors.get(error, 0) + 1
                else:
                    self._known[key] = answer
                writer.write([{"key": key, "answer": answer, "error": error or None}])
                self._judge_the_judge(answer, error, detail)
        with self._lock:
            self.seen += 1
            if self._progress is not None:
                self._progress(self.seen)
        return self._known.get(key)

    def _judge_the_judge(self, answer: dict[str, Any] | None, error: str, detail: str) -> None:
        """Raises JudgeLost where it makes no sense to go on asking."""
        if answer is None:
            # one that has answered and refuses this question (too long, filtered) says nothing about the others
            own = error.startswith("status 4") and self._answered > 0
            self._failed_in_a_row += not own
            if self._failed_in_a_row >= GIVE_UP:
                times = "once" if self.server.retries == 0 else f"{self.server.retries + 1} times"
                asked = "" if error.startswith("status 4") else f", each asked {times}"
                reason = f"{error}: {detail}" if detail else error
                self._end(f"left {GIVE_UP} questions in a row without an answer{asked} (last: {reason})")
            return
        self._failed_in_a_row = 0
        self._answered += 1
        self._verdicts += self.readable(answer)
        if self._answered >= NO_VERDICT and not self._verdicts:
            self._end(
                f"gave {self._answered} answers and no verdict (last: {short(str(answer['text']))}); the annotator "
                "reads what its configuration says, as a rule one token with log-probs: choose another --annotator, or "
                "a server that gives them"
            )

    def _end(self, what: str) -> None:
        done = f"{self._answered:,} answers of this attempt are kept; the same command goes on"
        self._lost = JudgeLost(f"the judge {self.server.model!r} at {self._client.base_url} {what}; {done}")
        self._stop.set()
        raise self._lost

    def _ask(
        self, messages: list[dict[str, str]], sent: dict[str, Any]
    ) -> tuple[dict[str, Any] | None, str, str]:
        """One judgement, or None, the kind of failure and its details; what may pass is retried with growing, jittered
        waits."""
        openai = self._openai
        error = detail = ""
        for attempt in range(self.server.retries + 1):
            wait: float | None = None
            try:
                reply = self._client.chat.completions.create(
                    model=self.server.model,
                    messages=messages,  # type: ignore[arg-type]  # plain dicts are what the client sends
                    **sent,
                )
                return _read(reply), "", ""
            except (
                openai.AuthenticationError,
                openai.PermissionDeniedError,
                openai.NotFoundError,
            ) as refusal:
                self._lost = JudgeLost(
                    f"the judge {self.server.model!r} at {self._client.base_url} refuses ({refusal.status_code}): "
                    f"{_one_line(refusal.message)}; check --judge, --base-url and the key"
                )
                self._stop.set()
                raise self._lost from None
            except openai.RateLimitError as busy:
                error, detail, wait = "429", _one_line(busy.message), _retry_after(busy)
            except openai.APITimeoutError:
                error, detail = "time-out", f"no answer within {self.server.timeout_s:g} s, see --timeout"
            except openai.APIConnectionError as broken:
                error, detail = "no connection", _one_line(str(broken.__cause__ or broken))
            except openai.APIStatusError as status:
                error, detail = f"status {status.status_code}", _one_line(status.message)
                if status.status_code < 500:
                    return None, error, detail
            except (openai.APIResponseValidationError, ValueError) as malformed:
                error, detail = "malformed answer", _one_line(str(malformed))
            if attempt < self.server.retries:
                self._say(error, detail)
                growing = self.server.first_wait_s * 2**attempt * random.uniform(0.75, 1.25)
                if self._stop.wait(min(60.0, growing if wait is None else max(wait, 0.0))):
                    break
        return None, error, detail

    def _say(self, error: str, detail: str) -> None:
        with self._lock:
            if self._trouble is None or error in self._troubles:
                return
            self._troubles.add(error)
            self._trouble(
                f"the judge fails ({error}{f': {detail}' if detail else ''}); each question is asked up to "
                f"{self.server.retries + 1} times"
            )


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:197] + "..."


def _retry_after(error: Any) -> float | None:
    try:
        return float(error.response.headers["retry-after"])
    except (KeyError, ValueError):
        return None


def _read(reply: Any) -> dict[str, Any]:
    """The first choice as the package's parsers want it. ValueError where the reply has none."""
    # what the client cannot read it hands back as it came
    if isinstance(reply, str) or "choices" not in reply.model_fields_set or not reply.choices:
        raise ValueError("what came back is no chat completion")
    choice = reply.choices[0].model_dump()
    message = choice.get("message") or {}
    text = message.get("content") or " "
    calls = message.get("tool_calls")
    if calls:
        text = calls[0]["function"]["arguments"]
    return {**choice, "text": text}
