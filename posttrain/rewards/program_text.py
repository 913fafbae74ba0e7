"""The program in a completion, and the tests in a row: reading alone, nothing is run."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from posttrain.answers.chat import after_reasoning
from posttrain.rewards.sandbox.run_tests import InputOutput, Statements

LONGEST_PROGRAM = 200_000
"""Characters. A completion is some thousand tokens; what is longer is not compiled."""

_FENCE = re.compile(r"^\s*(?P<marks>`{3,}|~{3,})\s*(?P<language>[\w+#.-]*)")
_PYTHON = frozenset({"python", "python3", "py", "py3"})


def program_of(completion: str) -> str | None:
    """The program in a completion, or None where there is none.

    The last fenced block marked as Python; where none is, the last block without a mark; without any such block the
    whole text. A block that is open at the end of the text counts. Reasoning (<think>...</think>) is no part of it.
    """
    text = after_reasoning(completion)
    if text is None or not text.strip() or len(text) > LONGEST_PROGRAM:
        return None
    blocks = fenced_blocks(text)
    marked = [code for language, code in blocks if language.lower() in _PYTHON]
    unmarked = [code for language, code in blocks if not language]
    found = (marked or unmarked or [text])[-1]
    return found if found.strip() else None


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of each block; the language is "" where the fence names none."""
    blocks: list[tuple[str, str]] = []
    marks, language, lines = "", "", []
    for line in text.splitlines():
        fence = _FENCE.match(line)
        if not marks:
            if fence is not None:
                marks, language, lines = fence["marks"], fence["language"], []
        elif fence is not None and fence["marks"].startswith(marks) and line.strip() == fence["marks"]:
            blocks.append((language, "\n".join(lines) + "\n"))
            marks = ""
        else:
            lines.append(line)
    if marks:
        blocks.append((language, "\n".join(lines) + "\n"))
    return blocks


def sources_of(program: str, tests: InputOutput | Statements) -> list[str]:
    """What a program may be meant as, the likeliest first; the first that compiles is run.

    Where the tests have a prefix (HumanEval's prompt), a program that defines the function under test stands below
    it, and any other is the rest of its body, up to the first line that is not indented.
    """
    plain = textwrap.dedent(program)
    if isinstance(tests, InputOutput) or not tests.prefix:
        return list(dict.fromkeys((program, plain)))
    if tests.entry_point is not None and _defines(plain, tests.entry_point):
        return [f"{tests.prefix}\n{plain}", plain]
    body = [program, _indented_part(program), textwrap.indent(plain, "    ")]
    return list(dict.fromkeys(tests.prefix + part for part in body))


def _defines(program: str, name: str) -> bool:
    pattern = rf"^(?:(?:async\s+)?def|class)\s+{re.escape(name)}\b|^{re.escape(name)}\s*="
    return re.search(pattern, program, re.MULTILINE) is not None


def _indented_part(program: str) -> str:
    """A base model goes on after the function, with the next one."""
    lines = program.splitlines()
    for number, line in enumerate(lines):
        if number and line.strip() and not line[0].isspace():
            return "\n".join(lines[:number]) + "\n"
    return program


# ---- tests


def row_tests(row: Mapping[str, Any]) -> InputOutput | Statements | None:
    """The tests of one row, by the columns that it has (those of `code_tests`); None where there are none, or in no
    shape that is known."""
    if row.get("test") is not None:
        return _checked(row)
    if row.get("test_list") is not None:
        return _statements(_read(row["test_list"]), row)
    if row.get("tests") is not None:
        return _of_any_shape(_read(row["tests"]), row)
    return None


def _checked(row: Mapping[str, Any]) -> Statements | None:
    """HumanEval: `test` defines check(candidate); without one it is a test by itself."""
    test, entry, prefix = row["test"], row.get("entry_point"), row.get("prefix") or ""
    if not isinstance(test, str) or not test.strip() or not isinstance(prefix, str):
        return None
    if re.search(r"^def check\(", test, re.MULTILINE) is None:
        return Statements((test,), prefix=prefix, entry_point=entry or None)
    if not isinstance(entry, str) or not entry.isidentifier():
        return None
    return Statements((f"check({entry})",), (test,), prefix, entry)


def _statements(tests: Any, row: Mapping[str, Any]) -> Statements | None:
    """MBPP: a list of assert statements."""
    if not isinstance(tests, list | tuple) or not tests or not all(isinstance(test, str) for test in tests):
        return None
    setup = (row.get("test_imports"), row.get("test_setup_code"))
    parts = [
        "\n".join(part) if isinstance(part, list | tuple) else part for part in setup if part is not None
    ]
    if not all(isinstance(part, str) for part in parts):
        return None
    return Statements(
        tuple(tests), tuple(parts), row.get("prefix") or "", entry_point=row.get("entry_point") or None
    )


def _of_any_shape(tests: Any, row: Mapping[str, Any]) -> InputOutput | Statements | None:
    if isinstance(tests, Mapping):
        if tests.get("fn_name"):
            return None
        inputs = tests.get("inputs", tests.get("input"))
        outputs = tests.get("outputs", tests.get("output"))
        return _pairs(inputs, outputs)
    if isinstance(tests, list | tuple) and tests and all(isinstance(test, Mapping) for test in tests):
        return _pairs([test.get("input") for test in tests], [test.get("output") for test in tests])
    return _statements(tests, row)


def _pairs(inputs: Any, outputs: Any) -> InputOutput | None:
    if not isinstance(inputs, list | tuple) or not isinstance(outputs, list | tuple):
        return None
    if not inputs or len(inputs) != len(outputs):
        return None
    if not all(isinstance(text, str) for text in (*inputs, *outputs)):
        return None
    return InputOutput(tuple(inputs), tuple(outputs))


def _read(column: Any) -> Any:
    """The column, or what its JSON text says."""
    if isinstance(column, str):
        try:
            return json.loads(column)
        except ValueError:
            return None
    return column
