"""`posttrain chat`: pieces that add up, a conversation that fits, ends by Ctrl-C and Ctrl-D, one line for faults."""

from __future__ import annotations

import builtins

import pytest
import torch

from posttrain.cli import main
from posttrain.commands import chat
from posttrain.evaluation.speaker import NoRoom, Speaker, Wishes, _Pieces, is_masked

TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}assistant:"
REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + TEMPLATE
)


@pytest.fixture
def own_tokenizer():
    from posttrain.trainers.models.load import character_tokenizer

    return character_tokenizer()


@pytest.fixture
def folder(tmp_path, tiny_model, own_tokenizer):
    own_tokenizer.chat_template = TEMPLATE
    place = tmp_path / "run" / "model"
    tiny_model.save_pretrained(place)
    own_tokenizer.save_pretrained(place)
    return place


def speaker(tokenizer, limit=None, longest=4, reply="ok"):
    asked = []

    def write(ids, room, wishes, on_text):
        asked.append((tokenizer.decode(ids), room))
        for letter in reply:
            on_text(letter)

    return Speaker(tokenizer, limit, longest, write), asked


# ---- the speaker


def test_a_conversation_goes_through_the_chat_template(own_tokenizer):
    own_tokenizer.chat_template = TEMPLATE
    model, asked = speaker(own_tokenizer)
    model.answer([{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}], Wishes(), print)
    assert asked == [("system:s;user:hi;assistant:", 4)]


def test_without_a_template_the_last_message_is_gone_on_with(own_tokenizer):
    model, asked = speaker(own_tokenizer)
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    model.answer(turns, Wishes(max_new_tokens=2), print)
    assert [text.strip() for text, _ in asked] == ["c"]
    assert asked[0][1] == 2


def test_the_oldest_turns_make_room_and_the_system_message_stays(own_tokenizer):
    own_tokenizer.chat_template = TEMPLATE
    turns = [{"role": "system", "content": "s"}]
    for letter in "abc":
        turns += [{"role": "user", "content": letter}, {"role": "assistant", "content": letter}]
    turns.append({"role": "user", "content": "d"})
    model, asked = speaker(own_tokenizer, limit=60, longest=8)
    model.answer(turns, Wishes(), print)
    text, room = asked[0]
    assert text.startswith("system:s;user:c;" if model.forgotten == 4 else "system:s;user:d;")
    assert text.endswith("user:d;assistant:")
    assert model.forgotten in (4, 6)
    assert len(text) + room <= 60
    model, asked = speaker(own_tokenizer, limit=30, longest=20)
    model.answer([{"role": "user", "content": "d"}], Wishes(), print)
    assert asked[0][1] == 30 - len("user:d;assistant:")  # less than was wished, rather than nothing
    with pytest.raises(NoRoom, match="30 positions"):
        model.answer([{"role": "user", "content": "d" * 40}], Wishes(), print)


def test_a_template_that_refuses_is_one_sentence(own_tokenizer):
    own_tokenizer.chat_template = REFUSES_SYSTEM
    model, _ = speaker(own_tokenizer)
    with pytest.raises(ValueError, match="refuses the system message .--system.: no system here"):
        model.answer([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], Wishes(), print)


def test_pieces_are_whole_characters():
    class Bytes:
        def decode(self, ids, skip_special_tokens, clean_up_tokenization_spaces):
            return bytes(ids).decode("utf-8", errors="replace")

    said = []
    pieces = _Pieces(Bytes(), said.append)
    pieces.put(torch.tensor([[1, 2, 3]]))  # the prompt
    for byte in "aé€!".encode():
        pieces.put(torch.tensor([byte]))
    pieces.end()
    assert said == ["a", "é", "€", "!"]


