"""Differences between encoders on the same test rows: intervals, and the smallest effect that could be seen."""

import numpy as np
from jaxtyping import Float

from qscore.metrics import Interval

__all__ = ["bootstrap_means", "interval", "minimum_effect", "shown_from"]

DRAWN_ROWS = 2**21  # rows drawn at a time
POWER = 1.96 + 0.84  # standard errors: a two-sided test at 5 % sees such a difference in 80 % of all cases


def bootstrap_means(
    values: Float[np.ndarray, "n m"], *, resamples: int = 2000, seed: int = 0
) -> Float[np.ndarray, "1+resamples m"]:
    """Return the columns' means over the rows as they are, then over bootstrap resamples, the same for all columns.

    Parameters
    ----------
    values : ndarray of shape (n, m)
        NaN where a row has no value: it does not count in that column.
    resamples : int, default=2000
        Resamples of the rows.
    seed : int, default=0
        Of the resamples.

    Examples
    --------
    >>> drawn = bootstrap_means(np.array([[1.0, 1.0], [3.0, np.nan]]), resamples=100)
    >>> drawn.shape, drawn[0].tolist(), sorted(set(drawn[1:, 0].tolist()))
    ((101, 2), [2.0, 1.0], [1.0, 2.0, 3.0])
    """
    n = len(values)
    known = ~np.isnan(values)
    filled, counts = np.where(known, values, 0.0), known.astype(np.float64)
    rng = np.random.default_rng(seed)
    found = [_weighted(np.ones((1, n)), filled, counts)]
    step = max(1, DRAWN_ROWS // n)
    for start in range(0, resamples, step):
        b = min(step, resamples - start)
        drawn = rng.integers(0, n, (b, n)) + n * np.arange(b)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=b * n).reshape(b, n).astype(np.float64)
        found.append(_weighted(weights, filled, counts))
    return np.concatenate(found)


def _weighted(weights: np.ndarray, filled: np.ndarray, counts: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # a resample may miss all values of a column
        return np.asarray((weights @ filled) / (weights @ counts))


def interval(drawn: Float[np.ndarray, " b"]) -> Interval:
    """Return the first value, with the 2.5 % and 97.5 % quantiles of the others that are defined."""
    others = drawn[1:][~np.isnan(drawn[1:])]
    low, high = np.quantile(others, [0.025, 0.975]).tolist() if len(others) else (np.nan, np.nan)
    return Interval(float(drawn[0]), low, high)


def minimum_effect(differences: Float[np.ndarray, " n"]) -> float:
    """Return the smallest mean difference that as many such rows would show in 80 % of all cases, at the 5 % level.

    ``(1.96 + 0.84) * s / sqrt(n)``, s the standard deviation of the paired differences; NaN for fewer than two rows
    and where all differ alike, as where none differs: that s is 0 does not mean that any effect would be seen.

    Parameters
    ----------
    differences : ndarray of shape (n,)
        Of the same rows between two encoders; NaN where there is none.

    Examples
    --------
    >>> round(minimum_effect(np.array([1.0, 0.0, 0.0, -1.0] * 25)), 4)
    0.199
    """
    known = differences[~np.isnan(differences)]
    if len(known) < 2 or (known == known[0]).all():
        return float("nan")
    return float(POWER * known.std(ddof=1) / np.sqrt(len(known)))


def shown_from(effect: float) -> str:
    """Say which changes of an accuracy rows can show.

    Examples
    --------
    >>> shown_from(0.0123)
    'these rows show changes from 1.23 points on'
    """
    if np.isnan(effect):
        return "all rows change alike, which does not tell how small a change they would show"
    return f"these rows show changes from {100 * effect:.2f} points on"
