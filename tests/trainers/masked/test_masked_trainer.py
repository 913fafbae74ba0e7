"""The diffusion trainer: its gradient, its backwards, resume, adapters, evaluation, memory, refusals."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from crc_reward import judged
from datasets import Dataset
from masked_helpers import LENGTH, config, fixed, model, rows, train, trainer_class, weights
from remote_double import remote_checkpoint
from torch.testing import assert_close
from transformers import BertConfig, BertForMaskedLM
from transformers.trainer_callback import TrainerCallback

from posttrain.objectives.base import StepTotals
from posttrain.objectives.bgpo import BGPO
from posttrain.objectives.masked_base import DiffusionBatch, reduced_loss
from posttrain.rollout.masked.predictor import MaskPredictor, load_mask_model
from posttrain.rollout.masked.response_canvas import Canvas, lay_canvas
from posttrain.trainers.masked.likelihood import (
    all_terms,
    draw_noise,
    from_buffer,
    pass_terms,
)
from posttrain.trainers.masked.sft import MaskedSFTConfig, MaskedSFTTrainer
from posttrain.trainers.models.load import scratch_llama
from posttrain.trainers.seam.held_back import gradients_held_back

RATE = 0.1


# The gradient


def joint_gradient(trainer, net, inputs, step):
    """Of the step's loss, all passes in one graph."""
    canvas, noise = from_buffer(inputs)
    objective = trainer.objective
    if objective.fresh_noise:
        n = objective.num_passes
        noise = noise.passes(step * n, (step + 1) * n)
        span = slice(step * n, (step + 1) * n)
    else:
        span = slice(None)
    predictor = MaskPredictor.of(net, trainer.predictor.mask_id)
    terms = torch.cat(
        [pass_terms(predictor, canvas, noise, j, objective.level) for j in range(noise.num_passes)], 1
    )
    batch = DiffusionBatch(
        terms=terms,
        old_terms=inputs["old_terms"][:, span],
        advantages=inputs["advantages"],
        mask=canvas.scored.float(),
        num_passes=objective.num_passes,
        canvas_length=LENGTH,
        ref_terms=inputs["ref_terms"][:, span],
    )
    totals = StepTotals(canvas.scored.sum().float(), torch.tensor(float(len(terms))), LENGTH)
    return torch.autograd.grad(reduced_loss(objective, batch, totals, trainer.beta), list(net.parameters()))


@pytest.mark.parametrize("method", ["BGPO", "VRPOOL", "CoupledGRPO"])
def test_both_steps_of_a_rollout_follow_the_joint_graph(method, tmp_path):
    passes = {} if method == "CoupledGRPO" else {"samples": 3, "noise": "count"}
    extra = {"num_iterations": 2, "beta": 0.05, "tail": "mask", **passes}
    before = weights_of(model())
    first, second = (train(method, tmp_path, max_steps=steps, **extra) for steps in (1, 2))
    (inputs,) = second._buffered_inputs
    after_one = model()
    after_one.load_state_dict(first.model.state_dict())
    for step, (net, start, end) in enumerate(
        [(model(), before, weights(first)), (after_one, weights(first), weights(second))]
    ):
        expected = joint_gradient(second, net, inputs, step)
        for a, b, gradient in zip(start, end, expected, strict=True):
            assert_close((a - b) / (RATE * (1 - step / 2)), gradient, rtol=2e-3, atol=2e-5)


def weights_of(net):
    return [p.detach().clone() for p in net.parameters()]


def test_off_policy_the_ratio_starts_at_one(tmp_path):
    run = train("BGPO", tmp_path, samples=4, num_iterations=2)
    first, second = [h for h in run.state.log_history if "loss" in h]
    assert first["largest_drift"] < 1e-4
    assert second["largest_drift"] > 1e-2
    assert second["bgpo/bound_gap"] > 0


# One backward a pass, gradients exchanged once a step


def test_gradients_are_exchanged_by_the_last_backward_alone(tmp_path):
    seen = []

    class Spied(fixed("BGPO")):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            backward = self.accelerator.backward

            def noted(loss, **kwargs):
                seen.append((self.accelerator.sync_gradients, float(loss.detach())))
                backward(loss, **kwargs)

            self.accelerator.backward = noted

    args = config("BGPO", tmp_path, samples=4, gradient_accumulation_steps=2, max_steps=1)
    run = Spied(model(), judged, args, rows(), processing_class=tokenizer_of())
    run.train()
    # two micro-batches of four passes
    assert [sync for sync, _ in seen] == [False] * 7 + [True]


