"""The whole way of a user: files, a model folder, commands, a page."""

from __future__ import annotations

import json

import pytest

from posttrain.cli import main
from posttrain.evaluation import command, in_training, store
from posttrain.evaluation import grade as grading
from posttrain.evaluation.graders import make_grader
from posttrain.evaluation.in_training import (
    benchmark_faults,
    evaluate_checkpoint,
    evaluation_section,
    overlaps,
)
from posttrain.recipe.sections import EvaluationSection


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    monkeypatch.setattr(
        grading, "judge_in_workers", lambda pool, items: make_grader(**pool.arguments)(list(items))
    )


@pytest.fixture
def model_folder(tmp_path, tiny_model, tokenizer):
    folder = tmp_path / "model"
    tiny_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def generate(model, folder, out, *more):
    words = [
        "eval",
        "generate",
        str(model),
        str(folder / "sums.yaml"),
        "--data",
        str(folder),
        "--out",
        str(out),
    ]
    return main([*words, "--device", "cpu", *more])


def test_generate_grade_report(model_folder, sums_folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert generate(model_folder, sums_folder, out, "--samples", "2", "--temperature", "1") == 0
    assert main(["eval", "grade", str(out)]) == 0
    said = capsys.readouterr().out
    assert "accuracy" in said
    assert "95 % interval" in said
    run = store.read_json(out / "sums" / store.RUN)
    assert run["model"]["weights"].startswith("files:")
    assert run["sampling"]["samples"] == 2
    assert main(["eval", "report", str(out)]) == 0
    assert (out / "report.html").read_text().startswith("<!DOCTYPE html>")
    before = (out / "sums" / store.GENERATIONS).read_bytes()
    assert generate(model_folder, sums_folder, out, "--samples", "2", "--temperature", "1") == 0
    assert (out / "sums" / store.GENERATIONS).read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "nowhere", "gsm8", "--data", "."], "did you mean 'gsm8k'"),
        (["generate", "nowhere", "gsm8k", "--data", "."], "no file"),
        (["generate", "nowhere", "minerva_math"], "no place on the hub"),
        (["grade", "."], "no evaluation here"),
        (["judge", "."], "no evaluation here"),
        (["tasks", "--check", ".", "gsm8k2"], "no benchmark 'gsm8k2'"),
    ],
)
def test_mistakes_are_one_line_and_code_two(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POSTTRAIN_DATA", raising=False)
    assert main(["eval", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith(f"posttrain eval {words[0]}: ")
    assert "\n" not in error


def test_tasks_check(sums_folder, capsys):
    good = ["eval", "tasks", str(sums_folder / "sums.yaml"), "--check", str(sums_folder)]
    assert main(good) == 0
    assert "as defined" in capsys.readouterr().out
    with (sums_folder / "sums.jsonl").open("a") as file:
        file.write(json.dumps({"question": "1+1", "answer": "#### 2", "size": 1}) + "\n")
    assert main(good) == 1
    assert "7 rows, defined are 6" in capsys.readouterr().out
    assert (
        main(["eval", "tasks", "--check", str(sums_folder)]) == 0
    )  # nobody named a benchmark that is absent


def test_limit_is_another_task(model_folder, sums_folder, tmp_path, capsys):
    assert generate(model_folder, sums_folder, tmp_path / "a", "--limit", "3") == 0
    assert generate(model_folder, sums_folder, tmp_path / "a") == 2
    assert "task.hash" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_one_line(sums_folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert generate(tmp_path / "empty", sums_folder, tmp_path / "out") == 2
    shown = capsys.readouterr().err
    assert "give a folder with config.json" in shown
    assert shown.count("\n") == 1


def test_ctrl_c_is_one_line_and_130(sums_folder, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_load", stop)
    assert generate("m", sums_folder, sums_folder / "out") == 130
    assert "the same command goes on where it stopped" in capsys.readouterr().err


# ---- in training


def settings(sums_folder, **more):
    return EvaluationSection(
        every=10, benchmarks=[str(sums_folder / "sums.yaml")], data=str(sums_folder), **more
    )


def test_when_an_evaluation_is_due(sums_folder):
    made = settings(sums_folder)
    assert [step for step in range(31) if made.is_due(step)] == [0, 10, 20, 30]
    assert made.is_due(7, last=True)
    assert not settings(sums_folder, at_start=False).is_due(0)


def test_training_prompts_that_hold_a_benchmark_are_told(tmp_path):
    words = [f"w{i}" for i in range(40)]
    rows = [{"question": " ".join(words[i : i + 14]), "answer": "5"} for i in (0, 20)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suffix = "Reason step by step and then write your final answer alone on the last line"
    (tmp_path / "long.yaml").write_text(
        "{name: long, title: Long, licence: MIT, source: here, data: {file: long.jsonl, rows: 2, sha256: null}, "
        f'gold: {{rule: text, column: answer}}, prompt: {{template: "{{question}} {suffix}"}}, '
        "sampling: {samples: 1, max_new_tokens: 8}, answer: {grader: math}}"
    )
    made = EvaluationSection(every=1, benchmarks=[str(tmp_path / "long.yaml")], data=str(tmp_path))
    assert benchmark_faults(made) == []
    # the template's own words are no contamination
    assert overlaps(made, [f"something else. {suffix}"]) == []
    (told,) = overlaps(made, [f"{rows[1]['question']} {suffix}"])
    assert told.startswith("1 of 2 problems of long share a run of 13 words")


def test_checkpoints_write_the_same_files_and_join_the_run_page(sums_folder, tmp_path, tiny_model, tokenizer):
    run_dir = tmp_path / "run"
    assert evaluation_section(run_dir) == ""
    made = settings(sums_folder, max_new_tokens=4)
    tiny_model.train()
    for step in (0, 10):
        values = evaluate_checkpoint(tiny_model, tokenizer, made, run_dir, step=step)
    assert tiny_model.training
    assert values.keys() == {
        "benchmarks/sums/accuracy", "benchmarks/sums/flexible", "benchmarks/sums/truncated",
    }  # fmt: skip
    folder = in_training.checkpoint_folder(run_dir, 10) / "sums"
    assert store.read_json(folder / store.RUN)["model"]["step"] == 10
    before = (folder / store.GRADES).read_bytes()
    assert evaluate_checkpoint(tiny_model, tokenizer, made, run_dir, step=10) == values
    assert (folder / store.GRADES).read_bytes() == before
    page = evaluation_section(run_dir)
    assert "run @ step 10" in page
    assert "Over checkpoints" in page


def test_a_resumed_run_that_comes_back_with_other_weights_is_measured_anew(
    sums_folder, tmp_path, tiny_model, tokenizer
):
    import torch

    evaluate_checkpoint(tiny_model, tokenizer, settings(sums_folder), tmp_path / "run", step=10)
    folder = in_training.checkpoint_folder(tmp_path / "run", 10) / "sums"
    texts = [row["text"] for row in store.read_lines(folder / store.GENERATIONS)]
    with torch.no_grad():
        tiny_model.lm_head.weight.copy_(-tiny_model.lm_head.weight)
    evaluate_checkpoint(tiny_model, tokenizer, settings(sums_folder), tmp_path / "run", step=10)
    after = store.read_lines(folder / store.GENERATIONS)
    assert len(after) == len(texts)
    assert [row["text"] for row in after] != texts
    assert len(store.read_lines(folder / store.GRADES)) == len(texts)


def test_what_is_wrong_is_known_before_training(sums_folder):
    assert benchmark_faults(settings(sums_folder)) == []
    assert (
        "did you mean 'gsm8k'"
        in benchmark_faults(settings(sums_folder).model_copy(update={"benchmarks": ["gsm8"]}))[0]
    )
    assert "temperature 0" in benchmark_faults(settings(sums_folder, samples=4))[0]
    assert "no file" in benchmark_faults(settings(sums_folder).model_copy(update={"data": "/nowhere"}))[0]
    assert "empty" in benchmark_faults(settings(sums_folder).model_copy(update={"benchmarks": []}))[0]
