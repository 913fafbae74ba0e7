from __future__ import annotations

import json

import pytest
import torch

from posttrain.evaluation import store
from posttrain.evaluation.engine_bridge import EvaluationEngine, Response, tensors_hash
from posttrain.evaluation.generate import generate, sample_seed
from posttrain.evaluation.tasks import BenchmarkSampling

MODEL = {"path": "tiny"}
SAMPLED = BenchmarkSampling(samples=3, max_new_tokens=6, temperature=1.0, top_p=0.9)


def run(out, sums, problems, network, tokenizer, **settings):
    settings = {"sampling": SAMPLED, "batch_size": 4, "model": MODEL} | settings
    return generate(sums, problems, EvaluationEngine.around(network, tokenizer), tokenizer, out, **settings)


@pytest.mark.parametrize("cut", ["between batches", "inside a batch", "inside a line"])
def test_resumed_generation_equals_uninterrupted(cut, tmp_path, sums, problems, tiny_model, tokenizer):
    whole = run(tmp_path / "whole", sums, problems, tiny_model, tokenizer) / store.GENERATIONS
    lines = whole.read_text().splitlines(keepends=True)
    assert len(lines) == 18
    part = tmp_path / "part"
    part.mkdir()
    (part / store.RUN).write_text((whole.parent / store.RUN).read_text())
    kept = {
        "between batches": lines[:8],
        "inside a batch": lines[:10],
        "inside a line": [*lines[:6], lines[6][:40]],
    }
    (part / store.GENERATIONS).write_text("".join(kept[cut]))
    run(part, sums, problems, tiny_model, tokenizer)
    assert (part / store.GENERATIONS).read_bytes() == whole.read_bytes()


def test_killed_in_the_middle_and_resumed(tmp_path, sums, problems, tiny_model, tokenizer):
    whole = run(tmp_path / "whole", sums, problems, tiny_model, tokenizer)

    def die(done, total):
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part", sums, problems, tiny_model, tokenizer, progress=die)
    assert len(store.read_lines(tmp_path / "part" / store.GENERATIONS)) == 8
    run(tmp_path / "part", sums, problems, tiny_model, tokenizer)
    for name in (store.GENERATIONS, store.RUN):
        assert (tmp_path / "part" / name).read_bytes() == (whole / name).read_bytes()


def test_samples_differ_and_depend_on_the_seed_alone(tmp_path, sums, problems, tiny_model, tokenizer):
    def texts(name, **settings):
        rows = store.read_lines(
            run(tmp_path / name, sums, problems, tiny_model, tokenizer, **settings) / store.GENERATIONS
        )
        return {(row["id"], row["sample"]): row["text"] for row in rows}

    one = texts("one")
    assert len(set(one.values())) > 12
    assert texts("another seed", seed=1) != one
    torch.manual_seed(99)  # the process's generator plays no part, nor does the batch size
    assert texts("other batches", batch_size=5) == one


def test_greedy_is_the_models_own_greedy(tmp_path, sums, problems, tiny_model, tokenizer):
    out = run(tmp_path / "g", sums, problems, tiny_model, tokenizer, sampling=sums.sampling, batch_size=3)
    row = store.read_lines(out / store.GENERATIONS)[-1]
    ids = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
    tiny_model.eval()
    for _ in range(sums.sampling.max_new_tokens):
        ids = torch.cat([ids, tiny_model(ids).logits[:, -1:].argmax(-1)], dim=1)
    expected = ids[0, -sums.sampling.max_new_tokens :].tolist()
    if tokenizer.eos_token_id in expected:
        expected = expected[: expected.index(tokenizer.eos_token_id)]
    assert row["text"] == tokenizer.decode(expected, skip_special_tokens=True)


def test_end_token_ends_and_the_limit_truncates(tmp_path, sums, problems, tiny_model, tokenizer):
    rows = store.read_lines(run(tmp_path / "r", sums, problems, tiny_model, tokenizer) / store.GENERATIONS)
    assert {row["finish"] for row in rows} <= {"stop", "length"}
    assert all((row["tokens"] == 6) >= (row["finish"] == "length") for row in rows)
    with torch.no_grad():  # a model that says 7 and then ends
        tiny_model.lm_head.weight.zero_()
    seven = tokenizer.convert_tokens_to_ids("7")
    tiny_model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(tokenizer)))
    tiny_model.lm_head.bias.data[seven] = 50.0
    generator = EvaluationEngine.around(tiny_model, tokenizer)
    assert generator.generate([[9]], [0], SAMPLED) == [Response([seven] * 6, "length")]
    tiny_model.lm_head.bias.data[tokenizer.eos_token_id] = 100.0
    assert generator.generate([[9]], [0], SAMPLED) == [Response([], "stop", end=1)]


