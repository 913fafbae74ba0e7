"""The exit codes of `posttrain train`, in one place; docs/faults.md says them to users. No imports: every room may.

Under `torchrun` and `accelerate launch` the launcher's own code is 1 whenever a process of it ended with another than
0; `posttrain launch` before the launcher's command gives the code below.
"""

from __future__ import annotations

DONE = 0
"""Trained to the end, or nothing was left to do."""

UNEXPECTED = 1
"""An error that is not one of those below; its traceback is printed."""

REFUSED = 2
"""A recipe, data, a folder or a launch that cannot run: one line, nothing was loaded."""

ENGINE_LOST = 3
"""No rollout engine answers any more; saved as of the last whole step."""

REWARD_FAILED = 4
"""A reward failed, and its on_error is raise, or an environment could not begin; saved as of the last whole step."""

NOT_FINITE = 5
"""A log-prob, loss, gradient or weight was not finite (a reward that is not: REWARD_FAILED).

The last good checkpoint stands; nothing was saved over it.
"""

NOT_WRITTEN = 6
"""The disk is full or the folder cannot be written any more; the last checkpoint is whole."""

PROCESS_LOST = 7
"""Another process of the run is gone (killed, out of memory, its machine lost); the last checkpoint is whole."""

STOPPED = 130
"""Asked to stop (Ctrl-C, SIGTERM, SIGHUP, SIGUSR1, a closed pipe); --resume goes on."""
