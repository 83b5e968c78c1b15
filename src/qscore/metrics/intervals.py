"""A number, and between which bounds it would come out on other rows."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

__all__ = ["Interval", "bootstrap_interval", "mean_interval", "spearman"]

BOOTSTRAP_ROWS = 10_000
BATCH = 64  # resamples drawn at a time
NORMAL_QUANTILE = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """A statistic and its 95 % interval."""

    value: float
    low: float
    high: float

    def contains(self, x: float) -> bool:
        """Tell whether x lies in the interval."""
        return self.low <= x <= self.high


def mean_interval(values: Float[np.ndarray, " n"], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return the mean of independent values, and its 95 % interval.

    Parameters
    ----------
    values : ndarray of shape (n,)
        Finite.
    resamples : int, default=2000
        Resamples of the percentile bootstrap, >= 1. Beyond 10,000 values the normal interval stands in its place,
        ``mean +- 1.96 s / sqrt(n)``, to which it converges.
    seed : int, default=0
        Seed of the resamples.

    Returns
    -------
    Interval
        Its bounds are NaN for a single value, and all of it where there are none.

    Examples
    --------
    >>> found = mean_interval(np.arange(100.0))
    >>> found.value, 43 < found.low < 45, 54 < found.high < 56
    (49.5, True, True)
    """
    n = len(values)
    if n < 2:
        return Interval(float(values[0]) if n else np.nan, np.nan, np.nan)
    mean = float(values.mean())
    if n > BOOTSTRAP_ROWS:
        margin = NORMAL_QUANTILE * float(values.std(ddof=1)) / n**0.5
        return Interval(mean, mean - margin, mean + margin)
    from scipy.stats import bootstrap  # a second of imports

    found = bootstrap(
        (values,), np.mean, n_resamples=resamples, batch=BATCH, method="percentile", random_state=seed
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def bootstrap_interval(
    statistic: Callable[[Integer[np.ndarray, " n"]], float], n: int, *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return a statistic of n rows, and its 95 % percentile bootstrap interval over rows.

    Parameters
    ----------
    statistic : callable
        Given the positions of n rows, in 0..n-1 and with repetitions, their statistic; NaN where it is undefined, and
        that resample does not count.
    n : int
        Rows.
    resamples : int, default=2000
        Resamples of the rows, >= 1.
    seed : int, default=0
        Seed of the resamples. Statistics of the same n and seed are paired.

    Returns
    -------
    Interval
        Its bounds are NaN where the statistic is undefined, and for fewer than two rows.

    Examples
    --------
    >>> x = np.arange(100.0)
    >>> found = bootstrap_interval(lambda rows: float(np.median(x[rows])), 100)
    >>> found.value, 38 < found.low < 46, 53 < found.high < 61
    (49.5, True, True)
    """
    value = statistic(np.arange(n)) if n else np.nan
    if n < 2 or np.isnan(value):
        return Interval(float(value), np.nan, np.nan)
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(rng.integers(0, n, n)) for _ in range(resamples)])
    defined = drawn[~np.isnan(drawn)]
    low, high = np.quantile(defined, [0.025, 0.975]).tolist() if len(defined) else (np.nan, np.nan)
    return Interval(float(value), low, high)


def spearman(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Return Spearman's rank correlation; NaN for fewer than two rows, or where one of the two is constant.

    Examples
    --------
    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([0.0, 10.0, 20.0]))
    1.0
    """
    from scipy.stats import rankdata

    if len(x) < 2:
        return float("nan")
    a, b = (ranks - ranks.mean() for ranks in (rankdata(x), rankdata(y)))
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else float("nan")
