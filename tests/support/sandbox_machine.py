"""What the attacks on the sandbox are run on: one enclosure of this machine, and a look at what they leave."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from posttrain.rewards.descendants import MARK
from posttrain.rewards.sandbox.protection import Protection

ROOT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).parent / "sandbox_driver.py"
SECRET = "planted-3f9a"
LIMITS = {"seconds": 4.0, "memory_mb": 256, "file_mb": 4, "folder_mb": 8, "processes": 12, "output_kb": 64}


class Machine:
    """One enclosure of this machine, and a look at what an attack has left."""

    def __init__(self, protection: Protection, folder: Path):
        self.protection = protection
        self.isolates = protection.isolates
        self.mark = secrets.token_hex(12)
        self.temp, self.home, self.outside = folder / "temp", folder / "home", folder / "outside"
        for path in (self.temp, self.home, self.outside):
            path.mkdir()
        (self.home / ".token").write_text(SECRET)
        self.driver: subprocess.Popen[str] | None = None

    def open_to(self, words: str) -> bool:
        """Whether `describe()` names this hole."""
        return any(
            words in line for line in self.protection.describe() if line.startswith("does not protect")
        )

    def attack(self, source: str, stdin: str = "", **limits: Any) -> dict[str, Any]:
        return self._drive({"source": source, "stdin": stdin}, limits)

    def judge(self, source: str, tests: list[str], **limits: Any) -> dict[str, Any]:
        return self._drive({"sources": [source], "tests": tests}, limits)

    def _drive(self, asked: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
        self.driver = subprocess.Popen(
            [sys.executable, str(DRIVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                "PYTHONPATH": str(ROOT),
                "TMPDIR": str(self.temp),
                "HOME": str(self.home),
                "API_KEY": SECRET,
                "PATH": os.environ["PATH"],
            },
            start_new_session=True,
        )
        asked |= {"kind": self.protection.kind, "mark": self.mark, "limits": LIMITS | limits}
        out, errors = self.driver.communicate(json.dumps(asked), timeout=120)
        if self.driver.returncode < 0:
            return {"driver": signal.Signals(-self.driver.returncode).name}
        assert self.driver.returncode == 0, errors
        return json.loads(out)

    def left(self) -> list[str]:
        """Processes and files of the attack that are still there."""
        found = [f"process {pid}" for pid in self._processes()]
        return found + [str(path) for path in (*self.temp.iterdir(), *self.outside.iterdir())]

    def _processes(self) -> list[int]:
        found = []
        for name in os.listdir("/proc"):
            try:
                parts = [Path(f"/proc/{name}/{file}").read_bytes() for file in ("environ", "cmdline")]
            except OSError:
                continue
            if name.isdigit() and (
                f"{MARK}={self.mark}".encode() in parts[0] or self.mark.encode() in parts[1]
            ):
                found.append(int(name))
        return found
