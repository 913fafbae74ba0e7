"""What `plan` says of the lengths of rows: counted as the trainer reads them, template and end token included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from small_recipe import SFT, Load

from posttrain.cli import main
from posttrain.planning.row_lengths import row_lengths
from posttrain.planning.tokenizer import plan_tokenizer
from posttrain.run.plan import make_plan

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}.{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


def write_rows(rows: list[dict[str, Any]]) -> dict[str, Any]:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": None, "args": {}, "path": "rows.jsonl"}


def test_rows_that_max_length_cuts_are_counted(load: Load) -> None:
    """One token per character and one for the end: 2 + 3 + 1, 2 + 4 + 1, 2 + 9 + 1."""
    data = write_rows([{"prompt": "ab", "completion": "x" * n} for n in (3, 4, 9)])
    plan = make_plan(load(SFT, data=data, train={"max_steps": 1, "max_length": 6}))
    assert "longest prompt: 2 tokens" in plan.data
    assert (
        "longest row, prompt and answer: 12 tokens; 2 longer than train.max_length 6 will be cut there"
        in plan.data
    )


def test_a_scratch_models_end_token_is_one_token(load: Load) -> None:
    plan = make_plan(load(SFT, data=write_rows([{"prompt": "ab", "completion": "xy"}] * 8)))
    assert plan.example == ["prompt (2 tokens): a│b", "learned (3 tokens): x│y│<eos>"]


def test_a_pair_is_as_long_as_its_longer_answer(load: Load) -> None:
    data = write_rows([{"prompt": "ab", "chosen": "x", "rejected": "yyyy"}] * 4)
    plan = make_plan(load(SFT, method="dpo", data=data, train={"max_steps": 1, "max_length": 7}))
    assert "longest row, prompt and answer: 7 tokens" in plan.data


def test_what_packing_splits_is_not_said_to_be_cut(load: Load) -> None:
    data = write_rows([{"prompt": "ab", "completion": "x" * 9}] * 4)
    train = {"max_steps": 1, "max_length": 6, "packing": True, "packing_strategy": "wrapped"}
    assert "longest row, prompt and answer: 12 tokens" in make_plan(load(SFT, data=data, train=train)).data


def test_a_chat_template_is_counted_with_what_it_adds(load: Load, tokenizer: Any, tiny_model: Any) -> None:
    """ "<u>2+2.<a>" is 10 characters, "<u>2+2.<a>4." is 12."""
    tokenizer.save_pretrained("m")
    tiny_model.save_pretrained("m")
    Path("m/chat_template.jinja").write_text(TEMPLATE)
    rows = [{"prompt": "2+2", "completion": "4"}]
    recipe = load(SFT, model={"scratch": None, "path": "m"}, data=write_rows(rows) | {"chat": True})
    asked = [{"role": "user", "content": "2+2"}]
    answer = [{"role": "assistant", "content": "4"}]
    found = row_lengths(recipe, [{"prompt": asked, "completion": answer}] * 2, plan_tokenizer(recipe.model))
    assert found is not None
    assert (found.prompts, found.whole, found.exact) == ([10, 10], [12, 12], True)


def test_of_very_many_rows_some_are_looked_at_and_that_is_said(load: Load, monkeypatch: Any) -> None:
    monkeypatch.setattr("posttrain.planning.row_lengths.LOOKED_AT", 3)
    data = write_rows([{"prompt": "x" * n, "completion": "y"} for n in range(1, 10)])
    plan = make_plan(load(SFT, data=data, train={"max_steps": 1}))
    assert "longest prompt of 3 rows looked at: 7 tokens" in plan.data  # rows 0, 3 and 6


def test_a_file_where_the_run_folder_should_be(load: Load) -> None:
    Path("taken").write_text("")
    (refusal,) = make_plan(load(SFT, output={"dir": "taken", "name": "r"})).refusals
    assert refusal.endswith(
        "is a file, so taken/r cannot be a folder in it; change output.dir or output.name"
    )


def test_a_run_that_may_not_begin_is_not_said_to_start(load: Load, capsys: Any) -> None:
    Path("runs/r").mkdir(parents=True)
    Path("runs/r/notes.txt").write_text("mine")
    load(SFT)
    assert main(["train", "r.yaml"]) == 2
    told = capsys.readouterr()
    assert "can start" not in told.out
    assert "already holds files" in told.err


def test_the_command_for_more_steps_names_each_key_once(load: Load) -> None:
    recipe = load(SFT, sets=["train.max_steps=4", "train.seed=3"])
    assert recipe.command_with("train.max_steps=N") == (
        "posttrain train r.yaml --set train.seed=3 --set train.max_steps=N"
    )


def test_names_of_habit_are_answered(refused: Any) -> None:
    (told,) = refused(sets=["train.lr=3"])
    assert told == "--set train.lr=3: train: 'lr' is not set here; write learning_rate"


def test_the_plans_tokenizer_reads_special_tokens_as_training_does(load: Load) -> None:
    from posttrain.trainers.models.load import character_tokenizer

    recipe = load(SFT, model={"scratch": {"alphabet": "0123456789>"}})
    planned = plan_tokenizer(recipe.model)
    assert planned is not None
    for text in ("12>3<eos>", "<pad>1<bos>", "a<mask>9"):
        assert planned(text)["input_ids"] == character_tokenizer("0123456789>")(text)["input_ids"]
