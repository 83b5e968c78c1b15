"""Weights of terms: their checks, what divides them, and their calibration."""

import math
import numbers
from collections.abc import Sequence
from typing import Any, Literal

from qscore._validate import QScoreError

__all__ = ["SHARE", "Reduction", "calibrated", "check_reduction", "check_share", "check_weight", "ratios"]

Reduction = Literal["sum", "mean"]

SHARE = 0.1  # of the self-supervised loss's gradient norm on H


def check_weight(name: str, weight: Any) -> float:
    """Return a weight as a float.

    Raises
    ------
    QScoreError
        If it is negative, or no finite number.
    """
    number = isinstance(weight, numbers.Real) and not isinstance(weight, bool)
    if not number or not math.isfinite(weight) or weight < 0:
        raise QScoreError(f"{name}: expected a number of at least 0, got {weight!r}")
    return float(weight)


def check_share(share: Any) -> float:
    """Return a share of a gradient's norm as a float.

    Raises
    ------
    QScoreError
        If it is not positive, or no finite number.
    """
    if not check_weight("share", share):
        raise QScoreError(f"share: expected a positive number, got {share!r}")
    return float(share)


def check_reduction(reduction: Any) -> Reduction:
    """Return the reduction.

    Raises
    ------
    QScoreError
        If it is neither ``"sum"`` nor ``"mean"``.
    """
    if reduction not in ("sum", "mean"):
        raise QScoreError(f"reduction: expected 'sum' or 'mean', got {reduction!r}")
    checked: Reduction = reduction
    return checked


def calibrated(ssl_norm: float, norms: Sequence[float], names: Sequence[str], share: float) -> list[float]:
    """Return the weights that give each term this share of the loss's gradient norm.

    Raises
    ------
    QScoreError
        If the loss, or a term, has no gradient to measure by.
    """
    if not 0 < ssl_norm < math.inf:
        raise QScoreError(f"calibrate: the norm of ssl_loss's gradient on h is {ssl_norm:g}; take another batch")
    for name, norm in zip(names, norms, strict=True):
        if not 0 < norm < math.inf:
            raise QScoreError(
                f"calibrate: the norm of {name}'s gradient on h is {norm:g}; take another batch, or find D at a "
                "smaller epsilon"
            )
    return [share * ssl_norm / norm for norm in norms]


def ratios(ssl_norm: float, norms: Sequence[float]) -> list[float]:
    """Return each term's gradient norm as a share of the loss's; NaN where the loss has none."""
    return [norm / ssl_norm if ssl_norm else math.nan for norm in norms]
