"""Embedding tables: files, directories of shards and metadata beside them, read in order and in bounded memory."""

import re
import threading
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from qscore._files import atomic_path
from qscore._stores import RETRIES, Location, StoreError, locate, pause
from qscore._validate import QScoreError, one_line
from qscore.kernels.cpu import usable_cores
from qscore.tables.ahead import read_ahead
from qscore.tables.formats import COLUMNS, OPENERS, Batches, Shard
from qscore.tables.records import with_record
from qscore.tables.vectors import is_vector_column

__all__ = ["EmbeddingBatch", "EmbeddingTable", "open_embeddings", "write_shard"]

PART_BYTES = 256 * 2**20
READERS = 4  # segments read at a time, where there are cores for them
READ_AHEAD = 4  # batches of each that wait to be used: a segment


@dataclass(frozen=True)
class EmbeddingBatch:
    """Consecutive rows of an embedding table."""

    embedding: np.ndarray
    """(b, r) float16, float32 or float64."""
    columns: dict[str, pa.Array]
    """``id`` (always, as strings), and ``label``, ``path``, ``view`` where the table has them."""
    part: int = 0
    """Which part of the table they belong to."""

    def __len__(self) -> int:
        return len(self.embedding)


@dataclass(frozen=True)
class EmbeddingTable:
    """An embedding table, read in batches; nothing is held in memory."""

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
        return self.shards[-1].record  # which alone knows of all images that were left out

    @property
    def fingerprint(self) -> list[list[Any]]:
        """What changes when a file of the table does."""
        return [[shard.name, shard.n_rows, *shard.stamp] for shard in self.shards]

    @property
    def parts(self) -> list[list[tuple[int, int]]]:
        """Shards and segments of them, gathered to about 256 MiB: what was done with one part is done."""
        row_bytes = self.n_features * self.shards[0].dtype.itemsize
        parts: list[list[tuple[int, int]]] = [[]]
        size = 0
        for i, shard in enumerate(self.shards):
            stops = (*shard.segments[1:], shard.n_rows)
            for k, (start, stop) in enumerate(zip(shard.segments, stops, strict=True)):
                if size >= PART_BYTES:
                    parts.append([])
                    size = 0
                parts[-1].append((i, k))
                size += (stop - start) * row_bytes
        return parts

    def batches(self, first: int = 0) -> Iterator[EmbeddingBatch]:
        """Read the rows in order, ahead of the caller in threads. Ids default to the row number.

        Parameters
        ----------
        first : int, default=0
            The part to begin with.

        Raises
        ------
        QScoreError
            If a shard cannot be read, or has null or ragged vectors; it is named. Reading is tried three times.
        """
        row_of = np.cumsum([0, *(shard.n_rows for shard in self.shards)])
        pieces = (
            partial(_segment, self.shards[i], k, int(row_of[i]), number)
            for number, part in enumerate(self.parts[first:], first)
            for i, k in part
        )
        return read_ahead(pieces, threads=min(READERS, usable_cores()), depth=READ_AHEAD)

    def read(self) -> EmbeddingBatch:
        """Read the whole table into memory."""
        batches = list(self.batches())
        columns = {name: pa.concat_arrays([batch.columns[name] for batch in batches]) for name in batches[0].columns}
        return EmbeddingBatch(np.concatenate([batch.embedding for batch in batches]), columns)


def _segment(shard: Shard, segment: int, row: int, part: int) -> Iterator[EmbeddingBatch]:
    """Read a segment of a shard whose first row is the table's row `row`."""
    row += shard.segments[segment]
    try:
        for embedding, columns in _persistent(shard, segment):
            columns = {name: _plain(name, column) for name, column in columns.items()}
            if "id" not in columns:
                columns["id"] = pa.array(np.arange(row, row + len(embedding))).cast(pa.string())
            row += len(embedding)
            yield EmbeddingBatch(embedding, columns, part)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"cannot read {shard.name}: {one_line(error)}") from error
    except QScoreError as error:
        raise QScoreError(f"{shard.name}: {error}") from error
    except pa.ArrowException as error:
        raise QScoreError(f"cannot read {shard.name}: {one_line(error)}") from error


