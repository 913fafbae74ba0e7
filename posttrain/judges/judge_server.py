"""One question to an OpenAI-compatible judge: retried with growing waits, timed, its failures in one word each."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Reply = dict[str, Any]
"""The first choice of a chat completion, with its text under "text"."""


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


class JudgeClient:
    """Asks a server, from any number of threads.

    trouble  called with a sentence at the first failure of each kind, while it is tried again
    check    what a person is to look at where the server refuses everybody
    lost     the refusal, once there was one
    ImportError without the package openai.
    """

    def __init__(
        self,
        server: JudgeServer,
        trouble: Callable[[str], None] | None = None,
        check: str = "--judge, --base-url and the key",
    ) -> None:
        try:
            import openai
        except ModuleNotFoundError:
            raise ImportError(
                "a judge is asked through the openai package: pip install 'posttrain[eval]'"
            ) from None
        self.server = server
        self.lost: JudgeLost | None = None
        self._check = check
        self._openai = openai
        self._client = openai.OpenAI(
            base_url=server.base_url,
            # a server of one's own wants no key, but the client refuses to start without
            api_key=server.api_key or "none",
            timeout=server.timeout_s,
            max_retries=0,
        )
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._trouble = trouble
        self._troubles: set[str] = set()

    @property
    def named(self) -> str:
        return f"the judge {self.server.model!r} at {self._client.base_url}"

    def stop(self) -> None:
        """Nobody waits for a retry any more."""
        self._stop.set()

    def ask(self, messages: list[dict[str, str]], sent: dict[str, Any]) -> tuple[Reply | None, str, str]:
        """One judgement, or None, the kind of failure and its details; what may pass is retried with growing, jittered
        waits. Raises JudgeLost where the server refuses everybody."""
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
                self.lost = JudgeLost(
                    f"{self.named} refuses ({refusal.status_code}): "
                    f"{_one_line(_its_words(refusal))}; check {self._check}"
                )
                self._stop.set()
                raise self.lost from None
            except openai.RateLimitError as busy:
                error, detail, wait = "429", _one_line(_its_words(busy)), _retry_after(busy)
            except openai.APITimeoutError:
                error, detail = "time-out", f"no answer within {self.server.timeout_s:g} s, see --timeout"
            except openai.APIConnectionError as broken:
                error, detail = "no connection", _one_line(str(broken.__cause__ or broken))
            except openai.APIStatusError as status:
                error, detail = f"status {status.status_code}", _one_line(_its_words(status))
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


def _its_words(error: Any) -> str:
    """What the server said. The client's own message holds it as openai 3 writes it, as data with openai 2."""
    body = error.body if isinstance(error.body, dict) else {}
    told = body.get("error", body)
    words = told.get("message") if isinstance(told, dict) else told
    return words if isinstance(words, str) and words else error.message


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
