"""Failure prediction within each class: a score may merely know which classes are hard."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from qscore._progress import progress
from qscore._validate import QScoreError
from qscore.evaluate.ranking import check_scores, intervals, resampled_statistics
from qscore.kernels.cpu import usable_cores
from qscore.metrics import Interval

__all__ = ["ClassResult", "ClassResults", "class_statistics"]


@dataclass(frozen=True)
class ClassResult:
    """How well scores tell correct rows of one class from wrong ones."""

    label: int | str
    """The true label."""
    n: int
    """Rows of the class."""
    n_wrong: int
    """Those classified as another."""
    statistics: dict[str, dict[str, Interval]] | None
    """Score -> statistic -> interval. None where all rows are correct, or none."""


@dataclass(frozen=True)
class ClassResults:
    """Failure prediction class by class."""

    classes: tuple[ClassResult, ...]
    """In the order of their labels."""
    mean: dict[str, dict[str, Interval]]
    """Score -> statistic -> mean over the classes with both outcomes, each counting the same. Empty without any."""

    @property
    def n_measured(self) -> int:
        """Classes with both outcomes."""
        return sum(found.statistics is not None for found in self.classes)

    def records(self) -> list[dict[str, Any]]:
        """Return the classes with both outcomes as tidy records: one per class, score and statistic."""
        return [
            {
                "class": found.label,
                "n": found.n,
                "n_wrong": found.n_wrong,
                "score": name,
                "statistic": statistic,
                **asdict(interval),
            }
            for found in self.classes
            for name, row in (found.statistics or {}).items()
            for statistic, interval in row.items()
        ]


def class_statistics(
    values: Mapping[str, Float[np.ndarray, " n"] | Float[np.ndarray, "n d"]],
    labels: Shaped[np.ndarray, " n"],
    correct: Bool[np.ndarray, " n"],
    *,
    resamples: int = 2000,
    seed: int = 0,
    threads: int | None = None,
) -> ClassResults:
    """Return the statistics of every score within every class, and their means over classes.

    Rows are resampled within their class. A resample without both outcomes counts neither for its class nor, in that
    resample, for the mean; with a handful of wrong rows the interval of a class is wide and itself rough.

    Parameters
    ----------
    values : mapping of str to ndarray of shape (n,) or (n, d)
        Finite scores; higher should mean "more likely correct". Statistics of d random draws are averaged.
    labels : ndarray of shape (n,)
        True classes, integers or strings.
    correct : ndarray of bool, shape (n,)
        Whether each row was classified correctly.
    resamples : int, default=2000
        Resamples, the same for every score, at least 1.
    seed : int, default=0
        Seed of the resamples.
    threads : int, optional
        Threads to use; by default one per core. The result does not depend on it.

    Returns
    -------
    ClassResults
        Of every class, those without both outcomes too.

    Raises
    ------
    QScoreError
        If shapes differ, scores are not finite, or there are no resamples.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.array(["cat", "cat", "dog", "dog"])
    >>> score, correct = np.array([0.9, 0.1, 0.3, 0.2]), np.array([True, False, True, True])
    >>> found = class_statistics({"s": score}, labels, correct, resamples=10)
    >>> found.mean["s"]["auroc"].value, [row.statistics is None for row in found.classes]
    (1.0, [False, True])
    """
    check_scores(values, correct)
    if labels.shape != correct.shape:
        raise QScoreError(f"labels: expected one for each of {len(correct)} rows, got shape {labels.shape}")
    names, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rows = np.split(np.argsort(inverse, stable=True), np.cumsum(counts)[:-1])
    total, measured = np.zeros((resamples + 1, len(values), 4)), np.zeros((resamples + 1, 1, 1))
    found: list[ClassResult] = []

    def measure(c: int) -> np.ndarray | None:
        outcomes = correct[rows[c]]
        if outcomes.all() or not outcomes.any():
            return None
        own = {name: score[rows[c]] for name, score in values.items()}
        return resampled_statistics(own, outcomes, resamples=resamples, seed=[seed, c], threads=1)

    with ThreadPoolExecutor(threads or usable_cores()) as pool, progress("classes", len(names), "classes") as advance:
        for c, drawn in enumerate(pool.map(measure, range(len(names)))):
            statistics = None
            if drawn is not None:
                statistics = dict(zip(values, intervals(drawn), strict=True))
                total += np.nan_to_num(drawn)
                measured += ~np.isnan(drawn[:, :1, :1])
            found.append(ClassResult(names[c].item(), int(counts[c]), int((~correct[rows[c]]).sum()), statistics))
            advance(1)
    if not measured[0, 0, 0]:
        return ClassResults(tuple(found), {})
    with np.errstate(invalid="ignore"):
        mean = intervals(total / measured)
    return ClassResults(tuple(found), dict(zip(values, mean, strict=True)))