def _persistent(shard: Shard, segment: int) -> Batches:
    """Read a segment; a store that fails on the way is asked again for what is still missing."""
    done = failures = 0
    while True:
        try:
            for number, batch in enumerate(shard.batches(segment)):
                if number >= done:
                    yield batch
                    done, failures = number + 1, 0
            return
        except OSError:
            failures += 1
            if failures == RETRIES:
                raise
            pause(failures - 1)


def open_embeddings(path: str | Path, *, column: str | None = None) -> EmbeddingTable:
    """Open an embedding table.

    Parameters
    ----------
    path : str or Path
        A file (Parquet, Arrow, ``.npy``, ``.npz``, ``.pt``, ``.safetensors``), a directory of such shards, or matrices
        with Parquet metadata beside them (the clip-retrieval layout); local, or a URI such as ``s3://bucket/table``.
        Shards are read in the order of their names, numbers counting as numbers.
    column : str, optional
        The column, or the array of an archive, that holds the vectors, where several could be meant.

    Returns
    -------
    EmbeddingTable
        The table, whose rows have not been read yet.

    Raises
    ------
    QScoreError
        If nothing readable is there, or shards differ in width, type or columns.
    """
    location = locate(path)
    if location.kind == fs.FileType.NotFound:
        raise QScoreError(f"{path}: no such file or folder")
    one = location.kind == fs.FileType.File
    shards = [_open_shard(location, column)] if one else _open_folder(location, column)
    table = EmbeddingTable(str(path), tuple(shards))
    _check_shards_agree(table)
    promised = table.record.get("n_rows")
    if not one and promised is not None and promised != len(table):
        raise QScoreError(f"{path}: {len(table)} of {promised} rows are there; run the same qscore embed again")
    return table


def _open_folder(folder: Location, column: str | None) -> list[Shard]:
    files = _sorted(child for child in folder.children() if child.suffix in OPENERS)
    parquet = [file for file in files if file.suffix == ".parquet"]
    matrices = [file for file in files if file.suffix != ".parquet"]
    if not files:
        inner = {child.path.rpartition("/")[2]: child for child in folder.children()}
        if "img_emb" not in inner:
            raise QScoreError(f"{folder.name}: no embedding files ({', '.join(OPENERS)}) in this folder")
        matrices = _sorted(child for child in inner["img_emb"].children() if child.suffix == ".npy")
        if not matrices:
            raise QScoreError(f"{inner['img_emb'].name}: no .npy files in this folder")
        parquet = []
        if "metadata" in inner:
            parquet = _sorted(child for child in inner["metadata"].children() if child.suffix == ".parquet")
    if matrices and parquet:
        return _with_metadata(matrices, parquet, column)
    return [_open_shard(file, column) for file in matrices or parquet]


def _sorted(files: Iterable[Location]) -> list[Location]:
    """Order files by name, numbers counting as numbers: ``part-10`` after ``part-9``."""

    def key(file: Location) -> list[tuple[int, str]]:
        runs = re.split(r"(\d+)", file.path.rpartition("/")[2])
        return [(int(run), "") if run.isdigit() else (-1, run) for run in runs]

    return sorted(files, key=key)


