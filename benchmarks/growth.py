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
            command += ["--epsilon", "paper"]
            runs = [run(*command, "--overwrite") for _ in range(5 if rows < 10**7 else 2)]
            found[rows] = min(seconds for seconds, _ in runs), max(memory for _, memory in runs)
    print(f"{FEATURES} features, float16, shards of {SHARD:,} rows; {machine()}.\n")
    markdown(
        ("rows", "seconds, start included", "rows per second", "peak memory"),
        [(f"{n:,}", f"{t:.2f}", f"{n / t:,.0f}", f"{memory:,.0f} MB") for n, (t, memory) in found.items()],
    )
    seconds = np.array([t for t, _ in found.values()])
    start = seconds[0]  # a hundredth of a second of it is work
    whole, rest = (np.log10((seconds[3] - off) / (seconds[2] - off)) for off in (0, start))
    print(
        f"Exponent from 10^6 to 10^7 rows: {whole:.2f}; {rest:.2f} with {start:.1f} s of starting up taken off both.\n"
    )


if __name__ == "__main__":
    main()
