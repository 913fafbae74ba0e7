"""How a complaint is shown to the policy: both forms, how each is cut, and what is read back."""

from __future__ import annotations

import copy

import pytest

from posttrain.data.feedback_logs import Complaint
from posttrain.trainers.staged.feedback_prompt import LINE_REQUEST, REQUEST, FeedbackPrompts

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ROW = Complaint(
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "old question"},
        {"role": "assistant", "content": "old answer"},
        {"role": "user", "content": "question"},
    ],
    rejected="bad answer",
    complaint="that is wrong",
)
PLAIN = (
    "Be brief.\n\nUser: old question\nAssistant: old answer\nUser: question\nAssistant: bad answer\n"
    f"User: that is wrong\nSystem: {LINE_REQUEST}\nAssistant: "
)


@pytest.fixture
def chatty(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def prompts(tokenizer, limit=10_000, compat="corrected", guided=True):
    return FeedbackPrompts(tokenizer, guided=guided, compat=compat, limit=limit)


def text(tokenizer, ids):
    return tokenizer.decode(ids)


def test_a_chat_model_is_asked_in_its_own_template(chatty):
    ids = prompts(chatty).tokens(ROW)
    assert text(chatty, ids) == (
        "<system>Be brief.\n<user>old question\n<assistant>old answer\n<user>question\n"
        f"<assistant>bad answer\n<user>that is wrong\n\n{REQUEST}\n<assistant>"
    )


def test_plain_lines_without_a_template_and_in_the_release(tokenizer, chatty):
    assert text(tokenizer, prompts(tokenizer).tokens(ROW)) == PLAIN
    assert text(chatty, prompts(chatty, compat="reference").tokens(ROW)) == PLAIN


def test_later_system_messages_are_left_out_of_plain_lines(tokenizer):
    row = Complaint(
        [*ROW.prompt[:3], {"role": "system", "content": "second system"}, *ROW.prompt[3:]], "bad", "no"
    )
    assert "second system" not in text(tokenizer, prompts(tokenizer).tokens(row))


def test_unguided_prompts_show_no_complaint(tokenizer, chatty):
    assert text(tokenizer, prompts(tokenizer, guided=False).tokens(ROW)).endswith(
        "User: question\nAssistant: "
    )
    assert text(chatty, prompts(chatty, guided=False).tokens(ROW)).endswith("<user>question\n<assistant>")


def test_the_oldest_turns_go_first_and_the_complaint_stays(tokenizer, chatty):
    for one in (tokenizer, chatty):
        whole = prompts(one).tokens(ROW)
        short = text(one, prompts(one, limit=len(whole) - 1).tokens(ROW))
        assert "old" not in short
        assert "Be brief." in short
        assert "that is wrong" in short
        assert prompts(one, limit=20).tokens(ROW) is None


def test_the_release_cuts_the_end_and_loses_the_complaint(tokenizer):
    ids = prompts(tokenizer, limit=60, compat="reference").tokens(ROW)
    assert text(tokenizer, ids) == PLAIN[:60]


def test_answers_are_the_new_text_up_to_a_turn_of_the_models_own(tokenizer, chatty):
    sampled = "good answer\nUser: thanks\nAssistant: bye"
    assert prompts(tokenizer).answer(sampled, []) == "good answer"
    assert prompts(chatty).answer("Assistant: good answer", []) == "Assistant: good answer"


def test_the_release_reads_from_behind_the_last_marker(tokenizer):
    released = prompts(tokenizer, compat="reference")
    ids = released.tokens(ROW)
    assert released.answer("good answer", ids) == "good answer"
    assert released.answer("good\nUser: x\nAssistant: bye", ids) == "bye"
    cut = prompts(tokenizer, limit=60, compat="reference")
    # the marker of the request is cut away: what is read begins in the logged answer
    assert cut.answer("more", cut.tokens(ROW)) == PLAIN[:60].rpartition("Assistant: ")[2] + "more"