def tokenizer_of():
    from posttrain.trainers.models.load import character_tokenizer

    return character_tokenizer()


def test_held_back_gradients_are_released_also_after_an_error():
    state = SimpleNamespace(sync=True)
    state._set_sync_gradients = lambda value: setattr(state, "sync", value)
    entered = []

    class Accelerator:
        gradient_state = state

        @property
        def sync_gradients(self):
            return state.sync

        def no_sync(self, wrapped):
            from contextlib import nullcontext

            entered.append(wrapped)
            return nullcontext()

    def fail_inside():
        with gradients_held_back(Accelerator(), "model"):
            assert state.sync is False  # what DeepSpeed reads: no optimizer step in this backward
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert state.sync is True
    assert entered == ["model"]
    state.sync = False
    with gradients_held_back(Accelerator(), "model"):
        pass
    assert state.sync is False
    assert entered == ["model"]  # an earlier micro-batch: FSDP2 would switch the exchange on again


def test_memory_for_backward_does_not_grow_with_the_passes():
    net = model()
    predictor = MaskPredictor.of(net, 4)
    ids = torch.randint(5, 60, (4, 6 + LENGTH))
    canvas = Canvas(ids, torch.ones_like(ids), torch.ones(4, LENGTH, dtype=torch.bool))
    noise = draw_noise(BGPO(samples=16), canvas, torch.arange(4), iterations=1, seed=0, step=0)
    peaks = {}
    for n in (1, 16):
        live, peak = 0, 0

        def pack(tensor):
            nonlocal live, peak
            live += tensor.numel() * tensor.element_size()
            peak = max(peak, live)
            return tensor

        for j in range(n):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                term = pass_terms(predictor, canvas, noise, j, "sequence")
            term.sum().backward()
            live = 0  # the backward has freed its graph
        peaks[n] = peak
    assert peaks[16] <= 1.05 * peaks[1]


# Noise and canvas


def test_noise_depends_on_nothing_but_seed_step_and_place():
    objective = BGPO(samples=4, noise="count")
    ids = torch.randint(5, 60, (3, 4 + LENGTH))
    scored = torch.ones(3, LENGTH, dtype=torch.bool)
    scored[1, 3:] = False
    present = torch.ones_like(ids)
    present[0, :2] = 0
    canvas = Canvas(ids, present, scored)
    noise = draw_noise(objective, canvas, torch.tensor([4, 5, 6]), iterations=1, seed=1, step=2)
    # the middle row alone, on a narrower canvas without padding
    alone = Canvas(ids[1:2, :7], present[1:2, :7], scored[1:2, :3])
    own = draw_noise(objective, alone, torch.tensor([5]), iterations=1, seed=1, step=2)
    assert torch.equal(own.masks, noise.masks[1:2, :, :3])
    assert not noise.masks[1, :, 3:].any()
    assert torch.equal(own.weights, noise.weights[1:2])
    other = draw_noise(objective, canvas, torch.tensor([4, 5, 6]), iterations=1, seed=1, step=3)
    assert not torch.equal(other.masks, noise.masks)


