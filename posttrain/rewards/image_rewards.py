"""The built-in rewards for images: their size as JPEG, how bright or colourful they are, what a classifier sees.

`completions` are PIL images. None of them says whether an image is good: they are proxies, and a policy will use what
they leave out.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy
from PIL import Image

from posttrain.rewards.hooks import checks_settings, judges_each

CLASSIFIER = "classifier.npz"


def _check_quality(quality: int = 95) -> None:
    if not 1 <= quality <= 100:
        raise ValueError(f"quality is {quality}; it lies between 1 and 100")


@judges_each
@checks_settings(_check_quality)
def jpeg_size(
    completions: Sequence[Image.Image], *, quality: int = 95, smaller: bool = True, **_: Any
) -> list[float | None]:
    """Kilobytes (1000 bytes) of each image as JPEG: negative, so that small files are better, or with
    `smaller: false` as they are."""
    sizes = []
    for image in completions:
        file = io.BytesIO()
        plain = image if image.mode in ("L", "RGB") else image.convert("RGB")
        plain.save(file, format="JPEG", quality=quality)
        sizes.append(file.tell() / 1000)
    return [-size if smaller else size for size in sizes]


@judges_each
def image_statistic(
    completions: Sequence[Image.Image],
    *,
    of: Literal["brightness", "contrast", "saturation", "red", "green", "blue"] = "brightness",
    target: float | None = None,
    **_: Any,
) -> list[float | None]:
    """A statistic of each image's pixels, between 0 and 1; with a target, minus the distance from it.

    brightness, red, green, blue  the mean
    contrast                      the standard deviation of the brightness, times 2
    saturation                    the mean of (largest - smallest channel) / largest
    """
    values = [_statistic(image, of) for image in completions]
    return [value if target is None else -abs(value - target) for value in values]


def _statistic(image: Image.Image, of: str) -> float:
    if of in ("brightness", "contrast"):
        grey = numpy.asarray(image.convert("L"), dtype=numpy.float64) / 255
        return float(grey.mean() if of == "brightness" else 2 * grey.std())
    colours = numpy.asarray(image.convert("RGB"), dtype=numpy.float64) / 255
    if of == "saturation":
        largest, smallest = colours.max(2), colours.min(2)
        return float(((largest - smallest) / numpy.where(largest > 0, largest, 1)).mean())
    return float(colours[:, :, ("red", "green", "blue").index(of)].mean())


# ---- a classifier


def _check_folder(folder: str) -> None:
    if not Path(folder, CLASSIFIER).is_file():
        raise ValueError(
            f"folder {folder!r} holds no {CLASSIFIER}; posttrain.rewards.image_rewards.save_classifier writes one"
        )


@judges_each
@checks_settings(_check_folder)
def image_class(
    completions: Sequence[Image.Image],
    *,
    folder: str,
    label: Sequence[Any] | None = None,
    prompts: Sequence[Any] | None = None,
    value: Literal["probability", "log_probability", "logit", "right"] = "probability",
    **_: Any,
) -> list[float | None]:
    """What the classifier in `folder` says of each image's class, which is the column `label`, else the prompt.

    right  1.0 where it is the likeliest class, else 0.0
    None where the class is none of the classifier's.
    """
    classifier = _classifier(folder)
    wanted = label if label is not None else prompts
    if wanted is None:
        raise ValueError(
            "image_class: there is neither a column 'label' nor a prompt to say which class is meant"
        )
    found: list[float | None] = []
    for image, name in zip(completions, wanted, strict=True):
        place = classifier.place_of(name)
        found.append(None if place is None else _value_of(classifier.logits(image), place, value))
    return found


def _value_of(logits: numpy.ndarray, place: int, value: str) -> float:
    if value == "right":
        return float(int(logits.argmax()) == place)
    if value == "logit":
        return float(logits[place])
    log_probability = float(logits[place] - logits.max() - math.log(numpy.exp(logits - logits.max()).sum()))
    return log_probability if value == "log_probability" else math.exp(log_probability)


class PixelClassifier:
    """Affine layers with ReLU between them on an image's pixels, from 0 to 1; the last one's outputs are logits."""

    def __init__(self, file: Path) -> None:
        with numpy.load(file, allow_pickle=False) as found:
            self.classes = [str(name) for name in found["classes"]]
            self.size, self.channels = int(found["image_size"]), int(found["channels"])
            count = sum(name.startswith("weight_") for name in found.files)
            self.layers = [(found[f"weight_{i}"], found[f"bias_{i}"]) for i in range(count)]

    def place_of(self, name: Any) -> int | None:
        text = str(name).strip()
        return self.classes.index(text) if text in self.classes else None

    def logits(self, image: Image.Image) -> numpy.ndarray:
        plain = image.convert("L" if self.channels == 1 else "RGB")
        if plain.size != (self.size, self.size):
            plain = plain.resize((self.size, self.size), Image.Resampling.BILINEAR)
        hidden = numpy.asarray(plain, dtype=numpy.float64).reshape(-1) / 255
        for number, (weight, bias) in enumerate(self.layers):
            hidden = hidden @ weight + bias
            hidden = hidden if number == len(self.layers) - 1 else hidden.clip(min=0)
        return hidden


@lru_cache(maxsize=4)
def _classifier(folder: str) -> PixelClassifier:
    return PixelClassifier(Path(folder, CLASSIFIER))


def save_classifier(
    folder: str | Path,
    classes: Sequence[str],
    layers: Sequence[tuple[Any, Any]],
    *,
    image_size: int,
    channels: int = 1,
) -> Path:
    """Writes FOLDER/classifier.npz for `image_class`. Each layer is (weight (inputs, outputs), bias (outputs,)); the
    first takes image_size * image_size * channels pixels, row by row, the last gives a logit a class."""
    sizes = [numpy.asarray(weight).shape for weight, _ in layers]
    if not sizes or sizes[0][0] != image_size**2 * channels or sizes[-1][1] != len(classes):
        raise ValueError(
            f"layers of shapes {sizes} do not lead from {image_size**2 * channels} pixels to {len(classes)} classes"
        )
    path = Path(folder, CLASSIFIER)
    path.parent.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Any] = {
        "classes": numpy.array(list(classes)),
        "image_size": image_size,
        "channels": channels,
    }
    for number, (weight, bias) in enumerate(layers):
        parts[f"weight_{number}"] = numpy.asarray(weight, dtype=numpy.float64)
        parts[f"bias_{number}"] = numpy.asarray(bias, dtype=numpy.float64)
    numpy.savez(path, **parts)
    return path
