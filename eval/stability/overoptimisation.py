"""Does a policy learn the task or the reward model's faults? Gold and proxy against the KL to the start, at toy size.

    OMP_NUM_THREADS=1 python eval/stability/overoptimisation.py [--seeds 0 1 2] [--arms NAME ...]
    python eval/stability/overoptimisation.py --table            # from the stored runs; report.py draws them
    python eval/stability/overoptimisation.py --prepare          # starts, pairs and reward models alone
    python eval/stability/overoptimisation.py --one ARM --seed N --out DIR     # one run into a file of its own
    python eval/stability/overoptimisation.py --collect DIR                    # such files into the store

The gold reward is known: whether digits are sorted right (the demo's task). Each seed has two SFT models, tuned from
the demo's with orders of their own; the first is the start of all arms, and the average of both SALSA's reference.
Pairs are two samples of the start each, the right one preferred, some labels turned round; where both are right or both
wrong the shorter is preferred, as a hurried person might. A reward model learns from them; policies learn from it, and
the methods of pairs from the same pairs. Now and then each policy answers held-out problems at temperature 1: gold,
proxy (the reward model's score, the start's mean taken away, over the start's standard deviation) and KL to the start,
exact over the vocabulary at each sampled token, summed over an answer. Best of n samples of the start, by the reward
model, has KL log n - (n - 1) / n in the same nats.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]

import overopt_table  # noqa: E402  # after the path and the threads are set
import store  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

from posttrain.data.sort import Sort  # noqa: E402
from posttrain.observe.progress import ProgressView  # noqa: E402
from posttrain.recipe import load_recipe  # noqa: E402
from posttrain.rewards.model_reward import ModelReward  # noqa: E402
from posttrain.rollout.base import Sampling  # noqa: E402
from posttrain.rollout.transformers_engine import TransformersEngine  # noqa: E402
from posttrain.run.run_folder import CHECKPOINTS, opened, replaced  # noqa: E402
from posttrain.run.session import Session  # noqa: E402
from posttrain.run.train import run as run_recipe  # noqa: E402
from posttrain.trainers.models.load import load_pretrained  # noqa: E402
from posttrain.trainers.models.reward_scorer import RewardScorer  # noqa: E402

BASE = ROOT / "runs" / "demo-sft" / "model"
MADE = ROOT / "runs" / "overoptimisation"
NEW = 9
PAIRS, NOISE = 400, 0.2
SAMPLES = (1, 2, 4, 8, 16, 32, 64)
COMMON = {
    "lr_scheduler_type": "constant", "optim": "adamw_torch", "gradient_checkpointing": False, "use_cpu": True,
}  # fmt: skip
CRITIC = {"critic_warmup": 4, "critic_learning_rate": 1.0e-3}
RATE, PAIR_RATE = 5.0e-5, 1.0e-4
LOOKS = (2, 4, 6, 8, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120)
"""Steps; close together where the KL begins to grow."""
FREE, HELD, PAPERS = 1.0e-3, 0.3, 0.05
"""KL coefficients: one that hardly holds the policy, one that does, and the one of the PPO-max paper."""


@dataclass(frozen=True)
class Arm:
    """A line of the lab. `soup` puts the average of both SFT models in the place of the start as the reference;
    `critic` starts the critic from the reward model, as PPO-max does; `pairs` learns from the pairs themselves."""

    method: str
    beta: float
    objective: dict[str, Any] = field(default_factory=dict)
    soup: bool = False
    critic: bool = False
    pairs: bool = False


ARMS = {
    "GRPO": Arm("grpo", FREE),
    "PPO": Arm("ppo", FREE, CRITIC),
    "PPO-max": Arm("ppo_max", FREE, CRITIC, critic=True),
    "DPO": Arm("dpo", 0.1, pairs=True),
    "RPO 0.5": Arm("rpo", 0.1, {"eta": 0.5}, pairs=True),
    "PPO, beta 0.3": Arm("ppo", HELD, CRITIC),
    "SALSA on PPO, beta 0.3": Arm("ppo", HELD, CRITIC, soup=True),
    "PPO-max, beta 0.05": Arm("ppo_max", PAPERS, CRITIC, critic=True),
    "GRPO, beta 0.3": Arm("grpo", HELD),
    "SALSA on GRPO, beta 0.3": Arm("grpo", HELD, soup=True),
    "RPO 0.005": Arm("rpo", 0.1, {"eta": 0.005}, pairs=True),
    "RPO 2": Arm("rpo", 0.1, {"eta": 2.0}, pairs=True),
}
"""In the order of importance; a number behind RPO is its eta, 0.005 the paper's."""
BEST_OF_N = "best of n"


