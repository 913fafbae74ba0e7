"""`posttrain init`: for every method a recipe that plan accepts, from data in the shapes people have."""

from __future__ import annotations

import json

import pytest
import yaml

from posttrain.cli import COMMANDS, GROUPS, main, usage
from posttrain.commands import init
from posttrain.data import DataError
from posttrain.planning.first_data import find_data
from posttrain.planning.first_recipe import batch_of, look_at_model
from posttrain.recipe import load_recipe
from posttrain.recipe.methods import METHODS

SUMS = [{"question": f"What is {a}+{b}?", "answer": f"so\n#### {a + b}"} for a in range(6) for b in range(6)]
PAIRS = [{"instruction": f"Say {i}", "preferred": f"good {i}", "dispreferred": f"bad {i}"} for i in range(40)]
COMPLAINTS = [
    {"prompt": f"Say {i}", "rejected": f"bad {i}", "user_preference": f"nicer {i}"} for i in range(40)
]
CONFIG = {
    **{"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 512},
}

WRITTEN = [method for method in METHODS.values() if not method.load_settings().makes_images]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "x"}))
    write("sums_train.jsonl", SUMS)
    write("sums_test.jsonl", SUMS[:4])
    write("pairs.jsonl", PAIRS)
    write("complaints.jsonl", COMPLAINTS)
    return tmp_path