def test_pieces_add_up_with_a_tokenizer_that_tidies_blanks():
    class Words:
        def decode(self, ids, skip_special_tokens, clean_up_tokenization_spaces=True):
            text = "".join([" do", " n", "'t", " go"][i] for i in ids)
            return text.replace(" n't", "n't") if clean_up_tokenization_spaces else text

    said = []
    pieces = _Pieces(Words(), said.append)
    pieces.put(torch.tensor([[9]]))
    for token in range(4):
        pieces.put(torch.tensor([token]))
    pieces.end()
    assert "".join(said) == " do n't go"


# ---- the command, on a real tiny model


def test_one_question_of_a_run_folder_is_what_generate_says(folder, tiny_model, own_tokenizer, capsys):
    assert (
        main(
            [
                "chat",
                str(folder.parent),
                "--prompt",
                "1+1",
                "--temperature",
                "0",
                "--max-new-tokens",
                "6",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    ids = own_tokenizer("user:1+1;assistant:", add_special_tokens=False, return_tensors="pt")["input_ids"]
    out = tiny_model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=own_tokenizer.eos_token_id)
    assert shown == own_tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) + "\n"


def test_a_chat_keeps_its_turns_and_ends_with_ctrl_d(folder, monkeypatch, capsys):
    heard = []

    def answer(self, messages, wishes, on_text):
        heard.append([m["content"] for m in messages])
        on_text("half")
        if messages[-1]["content"] == "stop me":
            raise KeyboardInterrupt
        if messages[-1]["content"] == "too long":
            raise NoRoom("too long")

    lines = iter(["a", "", KeyboardInterrupt, "stop me", "too long", "b", "/new", "c", EOFError])

    def read(prompt):
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(Speaker, "answer", answer)
    monkeypatch.setattr(builtins, "input", read)
    assert main(["chat", str(folder), "--system", "s", "--device", "cpu"]) == 0
    assert heard == [
        ["s", "a"],
        ["s", "a", "half", "stop me"],
        ["s", "a", "half", "stop me", "half", "too long"],
        ["s", "a", "half", "stop me", "half", "b"],
        ["s", "c"],
    ]
    assert "(stopped)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/at/all"], "nowhere/at/all"),
        (["."], "is no model"),
        (["model", "--temperature", "-1"], "--temperature"),
        (["model", "--top-p", "0"], "--top-p"),
        (["model", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["model", "--prompt", " "], "--prompt is empty"),
        (["nowhere", "--device", "cpu"], "there is no folder nowhere, and from the hub: "),
    ],
)
def test_mistakes_are_one_line_and_code_two(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["chat", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("posttrain chat: ")
    assert error.count("\n") == 1


def test_a_device_that_is_none_is_one_line(folder, capsys):
    assert main(["chat", str(folder), "--prompt", "p", "--device", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("posttrain chat: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [["chat", "model"], ["eval", "generate", "model", "gsm8k"]])
def test_a_dtype_that_is_none_is_refused_before_anything_is_loaded(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*words, "--dtype", "float17"])
    assert ended.value.code == 2
    assert "choose from" in capsys.readouterr().err


def test_a_system_message_without_a_template_is_refused(folder, own_tokenizer, monkeypatch, capsys):
    monkeypatch.setattr(chat, "_load", lambda args: speaker(own_tokenizer)[0])
    own_tokenizer.chat_template = None
    assert main(["chat", str(folder), "--system", "s", "--prompt", "p"]) == 2
    assert "no chat template" in capsys.readouterr().err


def test_a_masked_diffusion_model_answers_by_its_sampler(tmp_path, capsys):
    from posttrain.rollout.masked.predictor import scratch_mask_model
    from posttrain.trainers.models.load import character_tokenizer

    tokenizer = character_tokenizer()
    if tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
    model = scratch_mask_model(tokenizer, hidden_size=32, layers=2, heads=2, max_positions=64)
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    assert is_masked(str(tmp_path / "m"))
    assert main(["chat", str(tmp_path / "m"), "--prompt", "1+1", "--max-new-tokens", "4", "--seed", "1"]) == 0
    assert capsys.readouterr().out.endswith("\n")
