"""What other packages say that nobody who trains can do anything about, and why it is left out of the commands' output.

One entry a message, matched by its logger and its words: anything else those packages say is still said, and programs
that import this package hear everything. No torch: the filters stand before the packages are imported.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class UnwantedMessage:
    """A message of a logger that begins as `pattern` (a regular expression) says."""

    logger: str
    pattern: str
    reason: str


NOISE = (
    UnwantedMessage(
        "DeepSpeed",
        r"Setting accelerator to CPU",
        "said by its import on a machine without a GPU, also where DeepSpeed is not used; the plan says what is used",
    ),
)


class _LeavesOut(logging.Filter):
    """Lets everything pass but one message."""

    def __init__(self, noise: UnwantedMessage) -> None:
        super().__init__()
        self.noise = noise

    def filter(self, record: logging.LogRecord) -> bool:
        return re.match(self.noise.pattern, record.getMessage()) is None


def leave_out_noise() -> None:
    """For the process of a command. Again and again does no harm."""
    for noise in NOISE:
        logger = logging.getLogger(noise.logger)
        if not any(isinstance(one, _LeavesOut) and one.noise == noise for one in logger.filters):
            logger.addFilter(_LeavesOut(noise))
