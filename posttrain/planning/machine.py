"""What this machine has, without torch: whether a GPU is here, and how much memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def gpu_is_here() -> bool:
    """Whether transformers would train on an accelerator. Where only a driver library would tell: yes."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    if not sys.platform.startswith("linux"):
        return True
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists() or Path("/dev/dxg").exists()


def memory_of_machine() -> float | None:
    """Bytes of memory, or of the control group's limit where that is less; None where the system does not tell."""
    try:
        whole = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return None
    limits = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    found = [file.read_text().strip() for file in limits if file.is_file()]
    return min([whole, *(float(text) for text in found if text.isdigit())])


def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether the processor multiplies in bfloat16 (AMX, AVX-512's, or Arm's); None where it does not tell."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    flags = {
        flag
        for line in lines
        if line.lower().startswith(("flags", "features"))
        for flag in line.split(":")[1].split()
    }
    return bool(flags & {"amx_bf16", "avx512_bf16", "bf16"}) if flags else None
