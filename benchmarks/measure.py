"""What the benchmarks share: data, interleaved timing, and a Markdown table."""

import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

__all__ = ["best_seconds", "machine", "markdown", "synthetic", "threaded_sum"]


def synthetic(n, r, *, seed=0):
    """Return a (n, r) float32 matrix like pooled ReLU features: a few strong values among many faint ones."""
    rng = np.random.default_rng(seed)
    block = rng.standard_gamma(0.2, size=(min(n, 5000), r)).astype(np.float32)
    H = np.empty((n, r), np.float32)
    for start in range(0, n, len(block)):
        part = H[start : start + len(block)]
        np.multiply(block[: len(part)], np.float32(1 + start / n), out=part)
    return H


def threaded_sum(H, threads):
    """Sum a matrix with NumPy, in as many threads as the scan uses: the fastest thing that reads every value."""
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(np.sum, np.array_split(H, threads)))


def best_seconds(actions: dict[str, Callable[[], object]], *, repeats=7) -> dict[str, float]:
    """Run actions in turn, several rounds, and return the best time of each: what disturbs one round disturbs all."""
    seconds = dict.fromkeys(actions, float("inf"))
    for action in actions.values():  # compile, and touch the memory
        action()
    for _ in range(repeats):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def markdown(header, rows):
    """Print a Markdown table."""
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def machine():
    """Describe the machine in a line."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB memory, {platform.system()}, Python "
        f"{platform.python_version()}, NumPy {np.__version__}"
    )
