"""What an image column may hold."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from posttrain.rollout.flow.image_values import as_image


def test_every_kind_gives_the_same_image(tmp_path):
    image = Image.new("RGB", (2, 3), (1, 2, 3))
    path, file = tmp_path / "one.png", io.BytesIO()
    image.save(path)
    image.save(file, format="PNG")
    rows = [[[1, 2, 3]] * 2] * 3
    given = [image, str(path), path, file.getvalue(), {"bytes": file.getvalue(), "path": None}, rows]
    assert all(as_image(one).tobytes() == image.tobytes() and as_image(one).size == (2, 3) for one in given)
    assert as_image([[0, 255], [7, 8]]).mode == "L"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("nowhere.png", "there is no file"),
        (b"no image", "cannot be read"),
        ([[0, 256]], "between 0 and 255"),
        ([[1, 2], [3]], "not list"),
        ([1, 2, 3], r"of shape \(3,\)"),
        (None, "not NoneType"),
    ],
)
def test_other_values_are_named(value, words):
    with pytest.raises(ValueError, match=words):
        as_image(value)
