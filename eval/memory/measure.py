"""Memory that runs take, against what `posttrain plan` says they will.

    python eval/memory/measure.py [--device cuda] [--cases sft_small grpo_135m_lora ...] [--steps 2]

Every case is a recipe that `posttrain train` runs for a few steps in a process of its own, with a random Llama-shaped
model, a tokenizer and data written to a temporary folder: no network. The estimate is `posttrain plan`'s for the same
recipe. One JSON line a case on standard output, a table on standard error at the end; all figures are bytes.

On a CPU, `measured` is the trainer's VmHWM (its highest resident size) and, beside it, those of the processes that the
run started (`workers`); `libraries` is the trainer's resident size once everything is imported and nothing built. On
CUDA, `measured` is torch.cuda.max_memory_allocated, which the estimate calls `tensors`; `reserved` is what the
allocator took for it, and `used` what the device lacked at the end beside what it lacked before (as nvidia-smi counts:
with the context). `phases` are the same peaks by what the run was doing. With --device cuda, cases that would start
after --limit-s seconds are left out and named.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
POLL_S = 0.1
REWARD = '''"""A reward that differs within a group, so that there is something to learn."""


def spread(completions, **_):
    return [float(i % 3) for i, _ in enumerate(completions)]
'''


@dataclass(frozen=True)
class ModelShape:
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = True


SHAPES = {
    "small": ModelShape(256, 688, 8, 4, 2, 4096, tied=False),
    "mid": ModelShape(384, 1024, 12, 6, 2, 16384),
    "135m": ModelShape(576, 1536, 30, 9, 3, 49152),  # SmolLM2-135M's
    "360m": ModelShape(960, 2560, 32, 15, 5, 49152),  # SmolLM2-360M's
    "500m": ModelShape(896, 4864, 24, 14, 2, 151936),  # Qwen2.5-0.5B's
}


@dataclass(frozen=True)
class Case:
    """`prompt` and `answer` are tokens of every row; sections are merged into the recipe."""

    shape: str
    method: str
    prompt: int
    answer: int
    rows: int  # per_device_train_batch_size
    device: str = "both"  # "cpu", "cuda": where it is worth its time
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    rollout: dict[str, Any] = field(default_factory=dict)


LORA: dict[str, Any] = {"peft": {"r": 16}}
KEPT = {"gradient_checkpointing": False}
BF16 = {"bf16": True}
CASES: dict[str, Case] = {
    "sft_small": Case("small", "sft", 64, 192, 8, "cpu", train=KEPT),
    "sft_mid_checkpointed": Case("mid", "sft", 64, 448, 8, "cpu"),
    "sft_135m_lora": Case("135m", "sft", 64, 192, 4, "cpu", model=LORA, train=KEPT),
    "sft_135m": Case("135m", "sft", 64, 64, 2, "cpu"),
    "grpo_small": Case("small", "grpo", 32, 128, 8, "cpu", train=KEPT),
    "grpo_mid_lora": Case("mid", "grpo", 64, 192, 8, "cpu", model=LORA, train=KEPT),
    "grpo_mid_beta": Case("mid", "grpo", 32, 96, 8, "cpu", train={"beta": 0.04}),
    "grpo_135m_lora": Case("135m", "grpo", 64, 64, 8, "cpu", model=LORA),
    "grpo_135m": Case("135m", "grpo", 32, 48, 8, "cpu", train=KEPT),
    "dpo_mid": Case("mid", "dpo", 64, 192, 4, "cpu", train=KEPT),
    "dpo_135m_lora": Case("135m", "dpo", 32, 96, 2, "cpu", model=LORA, train=KEPT),
    "bgpo_mid": Case("mid", "bgpo", 32, 64, 8, "cpu", train=KEPT, rollout={"diffusion_steps": 8}),
    "mdlm_mid": Case("mid", "mdlm_sft", 32, 64, 8, "cpu", train=KEPT),
    "sft_135m_gpu": Case("135m", "sft", 256, 768, 8, "cuda", train=KEPT),
    "sft_500m_bf16_checkpointed": Case("500m", "sft", 256, 768, 8, "cuda", train=BF16),
    "sft_500m_lora_bf16": Case("500m", "sft", 256, 768, 8, "cuda", model=LORA, train=KEPT | BF16),
    "sft_500m_bfloat16_weights": Case("500m", "sft", 256, 768, 4, "cuda", model={"dtype": "bfloat16"}, train=KEPT),
    "grpo_360m": Case("360m", "grpo", 256, 64, 16, "cuda", train=KEPT),
    "grpo_500m_lora_bf16": Case("500m", "grpo", 256, 64, 16, "cuda", model=LORA, train=BF16),
    "grpo_360m_beta_bf16": Case("360m", "grpo", 256, 64, 16, "cuda", train=BF16 | {"beta": 0.04}),
    "dpo_500m_bf16": Case("500m", "dpo", 256, 768, 4, "cuda", train=BF16),
    "dpo_360m_lora_bf16": Case("360m", "dpo", 256, 256, 8, "cuda", model=LORA, train=KEPT | BF16),
    "bgpo_360m_bf16": Case("360m", "bgpo", 128, 128, 8, "cuda", train=BF16, rollout={"diffusion_steps": 16}),
    "mdlm_360m_bf16": Case("360m", "mdlm_sft", 128, 128, 8, "cuda", train=KEPT | BF16),
}  # fmt: skip


# --------------------------------------------------------------------------------------- what a case needs


def write_model(shape: ModelShape, folder: Path) -> None:
    """Random weights of `shape` and a tokenizer of as many tokens, of which rows use the letters."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    words = [*special, *LETTERS]
    words += [f"<{i}>" for i in range(shape.vocabulary - len(words))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    names = ("pad_token", "eos_token", "bos_token", "unk_token", "mask_token")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", **dict(zip(names, special, strict=True))
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=shape.tied,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


def write_rows(case: Case, path: Path) -> None:
    """64 rows, each of exactly the case's lengths; an end token follows answers, so they are a letter shorter."""
    draw = random.Random(0)

    def text(length: int) -> str:
        return "".join(draw.choices(LETTERS, k=length))

    rows = []
    for _ in range(64):
        row = {"prompt": text(case.prompt)}
        if case.method in ("sft", "mdlm_sft"):
            row["completion"] = text(case.answer - 1)
        if case.method == "dpo":
            row |= {"chosen": text(case.answer - 1), "rejected": text(case.answer - 1)}
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def recipe_of(name: str, model: Path, folder: Path, device: str, steps: int) -> dict[str, Any]:
    case = CASES[name]
    train = {
        "max_steps": steps,
        "per_device_train_batch_size": case.rows,
        "learning_rate": 1e-5,
        "use_cpu": device == "cpu",
        **case.train,
    }
    recipe: dict[str, Any] = {
        "method": case.method,
        "model": {"path": str(model), **case.model},
        "data": {"path": str(folder / "rows.jsonl")},
        "train": train,
        "output": {"name": name, "dir": str(folder / "runs"), "report_to": []},
    }
    if case.objective:
        recipe["objective"] = case.objective
    if case.method in ("grpo", "bgpo"):
        recipe["rollout"] = {"group_size": 8, "max_new_tokens": case.answer, **case.rollout}
        recipe["rewards"] = [{"name": f"{folder / 'reward.py'}:spread"}]
        recipe["data"]["max_prompt_tokens"] = case.prompt
    else:
        train["max_length"] = case.prompt + case.answer
    return recipe


# ------------------------------------------------------------------------------------------------ measuring


def status(pid: int | str, name: str) -> int:
    """Bytes of a field of /proc/PID/status (VmHWM, VmRSS), or the number in another; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = next((line.split() for line in lines if line.startswith(f"{name}:")), None)
    return 0 if found is None else int(found[1]) * (1024 if found[-1] == "kB" else 1)


def children(pid: int) -> list[int]:
    """All processes below `pid`, in sessions of their own or not."""
    parents = {int(p.name): status(p.name, "PPid") for p in Path("/proc").iterdir() if p.name.isdigit()}
    below, found = {pid}, []
    while new := [child for child, parent in parents.items() if parent in below and child not in below]:
        below |= set(new)
        found += new
    return found


def follow(process: subprocess.Popen[bytes]) -> dict[int, int]:
    """The highest resident size of every process below, once it has ended."""
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for pid in children(process.pid):
            peaks[pid] = max(peaks.get(pid, 0), status(pid, "VmHWM"))
        time.sleep(POLL_S)
    return peaks


class Phases:
    """Peaks of a run by what it was doing: resident size, and on CUDA what the allocator handed out and holds."""

    def __init__(self, cuda: bool) -> None:
        self.cuda, self.now = cuda, "load"
        self.peaks: dict[str, dict[str, int]] = {}
        self._reset()

    def enter(self, phase: str) -> None:
        import torch

        found = {"resident": status("self", "VmHWM")}
        if self.cuda:
            found |= {
                "allocated": torch.cuda.max_memory_allocated(),
                "reserved": torch.cuda.max_memory_reserved(),
            }
        before = self.peaks.setdefault(self.now, found)
        self.peaks[self.now] = {name: max(size, before[name]) for name, size in found.items()}
        self.now = phase
        self._reset()

    def _reset(self) -> None:
        import torch

        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def follow(self, owner: Any, method: str, phase: str) -> None:
        """Calls of `owner.method` are `phase`; what was before goes on after them."""
        inner = vars(owner).get(method) or getattr(owner, method)

        def followed(this: Any, *arguments: Any, **named: Any) -> Any:
            before = self.now
            self.enter(phase)
            try:
                return inner(this, *arguments, **named)
            finally:
                self.enter("after" if before == "load" else before)

        setattr(owner, method, followed)

    def highest(self, name: str) -> int:
        return max(found[name] for found in self.peaks.values())


def child(result: str, words: list[str]) -> int:
    """`posttrain WORDS`, with what the process took written to `result`."""
    from posttrain.cli import main
    from posttrain.recipe import load_recipe

    recipe = load_recipe(words[1])
    import torch

    import posttrain.run.train  # noqa: F401  # what the run would import, so that it can be told from what it builds

    trainer = recipe.spec.load_trainer()
    found: dict[str, Any] = {"libraries": status("self", "VmRSS")}
    cuda = torch.cuda.is_available() and not recipe.train.use_cpu
    if cuda:
        free, whole = torch.cuda.mem_get_info()  # makes the context
        found |= {"hardware": torch.cuda.get_device_name(), "context": whole - free - before_context()}
    phases = Phases(cuda)
    phases.follow(trainer, "training_step", "forward and backward")
    phases.follow(trainer, "save_model", "save")
    phases.follow(trainer, "train", "optimizer step")
    for method in ("_generate_and_score_completions",):
        if hasattr(trainer, method):
            phases.follow(trainer, method, "rollout")
    found["code"] = main(words)
    phases.enter("end")
    found |= {"trainer": phases.highest("resident"), "phases": phases.peaks}
    if cuda:
        free, whole = torch.cuda.mem_get_info()
        found |= {
            "allocated": phases.highest("allocated"),
            "reserved": phases.highest("reserved"),
            "used": whole - free - before_context(),
        }
    Path(result).write_text(json.dumps(found))
    return int(found["code"] or 0)


def before_context() -> int:
    """What of the device was taken before this process came, told by the parent."""
    return int(os.environ.get("POSTTRAIN_DEVICE_USED", "0"))


def used_of_device() -> int:
    """By nvidia-smi, of the first device; 0 where it cannot tell."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True)
        return int(float(done.stdout.splitlines()[0]) * 2**20)
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return 0


def measure(name: str, model: Path, device: str, steps: int) -> dict[str, Any]:
    import yaml

    from posttrain.recipe import load_recipe
    from posttrain.run.plan import make_plan

    with tempfile.TemporaryDirectory(prefix="posttrain-memory-") as made:
        folder = Path(made)
        write_rows(CASES[name], folder / "rows.jsonl")
        (folder / "reward.py").write_text(REWARD)
        recipe, result, log = folder / f"{name}.yaml", folder / "result.json", folder / "log.txt"
        recipe.write_text(yaml.safe_dump(recipe_of(name, model, folder, device, steps), sort_keys=False))
        plan = make_plan(load_recipe(str(recipe)))
        plan.require()
        assert plan.memory is not None
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        environment.setdefault("OMP_NUM_THREADS", "1")
        if device == "cuda":
            environment["POSTTRAIN_DEVICE_USED"] = str(used_of_device())
        began = time.monotonic()
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, __file__, "--child", str(result), "train", str(recipe)],
                stdout=stream, stderr=subprocess.STDOUT, env=environment,
            )  # fmt: skip
            workers = follow(process)
        if process.returncode != 0 or not result.is_file():
            tail = log.read_text(errors="replace")[-2000:]
            return {"case": name, "device": device, "failed": process.returncode, "log": tail}
        found = json.loads(result.read_text())
    measured = found["allocated"] if device == "cuda" else found["trainer"] + sum(workers.values())
    rows = {row: round(size) for row, size in plan.memory.rows()}
    estimated = rows.get("tensors", rows["peak"]) if device == "cuda" else rows["peak"]
    return {
        "case": name,
        "device": device,
        "hardware": found.pop("hardware", platform.processor() or platform.machine()),
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python eval/memory/measure.py --device {device} --cases {name} --steps {steps}",
        "seconds": round(time.monotonic() - began, 1),
        "measured": measured,
        "estimated": estimated,
        "ratio": round(estimated / measured, 3),
        "workers": sorted(workers.values()),
        **found,
        "estimate": rows,
    }


