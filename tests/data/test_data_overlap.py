"""Runs of words shared by training and test texts."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path

import pytest

from posttrain.data.overlap import add_arguments, main, overlap

WORDS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
]
TEXT = " ".join(WORDS)


def test_thirteen_words_in_a_row_are_a_hit_and_twelve_are_not() -> None:
    thirteen, twelve = " ".join(WORDS[:13]), " ".join(WORDS[:12])
    assert overlap([TEXT], [f"before {thirteen} after"]).hits == [(0, thirteen)]
    assert overlap([TEXT], [f"before {twelve} after that"]).hits == []


def test_case_and_punctuation_do_not_hide_it() -> None:
    found = overlap(["x", TEXT.upper().replace(" ", ", ")], ["other", TEXT])
    assert [index for index, _ in found.hits] == [1]
    assert found.share == 0.5


def test_short_texts_count_when_all_their_words_are_a_training_text() -> None:
    assert overlap(["52913>"], ["52913>", "12>"]).hits == [(0, "1 words: 52913")]
    assert overlap(["what is two plus two"], ["two plus two"]).hits == []


def test_each_test_row_counts_once() -> None:
    assert len(overlap([TEXT, TEXT], [TEXT]).hits) == 1
    assert overlap([], []).share == 0.0


@pytest.fixture
def run(tmp_path: Path):
    def call(train: list[dict[str, str]], test: list[dict[str, str]], *words: str) -> int:
        for name, rows in (("train", train), ("test", test)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        parser = ArgumentParser()
        add_arguments(parser)
        return main(parser.parse_args([str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl"), *words]))

    return call


def test_command(run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([{"problem": TEXT}], [{"problem": "nothing"}]) == 0
    assert "0 of 1 test rows (0.0%)" in capsys.readouterr().out
    assert run([{"q": TEXT}], [{"z": TEXT}, {"z": "a"}], "--column", "q", "--test-column", "z") == 1
    out = capsys.readouterr().out
    assert "1 of 2 test rows (50.0%) share a run of 13 words with 1 training rows" in out
    assert "test row 0: one two" in out


def test_command_names_the_columns_when_none_fits(run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([{"q": TEXT, "b": ""}], [{"q": TEXT}]) == 2
    assert "choose with --column from q, b" in capsys.readouterr().err


def test_gsm8k_splits_do_not_overlap_with_themselves_shuffled(shared_data: Path) -> None:
    from posttrain.data.overlap import read_texts

    test = read_texts(str(shared_data / "gsm8k" / "test.jsonl"), None)
    assert len(overlap(test, test).hits) == len(test) == 1319
