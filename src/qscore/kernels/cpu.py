"""The scan on a CPU: Numba over row blocks, one Python thread per block (the kernel holds no lock).

A row comes from memory once, while the row before it is worked on, and from the nearest cache twice more: sums, squares
about the mean, comparison. Sums and thresholds are float64. The comparison takes 32 values at once and returns the bits
of one integer, so that a row pays for its few active features and not for all r of them; what it lets through is
decided exactly. The maximum comes for free from the active features, and from one more pass over a row that has none.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

from qscore.core import TIE_MARGIN
from qscore.kernels.compilation import compiled
from qscore.kernels.result import Scan

__all__ = ["row_scorer", "scan_cpu", "usable_cores"]

BLOCK_BYTES = 16 * 2**20  # fewer, larger blocks spend less on Python
SHARES = 4  # blocks per thread, so that none waits long for another
LANES = 32
ENTRIES = 32  # active features of a row that room is made for; more of them cost a copy
CHUNK = 512  # values between two requests for what comes next
AHEAD = 2  # rows
SLACK = 1e-12  # float64 rounds `h - mu > t` and `h > mu + t` apart by far less than this
HALF_SCALE = np.float32(2.0**112)  # between the exponents of float16 and float32
HALF_LIMIT = np.float32(65536.0)  # no finite float16 reaches it


# Sums may be reordered and multiplied and added in one step, which is what lets them use vector registers; nothing else
# of IEEE arithmetic is given up.
REORDERED = {"reassoc", "contract"}
_reordered = compiled(*REORDERED)
_exact = compiled()


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
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint32(types.uint32), codegen


_lowest_bit: Any = intrinsic(_compile_lowest_bit)


def _compile_prefetch(_: Any, row: Any, index: Any) -> Any:
    """Ask for the cache line of a value that will be read soon, into the second cache."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.bitcast(builder.gep(array.data, [arguments[1]]), ir.IntType(8).as_pointer())
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, flag, flag, flag])
        prefetch = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            builder.module, kind, "llvm.prefetch.p0"
        )
        builder.call(prefetch, [pointer, ir.Constant(flag, 0), ir.Constant(flag, 2), ir.Constant(flag, 1)])
        return context.get_dummy_value()

    return types.void(row, types.intp), codegen


_prefetch: Any = intrinsic(_compile_prefetch)


def _sums(row: Any) -> Any:
    """Return the sum of a row's differences from a first guess at its mean, that guess, and the sum of magnitudes."""
    raise NotImplementedError("compiled code only")


@overload(_sums, jit_options={"fastmath": REORDERED})
def _compile_sums(row: Any) -> Any:
    def single(row: Any) -> Any:
        # r equal float32 values add up exactly in float64, and so a constant row has no deviation.
        total, magnitude = 0.0, 0.0
        for j in range(row.shape[0]):
            value = np.float64(row[j])
            total += value
            magnitude += abs(value)
        return total, 0.0, magnitude

    def double(row: Any) -> Any:
        guess = row[0]
        total, magnitude = 0.0, 0.0
        for j in range(row.shape[0]):
            total += row[j] - guess
            magnitude += abs(row[j])
        return total, guess, magnitude

    return double if row.dtype == types.float64 else single


@_reordered
def _squares_about(row: Any, mean: float) -> Any:  # pragma: no cover - compiled
    """Return the sum of squared differences from the mean."""
    total = 0.0
    for j in range(row.shape[0]):
        difference = np.float64(row[j]) - mean
        total += difference * difference
    return total


