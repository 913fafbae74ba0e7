"""`posttrain data precedents` and `posttrain eval guard`, with a judge on loopback that learns from precedents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripted_judge import Heard, scripted_judge

from posttrain.cli import main
from posttrain.data.exchanges import labelled_exchanges
from posttrain.data.files import DataError
from posttrain.evaluation.policy_figures import WITH, WITHOUT, figures
from posttrain.judges.policy_judge import PolicyVerdict
from posttrain.judges.precedents import read_precedents
from posttrain.process import exit_codes

ROWS = [
    {"prompt": "the bus?", "response": "Take bus 4.", "verdict": "complies"},
    {"prompt": "your phone?", "response": "Call five five.", "verdict": "violates"},
    {"prompt": "your phone?", "response": "Call 55.", "verdict": "unsafe"},
    {"prompt": "your phone?", "response": "Call six.", "verdict": "violates"},
    {"prompt": "the bus?", "response": "Walk.", "verdict": None},
]


def says(question: str) -> str:
    """Takes digits for phone numbers, until it is told that what follows "Call" is one."""
    shown = question.rpartition("\n<exchange>")[2]
    response = shown.rpartition("RESPONSE: ")[2].partition("\n")[0]
    if "Name the mistake" in question:
        return "What follows Call is a phone number, nothing else is."
    taught = "follows Call" in question
    bad = "Call" in response if taught else any(c.isdigit() for c in response)
    why = "What follows Call is a number." if taught else "I looked for digits."
    return f"{why}\nVERDICT: {'violates' if bad else 'complies'}"


def files(folder: Path) -> list[str]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "policy.md").write_text("No phone numbers.")
    return [str(folder / "rows.jsonl"), "--policy", str(folder / "policy.md"), "--judge", "scripted"]


def collect(folder: Path, heard: Heard, *more: str) -> int:
    out = ["--base-url", heard.url, "--retries", "0", "--out", str(folder / "precedents.jsonl")]
    return main(["data", "precedents", *files(folder), *out, *more])


@pytest.mark.search
@pytest.mark.evaluation
def test_precedents_are_collected_and_the_guard_agrees_more_with_them(tmp_path: Path, capsys: Any) -> None:
    with scripted_judge(says) as heard:
        assert collect(tmp_path, heard) == 0
        told = capsys.readouterr().out
        assert "5 rows, 1 without a label, 0 repeated" in told
        assert (
            "reached the label: 1 at once, 3 after revision 1; dropped: 0 that never did, 0 without" in told
        )
        found = read_precedents(tmp_path / "precedents.jsonl")
        assert [(one.text, one.verdict, one.revisions) for one in found] == [
            ("Take bus 4.", "complies", 1), ("Call five five.", "violates", 1), ("Call 55.", "violates", 0),
            ("Call six.", "violates", 1),
        ]  # fmt: skip
        assert found[1].reasoning == "What follows Call is a number."
        assert collect(tmp_path, heard) == exit_codes.REFUSED  # it is there
        (tmp_path / "precedents.jsonl").unlink()
        asked = len(heard.requests)
        assert collect(tmp_path, heard) == 0
        assert len(heard.requests) == asked
        capsys.readouterr()

        guard = ["eval", "guard", *files(tmp_path), "--base-url", heard.url, "--retries", "0", "--out",
                 str(tmp_path / "out"), "--precedents", str(tmp_path / "precedents.jsonl"), "--compare"]  # fmt: skip
        assert main(guard) == 0
        asked = len(heard.requests)
        assert main(guard) == 0
        assert len(heard.requests) == asked
    result = json.loads((tmp_path / "out" / "guard.json").read_text())
    arms = result["arms"]
    # the policy alone is right about "Call 55." only. With precedents all calls are found; the bus has none but its own
    assert arms[WITHOUT]["agreement"]["value"] == 1 / 4
    assert arms[WITH]["agreement"]["value"] == 3 / 4
    assert arms[WITH]["false_alarms"]["value"] == 1.0
    assert (result["difference"]["better"], result["difference"]["worse"]) == (2, 0)
    assert (result["asked"], result["from_file"]) == (0, 10)
    lines = [json.loads(line) for line in (tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == ["complies", *["violates"] * 3, None]
    assert lines[1][WITH]["precedents"] == 2  # the other calls, and not itself
    assert "5 of 5" in capsys.readouterr().out


@pytest.mark.evaluation
def test_a_judge_that_is_not_there_or_refuses_ends_with_its_code(tmp_path: Path, capsys: Any) -> None:
    guard = [
        "eval",
        "guard",
        *files(tmp_path),
        "--retries",
        "0",
        "--out",
        str(tmp_path / "out"),
        "--base-url",
    ]
    assert main([*guard, "http://127.0.0.1:9/v1"]) == exit_codes.ENGINE_LOST
    told = capsys.readouterr()
    assert "not one of 5 responses was judged; the same command asks again" in told.err
    assert "no connection" in told.out
    with scripted_judge(lambda question: 401) as heard:
        assert main([*guard, heard.url]) == exit_codes.ENGINE_LOST
        assert collect(tmp_path, heard) == exit_codes.ENGINE_LOST
    assert main([*guard, "nowhere"]) == 2
    assert main([*guard, "http://127.0.0.1:9/v1", "--compare"]) == 2
    assert "--compare needs --precedents" in capsys.readouterr().err


def test_shares_by_hand() -> None:
    rows = labelled_exchanges([*ROWS[:3], ROWS[4]], "rows")
    judged = [PolicyVerdict(v, "", 2) for v in ("violates", "complies", "violates", "complies")]
    unjudged = [PolicyVerdict(None, "", 0, "no verdict"), *judged[1:]]
    right = [PolicyVerdict(v, "", 2) for v in ("complies", "violates", "violates", "complies")]
    found = figures(rows, {WITHOUT: judged, WITH: right})
    alone = found["arms"][WITHOUT]
    assert (alone["judged"], alone["unjudged"], alone["shown"]) == (4, {}, 2.0)
    assert [alone[name]["value"] for name in ("violates", "agreement", "missed", "false_alarms")] == [
        0.5, pytest.approx(1 / 3), 0.5, 1.0,
    ]  # fmt: skip
    d = found["difference"]
    assert (d["value"], d["of"], d["better"], d["worse"]) == (pytest.approx(2 / 3), 3, 2, 0)
    part = figures(rows, {WITHOUT: unjudged})
    assert part["arms"][WITHOUT]["unjudged"] == {"no verdict": 1}
    assert part["arms"][WITHOUT]["false_alarms"] is None
    assert part["difference"] is None


def test_rows_that_cannot_be_judged_are_named() -> None:
    talk = [{"role": "user", "content": "hi"}, {"role": "user", "content": "ho"}]
    (one,) = labelled_exchanges([{"prompt": talk, "text": "x"}], "f")
    assert (one.exchange.prompt, one.label) == ("hi\nho", None)
    for rows, more, said in (
        ([], {}, "f: holds no row"),
        ([{"a": "x"}], {}, "no column text or response or completion or output; its columns are a"),
        ([{"text": "x"}, {"text": 3}], {}, "row 2 has no text in column 'text'"),
        ([{"text": "x"}], {"prompt": "q"}, "no column 'q'"),
        ([{"text": "x"}], {"needs_label": True}, "name one with --label"),
        ([{"text": "x", "label": True}], {}, "row 1: the label True says neither"),
    ):
        with pytest.raises(DataError, match=said):
            labelled_exchanges(rows, "f", **more)  # type: ignore[arg-type]  # plain settings
