"""Answers of a judge on disk, by what was asked: one line each, shared by any number of processes of one machine."""

from __future__ import annotations

import fcntl
import hashlib
import json
from pathlib import Path
from typing import Any


def question_key(*asked: Any) -> str:
    """A hash of all that decides an answer: model, messages, sampling."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class AnswerFile:
    """`get` and `put` of one file of lines; what other processes have put there is seen. Of several answers to one
    question the last counts. A line that a kill has torn is passed over. Not for one object in several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, str] = {}
        self._read = 0  # bytes

    def get(self, key: str) -> str | None:
        if key not in self._known:
            self._catch_up()
        return self._known.get(key)

    def put(self, key: str, text: str) -> None:
        """On disk, as far as a kill of this process goes, when it returns. OSError where it cannot be written."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"key": key, "text": text}, ensure_ascii=False).encode() + b"\n"
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
            if file.seek(0, 2) > 0:
                file.seek(-1, 2)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)
        self._known[key] = text

    def _catch_up(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            found = file.read()
        whole = found[: found.rfind(b"\n") + 1]
        self._read += len(whole)
        for raw in whole.splitlines():
            try:
                row = json.loads(raw)
                self._known[row["key"]] = row["text"]
            except (ValueError, KeyError, TypeError):
                continue
