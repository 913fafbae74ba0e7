"""Noise of other packages is left out by its words; everything else they say is still said."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from posttrain.process.quiet import NOISE, leave_out_noise


def test_a_named_message_is_left_out_and_its_neighbours_are_not(caplog: pytest.LogCaptureFixture) -> None:
    leave_out_noise()
    deepspeed = logging.getLogger("DeepSpeed")
    deepspeed.propagate = True  # its import, where a test made it, turns this off
    deepspeed.warning(
        "Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it."
    )
    deepspeed.warning("the loss scale fell to %s", 1)
    logging.getLogger("elsewhere").warning("Setting accelerator to CPU")
    said = list(
        dict.fromkeys(caplog.messages)
    )  # DeepSpeed's own handler, where it is imported, says a line again
    assert said == ["the loss scale fell to 1", "Setting accelerator to CPU"]


def test_filters_do_not_pile_up() -> None:
    for _ in range(3):
        leave_out_noise()
    for noise in NOISE:
        assert sum(vars(one).get("noise") == noise for one in logging.getLogger(noise.logger).filters) == 1
        assert len(noise.reason.split()) > 5


def test_a_command_is_quiet_and_a_program_that_imports_the_package_is_not() -> None:
    say = "import logging; logging.getLogger('DeepSpeed').warning('Setting accelerator to CPU'); "
    for call, heard in (
        ("import posttrain", True),
        ("from posttrain.cli import main; main(['--version'])", False),
    ):
        done = subprocess.run(
            [sys.executable, "-c", f"{call}; {say}"], capture_output=True, text=True, check=True
        )
        assert ("Setting accelerator" in done.stderr) is heard, call
