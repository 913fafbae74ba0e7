"""YAML as recipes mean it: `1e-5` is a number, a repeated key is an error, `on` and `no` are plain words.

PyYAML follows YAML 1.1, in which `1e-5` is text, `no` is false, `12:30` is 750 and the second of two equal
keys wins. Here only true/false, null/~, numbers as Python reads them, and text exist: no tags, nothing that holds
itself, nothing deeper or larger than a person writes. What is wrong is said with its line and the text there.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

DEEPEST = 40
LARGEST = 100_000
"""Values a document may hold, those behind an alias counted as often as they are named."""
DIGITS = 18
"""Of a whole number: what fits 64 bits, as everything that reads a recipe takes it."""
_SHOWN = 60


class YAMLFault(ValueError):
    """Text that is not YAML as meant here. `problem` is the fault alone; the message is "line 3: problem: 'text'"."""

    def __init__(self, problem: str, line: int | None = None, text: str = "") -> None:
        self.problem, self.line = problem, line
        shown = text.strip()
        self.text = shown if len(shown) <= _SHOWN else shown[: _SHOWN - 3] + "..."
        where = "" if line is None else f"line {line}: "
        super().__init__(f"{where}{problem}" + (f": {self.text!r}" if self.text else ""))


class _Fault(yaml.MarkedYAMLError):
    """One of ours: the problem is said already."""

    def __init__(self, problem: str, mark: yaml.Mark) -> None:
        super().__init__(None, None, problem, mark)


class RecipeLoader(yaml.SafeLoader):
    """SafeLoader with the rules above; errors carry line and column."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._open: list[str | None] = []  # anchors of the nodes that are being read, outermost first
        self._sizes: dict[int, int] = {}  # of finished nodes

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self._open:
                raise _Fault(f"'*{event.anchor}' stands inside what it names", event.start_mark)
        elif event.tag is not None:
            raise _Fault(f"a recipe has no YAML tags; remove '{_short_tag(event.tag)}'", event.start_mark)
        if len(self._open) >= DEEPEST:
            raise _Fault(f"is nested more than {DEEPEST} levels deep", event.start_mark)
        self._open.append(None if isinstance(event, yaml.AliasEvent) else event.anchor)
        node = super().compose_node(parent, index)
        self._open.pop()
        if node is not None and id(node) not in self._sizes:
            self._sizes[id(node)] = size = 1 + sum(self._sizes[id(part)] for part in _parts(node))
            if size > LARGEST:
                raise _Fault(f"holds more than {LARGEST} values", event.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _Fault(f"key {key!r} is not text; quote it", key_node.start_mark)
            if key in seen:
                problem = f"key {key!r} stands twice, first on line {seen[key]}; keep one"
                raise _Fault(problem, key_node.start_mark)
            seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _short_tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")


def _resolve(tag: str, pattern: str, first: str) -> None:
    RecipeLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_resolve("bool", r"^(?:true|false|True|False)$", "tTfF")
RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:null|Null|~|)$"), ["n", "N", "~", ""]
)
_resolve("int", r"^[-+]?[0-9][0-9_]*$", "-+0123456789")
_resolve(
    "float",
    r"^(?:[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))"
    r"|\.(?:nan|NaN|NAN))$",
    "-+.0123456789",
)


def _construct_int(loader: RecipeLoader, node: yaml.ScalarNode) -> int:
    # YAML 1.1 would read 010 as eight.
    digits = loader.construct_scalar(node).replace("_", "")
    if len(digits.lstrip("+-0")) > DIGITS:
        raise _Fault("is a number beyond 64 bits", node.start_mark)
    return int(digits, 10)


def _construct_float(loader: RecipeLoader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node).replace("_", "").lower()
    number = float(text.replace(".inf", "inf").replace(".nan", "nan"))
    if math.isnan(number):
        raise _Fault("'.nan' is no number", node.start_mark)
    if math.isinf(number) and "inf" not in text:
        raise _Fault("is a number beyond what a float holds", node.start_mark)
    return number


def _construct_text(loader: RecipeLoader, node: yaml.ScalarNode) -> str:
    text = loader.construct_scalar(node)
    odd = next((letter for letter in text if letter == "\0" or "\ud800" <= letter <= "\udfff"), None)
    if odd is not None:
        raise _Fault(f"holds U+{ord(odd):04X}, which is not text", node.start_mark)
    return text


RecipeLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)
RecipeLoader.add_constructor("tag:yaml.org,2002:float", _construct_float)
RecipeLoader.add_constructor("tag:yaml.org,2002:str", _construct_text)


_IN_OUR_WORDS: list[tuple[str, str]] = [
    (r"found character '\\t'", "indent with spaces, not with a tab"),
    (r"found character '(.)' that cannot start", r"text cannot begin with \1; put it in quotes"),
    (r"mapping values are not allowed", "a ':' too many; put text that holds ': ' in quotes, and do not indent a key "
     "below one that has its value already"),
    (r"sequence entries are not allowed", "a list begins on a line of its own, each item behind '- '; or write [a, b]"),
    (r"scanning a block scalar", "text after | or > begins on the next line; put text that begins with them in quotes"),
    (r"scanning a directive", "text cannot begin with %; put it in quotes"),
    (r"could not find expected ':'", "a key without ':'; write it as key: value"),
    (r"expected <block end>, but found '-'", "a list item ('-') is indented otherwise than its neighbours"),
    (r"expected <block end>, but found '(?:<scalar>|,|\]|\})'", "the text goes on after a value has ended; put all "
     "of it in quotes"),
    (r"expected <block end>", "is indented otherwise than the lines it belongs with"),
    (r"expected ',' or '([\]}])'", r"a ',' or the closing '\1' is missing before this"),
    (r"unexpected end of stream", "a quote that was opened is never closed"),
    (r"found unexpected document separator", "a quote that was opened is never closed"),
    (r"found unknown escape character '(.)'", r"in double quotes '\\\1' is no escape; use single quotes, or \\\\"),
    (r"expected escape sequence", r"in double quotes '\\' begins an escape; use single quotes, or \\\\"),
    (r"found undefined alias '?([^']*)'?", r"'*\1' names nothing; put text that begins with * in quotes"),
    (r"found duplicate anchor '?([^';]*)'?.*", r"'&\1' stands twice; keep one"),
    (r"expected alphabetic or numeric character", "put text that begins with * or & in quotes"),
    (r"expected a single document", "a second document begins here ('---'); a recipe is one"),
    (r"but found another document", "a second document begins here ('---'); a recipe is one"),
    (r"expected '?<document start>'?", "the text goes on after the document has ended"),
    (r"expected the node content, but found '<stream end>'", "a bracket that was opened is never closed"),
    (r"expected the node content, but found '?(.*?)'?$", r"a value is missing before '\1'"),
    (r"could not determine a constructor", "put the value in quotes"),
]  # fmt: skip
"""Pattern in PyYAML's words -> the same in ours."""


def _in_our_words(problem: str) -> str:
    for pattern, words in _IN_OUR_WORDS:
        found = re.search(pattern, problem)
        if found is not None:
            return found.expand(words)
    return problem.strip("; ")


def parse(text: str) -> Any:
    """The document in `text`; YAMLFault, a ValueError, with line, reason and the text there where there is none."""
    try:
        return yaml.load(text, Loader=RecipeLoader)  # a SafeLoader
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise YAMLFault(f"holds U+{code:04X}, which is not text", line, _line(text, line)) from None
    except yaml.MarkedYAMLError as error:
        # Where a quote or bracket was opened says more than where the text ended.
        mark = error.problem_mark or error.context_mark
        if error.context_mark is not None and re.search("quoted|simple key", _both(error)):
            mark = error.context_mark
        problem = str(error.problem) if isinstance(error, _Fault) else _in_our_words(_both(error))
        line = None if mark is None else mark.line + 1
        raise YAMLFault(problem, line, "" if line is None else _line(text, line)) from None


def _both(error: yaml.MarkedYAMLError) -> str:
    return f"{error.context or ''}; {error.problem or ''}"


def _line(text: str, number: int) -> str:
    lines = text.splitlines()
    return lines[number - 1] if number <= len(lines) else ""


def read_text(data: bytes) -> str:
    """The text of a YAML file, with or without a byte-order mark; YAMLFault where it is in another encoding."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        marked = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        known = "is UTF-16" if marked else f"byte {data[error.start]:#04x} is not UTF-8"
        raise YAMLFault(f"{known}; save the file as UTF-8", None if marked else line) from None
