"""A number, and between which bounds it would come out on other rows."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

__all__ = ["Interval", "mean_interval"]

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
