"""How every plot of a page looks, and how a figure becomes part of the page."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, LINE, AXIS, MARK = "#1f2937", "#6b7280", "#e5e7eb", "#9ca3af", "#374151"
PALETTE = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626", "#0891b2", "#65a30d", "#db2777")

# What the page has another colour for where it is dark (report_template.html defines both).
_VARIABLES = {
    **{INK: "ink", MUTED: "muted", LINE: "line", AXIS: "axis", MARK: "mark"},
    **{colour: f"plot-{i}" for i, colour in enumerate(PALETTE)},
}
_COLOUR = re.compile("|".join(_VARIABLES))


def themed(text: str) -> str:
    """Colours of a style as the page's variables, each with its light value for a page that has none."""
    return _COLOUR.sub(lambda found: f"var(--{_VARIABLES[found[0]]}, {found[0]})", text)


def dress(ax: Any, xlabel: str) -> None:
    """Two spines, a light grid behind the curves, small grey labels."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(AXIS)
    ax.tick_params(colors=MUTED, labelsize=8.5, length=3)
    ax.grid(axis="y", color=LINE, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_xlabel(xlabel, color=MUTED, fontsize=8.5)


def svg(figure: Figure, title: str) -> str:
    """The figure as an <svg> element without a fixed size, the same bytes each time.

    Text stays text (laid out with a wide font, so that the page's narrower one never overlaps).
    """
    for patch in (figure.patch, *(ax.patch for ax in figure.axes)):
        patch.set_visible(False)  # what the page has behind it shows through
    for legend in (ax.get_legend() for ax in figure.axes):
        for text in legend.get_texts() if legend is not None else ():
            text.set_color(INK)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = themed(text[text.index("<svg") :])
    for attribute in ("height", "width"):
        text = re.sub(rf'\s{attribute}="[^"]*pt"', "", text, count=1)
    safe = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg", f'<svg role="img" aria-label="{safe}"', 1)
