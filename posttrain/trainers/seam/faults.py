"""What ends a run for its own sake. No torch: the command line tells these apart before anything is loaded."""

from __future__ import annotations


class NotFinite(ArithmeticError):
    """A NaN or an infinity where training needs numbers. The message names the tensor, the step and the last
    checkpoint; nothing has been saved over it."""


class NotUnderThisEngine(ValueError):
    """What a method needs and the engine that was started does not have: the run is refused."""
