"""Rows by a recipe's `data` section: what they become, and what was dropped and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.data import DataError, RowCounts, load_rows, survey
from posttrain.data.mapping import Dropped, gold_answer, split_pair
from posttrain.recipe.data_sections import AnswerSection, DataSection


class Words:
    """A tokenizer of words; a chat costs one token a message and one for the turn to come."""

    eos_token = " <end>"
    chat_template = "words"

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[str]]:
        return {"input_ids": text.split()}

    def decode(self, ids: list[str], skip_special_tokens: bool = False) -> str:
        return " ".join(ids)

    def apply_chat_template(
        self, messages: Any, tokenize: bool, add_generation_prompt: bool = False, return_dict: bool = False
    ) -> Any:
        turns = [f"<{message['role']}> {message['content']}" for message in messages]
        text = " ".join([*turns, *(["<assistant>"] if add_generation_prompt else [])])
        return self(text) if tokenize else text


@pytest.fixture
def section(tmp_path: Path):
    """section(rows, **keys): a DataSection over a file of these rows."""

    def make(rows: list[dict[str, Any]], **keys: Any) -> DataSection:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return DataSection.model_validate({"path": str(file), **keys})

    return make


def rows_of(section: DataSection, **keys: Any) -> list[dict[str, Any]]:
    return load_rows(section, **keys).rows.to_list()


def test_columns_stay_and_the_prompt_is_added(section) -> None:
    rows = rows_of(section([{"q": "1+1", "a": "2", "level": 3}], prompt="q", columns={"gold": "a"}))
    assert rows == [{"q": "1+1", "a": "2", "level": 3, "prompt": "1+1", "gold": "2"}]


def test_template_system_and_chat(section) -> None:
    (row,) = rows_of(
        section([{"q": "1+1", "hint": "add"}], template="{q} ({hint}) {{boxed}}", chat=True, system="Think.")
    )
    assert row["prompt"] == [
        {"role": "system", "content": "Think."},
        {"role": "user", "content": "1+1 (add) {boxed}"},
    ]


@pytest.mark.parametrize(
    ("template", "row", "prompt"),
    [
        ("{q}\n\n{x?}", {"q": "Add", "x": "1 2"}, "Add\n\n1 2"),
        ("{q}\n\n{x?}", {"q": "Say", "x": ""}, "Say"),
        ("{q}\n\n{x?}", {"q": "Say", "x": " \n"}, "Say"),
        ("{q}\n\n{x?}\n\nThink {{first}}.", {"q": "Say", "x": None}, "Say\n\nThink {first}."),
        ("{x?}\n\n{q}", {"q": " Say", "x": ""}, " Say"),
        ("{x?}\n{y?}\n{q}", {"q": "Say", "x": "", "y": "b"}, "b\nSay"),
        ("{x?}\n{y?}\n{q}", {"q": "Say", "x": "", "y": ""}, "Say"),
        ("{q} {x?:.2f}", {"q": "Say", "x": 0.5}, "Say 0.50"),
        ("{q!r} {x?}", {"q": "{x}", "x": 0}, "'{x}' 0"),
    ],
)
def test_a_column_of_a_template_may_be_empty_where_it_says_so(section, template, row, prompt) -> None:
    assert [one["prompt"] for one in rows_of(section([row], template=template))] == [prompt]


def test_rows_without_what_a_template_needs_are_dropped(section) -> None:
    rows = [{"q": "", "x": "1"}, {"q": "  ", "x": "1"}, {"q": "a", "x": ""}]
    loaded = load_rows(section(rows, template="{q}\n\n{x?}"))
    assert loaded.counts == RowCounts(3, 1, {"no prompt": 2})
    with pytest.raises(DataError, match="no column 'y'; the columns are q, x"):
        survey(section(rows, template="{q} {y?}"))


def test_messages_pass_and_take_the_system_message(section) -> None:
    talk = [{"role": "system", "content": "old"}, {"role": "user", "content": "hi"}]
    (row,) = rows_of(section([{"prompt": talk}], system="new", chat=True))
    assert [m["content"] for m in row["prompt"]] == ["new", "hi"]


def test_sharegpt_names_are_translated(section) -> None:
    talk = [
        {"from": "human", "value": "hi"},
        {"from": "gpt", "value": "yes?"},
        {"from": "human", "value": "go"},
    ]
    (row,) = rows_of(section([{"talk": talk}], prompt="talk", chat=True))
    assert [m["role"] for m in row["prompt"]] == ["user", "assistant", "user"]


def test_completions_follow_the_form_of_the_prompt(section) -> None:
    data = [
        {"prompt": "q", "completion": "a", "chosen": "b", "rejected": {"role": "assistant", "content": "c"}}
    ]
    (row,) = rows_of(section(data, chat=True))
    assert row["completion"] == [{"role": "assistant", "content": "a"}]
    assert row["chosen"] == [{"role": "assistant", "content": "b"}]
    assert row["rejected"] == [{"role": "assistant", "content": "c"}]


def test_messages_after_a_text_prompt_are_refused(section) -> None:
    with pytest.raises(DataError, match=r"set data\.chat: true"):
        rows_of(section([{"prompt": "q", "completion": [{"role": "assistant", "content": "a"}]}]))


def test_a_pair_of_conversations_splits_where_they_part(section) -> None:
    def talk(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]

    (row,) = rows_of(section([{"chosen": talk("good"), "rejected": talk("bad")}]))
    assert [m["content"] for m in row["prompt"]] == ["q"]
    assert [m["content"] for m in row["chosen"]] == ["good"]
    assert [m["content"] for m in row["rejected"]] == ["bad"]
    with pytest.raises(Dropped, match="no prompt"):
        split_pair([{"role": "user", "content": "a"}] * 2, [{"role": "user", "content": "b"}] * 2)


@pytest.mark.parametrize(
    ("value", "rule", "answer"),
    [
        ("work\n#### 1,234 ", {"after": "####"}, "1,234"),
        ("#### 1 #### 2", {"after": "####"}, "2"),
        ("72 apples", {"before": " apples"}, "72"),
        ("so #### 72 apples", {"after": "####", "before": "apples"}, "72"),
        (r"first \boxed{1}. Then \boxed{\frac{1}{2}}.", {"boxed": True}, r"\frac{1}{2}"),
        (r"so \boxed{1} and \boxed{2}.", {"boxed": True}, "1; 2"),  # boxes of one sentence are one answer
        (7, {}, "7"),
        (0, {}, "0"),
    ],
)
def test_gold_answers(value: Any, rule: dict[str, Any], answer: str) -> None:
    assert gold_answer(value, AnswerSection(**rule)) == answer


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (None, {}),
        ("", {}),
        ("no mark", {"after": "####"}),
        ("####  ", {"after": "####"}),
        ("5", {"boxed": True}),
    ],
)
def test_rows_without_a_gold_answer_are_dropped(value: Any, rule: dict[str, Any]) -> None:
    with pytest.raises(Dropped, match="no answer"):
        gold_answer(value, AnswerSection(**rule))


def test_the_account_adds_up(section) -> None:
    data = section(
        [
            {"q": "good", "a": "#### 1"},
            {"q": "", "a": "#### 1"},
            {"q": "no gold", "a": "1"},
            {"q": None, "a": "#### 1"},
            {"q": "good too", "a": "#### 2"},
        ],
        prompt="q",
        answer={"column": "a", "after": "####"},
    )
    loaded = load_rows(data)
    assert loaded.counts == RowCounts(read=5, used=2, dropped={"no prompt": 2, "no answer": 1})
    assert list(loaded.rows["answer"]) == ["1", "2"]
    assert loaded.counts.in_words() == "2 of 5 rows; dropped 3 (no answer: 1, no prompt: 2)"
    assert survey(data).counts == loaded.counts


def test_equal_and_empty_pairs_are_dropped(section) -> None:
    pairs = [("a", "b"), ("a", "a"), ("", "b"), ("a", None)]
    loaded = load_rows(section([{"prompt": "q", "chosen": c, "rejected": r} for c, r in pairs]))
    assert loaded.counts.used == 1
    assert loaded.counts.dropped["chosen equals rejected"] == 1
    assert sum(loaded.counts.dropped.values()) == 3


def test_every_row_needs_the_texts_that_the_first_row_has(section) -> None:
    alone = load_rows(section([{"prompt": "q", "chosen": "a"}, {"prompt": "p", "chosen": "b"}]))
    assert alone.counts == RowCounts(2, 2)
    lacking = load_rows(
        section([{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "c"}])
    )
    assert lacking.counts == RowCounts(2, 1, {"no rejected": 1})


def test_limit_counts_used_rows_and_shuffle_is_seeded(section) -> None:
    numbered = [{"prompt": f"p{i}" if i % 2 else ""} for i in range(10)]
    loaded = load_rows(section(numbered, limit=2))
    assert list(loaded.rows["prompt"]) == ["p1", "p3"]
    assert loaded.counts == RowCounts(read=4, used=2, dropped={"no prompt": 2})
    first = [row["prompt"] for row in rows_of(section(numbered, shuffle=1))]
    assert first == [row["prompt"] for row in rows_of(section(numbered, shuffle=1))]
    assert first != sorted(first)
    assert sorted(first) == ["p1", "p3", "p5", "p7", "p9"]


def test_long_prompts_are_dropped_cut_or_refused(section) -> None:
    data = [{"prompt": "a b"}, {"prompt": "a b c d"}]
    keys: dict[str, Any] = {"max_prompt_tokens": 3}
    loaded = load_rows(section(data, **keys), Words())
    assert loaded.counts == RowCounts(2, 1, {"prompt longer than 3 tokens": 1})
    loaded = load_rows(section(data, on_long="truncate", **keys), Words())
    assert list(loaded.rows["prompt"]) == ["a b", "b c d"]
    assert loaded.counts == RowCounts(2, 2, {}, truncated=1)
    with pytest.raises(DataError, match="a prompt has 4 tokens, more than max_prompt_tokens"):
        load_rows(section(data, on_long="error", **keys), Words())
    with pytest.raises(ValueError, match="need the tokenizer"):
        load_rows(section(data, **keys))


def test_long_conversations_lose_their_oldest_turns(section) -> None:
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    talk = [{"role": role, "content": f"m{i}"} for i, role in enumerate(roles)]
    # two tokens a message and one for the answer to come: 13 in all, 9 without the oldest exchange
    data = section([{"prompt": talk}], on_long="truncate", max_prompt_tokens=12)
    loaded = load_rows(data, Words())
    assert [m["content"] for m in loaded.rows[0]["prompt"]] == ["m0", "m3", "m4", "m5"]
    assert loaded.counts.truncated == 1
    with pytest.raises(DataError, match=r"last turn longer than 4 tokens: 1"):
        load_rows(section([{"prompt": talk}], on_long="truncate", max_prompt_tokens=4), Words())


def test_what_the_trainer_would_cut_or_lose_is_counted_here(section) -> None:
    data = section([
        {"prompt": "a ", "completion": "b"},
        {"prompt": "a b ", "completion": "c d"},
        {"prompt": "a b c d ", "completion": "e"},
    ])  # fmt: skip
    loaded = load_rows(data, Words(), max_length=4)
    assert loaded.counts == RowCounts(3, 2, {"prompt fills train.max_length (4)": 1}, truncated=1)


def test_missing_columns_name_those_there_are(section) -> None:
    with pytest.raises(DataError, match="no column 'prompt'; the columns are q, a"):
        load_rows(section([{"q": "1", "a": "2"}]))
    with pytest.raises(DataError, match="no column 'gold'"):
        survey(section([{"q": "1", "a": "2"}], prompt="q", answer={"column": "gold"}))
    with pytest.raises(DataError, match="no column 'x'"):
        survey(section([{"q": "1"}], template="{q} {x}"))


@pytest.mark.parametrize("template", ["{q", "{q.x}", "{}", "{0}", "{?}", "{q??}"])
def test_broken_templates(section, template: str) -> None:
    with pytest.raises(DataError, match="template"):
        survey(section([{"q": "1"}], template=template))


def test_columns_of_mixed_types_are_left_out_and_named(section) -> None:
    loaded = load_rows(section([{"prompt": "a", "x": 1}, {"prompt": "b", "x": "one"}]))
    assert loaded.rows.column_names == ["prompt"]
    assert loaded.counts.left_out_columns == ("x",)
    with pytest.raises(DataError, match="column 'gold' mixes types"):
        load_rows(section([{"prompt": "a", "x": 1}, {"prompt": "b", "x": "one"}], columns={"gold": "x"}))


def test_nothing_left_is_an_error(section) -> None:
    with pytest.raises(DataError, match=r"no rows to train on: 0 of 1 rows; dropped 1 \(no prompt: 1\)"):
        load_rows(section([{"prompt": ""}]))


def test_a_hub_name_is_not_downloaded_by_survey_and_named_when_absent() -> None:
    found = survey(DataSection(name="nobody/nothing"))
    assert found == (None, None, [], ())
    with pytest.raises(DataError, match="'nobody/nothing' is no built-in name"):
        load_rows(DataSection(name="nobody/nothing"))


def test_of_a_large_file_the_first_row_that_can_be_used_is_looked_at(section, monkeypatch) -> None:
    monkeypatch.setattr("posttrain.data.rows.SURVEY_LIMIT_BYTES", 0)
    rows = [{"prompt": ""}, {"prompt": "1"}, {"prompt": "2"}]
    found = survey(section(rows, shuffle=3))
    assert (found.columns, found.counts, [row["prompt"] for row in found.rows]) == (["prompt"], None, ["1"])


def test_no_more_is_read_than_is_used(section) -> None:
    data = section([{"prompt": ""}, {"prompt": "1"}, {"prompt": "2"}, {"prompt": "3"}], limit=2)
    with Path(str(data.path)).open("a") as file:
        file.write("not JSON")
    assert load_rows(data).counts == RowCounts(3, 2, {"no prompt": 1})
    with pytest.raises(DataError, match="line 5 is not JSON"):  # to shuffle is to read all
        load_rows(data.model_copy(update={"shuffle": 1}))


def test_a_known_name_fills_in_what_the_recipe_leaves_out() -> None:
    from posttrain.data.rows import settle

    settled = settle(DataSection(name="gsm8k", template="{question}!"))
    assert (settled.name, settled.config) == ("openai/gsm8k", "main")
    assert settled.answer == AnswerSection(column="answer", after="####")
    own = settle(DataSection(name="math", prompt="problem", answer=AnswerSection(column="a")))
    assert own.answer == AnswerSection(column="a")


def test_gsm8k_as_downloaded(shared_data: Path) -> None:
    for name, rows in (("train.jsonl.gz", 7473), ("test.jsonl", 1319)):
        path = str(shared_data / "gsm8k" / name)
        section = DataSection(path=path, prompt="question", chat=True, answer=AnswerSection(after="####"))
        loaded = load_rows(section)
        assert loaded.counts == RowCounts(rows, rows)
        assert all(answer and "#" not in answer for answer in loaded.rows["answer"])
    assert loaded.rows[0]["answer"] == "18"


def test_math_train_answers_drop_the_four_without_gold(shared_data: Path) -> None:
    section = DataSection(
        path=str(shared_data / "math" / "train_answers.json.gz"),
        prompt="problem",
        answer=AnswerSection(column="answer"),
    )
    assert survey(section).counts == RowCounts(7474, 7470, {"no answer": 4})


def test_ultrafeedback_drops_its_equal_pairs(shared_data: Path) -> None:
    counts = survey(DataSection(path=str(shared_data / "ultrafeedback_sample" / "train.jsonl.gz"))).counts
    assert counts is not None
    assert counts.dropped["chosen equals rejected"] == 4
    assert counts.read == 1000 == counts.used + sum(counts.dropped.values())