def test_the_three_readings_of_a_tail():
    prompt = torch.tensor([[0, 9], [8, 9]])
    prompt_mask = torch.tensor([[0, 1], [1, 1]])
    ids = torch.tensor([[5, 1, 0], [6, 7, 8]])  # 1 ends a response
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])

    def lay(tail):
        return lay_canvas(prompt, prompt_mask, ids, mask, tail=tail, length=4, mask_id=99, end_id=1)

    drop, masked, fill = lay("drop"), lay("mask"), lay("fill")
    assert drop.tokens.tolist() == [[0, 9, 5, 1, 0], [8, 9, 6, 7, 8]]
    assert drop.present.tolist() == [[0, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert drop.scored.int().tolist() == mask.tolist()
    assert masked.tokens[:, 2:].tolist() == [[5, 1, 99, 99], [6, 7, 8, 99]]
    assert masked.scored.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert fill.tokens[:, 2:].tolist() == [[5, 1, 1, 1], [6, 7, 8, 1]]
    assert fill.scored.all()
    for canvas in (masked, fill):
        assert canvas.present[:, 2:].all()
        assert canvas.prompt_length == 2


def test_a_response_that_is_left_out_is_scored_nowhere():
    mask = torch.zeros(1, 3, dtype=torch.long)
    for tail in ("drop", "mask", "fill"):
        canvas = lay_canvas(
            torch.ones(1, 2).long(), torch.ones(1, 2).long(), torch.ones(1, 3).long(), mask,
            tail=tail, length=4, mask_id=99, end_id=1,
        )  # fmt: skip
        assert not canvas.scored.any()


def test_terms_do_not_depend_on_padding_or_parts():
    predictor = MaskPredictor.of(model(), 4)
    ids = torch.randint(5, 60, (4, 4 + LENGTH))
    canvas = Canvas(ids, torch.ones_like(ids), torch.ones(4, LENGTH, dtype=torch.bool))
    noise = draw_noise(BGPO(samples=3), canvas, torch.arange(4), iterations=1, seed=0, step=0)
    whole = all_terms(predictor, canvas, noise, "sequence", rows_at_once=4)
    parts = all_terms(predictor, canvas, noise, "sequence", rows_at_once=3)
    padded = Canvas(
        torch.nn.functional.pad(ids, (5, 0)), torch.nn.functional.pad(canvas.present, (5, 0)), canvas.scored
    )
    assert_close(parts, whole)
    assert_close(all_terms(predictor, padded, noise, "sequence", rows_at_once=4), whole, rtol=1e-4, atol=1e-4)


# Whole runs


def test_resume_is_bit_equal_inside_a_window(tmp_path):
    extra = {
        "samples": 2, "steps_per_generation": 2, "num_iterations": 2, "per_device_train_batch_size": 4,
        "max_steps": 6, "sampled": True, "save_strategy": "steps", "save_steps": 1,
    }  # fmt: skip
    whole = train("BGPO", tmp_path / "whole", **extra)
    extra.pop("sampled")
    args = config("BGPO", tmp_path / "resumed", **extra)
    run = trainer_class("BGPO")(model(), judged, args, rows(), processing_class=tokenizer_of())
    run.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert run.state.global_step == 6
    for a, b in zip(weights(run), weights(whole), strict=True):
        assert torch.equal(a, b)


def test_an_adapter_trains_against_its_base(tmp_path):
    from peft import LoraConfig

    args = config("BGPO", tmp_path, samples=2, noise="count", beta=0.1, learning_rate=1.0)
    peft = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    run = fixed("BGPO")(model(), judged, args, rows(), processing_class=tokenizer_of(), peft_config=peft)
    run.train()
    logs = [h for h in run.state.log_history if "loss" in h]
    assert logs[0]["kl"] == pytest.approx(0.0, abs=1e-9)  # a fresh adapter is its base
    assert logs[1]["kl"] > 1e-6


def test_evaluation_is_greedy_repeatable_and_moves_no_training(tmp_path):
    results = []

    class Evaluated(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_evaluate = True

    def run(callbacks):
        args = config(
            "BGPO",
            tmp_path,
            samples=2,
            eval_temperature=0.0,
            num_generations_eval=1,
            per_device_eval_batch_size=8,
        )
        trainer = trainer_class("BGPO")(
            model(), judged, args, rows(), rows(8), processing_class=tokenizer_of(), callbacks=callbacks
        )
        trainer.train()
        return trainer

    plain, watched = run([]), run([Evaluated()])
    for a, b in zip(weights(plain), weights(watched), strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-7)  # the order within a micro-batch may differ, nothing else
    for _ in range(2):
        metrics = watched.evaluate()
        results.append([metrics["eval_reward"], *watched.held_out[0].completions])
    assert results[0] == results[1]


def test_an_encoder_trains_like_a_decoder(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    tokenizer = tokenizer_of()
    net = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes))
    before = weights_of(net)
    args = config("BGPO", tmp_path, samples=2, noise="count", num_iterations=2, beta=0.05)
    run = trainer_class("BGPO")(net, judged, args, rows(), processing_class=tokenizer)
    run.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, weights_of(net), strict=True))
    first, second = [h for h in run.state.log_history if "loss" in h]
    assert first["largest_drift"] < 1e-4 < second["largest_drift"]
    assert first["kl"] == pytest.approx(0.0, abs=1e-9)
    assert second["kl"] > 0


