"""Q's label-free rivals: other numbers of a row of embeddings that might tell whether it is represented well.

Rows of any number are worked on block by block. Cosines are taken between rows scaled to unit length; a row that is
zero throughout has no direction, and its cosine with anything counts as 0.
"""

import warnings
from collections.abc import Iterator

import numpy as np
import scipy.stats
from jaxtyping import Float, Integer
from scipy.linalg import cholesky, solve_triangular
from sklearn.cluster import KMeans
from sklearn.covariance import empirical_covariance, ledoit_wolf_shrinkage, shrunk_covariance
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from qscore._progress import progress
from qscore._validate import QScoreError
from qscore.core import apply_scaling, moments
from qscore.kernels.entries import select_entries
from qscore.metrics.rows import hoyer_sparsity, unit_rows

__all__ = [
    "draw_features",
    "hoyer",
    "kurtosis",
    "mahalanobis",
    "mean_deviation",
    "nearest_rows",
    "prototype_distances",
    "prototypes",
    "scaled_std",
    "shared_neighbors",
    "view_cosine",
]

BLOCK_VALUES = 2**22  # of rows worked on at a time: 32 MiB of float64
SEARCH_VALUES = 2**24  # of reference rows searched at a time: 128 MiB
FIT_VALUES = 2**25  # of training rows that prototypes and Gaussian are fitted on: 256 MiB
ROWS_PER_PROTOTYPE = 39  # at least, as in faiss
LEAST_KURTOSIS = -2.0
LEAST_SHRINKAGE = 1e-9


