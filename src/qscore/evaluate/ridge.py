"""Ridge classification in closed form: one Gram matrix, from which every selection of features follows.

For n rows x_i and their one-hot targets y_i over c classes, m the rows' mean and s the classes' shares,

    S = sum_i (x_i - m) (x_i - m)^T           (r, r)
    B = sum_i (x_i - m) (y_i - s)^T           (r, c)
    W = (S + penalty I)^-1 B                  (r, c)
    class of x = argmax of (x - m) W + s

A selection F of features needs S[F, F] and B[F] alone. For features taken one after the other in some order, with
S[order, order] + penalty I = L L^T, the leading k rows and columns of L are the factor of the first k features:

    U = (x - m)[order] L^-T,  V = L^-1 B[order],  (x - m) W of the first k features = U[:k] V[:k]

so that one factor, and one pass over the rows to classify, gives every length k at once. Hoerl and Kennard: "Ridge
Regression: Biased Estimation for Nonorthogonal Problems", Technometrics 12 (1970).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy.linalg import cholesky, eigh, solve_triangular
from scipy.sparse import csr_array

__all__ = [
    "Moments",
    "Path",
    "class_moments",
    "correct_along",
    "merge_moments",
    "ordered_path",
    "principal_path",
    "ridge_weights",
    "row_batches",
]

BATCH = 4096


@dataclass(frozen=True)
class Moments:
    """What rows of several classes say to a ridge classifier."""

    counts: Integer[np.ndarray, " c"]
    """Rows of each class."""
    mean: Float[np.ndarray, " r"]
    """m, over all classes."""
    gram: Float[np.ndarray, "r r"]
    """S."""
    cross: Float[np.ndarray, "r c"]
    """B."""

    @property
    def shares(self) -> Float[np.ndarray, " c"]:
        """The classes' shares of the rows."""
        shares: np.ndarray = self.counts / self.counts.sum()
        return shares


@dataclass(frozen=True)
class Path:
    """Classifiers on the first k features of an order, or the first k principal components, for every k at once."""

    order: Integer[np.ndarray, " k"] | None
    """The features, first to last; None for principal components."""
    basis: Float[np.ndarray, "k k"] | Float[np.ndarray, "r r"]
    """L, or the components in columns."""
    values: Float[np.ndarray, "k c"]
    """V."""
    mean: Float[np.ndarray, " r"]
    shares: Float[np.ndarray, " c"]

    def project(self, X: Float[np.ndarray, "b r"]) -> Float[np.ndarray, "b k"]:
        """Return U for rows."""
        centred = X - self.mean
        if self.order is None:
            components: np.ndarray = centred @ self.basis
            return components
        chosen = np.take(centred, self.order, axis=1)
        solved = solve_triangular(self.basis, chosen.T, lower=True, overwrite_b=True, check_finite=False)  # (k, b)
        return np.asarray(solved).T


def row_batches(
    H: Any, rows: Integer[np.ndarray, " n"], codes: Integer[np.ndarray, " n"]
) -> Iterator[tuple[Float[np.ndarray, "b r"], Integer[np.ndarray, " b"]]]:
    """Yield some rows of a matrix in float64, a few thousand at a time, with their class codes."""
    for start in range(0, len(rows), BATCH):
        at = slice(start, start + BATCH)
        yield np.asarray(H[rows[at]], dtype=np.float64), codes[at]


def class_moments(
    batches: Iterable[tuple[Float[np.ndarray, "b r"], Integer[np.ndarray, " b"]]], n_classes: int
) -> Moments:
    """Add up the moments of rows that come in batches.

    Parameters
    ----------
    batches : iterable of (ndarray of shape (b, r), ndarray of int, shape (b,))
        Finite rows, and their classes in 0 .. n_classes - 1; at least one row in all.
    n_classes : int
        c.

    Returns
    -------
    Moments
        Of all rows, in float64. Sums are taken about the first batch's mean, so that a large common offset costs no
        digits.

    Examples
    --------
    >>> import numpy as np
    >>> class_moments([(np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([0, 1]))], 2).gram.tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """
    batches = iter(batches)
    X, codes = next(batches)
    pivot = X.mean(axis=0)
    r = len(pivot)
    counts, sums, gram = np.zeros(n_classes, dtype=np.int64), np.zeros((n_classes, r)), np.zeros((r, r))
    while True:
        X = X - pivot
        gram += X.T @ X
        targets = csr_array((np.ones(len(X)), (codes, np.arange(len(X)))), shape=(n_classes, len(X)))
        sums += targets @ X
        counts += np.bincount(codes, minlength=n_classes)
        try:
            X, codes = next(batches)
        except StopIteration:
            break
    shift = sums.sum(axis=0) / counts.sum()
    return Moments(
        counts, pivot + shift, gram - counts.sum() * np.outer(shift, shift), (sums - np.outer(counts, shift)).T
    )