def write(name, rows):
    with open(name, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return name


def data_of(method):
    if method.name == "drift":
        return "complaints.jsonl"
    if method.name == "itool":  # it makes its own pairs
        return "sums_train.jsonl"
    return "pairs.jsonl" if method.family == "preference" else "sums_train.jsonl"


@pytest.mark.parametrize("gpu", [False, True])
def test_every_method_gives_a_recipe_that_plan_accepts(gpu, here, monkeypatch, capsys):
    monkeypatch.setattr(init, "has_gpu", lambda: gpu)
    for method in WRITTEN:
        words = ["init", method.name, "--model", "model", "--data", data_of(method)]
        assert main(words) == 0, (method.name, capsys.readouterr().err)
        recipe = load_recipe(f"{method.name}.yaml")
        assert recipe.method == method.name
        assert (recipe.train.bf16, recipe.train.use_cpu) == (gpu, not gpu)
        assert main(["plan", f"{method.name}.yaml"]) == 0, (method.name, capsys.readouterr().err)
        capsys.readouterr()


def test_without_model_and_data_a_public_pair_is_taken(here, capsys):
    for method in WRITTEN:
        code = main(["init", method.name])
        assert code == (2 if method.name == "drift" else 0), (method.name, capsys.readouterr().err)
    assert "posttrain data feedback" in capsys.readouterr().err


def test_comments_say_what_keys_do_and_defaults_are_the_methods(here):
    main(["init", "dapo", "--model", "model", "--data", "sums_train.jsonl", "--out", "mine.yaml"])
    text = (here / "mine.yaml").read_text()
    assert "https://arxiv.org/abs/2503.14476" in text
    assert "clip_high: 0.28" in text
    assert "# epsilon_high" in text
    written = yaml.safe_load(text)
    assert written["data"] == {
        "path": "sums_train.jsonl",
        "prompt": "question",
        "answer": {"column": "answer", "after": "####"},
        "chat": True,
        "eval": {"path": "sums_test.jsonl", "limit": 128},
    }
    assert written["rewards"] == [{"name": "math_answer"}]
    assert written["output"]["name"] == "mine"
    bare = [
        line
        for line in text.splitlines()
        if line.startswith("  ") and "#" not in line and "math_answer" not in line and "seed" not in line
    ]
    assert [line for line in bare if "lr_scheduler_type" not in line] == []


def test_nothing_is_overwritten_unasked_and_mistakes_are_one_line(here, capsys):
    (here / "grpo.yaml").write_text("mine")
    for words, message in [
        (["grpo"], "exists already"),
        (["vapo"], "ppo has its critic"),
        (["bpao"], "did you mean 'bapo'"),
        (["sft", "--out", "x.txt"], "ends in .yaml"),
        (["sft", "--model", "./nowhere"], "no folder ./nowhere"),
        (["sft", "--data", "nowhere.jsonl"], "no file"),
        (["dpo", "--model", "model", "--data", "sums_train.jsonl"], "no column for 'chosen'"),
        (["drift", "--model", "model", "--data", "pairs.jsonl"], "'user_preference'"),
        (["dpo", "--data", "sort"], "has no pairs"),
    ]:
        assert main(["init", *words]) == 2, words
        error = capsys.readouterr().err.strip()
        assert message in error
        assert error.startswith("posttrain init: ")
        assert "\n" not in error
    assert (here / "grpo.yaml").read_text() == "mine"
    assert main(["init", "grpo", "--model", "model", "--data", "sums_train.jsonl", "--overwrite"]) == 0


def rows_of(family, rows, chat=False):
    name = {"policy": "grpo", "preference": "dpo", "sft": "sft"}[family]
    return find_data(METHODS[name], write("rows.jsonl", rows), chat=chat)


@pytest.mark.parametrize(
    ("family", "row", "section"),
    [
        (
            "sft",
            {"instruction": "Say", "input": "", "output": "x"},
            {"template": "{instruction}\n\n{input?}", "completion": "output"},
        ),
        ("sft", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, {}),
        ("sft", {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, {}),
        (
            "sft",
            {
                "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                **{"text": "ab", "chosen": "b", "prompt_id": "1"},
            },
            {},
        ),
        ("sft", {"query": "q", "response": "r"}, {"prompt": "query", "completion": "response"}),
        ("preference", {"prompt": "q", "chosen": "a", "rejected": "b"}, {}),
        (
            "preference",
            {"chosen": "\n\nHuman: h\n\nAssistant: a", "rejected": "\n\nHuman: h\n\nAssistant: b"},
            {},
        ),
        (
            "preference",
            {"question": "q", "chosen_response": "a", "rejected_response": "b"},
            {"prompt": "question", "chosen": "chosen_response", "rejected": "rejected_response"},
        ),
        (
            "policy",
            {"problem": "p", "solution": "so \\boxed{4}"},
            {"prompt": "problem", "answer": {"column": "solution", "boxed": True}},
        ),
        ("policy", {"Question": "p", "Answer": "4"}, {"prompt": "Question", "answer": {"column": "Answer"}}),
        ("sft", {"text": "Write", "code": "x = 1"}, {"prompt": "text", "completion": "code"}),
        ("sft", {"prompt": "q", "chosen": "a", "rejected": "b"}, {"completion": "chosen"}),
        ("policy", {"prompt": "p", "answer": "4"}, {}),
        ("policy", {"prompt": "p", "answer": 4}, {}),
        ("policy", {"prompt": [{"role": "user", "content": "p"}], "answer": "4"}, {}),
    ],
)
def test_columns_as_people_name_them(family, row, section, here):
    found = rows_of(family, [row] * 8)
    assert found.section == {"path": "rows.jsonl"} | section
    assert found.rows == 8


@pytest.mark.parametrize(
    ("row", "reward"),
    [
        ({"prompt": "p", "answer": "so\n#### 4"}, "math_answer"),
        ({"prompt": "p", "answer": "1,000.5"}, "math_answer"),
        ({"prompt": "p", "answer": "\\frac{1}{2}"}, "math_answer"),
        ({"prompt": "p", "answer": "(1, 2)"}, "math_answer"),
        ({"prompt": "p", "final_answer": ["$x^2$"]}, "math_answer"),
        ({"prompt": "p", "label": True}, "length_penalty"),
        ({"prompt": "p", "answer": "Paris"}, "exact_match"),
        ({"prompt": "p", "numbers": [1, 2], "target": 3}, "countdown"),
        ({"prompt": "p"}, "length_penalty"),
    ],
)
def test_rewards_by_what_the_golds_look_like(row, reward, here):
    found = rows_of("policy", [row] * 8)
    assert [one["name"] for one in found.rewards] == [reward]
    assert ("rewards" in found.notes) == (reward in ("exact_match", "length_penalty"))


def test_alpaca_keeps_its_inputs_and_the_rows_without_one(here):
    whole = [{"instruction": "Add", "input": f"{i}", "output": "x"} for i in range(8)]
    gaps = rows_of("sft", [*whole, {"instruction": "Say", "input": "", "output": "x"}])
    assert gaps.section["template"] == "{instruction}\n\n{input?}"
    assert gaps.rows == 9


def test_chat_that_the_rows_do_not_take_is_said(here):
    found = rows_of("sft", [{"prompt": "p", "answer": 4}] * 8, chat=True)
    assert "chat" not in found.section
    assert "although the model has a chat template" in found.notes["chat"]
    assert "chat" not in rows_of("sft", [{"prompt": "p", "answer": "4"}] * 8, chat=True).notes


@pytest.mark.parametrize("name", ["trl-lib/pairs-v1.5", "org/set"])
def test_a_hub_name_may_hold_a_dot(name, here):
    assert find_data(METHODS["dpo"], name, chat=False).section["name"] == name


@pytest.mark.parametrize(
    ("row", "section"),
    [
        ({"prompt": "p", "completion": "c", "label": True}, {}),
        ({"instruction": "p", "output": "c", "kto_tag": 1},
         {"prompt": "instruction", "completion": "output", "label": "kto_tag"}),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "label": False}, {}),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, {}),
        ({"prompt": "p", "winner": "a", "loser": "b"}, {"chosen": "winner", "rejected": "loser"}),
    ],
)  # fmt: skip
def test_marked_answers_as_people_name_them(row, section, here):
    other = {name: not value if name in ("label", "kto_tag") else value for name, value in row.items()}
    write("rows.jsonl", [row, other] * 4)
    found = find_data(METHODS["kto"], "rows.jsonl", chat=False)
    assert found.section == {"path": "rows.jsonl"} | section
    assert found.rows == (16 if {"chosen", "winner"} & row.keys() else 8)
    assert find_data(METHODS["kto"], None, chat=False).section["name"] == "trl-lib/kto-mix-14k"
    # what a column of another name marks is not guessed: toxic answers are the bad ones
    write(
        "rows.jsonl",
        [
            {"prompt": "p", "completion": "c", "toxic": True},
            {"prompt": "p", "completion": "c", "toxic": False},
        ],
    )
    with pytest.raises(DataError, match="no column called label"):
        find_data(METHODS["kto"], "rows.jsonl", chat=False)


