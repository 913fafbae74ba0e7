"""Every method under every engine, as `posttrain train` runs it: two processes against one, and a resume in the middle.

    python eval/faults/engines.py [--methods grpo rpo ...] [--engines ddp zero1 ...] [--weights full lora]
                                  [--changes] [--table FILE]

A cell is four steps in two processes of two micro-batches, started with the user's file in
launch/accelerate (its bfloat16 aside), and the same run continued from step 3. "apart" is the largest distance of a
weight from where one process with the whole batch in one micro-batch brought it, beside the farthest that a weight
went; "resumed" says whether the continued run ends with the same weights bit for bit. `--changes` continues each
engine's checkpoint under another one, and with one process: both are refused before anything is trained.

On a CPU accelerate shards only with the doors that tests use (tests/support/sharded_cpu.py); each process looks at
what really wrapped the model.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
ENGINES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
WRAPPED = {"ddp": "DistributedDataParallel", "fsdp2": "FSDP"}
"""How the name of what wraps the model begins; DeepSpeed's stages say their own names."""
STEPS, SAVED = 4, 3
LIMIT_S = 600
SMOKE = ROOT / "recipes" / "smoke"

STARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sorted": ("../demo/sft.yaml", {"model.scratch.hidden_size": 32}),
    "sorted2": ("../demo/sft.yaml", {"model.scratch.hidden_size": 32, "train.seed": 1, "data.args.seed": 1}),
    "calm": ("sft_calm.yaml", {"model.scratch.hidden_size": 32}),
    "masked": ("mdlm_countdown.yaml", {"model.scratch.hidden_size": 32}),
}
"""Models that the runs begin with: recipe, changes. Trained for some steps only."""


@dataclass(frozen=True)
class Case:
    """recipe: under recipes/smoke; start: one of STARTS; rows: of one optimizer step; changes: KEY -> value."""

    recipe: str
    start: str
    rows: int
    changes: dict[str, Any] = field(default_factory=dict)


_POLICY = {
    "rewards": '[{name: "{folder}/reward.py:even_digits"}]',
    "train.steps_per_generation": "null",
    "train.num_iterations": 2,
    "data.eval": "null",
}
_GROUPS = {**_POLICY, "rollout": "{group_size: 4, max_new_tokens: 9}"}
METHODS = {
    **{
        name: Case(f"{name}_sort.yaml", "sorted", 16, _GROUPS)
        for name in ("grpo", "bapo", "bnpo", "copo", "capo")
    },
    "salsa": Case(
        "salsa_sort.yaml", "sorted", 16, {**_GROUPS, "objective.others": "[{folder}/runs/sorted2/model]"}
    ),
    "rpo": Case("rpo_calm.yaml", "calm", 8),
    "drift": Case(
        "drift_calm.yaml",
        "calm",
        8,
        # the NLL beside it is a mean over the tokens of a micro-batch, as published: it knows how a step is split
        {"objective": "{iterations: 2, nll_weight: 0.0}", "train.num_train_epochs": "null"},
    ),
    "seppo": Case("seppo_calm.yaml", "calm", 8, {"objective": "{rounds: 2, steps_per_round: 2}"}),
    "bgpo": Case(
        "bgpo_countdown.yaml",
        "masked",
        16,
        {**_POLICY, "rollout.group_size": 4, "objective.samples": 4, "train.eval_steps": "null"},
    ),
}
COMMON: dict[str, Any] = {
    # AdamW with an epsilon above every gradient is SGD with momentum, and has a state that a resume must bring back;
    # with the usual one it would turn a rounding difference into a step of full size
    "train.optim": "adamw_torch",
    "train.adam_epsilon": 0.1,
    "train.weight_decay": 0.0,
    "train.learning_rate": 0.05,
    "train.max_grad_norm": 0.0,
    "train.max_steps": STEPS,
    "output.report_to": "[]",
    "output.overwrite": "false",
    "output.save_steps": SAVED,
}
LORA = {"model.peft": "{r: 4, alpha: 8, target_modules: all-linear}"}
REWARD = """
from posttrain.rewards.hooks import yields_answers

@yields_answers(list)
def even_digits(completions, **_):
    return [sum(letter in "02468" for letter in text) / 8 for text in completions]
"""


