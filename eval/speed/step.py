"""An optimizer step here against TRL's own GRPO trainer, rollout and all: the peers alternate, each in a process.

    OMP_NUM_THREADS=1 python eval/speed/step.py [--cases ragged,equal,... --pairs 5 --steps 4 --model FOLDER]

For each case: CPU and wall seconds per step (median over the steps of a run, the first not counted), peak memory over
the start of training, their ratio pair by pair, the largest difference of loss and gradient on one batch, and what
share of this machine's measured rate of matrix products the step's useful work makes up. `--model` is a folder of a
real instruct model for the cases named instruct*, which are left out without it. On CUDA the same command measures
the GPU. Writes eval/speed/results/step-*.json; `--table` prints docs/speed.md's rows from those files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))
RESULTS = HERE / "results"

SMALL = {
    "hidden": 256, "layers": 4, "heads": 4, "vocabulary": 4096, "end_share": 0.0,
    "prompts": 4, "group": 8, "prompt_tokens": 64, "new_tokens": 64,
}  # fmt: skip
RAGGED = {**SMALL, "new_tokens": 128, "end_share": 0.02}
INSTRUCT = {
    "prompts": 1, "group": 8, "new_tokens": 48, "end_share": 0.0,
    "prompt": "A train leaves a town at nine in the morning and travels at sixty kilometres per hour. A second train "
    "leaves the same town on the same line at half past ten and travels at ninety kilometres per hour. At what time of "
    "day does the second train catch up with the first one, and how many kilometres from the town are they then? Think "
    "step by step, and write the final answer on a line of its own.",
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "ragged": RAGGED,
    "equal": SMALL,
    "long_prompt": {**SMALL, "prompts": 2, "prompt_tokens": 512},
    "vocabulary_32k": {**SMALL, "vocabulary": 32768},
    "vocabulary_151k": {**SMALL, "vocabulary": 151936, "prompts": 2, "new_tokens": 32},
    "iterations_2": {**RAGGED, "iterations": 2},
    "beta": {**RAGGED, "beta": 0.04},
    "lora": {**RAGGED, "lora": True},
    "accumulation_4": {**RAGGED, "accumulation": 4},
    "bapo": {**RAGGED, "method": "BAPO"},
    "bapo_accumulation_4": {**RAGGED, "method": "BAPO", "accumulation": 4},
    "capo": {**RAGGED, "method": "CAPO"},
    "copo": {**RAGGED, "method": "COPO"},
    "gpu_135m": {
        **RAGGED,
        "hidden": 576,
        "layers": 30,
        "heads": 9,
        "vocabulary": 49152,
        "prompts": 8,
        "prompt_tokens": 160,
        "end_share": 0.01,
    },
    "gpu_600m": {
        **RAGGED,
        "hidden": 1536,
        "layers": 16,
        "heads": 12,
        "vocabulary": 32768,
        "prompts": 8,
        "prompt_tokens": 256,
        "end_share": 0.01,
    },
    "instruct": INSTRUCT,
    "instruct_16": {**INSTRUCT, "group": 16},
}
"""Trained with GRPO at both peers, but for `method`, which is ours against TRL's GRPO."""
ON_REAL_MODEL = ("instruct", "instruct_16")


def make_model(case: dict[str, Any], folder: Path) -> None:
    """A random Llama whose words are w3, w4, ...; of the last `end_share` of them each ends a response."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    size = case["vocabulary"]
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2, **{f"w{i}": i for i in range(3, size)}}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=case["hidden"],
            intermediate_size=3 * case["hidden"],
            num_hidden_layers=case["layers"],
            num_attention_heads=case["heads"],
            max_position_embeddings=4096,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )
    ends = range(size - int(case["end_share"] * size), size)
    model.generation_config.eos_token_id = [1, *ends]
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def peer(who: str, folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "step_peer.py"), who, str(folder), json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{who} failed at {case}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def gemm_rate() -> float:
    """GFLOP per second of float32 (on CUDA also as the trainers run it) matrix products of 2048 x 2048."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    on_gpu = torch.cuda.is_available()
    one, other = (torch.randn(2048, 2048, device="cuda" if on_gpu else "cpu") for _ in range(2))
    clock = time.perf_counter if on_gpu else time.process_time
    rates = []
    for _ in range(9):
        begun = clock()
        one @ other
        if on_gpu:
            torch.cuda.synchronize()
        rates.append(2 * 2048**3 / (clock() - begun) / 1e9)
    return statistics.median(rates[2:])


