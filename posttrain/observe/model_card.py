"""README.md of a saved model: what it is, how it was made, what was measured. Read from the run folder; no torch.

The folder may be published as it stands, so no path of the machine and no secret of a reward's arguments is written
into it: a path is its last part, a model's folder its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from posttrain.observe import writer
from posttrain.recipe.methods import METHODS
from posttrain.recipe.papers import paper_of

CARD = "README.md"
_UNNAMED = re.compile(r"model|checkpoint-\d+|final|last|best")
"""Folder names that say nothing without the one above."""
_SECRET = re.compile(r"(^|_)(key|token|secret|password)$", re.IGNORECASE)
_LEFT_OUT = "(left out)"
_SECRET_IN_COMMAND = re.compile(
    r"((?<![a-z])(?:key|token|secret|password)['\"]?\s*[=:]\s*)[^\s,}\]]+", re.IGNORECASE
)
"""As an override says it: args.api_key=..., or within a mapping, {api_key: ...}."""
_SHOWN = ("accuracy", "reward", "loss", "rewards/accuracies", "rewards/margins")
_PATH_IN_COMMAND = re.compile(r"(?<![\w.:/~-])(?:~|/)(?:[^\s'\"/]+/|/)[^\s'\"]*")


def write_card(
    model_dir: Path,
    run_dir: Path,
    *,
    held_out: int | None = None,
    step: int | None = None,
    exported: str | None = None,
) -> Path:
    """Writes `model_dir`/README.md from the files of `run_dir`.

    held_out  rows measured
    step      optimizer steps behind the weights; None: all of the run's
    exported  how the folder was made, where the run did not save it itself
    """
    path = model_dir / CARD
    text = card(run_dir, held_out=held_out, adapter=_is_adapter(model_dir), step=step, exported=exported)
    path.write_text(text, encoding="utf-8")
    return path


def card(
    run_dir: Path,
    *,
    held_out: int | None = None,
    adapter: bool = False,
    step: int | None = None,
    exported: str | None = None,
) -> str:
    """The card's text."""
    recipe = _yaml(run_dir / writer.RECIPE)
    environment = writer.read_environment(run_dir)
    method = METHODS.get(str(recipe.get("method")))
    name = run_dir.resolve().name
    last = _steps(run_dir)
    of_another = step is not None and step != last
    parts = [
        _head(recipe, adapter),
        f"# {name}",
        _sentence(recipe, method, adapter, f"{step:,} of the run's {last:,}" if of_another else f"{last:,}"),
        _figures(run_dir, held_out),
        _of_another_step(run_dir, step, last) if of_another else "",
        _benchmarks(run_dir),
        _made(environment, exported),
        _recipe(recipe, run_dir),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def public_name(path: str) -> str:
    """A model or file as a stranger may read it: a hub name as it stands, of a path what tells it apart."""
    place = Path(path)
    if not (place.is_absolute() or path.startswith(("~", ".")) or place.exists() or len(place.parts) > 2):
        return path
    parts = [part for part in place.parts if part not in ("/", "..", ".", "~")]
    while len(parts) > 1 and _UNNAMED.fullmatch(parts[-1]):
        parts.pop()
    return parts[-1] if parts and parts[-1] != "checkpoints" else "/".join(parts[-2:-1]) or "a local folder"


def without_paths(value: Any, key: str = "", secret: bool = False) -> Any:
    """A recipe's plain data with every absolute path cut to its last part, and secrets among rewards' args left out."""
    if isinstance(value, Mapping):
        inner = secret or key == "args"
        return {name: without_paths(item, str(name), inner) for name, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item, key, secret) for item in value]
    if not isinstance(value, str):
        return value
    if secret and _SECRET.search(key):
        return _LEFT_OUT
    if _is_path(value):
        return public_name(value) if key == "path" else Path(value).name or "/"
    return value


def _is_path(text: str) -> bool:
    """An absolute path, as a whole; a text that begins with a slash (/no_think) is none."""
    if any(c in text for c in "\n\t"):
        return False
    return text.startswith(("~/", "file:///")) or (text.startswith("/") and text.count("/") >= 2)


def _head(recipe: Mapping[str, Any], adapter: bool) -> str:
    model, data = recipe.get("model") or {}, recipe.get("data") or {}
    head: dict[str, Any] = {"library_name": "peft" if adapter else "transformers"}
    base = str(model.get("path") or "")
    if "/" in base and public_name(base) == base:  # the hub links what has a hub name
        head["base_model"] = base
    source = str(data.get("name") or "")
    if "/" in source:
        head["datasets"] = [source]
    head["tags"] = ["posttrain", str(recipe.get("method", "unknown")), *(["lora"] if adapter else [])]
    return f"---\n{yaml.safe_dump(head, sort_keys=False).strip()}\n---"


