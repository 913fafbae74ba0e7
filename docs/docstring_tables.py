"""For the site: docstrings are written to be read in a terminal; as Markdown their columns would run together."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).resolve().parent))
from docstring_columns import as_markdown  # an extension is loaded by path, outside any package


class AlignedColumns(griffe.Extension):
    """Rewrites each docstring's aligned blocks as Markdown lists."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
