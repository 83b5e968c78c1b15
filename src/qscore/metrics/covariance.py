"""Mean and scatter of any number of rows, in memory that grows with the features alone."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from qscore._validate import QScoreError, check_matrix
from qscore.core import valid_rows

__all__ = ["Covariance"]


@dataclass(frozen=True)
class Covariance:
    """Number, mean and scatter of rows: what every metric of a spectrum needs to know of them.

    Parts are merged as Chan, Golub and LeVeque (1979) do, about the mean throughout, so that features far from zero
    lose nothing, and those that never vary have a variance of exactly 0.

    Examples
    --------
    >>> H = np.array([[1.0, 0.0], [3.0, 0.0], [5.0, 3.0], [np.nan, 0.0]])
    >>> found = Covariance.empty(2).add(H[:2]).add(H[2:])
    >>> found.n, found.n_invalid, found.mean, found.scatter.tolist()
    (3, 1, array([3., 1.]), [[8.0, 6.0], [6.0, 6.0]])
    """

    n: int
    """Valid rows."""
    n_invalid: int
    """Rows with NaN or infinity; they count towards nothing else."""
    mean: Float[np.ndarray, " r"]
    """Mean of the valid rows."""
    scatter: Float[np.ndarray, "r r"]
    """Sum of ``(h_i - mean)(h_i - mean)^T``: n times their population covariance."""

    @classmethod
    def empty(cls, n_features: int) -> "Covariance":
        """Return the covariance of no rows of a width."""
        return cls(0, 0, np.zeros(n_features), np.zeros((n_features, n_features)))

    def add(self, H: Float[np.ndarray, "b r"]) -> "Covariance":
        """Return the covariance of these rows and further ones.

        Parameters
        ----------
        H : ndarray of float, shape (b, r)
            Rows; they are widened to float64.

        Returns
        -------
        Covariance
            That of all rows.

        Raises
        ------
        QScoreError
            If H is not a 2-D floating-point array with rows, or of another width.
        """
        check_matrix(H)
        if H.shape[1] != len(self.mean):
            raise QScoreError(f"H: expected {len(self.mean)} features as in the rows before, got shape {H.shape}")
        valid = np.asarray(valid_rows(H))
        n = int(valid.sum())
        if not n:
            return replace(self, n_invalid=self.n_invalid + len(H))
        X = np.asarray(H[valid], dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            pivot = X[0]  # differences from one of the rows: features that never vary have exactly no scatter
            mean = pivot + (X - pivot).mean(axis=0)
            X = X - mean
            part = Covariance(n, len(H) - n, mean, X.T @ X)
        return self.merge(part)

    def merge(self, other: "Covariance") -> "Covariance":
        """Return the covariance of the rows of both.

        Raises
        ------
        QScoreError
            If they differ in width.
        """
        if len(self.mean) != len(other.mean):
            raise QScoreError(f"covariances to merge: expected the same width, got {len(self.mean)}, {len(other.mean)}")
        n, n_invalid = self.n + other.n, self.n_invalid + other.n_invalid
        if not self.n or not other.n:
            return replace(self if self.n else other, n_invalid=n_invalid)
        with np.errstate(over="ignore", invalid="ignore"):
            delta = other.mean - self.mean
            mean = self.mean + delta * (other.n / n)
            between = np.outer(delta * (self.n * (other.n / n)), delta)
            return Covariance(n, n_invalid, mean, self.scatter + other.scatter + between)

    def eigenvalues(self) -> Float[np.ndarray, " k"]:
        """Return the eigenvalues of the population covariance, ``k = min(n, r)`` of them, falling.

        Those below r times the machine's precision times the largest, which rounding alone leaves, are 0. NaN where
        squares of the values overflow float64.
        """
        return _spectrum(self.scatter / max(self.n, 1), self.n)

    def singular_values(self) -> Float[np.ndarray, " k"]:
        """Return the singular values of the matrix of the valid rows, *uncentred*, ``k = min(n, r)``, falling.

        They are roots of the eigenvalues of ``scatter + n mean mean^T``: those below ``sqrt(r * 2e-16)`` of the largest
        (7e-7 at r = 2,048) are 0. NaN where squares of the values overflow float64.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(np.sqrt(_spectrum(self.scatter + np.outer(self.n * self.mean, self.mean), self.n)))


def _spectrum(moments: np.ndarray, n: int) -> np.ndarray:
    k = min(n, len(moments))
    if not np.isfinite(moments).all():
        return np.full(k, np.nan)
    values = np.linalg.eigvalsh(moments)[::-1]
    floor = len(moments) * np.finfo(np.float64).eps * values[0]
    return np.where(values > floor, values, 0.0)[:k]
