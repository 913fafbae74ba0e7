"""`posttrain eval drift` on tiny models: its files, its numbers against a computation apart, going on, refusals."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

from posttrain.cli import main
from posttrain.evaluation import store
from posttrain.evaluation.drift_run import CONVERSATIONS, DIVERGENCES, PAGE, RESULTS, keyed
from posttrain.evaluation.drift_task import load_drift_task
from posttrain.trainers.models.load import character_tokenizer, scratch_llama

TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}assistant:"
TASK = """
name: rhymes
title: Rhymes
goal: Rhyme about {topic}!
reminder: And rhyme!
placebo: It rains.
topics: [sea, sun]
requests: [Go., "On, {topic}.", No rhymes!]
user_brief: You play a user.
sampling: {max_new_tokens: 5, temperature: 1.0}
"""
POSITIONS = 512


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders a and b (models of one tokenizer), `apart` (another tokenizer), `base` (no template), and task.yaml."""
    folder = tmp_path_factory.mktemp("drift")
    for name, seed, alphabet in (
        ("a", 0, None),
        ("b", 1, None),
        ("apart", 0, "zyxwvutsrqponmlkjihgfedcba.: ;!,"),
    ):
        tokenizer = character_tokenizer() if alphabet is None else character_tokenizer(alphabet)
        tokenizer.chat_template = TEMPLATE
        model = scratch_llama(
            tokenizer, hidden_size=32, layers=2, heads=2, max_positions=POSITIONS, seed=seed
        )
        with torch.no_grad():  # far from uniform, so that a history matters
            model.lm_head.weight.mul_(20)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    shutil.copytree(folder / "a", folder / "base")
    plain = character_tokenizer()
    (folder / "base" / "chat_template.jinja").unlink(missing_ok=True)
    plain.save_pretrained(folder / "base")
    (folder / "task.yaml").write_text(TASK)
    return folder


def drift(place, *words, model="a", reference="b", out="out"):
    task = ["--task", str(place / "task.yaml")] if "--task" not in words else []
    given = ["eval", "drift", str(place / model), "--reference", str(place / reference), *task]
    return main([*given, "--out", str(place / out), "--device", "cpu", *words])


SMALL = ("--turns", "3", "--remind", "2", "--conversations", "4", "--batch-size", "2")


@pytest.fixture(scope="module")
def done(place):
    assert drift(place, *SMALL) == 0
    return place / "out"


def logits_apart(folder, text, response):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        found = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
    return found[len(prompt) - 1 : -1].log_softmax(-1)


def test_every_turn_is_there_and_reminded_where_due(done):
    rows = keyed(done / CONVERSATIONS)
    assert sorted(rows) == [(a, c, t) for a in ("base", "reminders") for c in range(4) for t in (1, 2, 3)]
    assert rows["base", 0, 1]["user"] == "Rhyme about sea!\n\nGo."
    assert rows["base", 3, 2]["user"] == "On, sun."
    assert rows["reminders", 3, 2]["user"] == "On, sun.\n\nAnd rhyme!"
    for c in range(4):
        assert rows["reminders", c, 1]["response"] == rows["base", c, 1]["response"]
        assert rows["reminders", c, 3]["seed"] == rows["base", c, 3]["seed"]  # paired
    assert len({rows["base", c, 1]["response"] for c in (0, 2)}) == 2  # one topic, two seeds
    assert all(len(row["token_ids"]) == 5 or not row["truncated"] for row in rows.values())


