"""The paper in one file: every formula of Q-Score, as plain functions over NumPy arrays or PyTorch tensors.

Kalibhat, Narang, Firooz, Sanjabi, Feizi: "Measuring Self-Supervised Representation Quality for Downstream
Classification using Discriminative Features", AAAI 2024, arXiv 2203.01881. The symbols are the paper's, for n images i
and r features j, of which k are discriminative:

    epsilon        how many standard deviations above its row's mean a value must lie to count; 4 in the paper
    H      (n, r)  representations: row h_i is what the encoder gives for image i, before the projection head
    mu     (n,)    mean of row h_i over its r features
    sigma  (n,)    population standard deviation of row h_i over its r features
    L      (n, r)  L_i, the highly activating features of row i: h_ij > mu_i + epsilon * sigma_i
    A      (r,)    activation rate: the fraction of rows i with j in L_i
    D      (k,)    discriminative features: those whose rate ranks between the 50th and the 95th percentile
    Q      (n,)    mean of h_ij - mu_i over the features in both L_i and D
    Z, Q1  (n,)    the score of the paper's first version

Nothing here is fast and everything is exact: kernels, scorer and regulariser are tested against it. `two_sided`
thresholds |h_ij - mu_i|, for signed representations. Rows with NaN or infinity are invalid and count nowhere.
"""

import math
from typing import Any

from array_api_compat import array_namespace, device
from jaxtyping import Bool, Float, Integer

from qscore._validate import check_band, check_epsilon, check_features, check_keep, check_matrix

TIE_MARGIN = 1e-9  # k equal peaks among zeros lie exactly on the threshold for some k: ties stay out
EPSILON_GRID = tuple(k / 10 for k in range(40, 14, -1))
COVERAGE = 0.95
MAD_TO_SIGMA = 1.4826  # a normal distribution's standard deviation is this many MADs
CLIP = 20.0


def valid_rows(H: Float[Any, "n r"]) -> Bool[Any, " n"]:
    """Mark the rows without NaN or infinity; the others have no score."""
    xp = array_namespace(H)
    return xp.all(xp.isfinite(H), axis=1)


def moments(H: Float[Any, "n r"]) -> tuple[Float[Any, " n"], Float[Any, " n"]]:
    """Return mu and sigma in float64, the variance taken about the mean; NaN for invalid rows."""
    xp = array_namespace(H)
    H = xp.where(valid_rows(H)[:, None], xp.astype(H, xp.float64), math.nan)
    pivot = H[:, :1]  # summing differences from one of the row's own values gives constant rows sigma = 0 exactly
    mu = pivot + xp.mean(H - pivot, axis=1, keepdims=True)  # (n, 1)
    variance = xp.mean((H - mu) ** 2, axis=1)  # (n,)
    varies = variance > 0
    root = xp.sqrt(xp.where(varies, variance, xp.ones_like(variance)))  # a finite gradient where sigma = 0
    return mu[:, 0], xp.where(varies, root, variance)


def deviations(H: Float[Any, "n r"], *, two_sided: bool = False) -> Float[Any, "n r"]:
    """Return ``h_ij - mu_i``, or its absolute value when two-sided, in float64."""
    xp = array_namespace(H)
    mu, _ = moments(H)
    deviation = xp.astype(H, xp.float64) - mu[:, None]
    return xp.abs(deviation) if two_sided else deviation


def highly_activating(H: Float[Any, "n r"], epsilon: float = 4.0, *, two_sided: bool = False) -> Bool[Any, "n r"]:
    """Mark L: ``j in L_i`` iff ``h_ij - mu_i > epsilon * sigma_i * (1 + 1e-9)``."""
    _, sigma = moments(H)
    threshold = epsilon * sigma * (1.0 + TIE_MARGIN)  # (n,)
    return deviations(H, two_sided=two_sided) > threshold[:, None]  # never true in an invalid row: NaN


def activation_counts(L: Bool[Any, "n r"]) -> Integer[Any, " r"]:
    """Count, for each feature, the rows it is highly active in; counts of two tables merge by addition."""
    xp = array_namespace(L)
    return xp.sum(xp.astype(L, xp.int64), axis=0)