def _sentence(recipe: Mapping[str, Any], method: Any, adapter: bool, steps: str) -> str:
    model, data = recipe.get("model") or {}, recipe.get("data") or {}
    what = "unknown method"
    if method is not None:
        link = paper_of(method)
        what = f"`{method.name}` ({method.summary}{f'; [paper]({link})' if link else ''})"
    base = f"`{public_name(str(model['path']))}`" if model.get("path") else "random weights"
    if model.get("revision"):
        base += f" at revision `{model['revision']}`"
    source = data.get("name") or (Path(str(data["path"])).name if data.get("path") else "unknown data")
    start = f"A LoRA adapter for {base}, trained" if adapter else f"Trained from {base}"
    rewards = [str(Path(str(one.get("name", ""))).name) for one in recipe.get("rewards") or []]
    learned = f", rewarded by {', '.join(f'`{one}`' for one in rewards)}" if rewards else ""
    return f"{start} with {what} on `{source}`{learned}, for {steps} optimizer steps."


def _steps(run_dir: Path) -> int:
    rows = writer.read_metrics(run_dir)
    return int(rows[-1]["step"]) if rows else 0


def _figures(run_dir: Path, held_out: int | None) -> str:
    measured = writer.read_evaluation(run_dir)
    before, after = measured.get("before", {}), measured.get("after", {})
    names = [
        n for n in (after or before) if n in _SHOWN or (n.startswith("rewards/") and n.endswith("/mean"))
    ]
    if not names:
        return ""
    rows = held_out if held_out is not None else _sampled(run_dir)
    counted = f" ({rows:,} rows)" if rows else ""
    lines = [f"## Held out{counted}", "", "| | before | after |", "|---|---|---|"]
    lines += [f"| {name} | {_number(before.get(name))} | {_number(after.get(name))} |" for name in names]
    return "\n".join(lines)


def _of_another_step(run_dir: Path, step: int | None, last: int) -> str:
    """The run keeps its first and its latest measurement, and a checkpoint lies between them."""
    if not writer.read_evaluation(run_dir):
        return ""
    return (
        f"These are the run's own figures, before its first step and latest, up to step {last:,}; the weights here "
        f"are those of step {step:,}."
    )


def _sampled(run_dir: Path) -> int | None:
    columns = writer.read_samples(run_dir, "after")
    return len(next(iter(columns.values()), [])) if columns else None


def _benchmarks(run_dir: Path) -> str:
    """The first and the last measurement of each benchmark that the run made, with its interval."""
    found: dict[str, list[tuple[int, str]]] = {}
    for file in sorted(run_dir.glob("benchmarks/step-*/*/metrics.json")):
        graded = json.loads(file.read_text(encoding="utf-8"))
        for metric, entry in list(graded.get("metrics", {}).items())[:1]:
            if entry.get("value") is None:
                continue
            scale = 1 if entry.get("unit") == "percent" else 100
            ends = entry.get("interval")
            span = f" [{scale * ends[0]:.1f}, {scale * ends[1]:.1f}]" if ends else ""
            text = f"{metric} {scale * entry['value']:.1f} %{span} | {entry['problems']:,}"
            found.setdefault(str(graded["benchmark"]), []).append(
                (int(file.parent.parent.name.removeprefix("step-")), text)
            )
    if not found:
        return ""
    lines = [
        "## Benchmarks",
        "",
        "| benchmark | step | score, 95 % interval | problems |",
        "|---|---|---|---|",
    ]
    for name, entries in found.items():
        ends = [entries[0], entries[-1]] if len(entries) > 1 else entries
        lines += [f"| {name} | {step:,} | {text} |" for step, text in ends]
    return "\n".join(lines)


def _made(environment: Mapping[str, Any], exported: str | None) -> str:
    if not environment:
        return ""
    command = _SECRET_IN_COMMAND.sub(rf"\1{_LEFT_OUT}", str(environment.get("command", "")))
    command = _PATH_IN_COMMAND.sub(lambda m: Path(m.group(0)).name, command)
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
    processes = environment.get("world_size")
    devices = environment.get("accelerators") or []
    on = f"{len(devices)} x {devices[0]}" if devices else "CPU"
    lines = ["## How", ""]
    lines += [f"* command: `{command}`"] if command else []
    lines += [f"* date: {str(environment.get('started', ''))[:10]}"]
    lines += [f"* hardware: {on}" + (f", {processes} processes" if processes and processes > 1 else "")]
    lines += [f"* versions: {versions}"] if versions else []
    git = environment.get("git") or {}
    changed = ", with changes that are not in it" if git.get("changed") else ""
    lines += [f"* commit of the working folder: {git['commit']}{changed}"] if git else []
    lines += [f"* exported: {exported}"] if exported else []
    return "\n".join(lines)


def _recipe(recipe: Mapping[str, Any], run_dir: Path) -> str:
    if not recipe:
        return ""
    text = yaml.safe_dump(without_paths(dict(recipe)), sort_keys=False, allow_unicode=True).rstrip()
    fence = "```" if "```" not in text else "````"
    changes = [
        f"* from step {entry.after_step + 1}: {_change(change)}"
        for entry in writer.read_recipe_changes(run_dir)
        for change in entry.changes
    ]
    after = "\n\nChanged on the way, by a resume:\n\n" + "\n".join(changes) if changes else ""
    return f"## Recipe\n\nEvery value, defaults included.\n\n{fence}yaml\n{text}\n{fence}{after}"


def _change(change: writer.RecipeChange) -> str:
    *sections, key = change.key.split(".")
    old, new = (without_paths(value, key, "args" in sections) for value in (change.old, change.new))
    return str(writer.RecipeChange(change.key, old, new))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _yaml(path: Path) -> dict[str, Any]:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}
