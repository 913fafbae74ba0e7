"""Whether an image shows the text that was asked for, as the program tesseract reads it."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from PIL import Image

from posttrain.rewards.hooks import MachineReport, checks_settings, judges_each, looks_at_machine

PROGRAM = "tesseract"
INSTALL = f"{PROGRAM} is not installed, and ocr_match reads images by it; apt-get install tesseract-ocr"
_QUOTED = re.compile(r"[\"“”](.+?)[\"“”]")


def _check(page: int = 6, **_: Any) -> None:
    if not 0 <= page <= 13:
        raise ValueError(f"page is {page}; {PROGRAM} has page segmentation modes 0 to 13")


def _looks(group_size: int, timeout_s: float, **_: Any) -> MachineReport:
    found = shutil.which(PROGRAM)
    return MachineReport([], [], [INSTALL]) if found is None else MachineReport([f"reads by {found}"], [], [])


@judges_each
@looks_at_machine(_looks)
@checks_settings(_check)
def ocr_match(
    completions: Sequence[Image.Image],
    *,
    text: Sequence[Any] | None = None,
    prompts: Sequence[Any] | None = None,
    language: str = "eng",
    page: int = 6,
    **_: Any,
) -> list[float | None]:
    """1 - distance / length: the edit distance between what tesseract reads and the text asked for, both without spaces
    and case, at most its length, 0 where it stands within what is read (Flow-GRPO's reward for rendered text).

    The text is the column `text`, else what stands between quotation marks in the prompt; None where there is none.
    page  tesseract's page segmentation mode; 6: one block of text
    """
    wanted = (
        text if text is not None else [_quoted(prompt) for prompt in prompts or [None] * len(completions)]
    )
    scores: list[float | None] = []
    for image, asked in zip(completions, wanted, strict=True):
        plain = _plain("" if asked is None else str(asked))
        scores.append(_match(_plain(read_text(image, language, page)), plain) if plain else None)
    return scores


def read_text(image: Image.Image, language: str = "eng", page: int = 6) -> str:
    """What tesseract reads. Raises RuntimeError where it is missing or fails."""
    file = io.BytesIO()
    image.convert("RGB").save(file, format="PNG")
    try:
        done = subprocess.run(
            [PROGRAM, "stdin", "stdout", "-l", language, "--psm", str(page)],
            input=file.getvalue(),
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        raise RuntimeError(INSTALL) from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise RuntimeError(f"{PROGRAM} ended with {done.returncode}: {said[0] if said else 'no message'}")
    return done.stdout.decode("utf-8", "replace")


def _quoted(prompt: Any) -> str | None:
    found = _QUOTED.search(prompt) if isinstance(prompt, str) else None
    return None if found is None else found[1]


def _plain(text: str) -> str:
    return "".join(text.split()).lower()


def _match(read: str, asked: str) -> float:
    if asked in read:
        return 1.0
    return 1.0 - min(edit_distance(read, asked), len(asked)) / len(asked)


def edit_distance(one: str, other: str) -> int:
    """Insertions, deletions and substitutions that make one text of the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for i, mine in enumerate(one, 1):
        above, row[0] = row[0], i
        for j, theirs in enumerate(other, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (mine != theirs))
    return row[-1]
