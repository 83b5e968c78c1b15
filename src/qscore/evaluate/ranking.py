"""How well a score tells correct rows from wrong ones: AUROC, average precision, AURC, and paired bootstrap intervals.

Every statistic is a sum over groups of tied scores, so that one pass over the ranked rows gives all of them, for the
rows as they are and for every bootstrap resample (rows weighted by how often they were drawn).
"""

from collections.abc import Mapping
from typing import Any

import numba
import numpy as np
from jaxtyping import Bool, Float

from qscore._validate import QScoreError
from qscore.metrics import Interval

__all__ = ["STATISTICS", "Interval", "bootstrap", "failure_statistics", "risk_coverage"]

STATISTICS = ("auroc", "ap_correct", "ap_wrong", "aurc")


@numba.njit(nogil=True)
def _statistics(  # pragma: no cover - compiled
    order: Any, group_ends: Any, correct: Any, weights: Any, harmonic: Any
) -> tuple[float, float, float, float]:
    """Return AUROC, AP (correct), AP (wrong) and AURC of rows ranked by falling score, each weighted."""
    n_correct, n_wrong = 0, 0
    for i in range(correct.shape[0]):
        if correct[i]:
            n_correct += weights[i]
        else:
            n_wrong += weights[i]
    n = n_correct + n_wrong
    if n_correct == 0 or n_wrong == 0:
        return np.nan, np.nan, np.nan, np.nan
    auroc, ap_correct, ap_wrong, aurc = 0.0, 0.0, 0.0, 0.0
    above_correct, above_wrong, tied_correct, tied_wrong = 0, 0, 0, 0
    for k in range(order.shape[0]):
        i = order[k]
        if correct[i]:
            tied_correct += weights[i]
        else:
            tied_wrong += weights[i]
        if not group_ends[k]:
            continue
        tied, above = tied_correct + tied_wrong, above_correct + above_wrong
        if tied > 0:
            auroc += tied_correct * (n_wrong - above_wrong - 0.5 * tied_wrong)
            ap_correct += tied_correct * (above_correct + tied_correct) / (above + tied)
            ap_wrong += tied_wrong * (n_wrong - above_wrong) / (n - above)
            # Over random orders of the tie, the first t of its m rows hold t e / m of its e errors:
            # sum over t of (E + t e / m) / (a + t), where a rows and E errors lie above.
            reciprocals = harmonic[above + tied] - harmonic[above]
            aurc += above_wrong * reciprocals + tied_wrong / tied * (tied - above * reciprocals)
        above_correct, above_wrong = above_correct + tied_correct, above_wrong + tied_wrong
        tied_correct, tied_wrong = 0, 0
    return auroc / (n_correct * n_wrong), ap_correct / n_correct, ap_wrong / n_wrong, aurc / n


def _rank(score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows by falling score, and where groups of ties end."""
    order = np.argsort(-score, stable=True)
    ranked = score[order]
    return order, np.append(ranked[1:] != ranked[:-1], True)


def _harmonic(n: int) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, n + 1))])


def failure_statistics(score: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"]) -> dict[str, float]:
    """Measure how well high scores go with correct rows.

    Parameters
    ----------
    score : ndarray of shape (n,)
        Finite; higher should mean "more likely correct".
    correct : ndarray of bool, shape (n,)
        Whether the probe classified each row correctly.

    Returns
    -------
    dict
        ``auroc`` by mid-rank; ``ap_correct`` and ``ap_wrong``, average precision with either outcome as the positive
        class (their base rates are the shares of correct and wrong rows); ``aurc``, the mean error rate over all
        coverages, averaged over the orders of ties (lower is better). NaN where all rows are correct, or none.

    Raises
    ------
    QScoreError
        If shapes differ or scores are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> failure_statistics(np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, True, True, False]))["auroc"]
    1.0
    """
    _check(score, correct)
    order, ends = _rank(score)
    weights = np.ones(len(score), dtype=np.int64)
    values = _statistics(order, ends, correct, weights, _harmonic(len(score)))
    return dict(zip(STATISTICS, values, strict=True))


def risk_coverage(
    score: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return coverage k / n and the error rate among the k highest scores, averaged over the orders of ties.

    The mean of the second is AURC.

    Raises
    ------
    QScoreError
        If shapes differ or scores are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> coverage, risk = risk_coverage(np.array([3.0, 2.0, 1.0, 1.0]), np.array([True, True, True, False]))
    >>> coverage.tolist(), risk.round(3).tolist()
    ([0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.167, 0.25])
    """
    _check(score, correct)
    order, ends = _rank(score)
    group = np.concatenate([[0], np.cumsum(ends)[:-1]])
    wrong = ~correct[order]
    expected = (np.bincount(group, weights=wrong) / np.bincount(group))[group]
    rows = np.arange(1, len(score) + 1)
    return rows / len(score), np.cumsum(expected) / rows


def bootstrap(
    scores: Mapping[str, np.ndarray],
    correct: Bool[np.ndarray, " n"],
    *,
    reference: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[dict[str, dict[str, Interval]], dict[str, dict[str, Interval]]]:
    """Return the statistics of several scores on the same rows with 95 % paired bootstrap intervals.

    Parameters
    ----------
    scores : mapping of str to ndarray of shape (n,)
        Finite scores; higher should mean "more likely correct".
    correct : ndarray of bool, shape (n,)
        Whether each row was classified correctly.
    reference : str, optional
        The score whose difference from every other is wanted.
    resamples : int, default=2000
        Resamples of the rows, the same for every score. Those without both outcomes do not count.
    seed : int, default=0
        Seed of the resamples.

    Returns
    -------
    statistics : dict
        Score name -> statistic -> interval.
    differences : dict
        Score name -> statistic -> interval of "reference minus this score"; empty without a reference.

    Raises
    ------
    QScoreError
        If shapes differ or scores are not finite.
    """
    for score in scores.values():
        _check(score, correct)
    n = len(correct)
    harmonic = _harmonic(n)
    ranked = {name: _rank(score) for name, score in scores.items()}
    rng = np.random.default_rng(seed)
    drawn = {name: np.empty((resamples + 1, len(STATISTICS))) for name in scores}
    for b in range(resamples + 1):
        weights = np.ones(n, dtype=np.int64) if b == 0 else np.bincount(rng.integers(0, n, n), minlength=n)
        for name, (order, ends) in ranked.items():
            drawn[name][b] = _statistics(order, ends, correct, weights, harmonic)
    statistics = {name: _intervals(values) for name, values in drawn.items()}
    if reference is None:
        return statistics, {}
    others = [name for name in scores if name != reference]
    return statistics, {name: _intervals(drawn[reference] - drawn[name]) for name in others}


def _intervals(values: np.ndarray) -> dict[str, Interval]:
    resampled = values[1:][~np.isnan(values[1:]).any(axis=1)]
    if not len(resampled):
        resampled = np.full((1, len(STATISTICS)), np.nan)
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    columns = zip(STATISTICS, values[0], low, high, strict=True)
    return {name: Interval(float(value), float(a), float(b)) for name, value, a, b in columns}


def _check(score: np.ndarray, correct: np.ndarray) -> None:
    if score.shape != correct.shape or score.ndim != 1:
        raise QScoreError(f"score and correct: expected one value per row, got shapes {score.shape}, {correct.shape}")
    if not np.isfinite(score).all():
        raise QScoreError(f"score: {(~np.isfinite(score)).sum()} of {len(score)} values are not finite")
