"""`qscore score` on a 2 GB Parquet table, beside pyarrow reading the same column; and its memory."""

import os
import subprocess
import sys
import tempfile
import time
from multiprocessing import Process
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measure import machine, markdown, synthetic

ROWS, FEATURES, GROUP = 250_000, 2048, 16_384

READ = """
import sys, pyarrow.parquet as pq
with pq.ParquetFile(sys.argv[1], memory_map=True) as file:
    for batch in file.iter_batches(2048, columns=["embedding"]):
        pass
"""
READ_WHOLE = "import sys, pyarrow.parquet as pq; pq.read_table(sys.argv[1], columns=['embedding'], memory_map=True)"


def run(*command):
    """Run a command; return its seconds and its peak memory in MB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def write(path, rows):
    H = synthetic(rows, FEATURES)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(H.reshape(-1)), FEATURES)
    table = pa.table({"id": pa.array(np.arange(rows)).cast(pa.string()), "embedding": vectors})
    pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=GROUP)


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, rows in {"e": ROWS, "tenth": ROWS // 10}.items():
            # In a process of its own: children inherit the peak of the memory their parent holds.
            writer = Process(target=write, args=(folder / f"{file}.parquet", rows))
            writer.start()
            writer.join()
        size = ROWS * FEATURES * 4
        score = [sys.executable, "-m", "qscore", "score"]
        commands = {
            "pyarrow alone, in batches": [sys.executable, "-c", READ, folder / "e.parquet"],
            "pyarrow alone, at once": [sys.executable, "-c", READ_WHOLE, folder / "e.parquet"],
            "**qscore score**": [*score, folder / "e.parquet", "--out", folder / "s.parquet", "--overwrite"],
            "qscore score --epsilon paper": [
                *(*score, folder / "e.parquet", "--out", folder / "s.parquet", "--overwrite", "--epsilon", "paper")
            ],
        }
        tenth = [*score, folder / "tenth.parquet", "--out", folder / "t.parquet", "--overwrite"]
        run(*tenth)  # compile
        found = {}
        for key, command in commands.items():
            runs = [run(*command) for _ in range(4)]
            found[key] = min(seconds for seconds, _ in runs), max(memory for _, memory in runs)
        _, small_memory = run(*tenth)
    print(f"{ROWS:,} x {FEATURES:,} float32 Parquet ({size / 1e9:.1f} GB) in the page cache; {machine()}.\n")
    fastest = min(seconds for key, (seconds, _) in found.items() if "pyarrow" in key)
    markdown(
        ("", "seconds, start included", "rate", "of pyarrow's best", "peak memory"),
        [
            (key, f"{t:.2f}", f"{size / t / 1e9:.2f} GB/s", f"{fastest / t:.2f}", f"{memory:,.0f} MB")
            for key, (t, memory) in found.items()
        ],
    )
    _, memory = found["**qscore score**"]
    print(f"Peak memory with a tenth of the rows: {small_memory:,.0f} MB, with all of them {memory:,.0f} MB.\n")


if __name__ == "__main__":
    main()
