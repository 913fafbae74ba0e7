"""The reward for checkable instructions, with lm-eval's checkers, and what repetition costs."""

from __future__ import annotations

import json

import pytest

from posttrain.rewards.builtin import repetition


@pytest.mark.parametrize(
    ("text", "words", "score"),
    [
        ("one two three four", 3, 0.0),
        ("a b c a b c", 3, -1 / 4),  # abc bca cab abc: one of four stood there before
        ("No, no! NO no", 1, -3 / 4),
        ("", 3, 0.0),
        ("two words", 3, 0.0),
    ],
)
def test_repetition_by_hand(text: str, words: int, score: float) -> None:
    assert repetition([text], words=words) == [pytest.approx(score)]


@pytest.mark.evaluation
class TestInstructionsFollowed:
    NAMES = ["punctuation:no_comma", "length_constraints:number_words", "startend:end_checker"]
    SETTINGS = [{}, {"relation": "less than", "num_words": 8}, {"end_phrase": "The end."}]

    def score(self, text: str, **options):
        from posttrain.rewards.instruction_reward import instructions_followed

        return instructions_followed(
            [text], instruction_id_list=[self.NAMES], kwargs=[json.dumps(self.SETTINGS)], **options
        )[0]

    def test_the_share_that_is_followed(self) -> None:
        assert self.score("A short tale. The end.") == 1.0
        assert self.score("A short, sad tale. The end.") == pytest.approx(2 / 3)
        assert self.score("A short, sad tale that goes on and on and on.") == 0.0
        assert self.score("") == 0.0

    def test_all_or_nothing_and_loose(self) -> None:
        assert self.score("A short, sad tale. The end.", all_or_nothing=True) == 0.0
        assert self.score("A short tale. The end.", all_or_nothing=True) == 1.0
        first_line = "Sure, here is a tale for you as you wished:\nA short tale. The end."
        assert self.score(first_line) == pytest.approx(1 / 3)
        assert self.score(first_line, loose=True) == 1.0

    @pytest.mark.parametrize(
        ("names", "settings"),
        [
            (["keywords:existence"], [{}]),  # the checkers would draw a keyword
            (["no:such"], [{}]),
            (["punctuation:no_comma"], []),
            ("not json", [{}]),
            (None, None),
        ],
    )
    def test_rows_that_cannot_be_judged_are_not(self, names, settings) -> None:
        from posttrain.rewards.instruction_reward import instructions_followed

        assert instructions_followed(["text"], instruction_id_list=[names], kwargs=[settings]) == [None]

    def test_every_row_of_the_task_can_be_judged(self) -> None:
        from posttrain.data.instructions import Instructions
        from posttrain.rewards.instruction_reward import instructions_followed

        task = Instructions(size=300, held_out=100)
        rows = [row for split in ("train", "test") for row in task.rows(split, completions=False)]
        columns = {key: [row[key] for row in rows] for key in ("instruction_id_list", "kwargs")}
        assert None not in instructions_followed(["Some text."] * len(rows), **columns)
