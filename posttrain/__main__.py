"""`python -m posttrain`, which launchers start: `accelerate launch -m posttrain train RECIPE`."""

from __future__ import annotations

import sys

from posttrain.cli import entry

if __name__ == "__main__":
    sys.exit(entry())
