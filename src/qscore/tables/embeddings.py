"""Embedding tables: Parquet files, directories of shards and bare matrices, read in batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qscore._files import atomic_path
from qscore._validate import QScoreError
from qscore.tables.records import one_line, read_record, with_record

__all__ = ["EmbeddingBatch", "EmbeddingTable", "open_embeddings", "vectors", "write_shard"]

BATCH_BYTES = 32 * 2**20
COLUMNS = ("id", "label", "path", "view")


@dataclass(frozen=True)
class EmbeddingBatch:
    """Consecutive rows of an embedding table."""

    embedding: np.ndarray
    """(b, r) float16, float32 or float64."""
    columns: dict[str, pa.Array]
    """``id`` (always, as strings), and ``label``, ``path``, ``view`` where the table has them."""

    def __len__(self) -> int:
        return len(self.embedding)


@dataclass(frozen=True)
class Shard:
    """One file of an embedding table."""

    path: Path
    n_rows: int
    n_features: int
    dtype: np.dtype[Any]
    columns: tuple[str, ...]
    """Those of ``id``, ``label``, ``path`` and ``view`` that the file holds."""
    record: dict[str, Any]
    """The file's own metadata record."""
    batches: Callable[[], Iterator[tuple[np.ndarray, dict[str, pa.Array]]]]


@dataclass(frozen=True)
class EmbeddingTable:
    """An embedding table on disk, read in batches; nothing is held in memory."""

    name: str
    """What the user called it."""
    shards: tuple[Shard, ...]

    def __len__(self) -> int:
        return sum(shard.n_rows for shard in self.shards)

    @property
    def n_features(self) -> int:
        """Width r of the representation."""
        return self.shards[0].n_features

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns beside the embedding that the table holds."""
        return self.shards[0].columns

    @property
    def record(self) -> dict[str, Any]:
        """What the table says of itself: encoder, checkpoint, preprocessing, non-negativity."""
        return self.shards[0].record

    def batches(self) -> Iterator[EmbeddingBatch]:
        """Read the rows in order. Ids default to the row number.

        Raises
        ------
        QScoreError
            If a shard cannot be read, or has null or ragged vectors; it is named.
        """
        row = 0
        for shard in self.shards:
            try:
                for embedding, columns in shard.batches():
                    if "id" not in columns:
                        columns["id"] = pa.array(np.arange(row, row + len(embedding))).cast(pa.string())
                    row += len(embedding)
                    yield EmbeddingBatch(embedding, columns)
            except (OSError, pa.ArrowException) as error:
                raise QScoreError(f"cannot read {shard.path}: {one_line(error)}") from error
            except QScoreError as error:
                raise QScoreError(f"{shard.path}: {error}") from error

    def read(self) -> EmbeddingBatch:
        """Read the whole table into memory."""
        batches = list(self.batches())
        columns = {name: pa.concat_arrays([batch.columns[name] for batch in batches]) for name in batches[0].columns}
        return EmbeddingBatch(np.concatenate([batch.embedding for batch in batches]), columns)


def open_embeddings(path: str | Path) -> EmbeddingTable:
    """Open an embedding table: a Parquet file, a directory of Parquet shards, or a ``.npy`` matrix.

    Parameters
    ----------
    path : str or Path
        The file or directory. Shards are read in the order of their names.

    Returns
    -------
    EmbeddingTable
        The table, whose rows have not been read yet.

    Raises
    ------
    QScoreError
        If nothing readable is there, or shards differ in width, type or columns.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in OPENERS and not file.name.startswith("."))
        if not files:
            raise QScoreError(f"{path}: no embedding files ({', '.join(OPENERS)}) in this folder")
    elif path.exists():
        files = [path]
    else:
        raise QScoreError(f"{path}: no such file or folder")
    table = EmbeddingTable(str(path), tuple(_open_shard(file) for file in files))
    _check_shards_agree(table)
    return table


def _open_shard(file: Path) -> Shard:
    opener = OPENERS.get(file.suffix)
    if opener is None:
        raise QScoreError(
            f"{file}: expected an embedding table ({', '.join(OPENERS)}), got {file.suffix or 'no suffix'}"
        )
    try:
        return opener(file)
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, QScoreError):
            raise QScoreError(f"{file}: {error}") from error
        raise QScoreError(f"cannot read {file}: {one_line(error)}") from error


def _check_shards_agree(table: EmbeddingTable) -> None:
    first = table.shards[0]
    for shard in table.shards[1:]:
        for what in ("n_features", "dtype", "columns"):
            a, b = getattr(first, what), getattr(shard, what)
            if a != b:
                raise QScoreError(
                    f"{table.name}: shards differ in {what}: {first.path.name} has {a}, {shard.path.name} {b}"
                )
    promised = first.record.get("n_rows")
    if promised is not None and promised != len(table):
        raise QScoreError(f"{table.name}: {len(table)} of {promised} rows are there; run the same qscore embed again")


