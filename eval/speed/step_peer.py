"""One process of eval/speed/step.py: one trainer, a few optimizer steps, one line of JSON.

    python eval/speed/step_peer.py {trl|ours|check} MODEL_FOLDER CASE_AS_JSON

"check" measures no time: it hands one batch to both trainers and says how far loss and gradient lie apart.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402  # after the number of threads is set
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, ProgressCallback, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from posttrain.rewards.hooks import yields_answers  # noqa: E402
from posttrain.trainers.engines.attach import own_model_engine  # noqa: E402
from posttrain.trainers.engines.rollout_plan import RolloutPlan  # noqa: E402
from posttrain.trainers.policy import bindings  # noqa: E402

ON_GPU = torch.cuda.is_available()
WARM_UP = 1


def last_word(completions: list[str], **_: Any) -> list[str | None]:
    return [text.split()[-1] if text.split() else None for text in completions]


@yields_answers(last_word)
def varied(completions: list[str], **_: Any) -> list[float]:
    """A cheap reward that differs within nearly every group."""
    return [float(len(set(text.split())) % 7 + sum(map(ord, text[-8:])) % 5) for text in completions]


def prompts_of(case: dict[str, Any], tokenizer: Any) -> list[dict[str, Any]]:
    """Prompts of one length, as the peers' samplers draw different rows; of a real model, one prompt many times."""
    if case.get("prompt") is not None:
        turn = [{"role": "user", "content": case["prompt"]}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return [{"prompt": text}] * 64  # as text: a reward is given text by both peers then
    words = random.Random(0)
    usable = case["vocabulary"] - 1 - int(case["end_share"] * case["vocabulary"])
    texts = [
        " ".join(f"w{words.randrange(3, usable)}" for _ in range(case["prompt_tokens"])) for _ in range(64)
    ]
    assert len(tokenizer(texts[0])["input_ids"]) == case["prompt_tokens"]
    return [{"prompt": one} for one in texts]


def arguments(case: dict[str, Any], folder: str) -> dict[str, Any]:
    rows = case["prompts"] * case["group"]
    accumulation = case.get("accumulation", 1)
    return {
        "output_dir": folder,
        "use_cpu": not ON_GPU,
        "bf16": ON_GPU and case.get("bf16", False),
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "max_steps": case["steps"] + WARM_UP,
        "per_device_train_batch_size": rows // accumulation,
        "gradient_accumulation_steps": accumulation,
        "num_generations": case["group"],
        "max_completion_length": case["new_tokens"],
        "beta": case.get("beta", 0.0),
        "num_iterations": case.get("iterations", 1),
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
    }


def build(who: str, folder: str, case: dict[str, Any], out: str, **extra: Any) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = Dataset.from_list(prompts_of(case, tokenizer))
    adapter = (
        LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM") if case.get("lora") else None
    )
    shared = {"train_dataset": rows, "processing_class": tokenizer, "peft_config": adapter}
    if who == "trl":
        config = GRPOConfig(**arguments(case, out), loss_type="grpo")
        return GRPOTrainer(model=model, reward_funcs=varied, args=config, **shared)
    name = case.get("method", "GRPO")
    config = getattr(bindings, f"{name}Config")(**arguments(case, out), **extra)
    trainer = getattr(bindings, f"{name}Trainer")(model, varied, config, **shared)
    trainer.use_engine(own_model_engine(trainer), RolloutPlan())  # as a recipe does
    return trainer


class Clock(TrainerCallback):
    """CPU seconds (reward workers included) and wall seconds of each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.begun = _now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        end = _now()
        self.steps.append((end[0] - self.begun[0], end[1] - self.begun[1]))


def _now() -> tuple[float, float]:
    if ON_GPU:
        torch.cuda.synchronize()
    me = psutil.Process()
    times = [one.cpu_times() for one in (me, *me.children(recursive=True))]
    return sum(one.user + one.system for one in times), time.perf_counter()


class PeakMemory:
    """Most memory over the start: resident on a CPU, allocated on a GPU."""

    def __enter__(self) -> PeakMemory:
        self._process, self.peak, self._watching = psutil.Process(), 0, True
        self._start = self._process.memory_info().rss
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while self._watching:
            self.peak = max(self.peak, self._process.memory_info().rss)
            time.sleep(0.005)

    def __exit__(self, *_: Any) -> None:
        self._watching = False
        self._thread.join()
        if ON_GPU:
            self.peak = torch.cuda.max_memory_allocated()
        self.megabytes = (self.peak - self._start) / 2**20


def measure(who: str, folder: str, case: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as out:
        torch.manual_seed(0)
        trainer = build(who, folder, case, out)
        trainer.remove_callback(ProgressCallback)
        clock = Clock()
        trainer.add_callback(clock)
        with PeakMemory() as memory:
            trainer.train()
        counted = clock.steps[WARM_UP:]
        lengths = [log["completions/mean_length"] for log in trainer.state.log_history if "loss" in log][
            WARM_UP:
        ]
    return {
        "who": who,
        "cpu_s": statistics.median(step[0] for step in counted),
        "wall_s": statistics.median(step[1] for step in counted),
        "peak_mb": round(memory.megabytes),
        "mean_length": statistics.mean(lengths),
    }


def check(folder: str, case: dict[str, Any]) -> dict[str, Any]:
    """Loss and gradient of both trainers on one rollout of ours."""
    with tempfile.TemporaryDirectory() as out:
        torch.manual_seed(0)
        case = {**case, "method": "GRPO", "accumulation": 1}
        ours, theirs = build("ours", folder, case, out), build("trl", folder, case, out)
        inputs = next(iter(ours.get_train_dataloader()))
        ours.model.train()
        theirs.model.train()
        inputs = ours._prepare_inputs(inputs)
        found = {}
        for name, trainer in (("ours", ours), ("trl", theirs)):
            trainer.current_gradient_accumulation_steps = 1
            trainer.create_optimizer_and_scheduler(1)
            loss = trainer._compute_loss(trainer.model, inputs)
            loss.backward()
            grads = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
            found[name] = (loss.item(), torch.cat(grads))
    (mine, my_gradient), (its, its_gradient) = found["ours"], found["trl"]
    return {
        "loss_difference": abs(mine - its),
        "gradient_difference": ((my_gradient - its_gradient).abs().max() / its_gradient.abs().max()).item(),
        "layout": ours.layout.name,
        "device": "cuda" if ON_GPU else "cpu",
    }


if __name__ == "__main__":
    who, folder, case = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    print(json.dumps(check(folder, case) if who == "check" else measure(who, folder, case)), flush=True)
