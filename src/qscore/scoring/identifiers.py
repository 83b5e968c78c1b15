"""Refuses a table in which an id comes twice, in bounded memory."""

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from qscore._validate import QScoreError
from qscore.kernels import compiled

__all__ = ["check_identifiers"]

CHUNK_ROWS = 2**24  # ids compared at a time, by 64 bits each
NAMED = 100_000  # suspicious ids whose text is looked at


def check_identifiers(rows: Callable[[], Iterable[pa.RecordBatch]], n: int, name: str) -> None:
    """Refuse rows whose ``id`` (with ``view``, where there is one) is not unique.

    Ids are hashed, and equal hashes are followed up in the ids themselves: no two different ids are ever taken for one.

    Parameters
    ----------
    rows : callable
        Gives batches with a column ``id`` of strings, the same each time it is called.
    n : int
        Rows in all.
    name : str
        The table, for the message.

    Raises
    ------
    QScoreError
        If an id comes twice; it is named.
    """
    parts = -(-n // CHUNK_ROWS)
    for part in range(parts):
        hashes = []
        for batch in rows():
            values = _hashes(batch)
            hashes.append(values[values % np.uint64(parts) == part] if parts > 1 else values)
        ordered = np.sort(np.concatenate(hashes))
        twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if len(twice):
            _look_at(rows(), twice, name)


def _look_at(rows: Iterable[pa.RecordBatch], twice: np.ndarray, name: str) -> None:
    suspects = (_texts(batch, np.flatnonzero(np.isin(_hashes(batch), twice))) for batch in rows)
    seen = Counter(islice((text for texts in suspects for text in texts), NAMED))
    repeated = [text for text, count in seen.items() if count > 1]
    if repeated:
        many = f"{len(repeated):,}{' or more' if seen.total() == NAMED else ''}"
        raise QScoreError(
            f"{name}: {many} ids come more than once, the first is {repeated[0]!r}; rows of tables are matched by id"
        )


def _texts(batch: pa.RecordBatch, chosen: np.ndarray) -> list[str]:
    ids: list[str] = batch.column("id").take(chosen).to_pylist()
    if "view" not in batch.schema.names:
        return ids
    views = batch.column("view").take(chosen).to_pylist()
    return [f"{text} (view {view})" for text, view in zip(ids, views, strict=True)]


def _hashes(batch: pa.RecordBatch) -> np.ndarray:
    ids = batch.column("id")
    _, offsets, data = ids.buffers()
    starts = np.frombuffer(offsets, np.int32)[ids.offset : ids.offset + len(ids) + 1]
    letters = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    values = np.empty(len(ids), np.uint64)
    _hash_texts(starts, letters, values)
    if "view" in batch.schema.names:
        values ^= batch.column("view").to_numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return values


@compiled()
def _hash_texts(starts: Any, letters: Any, values: Any) -> None:  # pragma: no cover - compiled
    """Write the 64-bit FNV-1a hash of each text."""
    for i in range(values.shape[0]):
        value = np.uint64(0xCBF29CE484222325)
        for k in range(starts[i], starts[i + 1]):
            value = (value ^ np.uint64(letters[k])) * np.uint64(0x100000001B3)
        values[i] = value
