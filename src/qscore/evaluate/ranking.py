"""How well a score tells correct rows from wrong ones: AUROC, average precision, AURC, and paired bootstrap intervals.

Every statistic is a sum over groups of tied scores, so that one pass over the ranked rows gives all of them, for the
rows as they are and for every bootstrap resample (rows weighted by how often they were drawn).
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from qscore._progress import Advance, progress
from qscore._validate import QScoreError
from qscore.kernels import compiled
from qscore.kernels.cpu import usable_cores
from qscore.metrics import Interval

__all__ = [
    "STATISTICS",
    "Interval",
    "Spread",
    "bootstrap",
    "check_scores",
    "draw_spread",
    "failure_statistics",
    "intervals",
    "resampled_statistics",
    "risk_coverage",
]

STATISTICS = ("auroc", "ap_correct", "ap_wrong", "aurc")
DRAWN_ROWS = 2**21  # rows drawn at a time, whatever the number of threads: 8 MiB


@dataclass(frozen=True)
class Spread:
    """A statistic over the random draws of a score: between which values they lie. No interval."""

    mean: float
    lowest: float
    highest: float


@compiled()
def _statistics(
    order: Any, group_ends: Any, correct: Any, weights: Any, n: int, n_correct: int, harmonic: Any, found: Any
) -> None:  # pragma: no cover - compiled
    """Write AUROC, AP (correct), AP (wrong) and AURC of rows ranked by falling score, each weighted.

    ``correct`` (0 or 1) is in the order of the ranks, ``weights`` in that of the rows. The loop has no branch but the
    one on ties, which processors predict well: it would take half as long again.
    """
    n_wrong = n - n_correct
    auroc, ap_correct, ap_wrong, aurc = 0.0, 0.0, 0.0, 0.0
    above, above_wrong, tied, tied_correct = 0, 0, 0, 0
    for k in range(order.shape[0]):
        weight = weights[order[k]]
        tied += weight
        tied_correct += weight * correct[k]
        if not group_ends[k]:
            continue
        tied_wrong, seen = tied - tied_correct, above + tied
        auroc += tied_correct * (n_wrong - above_wrong - 0.5 * tied_wrong)
        ap_correct += tied_correct * (seen - above_wrong - tied_wrong) / max(seen, 1)
        ap_wrong += tied_wrong * (n_wrong - above_wrong) / max(n - above, 1)
        # Over random orders of the tie, the first t of its m rows hold t e / m of its e errors:
        # sum over t of (E + t e / m) / (a + t), where a rows and E errors lie above.
        reciprocals = harmonic[seen] - harmonic[above]
        aurc += above_wrong * reciprocals + tied_wrong * (tied - above * reciprocals) / max(tied, 1)
        above, above_wrong, tied, tied_correct = seen, above_wrong + tied_wrong, 0, 0
    found[0], found[1] = auroc / (n_correct * n_wrong), ap_correct / n_correct
    found[2], found[3] = ap_wrong / n_wrong, aurc / n


@compiled()
def _all_statistics(
    order: Any, group_ends: Any, correct: Any, weights: Any, n_correct: Any, harmonic: Any, found: Any
) -> None:  # pragma: no cover - compiled
    """Write the statistics of every resample and score to ``found`` (b, s, 4); NaN where an outcome is missing."""
    for b in range(weights.shape[0]):
        n = weights[b].sum()
        for s in range(order.shape[0]):
            if 0 < n_correct[b] < n:
                _statistics(order[s], group_ends[s], correct[s], weights[b], n, n_correct[b], harmonic, found[b, s])
            else:
                found[b, s, :] = np.nan


@dataclass(frozen=True)
class _Ranking:
    """Rows ranked by each of s scores."""

    order: np.ndarray
    """(s, n) the rows by falling score."""
    group_ends: np.ndarray
    """(s, n) where groups of ties end."""
    correct: np.ndarray
    """(n,) outcomes, 0 or 1."""
    harmonic: np.ndarray
    """(n + 1,) harmonic numbers."""

    @classmethod
    def of(cls, columns: Float[np.ndarray, "n s"], correct: Bool[np.ndarray, " n"]) -> "_Ranking":
        columns = columns.astype(np.float64)
        order = np.argsort(-columns.T, axis=1, stable=True)
        ranked = np.take_along_axis(columns.T, order, axis=1)
        ends = np.ones(order.shape, dtype=bool)
        ends[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
        harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, len(correct) + 1))])
        return cls(order.astype(np.int32), ends, correct.astype(np.int32), harmonic)

    def statistics(self, weights: np.ndarray) -> np.ndarray:
        """Return (b, s, 4) statistics of rows weighted by (b, n)."""
        found = np.empty((len(weights), len(self.order), len(STATISTICS)))
        ranked = self.correct[self.order]  # (s, n)
        _all_statistics(self.order, self.group_ends, ranked, weights, weights @ self.correct, self.harmonic, found)
        return found


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
        class (their base rates are the shares of correct and wrong rows); ``aurc``, the mean error rate over the
        coverages 1 / n, 2 / n, ..., 1 (Geifman, Uziel and El-Yaniv, ICLR 2019), averaged over the orders of ties
        (lower is better). NaN where all rows are correct, or none.

    Raises
    ------
    QScoreError
        If shapes differ or scores are not finite.

    Notes
    -----
    Other packages put trapezoids through the same risks r_1, ..., r_n. Without ties, torch-uncertainty's AURC is
    ``(n * aurc - (r_1 + r_n) / 2) / (n - 1)``, and that of FD-Shifts, which starts at coverage 0, is 1,000 times
    ``aurc + (r_1 - r_n) / (2 * n)``. With ties the former depends on the order of the rows, and the latter draws a
    straight line across them.

    Examples
    --------
    >>> import numpy as np
    >>> failure_statistics(np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, True, True, False]))["auroc"]
    1.0
    """
    check_scores({"score": score}, correct, draws=False)
    weights = np.ones((1, len(score)), dtype=np.int32)
    values = _Ranking.of(score[:, None], correct).statistics(weights)[0, 0].tolist()
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
    check_scores({"score": score}, correct, draws=False)
    ranking = _Ranking.of(score[:, None], correct)
    group = np.concatenate([[0], np.cumsum(ranking.group_ends[0])[:-1]])
    expected = (np.bincount(group, weights=1 - ranking.correct[ranking.order[0]]) / np.bincount(group))[group]
    rows = np.arange(1, len(score) + 1)
    return rows / len(score), np.cumsum(expected) / rows