def _open_npy(file: Path) -> Shard:
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    _check_vectors(array.shape, array.dtype)
    rows = _rows_per_batch(array.shape[1], array.dtype)

    def batches() -> Iterator[tuple[np.ndarray, dict[str, pa.Array]]]:
        for start in range(0, len(array), rows):
            yield np.asarray(array[start : start + rows]), {}

    return Shard(file, array.shape[0], array.shape[1], array.dtype, (), {}, batches)


def _open_parquet(file: Path) -> Shard:
    with pq.ParquetFile(file) as parquet:
        schema, n_rows = parquet.schema_arrow, parquet.metadata.num_rows
        if "embedding" not in schema.names:
            raise QScoreError(f"expected a column 'embedding', got {', '.join(schema.names)}")
        if n_rows == 0:
            raise QScoreError("expected at least one row, got an empty file")
        first = vectors(next(parquet.iter_batches(1, columns=["embedding"])).column(0))
    _check_vectors((n_rows, first.shape[1]), first.dtype)
    columns = tuple(name for name in COLUMNS if name in schema.names)
    rows = _rows_per_batch(first.shape[1], first.dtype)

    def batches() -> Iterator[tuple[np.ndarray, dict[str, pa.Array]]]:
        with pq.ParquetFile(file, memory_map=True) as parquet:
            for batch in parquet.iter_batches(rows, columns=["embedding", *columns]):
                embedding = vectors(batch.column("embedding"))
                if embedding.shape[1] != first.shape[1]:
                    raise QScoreError(f"vectors of {embedding.shape[1]} features among vectors of {first.shape[1]}")
                plain = {name: batch.column(name) for name in columns}
                if "id" in plain:
                    plain["id"] = plain["id"].cast(pa.string())
                yield embedding, plain

    return Shard(file, n_rows, first.shape[1], first.dtype, columns, read_record(schema), batches)


OPENERS: dict[str, Callable[[Path], Shard]] = {".parquet": _open_parquet, ".npy": _open_npy}


def vectors(column: pa.Array) -> np.ndarray:
    """Return a column of vectors as a (b, r) matrix, without a copy where they lie side by side.

    Parameters
    ----------
    column : pyarrow.Array
        ``fixed_size_list`` or ``list`` of float16, float32 or float64.

    Raises
    ------
    QScoreError
        If a vector is null or holds nulls, lengths differ, or values are not floating-point.
    """
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise QScoreError(f"{column.null_count} of {len(column)} vectors are null, the first in row {row} of its batch")
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
        # `.values` is the whole child, whatever slice this array is; `flatten()` would drop nulls.
        values = column.values.slice(column.offset * width, len(column) * width)
    elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lengths = np.diff(column.offsets.to_numpy())
        if len(lengths) and (lengths != lengths[0]).any():
            row = int(np.flatnonzero(lengths != lengths[0])[0])
            raise QScoreError(f"ragged vectors: {lengths[0]} values in one row, {lengths[row]} in another")
        width = int(lengths[0]) if len(lengths) else 0
        values = column.flatten()
    else:
        raise QScoreError(f"expected vectors (a list column) in 'embedding', got {column.type}")
    if not pa.types.is_floating(values.type):
        raise QScoreError(f"expected floating-point vectors, got {values.type}")
    if values.null_count:
        raise QScoreError(f"{values.null_count} values inside vectors are null; write NaN or drop those rows")
    matrix: np.ndarray = values.to_numpy(zero_copy_only=True).reshape(len(column), width)
    return matrix


def _check_vectors(shape: Sequence[int], dtype: Any) -> None:
    if len(shape) != 2:
        raise QScoreError(f"expected a 2-D matrix of shape (n, r), got shape {tuple(shape)}")
    if shape[0] == 0 or shape[1] < 2:
        raise QScoreError(f"expected at least one row and 2 features, got shape {tuple(shape)}")
    if np.dtype(dtype).kind != "f":
        raise QScoreError(f"expected floating-point values, got {np.dtype(dtype)}; convert the embeddings to float32")


def _rows_per_batch(n_features: int, dtype: Any) -> int:
    return max(1, BATCH_BYTES // int(n_features * np.dtype(dtype).itemsize))


def write_shard(path: Path, embedding: np.ndarray, columns: dict[str, pa.Array], record: dict[str, Any]) -> None:
    """Write rows of an embedding table as one Parquet file, whole or not at all.

    Parameters
    ----------
    path : Path
        The file.
    embedding : ndarray of shape (b, r)
        float16 or float32.
    columns : dict of pyarrow.Array
        ``id``, and any of ``label``, ``path``, ``view``.
    record : dict
        The table's metadata record.
    """
    values = pa.array(np.ascontiguousarray(embedding).reshape(-1))
    arrays = {**columns, "embedding": pa.FixedSizeListArray.from_arrays(values, embedding.shape[1])}
    order = [name for name in ("id", "embedding", "label", "path", "view") if name in arrays]
    table = pa.table({name: arrays[name] for name in order})
    with atomic_path(path) as temporary:
        # Embeddings do not compress, and their values do not repeat: plain pages read twice as fast.
        pq.write_table(
            table.replace_schema_metadata(with_record(table.schema, record).metadata),
            temporary,
            compression="none",
            use_dictionary=False,
        )
