"""Text in images: the distance by hand, what is asked for, the program that reads, and its absence."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from posttrain.rewards.ocr_reward import edit_distance, ocr_match, read_text
from posttrain.rewards.resolve import RewardSpec, RewardSpecError, describe, machine_report

READER = """#!{python}
import io, sys
sys.path[:] = {path!r}
from PIL import Image
assert sys.argv[1:] == ["stdin", "stdout", "-l", "eng", "--psm", "7"], sys.argv
width, height = Image.open(io.BytesIO(sys.stdin.buffer.read())).size
print({texts!r}[width])
if width == 9:
    sys.exit("no page")
"""
TEXTS = {1: "Hello\nWorld", 2: "say Hello World!", 3: "Hallo Wrld", 4: "", 5: "x" * 40, 9: ""}


@pytest.fixture
def reader(tmp_path, monkeypatch) -> Path:
    """A program of that name which reads an image's width as one of TEXTS."""
    program = tmp_path / "tesseract"
    program.write_text(READER.format(python=sys.executable, path=sys.path, texts=TEXTS))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return program


def images(*widths: int) -> list[Image.Image]:
    return [Image.new("L", (width, 1)) for width in widths]


def test_edit_distance_by_hand():
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3
    assert edit_distance("same", "same") == 0


def test_what_is_read_against_what_was_asked(reader):
    """Spaces and case do not count, text around does not, and no distance is above the length."""
    scores = ocr_match(images(1, 2, 3, 4, 5), text=["hello world"] * 5, page=7)
    assert scores == pytest.approx([1.0, 1.0, 1 - 2 / 10, 0.0, 0.0])


def test_the_text_stands_in_the_prompt_between_quotation_marks(reader):
    prompts = ['a sign that says "Hello World"', "a sign", "a sign with “Hello”"]
    assert ocr_match(images(1, 1, 1), prompts=prompts, page=7) == [1.0, None, 1.0]
    assert ocr_match(images(1, 1), text=[None, " "], page=7) == [None, None]


def test_a_program_that_fails_is_named(reader):
    with pytest.raises(RuntimeError, match="tesseract ended with 1: no page"):
        ocr_match(images(9), text=["a"], page=7)


def test_without_the_program_the_plan_says_how_to_get_it(monkeypatch, reader):
    here = machine_report(RewardSpec("ocr_match"), 4, 30.0)
    assert here is not None
    assert (here.lines, here.faults) == ([f"reads by {reader}"], [])
    monkeypatch.setenv("PATH", "/nowhere")
    gone = machine_report(RewardSpec("ocr_match"), 4, 30.0)
    assert gone is not None
    assert "apt-get install tesseract-ocr" in gone.faults[0]
    with pytest.raises(RuntimeError, match="apt-get install tesseract-ocr"):
        ocr_match(images(1), text=["a"])
    with pytest.raises(RewardSpecError, match="page is 14"):
        describe(RewardSpec("ocr_match", {"page": 14}))


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="tesseract is not installed")
def test_tesseract_itself_reads_printed_words():
    image = Image.new("L", (420, 90), 255)
    ImageDraw.Draw(image).text((20, 20), "Hello World", fill=0, font=ImageFont.load_default(size=48))
    assert read_text(image).split() == ["Hello", "World"]
    assert ocr_match([image], prompts=['the words "hello world"']) == [1.0]
