"""Images of a run on its page: of each prompt those before training and those after, with the reward under each."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from posttrain.observe import writer
from posttrain.observe.pairs import read_held_out, read_parquet

PROMPTS, EACH = 12, 8
"""Prompts on the page, and images of each on either side."""
LARGE_BYTES = 20_000
"""A PNG of this size is shown larger than an icon."""


def image_grid(run_dir: Path, last_step: int) -> str:
    """The page's part on images, "" for a run that makes none: held-out images before and after training; failing
    that, of the first and the last stored rollout."""
    before, after, titles = _two_sets(run_dir, last_step)
    if not before and not after:
        return ""
    prompts = list(dict.fromkeys(row["prompt"] for row in (*before, *after)))
    rows = "".join(
        f"<b>{escape(str(prompt))}</b>{_strip(before, prompt)}{_strip(after, prompt)}"
        for prompt in prompts[:PROMPTS]
    )
    left = f"<p>{len(prompts) - PROMPTS} further prompts are not shown.</p>" if len(prompts) > PROMPTS else ""
    head = f"<span>prompt</span><span>{escape(titles[0])}</span><span>{escape(titles[1])}</span>"
    return f'<h2>Images</h2><div class="card"><div class="images">{head}{rows}</div>{left}</div>'


def _two_sets(run_dir: Path, last_step: int) -> tuple[list[Any], list[Any], tuple[str, str]]:
    held_out = [_with_images(read_held_out(run_dir, when)) for when in ("before", "after")]
    if any(held_out):
        return held_out[0], held_out[1], ("before training", "after training")
    files = {step: file for step, file in writer.completion_files(run_dir).items() if step <= last_step}
    if not files:
        return [], [], ("", "")
    first, last = min(files), max(files)
    sets = [_with_images(read_parquet(files[step])) for step in (first, last)]
    if first == last:
        sets[0] = []
    return sets[0], sets[1], (f"rollout of step {first}", f"rollout of step {last}")


def _with_images(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if isinstance(row.get("image"), bytes)]


def _strip(rows: Sequence[Mapping[str, Any]], prompt: str) -> str:
    chosen = [row for row in rows if row["prompt"] == prompt][:EACH]
    large = " large" if any(len(row["image"]) > LARGE_BYTES for row in chosen) else ""
    return f'<div class="strip{large}">{"".join(_figure(row) for row in chosen)}</div>'


def _figure(row: Mapping[str, Any]) -> str:
    source = base64.b64encode(row["image"]).decode()
    reward = row.get("reward")
    each = "; ".join(
        f"{name.removeprefix('rewards/')} {value:.3g}"
        for name, value in row.items()
        if name.startswith("rewards/") and value is not None
    )
    said = "" if reward is None else f"<figcaption>{float(reward):.3g}</figcaption>"
    return f'<figure title="{escape(each)}"><img src="data:image/png;base64,{source}" alt="">{said}</figure>'
