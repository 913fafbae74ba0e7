"""What the launcher was asked for against what it started, found out before torch is loaded.

`accelerate launch --cpu --num_processes 2` starts one process and says nothing; `srun -n 2 python ...` starts two
that do not know of each other. Either would train something else than was asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from posttrain.recipe.sections import ModelSection
from posttrain.recipe.strict_yaml import parse
from posttrain.recipe.train_options import TrainSection

_WORLD = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_HOW = "start processes with torchrun --nproc_per_node N -m posttrain train ..."


def started(environment: Mapping[str, str] = os.environ) -> int:
    """Processes that take part in this run, by the variables every launcher sets."""
    return next((int(environment[name]) for name in _WORLD if name in environment), 1)


def engine_asked(environment: Mapping[str, str] | None = None) -> str:
    """What shares a model out over the processes, as launchers say it: "ddp", "zero2", "fsdp2", "one process", ...

    "deepspeed" where its stage stands in a file of DeepSpeed's own.
    """
    environment = os.environ if environment is None else environment
    if _is_on(environment, "ACCELERATE_USE_DEEPSPEED"):
        stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
        return "deepspeed" if stage is None else f"zero{stage}"
    if _is_on(environment, "ACCELERATE_USE_FSDP"):
        return f"fsdp{environment.get('FSDP_VERSION', '1')}"
    return "ddp" if started(environment) > 1 else "one process"


def _is_on(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "false").lower() in ("true", "1")


def launch_fault(
    environment: Mapping[str, str] | None = None, parent: Sequence[str] | None = None
) -> str | None:
    """What is wrong with how this process was started, or None. `parent` is the launcher's command line."""
    environment = os.environ if environment is None else environment
    parent = parent_command() if parent is None else parent
    count = started(environment)
    asked = _asked_of_accelerate(environment, parent)
    if asked is not None and asked > 1 and count != asked:
        return (
            f"accelerate launch was asked for {asked} processes and started {count}: on a CPU it does so in silence; "
            f"{_HOW}"
        )
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1 and count == 1:
        return f"srun started {tasks} tasks that do not know of each other; start one a node and {_HOW}"
    return None


def precision_fault(train: TrainSection, environment: Mapping[str, str] | None = None) -> str | None:
    """A precision that the launcher asks for and the recipe does not: transformers would follow the launcher."""
    environment = os.environ if environment is None else environment
    asked = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked == "no" or (asked == "bf16" and train.bf16) or (asked == "fp16" and train.fp16):
        return None
    return f"train: the launcher asks for {asked} arithmetic, the recipe not; write {asked}: true or launch without"


def optimizer_fault(train: TrainSection, environment: Mapping[str, str] | None = None) -> str | None:
    """An optimizer whose run could not be resumed under the engine that is started."""
    if train.optim != "sgd" or engine_asked(environment) != "fsdp2":
        return None
    return (
        "train: optim sgd keeps no state, and torch loads no checkpoint of FSDP2 without any, so the run could not "
        "be resumed; write adamw_torch, or start it under ZeRO or DDP"
    )


def attention_fault(model: ModelSection) -> str | None:
    """An attention kernel whose package this machine lacks: said at once, not after the libraries are loaded."""
    asked = model.attn_implementation or ""
    for name, package, install in (
        ("flash_attention_2", "flash_attn", "flash-attn"),
        ("flash_attention_3", "flash_attn_interface", "flash-attn-3"),
    ):
        if asked == name and find_spec(package) is None:
            return (
                f"model: attn_implementation {name} needs the package {install}, which is not installed here; "
                "install it, or write sdpa"
            )
    return None


def _asked_of_accelerate(environment: Mapping[str, str], parent: Sequence[str]) -> int | None:
    """Processes `accelerate launch` was asked for; None when it did not start this process."""
    # accelerate sets this one for every child it starts, and nothing else does.
    if "ACCELERATE_MIXED_PRECISION" not in environment:
        return None
    flag = re.search(r"--num[-_]processes[= ](\d+)", " ".join(parent))
    if flag is not None:
        return int(flag.group(1))
    config = re.search(r"--config[-_]file[= ](\S+)", " ".join(parent))
    file = Path(config.group(1)) if config else _default_config(environment)
    if file.is_file() and "--cpu" not in parent:
        content = parse(file.read_text())
        return content.get("num_processes") if isinstance(content, dict) else None
    # No command line to read (no /proc): accelerate sets a master address only for several processes.
    return 2 if not parent and "MASTER_ADDR" in environment and "WORLD_SIZE" not in environment else None


def _default_config(environment: Mapping[str, str]) -> Path:
    home = environment.get(
        "HF_HOME", str(Path(environment.get("HOME", "~")).expanduser() / ".cache" / "huggingface")
    )
    return Path(home) / "accelerate" / "default_config.yaml"


def parent_command() -> list[str]:
    """The command line of the process that started this one; empty where the system does not tell."""
    file = Path(f"/proc/{os.getppid()}/cmdline")
    return file.read_text().split("\0") if file.is_file() else []
