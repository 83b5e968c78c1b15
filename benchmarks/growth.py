"""The cost of `qscore score` from ten thousand to ten million rows: exponent and peak memory."""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import machine, markdown, synthetic
from score import run

FEATURES, SHARD = 128, 10_000
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)


def main():
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "shard.npy", synthetic(SHARD, FEATURES).astype(np.float16))
        for rows in SIZES:
            # One file under many names: ten million rows on the disk of ten thousand.
            (folder / str(rows)).mkdir()
            for k in range(rows // SHARD):
                os.link(folder / "shard.npy", folder / str(rows) / f"{k}.npy")
            command = [sys.executable, "-m", "qscore", "score", folder / str(rows), "--out", folder / "s.parquet"]
            found[rows] = min(run(*command, "--overwrite") for _ in range(3 if rows < 10**7 else 1))
    print(f"{FEATURES} features, float16, shards of {SHARD:,} rows; {machine()}.\n")
    markdown(
        ("rows", "seconds, start included", "rows per second", "peak memory"),
        [(f"{n:,}", f"{t:.2f}", f"{n / t:,.0f}", f"{memory:,.0f} MB") for n, (t, memory) in found.items()],
    )
    start = found[SIZES[0]][0]
    slope = np.log((found[10**7][0] - start) / (found[10**6][0] - start)) / np.log(10)
    whole = np.polyfit(np.log([*found]), np.log([t for t, _ in found.values()]), 1)[0]
    print(f"Exponent: {whole:.2f} over all sizes; {slope:.2f} from 10^6 to 10^7 rows, the start-up taken off.\n")


if __name__ == "__main__":
    main()