def useful_gflop(case: dict[str, Any], folder: Path, mean_length: float) -> float:
    """Arithmetic a step cannot do without: each prompt once per pass, no padding, head on scored positions only;
    generation is one forward, training one forward and a backward of twice its cost (three times with LoRA's
    frozen weights left out)."""
    config = json.loads((folder / "config.json").read_text())
    hidden, layers, inner = (config[key] for key in ("hidden_size", "num_hidden_layers", "intermediate_size"))
    heads, kv = (
        config["num_attention_heads"],
        config.get("num_key_value_heads", config["num_attention_heads"]),
    )
    per_token = layers * (2 * hidden * hidden * (1 + kv / heads) + 3 * hidden * inner)
    prompt = case.get("prompt_tokens", 120)
    sampled = case["prompts"] * case["group"] * mean_length
    tokens = case["prompts"] * prompt + sampled
    forward = 2 * (per_token * tokens + hidden * config["vocab_size"] * sampled)
    forward += 4 * layers * hidden * (case["prompts"] * prompt**2 / 2 + sampled * (prompt + mean_length / 2))
    passes = 1 + 3 * case.get("iterations", 1) + (case.get("beta", 0) > 0)
    return forward * passes / 1e9


def measure(name: str, case: dict[str, Any], args: argparse.Namespace, rate: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(args.model) if name in ON_REAL_MODEL else Path(made)
        if name not in ON_REAL_MODEL:
            make_model(case, folder)
        checked = peer("check", folder, case)
        runs: dict[str, list[dict[str, Any]]] = {"trl": [], "ours": []}
        for pair in range(args.pairs):
            for who in ("trl", "ours") if pair % 2 == 0 else ("ours", "trl"):
                runs[who].append(peer(who, folder, case))
        useful = useful_gflop(case, folder, statistics.mean(run["mean_length"] for run in runs["ours"]))
    ratios = {
        kind: [theirs[kind] / mine[kind] for theirs, mine in zip(runs["trl"], runs["ours"], strict=True)]
        for kind in ("cpu_s", "wall_s", "peak_mb")
    }
    kind = "wall_s" if checked["device"] == "cuda" else "cpu_s"
    share = useful / statistics.median(run[kind] for run in runs["ours"]) / rate
    record = {"case": name, "settings": case, **checked, "runs": runs, "ratios": ratios, "gemm_share": share}
    print(row_of(record), flush=True)
    return record


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def row_of(record: dict[str, Any]) -> str:
    """A line of the table in docs/speed.md."""
    kind = "wall_s" if record["device"] == "cuda" else "cpu_s"
    trl, ours = (statistics.median(run[kind] for run in record["runs"][who]) for who in ("trl", "ours"))
    memory = [statistics.median(run["peak_mb"] for run in record["runs"][who]) for who in ("trl", "ours")]
    lengths = [statistics.mean(run["mean_length"] for run in record["runs"][who]) for who in ("trl", "ours")]
    return (
        f"| {record['case']} | {trl:.2f} s | {ours:.2f} s | {spread(record['ratios'][kind])} | {memory[0]:.0f} MB | "
        f"{memory[1]:.0f} MB | {lengths[0]:.0f} / {lengths[1]:.0f} | {record['loss_difference']:.0e} | "
        f"{record['gradient_difference']:.0e} | {record['gemm_share']:.0%} |"
    )


HEADER = (
    "| case | TRL | posttrain | ratio: median (range) | TRL, peak | posttrain, peak | mean length | loss apart | "
    "gradient apart | of GEMM limit |\n|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(name for name in CASES if not name.startswith("gpu")))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--model", help="folder of an instruct model")
    parser.add_argument(
        "--bf16", action="store_true", help="on CUDA: weights in float32, products in bfloat16"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the stored results and stop")
    args = parser.parse_args()
    if args.table:
        for path in sorted(args.out.glob("step-*.json")):
            stored = json.loads(path.read_text())
            print(
                f"\n{stored['date']}, {stored['hardware']}, commit {stored['commit']}: `{stored['command']}`\n"
            )
            print("\n".join([HEADER, *(row_of(record) for record in stored["cases"])]))
        return
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{_processor()}, one thread"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    date = datetime.now(UTC).date().isoformat()
    rate = gemm_rate()
    print(f"{date}, {device}, load {os.getloadavg()[0]:.2f}, GEMM {rate:.0f} GFLOP/s\n\n{HEADER}", flush=True)
    records = []
    args.out.mkdir(exist_ok=True)
    path = args.out / f"step-{'cuda' if torch.cuda.is_available() else 'cpu'}-{date}.json"
    for name in args.cases.split(","):
        if name in ON_REAL_MODEL and args.model is None:
            continue
        case = {"seed": 0, **CASES[name], "steps": args.steps, "bf16": args.bf16}
        records.append(measure(name, case, args, rate))
        stored = {
            "date": date, "hardware": device, "gemm_gflops": rate, "commit": commit,
            "torch": torch.__version__, "command": " ".join(["python", "eval/speed/step.py", *sys.argv[1:]]),
            "cases": records,
        }  # fmt: skip
        path.write_text(json.dumps(stored, indent=1) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
