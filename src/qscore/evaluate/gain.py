"""What a score adds to another: two scores may predict failure equally well, and by the same rows or by others.

A logistic regression on both scores is compared with one on the first alone, on rows that neither was fitted on. There
a score that is pure noise does not leave the AUROC of an informative base alone but lowers it a little, for its
coefficient is noise too: the gain of noise is slightly negative. An interval above 0 is evidence, then, and one
slightly below 0 no harm done.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import ndtri
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from qscore._progress import progress
from qscore._validate import QScoreError
from qscore.evaluate.ranking import STATISTICS, check_scores, intervals, resampled_statistics
from qscore.metrics import Interval

__all__ = ["Gain", "Gains", "gain_on_top", "gains"]

FOLDS = 5
DECIMALS = 12  # so that rounding does not part rows that are alike in every input
AUROC = STATISTICS.index("auroc")


@dataclass(frozen=True)
class Gain:
    """What a score adds to a base, out of fold, each with its 95 % paired bootstrap interval over rows."""

    base: Interval
    """AUROC of the base alone. Its sign is learned: one that ranks backwards counts as informative."""
    both: Interval
    """AUROC of base and score together."""
    gain: Interval
    """``both - base``."""


@dataclass(frozen=True)
class Gains:
    """What a reference score adds to each other score, and each of them to it."""

    reference: str
    on_top_of: dict[str, Gain]
    """Name -> the gain of the reference on top of that score."""
    on_top: dict[str, Gain]
    """Name -> the gain of that score on top of the reference."""


def gain_on_top(
    score: Float[np.ndarray, " n"] | Float[np.ndarray, "n d"],
    base: Float[np.ndarray, " n"] | Float[np.ndarray, "n d"],
    correct: Bool[np.ndarray, " n"],
    *,
    folds: int = FOLDS,
    resamples: int = 2000,
    seed: int = 0,
    threads: int | None = None,
) -> Gain:
    """Return how much better a score and a base predict correct rows together than the base alone.

    Scores enter as normal quantiles of their mid-ranks, found on all rows without their labels: like AUROC itself, the
    gain then depends on ranks alone, and no few extreme values steer the fit. Folds are stratified by outcome. A row is
    predicted by the model that has not seen its fold, along the direction of its coefficients: their length and the
    intercept order no rows of one fold, but between folds they would, by which rows happened to be held out. The
    AUROC of a base alone so is that of its ranks, unless folds disagree about its sign.

    Parameters
    ----------
    score, base : ndarray of shape (n,) or (n, d)
        Finite. With d random draws of either, the statistics of the draws are averaged.
    correct : ndarray of bool, shape (n,)
        Whether each row was classified correctly.
    folds : int, default=5
        At least 2; fewer are used where an outcome has not so many rows.
    resamples : int, default=2000
        Bootstrap resamples of the rows, at least 1. Models are not fitted anew.
    seed : int, default=0
        Seed of folds and resamples.
    threads : int, optional
        Threads of the bootstrap; the result does not depend on it.

    Returns
    -------
    Gain
        AUROC of the base, of both, and their difference. The gain of a constant score, or of the base itself, is 0.

    Raises
    ------
    QScoreError
        If there are fewer than two rows of either outcome, shapes differ, or scores are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> first, second = rng.normal(size=(2, 2000))
    >>> correct = first + second + rng.normal(size=2000) > 0
    >>> gain_on_top(second, first, correct, resamples=100).gain.low > 0.1
    True
    """
    return gains(
        {"score": score, "base": base},
        correct,
        reference="score",
        folds=folds,
        resamples=resamples,
        seed=seed,
        threads=threads,
    ).on_top_of["base"]


def gains(
    values: Mapping[str, Float[np.ndarray, " n"] | Float[np.ndarray, "n d"]],
    correct: Bool[np.ndarray, " n"],
    *,
    reference: str = "q_score",
    names: Iterable[str] | None = None,
    folds: int = FOLDS,
    resamples: int = 2000,
    seed: int = 0,
    threads: int | None = None,
) -> Gains:
    """Return what a reference score adds to each other score, and each other score to it, all on the same resamples.

    Parameters
    ----------
    values : mapping of str to ndarray of shape (n,) or (n, d)
        Scores, the reference among them.
    correct : ndarray of bool, shape (n,)
        Whether each row was classified correctly.
    reference : str, default="q_score"
        Its name.
    names : iterable of str, optional
        The others of interest; by default all.
    folds, resamples, seed, threads
        As for :func:`gain_on_top`.

    Returns
    -------
    Gains
        Both ways, by the name of the other score.

    Raises
    ------
    QScoreError
        As :func:`gain_on_top`, and if a name is none of the scores.
    """
    names = [name for name in (values if names is None else names) if name != reference]
    unknown = [name for name in (reference, *names) if name not in values]
    if unknown:
        raise QScoreError(f"gains: expected names among {', '.join(values)}, got {unknown[0]!r}")
    chosen = {name: values[name] for name in (reference, *names)}
    check_scores(chosen, correct)
    held_out = _folds(correct, folds, seed)
    inputs = {name: _normal_quantiles(score) for name, score in chosen.items()}
    own = inputs[reference]
    fitted = {reference: _out_of_fold([own], correct, held_out)}
    for name in names:
        fitted[f"alone {name}"] = _out_of_fold([inputs[name]], correct, held_out)
        fitted[f"with {name}"] = _out_of_fold([own, inputs[name]], correct, held_out)
    with progress("gains", resamples, "resamples") as advance:
        drawn = resampled_statistics(fitted, correct, resamples=resamples, seed=seed, threads=threads, advance=advance)
    place = {name: drawn[:, [k]] for k, name in enumerate(fitted)}
    return Gains(
        reference,
        {name: _gain(place[f"alone {name}"], place[f"with {name}"]) for name in names},
        {name: _gain(place[reference], place[f"with {name}"]) for name in names},
    )


def _gain(base: np.ndarray, both: np.ndarray) -> Gain:
    found = intervals(np.concatenate([base, both, both - base], axis=1))
    return Gain(*(row["auroc"] for row in found))


def _folds(correct: np.ndarray, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    n_correct = int(correct.sum())
    rarer = min(n_correct, len(correct) - n_correct)
    if rarer < 2:
        raise QScoreError(
            "what a score adds is learned from rows of both outcomes: expected at least 2 of each, got "
            f"{n_correct} correct and {len(correct) - n_correct} wrong"
        )
    if folds < 2:
        raise QScoreError(f"folds: expected at least 2, got {folds}")
    splitter = StratifiedKFold(min(folds, rarer), shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(correct)), correct))


def _normal_quantiles(score: np.ndarray) -> Float[np.ndarray, "n d"]:
    """Return the normal quantiles of mid-ranks, column by column; 0 for a constant score."""
    columns = score if score.ndim == 2 else score[:, None]
    return np.asarray(ndtri((rankdata(columns, axis=0) - 0.5) / len(columns)))


def _out_of_fold(
    inputs: list[Float[np.ndarray, "n d"]], correct: np.ndarray, held_out: list[tuple[np.ndarray, np.ndarray]]
) -> Float[np.ndarray, "n d"]:
    """Return each row's place along the direction that logistic regression on a column of each input finds."""
    draws = max(columns.shape[1] for columns in inputs)
    predicted = np.empty((len(correct), draws))
    for d in range(draws):
        X = np.column_stack([columns[:, d % columns.shape[1]] for columns in inputs])
        for fit, held in held_out:
            model = LogisticRegression(solver="newton-cholesky").fit(X[fit], correct[fit])
            length = np.linalg.norm(model.coef_[0])
            predicted[held, d] = X[held] @ (model.coef_[0] / length if length else model.coef_[0])
    return predicted.round(DECIMALS)
