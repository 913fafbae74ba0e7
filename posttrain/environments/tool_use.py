"""What tools were used for in a rollout, and what went wrong."""

from __future__ import annotations

from collections import Counter

from posttrain.environments.orders import Reply

FAILURES = {
    "error": "errors",
    "timeout": "timeouts",
    "crash": "crashes",
    "gone": "gone",
}
"""How a call ended -> the name it is counted under."""
COUNTS = ("calls", *FAILURES.values(), "cut", "lost_environments", "begun_again")


class ToolUse:
    """Counts of one rank since they were last taken."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._seconds = 0.0
        self._unscored = 0

    def note(self, reply: Reply, seconds: float, *, of_environment: bool) -> None:
        self._counts["calls"] += 1
        self._seconds += seconds
        if reply.cut:
            self._counts["cut"] += 1
        if reply.end in FAILURES:
            self._counts[FAILURES[reply.end]] += 1
        if of_environment and reply.end in ("timeout", "crash"):
            self._counts["lost_environments"] += 1

    def note_begun_again(self) -> None:
        """An episode did not begin, and is tried once more."""
        self._counts["begun_again"] += 1

    def note_unscored(self) -> None:
        """An episode was not judged: its scorer raised, or took too long, or its environment was ended before."""
        self._unscored += 1

    def take_unscored(self) -> float:
        """How many there were of those; the count begins anew."""
        found, self._unscored = self._unscored, 0
        return float(found)

    def take(self) -> dict[str, float]:
        """The counts, in the order of `COUNTS`, and the seconds; they begin anew."""
        found = {name: float(self._counts[name]) for name in COUNTS} | {"seconds": self._seconds}
        self._counts.clear()
        self._seconds = 0.0
        return found
