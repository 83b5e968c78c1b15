"""In which rows a feature is highly active: the share of them that are correct, averaged over sets of features."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from qscore.evaluate.effects import resampled_weights
from qscore.kernels import compiled

__all__ = ["Purity", "purity"]


@dataclass(frozen=True)
class Purity:
    """How much likelier than others the rows are to be correct in which the features of a set are highly active."""

    excess: Float[np.ndarray, "1+resamples s"]
    """Of each set, on the rows as they are, then on every resample; NaN where none of its features is ever active."""
    base: Float[np.ndarray, " 1+resamples"]
    """The share of correct rows."""
    n_features: Integer[np.ndarray, " s"]
    """Features of each set that are highly active in some row."""


def purity(
    indptr: Integer[np.ndarray, " n+1"],
    active: Integer[np.ndarray, " nnz"],
    sets: Bool[np.ndarray, "s r"],
    correct: Bool[np.ndarray, " n"],
    classes: Integer[np.ndarray, " n"] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Purity:
    """Measure by how much the rows a feature is highly active in are more often correct than the rows of their classes.

    For each feature j the mean over rows i with j in L_i of ``correct_i - accuracy of i's class``, then the mean over
    the set's features that are highly active in some row. Where all rows are of one class, the accuracy is the base
    rate, and base rate plus excess the mean share of correct rows. Classes without rows of both outcomes are left out.

    Parameters
    ----------
    indptr, active : ndarray of int, shapes (n + 1,) and (nnz,)
        The rows' sets L_i: row i has ``active[indptr[i] : indptr[i + 1]]``, each in 0..r-1.
    sets : ndarray of bool, shape (s, r)
        Which features are in each set.
    correct : ndarray of bool, shape (n,)
        Whether each row was classified correctly.
    classes : ndarray of int, shape (n,), optional
        Codes 0, 1, ... of the rows' classes; by default all rows are of one.
    resamples, seed : int
        As for :func:`qscore.evaluate.effects.effects`: the resamples are the same.

    Returns
    -------
    Purity
        The excess of every set.

    Examples
    --------
    >>> import numpy as np
    >>> correct = np.array([True, True, False, False])
    >>> found = purity(np.array([0, 1, 2, 3, 4]), np.array([0, 0, 0, 1]), np.eye(2, dtype=bool), correct, resamples=0)
    >>> (found.base + found.excess[0]).round(3).tolist()
    [0.667, 0.0]
    """
    classes = np.zeros(len(correct), dtype=np.int64) if classes is None else classes
    n_classes, r = int(classes.max(initial=0)) + 1, sets.shape[1]
    both = [np.bincount(classes[rows], minlength=n_classes) > 0 for rows in (correct, ~correct)]
    counts = (both[0] & both[1])[classes]
    members = sets.astype(np.float64)
    excess, base = np.empty((resamples + 1, len(sets))), np.empty(resamples + 1)
    n_features = np.zeros(len(sets), dtype=np.int64)
    for b, weights in enumerate(resampled_weights(classes, resamples, seed)):
        total, rows = _excess(indptr, active, classes, n_classes, correct, weights * counts, r)
        fires = rows > 0
        ratio = np.divide(total, rows, out=np.zeros(r), where=fires)
        n_fires = members @ fires
        excess[b] = np.divide(members @ ratio, n_fires, out=np.full(len(sets), np.nan), where=n_fires > 0)
        base[b] = weights @ correct / len(correct)
        if b == 0:
            n_features = n_fires.astype(np.int64)
    return Purity(excess, base, n_features)


@compiled()
def _excess(  # pragma: no cover - compiled
    indptr: Any, active: Any, classes: Any, n_classes: Any, correct: Any, weights: Any, r: Any
) -> tuple[Any, Any]:
    """Return for each feature the sum over its rows of ``correct - accuracy of the class``, and how many rows."""
    right, size = np.zeros(n_classes), np.zeros(n_classes)
    for i in range(len(classes)):
        size[classes[i]] += weights[i]
        right[classes[i]] += weights[i] * correct[i]
    total, rows = np.zeros(r), np.zeros(r)
    for i in range(len(classes)):
        if weights[i] == 0:
            continue
        beyond = weights[i] * (correct[i] - right[classes[i]] / size[classes[i]])
        for k in range(indptr[i], indptr[i + 1]):
            total[active[k]] += beyond
            rows[active[k]] += weights[i]
    return total, rows
