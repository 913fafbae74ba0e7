"""Whole conversations and what is learned of them: prompt and answers are told apart, whichever way they are stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.data import DataError, load_rows, survey
from posttrain.data.conversations import Dropped, as_messages, dialogue
from posttrain.data.mapping import split_pair
from posttrain.data.row_layout import Needs
from posttrain.data.scratch_tokenizer import ROLES, by_characters
from posttrain.data.tokens import TemplateCheck
from posttrain.planning.tokenizer import PlanTokenizer
from posttrain.recipe.data_sections import DataSection

PAIRS = Needs(texts=("chosen", "rejected"), others=False)
SFT = Needs(texts=("completion",), others=False, turns=True)
WINNERS = Needs(texts=("chosen",), others=False)
PROMPTS = Needs(texts=())


def turns(*said: str) -> list[dict[str, str]]:
    """s: system, u: user, a: assistant: turns("u:hi", "a:hello")."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": roles[one[0]], "content": one[2:]} for one in said]


def words(messages: list[dict[str, Any]]) -> list[str]:
    return [f"{message['role'][0]}:{message['content']}" for message in messages]


@pytest.fixture
def read(tmp_path: Path):
    """read(rows, needs, **section) -> (rows, counts), as load_rows and survey both have them."""

    def of(rows: list[dict[str, Any]], needs: Needs, **keys: Any):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        section = DataSection.model_validate({"path": str(file), **keys})
        seen = survey(section, needs)
        if seen.counts is not None and seen.counts.used:
            assert load_rows(section, needs=needs).counts == seen.counts
        return seen.rows, seen.counts

    return of


def test_a_pair_of_conversations_beside_its_prompt_holds_it_once(read) -> None:
    row = {"prompt": "q", "chosen": turns("u:q", "a:good"), "rejected": turns("u:q", "a:bad"), "messages": []}
    ((found,), _) = read([row], PAIRS, chat=True)
    assert found == {"prompt": turns("u:q"), "chosen": turns("a:good"), "rejected": turns("a:bad")}


@pytest.mark.parametrize(
    ("prompt", "conversation", "asked", "answer"),
    [
        ("q", ["u:q", "a:x"], ["u:q"], ["a:x"]),
        (" q\n", ["u:q", "a:x"], ["u:q"], ["a:x"]),
        (turns("u:q"), ["u:q", "a:x"], ["u:q"], ["a:x"]),
        (turns("s:be", "u:q"), ["u:q", "a:x"], ["s:be", "u:q"], ["a:x"]),
        ("q", ["s:be", "u:q", "a:x"], ["s:be", "u:q"], ["a:x"]),
        (turns("u:q", "a:b", "u:c"), ["u:q", "a:b", "u:c", "a:x"], ["u:q", "a:b", "u:c"], ["a:x"]),
        # the prompt's column holds the first question, or the last one, of a longer conversation
        ("q", ["u:q", "a:b", "u:c", "a:x"], ["u:q", "a:b", "u:c"], ["a:x"]),
        ("c", ["u:q", "a:b", "u:c", "a:x"], ["u:q", "a:b", "u:c"], ["a:x"]),
        ("q", ["a:x"], ["u:q"], ["a:x"]),
    ],
)
@pytest.mark.parametrize("needs", [PAIRS, WINNERS], ids=["pairs", "winners"])
def test_where_a_conversation_continues_its_prompt(read, needs, prompt, conversation, asked, answer) -> None:
    row = {"prompt": prompt, "chosen": turns(*conversation), "rejected": turns(*conversation[:-1], "a:y")}
    ((found,), _) = read([row], needs, chat=True)
    assert words(found["prompt"]) == asked
    assert words(found["chosen"]) == answer
    assert needs is WINNERS or words(found["rejected"]) == ["a:y"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"prompt": "other", "chosen": turns("u:q", "a:x"), "rejected": turns("u:q", "a:y")},
            "chosen does not continue the prompt",
        ),
        ({"prompt": "q", "chosen": turns("u:q"), "rejected": turns("u:q", "a:y")}, "share"),
        ({"chosen": turns("s:be", "u:q", "a:x"), "rejected": turns("s:be", "u:p", "a:y")}, "share"),
        ({"chosen": turns("u:q", "a:x"), "rejected": turns("u:p", "a:y")}, "share"),
        ({"chosen": turns("u:q", "a:x", "u:m", "a:z"), "rejected": turns("u:q", "a:y")}, "holds a user's turn"),
        ({"chosen": turns("u:q", "a:x"), "rejected": turns("u:q", "u:y")}, "rejected does not begin with"),
        ({"prompt": "q", "chosen": turns("t:x"), "rejected": turns("a:y")}, "chosen does not begin with"),
        ({"prompt": "q", "chosen": turns("a: "), "rejected": turns("a:y")}, "no chosen"),
        ({"chosen": turns("u:q", "a:x"), "rejected": turns("u:q", "a:x")}, "chosen equals rejected"),
        (
            {"prompt": "q", "chosen": turns("u:q", "a:b", "u:c", "a:x"), "rejected": turns("a:y")},
            "goes on past the prompt",
        ),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_dropped_by_its_reason(read, row, reason) -> None:
    good = {"prompt": "q", "chosen": turns("u:q", "a:good"), "rejected": turns("u:q", "a:bad")}
    good = {name: good[name] for name in row}
    rows, counts = read([good, row], PAIRS, chat=True)
    assert len(rows) == 1
    ((told, count),) = counts.dropped.items()
    assert reason in told
    assert count == 1


