"""Cases for the grading of mathematics, of our own making: the tables in math_cases_data, one file a kind.

A line is `gold # answer # 1` (equal) or `# 0` (different); a line without marks names the section that follows.
"""

from __future__ import annotations

from pathlib import Path

TABLES = Path(__file__).parent / "math_cases_data"


def cases() -> list[tuple[str, str, str, bool]]:
    """(section, gold, answer, whether they are equal), of all tables."""
    found = []
    for table in sorted(TABLES.glob("*.txt")):
        section = table.stem
        for line in table.read_text(encoding="utf-8").splitlines():
            if line.count(" # ") == 2:
                gold, answer, verdict = line.split(" # ")
                found.append((section, gold, answer, verdict == "1"))
            else:
                section = line
    return found
