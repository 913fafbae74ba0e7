"""The public name of math grading among the rewards; the grader is posttrain/answers/grading.py."""

from __future__ import annotations

from posttrain.answers.grading import Extraction, Grade, canonical_answer, extract_answer, grade, read_gold

__all__ = ["Extraction", "Grade", "canonical_answer", "extract_answer", "grade", "read_gold"]