def _blocks(n_rows: int, n_features: int, values: int = BLOCK_VALUES) -> Iterator[slice]:
    rows = max(1, values // n_features)
    return (slice(start, min(start + rows, n_rows)) for start in range(0, n_rows, rows))


def _unit(H: Float[np.ndarray, "n r"]) -> Float[np.ndarray, "n r"]:
    """Return the rows in float64, scaled to unit length; zero rows stay zero."""
    Z = np.empty(H.shape)
    for rows in _blocks(*H.shape):
        Z[rows] = np.nan_to_num(unit_rows(H[rows]), nan=0.0)
    return Z


def hoyer(H: Float[np.ndarray, "n r"]) -> Float[np.ndarray, " n"]:
    """Return Hoyer's sparsity of each row, in [0, 1], as :func:`qscore.metrics.hoyer_sparsity`; 0 for a zero row."""
    found = [hoyer_sparsity(H[rows]) for rows in _blocks(*H.shape)]
    return np.asarray(np.nan_to_num(np.concatenate(found), nan=0.0))


def kurtosis(H: Float[np.ndarray, "n r"]) -> Float[np.ndarray, " n"]:
    """Return the excess kurtosis of each row over its features: 0 for a Gaussian, high for a few strong peaks.

    A constant row has no peak and gets -2, the least that a row can have.

    Examples
    --------
    >>> kurtosis(np.array([[1.0, 1.0, 1.0, 1.0, 6.0], [1.0, 0.0, 1.0, 0.0, 0.5], [3.0, 3.0, 3.0, 3.0, 3.0]])).round(2)
    array([ 0.25, -1.75, -2.  ])
    """
    found = np.full(len(H), LEAST_KURTOSIS)
    for rows in _blocks(*H.shape):
        block = H[rows].astype(np.float64)
        varies = np.flatnonzero(block.max(axis=1) > block.min(axis=1))
        block = block[varies] - block[varies, :1]  # of rows that hardly vary nothing would be left otherwise
        found[rows.start + varies] = scipy.stats.kurtosis(block, axis=1)
    return found


def scaled_std(
    H: Float[np.ndarray, "n r"], center: Float[np.ndarray, " r"], scale: Float[np.ndarray, " r"]
) -> Float[np.ndarray, " n"]:
    """Return the population standard deviation of each row after the scaling of signed tables."""
    found = [np.asarray(moments(apply_scaling(H[rows], center, scale))[1]) for rows in _blocks(*H.shape)]
    return np.concatenate(found)


def view_cosine(H: Float[np.ndarray, "n r"], views: Float[np.ndarray, "n k r"]) -> Float[np.ndarray, " n"]:
    """Return the mean cosine of each image's representation with those of its augmented views, in [-1, 1].

    Examples
    --------
    >>> view_cosine(np.array([[2.0, 0.0]]), np.array([[[5.0, 0.0], [0.0, 1.0]]]))
    array([0.5])
    """
    total = np.zeros(len(H))
    for rows in _blocks(*H.shape):
        Z = _unit(H[rows])
        for view in range(views.shape[1]):
            total[rows] += np.einsum("ij,ij->i", Z, _unit(views[rows, view]))
    return np.asarray(total / views.shape[1])


def nearest_rows(
    H: Float[np.ndarray, "n r"], reference: Float[np.ndarray, "m r"], k: int, *, own: bool = False
) -> tuple[Float[np.ndarray, "n k"], Integer[np.ndarray, "n k"]]:
    """Find the reference rows of the highest cosine similarity to each row, exactly.

    Parameters
    ----------
    H : ndarray of shape (n, r)
        Rows.
    reference : ndarray of shape (m, r)
        Where neighbours come from.
    k : int
        Neighbours wanted, >= 1; fewer where there are not so many.
    own : bool, default=False
        Row i of the reference is row i of H, or what row i of H is a view of, and never its neighbour.

    Returns
    -------
    similarity : ndarray of shape (n, k)
        In [-1, 1], falling.
    index : ndarray of shape (n, k)
        Rows of the reference.

    Raises
    ------
    QScoreError
        If there is no reference row, or none but its own.

    Examples
    --------
    >>> reference = np.array([[0.0, 3.0], [2.0, 0.0]])
    >>> nearest_rows(np.array([[1.0, 0.0]]), reference, 1)
    (array([[1.]]), array([[1]]))
    """
    (n, r), m = H.shape, len(reference)
    k = min(k, m - own)
    if k < 1:
        raise QScoreError(f"it takes at least {1 + own} training rows to find neighbours among, got {m}")
    wanted = k + own
    squared, index = np.full((n, wanted), np.inf), np.full((n, wanted), -1)
    with progress("neighbours", n * m, "comparisons") as advance:
        for there in _blocks(m, r, SEARCH_VALUES):
            search = NearestNeighbors(metric="sqeuclidean", algorithm="brute").fit(_directions(reference[there], 1))
            at_most = min(wanted, there.stop - there.start)
            for rows in _blocks(n, r):
                found = search.kneighbors(_directions(H[rows], 0), at_most)
                joined = np.concatenate([squared[rows], found[0]], axis=1)
                best = np.argsort(joined, axis=1, stable=True)[:, :wanted]
                squared[rows] = np.take_along_axis(joined, best, axis=1)
                candidates = np.concatenate([index[rows], found[1] + there.start], axis=1)
                index[rows] = np.take_along_axis(candidates, best, axis=1)
                advance((rows.stop - rows.start) * (there.stop - there.start))
    if own:
        itself = index == np.arange(n)[:, None]
        itself[~itself.any(axis=1), -1] = True  # hidden behind rows just as near: one of them goes instead
        squared, index = squared[~itself].reshape(n, k), index[~itself].reshape(n, k)
    return np.clip(1.0 - squared / 2.0, -1.0, 1.0), index


def _directions(H: np.ndarray, side: int) -> np.ndarray:
    """Return unit rows of r + 2 values, of which squared distances are 2 - 2 cos, for rows without direction too.

    Such a row points along an axis of its own, another one for rows that search (side 0) and are searched (side 1).
    """
    Z = np.zeros((len(H), H.shape[1] + 2))
    for rows in _blocks(*H.shape):
        Z[rows, :-2] = _unit(H[rows])
    Z[~Z.any(axis=1), side - 2] = 1.0
    return Z


def shared_neighbors(a: Integer[np.ndarray, "n k"], b: Integer[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    """Return the share of neighbours, distinct in each row, that two lists have in common, in [0, 1].

    Examples
    --------
    >>> shared_neighbors(np.array([[4, 2, 7, 1]]), np.array([[7, 0, 4, 3]]))
    array([0.5])
    """
    both = np.sort(np.concatenate([a, b], axis=1), axis=1)
    return np.asarray((both[:, 1:] == both[:, :-1]).sum(axis=1) / a.shape[1])


def prototypes(train: Float[np.ndarray, "m r"], seed: int = 0) -> Float[np.ndarray, "k r"]:
    """Return the centres of k-means on the training rows scaled to unit length.

    Rows are scaled so that distances compare directions and are no feature norm in disguise; Sorscher et al., "Beyond
    neural scaling laws", NeurIPS 2022, whose measure of hard images this is, compare directions too. Labels being
    unknown, the number of prototypes is ``round(sqrt(m / 2))`` (Mardia, Kent and Bibby, "Multivariate Analysis",
    1979), at most one for each 39 rows of the fit, and at least 2. Of more than 2**25 values, such as 16,384 rows of
    2,048 features, the fit takes a seeded sample.

    Raises
    ------
    QScoreError
        If there are fewer than 2 training rows.
    """
    m = len(train)
    if m < 2:
        raise QScoreError(f"it takes at least 2 training rows to find prototypes, got {m}")
    Z = _unit(_sampled(train, seed))
    k = max(2, min(round((m / 2) ** 0.5), len(Z) // ROWS_PER_PROTOTYPE))
    with warnings.catch_warnings(), threadpool_limits(1):  # threads add up in an order of their own
        warnings.simplefilter("ignore", ConvergenceWarning)  # of fewer distinct rows than prototypes
        fitted = KMeans(k, n_init=1, max_iter=100, random_state=seed, copy_x=False).fit(Z)
    return np.asarray(fitted.cluster_centers_)


def prototype_distances(
    H: Float[np.ndarray, "n r"], centers: Float[np.ndarray, "k r"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return the distances of each row, scaled to unit length, to the nearest prototype and to the second nearest.

    Examples
    --------
    >>> nearest, second = prototype_distances(np.array([[0.0, 2.0]]), np.array([[0.0, 1.0], [0.6, 0.8]]))
    >>> nearest.round(3), second.round(3)
    (array([0.]), array([0.632]))
    """
    search = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(centers)
    found = []
    for rows in _blocks(len(H), 2 * H.shape[1]):
        Z = _unit(H[rows])
        chosen = centers[search.kneighbors(Z, return_distance=False)]  # (b, 2, r)
        found.append(np.sort(np.linalg.norm(Z[:, None] - chosen, axis=2), axis=1))
    nearest, second = np.concatenate(found).T
    return nearest, second


def mahalanobis(H: Float[np.ndarray, "n r"], train: Float[np.ndarray, "m r"], seed: int = 0) -> Float[np.ndarray, " n"]:
    """Return each row's Mahalanobis distance from the training rows, as one Gaussian without classes.

    Its covariance is shrunk towards a multiple of the identity (Ledoit and Wolf, Journal of Multivariate Analysis 88,
    2004), by 1e-9 at least, so that it has an inverse where there are fewer rows than features. The fit takes the same
    sample of many rows as :func:`prototypes`.

    Raises
    ------
    QScoreError
        If there are fewer than 2 training rows, or they are all alike.
    """
    fit = _sampled(train, seed).astype(np.float64)
    if len(fit) < 2 or not (fit != fit[0]).any():
        raise QScoreError(f"it takes training rows that differ to fit a Gaussian, got {len(fit)} alike")
    mean = fit.mean(axis=0)
    fit -= mean
    shrinkage = max(float(ledoit_wolf_shrinkage(fit, assume_centered=True)), LEAST_SHRINKAGE)
    covariance = shrunk_covariance(empirical_covariance(fit, assume_centered=True), shrinkage)
    del fit
    root = cholesky(covariance, lower=True, overwrite_a=True)
    found = [
        np.linalg.norm(solve_triangular(root, (H[rows] - mean).T, lower=True, overwrite_b=True), axis=0)
        for rows in _blocks(*H.shape)
    ]
    return np.concatenate(found)


def _sampled(train: np.ndarray, seed: int) -> np.ndarray:
    """Return the training rows, or a seeded sample of them where they would not fit in memory twice."""
    rows = max(2, FIT_VALUES // train.shape[1])
    if len(train) <= rows:
        return train
    return np.asarray(train[np.sort(np.random.default_rng(seed).choice(len(train), rows, replace=False))])


def draw_features(
    counts: Integer[np.ndarray, " r"], size: int, draws: int, seed: int = 0
) -> Integer[np.ndarray, "draws size"]:
    """Draw sets of features, each without replacement, from those that are highly active in at least one row.

    Examples
    --------
    >>> draw_features(np.array([3, 0, 1, 0]), 2, draws=1)
    array([[0, 2]])
    """
    rng = np.random.default_rng(seed)
    alive = np.flatnonzero(counts)
    return np.array([np.sort(rng.choice(alive, size, replace=False)) for _ in range(draws)]).reshape(draws, size)


def mean_deviation(
    indptr: Integer[np.ndarray, " n_plus_1"],
    active: Integer[np.ndarray, " entries"],
    deviation: Float[np.ndarray, " entries"],
    chosen: np.ndarray,
) -> Float[np.ndarray, " n"]:
    """Return Q for a D of the caller's, a mask over features: the mean deviation over L_i and D, 0 where they part."""
    size, score = np.empty(len(indptr) - 1, dtype=np.int64), np.empty(len(indptr) - 1)
    select_entries(indptr, active, deviation, chosen, size, score)
    return score
