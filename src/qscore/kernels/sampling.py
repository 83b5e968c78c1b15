"""A sample of rows that is a property of the rows, not of their order."""

from typing import Any

import numpy as np

from qscore.kernels.compilation import compiled

__all__ = ["sampled_rows"]


@compiled()
def _hash_rows(bits: Any, weights: Any, hashes: Any) -> None:  # pragma: no cover - compiled
    """Write 64 well-mixed bits of each row: a weighted sum of its bit patterns, through SplitMix64's finaliser."""
    for i in range(bits.shape[0]):
        value = np.uint64(0)
        for j in range(bits.shape[1]):
            value += (np.uint64(bits[i, j]) + np.uint64(1)) * weights[j]
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        hashes[i] = value ^ (value >> np.uint64(31))


def sampled_rows(H: np.ndarray, share: float) -> np.ndarray:
    """Choose about this share of the rows by their contents, so that order and chunks do not matter.

    Parameters
    ----------
    H : ndarray of float, shape (n, r)
        Rows.
    share : float
        0 to 1; all rows from 1 on.

    Returns
    -------
    ndarray of bool, shape (n,)
        The rows chosen; equal rows are chosen together.

    Examples
    --------
    >>> H = np.random.default_rng(0).random((1000, 8))
    >>> chosen = sampled_rows(H, 0.25)
    >>> int(chosen.sum()), bool((sampled_rows(H[::-1], 0.25) == chosen[::-1]).all())
    (254, True)
    """
    if share >= 1:
        return np.ones(len(H), dtype=bool)
    H = np.ascontiguousarray(H, dtype=H.dtype.newbyteorder("="))
    weights = np.random.default_rng(0).integers(0, 2**64, size=H.shape[1], dtype=np.uint64) | np.uint64(1)
    hashes = np.empty(len(H), np.uint64)
    _hash_rows(H.view(f"u{H.dtype.itemsize}"), weights, hashes)
    return hashes < np.uint64(share * 2**64)
