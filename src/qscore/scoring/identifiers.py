"""Ids of any number of rows in bounded memory: none may come twice, and they choose samples."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from qscore._validate import QScoreError
from qscore.kernels import compiled

__all__ = ["check_identifiers", "sampled_rows"]

CHUNK_ROWS = 2**24  # ids compared at a time, by 64 bits each
NAMED = 1_000  # suspicious hashes whose ids are looked at together


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
            _look_at(rows, twice, name)


def sampled_rows(columns: dict[str, pa.Array], share: float) -> np.ndarray:
    """Choose about this share of rows by their ids, so that neither order nor chunks matter.

    Parameters
    ----------
    columns : dict of pyarrow.Array
        ``id``, and ``view`` where there is one.
    share : float
        0 to 1; all rows from 1 on.

    Returns
    -------
    ndarray of bool, shape (n,)
        The rows chosen.
    """
    values = _hashes(pa.record_batch({name: columns[name] for name in ("id", "view") if name in columns}))
    if share >= 1:
        return np.ones(len(values), dtype=bool)
    # SplitMix64's finaliser: hashes of short texts differ in few bits.
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    chosen: np.ndarray = (values ^ (values >> np.uint64(31))) < np.uint64(share * 2**64)
    return chosen


def _look_at(rows: Callable[[], Iterable[pa.RecordBatch]], twice: np.ndarray, name: str) -> None:
    """Refuse the table if rows of equal hash have equal ids, a thousand hashes at a time."""
    for start in range(0, len(twice), NAMED):
        seen: Counter[str] = Counter()
        for batch in rows():
            seen.update(_texts(batch, np.flatnonzero(np.isin(_hashes(batch), twice[start : start + NAMED]))))
        repeated = [text for text, count in seen.items() if count > 1]
        if repeated:
            many = f"{len(repeated):,}{' or more' if start + NAMED < len(twice) else ''}"
            raise QScoreError(
                f"{name}: {many} ids come more than once, the first is {repeated[0]!r}; "
                "rows of tables are matched by id"
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
        views = batch.column("view")
        if views.null_count or not pa.types.is_integer(views.type):
            raise QScoreError(
                f"views: expected integers without gaps, got {views.type}, {views.null_count} of them null"
            )
        values ^= views.to_numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return values


@compiled()
def _hash_texts(starts: Any, letters: Any, values: Any) -> None:  # pragma: no cover - compiled
    """Write the 64-bit FNV-1a hash of each text."""
    for i in range(values.shape[0]):
        value = np.uint64(0xCBF29CE484222325)
        for k in range(starts[i], starts[i + 1]):
            value = (value ^ np.uint64(letters[k])) * np.uint64(0x100000001B3)
        values[i] = value
