"""What TRL's trainers hold in the end of rows as people publish them: by recipe, on a chat model in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import trl
import yaml

from posttrain.planning.rendered import parts_of, pieces
from posttrain.planning.tokenizer import plan_tokenizer
from posttrain.recipe import load_recipe
from posttrain.recipe.sections import ModelSection
from posttrain.run.plan import make_plan

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NOT_READ = {
    **{
        name: [3]
        for name in ("input_ids", "labels", "chosen_ids", "rejected_ids", "prompt_ids", "completion_mask")
    },
    **{name: [] for name in ("tools", "images", "messages")},
    **{"text": "t", "ref_chosen_logps": 0.5},
}
"""Columns that one or the other of TRL's trainers takes for its own."""


def turns(*said: str) -> list[dict[str, str]]:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[one[0]], "content": one[2:]} for one in said]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    from posttrain.trainers.models.load import character_tokenizer, scratch_llama

    folder = tmp_path_factory.mktemp("chat_model")
    tokenizer = character_tokenizer()
    model = scratch_llama(tokenizer, hidden_size=16, layers=1, heads=2, max_positions=512)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path: Path, model_folder: Path):
    """recipe(method, rows, data keys, train keys, ...) -> a checked recipe over a file of these rows."""

    def make(method: str, rows: list[dict[str, Any]], data: dict[str, Any], **sections: Any):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        train = {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True, "learning_rate": 1e-4}
        content = {
            "method": method,
            "model": {"path": str(model_folder)},
            "data": {"path": str(tmp_path / "rows.jsonl"), **data},
            "output": {"dir": str(tmp_path / "runs")},
            **sections,
            "train": {**train, **sections.get("train", {})},
        }
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
        return load_recipe(str(tmp_path / "r.yaml"), [])

    return make


def trained(recipe, tmp_path: Path) -> Any:
    return recipe.spec.load_trainer().from_recipe(recipe, output_dir=str(tmp_path / "out"))


def told(trainer: Any, row: dict[str, Any], name: str = "labels") -> str:
    return trainer.processing_class.decode([token for token in row[name] if token != -100])


@pytest.mark.parametrize("method", ["dpo", "rpo"])
def test_a_pair_that_holds_its_prompt(recipe, tmp_path, method) -> None:
    row = {"prompt": "q", "chosen": turns("u:q", "a:good"), "rejected": turns("u:q", "a:bad"), **NOT_READ}
    trainer = trained(recipe(method, [row] * 4, {"chat": True}, train={"max_length": 64}), tmp_path)
    found = trainer.train_dataset[0]
    assert told(trainer, found, "prompt_ids") == "<user>q<eos>\n<assistant>"
    assert told(trainer, found, "chosen_ids") == "good<eos>\n"
    assert told(trainer, found, "rejected_ids") == "bad<eos>\n"
    trainer.train()


def test_no_other_column_reaches_sft(recipe, tmp_path) -> None:
    rows = [{"instruction": f"do {i}", "output": f"out{i}", **NOT_READ} for i in range(4)]
    checked = recipe("sft", rows, {"template": "{instruction}:", "completion": "output"})
    trainer = trained(checked, tmp_path)
    assert trainer.train_dataset.column_names == ["input_ids", "labels"]
    assert told(trainer, trainer.train_dataset[0], "input_ids") == "do 0:out0<eos>"
    assert told(trainer, trainer.train_dataset[0]) == "out0<eos>"
    trainer.train()


def test_every_answer_of_a_conversation_is_learned_and_no_question(recipe, tmp_path) -> None:
    talk = turns("s:be", "u:q", "a:one", "u:and?", "a:two")
    checked = recipe("sft", [{"prompt": "q", "messages": talk}] * 4, {"chat": True})
    trainer = trained(checked, tmp_path)
    (row, *_) = trainer.train_dataset
    assert told(trainer, row, "input_ids").startswith(
        "<system>be<eos>\n<user>q<eos>\n<assistant>one<eos>\n<user>"
    )
    assert told(trainer, row) == "one<eos>\ntwo<eos>\n"


def test_labels_of_single_answers_are_trls(recipe, tmp_path) -> None:
    rows = [
        {"prompt": turns("u:q"), "completion": turns("a:one")},
        {"prompt": turns("u:q", "a:b", "u:c"), "completion": turns("a:x")},
    ]
    ours = trained(recipe("sft", rows, {"chat": True}), tmp_path)
    theirs = trl.SFTTrainer(
        ours.model,
        args=trl.SFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[]),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=ours.processing_class,
    )
    for name in ("input_ids", "labels"):
        assert list(ours.train_dataset[name]) == list(theirs.train_dataset[name])