def _open_shard(file: Location, column: str | None) -> Shard:
    opener = OPENERS.get(file.suffix)
    if opener is None:
        raise QScoreError(
            f"{file.name}: expected an embedding table ({', '.join(OPENERS)}), got {file.suffix or 'none'}"
        )
    try:
        return opener(file, column)
    except QScoreError as error:
        raise QScoreError(f"{file.name}: {error}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise QScoreError(f"cannot read {file.name}: {one_line(error)}") from error


def _with_metadata(matrices: list[Location], parquet: list[Location], column: str | None) -> list[Shard]:
    """Put the Parquet metadata that lies beside matrices into their shards; the k-th belongs to the k-th."""
    if len(matrices) != len(parquet):
        raise QScoreError(
            f"{matrices[0].name}: {len(matrices)} matrices and {len(parquet)} Parquet files beside them; "
            "expected one of metadata for each, or none"
        )
    return [_joined(_open_shard(matrix, column), metadata) for matrix, metadata in zip(matrices, parquet, strict=True)]


def _joined(shard: Shard, metadata: Location) -> Shard:
    with pq.ParquetFile(metadata.open()) as file:
        n_rows, schema, names = file.metadata.num_rows, file.schema_arrow, file.schema_arrow.names
    if any(is_vector_column(field.type) for field in schema if field.name == "embedding"):
        raise QScoreError(f"{metadata.name} holds embeddings, and so does {shard.name}; keep one kind in the folder")
    numbers = _numbers(metadata.name), _numbers(shard.name)
    if all(numbers) and numbers[0] != numbers[1]:
        raise QScoreError(f"{metadata.name} would be taken for the metadata of {shard.name}; number them alike")
    if n_rows != shard.n_rows:
        raise QScoreError(f"{metadata.name} has {n_rows} rows, and {shard.name} {shard.n_rows}")
    sources = {key: key for key in COLUMNS if key in names}
    if "path" not in sources and "image_path" in names:  # clip-retrieval's name
        sources["path"] = "image_path"

    held: list[pa.Table] = []  # while the shard is being read
    lock = threading.Lock()

    def batches(segment: int) -> Batches:
        with lock:
            rows = held.pop() if held else pq.read_table(metadata.open(), columns=list(sources.values()))
            if segment < len(shard.segments) - 1:
                held.append(rows)
        start = shard.segments[segment]
        for embedding, _ in shard.batches(segment):
            part = rows.slice(start, len(embedding)).combine_chunks()
            start += len(embedding)
            yield embedding, {key: _chunk(part.column(name)) for key, name in sources.items()}

    return replace(shard, columns=tuple(sources), batches=batches, stamp=(*shard.stamp, *metadata.stamp))


def _numbers(name: str) -> list[int]:
    """Return the last number in a file's name, in a list, or nothing."""
    return [int(run) for run in re.findall(r"\d+", Path(name).stem)[-1:]]


def _chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _plain(name: str, column: pa.Array) -> pa.Array:
    """Return a column as every shard of a table must have it: ids, paths and names as strings, numbers as int64."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_boolean(column.type) or (pa.types.is_integer(column.type) and name != "id"):
        return column.cast(pa.int64())
    if name == "label" and pa.types.is_floating(column.type):  # what pandas makes of integers with gaps
        values = pc.if_else(pc.is_nan(column), None, column)
        if pc.all(pc.equal(pc.round(values), values)).as_py() is not False:
            return values.cast(pa.int64())
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    if name == "label" and not any(kind(column.type) for kind in kinds):
        raise QScoreError(f"labels: expected integers or strings, got {column.type}")
    column = column.cast(pa.string())
    if name == "id" and column.null_count:
        raise QScoreError(f"{column.null_count} ids are null")
    return column


def _check_shards_agree(table: EmbeddingTable) -> None:
    first = table.shards[0]
    for shard in table.shards[1:]:
        one, other = Path(first.name).name, Path(shard.name).name
        for what in ("n_features", "dtype", "columns"):
            a, b = getattr(first, what), getattr(shard, what)
            if a != b:
                raise QScoreError(f"{table.name}: shards differ in {what}: {one} has {a}, {other} {b}")
        if first.record.get("fingerprint") != shard.record.get("fingerprint"):
            raise QScoreError(f"{table.name}: {one} and {other} come from different runs of qscore embed")


def write_shard(
    path: Path,
    embedding: np.ndarray,
    columns: dict[str, pa.Array],
    record: dict[str, Any],
    notes: dict[bytes, bytes] | None = None,
) -> None:
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
    notes : dict of bytes, optional
        Further metadata, of this shard alone.
    """
    values = pa.array(np.ascontiguousarray(embedding).reshape(-1))
    arrays = {**columns, "embedding": pa.FixedSizeListArray.from_arrays(values, embedding.shape[1])}
    order = [name for name in ("id", "embedding", "label", "path", "view") if name in arrays]
    table = pa.table({name: arrays[name] for name in order})
    with atomic_path(path) as temporary:
        # Embeddings do not compress, and their values do not repeat: plain pages read twice as fast.
        pq.write_table(
            table.replace_schema_metadata(with_record(table.schema, record).metadata | (notes or {})),
            temporary,
            compression="none",
            use_dictionary=False,
        )
