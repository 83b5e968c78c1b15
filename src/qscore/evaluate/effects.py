"""By how much a quantity differs between correct and wrong rows, overall and within class.

Every statistic is a sum over the levels of the quantity, so that weighting rows by how often they were drawn gives a
bootstrap resample in one pass.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from qscore._progress import progress
from qscore._validate import QScoreError
from qscore.kernels import compiled

__all__ = ["STATISTICS", "Effects", "effects", "resampled_weights"]

STATISTICS = ("mean_correct", "mean_wrong", "difference", "cliffs_delta", "hedges_g")


@dataclass(frozen=True)
class Effects:
    """One quantity compared between correct and wrong rows."""

    drawn: Float[np.ndarray, "1+resamples 5"]
    """`STATISTICS` of the rows as they are, then of every resample; NaN where undefined."""
    n_correct: int
    """Correct rows that have the quantity, in classes that count."""
    n_wrong: int
    n_classes: int
    """Classes that count: those with rows of both outcomes."""


def effects(
    values: Mapping[str, Float[np.ndarray, " n"]],
    correct: Bool[np.ndarray, " n"],
    classes: Integer[np.ndarray, " n"] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Effects]:
    """Compare quantities between correct and wrong rows, on the rows as they are and on bootstrap resamples of them.

    In one class, with n_c correct and n_w wrong rows,

    - ``difference`` is the mean among correct rows minus that among wrong ones;
    - ``cliffs_delta`` is ``P(correct > wrong) - P(correct < wrong)`` over all pairs, ties counting for neither (Cliff,
      Psychological Bulletin 1993): twice the mid-rank AUROC, minus 1. It suits skewed counts, which have no useful sd;
    - ``hedges_g`` is the difference over the pooled standard deviation, times ``1 - 3 / (4 df - 1)`` (Hedges, Journal
      of Educational Statistics 1981).

    Within class, the first four are means over the classes that have both outcomes, weighted by their rows;
    ``hedges_g`` is that difference over the standard deviation pooled over all classes and outcomes, of df = rows minus
    twice the classes.

    Parameters
    ----------
    values : mapping of str to ndarray of shape (n,)
        Quantities; NaN where a row has none, and the row is left out for it.
    correct : ndarray of bool, shape (n,)
        Whether each row was classified correctly.
    classes : ndarray of int, shape (n,), optional
        Codes 0, 1, ... of the rows' classes, to compare within them; by default all rows are of one.
    resamples : int, default=2000
        Resamples, of rows, within each class; the same for every quantity. A class that lacks an outcome in a resample
        does not count in it.
    seed : int, default=0
        Seed of the resamples.

    Returns
    -------
    dict of str to Effects
        The statistics of every resample, so that differences between quantities can be paired.

    Raises
    ------
    QScoreError
        If shapes differ or ``correct`` is not boolean.

    Examples
    --------
    >>> import numpy as np
    >>> correct = np.array([True, True, True, False, False])
    >>> found = effects({"x": np.array([3.0, 2.0, 2.0, 2.0, 0.0])}, correct, resamples=0)["x"]
    >>> dict(zip(STATISTICS, found.drawn[0].round(3).tolist()))
    {'mean_correct': 2.333, 'mean_wrong': 1.0, 'difference': 1.333, 'cliffs_delta': 0.667, 'hedges_g': 1.029}
    """
    classes = np.zeros(len(correct), dtype=np.int64) if classes is None else classes
    if correct.dtype != bool:
        raise QScoreError(f"correct: expected booleans, got {correct.dtype}")
    for name, column in {**values, "classes": classes}.items():
        if column.shape != correct.shape or column.ndim != 1:
            raise QScoreError(f"{name}: expected one value per row, got shapes {column.shape} and {correct.shape}")
    tables = {name: _levels(column, correct, classes) for name, column in values.items()}
    drawn = {name: np.empty((resamples + 1, len(STATISTICS))) for name in values}
    with progress("compare correct with wrong rows", resamples + 1, "resamples") as advance:
        for b, weights in enumerate(resampled_weights(classes, resamples, seed)):
            for name, table in tables.items():
                drawn[name][b] = _compare(*table, weights)
            advance(1)
    return {name: Effects(drawn[name], *_counted(column, correct, classes)) for name, column in values.items()}


def resampled_weights(
    classes: Integer[np.ndarray, " n"], resamples: int, seed: int
) -> Iterator[Integer[np.ndarray, " n"]]:
    """Give how often each row is drawn: once each at first, then in resamples of as many rows of each class.

    Examples
    --------
    >>> _, weights = resampled_weights(np.array([0, 1, 1, 1]), 1, seed=0)
    >>> int(weights[0]), int(weights[1:].sum())
    (1, 3)
    """
    n = len(classes)
    yield np.ones(n, dtype=np.int64)
    rng = np.random.default_rng(seed)
    order = np.argsort(classes, stable=True)
    sizes = np.bincount(classes)
    start, size = np.repeat(np.cumsum(sizes) - sizes, sizes), np.repeat(sizes, sizes)
    for _ in range(resamples):
        yield np.bincount(order[start + (rng.random(n) * size).astype(np.int64)], minlength=n)


def _levels(column: np.ndarray, correct: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where each row is counted, and of the (class, value) pairs where classes start, and the values.

    Correct rows of the k-th pair are counted at 2 k, wrong ones at 2 k + 1, those without a value behind the last.
    """
    known = np.flatnonzero(~np.isnan(column))
    levels, rank = np.unique(column[known], return_inverse=True)
    pairs, place = np.unique(classes[known] * max(len(levels), 1) + rank, return_inverse=True)
    slot = np.full(len(column), 2 * len(pairs), dtype=np.int32)
    slot[known] = 2 * place + ~correct[known]
    of_class = pairs // max(len(levels), 1)
    starts = np.searchsorted(of_class, np.arange(classes.max(initial=0) + 2))
    return slot, starts, levels[pairs % max(len(levels), 1)].astype(np.float64)