def test_run_json_names_what_decides_the_numbers(tmp_path, sums, problems, tiny_model, tokenizer):
    out = run(tmp_path / "r", sums, problems, tiny_model, tokenizer, seed=5)
    record = json.loads((out / store.RUN).read_text())
    assert record["model"] == MODEL
    assert record["sampling"]["samples"] == 3
    assert record["seed"] == 5
    assert record["engine"]["name"] == "transformers"
    assert record["tokenizer"]["chat_template"] is None
    assert record["tokenizer"]["opens_reasoning"] is False
    assert len(record["task"]["hash"]) == 64
    assert "transformers" in record["versions"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"sampling": SAMPLED.model_copy(update={"temperature": 0.5})}, "sampling.temperature"),
        ({"model": {"path": "other"}}, "model.path"),
        ({"batch_size": 2}, "engine.batch_size"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(
    change, name, tmp_path, sums, problems, tiny_model, tokenizer
):
    out = run(tmp_path / "r", sums, problems, tiny_model, tokenizer)
    with pytest.raises(ValueError, match=name):
        run(out, sums, problems, tiny_model, tokenizer, **change)
    run(out, sums, problems, tiny_model, tokenizer, overwrite=True, **change)


def test_fewer_problems_are_another_task(tmp_path, sums, problems, tiny_model, tokenizer):
    out = run(tmp_path / "r", sums, problems, tiny_model, tokenizer)
    with pytest.raises(ValueError, match=r"task\.hash"):
        run(out, sums, problems[:3], tiny_model, tokenizer)


def test_no_room_for_the_response_is_refused_before_generating(
    tmp_path, sums, problems, tiny_model, tokenizer
):
    long = SAMPLED.model_copy(update={"max_new_tokens": 60})
    with pytest.raises(ValueError, match=r"prompt of 10 tokens .* --max-new-tokens 54"):
        run(tmp_path / "r", sums, problems, tiny_model, tokenizer, sampling=long)
    assert not (tmp_path / "r").exists()


def test_chat_template_is_used_and_recorded(tmp_path, sums, problems, tiny_model, tokenizer):
    import copy

    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = (
        "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] + '\n' }}{% endfor %}a:"
    )
    out = run(tmp_path / "r", sums, problems, tiny_model, chatty)
    plain = run(tmp_path / "p", sums, problems, tiny_model, tokenizer)
    assert store.read_json(out / store.RUN)["tokenizer"]["chat_template"]
    chatty.chat_template += "<think>\n"
    thinking = run(tmp_path / "t", sums, problems, tiny_model, chatty)
    assert store.read_json(thinking / store.RUN)["tokenizer"]["opens_reasoning"] is True
    assert (out / store.GENERATIONS).read_bytes() != (plain / store.GENERATIONS).read_bytes()
    always = sums.model_copy(update={"prompt": sums.prompt.model_copy(update={"chat": "always"})})
    with pytest.raises(ValueError, match="no chat template"):
        run(tmp_path / "x", always, problems, tiny_model, tokenizer)


def test_seeds_are_fixed_for_good():
    assert sample_seed(0, "a", 0) == sample_seed(0, "a", 0)
    assert len({sample_seed(s, p, n) for s in (0, 1) for p in ("a", "b") for n in (0, 1)}) == 8
    assert 0 <= sample_seed(0, "a", 0) < 2**63


def test_tensors_hash_sees_one_changed_weight(tiny_model):
    before = tensors_hash(tiny_model)
    assert tensors_hash(tiny_model) == before
    with torch.no_grad():
        next(tiny_model.parameters()).view(-1)[0] += 1e-3
    assert tensors_hash(tiny_model) != before


def test_corrupt_middle_line_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        store.read_lines(path)
