"""Isotonic regression, binomial bounds and the sequence of tests, each from its definition."""

import math
from fractions import Fraction


def binomial_cdf(e, n, p):
    return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(e + 1))


def upper_bound(e, n, delta):
    """The largest rate at which e or fewer of n still have probability delta, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_cdf(e, n, middle) > delta else (low, middle)
    return high if e < n else 1.0


def falling_isotonic(score, wrong):
    """The falling fit at each distinct score: max over starts of min over ends of block means (the max-min formula)."""
    levels = sorted(set(score), reverse=True)  # rising in the probability of failure
    sums = [sum(w for s, w in zip(score, wrong, strict=True) if s == level) for level in levels]
    sizes = [sum(s == level for s in score) for level in levels]

    def mean(a, b):
        return Fraction(int(sum(sums[a : b + 1])), int(sum(sizes[a : b + 1])))

    fit = [max(min(mean(a, b) for b in range(j, len(levels))) for a in range(j + 1)) for j in range(len(levels))]
    return {level: float(value) for level, value in zip(levels, fit, strict=True)}


def most_lenient(score, wrong, thresholds, wanted, delta):
    """Test thresholds one by one by the binomial tail; return the last before the first that is not rejected."""
    chosen = None
    for threshold in thresholds:
        accepted = [w for s, w in zip(score, wrong, strict=True) if s >= threshold]
        if not accepted or binomial_cdf(sum(accepted), len(accepted), wanted) > delta:
            break
        chosen = threshold
    return chosen
