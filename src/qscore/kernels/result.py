"""What one pass over the embeddings leaves behind: per-row numbers and a sparse table of active features."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from qscore._validate import QScoreError, check_features
from qscore.core import COVERAGE, EPSILON_GRID, TIE_MARGIN, discriminative_features
from qscore.kernels.entries import count_levels, cover_levels, select_entries

__all__ = ["Scan", "automatic_epsilon"]


@dataclass(frozen=True)
class Scan:
    """One pass over n rows of r features: everything `A`, `D` and `Q` need, and nothing else.

    The highly activating features of row i are ``active[indptr[i]:indptr[i + 1]]``, ascending, with their
    deviations from the row's mean beside them.
    """

    mean: Float[np.ndarray, " n"]
    """Mean of each row; NaN, as all row values, where the row is invalid."""
    std: Float[np.ndarray, " n"]
    """Population standard deviation of each row; 0 marks a constant row."""
    max: Float[np.ndarray, " n"]
    """Largest value of each row."""
    l1_norm: Float[np.ndarray, " n"]
    """Sum of absolute values of each row."""
    l2_norm: Float[np.ndarray, " n"]
    """Euclidean norm of each row."""
    indptr: Int[np.ndarray, " n_plus_1"]
    """Start of each row in `active` and `deviation`."""
    active: Int[np.ndarray, " entries"]
    """Feature indices of L, row after row (int32)."""
    deviation: Float[np.ndarray, " entries"]
    """``h_ij - mu_i`` of each entry of L, or its absolute value when two-sided."""
    counts: Int[np.ndarray, " r"]
    """Number of rows in which each feature is highly active."""
    valid: Bool[np.ndarray, " n"]
    """Rows without NaN or infinity."""
    epsilon: float
    """The epsilon that L was taken at."""
    two_sided: bool = False
    """Whether L holds ``|h_ij - mu_i|`` beyond the threshold, or only values above it."""

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def n_active(self) -> Int[np.ndarray, " n"]:
        """Number of highly activating features of each row."""
        return np.diff(self.indptr)

    @property
    def varies(self) -> Bool[np.ndarray, " n"]:
        """Rows that are valid and not constant."""
        return self.std > 0

    def at(self, epsilon: float) -> "Scan":
        """Return the scan at a larger epsilon, without reading the embeddings again.

        Raises
        ------
        QScoreError
            If epsilon lies below the one scanned at: those entries were not kept.
        """
        if epsilon == self.epsilon:
            return self
        if epsilon < self.epsilon:
            raise QScoreError(f"epsilon: this scan keeps entries above {self.epsilon:g}, got {epsilon:g}; scan again")
        threshold = epsilon * self.std * (1.0 + TIE_MARGIN)
        kept = self.deviation > np.repeat(threshold, self.n_active)
        active = self.active[kept]
        return replace(
            self,
            indptr=np.concatenate([[0], np.cumsum(kept)])[self.indptr],
            active=active,
            deviation=self.deviation[kept],
            counts=np.bincount(active, minlength=len(self.counts)),
            epsilon=epsilon,
        )

    def select(self, features: Any) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Return the size of L_i ∩ D and Q, for each row: 0 for an empty set, NaN if invalid."""
        chosen = np.zeros(len(self.counts), dtype=bool)
        chosen[check_features(np.asarray(features), len(self.counts))] = True
        size, score = np.empty(len(self), dtype=np.int64), np.empty(len(self))
        select_entries(self.indptr, self.active, self.deviation, chosen, size, score)
        return size, np.where(self.valid, score, np.nan)

    def q_score(self, features: Any) -> Float[np.ndarray, " n"]:
        """Return Q for each row as :func:`qscore.core.q_score` defines it: 0 for an empty set, NaN if invalid."""
        return self.select(features)[1]

    @staticmethod
    def concatenate(scans: Sequence["Scan"]) -> "Scan":
        """Return the scan of the rows of several scans, one after another.

        Raises
        ------
        QScoreError
            If the scans differ in width, epsilon or sidedness.
        """
        if len(scans) == 1:
            return scans[0]
        first = scans[0]
        for other in scans[1:]:
            if (len(other.counts), other.epsilon, other.two_sided) != (
                len(first.counts),
                first.epsilon,
                first.two_sided,
            ):
                raise QScoreError(
                    "scans to concatenate must agree in features, epsilon and two_sided; got "
                    f"({len(first.counts)}, {first.epsilon:g}, {first.two_sided}) and "
                    f"({len(other.counts)}, {other.epsilon:g}, {other.two_sided})"
                )
        offsets = np.cumsum([0] + [len(scan.active) for scan in scans])
        columns = ("mean", "std", "max", "l1_norm", "l2_norm", "active", "deviation", "valid")
        joined: dict[str, Any] = {name: np.concatenate([getattr(scan, name) for scan in scans]) for name in columns}
        starts = [scan.indptr[:-1] + offset for scan, offset in zip(scans, offsets[:-1], strict=True)]
        return replace(
            first,
            **joined,
            indptr=np.concatenate([*starts, offsets[-1:]]),
            counts=np.sum([scan.counts for scan in scans], axis=0),
        )


def automatic_epsilon(
    blocks: Callable[[], Iterable[Scan]], n_features: int, lower: float = 0.50, upper: float = 0.95
) -> tuple[float, bool]:
    """Return the automatic epsilon of rows that were scanned at or below 1.5, and whether it covers them.

    As :func:`qscore.core.automatic_epsilon`, from the sparse table alone.

    Parameters
    ----------
    blocks : callable
        Gives the scans of the fit rows, block by block; called twice.
    n_features : int
        r.
    lower, upper : float
        D's band.

    Returns
    -------
    epsilon : float
        The largest value of the grid that leaves at least 95 % of the valid, non-constant rows a feature of D,
        or 1.5.
    covered : bool
        False where no value of the grid does.
    """
    grid = np.array([epsilon for epsilon in EPSILON_GRID if n_features > epsilon**2 + 1])
    counts = np.zeros((len(grid), n_features), dtype=np.int64)
    rows = 0
    for block in blocks():
        rows += int(block.varies.sum())
        count_levels(block.indptr, block.active, block.deviation, block.std, grid, counts)
    members = np.zeros(n_features, dtype=np.uint32)
    for k, count in enumerate(np.cumsum(counts, axis=0)):  # what a large epsilon keeps, a smaller one keeps too
        members[discriminative_features(count, lower, upper)] |= np.uint32(1 << k)
    covered = np.zeros(len(grid), dtype=np.int64)
    for block in blocks():
        cover_levels(block.indptr, block.active, block.deviation, block.std, grid, members, covered)
    for k, epsilon in enumerate(grid):
        if covered[k] and covered[k] >= COVERAGE * rows:
            return float(epsilon), True
    return EPSILON_GRID[-1], False