def _counted(column: np.ndarray, correct: np.ndarray, classes: np.ndarray) -> tuple[int, int, int]:
    """Return the correct and the wrong rows in classes that have both, and how many such classes there are."""
    known = ~np.isnan(column)
    n_correct, n_wrong = (
        np.bincount(classes[known & rows], minlength=classes.max(initial=0) + 1) for rows in (correct, ~correct)
    )
    counts = (n_correct > 0) & (n_wrong > 0)
    return int(n_correct[counts].sum()), int(n_wrong[counts].sum()), int(counts.sum())


@compiled()
def _compare(  # pragma: no cover - compiled
    slot: Any, starts: Any, level: Any, weights: Any
) -> tuple[float, float, float, float, float]:
    """Return `STATISTICS` of weighted rows, averaged over the classes that have both outcomes."""
    held = np.zeros(2 * len(level) + 1, np.int64)
    for i in range(len(slot)):
        held[slot[i]] += weights[i]
    right, wrong = held[:-1:2], held[1::2]
    rows, cells = 0, 0
    mean_correct, mean_wrong, difference, delta, squares = 0.0, 0.0, 0.0, 0.0, 0.0
    for c in range(len(starts) - 1):
        n_right, n_wrong, won = 0, 0, 0
        sum_right, sum_wrong, base = 0.0, 0.0, 0.0
        for k in range(starts[c], starts[c + 1]):
            if n_right + n_wrong == 0:
                base = level[k]  # values are taken from the lowest one drawn: equal ones then differ by 0 exactly
            won += right[k] * n_wrong - wrong[k] * n_right
            n_right, n_wrong = n_right + right[k], n_wrong + wrong[k]
            sum_right += right[k] * (level[k] - base)
            sum_wrong += wrong[k] * (level[k] - base)
        if n_right == 0 or n_wrong == 0:
            continue
        above_right, above_wrong = sum_right / n_right, sum_wrong / n_wrong
        for k in range(starts[c], starts[c + 1]):
            squares += right[k] * (level[k] - base - above_right) ** 2 + wrong[k] * (level[k] - base - above_wrong) ** 2
        size = n_right + n_wrong
        rows, cells = rows + size, cells + 2
        mean_correct += size * (base + above_right)
        mean_wrong += size * (base + above_wrong)
        difference += size * (above_right - above_wrong)
        delta += size * (won / (n_right * n_wrong))
    if rows == 0:
        return np.nan, np.nan, np.nan, np.nan, np.nan
    difference /= rows
    df = rows - cells
    g = np.nan
    if squares > 0 and df > 0:
        g = difference / np.sqrt(squares / df) * (1 - 3 / (4 * df - 1))
    elif squares == 0 and difference == 0:
        g = 0.0
    return mean_correct / rows, mean_wrong / rows, difference, delta / rows, g
