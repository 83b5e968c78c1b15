"""The scan of a matrix in memory, beside a sum of the same matrix and beside other ways to the same scores."""

import duckdb
import numba
import numpy as np
import pyarrow as pa
import torch
from measure import best_seconds, machine, markdown, synthetic, threaded_sum

import qscore
from qscore import core
from qscore.kernels import cpu

ROWS, FEATURES, THREADS, SMALL = 100_000, 2048, 2, 4_000

SQL = """
CREATE TABLE active AS
WITH rows AS (SELECT id, h::FLOAT[] AS h FROM t),
     moments AS (SELECT id, h, list_avg(h) AS mean, list_stddev_pop(h) AS std FROM rows),
     entries AS (SELECT id, mean, std, unnest(h) AS value, generate_subscripts(h, 1) - 1 AS j FROM moments)
SELECT id, j, value - mean AS deviation FROM entries WHERE value - mean > 4 * std
"""


def numpy_formula(H):
    """Return Q as a reader of the paper would write it in NumPy."""
    mean, std = H.mean(axis=1, keepdims=True), H.std(axis=1, keepdims=True)
    active = mean + 4.0 * std < H
    D = qscore.discriminative_features(active.sum(axis=0))
    inside = active[:, D]
    return ((H - mean)[:, D] * inside).sum(axis=1) / np.maximum(inside.sum(axis=1), 1)


def torch_formula(H):
    """Return the same from PyTorch."""
    with torch.inference_mode():
        H = torch.from_numpy(H)
        mean, std = H.mean(dim=1, keepdim=True), H.std(dim=1, keepdim=True, correction=0)
        active = mean + 4.0 * std < H
        D = torch.from_numpy(qscore.discriminative_features(active.sum(dim=0).numpy()))
        inside = active[:, D]
        return (((H - mean)[:, D] * inside).sum(dim=1) / inside.sum(dim=1).clamp(min=1)).numpy()


def duckdb_formula(H):
    """Return the same from SQL."""
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(H.reshape(-1)), H.shape[1])
    with duckdb.connect(config={"threads": THREADS}) as database:
        database.register("t", pa.table({"id": np.arange(len(H)), "h": vectors}))
        database.execute(SQL)
        counts = np.zeros(H.shape[1], dtype=np.int64)
        found = database.execute("SELECT j, count(*) AS n FROM active GROUP BY j").fetchnumpy()
        counts[found["j"]] = found["n"]
        database.register("d", pa.table({"j": qscore.discriminative_features(counts)}))
        found = database.execute(
            "SELECT id, avg(deviation) AS q FROM active SEMI JOIN d USING (j) GROUP BY id"
        ).fetchnumpy()
    q = np.zeros(len(H))
    q[found["id"]] = found["q"]
    return q


def qscore_scan(H, threads=THREADS):
    """Return the same from one scan."""
    found = qscore.scan(H, threads=threads)
    return found.q_score(qscore.discriminative_features(found.counts))


def compare(H):
    """Time every way in one run; the slow ones on fewer rows."""
    torch.set_num_threads(THREADS)
    small = H[:SMALL]
    ways = {
        f"NumPy's sum, {THREADS} threads": (H, lambda H: threaded_sum(H, THREADS)),
        f"**qscore.scan, {THREADS} threads**": (H, lambda H: qscore.scan(H, threads=THREADS)),
        "qscore.scan, 1 thread": (H, lambda H: qscore.scan(H, threads=1)),
        f"qscore.scan, D and Q, {THREADS} threads": (H, qscore_scan),
        "the formula in NumPy": (H[: 5 * SMALL], numpy_formula),
        f"the formula in PyTorch, {THREADS} threads": (H[: 5 * SMALL], torch_formula),
        f"the formula in DuckDB, {THREADS} threads": (small, duckdb_formula),
    }
    # Apart from each other: threads that PyTorch leaves spinning would be timed with whoever comes next.
    actions = {name: lambda X=X, way=way: way(X) for name, (X, way) in ways.items()}
    fast = {name: action for name, action in actions.items() if "formula" not in name}
    slow = {name: action for name, action in actions.items() if "formula" in name}
    seconds = best_seconds(fast, repeats=15) | best_seconds(slow, repeats=3)
    speed = {name: X.nbytes / seconds[name] / 1e9 for name, (X, _) in ways.items()}
    first, ours, _, whole, plain, *_ = speed.values()
    exact = core.q_score(small, core.discriminative_features(core.activation_rates(small)))
    rows = []
    for name, (X, way) in ways.items():
        worst = (
            "" if "sum" in name or "scan, 1" in name or "scan, 2" in name else f"{np.abs(way(small) - exact).max():.0e}"
        )
        rows.append((name, f"{len(X):,}", f"{speed[name]:.2f} GB/s", f"{speed[name] / first:.3f}", worst))
    markdown(("", "rows", "rate", "of the sum", f"worst error of Q on {SMALL:,} rows"), rows)
    print(f"The scan reads at {ours / first:.2f} of the sum's rate.", end=" ")
    print(f"Scores come at {whole / plain:.0f} times the rate of the NumPy formula.\n")


@numba.njit
def sums(rows, times):
    total = 0.0
    for _ in range(times):
        for i in range(len(rows)):
            total += cpu._sums(rows[i])[0]
    return total


@numba.njit
def squares(rows, mean, times):
    total = 0.0
    for _ in range(times):
        for i in range(len(rows)):
            total += cpu._squares(rows[i], mean, rows[i])
    return total


@numba.njit
def active_features(rows, mean, threshold, active, deviation, times):
    total = 0
    for _ in range(times):
        for i in range(len(rows)):
            total += cpu._scan_row(rows[i], rows[i], mean, threshold, False, active, deviation)[0]
    return total


def profile(H):
    """Say what binds the scan: each stage on rows in the second cache, then all of it there and from memory."""
    rows, times = H[:64].copy(), 400
    active, deviation = np.empty(FEATURES + 2, np.int32), np.empty(FEATURES + 2)
    mean, threshold = float(rows.mean()), 4 * float(rows.std(axis=1).mean())
    peaks, bits = np.empty(len(rows), np.float32), np.empty(FEATURES, np.uint32)

    def scan_cached():
        for _ in range(times):
            cpu._scan_rows(rows, peaks, bits.view(np.float32), bits, 4.0, False)

    cached = {
        "sum and sum of magnitudes": lambda: sums(rows, times),
        "squares about the mean": lambda: squares(rows, mean, times),
        "comparison and active features": lambda: active_features(rows, mean, threshold, active, deviation, times),
        "all of the scan, rows in cache": scan_cached,
    }
    remote = {
        "all of the scan, rows from memory": lambda: cpu.scan_cpu(H, 4.0, two_sided=False, threads=1),
        "NumPy's sum, rows from memory": H.sum,
    }
    seconds = best_seconds(cached | remote)
    each = {name: t / (times * rows.size if name in cached else H.size) * 1e9 for name, t in seconds.items()}
    markdown(
        ("stage, 1 thread", "ns per value", "rate"),
        [(name, f"{t:.3f}", f"{4 / t:.1f} GB/s") for name, t in each.items()],
    )


def main():
    print(f"{ROWS:,} x {FEATURES:,} float32 in memory; best of interleaved rounds; {machine()}.\n")
    H = synthetic(ROWS, FEATURES)
    compare(H)
    profile(H)


if __name__ == "__main__":
    main()
