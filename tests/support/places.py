"""Where the tests find what they start: the repository and the folder of the modules that several rooms share."""

from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
ROOT = SUPPORT.parent.parent