def table(lines: list[dict[str, Any]]) -> str:
    rows = ["| case | measured MiB | estimated MiB | estimated / measured |", "|---|---|---|---|"]
    for line in lines:
        if "failed" in line:
            rows.append(f"| {line['case']} | failed with {line['failed']} | | |")
            continue
        sizes = f"{line['measured'] / 2**20:.0f} | {line['estimated'] / 2**20:.0f}"
        rows.append(f"| {line['case']} | {sizes} | {line['ratio']:.2f} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cases", nargs="*", choices=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps of each run (default 2)")
    parser.add_argument("--limit-s", type=float, default=230.0, help="on CUDA: start no case after this")
    args = parser.parse_args()
    names = args.cases or [name for name, case in CASES.items() if case.device in ("both", args.device)]
    os.environ["HF_HUB_OFFLINE"] = "1"
    began, lines = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="posttrain-models-") as made:
        for name in names:
            if args.device == "cuda" and time.monotonic() - began > args.limit_s:
                print(f"left out, for lack of time: {name}", file=sys.stderr)
                continue
            model = Path(made) / CASES[name].shape
            if not model.is_dir():  # in a process of its own: what it prints is no result
                words = [sys.executable, __file__, "--write", CASES[name].shape, str(model)]
                subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            lines.append(measure(name, model, args.device, args.steps))
            print(json.dumps(lines[-1]), flush=True)
    print(table(lines), file=sys.stderr)
    return 1 if any("failed" in line for line in lines) else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(sys.argv[2], sys.argv[3:]))
    if sys.argv[1:2] == ["--write"]:
        sys.exit(write_model(SHAPES[sys.argv[2]], Path(sys.argv[3])))
    sys.exit(main())
