"""`data: {name: digits}`: 1797 handwritten digits of 8 x 8 grey pixels, as scikit-learn ships them (UCI).

    prompt "7"   label "7"   image [[0, 31, ...], ...]  eight rows of eight numbers, 0 black to 255 white
    prompt "7"   label "7"   chosen_image [[...], ...]   rejected_image [[...], ...]      with args: {pairs: true}

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
    bold: bool = False
    """the boldest fifth of each class alone: good images of one narrow style"""
    pairs: bool = False
    """an image of the bolder half of its class (chosen_image) and one of the lighter half (rejected_image) a row"""

    def __post_init__(self) -> None:
        if sum((self.prompts_only, self.bold, self.pairs)) > 1:
            raise ValueError("digits: prompts_only, bold and pairs exclude each other; keep one")

    def rows(self, split: str, *, completions: bool) -> Iterator[dict[str, Any]]:
        """The rows of "train" or "test"."""
        if self.prompts_only:
            for digit in range(10):
                yield {"prompt": str(digit), "label": str(digit)}
            return
        images, labels = load_digit_images()
        order = list(range(len(labels)))
        random.Random(f"digits/{self.seed}").shuffle(order)
        chosen = order[: self.held_out] if split == "test" else order[self.held_out :]
        if self.pairs:
            yield from _pairs(chosen, images, labels)
            return
        if self.bold:
            kept = {
                i
                for of_class in _boldest_first(chosen, images, labels)
                for i in of_class[: len(of_class) // 5]
            }
            chosen = [i for i in chosen if i in kept]
        for i in chosen:
            yield {"prompt": str(labels[i]), "label": str(labels[i]), "image": images[i]}


def _boldest_first(chosen: list[int], images: list[list[list[int]]], labels: list[int]) -> list[list[int]]:
    """Of each class its images by the ink in them, most first."""
    ink = {i: sum(map(sum, images[i])) for i in chosen}
    return [sorted((i for i in chosen if labels[i] == digit), key=lambda i: -ink[i]) for digit in range(10)]


def _pairs(chosen: list[int], images: list[list[list[int]]], labels: list[int]) -> Iterator[dict[str, Any]]:
    partner: dict[int, int] = {}
    for of_class in _boldest_first(chosen, images, labels):
        half = len(of_class) // 2
        partner.update(zip(of_class[:half], of_class[-half:] if half else [], strict=True))
    for i in chosen:
        if i in partner:
            both = {"chosen_image": images[i], "rejected_image": images[partner[i]]}
            yield {"prompt": str(labels[i]), "label": str(labels[i]), **both}


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