# What each seed starts from


def made(seed: int, what: str) -> Path:
    return MADE / f"seed{seed}" / what


def trained(recipe: dict[str, Any], folder: Path, name: str) -> None:
    """Runs it; its model is then folder/name/model."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    steps = recipe["train"]["max_steps"]
    output = {"name": name, "dir": str(folder), "save_steps": steps, "overwrite": True}
    path.write_text(yaml.safe_dump({**recipe, "output": output}))
    if run_recipe(load_recipe(str(path))) != 0:
        sys.exit(f"{path} did not finish")


def prepare(seed: int) -> None:
    """Two SFT models, pairs of the first one's samples and a reward model of them, where they are missing. Of several
    processes one makes them."""
    MADE.mkdir(parents=True, exist_ok=True)
    with open(MADE / f".lock{seed}", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _prepare(seed)


def _prepare(seed: int) -> None:
    for which in (0, 1):
        if not made(seed, f"sft{which}/model").is_dir():
            if not BASE.is_dir():
                run_recipe(load_recipe(str(ROOT / "recipes" / "demo" / "sft.yaml")))
            recipe = {
                "method": "sft", "model": {"path": str(BASE)},
                "data": {"name": "sort", "args": {"size": 4096, "demonstrations": 4, "teacher_accuracy": 0.4}},
                "train": {**COMMON, "max_steps": 40, "max_length": 32, "per_device_train_batch_size": 128,
                          "learning_rate": 5.0e-4, "seed": 1 + 2 * seed + which},
            }  # fmt: skip
            trained(recipe, made(seed, ""), f"sft{which}")
    if not made(seed, "proxy/model").is_dir():
        file = made(seed, "pairs.jsonl")
        file.write_text("".join(json.dumps(row) + "\n" for row in noisy_pairs(seed)))
        recipe = {
            "method": "reward_model", "model": {"path": str(made(seed, "sft0/model"))}, "data": {"path": str(file)},
            "train": {**COMMON, "max_steps": 60, "max_length": 32, "per_device_train_batch_size": 64,
                      "learning_rate": 3.0e-4, "seed": seed},
        }  # fmt: skip
        trained(recipe, made(seed, ""), "proxy")


def sampled(model: Any, tokenizer: Any, prompts: list[str], each: int, seed: int) -> list[list[list[int]]]:
    """Tokens of `each` answers to each prompt, at temperature 1; the end token is among them."""
    engine = TransformersEngine.of(model.eval(), pad_token_id=tokenizer.pad_token_id, max_rows=1024)
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    sampling = Sampling(
        n=each, max_new_tokens=NEW, temperature=1.0, seed=seed, stop_token_ids=(tokenizer.eos_token_id,)
    )
    found = [one.token_ids for one in engine.generate(ids, sampling)]
    return [[list(ids) for ids in found[i * each : (i + 1) * each]] for i in range(len(prompts))]


def noisy_pairs(seed: int, count: int = PAIRS, noise: float = NOISE) -> list[dict[str, str]]:
    generator = torch.Generator().manual_seed(seed)
    model, tokenizer = load_pretrained(str(made(seed, "sft0/model")), dtype="float32")
    rows = list(Sort(size=count, seed=seed).rows("train", completions=False))
    drawn = sampled(model, tokenizer, [row["prompt"] for row in rows], 2, seed)
    pairs = []
    for row, both in zip(rows, drawn, strict=True):
        one, other = (tokenizer.decode(ids, skip_special_tokens=True) for ids in both)
        right = (one == row["answer"], other == row["answer"])
        first = right[0] if right[0] != right[1] else len(one) <= len(other)
        if torch.rand((), generator=generator) < noise:
            first = not first
        chosen, rejected = (one, other) if first else (other, one)
        if one != other and chosen and rejected:
            pairs.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected})
    return pairs


# What is measured


class Probe(TrainerCallback):
    """Gold, proxy, KL and length of a policy on held-out problems, every few steps; no part of what it learns from."""

    def __init__(self, seed: int, steps: set[int], problems: int = 128, each: int = 4) -> None:
        self.seed, self.steps, self.each = seed, steps, each
        self.start, self.tokenizer = load_pretrained(str(made(seed, "sft0/model")), dtype="float32")
        self.start.eval().requires_grad_(False)
        self.scorer = RewardScorer(ModelReward(str(made(seed, "proxy/model")), batch_size=512), "cpu")
        self.rows = list(Sort(held_out=problems).rows("test", completions=False))
        self.found: list[dict[str, float]] = []
        self.seconds = 0.0
        self.keep: Any = lambda: None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.look(model, 0)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step in self.steps:
            self.look(model, state.global_step)

    def look(self, model: Any, step: int) -> None:
        began, training = time.perf_counter(), model.training
        self.found.append({"step": step, **self.measured(model)})
        model.train(training)
        self.seconds += time.perf_counter() - began
        self.keep()

    @torch.no_grad()
    def measured(self, model: Any) -> dict[str, float]:
        prompts = [row["prompt"] for row in self.rows]
        answers = sampled(model, self.tokenizer, prompts, self.each, 7_000 + self.seed)
        flat = [(row, ids) for row, several in zip(self.rows, answers, strict=True) for ids in several]
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for _, ids in flat]
        rows = [[*self.tokenizer(row["prompt"])["input_ids"], *ids] for row, ids in flat]
        return {
            "gold": statistics.fmean(
                text == row["answer"] for (row, _), text in zip(flat, texts, strict=True)
            ),
            "proxy": statistics.fmean(self.scorer.score([row["prompt"] for row, _ in flat], texts)),
            "kl": self.kl(model, rows, [len(ids) for _, ids in flat]),
            "length": statistics.fmean(len(ids) for _, ids in flat),
        }

    def kl(self, model: Any, rows: list[list[int]], lengths: list[int]) -> float:
        """Nats per answer: the exact KL of the next token at each place of a sampled answer, summed; their mean."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        scored = torch.zeros(len(rows), width - 1)
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            ids[i, : len(row)] = torch.tensor(row)
            scored[i, len(row) - length - 1 : len(row) - 1] = 1.0
        policy, start = (
            one(input_ids=ids).logits[:, :-1].double().log_softmax(-1) for one in (model, self.start)
        )
        return float((((policy.exp() * (policy - start)).sum(-1)) * scored).sum() / len(rows))


