"""DRIFT end to end at toy size: what is compared with what, what is trained on, and that a kill changes nothing."""

from __future__ import annotations

import copy
import gc
import json
import signal
import weakref
from types import SimpleNamespace

import pytest
from accelerate import PartialState
from staged_helpers import LORA, WORDS, KillAt, Killed, lines, make_model, options, policies, same
from transformers import TrainerCallback

from posttrain.data.feedback_logs import Complaint, SeedPair
from posttrain.rollout.base import Sampling
from posttrain.trainers.engines.answers import EngineGenerator
from posttrain.trainers.models.policy_folder import save_policy
from posttrain.trainers.seam import stopping
from posttrain.trainers.seam.launch_check import check_engine
from posttrain.trainers.seam.stopping import StopOnSignal
from posttrain.trainers.staged.drift import DRIFTConfig, DRIFTTrainer
from posttrain.trainers.staged.staged import Stage

COMPLAINTS = [
    Complaint([{"role": "user", "content": f"name {w}"}], f"{w.upper()}!", "no shouting") for w in WORDS
]


@pytest.fixture
def model(tokenizer):
    return make_model(tokenizer)


def drift(
    model, tokenizer, folder, *, seeds=(), peft=None, kill=None, watch=None, complaints=COMPLAINTS, **settings
):
    trainer = (Watched if watch is not None else DRIFTTrainer)(
        copy.deepcopy(model),
        complaints,
        options(DRIFTConfig, folder, **{"num_train_epochs": 1, "iterations": 2, **settings}),
        tokenizer,
        seeds=seeds,
        sampling=Sampling(temperature=0.7, top_p=0.9, max_new_tokens=6),
        generation_batch_size=3,
        peft_config=copy.deepcopy(peft),
        callbacks=[] if kill is None else [KillAt(kill)],
    )
    trainer.watched = watch
    return trainer


class Watched(DRIFTTrainer):
    """Notes each stage's margins before its first step."""

    def prepare_trainer(self, stage, trainer):
        super().prepare_trainer(stage, trainer)
        trainer.model.train()
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        _, pairs = trainer._forward(trainer.model, batch)
        self.watched.append(
            (pairs.chosen_margin.abs().max().item(), pairs.rejected_margin.abs().max().item())
        )


@pytest.mark.parametrize("peft", [None, LORA], ids=["full", "lora"])
def test_each_iteration_is_compared_with_its_own_start(peft, model, tokenizer, tmp_path):
    watched = []
    seeds = [SeedPair(row.prompt, "yes", row.rejected) for row in COMPLAINTS[:3]]
    trainer = drift(model, tokenizer, tmp_path, seeds=seeds, peft=peft, watch=watched, seed_epochs=2)
    trainer.train()
    assert watched == [(0.0, 0.0)] * 3  # max difference 0 in the seed stage and both iterations
    found = policies(trainer)
    assert len(found) == 4
    assert not any(same(found[i], found[j]) for i in range(4) for j in range(i))
    assert trainer.state.global_step == 2 * 2 + 4 + 4 == trainer.state.max_steps
    names = [
        json.loads((tmp_path / "stages" / f"00{i}" / "counts.json").read_text())["stage"] for i in range(3)
    ]
    assert names == ["seed", "iteration 1", "iteration 2"]


def test_training_sees_the_prompt_without_the_complaint_and_new_answers_each_time(whole_drift):
    folder = whole_drift.output_dir
    first, second = (lines(folder / "stages" / f"00{i}" / "pairs.jsonl") for i in range(2))
    assert [row["prompt"] for row in first] == [f"User: name {w}\nAssistant: " for w in WORDS]
    assert [row["rejected"] for row in first] == [row.rejected for row in COMPLAINTS]
    assert [row["chosen"] for row in first] != [row["chosen"] for row in second]
    samples = lines(folder / "stages" / "000" / "samples-0.jsonl")
    assert [s["row"] for s in samples] == list(range(7))


@pytest.fixture(scope="module")
def whole_drift(tokenizer, tmp_path_factory):
    trainer = drift(make_model(tokenizer), tokenizer, tmp_path_factory.mktemp("drift"))
    trainer.train()
    return trainer