def activation_rates(H: Float[Any, "n r"], epsilon: float = 4.0, *, two_sided: bool = False) -> Float[Any, " r"]:
    """Return A: for each feature, the fraction of valid rows in which it is highly active.

    Parameters
    ----------
    H : array or tensor, shape (n, r)
        Representations.
    epsilon : float, default=4.0
        Standard deviations above the row's mean, > 0.
    two_sided : bool, default=False
        Threshold ``|h_ij - mu_i|``; for signed representations.

    Returns
    -------
    array or tensor, shape (r,)
        Rates in [0, 1], float64.

    Raises
    ------
    QScoreError
        If H is not a 2-D floating-point array, or epsilon is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> H = np.zeros((2, 20)); H[0, 3] = H[1, 3] = H[1, 5] = 1.0
    >>> [float(activation_rates(H, epsilon=e)[5]) for e in (4.0, 2.0)]
    [0.0, 0.5]
    """
    check_matrix(H)
    check_epsilon(epsilon)
    xp = array_namespace(H)
    counts = activation_counts(highly_activating(H, epsilon, two_sided=two_sided))
    n = int(xp.sum(xp.astype(valid_rows(H), xp.int64)))
    return xp.astype(counts, xp.float64) / max(n, 1)


def rank_band(r: int, lower: float, upper: float) -> tuple[int, int]:
    """Return the 0-based ranks ``[start, stop)`` between two quantiles of r features."""
    # Rounded first: 0.55 * 100 is 55.00000000000001 in floating point, and its ceiling 56.
    return math.floor(round(lower * r, 9)), math.ceil(round(upper * r, 9))


def discriminative_features(
    rates: Float[Any, " r"] | Integer[Any, " r"], lower: float = 0.50, upper: float = 0.95
) -> Integer[Any, " k"]:
    """Return D: the features whose activation rate ranks in a band, without those that never fire.

    Parameters
    ----------
    rates : array or tensor, shape (r,)
        A, or the counts behind it. Ties rank by the feature's index.
    lower, upper : float, default=0.50, 0.95
        The band in quantiles of the rank, ``0 <= lower < upper <= 1``. Below it features are rare or dead, above
        it they fire for everything.

    Returns
    -------
    array or tensor of int, shape (k,)
        Feature indices, ascending.

    Raises
    ------
    QScoreError
        If the band is empty or outside [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> discriminative_features(np.array([0.9, 0.1, 0.0, 0.3]))
    array([0, 3])
    """
    check_band(lower, upper)
    xp = array_namespace(rates)
    start, stop = rank_band(rates.shape[0], lower, upper)
    band = xp.argsort(rates, stable=True)[start:stop]
    return xp.sort(band[rates[band] > 0])


def kept_features(rates: Float[Any, " r"] | Integer[Any, " r"], keep: float = 0.6) -> Integer[Any, " k"]:
    """Return the features a compressed representation keeps: A's ranks ``[max(0, 0.95 - keep), max(0.95, keep)]``.

    Ascending; features that never fire are kept where those ranks hold some, unlike in D.
    """
    check_keep(keep)
    xp = array_namespace(rates)
    start, stop = rank_band(rates.shape[0], max(0.0, 0.95 - keep), max(0.95, keep))
    return xp.sort(xp.argsort(rates, stable=True)[start:stop])


def q_score(
    H: Float[Any, "n r"],
    features: Integer[Any, " k"] | Bool[Any, " r"],
    epsilon: float = 4.0,
    *,
    two_sided: bool = False,
) -> Float[Any, " n"]:
    """Return Q: the mean of ``h_ij - mu_i`` over the features in both L_i and D, and 0 where there are none.

    Under PyTorch the gradient flows through ``h_ij`` and ``mu_i``, and not through the sets.

    Parameters
    ----------
    H : array or tensor, shape (n, r)
        Representations.
    features : array or tensor of int, shape (k,), or of bool, shape (r,)
        D, as :func:`discriminative_features` returns it, or a mask.
    epsilon : float, default=4.0
        Standard deviations above the row's mean, > 0.
    two_sided : bool, default=False
        Use ``|h_ij - mu_i|``; for signed representations.

    Returns
    -------
    array or tensor, shape (n,)
        Scores >= 0 in the units of H, higher = better represented; NaN for invalid rows.

    Raises
    ------
    QScoreError
        If H is not a 2-D floating-point array, features are not indices into it, or epsilon is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> H = np.zeros((1, 20)); H[0, 3] = 20.0
    >>> q_score(H, np.array([3])), q_score(H, np.array([4]))
    (array([19.]), array([0.]))
    """
    check_matrix(H)
    check_epsilon(epsilon)
    xp = array_namespace(H)
    features = check_features(features, H.shape[1])
    in_D = xp.zeros(H.shape[1], dtype=xp.bool, device=device(H))
    in_D[xp.asarray(features, device=device(H))] = True
    scored = highly_activating(H, epsilon, two_sided=two_sided) & in_D[None, :]  # (n, r)
    deviation = deviations(H, two_sided=two_sided)
    total = xp.sum(xp.where(scored, deviation, xp.zeros_like(deviation)), axis=1)
    size = xp.sum(xp.astype(scored, xp.float64), axis=1)  # (n,)
    score = total / xp.where(size > 0, size, xp.ones_like(size))
    return xp.where(valid_rows(H), score, math.nan)


