"""Questions to an OpenAI-compatible judge: retried, timed, counted, and kept on disk as they come.

An answer is asked for once: a later run takes it from judgements.jsonl, and asks again only where there was
none, or none that holds a verdict. A judge that is down or cannot judge ends the judging after a few questions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from posttrain.evaluation import store
from posttrain.evaluation.answer_files import short
from posttrain.judges.judge_server import JudgeClient, JudgeLost, JudgeServer

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
        self.server = server
        self.errors: dict[str, int] = {}
        self.asked = 0
        self.seen = 0
        self.readable = readable or (lambda answer: True)
        self._client = JudgeClient(server, trouble)
        self._path = path
        self._lock = threading.Lock()
        self._progress = progress
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
                self._client.stop()  # nobody waits for a retry any more, nor begins another question
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
            if self._client.lost is not None:
                raise self._client.lost
            answer, error, detail = self._client.ask(messages, sent)
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
        self._client.lost = JudgeLost(f"{self._client.named} {what}; {done}")
        self._client.stop()
        raise self._client.lost