@pytest.mark.parametrize("kill", ["sampling", 1, 3], ids=lambda k: f"at {k}")
def test_a_killed_run_continues_with_the_same_numbers(kill, whole_drift, model, tokenizer, tmp_path):
    """Kills in the second sampling, before a first checkpoint, and after one."""
    whole = whole_drift
    broken = drift(model, tokenizer, tmp_path / "broken", kill=kill if isinstance(kill, int) else None)
    if kill == "sampling":
        broken._generator = _DiesAfter(broken.generator, calls=4)  # in the second iteration's second batch
    with pytest.raises(Killed):
        broken.train()
    if kill == "sampling":
        torso = tmp_path / "broken" / "stages" / "001" / "samples-0.jsonl"
        assert len(lines(torso)) == 3
        with torso.open("a", encoding="utf-8") as file:
            file.write('{"row": 3, "te')  # a write that the kill cut short
    with pytest.raises(ValueError, match="already holds a run"):
        drift(model, tokenizer, tmp_path / "broken").train()
    resumed = drift(model, tokenizer, tmp_path / "broken")
    resumed.train(resume_from_checkpoint=True)
    assert all(same(a, b) for a, b in zip(policies(whole), policies(resumed), strict=True))
    assert resumed.state.global_step == whole.state.global_step == 8


def test_a_kill_between_the_last_checkpoint_and_the_saved_policy_adds_no_step(model, tokenizer, tmp_path):
    """Asked to resume in the middle of an epoch at its last step, transformers would train one more."""
    whole = drift(model, tokenizer, tmp_path / "whole", max_steps=2, iterations=1)
    whole.train()
    broken = drift(model, tokenizer, tmp_path / "broken", max_steps=2, iterations=1)
    broken.pool.add(lambda folder: save_policy(model, tokenizer, folder))
    broken.pool.publish = _dies
    with pytest.raises(Killed):
        broken.train()
    resumed = drift(model, tokenizer, tmp_path / "broken", max_steps=2, iterations=1)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 2
    assert all(same(a, b) for a, b in zip(policies(whole), policies(resumed), strict=True))


def _dies():
    raise Killed


class CtrlC(TrainerCallback):
    """Sends the process a real SIGINT at the run's global step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step - 1:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("step", "done"), [(2, 0), (4, 1)], ids=["inside a stage", "at a stage's last step"])
def test_a_ctrl_c_stops_with_all_done_saved(step, done, whole_drift, model, tokenizer, tmp_path):
    broken = drift(model, tokenizer, tmp_path)
    stop = StopOnSignal()
    broken.add_callback(CtrlC(step))
    broken.add_callback(stop)
    broken.train()
    assert stop.asked
    assert broken.state.global_step == step < broken.state.max_steps
    assert len(broken.pool) == 1 + done
    assert not (tmp_path / "stages" / "001").exists()  # no sampling was begun after it
    resumed = drift(model, tokenizer, tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert all(same(a, b) for a, b in zip(policies(whole_drift), policies(resumed), strict=True))


class StopElsewhere(StopOnSignal):
    """As on a rank that no signal reached, once the other's came after the last step of the first stage."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def agreed(self):
        self.steps -= 1
        if self.steps < 0:
            self.asked = True
        return self.asked


def test_a_ctrl_c_after_a_stages_last_step_stops_the_ranks_it_did_not_reach(model, tokenizer, tmp_path):
    broken = drift(model, tokenizer, tmp_path)
    broken.add_callback(StopElsewhere(steps=4))
    broken.train()
    assert broken.state.global_step == 4 < broken.state.max_steps
    assert len(broken.pool) == 2
    assert not (tmp_path / "stages" / "001").exists()


def test_a_signal_while_the_ranks_agree_is_kept_for_the_next_step(monkeypatch):
    stop = StopOnSignal()

    def summed(asked, reduction):
        stop.asked = True  # the signal comes
        return asked

    two = SimpleNamespace(num_processes=2, device="cpu")
    monkeypatch.setattr(stopping, "PartialState", lambda: two)
    monkeypatch.setattr(stopping, "reduce", summed)
    assert not stop.agreed()
    assert stop.asked
    assert stop.agreed()


