"""Answers to imitate beside the pairs: who is asked what, and what `max_length` does to them."""

from __future__ import annotations

import copy
import json

import pytest
from datasets import Dataset

from posttrain.data import DataError
from posttrain.recipe import load_recipe
from posttrain.rollout.base import Sampling
from posttrain.trainers.models.load import scratch_llama
from posttrain.trainers.preference.bindings import RPOConfig, RPOTrainer
from posttrain.trainers.preference.imitation import answers_of, sample_imitation

CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}#\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
PAIR = {
    "chosen": [{"role": "assistant", "content": "yes"}],
    "rejected": [{"role": "assistant", "content": "no"}],
}


def user(text):
    return {"role": "user", "content": text}


@pytest.fixture
def chatty(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHAT
    return tokenizer


def build(model, rows, tokenizer, folder, **more):
    names = set(RPOConfig.__dataclass_fields__)
    args = RPOConfig(
        str(folder),
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        **{k: more.pop(k) for k in list(more) if k in names},
    )
    return RPOTrainer(
        model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, **more
    )


class Asked:
    """Answers every prompt alike, and remembers them."""

    def __init__(self, tokenizer, reply):
        self.tokenizer, self.reply, self.prompts = tokenizer, reply, []

    def __call__(self, prompts, sampling):
        self.prompts += [self.tokenizer.decode(ids) for ids in prompts]
        assert len({one.seed for one in sampling}) == len(sampling)
        return [self.reply for _ in prompts]


def test_the_reference_is_asked_the_prompt_that_is_trained_on(tiny_model, chatty, tmp_path):
    """A conversation loses its oldest turns before the reference answers; a hopeless row is not asked at all."""
    long = [user("o" * 30), {"role": "assistant", "content": "p"}, user("q")]
    rows = [{"prompt": long, **PAIR}, {"prompt": [user("z" * 60)], **PAIR}]
    asked = Asked(chatty, "hm")
    trainer = build(tiny_model, rows, chatty, tmp_path, imitate="reference", answer=asked, max_length=40)
    assert asked.prompts == ["[user]q#\n[assistant]"]
    assert trainer.row_counts.dropped == {"prompt fills max_length": 1}
    (row,) = trainer.train_dataset
    assert chatty.decode(row["imitation_prompt_ids"] + row["imitation_ids"]) == "[user]q#\n[assistant]hm#\n"
    assert trainer.row_counts.imitation_cut == 0


def test_a_rank_without_a_prompt_asks_too(tokenizer):
    """Others may be waiting for it: under FSDP the main rank gives its weights away before it samples."""
    calls = []

    def answer(prompts, sampling):
        calls.append((prompts, sampling))
        return []

    rows = Dataset.from_list([{"prompt": "z" * 60}])
    found = sample_imitation(rows, tokenizer, answer, Sampling(max_new_tokens=2), seed=0, limit=40)
    assert calls == [([], [])]
    assert list(found["imitation"]) == [""]


def test_a_model_goes_back_to_its_device_when_sampling_fails(tiny_model, tokenizer, monkeypatch):
    moves = []
    monkeypatch.setattr(tiny_model, "to", moves.append)
    monkeypatch.setattr(tiny_model, "forward", _out_of_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        answers_of(tiny_model, tokenizer, on_cpu=True)([[1, 2]], [Sampling(max_new_tokens=2, seed=0)])
    assert moves == [tiny_model.device] * 2


def _out_of_memory(*_, **__):
    raise RuntimeError("out of memory")


def test_answers_to_imitate_beyond_max_length_are_counted(tiny_model, tokenizer, tmp_path):
    rows = [{"prompt": "a>", "chosen": "a", "rejected": "b"}]
    asked = Asked(tokenizer, "x" * 50)
    trainer = build(tiny_model, rows, tokenizer, tmp_path, imitate="reference", answer=asked, max_length=40)
    assert trainer.row_counts.imitation_cut == 1
    assert "1 with an answer to imitate cut at max_length" in trainer.row_counts.in_words()


def test_another_dataset_speaks_as_the_pairs_do(tiny_model, chatty, tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"prompt": [user("hi")], "completion": "hello"}), encoding="utf-8")
    more = {"imitate": "dataset", "imitation_data": str(path)}
    trainer = build(tiny_model, [{"prompt": [user("q")], **PAIR}], chatty, tmp_path, **more)
    (row,) = trainer.train_dataset
    text = chatty.decode(row["imitation_prompt_ids"] + row["imitation_ids"])
    assert text == "[user]hi#\n[assistant]hello#\n"
    with pytest.raises(
        DataError, match="prompts of the pairs are text, those of the answers to imitate messages"
    ):
        build(tiny_model, [{"prompt": "q", "chosen": "a", "rejected": "b"}], chatty, tmp_path, **more)


def test_each_answer_is_imitated_about_equally_often(tiny_model, tokenizer, tmp_path):
    path = tmp_path / "answers.jsonl"
    lines = [json.dumps({"prompt": "say>", "completion": letter}) for letter in "abc"]
    path.write_text("\n".join(lines), encoding="utf-8")
    rows = [{"prompt": f"{i}>", "chosen": "a", "rejected": "b"} for i in range(8)]
    more = {"imitate": "dataset", "imitation_data": str(path)}
    said = build(tiny_model, rows, tokenizer, tmp_path, **more).train_dataset["imitation_ids"]
    counts = sorted(list(map(tuple, said)).count(answer) for answer in set(map(tuple, said)))
    assert counts == [2, 3, 3]


def test_a_model_named_by_its_path_cannot_be_asked(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="pass the model itself, not its path"):
        build(
            "some/model",
            [{"prompt": "q", "chosen": "a", "rejected": "b"}],
            tokenizer,
            tmp_path,
            imitate="reference",
        )


def test_a_recipe_samples_as_its_rollout_section_says(root, tmp_path, tokenizer):
    """And what it samples is what the model in memory gives with the same sampling: one computation, two ways in."""
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{i}>", "chosen": "ab", "rejected": "b"} for i in range(8)]
    pairs.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = load_recipe(
        str(root / "recipes" / "smoke" / "rpo_calm.yaml"),
        [
            "model={scratch: {hidden_size: 32, heads: 2, max_positions: 64}}",
            f"data.path={pairs}",
            "objective={imitate: reference, eta: 0.5}",
            "rollout={max_new_tokens: 5, temperature: 0.7}",
            "output.report_to=[]",
            "train.max_length=40",
        ],
    )
    trainer = RPOTrainer.from_recipe(recipe, output_dir=str(tmp_path / "run"))
    model = scratch_llama(tokenizer, hidden_size=32, heads=2, max_positions=64)
    sampling = Sampling(max_new_tokens=5, temperature=0.7)
    direct = build(
        model, rows, tokenizer, tmp_path, imitate="reference", sampling=sampling, max_length=40, seed=0
    )
    assert trainer.train_dataset["imitation_ids"] == direct.train_dataset["imitation_ids"]
    assert any(len(ids) > 2 for ids in direct.train_dataset["imitation_ids"])
    assert all(len(ids) <= 6 for ids in direct.train_dataset["imitation_ids"])
