"""Datasets: a name or a path to rows with fixed columns, and what was dropped on the way. No torch."""

from __future__ import annotations

from posttrain.data.files import DataError
from posttrain.data.overlap import Overlap, overlap
from posttrain.data.rows import LoadedRows, RowCounts, Survey, load_rows, survey

__all__ = ["DataError", "LoadedRows", "Overlap", "RowCounts", "Survey", "load_rows", "overlap", "survey"]
