"""The account of a family and the page of `eval balance`, from rows and a result as they are written."""

from __future__ import annotations

from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from posttrain.observe.balance_page import show_balance, tables_of, write_balance_page
from posttrain.observe.family_table import family_table


def test_each_coefficient_has_its_means_at_either_end() -> None:
    rows: list[dict[str, Any]] = [
        {"step": s, "beta_family/0.1/reward": s / 10, "beta_family/0.1/kl": 2.0, "beta_family/0.1/share": 0.5}
        for s in range(1, 11)
    ]
    rows[0]["eval_beta_family/0.1/reward"] = 0.25
    rows[9] |= {"eval_beta_family/0.1/reward": 0.75, "beta_family/0/share": 0.5}
    table = family_table(rows)
    assert table is not None
    assert table.rows == [
        ["0", "0.5", "–", "–", "–", "–", "–"],
        ["0.1", "0.5", "0.3", "0.8", "2", "0.25", "0.75"],
    ]
    assert "<td" in table.html()
    assert family_table([{"step": 1, "reward": 1.0}]) is None


def earned(reward: float, kl: float) -> dict[str, Any]:
    return {"reward": reward, "reward_error": 0.01, "kl": kl, "gain": 0.02, "gain_error": 0.005}


FOUND: dict[str, Any] = {
    "values": [0.0, 0.1],
    "prefixes": ["a", "b"],
    "samples": 4,
    "prompts": {"calibration": 8, "evaluation": 8},
    "each": {"0": earned(0.5, 9.0), "0.1": earned(0.625, 1.5)},
    "choices": {name: earned(0.6, 3.0) for name in ("single best", "pass-rate bins", "balance model")},
    "counts": {"single best": [0, 8], "pass-rate bins": [2, 6], "balance model": [3, 5]},
    "bins": {"edges": [0.25, 0.75], "values": [0.0, 0.1, 0.1]},
    "model": {
        "features": ["length"],
        "values": [0.0, 0.1],
        "center": [4.0],
        "scale": [1.0],
        "weights": [[0.5, -0.5]],
        "bias": [-0.25, 0.25],
    },
}


def test_the_tables_say_what_was_found() -> None:
    each, choices, bins, weights = tables_of(FOUND)
    assert each[2][1] == ["0.1", "0.625 (0.010)", "1.500"]
    assert choices[2][0][3] == "–"
    assert choices[2][2] == ["balance model", "0.600 (0.010)", "3.000", "+0.020 (0.005)", "3", "5"]
    assert bins[2] == [["below 0.25", "0"], ["0.25 to 0.75", "0.1"], ["0.75 and above", "0.1"]]
    assert weights[2] == [["length", "4", "+0.50", "-0.50"], ["bias", "", "-0.25", "+0.25"]]


def test_the_page_has_both_curves_and_every_table(tmp_path: Path) -> None:
    write_balance_page(FOUND, "run", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    shown = StringIO()
    show_balance(FOUND, Console(file=shown, width=140))
    for title, _, rows, _ in tables_of(FOUND):
        assert f"<h2>{escape(title)}</h2>" in page
        assert title in shown.getvalue()
        assert all(f">{rows[0][0]}<" in page for _ in rows[:1])