def test_a_published_data_set_handed_to_a_trainer(model_folder, tmp_path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from posttrain.trainers.preference.bindings import DPOConfig, DPOTrainer

    rows = [
        {"prompt": "q", "chosen": turns("u:q", "a:good"), "rejected": turns("u:q", "a:bad")},
        {"prompt": "p", "chosen": turns("u:q", "a:good"), "rejected": turns("u:q", "a:bad")},
    ]
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(model_folder),
        args=DPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[], max_length=64),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model_folder),
    )
    assert told(trainer, trainer.train_dataset[0], "prompt_ids") == "<user>q<eos>\n<assistant>"
    assert told(trainer, trainer.train_dataset[0], "chosen_ids") == "good<eos>\n"
    assert trainer.row_counts.dropped == {"chosen does not continue the prompt": 1}


REWARD = """
def seen(completions, *, images, image, environment, chosen, **_):
    assert images == [["x"]] * len(completions) and image == ["y"] * len(completions)
    assert environment == ["z"] * len(completions) and chosen == [""] * len(completions)
    return [float(i % 2) for i in range(len(completions))]
"""


def test_rewards_see_columns_that_trl_would_take(recipe, tmp_path) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    row = {
        "prompt": turns("u:q"),
        "images": ["x"],
        "image": "y",
        "environment": "z",
        "chosen": "",
        "tools": "t",
    }
    checked = recipe(
        "grpo",
        [row] * 4,
        {"chat": True},
        rewards=[{"name": f"{tmp_path}/reward.py:seen"}],
        rollout={"group_size": 2, "max_new_tokens": 4},
    )
    plan = make_plan(checked)
    assert not plan.refusals
    assert "training: 4 of 4 rows" in plan.data
    trainer = trained(checked, tmp_path)
    assert trainer.row_counts.used == 4
    trainer.train()
    assert trainer.state.log_history[0]["reward"] == pytest.approx(0.5)


# ----------------------------------------------------------------------------------- the plan's view of a row


TEMPLATES = [
    CHAT,
    "{%- for m in messages %}{%- if m.role == 'assistant' -%}"
    "{% generation %}{{ m.content | trim }}{% endgeneration %}"
    "{%- else %}[{{ loop.index0 }}] {{ m | tojson }}\n{% endif %}"
    "{%- if loop.last %}{% break %}{% endif %}{%- endfor %}",
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}",
]  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES, ids=["plain", "generation", "refuses"])
def test_the_plans_tokenizer_is_transformers(model_folder, tmp_path, template) -> None:
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(model_folder)
    theirs.chat_template = template
    theirs.save_pretrained(tmp_path)
    ours = plan_tokenizer(ModelSection(path=str(tmp_path)))
    assert ours is not None
    for text in ("a b\n", "<eos>x", "é"):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    for talk in (turns("u:q "), turns("u:q", "a:\nx", "u:<y>"), turns("s:be", "u:q")):
        for asking in (True, False):
            options: dict[str, Any] = {"tokenize": True, "return_dict": True, "add_generation_prompt": asking}
            try:
                wanted = theirs.apply_chat_template(talk, **options)["input_ids"]
            except TemplateError as error:
                with pytest.raises(TemplateError, match=str(error)):
                    ours.apply_chat_template(talk, **options)
            else:
                assert ours.apply_chat_template(talk, **options)["input_ids"] == wanted


def test_plan_shows_the_tokens_that_are_trained_on(recipe, tmp_path) -> None:
    talk = turns("u:q", "a:one", "u:and?", "a:two")
    checked = recipe("sft", [{"messages": talk}] * 4, {"chat": True})
    tokenizer = plan_tokenizer(checked.model)
    plan = make_plan(checked)
    assert [line.split(" (")[0] for line in plan.example] == ["prompt", "learned", "read", "learned"]
    assert plan.example[1].endswith("o│n│e│<eos>│⏎")
    assert not [warning for warning in plan.warnings if "chat" in warning]
    row = trained(checked, tmp_path).train_dataset[0]
    parts = parts_of(checked, {"prompt": talk[:1], "completion": talk[1:]}, tokenizer)
    shown = [(token, part.learned) for part in parts for token in part.tokens]
    assert [token for token, _ in shown] == pieces(tokenizer, row["input_ids"])
    assert [learned for _, learned in shown] == [label != -100 for label in row["labels"]]


def test_plan_shows_what_a_masked_model_learns(recipe) -> None:
    from posttrain.trainers.masked.sft import MaskedSFT, tokenised
    from posttrain.trainers.models.load import character_tokenizer

    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    answer = [{"role": "assistant", "content": "so", "tool_calls": [call]}]
    tokenizer = character_tokenizer()
    calls = "{% for c in m.tool_calls or [] %}[{{ c.function.name }}]{% endfor %}"
    tokenizer.chat_template = CHAT.replace("{{ m.content }}", "{{ m.content }}" + calls)
    for row, learns in (
        ({"prompt": turns("u:q"), "completion": answer}, "so[add]<eos>"),
        ({"prompt": "q", "completion": "so"}, "so<eos>"),
    ):
        (made,) = tokenised(datasets.Dataset.from_list([row]), tokenizer, MaskedSFT(), None)
        assert tokenizer.decode(made["completion_ids"]) == learns
        prompt, learned = parts_of(recipe("mdlm_sft", [row], {"chat": True}), row, tokenizer)
        assert (prompt.ids, learned.ids) == (made["prompt_ids"], made["completion_ids"])