@pytest.mark.parametrize("kind", ["llada", "Dream"])
def test_a_checkpoint_with_its_own_code_trains_and_is_saved_whole(kind, tmp_path, monkeypatch):
    """Doubles in the shape of the releases: one ignores the padding mask, the other shifts its logits."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / f"{kind.lower()}_trained"
    folder.mkdir()
    tokenizer = tokenizer_of()
    options = {"ignores": True} if kind == "llada" else {"list_of_tied": True, "post_init": True}
    remote_checkpoint(folder, kind, vocabulary=len(tokenizer), **options)
    net = load_mask_model(str(folder), trust_remote_code=True, dtype="float32")
    args = config(
        "BGPO",
        tmp_path / "run",
        samples=2,
        noise="count",
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=2,
    )
    run = trainer_class("BGPO")(net, judged, args, rows(), processing_class=tokenizer)
    run.train()
    assert run.predictor.logit_shift is (kind == "Dream")
    again = load_mask_model(str(tmp_path / "run" / "checkpoint-2"), trust_remote_code=True, dtype="float32")
    assert MaskPredictor.of(again, 4).logit_shift is (kind == "Dream")
    start = load_mask_model(str(folder), trust_remote_code=True, dtype="float32").state_dict()
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert not torch.equal(start["head.weight"], net.state_dict()["head.weight"])


# Refusals


def test_a_causal_model_is_refused(tmp_path):
    causal = scratch_llama(tokenizer_of(), hidden_size=32, layers=2, heads=2, max_positions=64)
    with pytest.raises(ValueError, match="attends to the left only"):
        trainer_class("BGPO")(
            causal, judged, config("BGPO", tmp_path), rows(), processing_class=tokenizer_of()
        )


def test_a_causal_model_whose_weights_come_later_is_refused_before_its_first_step(tmp_path, monkeypatch):
    # as under ZeRO-3, where no rank holds the weights when the trainer is made
    monkeypatch.setattr("posttrain.trainers.masked.masked_rollouts.whole_on_this_rank", lambda: False)
    causal = scratch_llama(tokenizer_of(), hidden_size=32, layers=2, heads=2, max_positions=64)
    args = config("BGPO", tmp_path, samples=2)
    run = trainer_class("BGPO")(causal, judged, args, rows(), processing_class=tokenizer_of())
    with pytest.raises(ValueError, match="attends to the left only"):
        run.train()
    assert run.state.global_step == 0


def test_fine_tuning_refuses_it_in_its_first_loss(tmp_path, monkeypatch):
    monkeypatch.setattr("posttrain.trainers.masked.sft.whole_on_this_rank", lambda: False)
    causal = scratch_llama(tokenizer_of(), hidden_size=32, layers=2, heads=2, max_positions=64)
    args = MaskedSFTConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        max_steps=1,
    )
    pairs = Dataset.from_list([{"prompt": f"{i}+1=", "completion": str(i + 1)} for i in range(8)])
    run = MaskedSFTTrainer(causal, args, pairs, processing_class=tokenizer_of())
    with pytest.raises(ValueError, match="attends to the left only"):
        run.train()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"top_p": 0.9}, "top_p has no effect on a diffusion method"),
        ({"entropy_coef": 0.1}, "entropy_coef has no effect"),
        ({"record_steps": [1]}, "posttrain replay"),
        ({"block_length": 4}, "does not divide max_new_tokens 6"),
    ],
)
def test_options_that_would_do_nothing_are_refused(option, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer_class("BGPO")(
            model(), judged, config("BGPO", tmp_path, **option), rows(), processing_class=tokenizer_of()
        )


def test_the_users_model_is_not_copied_or_switched(tmp_path):
    net = model()
    own = copy.deepcopy(net.state_dict())
    args = config("BGPO", tmp_path, samples=2, max_steps=1, learning_rate=0.0)
    run = fixed("BGPO")(net, judged, args, rows(), processing_class=tokenizer_of())
    run.train()
    for name, value in net.state_dict().items():
        assert torch.equal(value, own[name])
