"""The whole compression curve, five kinds of selection with 20 random subsets, in seconds."""

import os
import time

import numpy as np
from measure import machine, markdown, synthetic

from qscore.evaluate.compression import KEEPS, compression_curve

TRAIN, TEST, FEATURES, CLASSES = 40_000, 10_000, 2048, 100


def main():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, TRAIN + TEST)
    H = synthetic(TRAIN + TEST, FEATURES)
    H += rng.gamma(0.2, 0.2, size=(CLASSES, FEATURES)).astype(np.float32)[labels]
    rates = rng.random(FEATURES)
    tall, square = H[:4096].astype(np.float64), rng.normal(size=(FEATURES, FEATURES))
    start = time.perf_counter()
    for _ in range(4):
        tall @ square
    product = 4 * 2 * len(tall) * FEATURES**2 / (time.perf_counter() - start) / 1e9
    start, before = time.perf_counter(), os.times()
    curve = compression_curve(H[:TRAIN], labels[:TRAIN], H[TRAIN:], labels[TRAIN:], rates)
    seconds, after = time.perf_counter() - start, os.times()
    print(
        f"{TRAIN + TEST:,} x {FEATURES:,} float32, {TEST:,} of them to test on, {CLASSES} classes, {len(KEEPS)} "
        f"shares; {machine()}.\n"
    )
    rows = [
        ("**the whole curve**", f"{seconds:.1f} s"),
        ("processor time", f"{after.user + after.system - before.user - before.system:.1f} s"),
        ("classifiers scored", f"{len(KEEPS) * 24:,}"),
        ("a product of float64 matrices, just before", f"{product:.0f} GFLOP/s"),
    ]
    markdown(("", ""), rows)
    print(f"With all features {curve.accuracy:.1%} of the test rows are right.\n")


if __name__ == "__main__":
    main()
