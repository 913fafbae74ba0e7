"""Times of day: 14:30, 2:30 p.m."""

from __future__ import annotations

import re

from posttrain.answers.shape import Ratio, Shape, Words


def same_clock(gold: str | None, answer: str | None, half_days: bool) -> bool:
    """7:30 p.m. is 19:30, and 7:30 where the gold does not say which half of the day (`half_days`)."""
    if gold is None or answer is None:
        return False
    hours = int(gold[:2]), int(answer[:2])
    alike = hours[0] == hours[1] or half_days and hours[0] == hours[1] % 12
    return alike and gold[2:] == answer[2:]


def clock_of(shape: Shape) -> str | None:
    """14:30, of 2:30 p.m. as well."""
    if isinstance(shape, Words):
        return shape.text if re.fullmatch(r"\d\d:\d\d", shape.text) else None
    if isinstance(shape, Ratio) and len(shape.terms) == 2:
        hour, minute = (term.text.strip() for term in shape.terms)
        return f"{hour:0>2}:{minute}" if hour.isdigit() and re.fullmatch(r"[0-5]\d", minute) else None
    return None


def is_clock(ratio: Ratio) -> bool:
    """10:05 is a time: nobody writes a ratio with a leading zero."""
    return any(re.fullmatch(r"0\d", term.text.strip()) for term in ratio.terms)
