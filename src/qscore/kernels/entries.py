"""Loops over the sparse entries of a scan: Q, and what each epsilon of a grid keeps, without a scan for each."""

from typing import Any

import numpy as np

from qscore.core import TIE_MARGIN
from qscore.kernels.compilation import compiled

__all__ = ["count_levels", "cover_levels", "select_entries"]


@compiled()
def select_entries(
    indptr: Any, active: Any, deviation: Any, chosen: Any, size: Any, score: Any
) -> None:  # pragma: no cover - compiled
    """Write the size of each row's L_i ∩ D, and the mean deviation over it: Q, 0 where the set is empty.

    Parameters
    ----------
    indptr, active, deviation : arrays
        As in :class:`qscore.Scan`.
    chosen : ndarray of bool, shape (r,)
        D.
    size : ndarray of int64, shape (n,)
        Written to.
    score : ndarray of float64, shape (n,)
        Written to.
    """
    for i in range(size.shape[0]):
        found, total = 0, 0.0
        for k in range(indptr[i], indptr[i + 1]):
            if chosen[active[k]]:
                found += 1
                total += deviation[k]
        size[i], score[i] = found, total / max(found, 1)


@compiled()
def _level(deviation: float, std: float, grid: Any) -> Any:  # pragma: no cover - compiled
    """Return the position of the largest epsilon that keeps an entry, in a descending grid; its length if none does."""
    level = grid.shape[0]
    while level > 0 and deviation > grid[level - 1] * std * (1.0 + TIE_MARGIN):
        level -= 1
    return level


@compiled()
def count_levels(
    indptr: Any, active: Any, deviation: Any, std: Any, grid: Any, counts: Any
) -> None:  # pragma: no cover - compiled
    """Add to ``counts[k, j]`` the entries of feature j whose largest epsilon is ``grid[k]``.

    Parameters
    ----------
    indptr, active, deviation, std : arrays
        As in :class:`qscore.Scan`.
    grid : ndarray of float64, shape (m,)
        Descending epsilons.
    counts : ndarray of int64, shape (m, r)
        Added to.
    """
    for i in range(std.shape[0]):
        for k in range(indptr[i], indptr[i + 1]):
            level = _level(deviation[k], std[i], grid)
            if level < grid.shape[0]:
                counts[level, active[k]] += 1


@compiled()
def cover_levels(
    indptr: Any, active: Any, deviation: Any, std: Any, grid: Any, members: Any, covered: Any
) -> None:  # pragma: no cover - compiled
    """Add to ``covered[k]`` the rows that keep a discriminative feature at epsilon ``grid[k]``.

    Parameters
    ----------
    indptr, active, deviation, std, grid : arrays
        As in :func:`count_levels`; at most 32 epsilons.
    members : ndarray of uint32, shape (r,)
        Bit k is set where the feature is discriminative at ``grid[k]``.
    covered : ndarray of int64, shape (m,)
        Added to.
    """
    every = np.uint32(0xFFFFFFFF)
    for i in range(std.shape[0]):
        found = np.uint32(0)
        for k in range(indptr[i], indptr[i + 1]):
            level = _level(deviation[k], std[i], grid)
            if level < grid.shape[0]:
                found |= members[active[k]] & (every << np.uint32(level))
        for level in range(grid.shape[0]):
            covered[level] += (found >> np.uint32(level)) & np.uint32(1)
