"""The scan on a CPU: Numba over row blocks, one Python thread per block (the kernel holds no lock)."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np

from qscore.core import TIE_MARGIN
from qscore.kernels.result import Scan

__all__ = ["scan_cpu"]

BLOCK_BYTES = 4 * 2**20

# Sums may be reordered, which is what lets them use vector registers; nothing else of IEEE arithmetic is given up.
_reordered = numba.njit(nogil=True, cache=True, fastmath={"reassoc"}, error_model="numpy")
_exact = numba.njit(nogil=True, cache=True, error_model="numpy")


@_reordered
def _sums(row: Any) -> Any:  # pragma: no cover - compiled
    """Return the sum about the first value, of absolute values, of squares, and of zeros (NaN if not finite)."""
    pivot = np.float64(row[0])
    total, l1, squares = 0.0, 0.0, 0.0
    for j in range(row.shape[0]):
        value = np.float64(row[j])
        total += value - pivot
        l1 += abs(value)
        squares += value * value
    return total, l1, squares


@_reordered
def _squares_about(row: Any, mean: float) -> Any:  # pragma: no cover - compiled
    total = 0.0
    for j in range(row.shape[0]):
        difference = np.float64(row[j]) - mean
        total += difference * difference
    return total


@_exact
def _scan_rows(H: Any, epsilon: float, two_sided: bool) -> Any:  # pragma: no cover - compiled
    n, r = H.shape
    moments = np.empty((5, n), np.float64)  # mean, std, max, l1, l2
    valid = np.empty(n, np.bool_)
    indptr = np.zeros(n + 1, np.int64)
    active = np.empty(max(r, 1024), np.int32)
    deviation = np.empty(max(r, 1024), np.float64)
    counts = np.zeros(r, np.int64)
    used = 0
    for i in range(n):
        row = H[i]
        finite = True
        peak = row[0]
        for j in range(r):
            finite &= np.isfinite(row[j])
            peak = max(peak, row[j])
        valid[i] = finite
        if not finite:
            moments[:, i] = np.nan
            indptr[i + 1] = used
            continue
        total, l1, squares = _sums(row)
        mean = np.float64(row[0]) + total / r
        std = np.sqrt(_squares_about(row, mean) / r)
        moments[0, i], moments[1, i], moments[2, i] = mean, std, peak
        moments[3, i], moments[4, i] = l1, np.sqrt(squares)
        if used + r > active.shape[0]:
            active = np.append(active, np.empty(active.shape[0] + r, np.int32))
            deviation = np.append(deviation, np.empty(deviation.shape[0] + r, np.float64))
        threshold = epsilon * std * (1.0 + TIE_MARGIN)
        for j in range(r):
            value = np.float64(row[j]) - mean
            if two_sided:
                value = abs(value)
            if value > threshold:
                active[used] = j
                deviation[used] = value
                counts[j] += 1
                used += 1
        indptr[i + 1] = used
    return moments, valid, indptr, active[:used].copy(), deviation[:used].copy(), counts


def usable_cores() -> int:
    """Return the number of cores this process may run on, which containers and schedulers often limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def scan_cpu(H: np.ndarray, epsilon: float, *, two_sided: bool, threads: int | None) -> Scan:
    """Scan a float16, float32 or float64 matrix in memory or memory-mapped, in row blocks over threads."""
    n, r = H.shape
    rows = max(1, BLOCK_BYTES // (r * H.dtype.itemsize))

    def block(start: int) -> Scan:
        part = H[start : start + rows]
        dtype = part.dtype if part.dtype in (np.float32, np.float64) else np.float32
        part = np.require(part, dtype, ["C", "A"])  # one memory layout, so that sums never depend on it
        moments, valid, indptr, active, deviation, counts = _scan_rows(part, epsilon, two_sided)
        mean, std, peak, l1_norm, l2_norm = moments
        return Scan(mean, std, peak, l1_norm, l2_norm, indptr, active, deviation, counts, valid, epsilon, two_sided)

    starts = range(0, n, rows)
    workers = min(threads or usable_cores(), len(starts))
    if workers == 1:
        return Scan.concatenate([block(start) for start in starts])
    with ThreadPoolExecutor(workers) as pool:
        return Scan.concatenate(list(pool.map(block, starts)))
