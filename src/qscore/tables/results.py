"""Score tables and feature tables."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qscore._files import atomic_path
from qscore._validate import QScoreError, one_line
from qscore.tables.records import read_record, with_record

__all__ = ["iter_scores", "read_features", "read_scores", "score_schema", "write_features", "write_rows"]

BATCH_ROWS = 2**14
GROUP_ROWS = 2**17
GROUP_BYTES = 64 * 2**20


def score_schema(columns: dict[str, pa.DataType], record: dict[str, Any], *, plain: bool = False) -> pa.Schema:
    """Return the schema of a score table whose ``id``, ``path`` and ``label`` have the given types.

    ``plain`` adds the one-sided score of a signed table.
    """
    fields: list[tuple[str, pa.DataType]]
    fields = [(name, columns[name]) for name in ("id", "path", "label", "view") if name in columns]
    fields += [("q_score", pa.float32())]
    fields += [("q_score_plain", pa.float32())] if plain else []
    fields += [("n_active", pa.int32()), ("n_discriminative", pa.int32())]
    fields += [(name, pa.float32()) for name in ("mean", "std", "max", "l1_norm", "l2_norm")]
    fields += [("active", pa.list_(pa.int32())), ("deviation", pa.list_(pa.float32())), ("valid", pa.bool_())]
    return with_record(pa.schema(fields), {"kind": "scores", **record})


def write_rows(path: str | Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write a table as one Parquet file, whole or not at all, in row groups of a size that queries like."""
    # Names and labels repeat; numbers do not, and looking for repetitions in them takes longest.
    repeat = [field.name for field in schema if pa.types.is_string(field.type) and field.name != "id"]
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, use_dictionary=repeat) as writer:
        held: list[pa.RecordBatch] = []
        rows = size = 0
        for batch in batches:
            held.append(batch)
            rows, size = rows + len(batch), size + batch.nbytes
            if rows >= GROUP_ROWS or size >= GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(held, schema))
                held, rows, size = [], 0, 0
        if held:
            writer.write_table(pa.Table.from_batches(held, schema))


def read_scores(path: str | Path, columns: list[str] | None = None) -> tuple[pa.Table, dict[str, Any]]:
    """Read a score table, or some of its columns, and its record.

    Raises
    ------
    QScoreError
        If the file is missing, damaged, of another version, or not a score table.
    """
    return _read_kind(path, "scores", "qscore score", columns)


def iter_scores(path: str | Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Read a score table, or some of its columns, in batches."""
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(BATCH_ROWS, columns=columns)


def write_features(
    path: str | Path,
    counts: np.ndarray,
    discriminative: np.ndarray,
    record: dict[str, Any],
    scaling: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Write a feature table.

    Parameters
    ----------
    path : str or Path
        The file.
    counts : ndarray of int, shape (r,)
        Rows in which each feature is highly active.
    discriminative : ndarray of int, shape (k,)
        D.
    record : dict
        Must hold ``n``, the number of valid rows; beside it epsilon, lower, upper, signed.
    scaling : tuple of two ndarrays of shape (r,), optional
        Centre and scale of each feature of a signed table; columns ``center`` and ``scale``.
    """
    rank = np.empty(len(counts), dtype=np.int32)
    rank[np.argsort(counts, stable=True)] = np.arange(len(counts), dtype=np.int32)
    table = pa.table(
        {
            "feature": np.arange(len(counts), dtype=np.int32),
            "count": counts.astype(np.int64),
            "activation_rate": counts / max(record["n"], 1),
            "rank": rank,
            "discriminative": np.isin(np.arange(len(counts)), discriminative),
        }
    )
    if scaling is not None:
        table = table.append_column("center", pa.array(scaling[0])).append_column("scale", pa.array(scaling[1]))
    schema = with_record(table.schema, {"kind": "features", **record})
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(schema.metadata), temporary)


def read_features(path: str | Path) -> tuple[pa.Table, dict[str, Any]]:
    """Read a feature table and its record.

    Raises
    ------
    QScoreError
        If the file is missing, damaged, of another version, or not a feature table.
    """
    return _read_kind(path, "features", "qscore score", None)


def _read_kind(path: str | Path, kind: str, maker: str, columns: list[str] | None) -> tuple[pa.Table, dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            record = read_record(file.schema_arrow)
            if record.get("kind") != kind:
                raise QScoreError(f"expected a table of {kind}, as {maker} writes it")
            return file.read(columns=columns), record
    except QScoreError as error:
        raise QScoreError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise QScoreError(f"{path}: no such file") from error
    except (OSError, pa.ArrowException) as error:
        raise QScoreError(f"cannot read {path}: {one_line(error)}") from error