@_exact
def _squares(row: Any, mean: float, coming: Any) -> Any:  # pragma: no cover - compiled
    """Return the sum of squared differences from the mean; asks for the first half of the row that is coming."""
    total = 0.0
    for start in range(0, row.shape[0], CHUNK):
        stop = min(start + CHUNK, row.shape[0])
        for j in range(start // 2, stop // 2, LANES // 2):
            _prefetch(coming, j)
        total += _squares_about(row[start:stop], mean)
    return total


def _put_maximum(row: Any, peaks: Any, i: Any) -> Any:
    """Write the largest value of a finite row to ``peaks[i]``, an array of the row's type."""
    raise NotImplementedError("compiled code only")


@overload(_put_maximum)
def _compile_put_maximum(row: Any, peaks: Any, i: Any) -> Any:
    # Floats have no order that vector registers could use (NaN); the integers with their bits have, once those of
    # negative values are turned round.
    integer, sign = (np.int64, np.int64(63)) if row.dtype == types.float64 else (np.int32, np.int32(31))
    lowest, rest = np.iinfo(integer).min, integer(np.iinfo(integer).max)

    def put(row: Any, peaks: Any, i: Any) -> None:
        bits = row.view(integer)
        largest = integer(lowest)
        for j in range(bits.shape[0]):
            largest = max(largest, bits[j] ^ ((bits[j] >> sign) & rest))
        peaks.view(integer)[i] = largest ^ ((largest >> sign) & rest)

    return put


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
def _candidates(
    row: Any, coming: Any, high: Any, low: Any, two_sided: bool, found: Any
) -> int:  # pragma: no cover - compiled
    """Write the features above `high`, or below `low`, and return how many; asks for the rest of the coming row."""
    size, whole = 0, row.shape[0] // LANES * LANES
    for start in range(0, whole, LANES):
        _prefetch(coming, (row.shape[0] + start) // 2)
        mask = _above(row, start, high)
        if two_sided:
            mask |= _below(row, start, low)
        # Most words hold no bit, or one or two: written whether there or not, they cost no mispredicted branch.
        for _ in range(2):
            found[size] = start + _lowest_bit(mask)
            size += mask != 0
            mask &= mask - np.uint32(1)
        while mask:
            found[size] = start + _lowest_bit(mask)
            size += 1
            mask &= mask - np.uint32(1)
    for j in range(whole, row.shape[0]):
        found[size] = j
        size += 1
    return size


@_exact
def _scan_row(
    row: Any, coming: Any, mean: float, threshold: float, two_sided: bool, active: Any, deviation: Any
) -> Any:  # pragma: no cover - compiled
    """Write the features of L_i and their deviations; return how many, and where the row's maximum is, or -1."""
    slack = SLACK * (abs(mean) + threshold)
    high = _just_below(mean + threshold - slack, row)
    low = -_just_below(threshold - mean - slack, row)
    found = _candidates(row, coming, high, low, two_sided, active)
    used, largest, peak = 0, threshold, -1
    for k in range(found):
        j = active[k]
        difference = np.float64(row[j]) - mean
        if difference > largest:
            largest, peak = difference, j
        if two_sided:
            difference = abs(difference)
        active[used], deviation[used] = j, difference
        used += int(difference > threshold)
    return used, peak


@_exact
def _scan_rows(
    H: Any, peaks: Any, row: Any, row_bits: Any, epsilon: float, two_sided: bool
) -> Any:  # pragma: no cover - compiled
    """Scan a block; float16 comes as uint16 and is widened into `row`, row after row."""
    n, r = H.shape
    moments = np.empty((4, n), np.float64)  # mean, std, l1, l2
    valid = np.empty(n, np.bool_)
    indptr = np.zeros(n + 1, np.int64)
    room = r + 2  # what a row may write, the two that are not counted included
    active = np.empty(ENTRIES * n + room, np.int32)
    deviation = np.empty(ENTRIES * n + room, np.float64)
    counts = np.zeros(r, np.int64)
    used = 0
    for i in range(n):
        values = _row(H, i, row, row_bits)
        total, guess, magnitude = _sums(values)
        valid[i] = np.isfinite(total) or _finite(values)  # sums of float64 may overflow where values do not
        indptr[i + 1] = used
        if not valid[i]:
            moments[:, i], peaks[i] = np.nan, np.nan
            continue
        mean = guess + total / r
        coming = H[min(i + AHEAD, n - 1)]
        squares = _squares(values, mean, coming)
        std = np.sqrt(squares / r)
        moments[0, i], moments[1, i] = mean, std
        moments[2, i], moments[3, i] = magnitude, np.sqrt(squares + r * mean * mean)
        if used + room > active.shape[0]:
            active = np.append(active, np.empty(active.shape[0], np.int32))
            deviation = np.append(deviation, np.empty(deviation.shape[0], np.float64))
        threshold = epsilon * std * (1.0 + TIE_MARGIN)
        found, peak = _scan_row(values, coming, mean, threshold, two_sided, active[used:], deviation[used:])
        if peak >= 0:
            peaks[i] = values[peak]
        else:
            _put_maximum(values, peaks, i)
        for k in range(used, used + found):
            counts[active[k]] += 1
        used += found
        indptr[i + 1] = used
    return moments, valid, indptr, active[:used].copy(), deviation[:used].copy(), counts


@_exact
def _score_row(
    row: Any, chosen: Any, epsilon: float, two_sided: bool, active: Any, deviation: Any
) -> float:  # pragma: no cover - compiled
    """Return Q of one row, NaN where it is not finite; `chosen` marks D."""
    total, guess, _ = _sums(row)
    if not (np.isfinite(total) or _finite(row)):
        return np.nan
    mean = guess + total / row.shape[0]
    std = np.sqrt(_squares(row, mean, row) / row.shape[0])
    found, _ = _scan_row(row, row, mean, epsilon * std * (1.0 + TIE_MARGIN), two_sided, active, deviation)
    size, score = 0, 0.0
    for k in range(found):
        if chosen[active[k]]:
            size += 1
            score += deviation[k]
    return score / max(size, 1)


def row_scorer(chosen: np.ndarray, epsilon: float, *, two_sided: bool) -> Callable[[np.ndarray], float]:
    """Return a function that scores one row of float32 or float64, as the scan of a table would, in microseconds.

    Parameters
    ----------
    chosen : ndarray of bool, shape (r,)
        D.
    epsilon : float
        As in :func:`qscore.scan`.
    two_sided : bool
        Likewise.
    """
    active, deviation = np.empty(len(chosen) + 2, np.int32), np.empty(len(chosen) + 2, np.float64)
    return lambda row: float(_score_row(row, chosen, epsilon, two_sided, active, deviation))


def usable_cores() -> int:
    """Return the number of cores this process may run on, which containers and schedulers often limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def scan_cpu(H: np.ndarray, epsilon: float, *, two_sided: bool, threads: int | None) -> Scan:
    """Scan a float16, float32 or float64 matrix in memory or memory-mapped, in row blocks over threads."""
    n, r = H.shape
    workers = threads or usable_cores()
    rows = max(1, min(BLOCK_BYTES // (r * H.dtype.itemsize), -(-n // (SHARES * workers))))
    kind = np.uint16 if H.dtype == np.float16 else H.dtype

    def block(start: int) -> Scan:
        part = np.require(H[start : start + rows], None, ["C", "A"])  # one layout, so that sums never depend on it
        bits = np.empty(r, np.uint32)
        values = part.view(kind)
        peaks = np.empty(len(part), np.float64 if H.dtype == np.float64 else np.float32)
        moments, valid, indptr, active, deviation, counts = _scan_rows(
            values, peaks, bits.view(np.float32), bits, epsilon, two_sided
        )
        mean, std, l1_norm, l2_norm = moments
        peak = peaks.astype(np.float64)
        return Scan(mean, std, peak, l1_norm, l2_norm, indptr, active, deviation, counts, valid, epsilon, two_sided)

    starts = range(0, n, rows)
    if workers == 1 or len(starts) == 1:
        return Scan.concatenate([block(start) for start in starts])
    with ThreadPoolExecutor(workers) as pool:
        return Scan.concatenate(list(pool.map(block, starts)))