def best_of_n(seed: int, problems: int = 128) -> dict[str, Any]:
    """The start's mean and spread under the proxy, and the best of n of its samples."""
    model, tokenizer = load_pretrained(str(made(seed, "sft0/model")), dtype="float32")
    scorer = RewardScorer(ModelReward(str(made(seed, "proxy/model")), batch_size=512), "cpu")
    rows = list(Sort(held_out=problems).rows("test", completions=False))
    drawn = sampled(model, tokenizer, [row["prompt"] for row in rows], max(SAMPLES), 1000 + seed)
    texts = [[tokenizer.decode(ids, skip_special_tokens=True) for ids in several] for several in drawn]
    scores = [scorer.score([row["prompt"]] * len(own), own) for row, own in zip(rows, texts, strict=True)]
    curve = []
    for n in SAMPLES:
        proxies, golds = [], []
        for row, own, values in zip(rows, texts, scores, strict=True):
            for first in range(0, len(own), n):
                best = max(range(first, first + n), key=values.__getitem__)
                proxies.append(values[best])
                golds.append(float(own[best] == row["answer"]))
        curve.append(
            {
                "n": n,
                "kl": math.log(n) - (n - 1) / n,
                "proxy": statistics.fmean(proxies),
                "gold": statistics.fmean(golds),
            }
        )
    flat = [value for values in scores for value in values]
    return {"curve": curve, "start": {"mean": statistics.fmean(flat), "std": statistics.stdev(flat)}}


# One run