def rank(kind: str, out: str, words: list[str]) -> int:
    """One process of a run: posttrain's own command line; the first leaves its weights and engine in `out`."""
    import sharded_cpu
    import torch
    from transformers import Trainer

    from posttrain.cli import main

    if kind not in ("one", "ddp"):
        sharded_cpu.enable("fsdp" if kind == "fsdp2" else "deepspeed")
    train = Trainer.train
    before: list[Any] = []

    def trained(self: Any, *arguments: Any, **named: Any) -> Any:
        if kind == "one" and not before:  # of a run in stages, the first stage's
            before.extend(p.detach().clone() for p in self.model.parameters())
        ended = train(self, *arguments, **named)
        weights = sharded_cpu.whole_weights(self)
        if self.accelerator.is_main_process:
            torch.save({"weights": weights, "before": before, "engine": sharded_cpu.engine_of(self)}, out)
        return ended

    Trainer.train = trained  # type: ignore[method-assign]  # for this process only
    return main(words)


class Runs:
    """The folder of all runs, and the models that they begin with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "reward.py").write_text(REWARD)
        self._whole: dict[tuple[str, str], list[Any]] = {}

    def make(self, start: str) -> None:
        """A start model, once: some steps of supervised fine-tuning."""
        if (self.folder / "runs" / start / "model").is_dir():
            return
        recipe, changes = STARTS[start]
        changes = {**changes, "train.max_steps": 60, "output.name": start, "output.report_to": "[]"}
        said = self._run("one", self._words(SMOKE / recipe, changes), self.folder / "start.pt")
        if said:
            raise RuntimeError(f"{start}: {said}")

    def begin(self, method: str, weights: str, kind: str, *, name: str, more: Sequence[str] = ()) -> str:
        """Trains; "" or why it did not run. `more`: words of the command line, of a resume."""
        case = METHODS[method]
        self.make(case.start)
        for other in ("sorted2",) if method == "salsa" else ():
            self.make(other)
        rows = {"train.per_device_train_batch_size": case.rows, "train.gradient_accumulation_steps": 1}
        if kind != "one":
            rows = {
                "train.per_device_train_batch_size": case.rows // 4,
                "train.gradient_accumulation_steps": 2,
            }
        changes = {**COMMON, **case.changes, **rows, "output.name": name}
        changes |= {
            "model.path": str(self.folder / "runs" / case.start / "model"),
            "train.use_cpu": kind in ("one", "ddp"),
        }
        words = self._words(SMOKE / case.recipe, {**changes, **(LORA if weights == "lora" else {})})
        return self._run(kind, [*words, *more], self.result(name))

    def result(self, name: str) -> Path:
        return self.folder / f"{name}.pt"

    def whole(self, method: str, weights: str) -> list[Any]:
        """What one process ends with."""
        import torch

        if (method, weights) not in self._whole:
            name = f"{method}-{weights}-one"
            said = self.begin(method, weights, "one", name=name)
            if said:
                raise RuntimeError(f"{name}: {said}")
            self._whole[method, weights] = torch.load(self.result(name), weights_only=True)["weights"]
        return self._whole[method, weights]

    def cell(self, method: str, weights: str, kind: str) -> str:
        """A row of the table."""
        import torch

        head = f"| {method} | {weights} | {kind} |"
        try:
            whole = self.whole(method, weights)
        except RuntimeError as error:
            return f"{head} one process did not run: {error} | | |"
        name = f"{method}-{weights}-{kind}"
        said = self.begin(method, weights, kind, name=name)
        if said:
            return f"{head} {said} | | |"
        found = torch.load(self.result(name), weights_only=True)
        wanted = WRAPPED.get(kind, kind)
        if not found["engine"].startswith(wanted):
            return f"{head} ran under {found['engine']} | | |"
        apart = _apart(found["weights"], whole)
        again = self.continued(name, method, weights, kind)
        return f"{head} {apart:.1e} | {self.moved(method, weights):.1e} | {again} |"

    def moved(self, method: str, weights: str) -> float:
        """How far one process took the weight that went farthest."""
        import torch

        before = torch.load(self.result(f"{method}-{weights}-one"), weights_only=True)["before"]
        return _apart(self.whole(method, weights), before)

    def continued(self, name: str, method: str, weights: str, kind: str, under: str | None = None) -> str:
        """The run from its checkpoint inside, in a copy of its folder: "equal", or what it said."""
        import torch

        copy = f"{name}-again-{under or kind}"
        folder = self.folder / "runs" / copy
        shutil.copytree(self.folder / "runs" / name, folder)
        shutil.rmtree(folder / "model", ignore_errors=True)
        for checkpoint in (folder / "checkpoints").glob("checkpoint-*"):
            if checkpoint.name != f"checkpoint-{SAVED}":
                shutil.rmtree(checkpoint)
        policies = sorted((folder / "checkpoints" / "policies").glob("[0-9]*"))
        if policies:  # of a run in stages: as it stood when the last but one was done
            shutil.rmtree(policies[-1])
            shutil.rmtree(sorted((folder / "checkpoints" / "stages").glob("[0-9]*"))[-1])
        said = self.begin(method, weights, under or kind, name=copy, more=("--resume",))
        if said or not self.result(copy).exists():
            return said or "nothing was left to train"
        a, b = (torch.load(self.result(n), weights_only=True)["weights"] for n in (name, copy))
        return "equal" if _apart(a, b) == 0 else f"apart by {_apart(a, b):.1e}"

    def _words(self, recipe: Path, changes: dict[str, Any]) -> list[str]:
        words = ["train", str(recipe), "--set", f"output.dir={self.folder / 'runs'}"]
        for key, value in changes.items():
            value = str(value).lower() if isinstance(value, bool) else str(value)
            words += ["--set", f"{key}={value.replace('{folder}', str(self.folder))}"]
        return words

    def _run(self, kind: str, words: list[str], out: Path) -> str:
        """ "" or the line that says why it ended."""
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        launcher: list[str] = []
        if kind == "ddp":
            env["ACCELERATE_USE_CPU"] = "true"
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        elif kind != "one":
            env |= {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
            launcher = ["-m", "accelerate.commands.launch", "--config_file", str(self._config(kind))]
            launcher += ["--num_processes", "2", "--mixed_precision", "no"]
        command = [sys.executable, *launcher, __file__, "--rank", kind, str(out), *words]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT_S)
        if done.returncode == 0:
            return ""
        (out.with_suffix(".log")).write_text(done.stdout + done.stderr)
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        why = [line for line in lines if line.startswith((words[1], "--set"))]  # a refusal, in our words
        why += [line for line in lines if "Error: " in line and "ChildFailedError" not in line]
        return (why or lines or ["no word"])[0].replace(str(self.folder), "DIR")[:300]

    def _config(self, kind: str) -> Path:
        """The user's file; ZeRO-1 is ZeRO-2's with its stage."""
        if kind != "zero1":
            return ROOT / "launch" / "accelerate" / f"{kind}.yaml"
        made = self.folder / "zero1.yaml"
        made.write_text(
            (ROOT / "launch/accelerate/zero2.yaml").read_text().replace("zero_stage: 2", "zero_stage: 1")
        )
        return made


def _apart(some: list[Any], others: list[Any]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(some, others, strict=True))


def changes(runs: Runs, engines: Sequence[str]) -> list[str]:
    """Each engine's checkpoint continued under the others, and with one process."""
    lines = ["| written under | continued under | |", "|---|---|---|"]
    for kind in engines:
        name = f"changed-{kind}"
        said = runs.begin("grpo", "full", kind, name=name)
        for under in ("one", *engines):
            if under != kind:
                lines.append(
                    f"| {kind} | {under} | {said or runs.continued(name, 'grpo', 'full', kind, under)} |"
                )
                print(lines[-1], file=sys.stderr, flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--weights", nargs="+", choices=("full", "lora"), default=["full", "lora"])
    parser.add_argument("--changes", action="store_true")
    parser.add_argument("--table", type=Path, help="also write what is printed here")
    parser.add_argument("--folder", type=Path, help="keep the runs here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="posttrain-engines-") as name:
        folder = Path(name) if args.folder is None else args.folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        runs = Runs(folder)
        lines = ["| method | weights | engine | apart | moved | resumed |", "|---|---|---|---|---|---|"]
        print("\n".join(lines), flush=True)
        for method in args.methods:
            for weights in args.weights:
                for kind in args.engines:
                    lines.append(runs.cell(method, weights, kind))
                    print(lines[-1], flush=True)
        if args.changes:
            more = changes(runs, args.engines)
            print("\n".join(["", *more]))
            lines += ["", *more]
    if args.table is not None:
        args.table.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        sys.exit(rank(sys.argv[2], sys.argv[3], sys.argv[4:]))
    main()
