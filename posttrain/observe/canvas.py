"""How every plot of a page looks, and how a figure becomes part of the page."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

MUTED, LINE = "#6b7280", "#e5e7eb"
PALETTE = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626", "#0891b2", "#65a30d", "#db2777")


def dress(ax: Any, xlabel: str) -> None:
    """Two spines, a light grid behind the curves, small grey labels."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#9ca3af")
    ax.tick_params(colors=MUTED, labelsize=8.5, length=3)
    ax.grid(axis="y", color=LINE, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_xlabel(xlabel, color=MUTED, fontsize=8.5)


def svg(figure: Figure, title: str) -> str:
    """The figure as an <svg> element without a fixed size, the same bytes each time.

    Text stays text (laid out with a wide font, so that the page's narrower one never overlaps).
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for attribute in ("height", "width"):
        text = re.sub(rf'\s{attribute}="[^"]*pt"', "", text, count=1)
    safe = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg", f'<svg role="img" aria-label="{safe}"', 1)
