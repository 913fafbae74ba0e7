"""CAPO and what only it uses: moments of the LM head, counts of token shifts, calibration of thresholds."""

from __future__ import annotations

from posttrain.objectives.capo.capo import CAPO
from posttrain.objectives.capo.shifts import candidate_scores, candidate_shifts, keep_tokens, predicted_shifts

__all__ = ["CAPO", "candidate_scores", "candidate_shifts", "keep_tokens", "predicted_shifts"]