def recipe_of(arm: Arm, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    proxy = str(made(seed, "proxy/model"))
    recipe: dict[str, Any] = {
        "method": arm.method, "model": {"path": str(made(seed, "sft0/model"))}, "objective": dict(arm.objective),
        "train": {**COMMON, "max_steps": steps, "per_device_train_batch_size": 64,
                  "learning_rate": PAIR_RATE if arm.pairs else RATE, "beta": arm.beta, "seed": seed},
        "output": {"name": "run", "dir": str(folder), "save_steps": steps},
    }  # fmt: skip
    if arm.pairs:
        recipe["data"] = {"path": str(made(seed, "pairs.jsonl"))}
        recipe["train"]["max_length"] = 32
        return recipe
    recipe["data"] = {"name": "sort"}
    recipe["rewards"] = [{"model": proxy, "label": "proxy"}]
    recipe["rollout"] = {"group_size": 8, "max_new_tokens": NEW}
    recipe["train"]["steps_per_generation"] = 2
    if arm.critic:
        recipe["objective"]["critic_model"] = proxy
    if arm.soup:
        recipe["method"] = "salsa"
        recipe["objective"] = {
            "others": [str(made(seed, "sft1/model"))], "weights": [0.5, 0.5], "kl_to_start": False,
            "objective": arm.method, "objective_settings": recipe["objective"],
        }  # fmt: skip
    return recipe


def ran(name: str, seed: int, steps: int, out: Path | None) -> dict[str, Any]:
    """The run's curve; with `out` it is on disk after each look, so that a run that is cut leaves what it had."""
    begun = time.perf_counter()
    found: dict[str, Any] = {
        "regime": "runs", "name": f"{name}--seed{seed}", "arm": name, "seed": seed,
        "date": datetime.now(UTC).date().isoformat(), "hardware": f"{os.cpu_count()} CPU cores, one thread",
        "pairs": PAIRS, "noise": NOISE,
    }  # fmt: skip

    def keep() -> None:
        found["seconds"] = round(time.perf_counter() - begun, 1)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            aside = file_of(out, name, seed).with_suffix(".tmp")
            aside.write_text(json.dumps(found) + "\n")
            aside.replace(file_of(out, name, seed))

    if name == BEST_OF_N:
        found |= {"steps": 0, **best_of_n(seed)}
        keep()
        return found
    probe = Probe(seed, {*(step for step in LOOKS if step < steps), steps})
    found |= {"steps": steps, "beta": ARMS[name].beta, "curve": probe.found}
    probe.keep = keep
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe_of(ARMS[name], seed, steps, Path(folder))))
        recipe = load_recipe(str(path))
        with opened(recipe, None) as start, ProgressView("run", enabled=False) as view:
            with replaced(start.run_dir):
                trainer = recipe.spec.load_trainer().from_recipe(
                    recipe, output_dir=str(start.run_dir / CHECKPOINTS)
                )
                trainer.add_callback(probe)
                Session(recipe, trainer, start.run_dir, view).begin(start.compared)
            trainer.train()
    found["probe_seconds"] = round(probe.seconds, 1)
    keep()
    return found


def whole(run: dict[str, Any]) -> bool:
    return run["arm"] == BEST_OF_N or run["curve"][-1]["step"] == run["steps"]


def collect(paths: Iterable[Path]) -> None:
    """Runs in files of their own into the store; says which are cut, and leaves them out."""
    runs = [json.loads(path.read_text()) for path in sorted(paths)]
    for run in runs:
        if not whole(run):
            print(f"{run['name']}: cut at step {run['curve'][-1]['step']} of {run['steps']}; not stored")
    store.add([run for run in runs if whole(run)], overopt_table.FOLDER)


def file_of(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name}--seed{seed}.json".replace(" ", "_")


def in_processes(jobs: list[tuple[str, int]], args: argparse.Namespace, folder: Path) -> None:
    """`--jobs` runs at a time, each in a process of this script."""
    waiting, running = list(jobs), {}
    while waiting or running:
        while waiting and len(running) < args.jobs:
            name, seed = waiting.pop(0)
            command = [sys.executable, __file__, "--one", name, "--seed", str(seed), "--out", str(folder)]
            command += ["--steps", str(args.steps)]
            running[subprocess.Popen(command, stdout=subprocess.DEVNULL)] = name, seed
        for process in [one for one in running if one.poll() is not None]:
            name, seed = running.pop(process)
            ended = (
                "done" if process.returncode == 0 else f"ended with {process.returncode}; nothing is stored"
            )
            print(f"{name} seed {seed}: {ended}", flush=True)
            if process.returncode == 0:
                collect([file_of(folder, name, seed)])
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [BEST_OF_N, *ARMS]
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=names, default=names)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--one", choices=names)
    parser.add_argument("--seed", type=int, default=0, help="of --one")
    parser.add_argument("--out", type=Path, help="of --one")
    parser.add_argument("--collect", type=Path, metavar="DIR")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        prepare(args.seed)
        ran(args.one, args.seed, args.steps, args.out)
        return
    if args.collect:
        collect(args.collect.glob("*.json"))
    elif not args.table:
        for seed in args.seeds:
            prepare(seed)
        if args.prepare:
            return
        stored = store.read("runs", overopt_table.FOLDER)
        jobs = [(name, seed) for name in args.arms for seed in args.seeds]
        with tempfile.TemporaryDirectory() as folder:
            in_processes([job for job in jobs if f"{job[0]}--seed{job[1]}" not in stored], args, Path(folder))
    print(f"{overopt_table.table(names)}\n\n{overopt_table.matched(names)}")


if __name__ == "__main__":
    main()