def z_score_v1(H: Float[Any, "n r"]) -> Float[Any, " n"]:
    """Return Z of arXiv 2203.01881v1: ``(max_j h_ij - mu_i) / sigma_i``, 0 for a constant row, NaN if invalid."""
    xp = array_namespace(H)
    mu, sigma = moments(H)
    varies = sigma > 0
    peak = xp.max(xp.astype(H, xp.float64), axis=1) - mu
    return xp.where(varies, peak / xp.where(varies, sigma, xp.ones_like(sigma)), sigma)


def q_score_v1(H: Float[Any, "n r"]) -> Float[Any, " n"]:
    """Return Q1 of arXiv 2203.01881v1: ``Z_i / ||h_i||_1`` for rows scaled to unit L2 norm (as arXiv 2207.00200).

    Parameters, errors and invalid rows are as in :func:`q_score`; a constant row scores 0.

    Examples
    --------
    >>> import numpy as np
    >>> q_score_v1(np.array([[0.0, 0.0, 0.0, 0.0, 5.0]]))
    array([2.])
    """
    check_matrix(H)
    xp = array_namespace(H)
    z = z_score_v1(H)  # scaling a row leaves its Z as it is, so Q1 = Z / (||h||_1 / ||h||_2)
    H = xp.astype(H, xp.float64)
    l1, l2 = xp.sum(xp.abs(H), axis=1), xp.linalg.vector_norm(H, axis=1)
    return z * l2 / xp.where(l1 > 0, l1, xp.ones_like(l1))


def automatic_epsilon(
    H: Float[Any, "n r"], lower: float = 0.50, upper: float = 0.95, *, two_sided: bool = False
) -> float:
    """Return the largest epsilon of the grid at which 95 % of the valid, non-constant rows keep a feature of D.

    D is found anew at each of 4.0, 3.9, ..., 1.5; the answer is 1.5 where none will do, or no row counts. Callers warn
    of that, and refuse r <= 3, where no value of the grid can be reached.
    """
    xp = array_namespace(H)
    _, sigma = moments(H)
    rows = valid_rows(H) & (sigma > 0)
    for epsilon in EPSILON_GRID:
        if H.shape[1] <= epsilon**2 + 1:  # no z-score exceeds sqrt(r - 1)
            continue
        L = highly_activating(H, epsilon, two_sided=two_sided)
        D = discriminative_features(activation_counts(L), lower, upper)
        covered = int(xp.count_nonzero(xp.any(L[:, D], axis=1) & rows)) if D.shape[0] else 0
        if covered and covered >= COVERAGE * int(xp.count_nonzero(rows)):
            return epsilon
    return EPSILON_GRID[-1]


def robust_scaling(H: Float[Any, "n r"]) -> tuple[Float[Any, " r"], Float[Any, " r"]]:
    """Return each feature's median and 1.4826 times its median absolute deviation (MAD) over the valid rows.

    Where the MAD is 0 the standard deviation stands instead.
    """
    xp = array_namespace(H)
    H = xp.sort(xp.astype(H[valid_rows(H)], xp.float64), axis=0)  # the order of the rows matters to no bit
    low, high = (len(H) - 1) // 2, len(H) // 2  # the middle row, twice, or the two middle rows
    center = (H[low, :] + H[high, :]) / 2
    spread = xp.sort(xp.abs(H - center), axis=0)
    mad = (spread[low, :] + spread[high, :]) / 2
    _, deviation = moments(xp.permute_dims(H, (1, 0)))
    return center, xp.where(mad > 0, MAD_TO_SIGMA * mad, deviation)


def apply_scaling(H: Float[Any, "n r"], center: Float[Any, " r"], scale: Float[Any, " r"]) -> Float[Any, "n r"]:
    """Return ``(h_ij - center_j) / scale_j`` clipped to +-20, and 0 where the scale is 0.

    Rows that are invalid stay so, and constant ones stay constant.
    """
    xp = array_namespace(H)
    scaled = (xp.astype(H, xp.float64) - center) / xp.where(scale > 0, scale, xp.ones_like(scale))
    varies = (xp.max(H, axis=1) > xp.min(H, axis=1))[:, None]
    scaled = xp.where(varies & (scale > 0), xp.clip(scaled, -CLIP, CLIP), xp.zeros_like(scaled))
    return xp.where(valid_rows(H)[:, None], scaled, math.nan)