def test_a_ctrl_c_while_a_later_stage_samples_ends_at_once(whole_drift, model, tokenizer, tmp_path):
    broken = drift(model, tokenizer, tmp_path)
    broken.add_callback(StopOnSignal())
    generator, calls = broken.generator, []

    def interrupted(folder, prompts, sampling):
        calls.append(folder)
        if len(calls) == 5:  # in the second iteration's second batch
            signal.raise_signal(signal.SIGINT)
        return generator(folder, prompts, sampling)

    broken._generator = interrupted
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    assert len(lines(tmp_path / "stages" / "001" / "samples-0.jsonl")) == 3
    resumed = drift(model, tokenizer, tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert all(same(a, b) for a, b in zip(policies(whole_drift), policies(resumed), strict=True))


def test_equal_prompts_get_answers_of_their_own(model, tokenizer, tmp_path):
    trainer = drift(model, tokenizer, tmp_path, complaints=[COMPLAINTS[0]] * 9, iterations=1)
    trainer.train()
    answers = [row["chosen"] for row in lines(tmp_path / "stages" / "000" / "pairs.jsonl")]
    assert len(set(answers)) == 9


class _DiesAfter:
    def __init__(self, generator, calls):
        self.generator, self.calls = generator, calls

    def __call__(self, folder, prompts, sampling):
        self.calls -= 1
        if self.calls < 0:
            raise Killed
        return self.generator(folder, prompts, sampling)


def test_resume_wants_the_same_run(model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="nothing to resume"):
        drift(model, tokenizer, tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(Killed):
        drift(model, tokenizer, tmp_path, kill=1).train()
    with pytest.raises(ValueError, match="started with beta = 0.1, not 0.2"):
        drift(model, tokenizer, tmp_path, beta=0.2).train(resume_from_checkpoint=True)


def test_a_folder_that_does_not_say_what_it_was_started_with_is_not_resumed(model, tokenizer, tmp_path):
    with pytest.raises(Killed):
        drift(model, tokenizer, tmp_path, kill=1).train()
    path = tmp_path / "run.json"
    noted = json.loads(path.read_text(encoding="utf-8"))
    del noted["rows"]
    path.write_text(json.dumps(noted), encoding="utf-8")
    with pytest.raises(ValueError, match="does not say with which rows the run was started"):
        drift(model, tokenizer, tmp_path).train(resume_from_checkpoint=True)


def test_a_late_rank_waits_for_the_start_though_it_lies_there_already(model, tokenizer, tmp_path):
    """It leaves the barrier after the main rank has written; were it to look only then, it would skip the next one."""
    trainer = drift(model, tokenizer, tmp_path)
    waits = []

    def wait():
        waits.append(len(trainer.pool))
        if len(waits) == 1:
            trainer.pool.add(lambda folder: save_policy(model, tokenizer, folder))

    trainer.ranks = SimpleNamespace(is_main_process=False, wait_for_everyone=wait)
    trainer._open(resume=False)
    assert waits == [0, 1]


def test_a_rank_without_prompts_builds_its_engine_with_the_others(model, tokenizer, tmp_path):
    """vLLM's ranks meet in its constructor: one that stayed away would let the others wait for ever."""
    trainer, opened, waits = drift(model, tokenizer, tmp_path), [], []
    trainer._generator = EngineGenerator(tokenizer, opened.append)
    stage = Stage(0, "first", tmp_path / "stage")
    stage.folder.mkdir()

    def wait():
        waits.append(list(opened))
        if len(waits) == 2:  # meanwhile the other rank has sampled
            line = json.dumps({"row": 0, "text": "an answer"})
            (stage.folder / "samples-0.jsonl").write_text(line + "\n", encoding="utf-8")

    trainer.ranks = SimpleNamespace(
        is_main_process=False, process_index=1, num_processes=2, wait_for_everyone=wait
    )
    assert trainer.sample(stage, tmp_path / "policy", [[1, 2]]) == ["an answer"]
    assert waits == [[], [tmp_path / "policy"]]
    assert trainer.sample(stage, tmp_path / "other", [[1, 2]]) == ["an answer"]  # all there: nothing to build
    assert opened == [tmp_path / "policy"]


def test_resume_wants_the_same_rows(model, tokenizer, tmp_path):
    """Samples are kept by row number: other rows under the numbers would be paired with answers to these."""
    with pytest.raises(Killed):
        drift(model, tokenizer, tmp_path, kill=1).train()
    moved = [*COMPLAINTS[1:], COMPLAINTS[0]]
    with pytest.raises(ValueError, match="was started on other rows"):
        drift(model, tokenizer, tmp_path, complaints=moved).train(resume_from_checkpoint=True)


def test_a_kill_before_the_start_is_saved_resumes_too(model, tokenizer, tmp_path):
    broken = drift(model, tokenizer, tmp_path / "broken", iterations=1)
    broken._save_start = _dies
    with pytest.raises(Killed):
        broken.train()
    drift(model, tokenizer, tmp_path / "broken", iterations=1).train(resume_from_checkpoint=True)
    whole = drift(model, tokenizer, tmp_path / "whole", iterations=1)
    whole.train()
    resumed = drift(model, tokenizer, tmp_path / "broken", iterations=1)
    assert all(same(a, b) for a, b in zip(policies(whole), policies(resumed), strict=True))


class Remembers(TrainerCallback):
    """Weak references to the models that train, seen through the run as through a trainer."""

    def __init__(self, run):
        self.run, self.models, self.alive_at_sampling = run, [], []
        generator = run.generator

        def counting(folder, prompts, sampling):
            self.alive_at_sampling.append(sum(found() is not None for found in self.models))
            return generator(folder, prompts, sampling)

        run._generator = counting
        run.add_callback(self)

    def on_step_begin(self, args, state, control, **_):
        model = self.run.accelerator.unwrap_model(self.run.model)
        if not any(found() is model for found in self.models):
            self.models.append(weakref.ref(model))


def test_a_stage_is_forgotten_before_the_next_samples(model, tokenizer, tmp_path):
    """An engine for the next stage needs the memory; and callbacks reach the model in training by the run itself."""
    trainer = drift(model, tokenizer, tmp_path, iterations=3)
    trainer.generation_batch_size = len(COMPLAINTS)
    remembers = Remembers(trainer)
    gc.disable()  # the collector's own round might come in time by luck
    try:
        trainer.train()
    finally:
        gc.enable()
    assert len(remembers.models) == 3
    assert remembers.alive_at_sampling == [0, 0, 0]
    with pytest.raises(RuntimeError, match="no stage is training"):
        trainer.model  # noqa: B018


def test_the_engine_asked_for_is_checked_when_a_stage_has_one(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    trainer = drift(model, tokenizer, tmp_path)
    assert isinstance(trainer.accelerator, PartialState)
    check_engine(
        trainer.accelerator
    )  # a session asks before the first stage: not refused for what is not yet known
    with pytest.raises(RuntimeError, match="FSDP was asked for"):
        trainer.train()


def test_every_complaint_is_accounted_for(model, tokenizer, tmp_path):
    long = Complaint([{"role": "user", "content": "x" * 300}], "bad", "no")
    answers = {0: "RED!", 1: "", 2: "I'm sorry, green", 3: "pink"}
    complaints = [COMPLAINTS[6], *COMPLAINTS[:4], long]  # the first is held out
    trainer = drift(
        model,
        tokenizer,
        tmp_path,
        complaints=complaints,
        iterations=1,
        holdout_rows=1,
        drop_empty=True,
        drop_apologies=True,
    )
    trainer._generator = lambda folder, prompts, sampling: [answers[i] for i in _rows(prompts, tokenizer)]
    trainer.train()
    assert trainer.row_counts.rows_in == 6
    assert trainer.row_counts.trained == 1
    assert trainer.row_counts.dropped == {
        "held out": 1,
        "feedback prompt longer than max_length": 1,
        "sampled answer equals the rejected one": 1,
        "sampled answer is empty": 1,
        "sampled answer apologises": 1,
    }


def _rows(prompts, tokenizer):
    texts = [tokenizer.decode(ids) for ids in prompts]
    return [next(i for i, w in enumerate(WORDS) if f"name {w}\n" in text) for text in texts]


def test_the_release_keeps_identical_and_empty_answers(model, tokenizer, tmp_path):
    trainer = drift(model, tokenizer, tmp_path, complaints=COMPLAINTS[:2], iterations=1, compat="reference")
    trainer._generator = lambda folder, prompts, sampling: ["RED!", ""]
    trainer.train()
    assert trainer.row_counts.trained == 2
