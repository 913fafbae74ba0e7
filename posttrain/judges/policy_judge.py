"""A judge of a written policy in use: what it was asked before is taken from disk, what it leaves open is counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from posttrain.judges.answer_file import AnswerFile, question_key
from posttrain.judges.judge_server import JudgeClient
from posttrain.judges.precedents import (
    Exchange,
    Messages,
    Precedent,
    PrecedentBook,
    critique_messages,
    judging_messages,
    read_verdict,
    reasoning_in,
    revision_messages,
)

IN_A_ROW = 5
"""Questions that go unanswered one after the other before the rest of a batch is not asked any more."""
NO_VERDICT, NOT_ASKED = "no verdict", "not asked"


@dataclass(frozen=True)
class PolicyVerdict:
    """verdict complies, violates, or None with a `fault`: why there is none ("no connection", "no verdict", ...)."""

    verdict: str | None
    reasoning: str
    precedents: int
    fault: str = ""


@dataclass(frozen=True)
class PolicyAnswer:
    text: str | None
    fault: str = ""


class PolicyJudge:
    """Asks `client` by the policy's text.

    book        precedents to show, at most `k` of them; None: the policy alone
    cache       file of answers, by model, messages and sampling. What is there and can be read is not asked again
    max_tokens  of an answer; temperature is 0
    say         called with a sentence at the first failure of each kind
    asked, kept, faults   questions that were sent, answers taken from the file, and what had no answer or no verdict
    """

    def __init__(
        self,
        client: JudgeClient,
        policy: str,
        book: PrecedentBook | None = None,
        *,
        k: int = 4,
        cache: Path,
        max_tokens: int = 512,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.client, self.policy, self.book, self.k = client, policy, book, k
        self.answers = AnswerFile(cache)
        self.sampling = {"max_tokens": max_tokens, "temperature": 0.0}
        self.asked = self.kept = 0
        self.faults: Counter[str] = Counter()
        self._say = say
        self._lock = threading.Lock()
        self._unanswered = 0  # in a row

    def judge(
        self,
        exchanges: Sequence[Exchange],
        *,
        but_itself: bool = False,
        progress: Callable[[], None] | None = None,
    ) -> list[PolicyVerdict]:
        """One verdict each. JudgeLost where the server refuses everybody (key, model, address).

        but_itself  no exchange is shown a precedent of itself
        """
        self.begin()

        def one(exchange: Exchange) -> PolicyVerdict:
            found = self.verdict(exchange, but_itself=but_itself)
            if progress is not None:
                progress()
            return found

        return self.at_once(one, exchanges)

    def begin(self) -> None:
        """A server that was down may be up again: a new batch asks."""
        self._unanswered = 0

    def at_once(
        self, do: Callable[[Exchange], PolicyVerdict], exchanges: Sequence[Exchange]
    ) -> list[PolicyVerdict]:
        """`do` for each of them, as many at a time as the server has workers."""
        with ThreadPoolExecutor(self.client.server.workers) as pool:
            try:
                return list(pool.map(do, exchanges))
            except BaseException:
                self.client.stop()
                pool.shutdown(cancel_futures=True)
                raise

    def verdict(self, exchange: Exchange, *, but_itself: bool = False) -> PolicyVerdict:
        shown: list[Precedent] = []
        if self.book is not None:
            shown = self.book.nearest(exchange, self.k, but_itself=but_itself)
        return self._verdict(judging_messages(self.policy, exchange, shown), len(shown))

    def revised(self, exchange: Exchange, reasoning: str, label: str) -> PolicyVerdict:
        """The verdict after one critique of a reasoning that did not lead to the label."""
        critique = self.answer(critique_messages(self.policy, exchange, reasoning, label))
        if critique.text is None:
            return PolicyVerdict(None, "", 0, critique.fault)
        return self._verdict(revision_messages(self.policy, exchange, reasoning, critique.text), 0)

    def _verdict(self, messages: Messages, shown: int) -> PolicyVerdict:
        answer = self.answer(messages, lambda text: read_verdict(text) is not None)
        if answer.text is None:
            return PolicyVerdict(None, "", shown, answer.fault)
        verdict = read_verdict(answer.text)
        if verdict is None:
            self._fault(NO_VERDICT, "its answers end with no line VERDICT: complies or VERDICT: violates")
            return PolicyVerdict(None, answer.text.strip(), shown, NO_VERDICT)
        return PolicyVerdict(verdict, reasoning_in(answer.text), shown)

    def answer(self, messages: Messages, readable: Callable[[str], bool] = bool) -> PolicyAnswer:
        """From the file where it is readable, else from the server; JudgeLost as the client raises it."""
        key = question_key(self.client.server.model, messages, self.sampling)
        with self._lock:
            known = self.answers.get(key)
            if known is not None and readable(known):
                self.kept += 1
                return PolicyAnswer(known)
            down = self._unanswered >= IN_A_ROW
        if self.client.lost is not None:
            raise self.client.lost
        if down:
            self._fault(NOT_ASKED, f"{IN_A_ROW} questions in a row had no answer, so the rest is left out")
            return PolicyAnswer(None, NOT_ASKED)
        reply, error, detail = self.client.ask(messages, self.sampling)
        with self._lock:
            self.asked += 1
            if reply is not None:
                self._unanswered = 0
                self.answers.put(key, str(reply["text"]))
                return PolicyAnswer(str(reply["text"]))
            self._unanswered += 1
        self._fault(error, detail)
        return PolicyAnswer(None, error)

    def _fault(self, kind: str, detail: str) -> None:
        with self._lock:
            self.faults[kind] += 1
            first = self.faults[kind] == 1
        if first and self._say is not None:
            reason = f"{kind}: {detail}" if detail else kind
            self._say(
                f"{self.client.named} gives no verdict ({reason}); such responses go unjudged, and are counted"
            )


# ---- collecting


@dataclass(frozen=True)
class CollectedPrecedents:
    """What became of labelled exchanges.

    precedents  those whose last verdict is their label, in the order given
    first       right at once
    revised     right after so many critiques and revisions: rounds -> exchanges
    wrong       still not the label after the last round
    unjudged    a question had no answer, or an answer no verdict
    """

    precedents: list[Precedent]
    first: int
    revised: dict[int, int]
    wrong: int
    unjudged: int


def collect_precedents(
    judge: PolicyJudge,
    exchanges: Sequence[Exchange],
    labels: Sequence[str],
    *,
    rounds: int = 2,
    progress: Callable[[], None] | None = None,
) -> CollectedPrecedents:
    """Critique and revise: a reasoning whose verdict is not the label is criticised and written anew, `rounds` times
    at most; what then says the label is kept as a precedent. JudgeLost as `judge`."""
    wanted = dict(zip(exchanges, labels, strict=True))
    if any(wanted[one] != label for one, label in zip(exchanges, labels, strict=True)):
        raise ValueError("one exchange has both labels; a precedent can have one")
    revisions: dict[Exchange, int] = {}

    def one(exchange: Exchange) -> PolicyVerdict:
        found = judge.verdict(exchange)
        for number in range(1, rounds + 1):
            if found.verdict is None or found.verdict == wanted[exchange]:
                break
            found = judge.revised(exchange, found.reasoning, wanted[exchange])
            revisions[exchange] = number
        if progress is not None:
            progress()
        return found

    judge.begin()
    each = list(wanted)
    verdicts = judge.at_once(one, each)
    right = [found.verdict == wanted[at] for at, found in zip(each, verdicts, strict=True)]
    counts = Counter(revisions.get(at, 0) for at, good in zip(each, right, strict=True) if good)
    unjudged = sum(found.verdict is None for found in verdicts)
    return CollectedPrecedents(
        [
            Precedent(at.prompt, at.text, wanted[at], found.reasoning, revisions.get(at, 0))
            for at, found, good in zip(each, verdicts, right, strict=True)
            if good
        ],
        counts.pop(0, 0),
        dict(sorted(counts.items())),
        len(each) - sum(right) - unjudged,
        unjudged,
    )