def test_data_without_a_use_is_refused(here):
    for family, row in (("sft", {"a": 1}), ("preference", {"prompt": "p", "completion": "c"})):
        with pytest.raises(DataError, match="no column for"):
            rows_of(family, [row])
    write("empty.jsonl", [])
    with pytest.raises(DataError, match="no rows"):
        find_data(METHODS["sft"], "empty.jsonl", chat=False)


def test_a_file_that_is_missing_is_no_hub_name(here):
    for missing in ("rows.jsonl", "data/rows.jsonl.gz", "./rows", "some/where/rows"):
        with pytest.raises(DataError, match="no file"):
            find_data(METHODS["sft"], missing, chat=True)


def test_columns_that_a_method_can_do_without_are_not_asked_for(here):
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    write("pairs.jsonl", [pair])
    assert find_data(METHODS["rpo"], "pairs.jsonl", chat=False).rows == 1
    write("pairs.jsonl", [{"prompt": "p", "rejected": "b"}])
    with pytest.raises(DataError, match="no column 'user_preference'"):
        find_data(METHODS["drift"], "pairs.jsonl", chat=False)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 20, 1000, None])
def test_batches_divide_and_are_filled(rows):
    for family in ("policy", "diffusion", "sft", "preference"):
        micro, accumulated = batch_of(family, rows)
        if family in ("policy", "diffusion"):
            assert micro == 8
            assert rows is None or accumulated <= rows
        else:
            assert rows is None or micro * accumulated <= rows
        assert micro & (micro - 1) == accumulated & (accumulated - 1) == 0


def test_what_is_known_of_a_model(here):
    facts = look_at_model("model")
    assert (facts.speaks, facts.positions, facts.own_code) == (True, 512, False)
    assert look_at_model("org/thing-Instruct").speaks
    assert not look_at_model("org/thing-base").speaks


# ---- the list of commands


def test_help_lists_every_command_once_in_groups():
    shown = usage()
    for name, (text, _) in COMMANDS.items():
        assert [line for line in shown.splitlines() if line.split("  ")[1:2] == [name] and text in line], name
    for title in GROUPS:
        assert f"\n{title}\n" in shown


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("trian", "did you mean 'train'"),
        ("run", "posttrain train"),
        ("generate", "posttrain eval generate"),
        ("preview", "posttrain data preview"),
        ("serve", "here it is: launch/serve_vllm.sh"),
        ("xyzzy", "posttrain --help lists them"),
        ("data", "data preview"),
        ("data overlpa", "did you mean 'data overlap'"),
    ],
)
def test_unknown_commands_are_told_what_is_meant(word, hint, capsys):
    assert main(word.split()) == 2
    error = capsys.readouterr().err
    assert hint in error
    assert error.count("\n") == 1