def test_conversations_beside_a_prompt_of_text_want_chat(read) -> None:
    row = {"prompt": "q", "chosen": turns("u:q", "a:x"), "rejected": turns("u:q", "a:y")}
    with pytest.raises(
        DataError, match=r"row 1: column 'chosen' holds messages but the prompt is text; set data\.chat"
    ):
        read([row], PAIRS)


def test_keys_beside_a_message_do_not_part_conversations() -> None:
    first = [{"role": "user", "content": "q", "id": 1, "name": None}, *turns("a:x")]
    second = [{"role": "user", "content": "q ", "id": 2}, *turns("a:y")]
    prompt, chosen, rejected = split_pair(first, second)
    assert (words(prompt), words(chosen), words(rejected)) == (["u:q"], ["a:x"], ["a:y"])


# ------------------------------------------------------------------------------------------------------- sft


TALK = turns("s:be", "u:q", "a:one", "u:and?", "a:two")


SHAREGPT = [
    {"from": {"user": "human", "assistant": "gpt"}.get(turn["role"], "system"), "value": turn["content"]}
    for turn in TALK
]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALK},
        {"prompt": "q", "prompt_id": "7", "messages": TALK},
        {"conversations": SHAREGPT},
        {"conversation": [*TALK, *turns("u:thanks")]},
    ],
    ids=["messages", "ultrachat", "sharegpt", "ends with a question"],
)
def test_sft_finds_whole_conversations(read, row) -> None:
    ((found,), counts) = read([row], SFT)
    assert found == {"prompt": TALK[:2], "completion": TALK[2:]}
    assert counts.notes[0].startswith(
        f"conversations are read from column '{next(k for k in row if k[0] in 'cm')}'"
    )


def test_sft_of_a_conversation_beside_its_prompt(read) -> None:
    row = {"prompt": "q", "messages": TALK[1:]}
    ((found,), _) = read([row], SFT, prompt="prompt", completion="messages", chat=True)
    assert found == {"prompt": TALK[1:2], "completion": TALK[2:]}


def test_a_method_of_single_answers_takes_the_last(read) -> None:
    ((found,), _) = read([{"messages": TALK}], Needs(texts=("completion",), others=False))
    assert found == {"prompt": TALK[:-1], "completion": TALK[-1:]}


def test_the_recipes_system_message_replaces_the_conversations(read) -> None:
    ((found,), _) = read([{"messages": TALK}], SFT, system="new", chat=True)
    assert words(found["prompt"]) == ["s:new", "u:q"]


@pytest.mark.parametrize(
    ("talk", "reason"),
    [(turns("u:q"), "no completion"), (turns("a:x"), "no prompt"), (turns("s:be", "a:x"), "no prompt")],
)
def test_conversations_without_question_or_answer_are_dropped(read, talk, reason) -> None:
    _, counts = read([{"messages": TALK}, {"messages": talk}], SFT)
    assert counts.dropped == {reason: 1}


def test_only_what_is_read_passes(read) -> None:
    row = {
        "prompt": "q",
        "completion": "a",
        "text": "t",
        "input_ids": [1],
        "labels": [2],
        "tools": [],
        "images": [],
    }
    ((found,), counts) = read([row], SFT)
    assert found == {"prompt": "q", "completion": "a"}
    assert counts.notes == ("columns not read: text, input_ids, labels, tools, images",)


# --------------------------------------------------------------------------------------- prompts, policy runs


def test_prompts_alone_keep_rows_that_would_be_no_pairs(read) -> None:
    rows = [
        {"prompt": "a", "chosen": "x", "rejected": "x"},
        {"prompt": "b", "chosen": "", "rejected": "x"},
        {"prompt": "c", "chosen": None, "rejected": None, "completion": ""},
    ]
    found, counts = read(rows, PROMPTS)
    assert (counts.used, counts.dropped) == (3, {})
    assert found[0] == rows[0]


def test_prompts_from_conversations_end_with_the_question(read) -> None:
    ((found,), counts) = read([{"messages": TALK}], PROMPTS)
    assert found["prompt"] == TALK[:-1]
    assert counts.notes == ("prompts are read from column 'messages', which holds conversations",)


