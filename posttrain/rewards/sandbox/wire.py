"""Plain data as JSON, and frames of it over a pipe: what the judge and the program say to each other.

Only these types travel, each as itself: None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set,
frozenset, range, slice, Decimal, Fraction, and the names of Python's own types; what is derived from one of them (a
Counter, a namedtuple) travels as that one. Nothing that is received is ever run: an object of any other type stays with
the program, and its number travels ("handle").
"""

from __future__ import annotations

import json
import os
import struct

TYPE_CHECKING = False  # `typing` takes longer to import than all the rest of a program's start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LARGEST = 8 * 2**20
"""Bytes of one frame. The judge has to parse what the program sends."""

_LENGTH = struct.Struct(">I")
_EXACT = (
    2**53
)  # integers below are numbers of JSON; beyond, text in hexadecimal, which no digit limit slows or refuses


class NotPlain(TypeError):
    """A value that cannot be sent as data."""


class FrameTooLarge(ValueError):
    """More data than a frame may hold."""


def encode(value: Any, other: Callable[[Any], Any]) -> Any:
    """The value in JSON's terms; `other` says what stands for an object of another type, or raises NotPlain."""
    if value is None or value is True or value is False:
        return value
    for kind, packed in _PACKERS:
        if isinstance(value, kind):
            return packed(value, other)
    if isinstance(value, type) and _TYPES.get(value.__name__) is value:
        return {"t": "type", "v": value.__name__}
    name = type(value).__module__
    if name in ("decimal", "fractions"):
        return {"t": name, "v": str(value)}
    return other(value)


def _items(tag: str, kind: type) -> Callable[[Any, Callable[[Any], Any]], Any]:
    def pack(value: Any, other: Callable[[Any], Any]) -> Any:
        return {"t": tag, "v": [encode(item, other) for item in kind.__iter__(value)]}

    return pack


def _int(value: int, other: Callable[[Any], Any]) -> Any:
    value = int.__index__(value)
    return value if -_EXACT < value < _EXACT else {"t": "int", "v": hex(value)}


def _pairs(value: dict[Any, Any], other: Callable[[Any], Any]) -> Any:
    return {"t": "dict", "v": [[encode(k, other), encode(v, other)] for k, v in dict.items(value)]}


_PACKERS: tuple[tuple[type, Callable[[Any, Callable[[Any], Any]], Any]], ...] = (
    (int, _int),
    (float, lambda value, other: {"t": "float", "v": float.hex(value)}),
    (str, lambda value, other: str.__str__(value)),
    (list, lambda value, other: [encode(item, other) for item in list.__iter__(value)]),
    (tuple, _items("tuple", tuple)),
    (dict, _pairs),
    (set, _items("set", set)),
    (frozenset, _items("frozenset", frozenset)),
    (
        slice,
        lambda value, other: {
            "t": "slice",
            "v": _items("", tuple)((value.start, value.stop, value.step), other)["v"],
        },
    ),
    (bytes, lambda value, other: {"t": "bytes", "v": bytes.hex(value)}),
    (bytearray, lambda value, other: {"t": "bytearray", "v": bytearray.hex(value)}),
    (complex, lambda value, other: {"t": "complex", "v": [float.hex(value.real), float.hex(value.imag)]}),
    (range, lambda value, other: {"t": "range", "v": [hex(value.start), hex(value.stop), hex(value.step)]}),
)


def decode(value: Any, handle: Callable[[int], Any]) -> Any:
    """The value again; `handle` gives what stands for an object that stayed where it is. ValueError for what is no
    such data."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list):
        return [decode(item, handle) for item in value]
    if not isinstance(value, dict) or set(value) != {"t", "v"}:
        raise ValueError("no plain data")
    tag, inner = value["t"], value["v"]
    if tag == "handle" and isinstance(inner, int):
        return handle(inner)
    if tag == "slice" and isinstance(inner, list):
        return slice(*(decode(item, handle) for item in inner))
    if tag == "dict" and isinstance(inner, list):
        return {decode(k, handle): decode(v, handle) for k, v in inner}
    if isinstance(tag, str) and tag in _COLLECTIONS and isinstance(inner, list):
        return _COLLECTIONS[tag](decode(item, handle) for item in inner)
    if isinstance(tag, str) and tag in _SCALARS and isinstance(inner, str | list):
        return _SCALARS[tag](inner)
    raise ValueError("no plain data")


def _decimal(text: str) -> Any:
    from decimal import Decimal

    return Decimal(text)


def _fraction(text: str) -> Any:
    from fractions import Fraction

    return Fraction(text)


_TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, type(None), object)
}
_COLLECTIONS: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
_SCALARS: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "float": float.fromhex,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda parts: complex(*map(float.fromhex, parts)),
    "range": lambda parts: range(*(int(part, 16) for part in parts)),
    "type": lambda name: _TYPES[name],
    "decimal": _decimal,
    "fractions": _fraction,
}


def send(pipe: int, message: Any) -> None:
    packed = json.dumps(message).encode()
    if len(packed) > LARGEST:
        raise FrameTooLarge(f"{len(packed)} bytes; a frame holds {LARGEST}")
    data = memoryview(_LENGTH.pack(len(packed)) + packed)
    while data:
        data = data[os.write(pipe, data) :]


def receive(pipe: int) -> Any:
    """The next message. EOFError where the other side is gone, FrameTooLarge, or ValueError for what is no JSON."""
    size = _LENGTH.unpack(_exactly(pipe, _LENGTH.size))[0]
    if size > LARGEST:
        raise FrameTooLarge(f"{size} bytes; a frame holds {LARGEST}")
    return json.loads(_exactly(pipe, size))


def _exactly(pipe: int, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        chunk = os.read(pipe, min(size - len(parts), 1 << 20))
        if not chunk:
            raise EOFError
        parts += chunk
    return bytes(parts)
