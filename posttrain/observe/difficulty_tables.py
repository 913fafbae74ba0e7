"""How hard the rows of a data set are, in the terminal: how many at 0, at 1 and between, a histogram, what it cost."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from posttrain.data.measured_rows import MeasuredBatch
from posttrain.observe.progress import clock

BINS = 10
_WIDTH = 40


def histogram(rates: Sequence[float]) -> list[tuple[str, int]]:
    """(label, rows): exactly 0, ten equal bins between, each without its lower end, and exactly 1."""
    counts = [0] * (BINS + 2)
    for rate in rates:
        # a rate is a fraction of few samples: its float is within a rounding of a bin's end
        place = 0 if rate == 0 else BINS + 1 if rate == 1 else -int(-(rate * BINS - 1e-9) // 1)
        counts[place] += 1
    between = [f"to {number / BINS:.1f}" for number in range(1, BINS)] + ["below 1"]
    return list(zip(["0", *between, "1"], counts, strict=True))


def print_difficulty(batches: Sequence[MeasuredBatch], console: Console) -> None:
    """The table and the histogram of all batches."""
    rows = [rate for batch in batches for rate in batch.rates]
    rates = [row.pass_rate for row in rows if row.pass_rate is not None]
    console.print(_table(batches, len(rows), rates, [row.mean_reward for row in rows]))
    if not rates:
        return
    bins = histogram(rates)
    most = max(count for _, count in bins)
    drawn = Table(
        title="rows by pass rate", title_justify="left", box=None, show_header=False, padding=(0, 1)
    )
    drawn.add_column(justify="right")
    drawn.add_column(justify="right")
    drawn.add_column()
    for label, count in bins:
        bar = "█" * -(-count * _WIDTH // most)
        drawn.add_row(label, f"{count:,}", bar)
    console.print(drawn)


def _table(
    batches: Sequence[MeasuredBatch], count: int, rates: Sequence[float], means: Sequence[float | None]
) -> Table:
    responses = sum(one.responses for one in batches)
    tokens, seconds = sum(one.tokens for one in batches), sum(one.seconds for one in batches)
    rewards = [mean for mean in means if mean is not None]
    zero, one_ = sum(rate == 0 for rate in rates), sum(rate == 1 for rate in rates)
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()

    def share(name: str, part: int, whole: int) -> None:
        table.add_row(name, f"{part:,}", f"{part / whole:.1%}" if whole else "")

    table.add_row("rows measured", f"{count:,}", "")
    share("pass rate 0", zero, count)
    share("between", len(rates) - zero - one_, count)
    share("pass rate 1", one_, count)
    share("never judged", count - len(rates), count)
    if rates:
        table.add_row("mean pass rate", f"{sum(rates) / len(rates):.3f}", "")
        table.add_row("mean reward", f"{sum(rewards) / len(rewards):.3f}", "")
    table.add_row("responses", f"{responses:,}", "")
    share("unjudged", sum(one.unjudged for one in batches), responses)
    share("cut at max_new_tokens", sum(one.cut for one in batches), responses)
    pace = f"{tokens / seconds:,.0f} a second" if seconds else ""
    table.add_row("tokens written", f"{tokens:,}", pace)
    table.add_row("time", clock(seconds), "")
    return table
