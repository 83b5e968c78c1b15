"""All metrics of a representation at once, in one pass over its rows."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from qscore._validate import QScoreError, check_matrix
from qscore.core import valid_rows
from qscore.metrics.covariance import Covariance
from qscore.metrics.intervals import Interval, mean_interval
from qscore.metrics.rows import alignment, hoyer_sparsity, uniformity, unit_rows
from qscore.metrics.spectrum import alpha_req, nesum, rankme, stable_rank

__all__ = ["RepresentationMetrics", "representation_metrics"]

BLOCK_ROWS = 2048  # rows are worked on by so many at a time, however they come: no result depends on that
SAMPLE_ROWS = 4096

Views = Iterable[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class RepresentationMetrics:
    """What can be said of a representation without labels. No interval stands beside the functions of a spectrum."""

    n: int
    """Rows."""
    n_invalid: int
    """Rows with NaN or infinity, which count towards nothing else."""
    n_zero: int
    """Valid rows that are zero throughout, and so have no direction and no sparsity."""
    n_features: int
    """r."""
    rankme: float
    """Directions filled, 1 to min(n, r): :func:`~qscore.metrics.rankme`."""
    stable_rank: float
    """Energy over that of the strongest direction, 1 to min(n, r): :func:`~qscore.metrics.stable_rank`."""
    nesum: float
    """The same of the centred rows: :func:`~qscore.metrics.nesum`."""
    alpha_req: float
    """Exponent at which eigenvalues fall with their rank: :func:`~qscore.metrics.alpha_req`."""
    uniformity: float
    """How evenly rows cover the unit sphere, -8 to 0, lower is more even: :func:`~qscore.metrics.uniformity`."""
    n_uniformity: int
    """Rows of which all pairs were compared for it: all with a direction, or a sample of them."""
    alignment: Interval | None
    """Mean squared distance of an image's views, 0 to 4: :func:`~qscore.metrics.alignment`. None without views."""
    n_alignment: int
    """Images with at least two views."""
    normalized_std: float
    """Standard deviation of a feature of the rows scaled to unit length, mean over features, 0 to 1 / sqrt(r)."""
    normalized_std_share: float
    """That as a share of 1 / sqrt(r), 0 to 1: 0 is a collapse to one direction (Chen, He: SimSiam, CVPR 2021)."""
    n_dead: int
    """Features that are zero in every valid row."""
    n_constant: int
    """Features that are the same in every valid row; the dead among them."""
    n_silent: int | None
    """Features that are never highly active. None where their counts are not known."""
    hoyer: Interval
    """Mean sparsity of a row, 0 to 1: :func:`~qscore.metrics.hoyer_sparsity`."""


def representation_metrics(
    batches: Float[np.ndarray, "n r"] | Iterable[np.ndarray],
    views: Views | None = None,
    *,
    counts: Integer[np.ndarray, " r"] | None = None,
    sample: int = SAMPLE_ROWS,
    resamples: int = 2000,
    seed: int = 0,
) -> RepresentationMetrics:
    """Measure a representation without labels, in one pass over its rows.

    Memory holds a matrix of r x r, a sample of rows, and one number for each row, so that a million rows fit. The
    result does not depend on how the rows are cut into batches.

    Parameters
    ----------
    batches : ndarray of float, shape (n, r), or iterable of such
        Representations. Rows with NaN or infinity are counted, and left out.
    views : iterable of (ndarray of shape (b, r), ndarray of shape (b,)), optional
        Representations of augmented views, and which image each of them shows; views of an image follow one another.
    counts : ndarray of int, shape (r,), optional
        Rows in which each feature is highly active, for ``n_silent``.
    sample : int, default=4096
        Rows for uniformity, >= 2, drawn uniformly where there are more.
    resamples : int, default=2000
        Bootstrap resamples of the rows for the means of Hoyer's sparsity and of alignment, >= 1.
    seed : int, default=0
        Seed of sample and resamples, >= 0.

    Returns
    -------
    RepresentationMetrics
        A metric is NaN where it is undefined: no valid row, all rows zero, nothing that varies, or values whose
        squares overflow float64.

    Raises
    ------
    QScoreError
        If there are no rows, batches are not 2-D floating-point arrays of one width, or a parameter is out of range.

    Examples
    --------
    >>> found = representation_metrics(np.eye(16))
    >>> round(found.rankme, 3), round(found.nesum, 3), found.uniformity, found.hoyer.value, found.n_dead
    (16.0, 15.0, -4.0, 1.0, 0)
    """
    if sample < 2 or resamples < 1 or seed < 0:
        raise QScoreError(f"expected sample >= 2, resamples >= 1, seed >= 0; got {sample}, {resamples} and {seed}")
    blocks = _blocks([batches] if hasattr(batches, "shape") else batches)
    stream: _Stream | None = None
    for block in blocks:
        stream = stream or _Stream(block.shape[1], sample, seed)
        stream.add(block)
    if stream is None:
        raise QScoreError("expected at least one row, got none")
    r = len(stream.low)
    if counts is not None and counts.shape != (r,):
        raise QScoreError(f"counts: expected one for each of {r} features, got shape {counts.shape}")
    covariance = stream.covariance
    singular_values, eigenvalues = covariance.singular_values(), covariance.eigenvalues()
    apart = None if views is None else _alignments(views, r)
    return RepresentationMetrics(
        n=covariance.n + covariance.n_invalid,
        n_invalid=covariance.n_invalid,
        n_zero=covariance.n - stream.n_directed,
        n_features=r,
        rankme=rankme(singular_values),
        stable_rank=stable_rank(singular_values),
        nesum=nesum(eigenvalues),
        alpha_req=alpha_req(eigenvalues),
        uniformity=uniformity(stream.sampled) if stream.n_directed else np.nan,
        n_uniformity=len(stream.sampled),
        alignment=None if apart is None else mean_interval(apart, resamples=resamples, seed=seed),
        n_alignment=0 if apart is None else len(apart),
        normalized_std=stream.normalized_std,
        normalized_std_share=stream.normalized_std * r**0.5,
        n_dead=int(((stream.low == 0) & (stream.high == 0)).sum()),
        n_constant=int((stream.low == stream.high).sum()),
        n_silent=None if counts is None else int((counts == 0).sum()),
        hoyer=mean_interval(np.concatenate(stream.hoyer), resamples=resamples, seed=seed),
    )


