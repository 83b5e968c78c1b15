"""Metrics of single rows, and of rows as points on the unit sphere."""

import numpy as np
from jaxtyping import Float, Shaped

from qscore._validate import QScoreError, check_matrix
from qscore.core import valid_rows

__all__ = ["alignment", "hoyer_sparsity", "uniformity", "unit_rows"]

TEMPERATURE = 2.0
BLOCK = 512  # rows compared with all others at a time


def unit_rows(H: Float[np.ndarray, "n r"]) -> Float[np.ndarray, "n r"]:
    """Return the rows in float64, scaled to unit L2 norm; NaN for rows that are zero or invalid."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        H = np.where(np.asarray(valid_rows(H))[:, None], H, np.nan).astype(np.float64)
        H = H / np.abs(H).max(axis=1, keepdims=True)  # neither squares nor their sums overflow
        return np.asarray(H / np.sqrt(np.sum(H * H, axis=1, keepdims=True)))


def hoyer_sparsity(H: Float[np.ndarray, "n r"]) -> Float[np.ndarray, " n"]:
    r"""Return the sparsity of each row.

    .. math:: \frac{\sqrt{r} - \lVert h_i \rVert_1 / \lVert h_i \rVert_2}{\sqrt{r} - 1}

    Hoyer: "Non-negative matrix factorization with sparseness constraints", JMLR 5, 2004, section 3.1. Unchanged by
    scaling a row, and by its signs.

    Parameters
    ----------
    H : ndarray of float, shape (n, r)
        Representations.

    Returns
    -------
    ndarray of shape (n,)
        0 where all features are equally large, 1 where only one is not zero; NaN where all are zero, or the row holds
        NaN or infinity.

    Raises
    ------
    QScoreError
        If H is not a 2-D floating-point array with rows.

    Examples
    --------
    >>> hoyer_sparsity(np.array([[0.0, 0.0, 5.0, 0.0], [2.0, 2.0, -2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]))
    array([ 1.,  0., nan])
    """
    check_matrix(H)
    root = np.sqrt(H.shape[1])
    return np.asarray(np.clip((root - np.abs(unit_rows(H)).sum(axis=1)) / (root - 1), 0.0, 1.0))


def uniformity(H: Float[np.ndarray, "n r"], t: float = TEMPERATURE) -> float:
    r"""Return how evenly the rows cover the unit sphere; lower is more even.

    .. math:: \log \operatorname{mean}_{i < j} \exp(-t \lVert z_i - z_j \rVert^2), \qquad
              z_i = h_i / \lVert h_i \rVert_2

    Wang, Isola: "Understanding contrastive representation learning through alignment and uniformity on the
    hypersphere", ICML 2020, arXiv 2005.10242, equation 2. Unchanged by rotating, and by scaling any row.

    Parameters
    ----------
    H : ndarray of float, shape (n, r)
        Representations; rows that are zero or invalid are left out.
    t : float, default=2.0
        The paper's, > 0.

    Returns
    -------
    float
        From ``-4 t``, two opposite points, to 0, all rows in one direction; -2 t for orthogonal rows. NaN where fewer
        than two rows remain.

    Raises
    ------
    QScoreError
        If H is not a 2-D floating-point array with rows, or t is not positive.

    Examples
    --------
    >>> uniformity(np.eye(3)), uniformity(np.array([[3.0, 0.0], [-1.0, 0.0]]))
    (-4.0, -8.0)
    """
    check_matrix(H)
    if not t > 0:
        raise QScoreError(f"t: expected a positive number, got {t!r}")
    Z = unit_rows(H)
    Z = Z[~np.isnan(Z[:, 0])]
    n = len(Z)
    if n < 2:
        return np.nan
    total = 0.0
    for start in range(0, n - 1, BLOCK):
        rows = Z[start : start + BLOCK]
        squared = np.clip(2.0 - 2.0 * (rows @ Z[start:].T), 0.0, 4.0)  # (b, n - start)
        total += float(np.triu(np.exp(-t * squared), k=1).sum())
    return float(np.log(total / (n * (n - 1) / 2)))


def alignment(views: Float[np.ndarray, "b r"], image: Shaped[np.ndarray, " n_views"]) -> Float[np.ndarray, " m"]:
    r"""Return, for each image, how far apart its views lie on the unit sphere; lower is closer.

    .. math:: \operatorname{mean}_{k < l} \lVert z_k - z_l \rVert^2, \qquad z_k = h_k / \lVert h_k \rVert_2

    Wang, Isola: "Understanding contrastive representation learning through alignment and uniformity on the
    hypersphere", ICML 2020, arXiv 2005.10242, equation 1 with alpha = 2, whose loss is the mean over images.

    Parameters
    ----------
    views : ndarray of float, shape (b, r)
        Representations of augmented views; those of an image stand next to each other. Rows that are zero or invalid
        are left out.
    image : ndarray of shape (b,)
        Which image each of them shows.

    Returns
    -------
    ndarray of shape (m,)
        From 0, all views of an image alike, to 4, two that are opposite, for each of the images with at least two
        views, in their order.

    Raises
    ------
    QScoreError
        If views are not a 2-D floating-point array with rows, or there is not one image for each.

    Examples
    --------
    >>> alignment(np.array([[1.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 3.0]]), np.array([7, 7, 8, 8]))
    array([0., 2.])
    """
    check_matrix(views, name="views")
    if image.shape != (len(views),):
        raise QScoreError(f"image: expected one for each of {len(views)} views, got shape {image.shape}")
    Z = unit_rows(views)
    usable = ~np.isnan(Z[:, 0])
    Z, image = Z[usable], image[usable]
    if not len(Z):
        return np.empty(0)
    starts = np.flatnonzero(np.append(True, image[1:] != image[:-1]))
    k = np.diff(np.append(starts, len(Z)))
    center = np.repeat(np.add.reduceat(Z, starts, axis=0) / k[:, None], k, axis=0)
    spread = np.add.reduceat(np.sum((Z - center) ** 2, axis=1), starts)  # k times it is the sum over pairs
    several = k > 1
    return np.asarray(2.0 * spread[several] / (k[several] - 1))
