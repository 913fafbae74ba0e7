"""`data: {name: digits}`: 1797 handwritten digits of 8 x 8 grey pixels, as scikit-learn ships them (UCI).

    prompt "7"   label "7"   image [[0, 31, ...], ...]  eight rows of eight numbers, 0 black to 255 white

For flow models of images. Train and test split share no image.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic.dataclasses import dataclass

from posttrain.data.decoding import DataError
from posttrain.settings import STRICT

LARGEST = 16  # the set's pixels are counts from 0 to 16


@dataclass(frozen=True, config=STRICT)
class Digits:
    held_out: Annotated[int, Ge(1), Le(1000)] = 400
    """images of the test split"""
    seed: Annotated[int, Ge(0)] = 0
    """of the split"""
    prompts_only: bool = False
    """ten rows, one per class, without images: for methods that learn from rewards"""

    def rows(self, split: str, *, completions: bool) -> Iterator[dict[str, Any]]:
        """The rows of "train" or "test"."""
        if self.prompts_only:
            for digit in range(10):
                yield {"prompt": str(digit), "label": str(digit)}
            return
        images, labels = load_digit_images()
        order = list(range(len(labels)))
        random.Random(f"digits/{self.seed}").shuffle(order)
        for i in order[: self.held_out] if split == "test" else order[self.held_out :]:
            yield {"prompt": str(labels[i]), "label": str(labels[i]), "image": images[i]}


def load_digit_images() -> tuple[list[list[list[int]]], list[int]]:
    """All images, 0 to 255, and their classes. DataError where scikit-learn is missing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            f"task 'digits' reads the set that scikit-learn ships, which cannot be imported ({error}); "
            "pip install 'posttrain[image]'"
        ) from None
    found: Any = load_digits()
    pixels = (found.images * (255 / LARGEST)).round().astype(int)
    return pixels.tolist(), found.target.tolist()