def bootstrap(
    scores: Mapping[str, Float[np.ndarray, " n"] | Float[np.ndarray, "n d"]],
    correct: Bool[np.ndarray, " n"],
    *,
    reference: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
    threads: int | None = None,
) -> tuple[dict[str, dict[str, Interval]], dict[str, dict[str, Interval]]]:
    """Return the statistics of several scores on the same rows with 95 % paired bootstrap intervals.

    Parameters
    ----------
    scores : mapping of str to ndarray of shape (n,) or (n, d)
        Finite scores; higher should mean "more likely correct". Of d random draws of a score each has its statistics,
        and their mean counts, in every resample.
    correct : ndarray of bool, shape (n,)
        Whether each row was classified correctly.
    reference : str, optional
        The score whose difference from every other is wanted.
    resamples : int, default=2000
        Resamples of the rows, the same for every score, at least 1. Those without both outcomes do not count.
    seed : int, default=0
        Seed of the resamples.
    threads : int, optional
        Threads to use; by default one per core. The result does not depend on it.

    Returns
    -------
    statistics : dict
        Score name -> statistic -> interval.
    differences : dict
        Score name -> statistic -> interval of "reference minus this score"; empty without a reference.

    Raises
    ------
    QScoreError
        If shapes differ, scores are not finite, there are no resamples, or the reference is none of the scores.
    """
    check_scores(scores, correct)
    if reference is not None and reference not in scores:
        raise QScoreError(f"reference: expected one of {', '.join(scores)}, got {reference!r}")
    if not scores:
        return {}, {}
    with progress("bootstrap", resamples, "resamples") as advance:
        drawn = resampled_statistics(scores, correct, resamples=resamples, seed=seed, threads=threads, advance=advance)
    names = list(scores)
    statistics = dict(zip(names, intervals(drawn), strict=True))
    if reference is None:
        return statistics, {}
    differences = zip(names, intervals(drawn[:, [names.index(reference)]] - drawn), strict=True)
    return statistics, {name: row for name, row in differences if name != reference}


