"""The scan on a CPU: Numba over row blocks, one Python thread per block (the kernel holds no lock).

A row is read from memory once, and from the nearest cache a few times more: sums, maximum, variance about the mean,
comparison. Sums and thresholds are float64. The comparison takes 32 values at once and returns the bits of one integer,
so that a row pays for its few active features and not for all r of them; what it lets through is decided exactly.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from qscore.core import TIE_MARGIN
from qscore.kernels.result import Scan

__all__ = ["scan_cpu", "usable_cores"]

BLOCK_BYTES = 4 * 2**20
LANES = 32
SLACK = 1e-12  # float64 rounds `h - mu > t` and `h > mu + t` apart by far less than this
HALF_SCALE = np.float32(2.0**112)  # between the exponents of float16 and float32
HALF_LIMIT = np.float32(65536.0)  # no finite float16 reaches it


def _compiled(*flags: str) -> Callable[[Any], Any]:
    """Compile without the lock, keeping the result on disk where there is a place for it."""

    def decorate(function: Any) -> Any:
        options: dict[str, Any] = {"nogil": True, "fastmath": set(flags), "error_model": "numpy"}
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # a read-only installation without a home: compile in each process
            return numba.njit(**options)(function)

    return decorate


# Sums may be reordered, which is what lets them use vector registers; nothing else of IEEE arithmetic is given up.
_reordered = _compiled("reassoc")
_without_nan = _compiled("nnan", "nsz", "reassoc")
_exact = _compiled()


def _comparison(operator: str) -> Any:
    """Make a compiled function of (row, start, limit): bit k is ``row[start + k] OPERATOR limit``, for 32 values."""

    @intrinsic
    def compare(_: Any, row: Any, start: Any, limit: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array_type = signature.args[0]
            element = context.get_value_type(array_type.dtype)
            vector, lane = ir.VectorType(element, LANES), ir.IntType(32)
            pointer = builder.gep(context.make_array(array_type)(context, builder, arguments[0]).data, [arguments[1]])
            values = builder.load(builder.bitcast(pointer, vector.as_pointer()))
            values.align = 1
            nothing = ir.Constant(vector, ir.Undefined)
            limits = builder.insert_element(nothing, arguments[2], ir.Constant(lane, 0))
            limits = builder.shuffle_vector(limits, nothing, ir.Constant(ir.VectorType(lane, LANES), None))
            return builder.bitcast(builder.fcmp_ordered(operator, values, limits), lane)

        return types.uint32(row, types.intp, row.dtype), codegen

    return compare


_above, _below = _comparison(">"), _comparison("<")


def _compile_lowest_bit(_: Any, mask: Any) -> Any:
    """Return the position of the lowest bit set."""

    def codegen(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint32(types.uint32), codegen


_lowest_bit: Any = intrinsic(_compile_lowest_bit)


@_reordered
def _sums(row: Any) -> Any:  # pragma: no cover - compiled
    """Return the sums of differences from the first value, of absolute values, and of squares."""
    pivot = np.float64(row[0])
    total, absolute, squares = 0.0, 0.0, 0.0
    for j in range(row.shape[0]):
        value = np.float64(row[j])
        total += value - pivot
        absolute += abs(value)
        squares += value * value
    return total, absolute, squares


@_reordered
def _squares_about(row: Any, mean: float) -> Any:  # pragma: no cover - compiled
    """Return the sum of squared differences from the mean."""
    total = 0.0
    for j in range(row.shape[0]):
        difference = np.float64(row[j]) - mean
        total += difference * difference
    return total


@_without_nan
def _maximum(row: Any) -> Any:  # pragma: no cover - compiled
    """Return the largest value of a row that is known to be finite."""
    largest = row[0]
    for j in range(row.shape[0]):
        largest = max(largest, row[j])
    return largest


@_exact
def _finite(row: Any) -> bool:  # pragma: no cover - compiled
    finite = True
    for j in range(row.shape[0]):
        finite &= np.isfinite(row[j])
    return finite


@_exact
def _widen(half: Any, bits: Any, row: Any) -> None:  # pragma: no cover - compiled
    """Write float16 values, given as uint16, to a float32 row whose bits are `bits`; exact, subnormals included."""
    for j in range(half.shape[0]):
        value = np.uint32(half[j])
        bits[j] = ((value & np.uint32(0x8000)) << np.uint32(16)) | ((value & np.uint32(0x7FFF)) << np.uint32(13))
    for j in range(half.shape[0]):
        scaled = row[j] * HALF_SCALE
        row[j] = scaled if abs(scaled) < HALF_LIMIT else np.float32(np.inf)


def _row(H: Any, i: Any, row: Any, bits: Any) -> Any:
    """Return row i; float16, which comes as uint16, is widened into `row`."""
    raise NotImplementedError("compiled code only")


@overload(_row)
def _compile_row(H: Any, i: Any, row: Any, bits: Any) -> Any:
    def plain(H: Any, i: Any, row: Any, bits: Any) -> Any:
        return H[i]

    def widened(H: Any, i: Any, row: Any, bits: Any) -> Any:
        _widen(H[i], bits, row)
        return row

    return widened if H.dtype == types.uint16 else plain


def _just_below(limit: Any, row: Any) -> Any:
    """Return a value of the row's type that is at most `limit`, and below it where that type is coarser."""
    raise NotImplementedError("compiled code only")


