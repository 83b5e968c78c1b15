"""Small files to take along, from which everything else can be repeated."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

from qscore._files import atomic_path
from qscore._validate import QScoreError
from qscore.encoders import load_encoder
from qscore.study.reproduce.results import FOLDER
from qscore.tables import open_embeddings

__all__ = ["export_run", "join_encoder"]

SHARD_BYTES = 15 * 2**20
INDEX = "encoder-shards.json"


def export_run(run: str | Path, out: str | Path) -> list[Path]:
    """Copy results, test embeddings in float16, and encoders, each in files below 16 MB.

    Parameters
    ----------
    run : str or Path
        The folder of a reproduction.
    out : str or Path
        A folder for the copies, named by stage and method.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    QScoreError
        If there are no results, or a file cannot be written.
    """
    run, out = Path(run), Path(out)
    results = sorted((run / FOLDER).glob("*.json"))
    if not results:
        raise QScoreError(f"{run}: expected result files in {run / FOLDER}, found none")
    written = []
    for file in results:
        with atomic_path(out / FOLDER / file.name) as temporary:
            shutil.copyfile(file, temporary)
        written.append(out / FOLDER / file.name)
    for table in sorted((run / "work").glob("*/*/*/*/embeddings")):
        if (table.parent / "summary.json").exists():
            written += _narrow(table, out / f"{'-'.join(table.parts[-5:-1])}.float16")
    for weights in sorted((run / "encoders").glob("*/*/*/encoder.safetensors")):
        written += _split(weights, out / "-".join(weights.parts[-4:-1]))
    return written


def join_encoder(folder: str | Path) -> Path:
    """Put the parts of an encoder together again, to an encoder directory that `load_encoder` takes.

    Raises
    ------
    QScoreError
        If a part is missing.
    """
    folder = Path(folder)
    try:
        index = json.loads((folder / INDEX).read_text())
        tensors = {name: array for part in index["parts"] for name, array in load_file(folder / part).items()}
    except (OSError, ValueError, KeyError) as error:
        raise QScoreError(f"{folder}: cannot read the parts of this encoder: {error}") from error
    with atomic_path(folder / "encoder.safetensors") as file:
        save_file(tensors, file, index["metadata"])
    load_encoder(folder)
    return folder / "encoder.safetensors"


def _narrow(table: Path, out: Path) -> Iterator[Path]:
    """Write a directory of shards, which is an embedding table as well."""
    batch = open_embeddings(table).read()
    H = batch.embedding.astype(np.float16)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(H.reshape(-1)), H.shape[1])
    rows = pa.table({**batch.columns, "embedding": vectors})
    step = max(1, SHARD_BYTES // (rows.nbytes // len(rows) + 1))
    for number, first in enumerate(range(0, len(rows), step)):
        with atomic_path(out / f"part-{number:05d}.parquet") as file:
            pq.write_table(rows.slice(first, step), file)
        yield out / f"part-{number:05d}.parquet"


def _split(weights: Path, folder: Path) -> Iterator[Path]:
    from safetensors import safe_open

    with safe_open(weights, "np") as file:
        metadata = file.metadata()
    parts: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, array in load_file(weights).items():
        if size and size + array.nbytes > SHARD_BYTES:
            parts.append({})
            size = 0
        parts[-1][name] = array
        size += array.nbytes
    names = [f"encoder-{number:02d}.safetensors" for number in range(len(parts))]
    for name, tensors in zip(names, parts, strict=True):
        with atomic_path(folder / name) as temporary:
            save_file(tensors, temporary)
        yield folder / name
    with atomic_path(folder / INDEX) as temporary:
        temporary.write_text(json.dumps({"parts": names, "metadata": metadata}) + "\n")
    yield folder / INDEX
