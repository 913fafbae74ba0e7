"""What a data set may hold in its image column, as a PIL image."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
from PIL import Image, UnidentifiedImageError


def as_image(value: Any) -> Image.Image:
    """Rows of numbers from 0 to 255 (H, W) or (H, W, 3), a file's path, a file's bytes, what `datasets` keeps of one
    ({"bytes", "path"}), or an image. ValueError says what else it is."""
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        return as_image(value["bytes"] if value.get("bytes") is not None else value.get("path"))
    if isinstance(value, bytes):
        return _opened(io.BytesIO(value), f"{len(value)} bytes")
    if isinstance(value, str | Path):
        if not Path(value).is_file():
            raise ValueError(f"image: there is no file {str(value)!r}")
        return _opened(value, str(value))
    pixels = _array(value)
    if pixels is None or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ValueError(
            "image: rows of numbers (height, width) or (height, width, 3), a file's path or its bytes are read, not "
            f"{type(value).__name__}{'' if pixels is None else f' of shape {pixels.shape}'}"
        )
    if pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(f"image: numbers lie between 0 and 255, not {pixels.min():g} and {pixels.max():g}")
    return Image.fromarray(pixels.round().astype(numpy.uint8))


def _opened(file: Any, name: str) -> Image.Image:
    try:
        image = Image.open(file)
        image.load()
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"image: {name} cannot be read as one: {error}") from None
    return image


def _array(value: Any) -> numpy.ndarray | None:
    try:
        found = numpy.asarray(value, dtype=numpy.float64)
    except (TypeError, ValueError):  # rows of unequal length, text
        return None
    return found if found.size else None
