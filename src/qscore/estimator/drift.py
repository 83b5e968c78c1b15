"""Whether features fire as often as they did: exact tests on counts, one per feature and one for all."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

__all__ = ["Drift", "fisher_exact", "measure_drift"]

TIE = 1 + 1e-7  # outcomes this close in probability are equally likely; their difference is rounding


@dataclass(frozen=True)
class Drift:
    """How the activation rates of new rows differ from those of the fitted rows."""

    rate_before: Float[np.ndarray, " r"]
    """Activation rate of each feature in the fitted rows."""
    rate_now: Float[np.ndarray, " r"]
    """Activation rate of each feature in the new rows."""
    p_values: Float[np.ndarray, " r"]
    """Fisher's exact test, two-sided: the probability of all outcomes no likelier than the one seen."""
    adjusted_p_values: Float[np.ndarray, " r"]
    """The same by Benjamini and Hochberg; 1 for features that fire in no row."""
    features: Int[np.ndarray, " k"]
    """The features that moved: those whose adjusted p-value is at most alpha, ascending by it."""
    statistic: float
    """Global test: the smallest p-value."""
    p_value: float
    """Global test: Bonferroni's p-value of the smallest, over the features that fire; holds under any dependence."""
    alpha: float
    """The level of `features`."""
    n_before: int
    """Fitted rows."""
    n_now: int
    """New rows."""


def measure_drift(
    before: Int[np.ndarray, " r"], n_before: int, now: Int[np.ndarray, " r"], n_now: int, *, alpha: float = 0.05
) -> Drift:
    """Compare two tables' activation counts, feature by feature and as a whole.

    Parameters
    ----------
    before, now : ndarray of int, shape (r,)
        Rows in which each feature is highly active.
    n_before, n_now : int
        Rows counted over, >= 0 and >= 1.
    alpha : float, default=0.05
        Adjusted p-value, in (0, 1), up to which a feature counts as moved.

    Returns
    -------
    Drift
        Rates, p-values, the features that moved, and the global test.

    Examples
    --------
    >>> drift = measure_drift(np.array([50, 20, 0]), 1000, np.array([6, 30, 0]), 100)
    >>> drift.features, drift.p_values.round(3), round(drift.p_value, 9)
    (array([1]), array([0.632, 0.   , 1.   ]), 0.0)
    """
    fires = before + now > 0
    p_values = fisher_exact(before, n_before, now, n_now)
    adjusted = np.ones(len(p_values))
    if fires.any():  # given the pooled rows it is settled which features fire, so that leaving the others out is fair
        adjusted[fires] = stats.false_discovery_control(p_values[fires], method="bh")
    order = np.lexsort((p_values, adjusted))
    smallest = float(p_values.min())
    return Drift(
        rate_before=before / max(n_before, 1),
        rate_now=now / max(n_now, 1),
        p_values=p_values,
        adjusted_p_values=adjusted,
        features=order[adjusted[order] <= alpha],
        statistic=smallest,
        p_value=min(1.0, smallest * int(fires.sum())) if fires.any() else 1.0,
        alpha=alpha,
        n_before=n_before,
        n_now=n_now,
    )


def fisher_exact(
    before: Int[np.ndarray, " r"], n_before: int, now: Int[np.ndarray, " r"], n_now: int
) -> Float[np.ndarray, " r"]:
    """Return the two-sided p-value of Fisher's exact test of each feature.

    Two-sided as in R and SciPy: the probability of all outcomes that are no likelier than the one seen, given how often
    the feature fires in all. Parameters as in :func:`measure_drift`.

    Examples
    --------
    >>> fisher_exact(np.array([3]), 4, np.array([1]), 4)
    array([0.48571429])
    """
    # Many features share their counts, and each pair is worked out once.
    pairs, inverse = np.unique(np.stack([before, now]), axis=1, return_inverse=True)
    total, n = pairs.sum(axis=0), n_before + n_now
    # The observed count is put below the mode: where it is above, its complement in the other table is below.
    above = pairs[1] > (n_now + 1) * (total + 1) // (n + 2)
    seen, drawn = np.where(above, pairs[0], pairs[1]), np.where(above, n_before, n_now)
    mode = (drawn + 1) * (total + 1) // (n + 2)
    limit = stats.hypergeom.pmf(seen, n, total, drawn) * TIE
    low, high = mode, np.minimum(total, drawn) + 1
    while (high - low > 1).any():  # beyond the mode probabilities only fall: bisect for the first no likelier outcome
        middle = (low + high) // 2
        likelier = stats.hypergeom.pmf(middle, n, total, drawn) > limit
        low, high = np.where(likelier, middle, low), np.where(likelier, high, middle)
    tails = stats.hypergeom.cdf(seen, n, total, drawn) + stats.hypergeom.sf(high - 1, n, total, drawn)
    at_mode = stats.hypergeom.pmf(mode, n, total, drawn) <= limit
    p_values: np.ndarray = np.where(at_mode, 1.0, np.minimum(tails, 1.0))[inverse.reshape(-1)]
    return p_values