@overload(_just_below)
def _compile_just_below(limit: Any, row: Any) -> Any:
    def double(limit: Any, row: Any) -> Any:
        return limit

    def single(limit: Any, row: Any) -> Any:
        return np.nextafter(np.float32(limit), np.float32(-np.inf))

    return double if row.dtype == types.float64 else single


@_exact
def _scan_row(
    row: Any, mean: float, threshold: float, two_sided: bool, active: Any, deviation: Any
) -> int:  # pragma: no cover
    """Write the features of L_i and their deviations, and return how many there are."""
    slack = SLACK * (abs(mean) + threshold)
    high = _just_below(mean + threshold - slack, row)
    low = -_just_below(threshold - mean - slack, row)
    used = 0
    for start in range(0, row.shape[0] - LANES + 1, LANES):
        mask = _above(row, start, high)
        if two_sided:
            mask |= _below(row, start, low)
        while mask:
            j = start + _lowest_bit(mask)
            mask &= mask - np.uint32(1)
            difference = np.float64(row[j]) - mean
            if two_sided:
                difference = abs(difference)
            if difference > threshold:
                active[used], deviation[used] = j, difference
                used += 1
    for j in range(row.shape[0] // LANES * LANES, row.shape[0]):
        difference = np.float64(row[j]) - mean
        if two_sided:
            difference = abs(difference)
        if difference > threshold:
            active[used], deviation[used] = j, difference
            used += 1
    return used


@_exact
def _scan_rows(H: Any, row: Any, row_bits: Any, epsilon: float, two_sided: bool) -> Any:  # pragma: no cover - compiled
    """Scan a block; float16 comes as uint16 and is widened into `row`, row after row."""
    n, r = H.shape
    moments = np.empty((5, n), np.float64)  # mean, std, max, l1, l2
    valid = np.empty(n, np.bool_)
    indptr = np.zeros(n + 1, np.int64)
    active = np.empty(r + 1024, np.int32)
    deviation = np.empty(r + 1024, np.float64)
    counts = np.zeros(r, np.int64)
    used = 0
    for i in range(n):
        values = _row(H, i, row, row_bits)
        total, absolute, squares = _sums(values)
        valid[i] = np.isfinite(squares) or _finite(values)  # squares of float64 may overflow where values do not
        indptr[i + 1] = used
        if not valid[i]:
            moments[:, i] = np.nan
            continue
        mean = np.float64(values[0]) + total / r
        std = np.sqrt(_squares_about(values, mean) / r)
        moments[0, i], moments[1, i], moments[2, i] = mean, std, _maximum(values)
        moments[3, i], moments[4, i] = absolute, np.sqrt(squares)
        if used + r > active.shape[0]:
            active = np.append(active, np.empty(active.shape[0] + r, np.int32))
            deviation = np.append(deviation, np.empty(deviation.shape[0] + r, np.float64))
        threshold = epsilon * std * (1.0 + TIE_MARGIN)
        found = _scan_row(values, mean, threshold, two_sided, active[used:], deviation[used:])
        for k in range(used, used + found):
            counts[active[k]] += 1
        used += found
        indptr[i + 1] = used
    return moments, valid, indptr, active[:used].copy(), deviation[:used].copy(), counts


def usable_cores() -> int:
    """Return the number of cores this process may run on, which containers and schedulers often limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def scan_cpu(H: np.ndarray, epsilon: float, *, two_sided: bool, threads: int | None) -> Scan:
    """Scan a float16, float32 or float64 matrix in memory or memory-mapped, in row blocks over threads."""
    n, r = H.shape
    rows = max(1, BLOCK_BYTES // (r * H.dtype.itemsize))
    kind = np.uint16 if H.dtype == np.float16 else H.dtype

    def block(start: int) -> Scan:
        part = np.require(H[start : start + rows], None, ["C", "A"])  # one layout, so that sums never depend on it
        bits = np.empty(r, np.uint32)
        values = part.view(kind)
        moments, valid, indptr, active, deviation, counts = _scan_rows(
            values, bits.view(np.float32), bits, epsilon, two_sided
        )
        mean, std, peak, l1_norm, l2_norm = moments
        return Scan(mean, std, peak, l1_norm, l2_norm, indptr, active, deviation, counts, valid, epsilon, two_sided)

    starts = range(0, n, rows)
    workers = min(threads or usable_cores(), len(starts))
    if workers == 1:
        return Scan.concatenate([block(start) for start in starts])
    with ThreadPoolExecutor(workers) as pool:
        return Scan.concatenate(list(pool.map(block, starts)))
