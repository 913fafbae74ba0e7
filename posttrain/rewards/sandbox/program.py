"""Inside the enclosure: a program with its standard input and output, as if started from a file."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # `typing` takes longer to import than all the rest of a program's start
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any


def first_that_compiles(sources: list[str]) -> CodeType:
    """Of several readings of a completion; raises what the first one raises where none compiles."""
    failure: BaseException | None = None
    for source in sources:
        try:
            return compile(source, "program.py", "exec")
        except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError) as error:
            failure = failure or error
    raise failure or SyntaxError("no program")


def main(argument: dict[str, Any]) -> None:
    """`argument`: {"sources": [...]}, of which the first that compiles is run as `__main__`."""
    code = first_that_compiles(argument["sources"])
    module = sys.modules["__main__"] = type(sys)("__main__")
    module.__dict__["__file__"] = "program.py"
    exec(code, module.__dict__)