def draw_spread(draws: Float[np.ndarray, "n d"], correct: Bool[np.ndarray, " n"]) -> dict[str, Spread]:
    """Return the mean, the lowest and the highest of each statistic over the random draws of a score.

    Raises
    ------
    QScoreError
        If shapes differ or scores are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> draws = np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    >>> draw_spread(draws, np.array([True, True, False]))["auroc"]
    Spread(mean=0.5, lowest=0.0, highest=1.0)
    """
    check_scores({"draws": draws}, correct)
    values = _Ranking.of(draws, correct).statistics(np.ones((1, len(correct)), dtype=np.int32))[0]
    columns = zip(STATISTICS, values.mean(0).tolist(), values.min(0).tolist(), values.max(0).tolist(), strict=True)
    return {name: Spread(*found) for name, *found in columns}


def resampled_statistics(
    scores: Mapping[str, Float[np.ndarray, " n"] | Float[np.ndarray, "n d"]],
    correct: Bool[np.ndarray, " n"],
    *,
    resamples: int,
    seed: int | Sequence[int],
    threads: int | None = None,
    advance: Advance | None = None,
) -> Float[np.ndarray, "b s 4"]:
    """Return the statistics of s scores, checked before: those of the rows first, then those of every resample.

    Draws of a score are averaged. NaN where a resample lacks an outcome.

    Raises
    ------
    QScoreError
        If there are no resamples.
    """
    if resamples < 1:
        raise QScoreError(f"resamples: expected at least 1, got {resamples}")
    columns = [score[:, None] if score.ndim == 1 else score for score in scores.values()]
    widths = np.array([column.shape[1] for column in columns])
    ranking = _Ranking.of(np.concatenate(columns, axis=1), correct)
    n, rng = len(correct), np.random.default_rng(seed)
    workers = threads or usable_cores()
    step = max(1, DRAWN_ROWS // n)
    found = [ranking.statistics(np.ones((1, n), dtype=np.int32))]
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, resamples, step):
            weights = _weights(rng, n, min(step, resamples - start))
            shares = np.array_split(weights, min(workers, len(weights)))
            found += pool.map(ranking.statistics, shares) if len(shares) > 1 else map(ranking.statistics, shares)
            if advance:
                advance(len(weights))
    starts = np.cumsum(widths) - widths
    return np.asarray(np.add.reduceat(np.concatenate(found), starts, axis=1) / widths[:, None])


def _weights(rng: np.random.Generator, n: int, resamples: int) -> np.ndarray:
    """Return how often each row comes in each resample, (resamples, n)."""
    drawn = rng.integers(0, n, (resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.int32)


def intervals(drawn: Float[np.ndarray, "b s 4"]) -> list[dict[str, Interval]]:
    """Return the intervals of s scores from what :func:`resampled_statistics` gives."""
    value, resampled = drawn[0], drawn[1:]
    resampled = resampled[~np.isnan(resampled).any(axis=(1, 2))]
    if not len(resampled):
        resampled = np.full((1, *value.shape), np.nan)
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    return [
        dict(zip(STATISTICS, map(Interval, *(bounds.tolist() for bounds in row)), strict=True))
        for row in zip(value, low, high, strict=True)
    ]


def check_scores(scores: Mapping[str, np.ndarray], correct: np.ndarray, *, draws: bool = True) -> None:
    """Refuse scores that are not finite, or not one value per row, or one of each draw.

    Raises
    ------
    QScoreError
        Naming the score.
    """
    if correct.dtype != bool:
        raise QScoreError(f"correct: expected booleans, got {correct.dtype}")
    for name, score in scores.items():
        rows = score.shape[:1] if draws and score.ndim == 2 and score.shape[1] else score.shape
        if rows != correct.shape or correct.ndim != 1 or not len(correct):
            raise QScoreError(
                f"{name} and correct: expected one value per row, got shapes {score.shape}, {correct.shape}"
            )
        if not np.isfinite(score).all():
            raise QScoreError(f"{name}: {(~np.isfinite(score)).sum()} of {score.size} values are not finite")
