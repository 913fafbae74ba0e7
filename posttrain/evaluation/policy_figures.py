"""How a judge of a policy judges a file of responses, and where they are labelled how often it agrees: with
precedents, and on the same responses without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from posttrain.data.exchanges import LabelledExchange
from posttrain.evaluation import estimators, store
from posttrain.judges.policy_judge import PolicyJudge, PolicyVerdict
from posttrain.judges.precedents import COMPLIES, VIOLATES

VERDICTS, RESULTS = "verdicts.jsonl", "guard.json"
WITH, WITHOUT = "with precedents", "policy alone"

Verdicts = Mapping[str, Sequence[PolicyVerdict]]


def judge_file(
    judges: Mapping[str, PolicyJudge], rows: Sequence[LabelledExchange], progress: Callable[[], None]
) -> dict[str, list[PolicyVerdict]]:
    """Arm -> verdicts. A response that is a precedent itself is never shown its own: its label would stand there."""
    exchanges = [row.exchange for row in rows]
    return {arm: judge.judge(exchanges, but_itself=True, progress=progress) for arm, judge in judges.items()}


def figures(rows: Sequence[LabelledExchange], found: Verdicts) -> dict[str, Any]:
    """Shares with 95 % intervals by arm, and the paired difference of agreement between the arms.

    violates    of the judged responses; agreement with the labels; missed: of labelled violations those found to
                comply; false_alarms: of labelled compliance what was found to violate. None where there is none
    """
    labels = [row.label for row in rows]
    arms = {arm: _of_arm(labels, verdicts) for arm, verdicts in found.items()}
    return {"responses": len(rows), "arms": arms, "difference": _difference(labels, found)}


def write(out: Path, rows: Sequence[LabelledExchange], found: Verdicts, result: Mapping[str, Any]) -> None:
    """guard.json, and verdicts.jsonl: one line a response."""
    store.write_lines(
        out / VERDICTS,
        (
            {
                "prompt": row.exchange.prompt,
                "text": row.exchange.text,
                "label": row.label,
                **{arm: asdict(verdicts[i]) for arm, verdicts in found.items()},
            }
            for i, row in enumerate(rows)
        ),
    )
    store.write_json(out / RESULTS, dict(result))


def _of_arm(labels: Sequence[str | None], verdicts: Sequence[PolicyVerdict]) -> dict[str, Any]:
    judged = [(label, one.verdict) for label, one in zip(labels, verdicts, strict=True) if one.verdict]
    labelled = [(label, verdict) for label, verdict in judged if label is not None]
    return {
        "judged": len(judged),
        "unjudged": dict(sorted(Counter(one.fault for one in verdicts if one.verdict is None).items())),
        "shown": sum(one.precedents for one in verdicts) / len(verdicts),
        "violates": _share([verdict == VIOLATES for _, verdict in judged]),
        "agreement": _share([label == verdict for label, verdict in labelled]),
        "missed": _share([verdict == COMPLIES for label, verdict in labelled if label == VIOLATES]),
        "false_alarms": _share([verdict == VIOLATES for label, verdict in labelled if label == COMPLIES]),
    }


def _share(cases: Sequence[bool]) -> dict[str, Any] | None:
    if not cases:
        return None
    low, high = estimators.wilson_interval(sum(cases), len(cases))
    return {"value": sum(cases) / len(cases), "interval": [low, high], "of": len(cases)}


def _difference(labels: Sequence[str | None], found: Verdicts) -> dict[str, Any] | None:
    """Agreement with precedents minus that without, over the labelled responses that both arms judged."""
    if not {WITH, WITHOUT} <= set(found):
        return None
    both = [
        (float(one.verdict == label), float(other.verdict == label))
        for label, one, other in zip(labels, found[WITH], found[WITHOUT], strict=True)
        if label is not None and one.verdict is not None and other.verdict is not None
    ]
    if not both:
        return None
    d = estimators.paired_difference([b for _, b in both], [a for a, _ in both])
    return {
        "value": d.value,
        "interval": [d.low, d.high],
        "p": d.p_value,
        "of": d.problems,
        "better": d.better,
        "worse": d.worse,
    }