def test_sharegpt_pairs_with_the_prompt_in_conversations(read) -> None:
    row = {
        "conversations": [{"from": "system", "value": "be"}, {"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "x"},
        "rejected": {"from": "gpt", "value": "y"},
    }
    ((found,), _) = read([row], PAIRS)
    assert found == {"prompt": turns("s:be", "u:q"), "chosen": turns("a:x"), "rejected": turns("a:y")}


# --------------------------------------------------------------------------------------------------- dialogues


SPOKEN = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: go\n\nAssistant:"


def test_marked_dialogues_become_turns_or_stay_text(read) -> None:
    row = {"chosen": SPOKEN + " good", "rejected": SPOKEN + " bad"}
    ((chat,), _) = read([row], PAIRS, chat=True)
    assert words(chat["prompt"]) == ["u:hi", "a:yes?", "u:go"]
    assert (chat["chosen"], chat["rejected"]) == (turns("a:good"), turns("a:bad"))
    ((text,), _) = read([row], PAIRS)
    assert text == {"prompt": SPOKEN, "chosen": " good", "rejected": " bad"}


def test_a_marked_dialogue_beside_its_prompt(read) -> None:
    row = {"prompt": SPOKEN, "chosen": SPOKEN + " good", "rejected": SPOKEN + " bad"}
    ((text,), _) = read([row], PAIRS)
    assert text == {"prompt": SPOKEN, "chosen": " good", "rejected": " bad"}
    ((chat,), _) = read([row], PAIRS, chat=True)
    assert (words(chat["prompt"])[-1], words(chat["chosen"])) == ("u:go", ["a:good"])


def test_dialogues_that_part_early_or_say_nothing_are_dropped(read) -> None:
    good = {"chosen": SPOKEN + " good", "rejected": SPOKEN + " bad"}
    early = {"chosen": SPOKEN + " good", "rejected": "\n\nHuman: other\n\nAssistant: bad"}
    empty = {"chosen": SPOKEN + " ", "rejected": SPOKEN + " bad"}
    for keys in ({}, {"chat": True}):
        _, counts = read([good, early, empty], PAIRS, **keys)
        assert counts.used == 1
        assert sum(counts.dropped.values()) == 2


def test_two_turns_of_one_speaker_are_one() -> None:
    assert words(dialogue("\n\nHuman: a\n\nHuman: b\n\nAssistant: c")) == ["u:a\n\nb", "a:c"]


def test_an_answer_that_repeats_its_prompt_is_counted(read) -> None:
    _, counts = read([{"prompt": "def f", "completion": "def f(): ..."}] * 2, SFT)
    assert counts.echoes == 2
    _, counts = read([{"prompt": "def f", "completion": "(): ..."}] * 2, SFT)
    assert counts.echoes == 0


def test_endless_texts_are_dropped_before_anybody_tokenises_them(read) -> None:
    rows = [{"prompt": "x" * 1_000_001, "completion": "a"}, {"prompt": "q", "completion": "x" * 1_000_000}]
    _, counts = read(rows, SFT)
    assert counts.dropped == {"a text of more than 1,000,000 characters": 1}


# ---------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "user", "content": "q"}, "u:q"),
        ({"role": "Human", "content": "q"}, "u:q"),
        ({"from": "chatgpt", "value": "q"}, "a:q"),
        ({"from": "observation", "value": "q"}, "t:q"),
        ({"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "r"}]}, "u:qr"),
        ({"role": "user", "content": 7.0}, "u:7"),
        ({"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}, "a:"),
        ({"role": "assistant", "tool_calls": [{"name": "f"}]}, "a:"),
    ],
)
def test_messages_as_people_store_them(message, said) -> None:
    assert words(as_messages([message], "user")) == [said]


@pytest.mark.parametrize("content", [None, float("nan")])
def test_a_message_without_content_drops_its_row(content) -> None:
    with pytest.raises(Dropped, match="a message has no content"):
        as_messages([{"role": "user", "content": content}], "user")


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"text": "q"}, "a message needs role and content"),
        (7, "a message is a mapping"),
        ({"role": "user", "content": [{"type": "image", "image": "x"}]}, "part of type 'image'"),
        ({"role": "user", "content": {"a": "b"}}, "holds a mapping"),
    ],
)
def test_what_is_no_message_is_refused(message, complaint) -> None:
    with pytest.raises(DataError, match=complaint):
        as_messages([message], "user")


# -------------------------------------------------------------------------------------------- files as published


def test_files_of_pairs_as_published(shared_data: Path) -> None:
    def used(path: str, needs: Needs, **keys: Any) -> int:
        found = survey(DataSection.model_validate({"path": str(shared_data / path), **keys}), needs)
        assert found.counts is not None
        return found.counts.used

    assert used("hh_rlhf/harmless-base_test.jsonl.gz", PAIRS, chat=True) == 2308
    assert used("hh_rlhf/harmless-base_test.jsonl.gz", PAIRS) == 2303
    assert used("dpo_kto_demo/dpo_en_demo.json.gz", PAIRS) == 300
    assert used("dpo_kto_demo/kto_en_demo.json.gz", SFT) == 300


def test_a_template_that_refuses_what_one_row_says_takes_the_others() -> None:
    template = (
        "{% for m in messages %}{% if 'bad' in m.content %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    )
    check = TemplateCheck(PlanTokenizer(by_characters("abd"), dict(ROLES), template))
    said = []
    for text in ("bad", "a", "b"):
        try:
            check({"prompt": [{"role": "user", "content": text}]})
            said.append("")
        except Dropped as reason:
            said.append(str(reason))
    assert said == ["the chat template refuses it: no", "", ""]