def test_the_divergence_is_that_of_a_computation_apart(done, place):
    rows, measured = keyed(done / CONVERSATIONS), keyed(done / DIVERGENCES)
    first, second = rows["reminders", 1, 1], rows["reminders", 1, 2]
    said = f"user:{first['user']};assistant:{first['response']};user:{second['user']}"
    q, p = (logits_apart(place / m, f"{said};assistant:", second["token_ids"]) for m in "ab")
    kl = (q.exp() * (q - p)).sum(-1)
    middle = ((q.exp() + p.exp()) / 2).log()
    js = ((q.exp() * (q - middle)).sum(-1) + (p.exp() * (p - middle)).sum(-1)) / 2
    beside = logits_apart(place / "b", f"{said}\n\nIt rains.;assistant:", second["token_ids"])
    floor = (p.exp() * (p - beside)).sum(-1)
    found = measured["reminders", 1, 2]
    assert found["tokens"] == len(second["token_ids"])
    assert found["kl"] == pytest.approx(float(kl.mean()), rel=1e-4)
    assert found["js"] == pytest.approx(float(js.mean()), rel=1e-4)
    assert found["placebo_kl"] == pytest.approx(float(floor.mean()), rel=1e-3)
    assert found["kl"] > 0.1
    assert found["reference_kl"] == 0.0  # a model against itself on one history: exactly
    assert all(0 <= row["js"] <= math.log(2) for row in measured.values())


def test_results_and_page(done, capsys):
    result = store.read_json(done / RESULTS)
    measured = keyed(done / DIVERGENCES)
    mean = sum(measured["base", c, 2]["kl"] for c in range(4)) / 4
    assert result["arms"]["kl"]["base"]["curve"]["mean"][1] == pytest.approx(mean)
    assert result["effects"]["kl"][0]["turns"] == [3]
    by_hand = [measured["base", c, 3]["kl"] - measured["reminders", c, 3]["kl"] for c in range(4)]
    assert result["effects"]["kl"][0]["difference"]["value"] == pytest.approx(sum(by_hand) / 4)
    assert any("3 turns are too few" in text for text in result["readings"])
    page = (done / PAGE).read_text()
    assert page.count("<svg role") == 5
    assert "Conversation 2, with reminders" in page
    assert "Rhyme about sea!" in page


def test_the_same_command_goes_on_where_it_stopped(done, place, capsys):
    whole = {name: (done / name).read_bytes() for name in (CONVERSATIONS, DIVERGENCES, RESULTS, PAGE)}
    torn = place / "torn"
    shutil.copytree(done, torn)
    lines = whole[CONVERSATIONS].splitlines(keepends=True)
    (torn / CONVERSATIONS).write_bytes(b"".join(lines[:13]) + lines[13][:20])  # within a batch, within a line
    (torn / DIVERGENCES).write_bytes(b"".join(whole[DIVERGENCES].splitlines(keepends=True)[:3]))
    assert drift(place, *SMALL, out="torn") == 0
    assert {name: (torn / name).read_bytes() for name in whole} == whole
    shown = capsys.readouterr().out
    assert "KL with reminders" in shown
    assert "What b other processes of this size give" in shown


def test_another_run_is_not_mixed_in_and_another_measure_only_on_request(done, place, capsys):
    shutil.copytree(done, place / "kept")
    assert drift(place, *SMALL, "--seed", "1", out="kept") == 2
    assert "kept holds another run: seed differ" in capsys.readouterr().err.replace(str(place) + "/", "")
    assert drift(place, *SMALL, "--restate-goal", out="kept") == 2
    assert "--remeasure keeps the conversations" in capsys.readouterr().err
    before = (place / "kept" / CONVERSATIONS).read_bytes()
    assert drift(place, *SMALL, "--restate-goal", "--remeasure", out="kept") == 0
    assert (place / "kept" / CONVERSATIONS).read_bytes() == before
    row, plain = (keyed(place / one / DIVERGENCES)["base", 0, 2] for one in ("kept", "out"))
    assert row["kl"] != plain["kl"]
    assert row["reference_kl"] > 0


def test_the_model_against_itself_with_the_goal_restated(place):
    assert drift(place, *SMALL, "--restate-goal", reference="a", out="self") == 0
    rows, measured = keyed(place / "self" / CONVERSATIONS), keyed(place / "self" / DIVERGENCES)
    assert all(row["kl"] == row["reference_kl"] > 0 for row in measured.values())
    row = rows["base", 1, 1]
    q, p = (
        logits_apart(place / "a", f"user:{row['user']}{more};assistant:", row["token_ids"])
        for more in ("", "\n\nRhyme about sun!")
    )
    assert measured["base", 1, 1]["kl"] == pytest.approx(float((q.exp() * (q - p)).sum(-1).mean()), rel=1e-3)