class _Stream:
    """What the rows so far leave behind."""

    def __init__(self, n_features: int, sample: int, seed: int) -> None:
        self.covariance = Covariance.empty(n_features)
        self.low, self.high = np.full(n_features, np.inf), np.full(n_features, -np.inf)
        self.hoyer: list[np.ndarray] = []
        self.n_directed = 0
        self._mean, self._squares = np.zeros(n_features), np.zeros(n_features)
        self._sample = np.empty((sample, n_features))
        self._rng = np.random.default_rng(seed)

    def add(self, H: np.ndarray) -> None:
        self.covariance = self.covariance.add(H)
        valid = H[np.asarray(valid_rows(H))]
        self.low = np.minimum(self.low, valid.min(axis=0, initial=np.inf))
        self.high = np.maximum(self.high, valid.max(axis=0, initial=-np.inf))
        directed = valid[(valid != 0).any(axis=1)]
        self.hoyer.append(hoyer_sparsity(directed) if len(directed) else np.empty(0))
        if len(directed):
            Z = unit_rows(directed)
            self._draw(Z)
            self._spread(Z)
            self.n_directed += len(Z)

    def _draw(self, Z: np.ndarray) -> None:
        """Keep a uniform sample (Vitter's algorithm R): row number t takes a place with probability sample / t."""
        size = len(self._sample)
        row = np.arange(self.n_directed, self.n_directed + len(Z))
        place = np.where(row < size, row, (self._rng.random(len(Z)) * (row + 1)).astype(np.int64))
        taken = place < size
        self._sample[place[taken]] = Z[taken]  # where two rows take one place, the later one stays

    def _spread(self, Z: np.ndarray) -> None:
        """Update mean and sum of squares about it of each normalised feature, as `Covariance` does."""
        n = self.n_directed + len(Z)
        mean = Z[0] + (Z - Z[0]).mean(axis=0)
        delta = mean - self._mean
        between = delta**2 * (self.n_directed * (len(Z) / n))
        self._squares = self._squares + np.sum((Z - mean) ** 2, axis=0) + between
        self._mean = self._mean + delta * (len(Z) / n)

    @property
    def sampled(self) -> np.ndarray:
        """Rows for uniformity, scaled to unit length."""
        return self._sample[: self.n_directed]

    @property
    def normalized_std(self) -> float:
        if not self.n_directed:
            return np.nan
        return float(np.sqrt(self._squares / self.n_directed).mean())


def _blocks(batches: Iterable[Any]) -> Iterator[np.ndarray]:
    """Cut rows anew into blocks of one size, in float64. A block is good until the next one is asked for."""
    block: np.ndarray | None = None
    rows = 0
    for batch in batches:
        if getattr(batch, "shape", (1,))[0] == 0:
            continue
        check_matrix(batch, name="batches")
        if block is None:
            block = np.empty((BLOCK_ROWS, batch.shape[1]))
        if batch.shape[1] != block.shape[1]:
            raise QScoreError(f"batches: expected {block.shape[1]} features as in the first, got shape {batch.shape}")
        start = 0
        while start < len(batch):
            part = batch[start : start + BLOCK_ROWS - rows]
            block[rows : rows + len(part)] = part
            rows, start = rows + len(part), start + len(part)
            if rows == BLOCK_ROWS:
                yield block
                rows = 0
    if block is not None and rows:
        yield block[:rows]


def _alignments(views: Views, n_features: int) -> np.ndarray:
    """Return the alignment of each image; its views may be cut apart by batches."""
    found: list[np.ndarray] = [np.empty(0)]
    held: tuple[np.ndarray, np.ndarray] | None = None
    for batch, batch_image in views:
        if not len(batch):
            continue
        check_matrix(batch, name="views")
        if batch.shape[1] != n_features or np.shape(batch_image) != (len(batch),):
            raise QScoreError(
                f"views: expected shape (b, {n_features}) and an image for each row, got shapes {batch.shape} and "
                f"{np.shape(batch_image)}"
            )
        H, image = np.asarray(batch, dtype=np.float64), np.asarray(batch_image)
        if held is not None:
            H, image = np.concatenate([held[0], H]), np.concatenate([held[1], image])
        others = np.flatnonzero(image != image[-1])
        end = int(others[-1]) + 1 if len(others) else 0  # the last image may go on in the next batch
        if end:
            found.append(alignment(H[:end], image[:end]))
        held = H[end:], image[end:]
    if held is not None:
        found.append(alignment(*held))
    return np.concatenate(found)
