"""Know a data set before training on it: `posttrain data describe`, and the warnings that `posttrain plan` quotes."""

from __future__ import annotations

from posttrain.data.describe.data_warnings import warnings_of
from posttrain.data.describe.description import Description, describe, describe_mapped

__all__ = ["Description", "describe", "describe_mapped", "warnings_of"]