def test_a_model_plays_the_user(place):
    words = ("--turns", "3", "--remind", "none", "--conversations", "2")
    assert drift(place, *words, "--user", str(place / "b"), out="played") == 0
    rows = keyed(place / "played" / CONVERSATIONS)
    assert {arm for arm, _, _ in rows} == {"base"}
    assert rows["base", 0, 1]["user"] == "Rhyme about sea!\n\nGo."
    assert rows["base", 0, 2]["user"] not in ("", "On, sea.")
    assert len(rows["base", 0, 2]["user"]) <= 120
    result = store.read_json(place / "played" / RESULTS)
    assert result["effects"]["kl"] == []


def test_two_turns_of_one_conversation_have_curves_and_no_fit(place):
    assert drift(place, "--turns", "2", "--remind", "none", "--conversations", "1", out="one") == 0
    result = store.read_json(place / "one" / RESULTS)
    assert result["arms"]["kl"]["base"]["fit"] is None
    assert any("give no fit of the recurrence" in text for text in result["readings"])
    assert any("one conversation" in text for text in result["readings"])


@pytest.mark.parametrize(
    ("words", "models", "message"),
    [
        ((), {"reference": "a"}, "the reference is the model itself, so every divergence is 0"),
        ((), {"reference": "apart"}, "the tokenizers differ"),
        ((), {"reference": "base"}, "reference: "),
        ((), {"model": "base"}, "has no chat template, so it is no model to converse with"),
        (("--turns", "4"), {}, "task rhymes has 3 requests, --turns 4 wants more"),
        (("--remind", "4"), {}, "--remind 4: a turn from 2"),
        (("--remind", "1"), {}, "--remind 1: a turn from 2"),
        (("--conversations", "0"), {}, "--conversations 0: at least 1"),
        (("--temperature", "0", "--conversations", "3"), {}, "would be copies"),
        (("--max-new-tokens", "400"), {}, "or less, or fewer --turns"),
        (("--task", "four_bullets"), {}, "built in: three_bullets"),
        (("--top-p", "2"), {}, "top_p"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_said(place, words, models, message, capsys):
    turns = () if "--turns" in words else ("--turns", "3")
    assert drift(place, *turns, *words, **models, out="refused") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("posttrain eval drift: ")
    assert not (place / "refused").exists()


def test_weights_at_another_path_are_the_model_itself(place, tmp_path, capsys):
    shutil.copytree(place / "a", place / "copy", dirs_exist_ok=True)
    assert drift(place, "--turns", "3", reference="copy", out="refused") == 2
    assert "the reference is the model itself" in capsys.readouterr().err


# ---- tasks


def test_the_built_in_task():
    task = load_drift_task("three_bullets")
    assert len(task.requests) == 8
    assert task.request(8, 0) != task.request(2, 0)
    assert task.request(9, 0) == task.request(2, 0)  # repeat_from: 2
    assert task.request(15, 0) == task.request(8, 0)
    assert task.request(16, 0) == task.request(2, 0)
    assert task.topics[1] in task.request(1, 17)
    ratio = len(task.placebo) / len(task.goal)
    assert 0.7 < ratio < 1.4  # a floor of about as many words


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("remindr: x", "remindr: .*did you mean 'reminder'"),
        ("repeat_from: 9", "repeat_from: 9 is beyond the 3 requests"),
        ("sampling: {max_new_tokens: 0}", "sampling.max_new_tokens"),
        ("reminder: Mind the {theme}!", "{theme} is no placeholder"),
    ],
)
def test_a_task_s_faults_are_named(tmp_path, change, message):
    key = change.partition(":")[0]
    kept = [line for line in TASK.splitlines() if not line.startswith(f"{key}:")]
    (tmp_path / "t.yaml").write_text("\n".join([*kept, change]))
    with pytest.raises(ValueError, match=message):
        load_drift_task(str(tmp_path / "t.yaml"))


def test_divergences_are_plain_json_lines(done):
    for text in (done / DIVERGENCES).read_text().splitlines():
        assert set(json.loads(text)) == {
            "arm", "conversation", "turn", "tokens", "kl", "js", "placebo_kl", "placebo_js", "reference_kl",
            "reference_js",
        }  # fmt: skip
