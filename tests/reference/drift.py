"""Fisher's exact test by counting in whole numbers, and Benjamini and Hochberg's adjustment by its definition."""

from fractions import Fraction
from math import comb


def fisher_exact(before, n_before, now, n_now):
    total, n = before + now, n_before + n_now
    ways = {x: comb(total, x) * comb(n - total, n_now - x) for x in range(total + 1) if 0 <= n_now - x <= n - total}
    return float(Fraction(sum(w for w in ways.values() if w <= ways[now]), sum(ways.values())))


def benjamini_hochberg(p_values):
    """The smallest level at which each hypothesis is rejected by the step-up rule."""
    m = len(p_values)
    ordered = sorted(p_values)
    levels = [m * p / (k + 1) for k, p in enumerate(ordered)]
    return [min(1.0, *(level for level, q in zip(levels, ordered, strict=True) if q >= p), 1.0) for p in p_values]