def test_plan_warns_of_a_chat_model_asked_in_plain_text(recipe) -> None:
    row = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    plan = make_plan(recipe("dpo", [row] * 4, {}))
    assert any(warning.startswith("data.chat is false") for warning in plan.warnings)
    assert [line.split(" (")[0] for line in plan.example] == ["prompt", "chosen", "rejected"]
    assert make_plan(recipe("dpo", [row] * 4, {"chat": True})).warnings == []


def test_a_template_that_refuses_rows_is_counted_alike_in_plan_and_train(
    recipe, tmp_path, model_folder
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.chat_template = TEMPLATES[2]
    tokenizer.save_pretrained(tmp_path / "gemma")
    model = {"path": str(model_folder), "tokenizer": str(tmp_path / "gemma")}
    rows = [
        {"prompt": turns("u:q"), "completion": "x"},
        {"prompt": turns("s:be", "u:q"), "completion": "y"},
    ] * 2
    reason = "the chat template refuses it: System role not supported"
    checked = recipe("sft", rows, {"chat": True}, model=model)
    assert f"training: 2 of 4 rows; dropped 2 ({reason}: 2)" in make_plan(checked).data
    assert trained(checked, tmp_path).row_counts.dropped == {reason: 2}
    refused = make_plan(recipe("sft", rows, {"chat": True, "system": "be"}, model=model)).refusals
    assert len(refused) == 1
    assert reason in refused[0]


def test_messages_without_a_chat_template_are_refused_by_plan(
    recipe, tmp_path, model_folder, tokenizer
) -> None:
    tokenizer.save_pretrained(tmp_path / "plain")
    model = {"path": str(model_folder), "tokenizer": str(tmp_path / "plain")}
    rows = [{"prompt": turns("u:q"), "completion": "x"}] * 4
    (refusal,) = make_plan(recipe("sft", rows, {"chat": True}, model=model)).refusals
    assert "has no chat template; set data.chat: false" in refusal


def test_pieces_keep_bytes_of_one_character_together() -> None:
    class Bytes:
        def decode(self, ids: list[int]) -> str:
            return bytes(ids).decode(errors="replace")

    assert pieces(Bytes(), list("aé\n😀".encode())) == ["a", "", "é", "⏎", "", "", "", "😀"]


def test_preview_says_what_is_learned(recipe, capsys, tmp_path) -> None:
    from posttrain.cli import main

    recipe("sft", [{"messages": turns("u:q", "a:one")}, {"messages": turns("u:q")}], {"chat": True})
    assert main(["data", "preview", str(tmp_path / "r.yaml"), "--rows", "5"]) == 0
    out = capsys.readouterr().out
    assert "1 of 2 rows; dropped 1 (no completion: 1)" in out
    assert "conversations are read from column 'messages'" in out
    assert "learned (5): o│n│e│<eos>│⏎" in out
    assert main(["data", "preview", str(tmp_path / "r.yaml"), "--set", "data.completion=none"]) == 2
    error = capsys.readouterr().err
    assert "no column 'none'" in error
    assert error.count("\n") == 1


def test_preview_shows_as_many_rows_of_a_large_file(recipe, capsys, tmp_path, monkeypatch) -> None:
    from posttrain.cli import main

    monkeypatch.setattr("posttrain.data.rows.SURVEY_LIMIT_BYTES", 0)
    recipe("sft", [{"prompt": "q", "completion": text} for text in ("", "a", "b", "c")], {})
    assert main(["data", "preview", str(tmp_path / "r.yaml"), "--rows", "2"]) == 0
    out = capsys.readouterr().out
    assert "2 of 3 rows; dropped 1 (no completion: 1)" in out
    assert "learned (2): b│<eos>" in out
    assert "row 3" not in out
    assert main(["data", "preview", str(tmp_path / "r.yaml"), "--rows", "0"]) == 2


def test_the_reference_is_not_moved_by_what_is_not_read(recipe, tmp_path) -> None:
    """The same loss with and without columns of TRL's names."""
    row = {"prompt": "q", "chosen": turns("u:q", "a:good"), "rejected": turns("u:q", "a:bad")}
    losses = []
    for rows in ([row] * 4, [row | NOT_READ] * 4):
        trainer = trained(recipe("dpo", rows, {"chat": True}, train={"max_length": 64}), tmp_path)
        losses.append(trainer.train().training_loss)
    assert losses[0] == losses[1]
    assert torch.isfinite(torch.tensor(losses[0]))
