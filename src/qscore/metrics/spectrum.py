"""How many directions a representation fills: functions of its singular values, or of its covariance's eigenvalues."""

import numpy as np
from jaxtyping import Float

from qscore._validate import QScoreError

__all__ = ["ALPHA_RANKS", "alpha_req", "nesum", "rankme", "stable_rank"]

RANKME_EPSILON = 1e-7  # the paper's, for float32
ALPHA_RANKS = (4, 100)


def rankme(singular_values: Float[np.ndarray, " k"]) -> float:
    r"""Return RankMe: the exponential of the entropy of the normalised singular values.

    .. math:: \exp\Big(-\sum_{i=1}^{\min(n, r)} p_i \log p_i\Big), \qquad
              p_i = \frac{\sigma_i}{\sum_j \sigma_j} + 10^{-7}

    Garrido, Balestriero, Najman, LeCun: "RankMe", ICML 2023, arXiv 2210.02885, equation 1. Unchanged by rotating
    or scaling the representation.

    Parameters
    ----------
    singular_values : ndarray of shape (k,)
        Those of the *uncentred* matrix of representations, ``k = min(n, r)``, as
        :meth:`~qscore.metrics.Covariance.singular_values` returns them; >= 0, in any order.

    Returns
    -------
    float
        From 1, one direction, to k, all equally, exceeded at either end only by what the paper's 1e-7 adds; NaN where
        there are no rows, or all are zero.

    Raises
    ------
    QScoreError
        If values are negative, or not a vector.

    Examples
    --------
    >>> round(rankme(np.array([3.0, 3.0, 3.0, 0.0])), 4), round(rankme(np.array([7.0, 0.0])), 4)
    (3.0, 1.0)
    """
    _check(singular_values)
    total = singular_values.sum()
    if not total > 0:
        return np.nan
    p = singular_values / total + RANKME_EPSILON
    return float(np.exp(-np.sum(p * np.log(p))))


def stable_rank(singular_values: Float[np.ndarray, " k"]) -> float:
    r"""Return the stable rank of the uncentred representations.

    .. math:: \frac{\lVert H \rVert_F^2}{\lVert H \rVert_2^2} = \frac{\sum_i \sigma_i^2}{\sigma_1^2}

    Rudelson, Vershynin: "Sampling from large matrices", Journal of the ACM 54, 2007. Unchanged by rotating or scaling.

    Parameters
    ----------
    singular_values : ndarray of shape (k,)
        Those of the matrix of representations, >= 0, in any order.

    Returns
    -------
    float
        From 1 to the rank; NaN where there are no rows, or all are zero.

    Raises
    ------
    QScoreError
        If values are negative, or not a vector.

    Examples
    --------
    >>> stable_rank(np.array([2.0, 1.0, 1.0]))
    1.5
    """
    _check(singular_values)
    if not singular_values.sum() > 0:
        return np.nan
    return float(np.sum((singular_values / singular_values.max()) ** 2))


def nesum(eigenvalues: Float[np.ndarray, " k"]) -> float:
    r"""Return the normalised sum of the covariance's eigenvalues.

    .. math:: \sum_i \lambda_i / \lambda_1

    He, Ozay: "Exploring the gap between collapsed and whitened features in self-supervised learning", ICML 2022. It is
    the stable rank of the *centred* representations. Unchanged by rotating, scaling or moving them.

    Parameters
    ----------
    eigenvalues : ndarray of shape (k,)
        Those of the covariance, >= 0, in any order.

    Returns
    -------
    float
        From 1, one direction, to r, white; NaN where nothing varies.

    Raises
    ------
    QScoreError
        If values are negative, or not a vector.

    Examples
    --------
    >>> nesum(np.array([4.0, 2.0, 2.0]))
    2.0
    """
    _check(eigenvalues)
    if not eigenvalues.sum() > 0:
        return np.nan
    return float(np.sum(eigenvalues / eigenvalues.max()))


def alpha_req(eigenvalues: Float[np.ndarray, " k"], first: int = ALPHA_RANKS[0], last: int = ALPHA_RANKS[1]) -> float:
    r"""Return alpha-ReQ: the exponent at which the covariance's eigenvalues fall with their rank.

    .. math:: \lambda_i \propto i^{-\alpha}

    Agrawal, Mondal, Ghosh, Richards: "alpha-ReQ: assessing representation quality in self-supervised learning by
    measuring eigenspectrum decay", NeurIPS 2022. The paper leaves the fit open; as in the authors' code it is the line
    through :math:`(\log i, \log \lambda_i)`, each rank weighted by :math:`1 / i`, over the ranks 4 to 100. Eigenvalues
    of 0 are left out. Unchanged by rotating, scaling or moving the representations.

    Parameters
    ----------
    eigenvalues : ndarray of shape (k,)
        Those of the covariance, >= 0, in any order.
    first, last : int, default=4, 100
        Ranks of the fit, counted from 1, both included; fewer where there are not so many eigenvalues above 0.

    Returns
    -------
    float
        0 for a flat spectrum, and larger the steeper it falls; the paper finds the best encoders near 1. NaN where
        fewer than two eigenvalues remain.

    Raises
    ------
    QScoreError
        If values are negative or not a vector, or not ``1 <= first < last``.

    Examples
    --------
    >>> round(alpha_req(np.arange(1.0, 201.0) ** -1.5), 6)
    1.5
    """
    _check(eigenvalues)
    if not 1 <= first < last:
        raise QScoreError(f"first, last: expected ranks 1 <= first < last, got {first} and {last}")
    ranked = np.sort(eigenvalues[eigenvalues > 0])[::-1][first - 1 : last]
    if len(ranked) < 2:
        return np.nan
    rank = np.arange(first, first + len(ranked), dtype=np.float64)
    weight, x, y = 1 / rank, np.log(rank), np.log(ranked)
    x = x - np.average(x, weights=weight)
    return float(-np.sum(weight * x * y) / np.sum(weight * x * x)) + 0.0  # no negative zero


def _check(values: np.ndarray) -> None:
    if values.ndim != 1 or (values < 0).any():
        what = f"shape {values.shape}" if values.ndim != 1 else f"the smallest is {values.min():g}"
        raise QScoreError(f"expected a vector of singular values or eigenvalues, none below 0; {what}")