def merge_moments(one: Moments, other: Moments) -> Moments:
    """Return the moments of two sets of rows together."""
    counts = one.counts + other.counts
    mean = (one.counts.sum() * one.mean + other.counts.sum() * other.mean) / counts.sum()
    gram, cross = np.zeros_like(one.gram), np.zeros_like(one.cross)
    for part in (one, other):
        shift = part.mean - mean
        gram += part.gram + part.counts.sum() * np.outer(shift, shift)
        cross += part.cross + np.outer(shift, part.counts)
    return Moments(counts, mean, gram, cross)


def ridge_weights(moments: Moments, penalty: float) -> Float[np.ndarray, "r c"]:
    """Return W for all features; the classes' scores are ``(x - m) W + s``.

    Parameters
    ----------
    moments : Moments
        Of the training rows.
    penalty : float
        Added to S's diagonal, > 0, in its units.
    """
    path = ordered_path(moments, np.arange(len(moments.mean)), penalty)
    weights = solve_triangular(path.basis, path.values, lower=True, trans="T", check_finite=False)
    return np.asarray(weights)


def ordered_path(moments: Moments, order: Integer[np.ndarray, " k"], penalty: float) -> Path:
    """Return the classifiers on the first features of an order; features it leaves out are never used."""
    chosen = moments.gram[np.ix_(order, order)]
    chosen.flat[:: len(order) + 1] += penalty
    L = cholesky(chosen.T, lower=True, overwrite_a=True, check_finite=False)  # the transpose: no copy, S is symmetric
    values = solve_triangular(L, moments.cross[order], lower=True, check_finite=False)
    return Path(order, L, values, moments.mean, moments.shares)


def principal_path(moments: Moments, penalty: float) -> Path:
    """Return the classifiers on the first principal components, by falling variance.

    With S = P diag(e) P^T they are ``(x - m) P[:, :k] diag(1 / (e + penalty)) P[:, :k]^T B``.
    """
    eigenvalues, vectors = eigh(moments.gram, check_finite=False, driver="evd")
    eigenvalues, vectors = eigenvalues[::-1].clip(min=0.0), np.ascontiguousarray(vectors[:, ::-1])
    values = (vectors.T @ moments.cross) / (eigenvalues + penalty)[:, None]
    return Path(None, vectors, values, moments.mean, moments.shares)


def correct_along(
    path: Path,
    H: Any,
    rows: Integer[np.ndarray, " n"],
    codes: Integer[np.ndarray, " n"],
    sizes: Sequence[int],
) -> Bool[np.ndarray, "k n"]:
    """Tell which rows each of a path's classifiers gets right.

    Parameters
    ----------
    path : Path
        From :func:`ordered_path` or :func:`principal_path`.
    H : array-like, shape (N, r)
        Holds the rows to classify.
    rows : ndarray of int, shape (n,)
        Which rows of H.
    codes : ndarray of int, shape (n,)
        Their true classes; -1, a class the classifier does not know, is never right.
    sizes : sequence of int
        How many features each classifier has, ascending.

    Returns
    -------
    ndarray of bool, shape (len(sizes), n)
        Whether each is right.
    """
    right = np.empty((len(sizes), len(rows)), dtype=bool)
    start = 0
    for X, truth in row_batches(H, rows, codes):
        U = path.project(X)
        score = np.tile(path.shares, (len(X), 1))  # (b, c)
        done = 0
        for at, size in enumerate(sizes):
            score += U[:, done:size] @ path.values[done:size]
            right[at, start : start + len(X)] = score.argmax(axis=1) == truth
            done = size
        start += len(X)
    return right
