"""Rewards of recipes/smoke/flow_grpo_digits.yaml and its neighbours: one to learn from, two to watch it by.

    linear_logit      the proxy: a linear classifier's logit of the digit that was asked for, which has no upper end
    gold_confidence   what another classifier, on other images, holds for the digit's probability
    gold_distance     how far the image is from the nearest real one of its class: 0 the same, 1 black for white

The proxy's classifier is fitted, when its worker starts, on the digits of scikit-learn in even places; the gold ones
look at those in odd places.
"""

from functools import cache

import numpy
from PIL import Image

from posttrain.rewards.hooks import judges_each, prepares

WIDTH = 1.0
"""Of the kernel: the squared distance of two images, summed over pixels from 0 to 1, at which a weight is 1/e."""


@cache
def _halves():
    """(pixels (N, 64) from 0 to 1, classes (N,)) of even and of odd places."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    pixels = pixels / 16
    return (pixels[::2], classes[::2]), (pixels[1::2], classes[1::2])


@cache
def _linear():
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1.0, max_iter=1000).fit(*_halves()[0])


def _shares(images):
    """Of each class at each image, by a kernel around every odd image: another kind of classifier than the proxy's."""
    pixels, classes = _halves()[1]
    distance = ((images[:, None] - pixels[None]) ** 2).sum(2) / WIDTH
    weight = numpy.exp(distance.min(1, keepdims=True) - distance)
    sums = numpy.stack([weight[:, classes == digit].sum(1) for digit in range(10)], axis=1)
    return sums / sums.sum(1, keepdims=True)


def _pixels(images):
    return numpy.stack([numpy.asarray(image.convert("L"), dtype=float).reshape(-1) / 255 for image in images])


@prepares(_linear)
@judges_each
def linear_logit(completions: list[Image.Image], *, label, **_) -> list[float | None]:
    logits = _linear().decision_function(_pixels(completions))
    return [float(row[int(digit)]) for row, digit in zip(logits, label, strict=True)]


@prepares(_halves)
@judges_each
def gold_confidence(completions: list[Image.Image], *, label, **_) -> list[float | None]:
    found = _shares(_pixels(completions))
    return [float(row[int(digit)]) for row, digit in zip(found, label, strict=True)]


@prepares(_halves)
@judges_each
def gold_distance(completions: list[Image.Image], *, label, **_) -> list[float | None]:
    pixels, classes = _halves()[1]
    found = []
    for image, digit in zip(_pixels(completions), label, strict=True):
        of_class = pixels[classes == int(digit)]
        found.append(float(numpy.sqrt(((of_class - image) ** 2).mean(1)).min()))
    return found
