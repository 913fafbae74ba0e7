"""Stage three: one HTML page about graded evaluations, and the same numbers in the terminal. No torch, no
model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from posttrain import __version__, observe
from posttrain.evaluation import figures, store
from posttrain.evaluation.results import (
    Comparison,
    Result,
    by_benchmark,
    collect,
    comparisons,
    curves,
    failed,
    failed_items,
)

_TEMPLATE = Path(observe.__file__).with_name("report_template.html")
FAILED = 8
"""Responses to read, of each model and benchmark."""
_MOST_SHOWN = 6_000  # characters of a response; what lies between its ends is left out and said so


def write(paths: Sequence[str | Path], out: Path, *, responses: int = FAILED) -> list[Result]:
    """Writes the page about every graded evaluation below `paths`; what it is about."""
    results = collect(paths)
    benchmarks = list(dict.fromkeys(r.title for r in results))
    models = list(dict.fromkeys(r.label for r in results))
    title = models[0] if len(models) == 1 else f"{len(models)} models"
    header = (
        f"<header><h1>Evaluation: {escape(title)}</h1><p>{escape(', '.join(benchmarks))}</p></header>"
        f'<section class="facts">{"".join(_facts(results, models))}</section>'
    )
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"Evaluation: {title}"),
        body=header + section(results, responses=responses),
        footer=f"posttrain {escape(__version__)} · intervals are 95 %, over problems",
    )
    store.write_text(out, page)
    return results


def section(results: Sequence[Result], *, responses: int = FAILED) -> str:
    """The body of the page, to stand in another page too (the run report)."""
    found = comparisons(results)
    parts = [
        _notes(results),
        "<h2>Scores</h2>" + _scores(results),
        _differences(found),
        _preferences(results),
        _steps(results),
        _many_samples(results),
        _by_group(results),
        _lengths(results),
        *(_failed(result, responses) for result in ends(results, first=False)),
    ]
    return "\n".join(part for part in parts if part)


def _facts(results: Sequence[Result], models: Sequence[str]) -> list[str]:
    responses = sum(r.metrics["samples"] for r in results)
    values = [
        ("models", str(len(models))),
        ("benchmarks", str(len({r.benchmark for r in results}))),
        ("responses", f"{responses:,}"),
    ]
    best = [r for r in results if r.headline[1]["value"] is not None]
    if len(best) == 1:
        values.append((f"{best[0].title}, {best[0].headline[0]}", shown(best[0].headline[1])))
    return [f'<div class="card fact"><span>{escape(k)}</span><b>{escape(v)}</b></div>' for k, v in values]


def _notes(results: Sequence[Result]) -> str:
    """What a reader must know before believing a number."""
    items = "".join(f"<li>{escape(text)}</li>" for text in notes(results))
    return f'<ul class="notes">{items}</ul>' if items else ""


def notes(results: Sequence[Result]) -> list[str]:
    """The warnings of all results, those that several models share told once."""
    found: dict[tuple[str, str], list[tuple[float, str, str]]] = {}
    for result in results:
        for kind, amount, text in warnings(result):
            found.setdefault((result.title, kind), []).append((amount, text, result.label))
    lines = []
    for (title, _), told in found.items():
        worst = max(told)[1]
        who = f"{len(told)} models" if len(told) > 3 else ", ".join(label for _, _, label in told)
        lines.append(
            f"{title}, {who}: {worst if len({text for _, text, _ in told}) == 1 else f'up to {worst}'}"
        )
    return lines


def warnings(result: Result) -> list[tuple[str, float, str]]:
    """(kind, how bad, plain sentence) about what weakens a result."""
    m, found = result.metrics, []
    if m["truncated"] and m["truncated"] > 0.05 * m["samples"]:
        share = m["truncated"] / m["samples"]
        found.append(("cut", share, f"{share:.0%} of the responses were cut off at {result.limit:,} tokens"))
    if m["no_answer"] and m["no_answer"] > 0.2 * m["samples"]:
        share = m["no_answer"] / m["samples"]
        found.append(
            ("answer", share, f"{share:.0%} of the responses hold no answer by the benchmark's rule")
        )
    if m["timeouts"]:
        found.append(("time", m["timeouts"], f"{m['timeouts']} gradings ran out of time and count as wrong"))
    if m["cannot_judge"]:
        found.append(
            (
                "judge",
                m["cannot_judge"],
                f"{m['cannot_judge']} responses could not be judged and are left out",
            )
        )
    preference = m.get("preference") or {}
    agreement = preference.get("swap_agreement")
    if agreement is not None and agreement["value"] < 0.7:
        share = 1 - agreement["value"]
        found.append(
            (
                "swap",
                share,
                f"the judge names another winner in {share:.0%} of the pairs when their order is swapped",
            )
        )
    if preference.get("lc_missing"):
        found.append(("lc", 1.0, preference["lc_missing"]))
    return found


# ---- tables


def _scores(results: Sequence[Result]) -> str:
    """The first metric of each result, and the others folded below."""
    # a column without a number would push the others out of sight
    empty = {name: {"–", "0"} if name == "not judged" else {"–"} for name in _COUNT_HEAD}
    columns = zip(_COUNT_HEAD, zip(*map(counts, results), strict=True), strict=True)
    kept = [i for i, (name, texts) in enumerate(columns) if not set(texts) <= empty[name]]
    head = _row(["benchmark", "model", "metric"], [*_ENTRY_HEAD, *(_COUNT_HEAD[i] for i in kept)], "th")
    first, others = [], []
    for group in by_benchmark(results):
        for result in group:
            entries = list(result.metrics["metrics"].items())
            # a win rate and its length-controlled twin are read together
            shown_first = 2 if result.metrics.get("preference") else 1
            for i, (name, entry) in enumerate(entries[:shown_first]):
                row = [result.title, result.label, name] if i == 0 else ["", "", name]
                counted = counts(result) if i == 0 else [""] * len(_COUNT_HEAD)
                first.append(_row(row, [*_cells(entry), *(counted[k] for k in kept)]))
            others += [_row([result.title, result.label, n], _cells(e)) for n, e in entries[shown_first:]]
    if not others:
        return _card(head, first)
    rest = _card(_row(["benchmark", "model", "metric"], _ENTRY_HEAD, "th"), others)
    return f"{_card(head, first)}<details style='margin-top:12px'><summary>Other metrics</summary>{rest}</details>"


_ENTRY_HEAD = ("score", "95 % interval", "s.e.", "problems", "samples")
_COUNT_HEAD = ("cut off", "no answer", "time-outs", "not judged", "tokens")


def _cells(entry: Mapping[str, Any]) -> list[str]:
    return [shown(entry), interval(entry), error(entry), f"{entry['problems']:,}", f"{entry['samples']:,}"]


def counts(result: Result) -> list[str]:
    """Truncated, without answer, timed out, not judged, mean tokens: as text, a dash where it has no
    meaning."""
    m = result.metrics
    values = [m["truncated"], m["no_answer"], m["timeouts"], m["cannot_judge"]]
    tokens = m.get("mean_tokens")
    return ["–" if v is None else f"{v:,}" for v in values] + ["–" if tokens is None else f"{tokens:,.0f}"]


def shown(entry: Mapping[str, Any]) -> str:
    value = entry["value"]
    return "–" if value is None else f"{_percent(entry, value):.1f} %"


def interval(entry: Mapping[str, Any]) -> str:
    ends = entry["interval"]
    return "–" if ends is None else f"{_percent(entry, ends[0]):.1f} to {_percent(entry, ends[1]):.1f}"


def error(entry: Mapping[str, Any]) -> str:
    value = entry["standard_error"]
    return "–" if value is None else f"{_percent(entry, value):.1f}"


def _percent(entry: Mapping[str, Any], value: float) -> float:
    return value if entry.get("unit") == "percent" else 100 * value


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


_FOLDED_FROM = 28  # characters


def _row(texts: Sequence[str], numbers: Sequence[str] = (), tag: str = "td") -> str:
    # what is long (a judge's name, a run's) may fold, so that the numbers stay in sight; steps may not
    cells = [
        f'<{tag} class="{"long" if len(t) > _FOLDED_FROM else "name"}">{escape(t)}</{tag}>' for t in texts
    ]
    cells += [f'<{tag} class="number">{escape(n)}</{tag}>' for n in numbers]
    return f"<tr>{''.join(cells)}</tr>"


def _differences(found: Sequence[Comparison]) -> str:
    if not found:
        return ""
    rows = []
    for c in found:
        names = _row([c.after.title, c.before.label, c.after.label])
        if c.difference is None:
            rows.append(names.replace("</tr>", f'<td colspan="4">{escape(c.refusal)}</td></tr>'))
            continue
        d = c.difference
        ends = f"{100 * d.low:+.1f} to {100 * d.high:+.1f}"
        numbers = [f"{100 * d.value:+.1f}", ends, p_value(d.p_value), f"{d.better:,} / {d.worse:,}"]
        rows.append(_row([c.after.title, c.before.label, c.after.label], numbers))
    head = _row(
        ["benchmark", "from", "to"], ["points", "95 % interval", "p", "problems better / worse"], "th"
    )
    note = "p: sign flips of the problems' differences, two-sided; no correction for comparing many models."
    return f"<h2>Differences, paired by problem</h2>{_card(head, rows, note)}"


def _preferences(results: Sequence[Result]) -> str:
    judged = [r for r in results if r.metrics.get("preference")]
    if not judged:
        return ""
    rows = [_row([r.label], preference_cells(r)) for r in judged]
    head = _row(["model"], list(PREFERENCE_HEAD), "th")
    return f"<h2>What stands behind the win rates</h2>{_card(head, rows)}"


def _card(head: str, rows: Sequence[str], note: str = "") -> str:
    below = f'<p class="label">{note}</p>' if note else ""
    return f'<div class="card" style="overflow-x:auto"><table>{head}{"".join(rows)}</table>{below}</div>'


PREFERENCE_HEAD = (
    "wins", "losses", "ties", "failed", "same winner when swapped", "prefers what it sees first",
    "mean length", "reference's length",
)  # fmt: skip


def preference_cells(result: Result) -> list[str]:
    """The columns of PREFERENCE_HEAD as text."""
    p = result.metrics["preference"]
    agreement, first = p["swap_agreement"], p["prefers_first_shown"]
    return [
        *(f"{p[key]:,}" for key in ("wins", "losses", "ties", "failed")),
        "not measured" if agreement is None else f"{agreement['value']:.0%} of {agreement['pairs']}",
        "not measured" if first is None else f"{first:.0%}",
        f"{p['mean_length']:,.0f}",
        f"{p['mean_length_reference']:,.0f}",
    ]


# ---- plots


def _charts(title: str, cards: Sequence[tuple[str, str]]) -> str:
    if not cards:
        return ""
    inner = "".join(f'<div class="card chart"><h3>{escape(name)}</h3>{image}</div>' for name, image in cards)
    return f'<h2>{escape(title)}</h2><div class="charts">{inner}</div>'


def _steps(results: Sequence[Result]) -> str:
    names = {r.series: r.label.split(" @ step")[0] for r in results}
    return _charts(
        "Over checkpoints",
        [
            (f"{title}: {series[0][1][0].headline[0]}", figures.over_steps(series, names))
            for title, series in curves(results).items()
        ],
    )


def _many_samples(results: Sequence[Result]) -> str:
    return _charts(
        "Several samples: pass@k",
        [
            (g[0].title, figures.pass_at_k(g))
            for g in by_benchmark(results)
            if any(map(figures.pass_at_k_values, g))
        ],
    )


def _by_group(results: Sequence[Result]) -> str:
    shown_groups = [[r for r in g if r.metrics.get("groups")][-6:] for g in by_benchmark(results)]
    return _charts(
        "By level or subject (problems)",
        [(g[0].title, figures.groups(g)) for g in shown_groups if g and len(figures.group_names(g)) > 1],
    )


def _lengths(results: Sequence[Result]) -> str:
    """Of a training run only its ends: between them the plots would bury the rest of the page."""
    measured = [r for r in ends(results) if r.grades and "tokens" in r.grades[0]]
    return _charts("Response lengths", [(f"{r.title}: {r.label}", figures.lengths(r)) for r in measured])


def ends(results: Sequence[Result], *, first: bool = True) -> list[Result]:
    """The last step of each series on each benchmark, and its first; results without steps all."""
    steps: dict[tuple[str, str], list[int]] = {}
    for r in results:
        if r.step is not None:
            steps.setdefault((r.title, r.series), []).append(r.step)
    kept = {key: {max(found), min(found)} if first else {max(found)} for key, found in steps.items()}
    return [r for r in results if r.step is None or r.step in kept[r.title, r.series]]


# ---- responses to read


def _failed(result: Result, count: int) -> str:
    items = failed_items(result, count)
    if not items:
        return ""
    total = sum(map(failed, result.grades))
    heading = "Not won" if result.metrics.get("preference") else "Not right"
    cards = "".join(_item(grade, row) for grade, row in items)
    return (
        f"<h2>{heading}: {escape(result.label)} on {escape(result.title)}</h2>"
        f'<p class="label">{len(items)} of {total:,}, spread over the reasons.</p>{cards}'
    )


def _item(grade: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    reason = grade.get("reason", grade.get("outcome", ""))
    answer = grade.get("answer")
    gold = row["gold"]
    if isinstance(gold, dict):
        gold = gold.get("reference") or ", ".join(f"{k}: {v}" for k, v in gold.items())
    ending = ", cut off" if grade.get("truncated") else ""
    why = str(reason) if reason == "cut off" else f"{reason}{ending}"
    title = figures.short(" ".join(row["prompt"].split()), 110)
    sides = [
        _side(f"problem {row['id']}, sample {row['sample']}", row["prompt"], wide=True),
        _side(f"response, {row['tokens']:,} tokens{ending}", clipped(row["text"]), wide=True),
        _side("answer found", "none" if answer is None else str(answer)),
        _side("reference", figures.short(gold, 1500)),
    ]
    return (
        f'<details class="card"><summary>{escape(title)}<span class="tag wrong">{escape(why)}</span>'
        f'</summary><div class="pair">{"".join(sides)}</div></details>'
    )


def _side(label: str, text: str, *, wide: bool = False) -> str:
    kind = "side prompt" if wide else "side"
    return f'<div class="{kind}"><div class="label">{escape(label)}</div><pre>{escape(text)}</pre></div>'


def clipped(text: str) -> str:
    """Both ends of a long response."""
    if len(text) <= _MOST_SHOWN:
        return text
    half = _MOST_SHOWN // 2
    return f"{text[:half]}\n\n[... {len(text) - 2 * half:,} characters left out ...]\n\n{text[-half:]}"
