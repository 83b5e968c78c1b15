"""One opener for each kind of file that holds embeddings: a new format is one function and one row of `OPENERS`.

A shard is read in segments of about 64 MiB: reading can begin at any of them, and several are read at a time.
"""

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qscore._stores import Location
from qscore._validate import QScoreError, require
from qscore.tables.records import read_record
from qscore.tables.vectors import check_vectors, choose_vector_column, vectors

__all__ = ["OPENERS", "Batches", "Shard"]

BATCH_BYTES = 16 * 2**20
SEGMENT_BYTES = 64 * 2**20
COLUMNS = ("id", "label", "path", "view")

Batches = Iterator[tuple[np.ndarray, dict[str, pa.Array]]]


@dataclass(frozen=True)
class Shard:
    """One file of an embedding table."""

    name: str
    """As the user would write it."""
    n_rows: int
    n_features: int
    dtype: np.dtype[Any]
    columns: tuple[str, ...]
    """Those of ``id``, ``label``, ``path`` and ``view`` that the file holds."""
    record: dict[str, Any]
    """The file's own metadata record."""
    segments: tuple[int, ...]
    """The rows at which segments begin; the first is 0."""
    batches: Callable[[int], Batches]
    """Reads the rows of the k-th segment in order, in batches of bounded size."""
    stamp: tuple[int, ...]
    """Size and time of the last change of the file."""


def open_npy(location: Location, column: str | None) -> Shard:
    """Open a NumPy matrix, mapped into memory where it lies on the local disk."""
    if (path := location.local) is not None:
        return _matrix_shard(location, lambda: np.load(path, mmap_mode="r", allow_pickle=False))
    stream = location.open()
    shape, dtype, fortran = _npy_header(stream)
    _check_streamable(shape, dtype, fortran)
    return _streamed_shard(location, shape, dtype, lambda: _after_header(location.open()))


def open_npz(location: Location, column: str | None) -> Shard:
    """Open an archive of NumPy arrays: the array ``embedding``, or the only matrix in it."""
    with zipfile.ZipFile(location.open()) as archive:
        headers = {}
        for member in archive.namelist():
            with archive.open(member) as array:
                headers[member.removesuffix(".npy")] = _npy_header(array)
    name = _choose_array({key: shape for key, (shape, *_) in headers.items()}, column)
    _check_streamable(*headers[name])

    def rows() -> Any:
        return _after_header(zipfile.ZipFile(location.open()).open(f"{name}.npy"))

    shape, dtype, _ = headers[name]
    return _streamed_shard(location, shape, dtype, rows)


def open_parquet(location: Location, column: str | None) -> Shard:
    """Open a Parquet file; row groups are read ahead in pyarrow's threads."""
    with pq.ParquetFile(location.open()) as parquet:
        schema, metadata, n_rows = parquet.schema_arrow, parquet.metadata, parquet.metadata.num_rows
        name = choose_vector_column(schema, column)
        if n_rows == 0:
            raise QScoreError("expected at least one row, got an empty file")
        first = vectors(next(parquet.iter_batches(1, columns=[name])).column(0))
        sizes = [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]
    columns = tuple(key for key in COLUMNS if key in schema.names)
    groups = _grouped(sizes, first)
    largest = max(metadata.row_group(k).total_byte_size for k in range(metadata.num_row_groups))
    # From a store, row groups come whole, unless they are too large to hold.
    buffering = {"pre_buffer": True} if largest <= SEGMENT_BYTES * 4 else {"pre_buffer": False, "buffer_size": 2**22}
    buffering = {"pre_buffer": False} if location.local is not None else buffering

    def batches(segment: int) -> Batches:
        rows = _rows_per_batch(first)
        with (
            location.reading() as (file, forget),
            pq.ParquetFile(file, metadata=metadata, **buffering) as parquet,
        ):
            for batch in parquet.iter_batches(rows, row_groups=groups[segment], columns=[name, *columns]):
                yield _split(batch, name, columns, first.shape[1])
                forget(batch.nbytes)

    return _table_shard(location, sizes, first, columns, read_record(schema), batches)


def open_arrow(location: Location, column: str | None) -> Shard:
    """Open an Arrow IPC file (or Feather V2), mapped into memory."""
    with pa.ipc.open_file(location.open()) as reader:
        schema = reader.schema
        name = choose_vector_column(schema, column)
        sizes = [reader.get_batch(k).num_rows for k in range(reader.num_record_batches)]
        if not sum(sizes):
            raise QScoreError("expected at least one row, got an empty file")
        first = vectors(reader.get_batch(int(np.flatnonzero(sizes)[0])).column(name)[:1])
    columns = tuple(key for key in COLUMNS if key in schema.names)

    groups = _grouped(sizes, first)

    def batches(segment: int) -> Batches:
        rows = _rows_per_batch(first)
        with location.reading() as (file, forget), pa.ipc.open_file(file) as reader:
            for k in groups[segment]:
                batch = reader.get_batch(k)
                for start in range(0, batch.num_rows, rows):
                    yield _split(batch.slice(start, rows), name, columns, first.shape[1])
                    forget(BATCH_BYTES)

    return _table_shard(location, sizes, first, columns, read_record(schema), batches)


def open_torch(location: Location, column: str | None) -> Shard:
    """Open a tensor, or the tensor ``embedding`` of a dictionary; pickles that hold more than tensors are refused."""
    torch = require("torch", "vision")
    if location.local is None:
        raise QScoreError("PyTorch files are read from the local disk only; copy it, or convert it to .npy")

    def matrix() -> Any:
        try:
            content = torch.load(location.local, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:  # torch raises many kinds for damaged or foreign files
            raise QScoreError(
                "expected a file of tensors, as torch.save writes it; nothing else is unpickled"
            ) from error
        if not isinstance(content, dict):
            content = {"embedding": content}
        tensors = {key: value for key, value in content.items() if torch.is_tensor(value)}
        return tensors[_choose_array({key: tuple(value.shape) for key, value in tensors.items()}, column)]

    return _matrix_shard(location, matrix)


def open_safetensors(location: Location, column: str | None) -> Shard:
    """Open a safetensors file: the tensor ``embedding``, or the only matrix in it."""
    safetensors = require("safetensors", "vision")
    require("torch", "vision")
    if location.local is None:
        raise QScoreError("safetensors files are read from the local disk only; copy it, or convert it to .npy")

    def matrix() -> Any:
        try:
            archive = safetensors.safe_open(location.local, framework="pt")
        except safetensors.SafetensorError as error:
            raise QScoreError("damaged, or no safetensors file") from error
        shapes = {key: archive.get_slice(key).get_shape() for key in list(archive.keys())}
        return archive.get_tensor(_choose_array(shapes, column))

    return _matrix_shard(location, matrix)


OPENERS: dict[str, Callable[[Location, str | None], Shard]] = {
    ".parquet": open_parquet,
    ".npy": open_npy,
    ".npz": open_npz,
    ".arrow": open_arrow,
    ".feather": open_arrow,
    ".pt": open_torch,
    ".pth": open_torch,
    ".safetensors": open_safetensors,
}


def _split(batch: pa.RecordBatch, name: str, columns: tuple[str, ...], width: int) -> tuple[np.ndarray, dict[str, Any]]:
    embedding = vectors(batch.column(name))
    if embedding.shape[1] != width:
        raise QScoreError(f"ragged vectors: {embedding.shape[1]} values in one row, {width} in another")
    return embedding, {key: batch.column(key) for key in columns}


def _grouped(sizes: list[int], sample: np.ndarray) -> list[list[int]]:
    """Gather the row groups of a file into segments."""
    limit = max(1, SEGMENT_BYTES // (sample.shape[1] * sample.dtype.itemsize))
    groups: list[list[int]] = [[]]
    rows = 0
    for k, size in enumerate(sizes):
        if not size:
            continue
        if rows >= limit:
            groups.append([])
            rows = 0
        groups[-1].append(k)
        rows += size
    return groups


def _table_shard(
    location: Location,
    sizes: list[int],
    first: np.ndarray,
    columns: tuple[str, ...],
    record: dict[str, Any],
    batches: Callable[[int], Batches],
) -> Shard:
    """Make a shard of row groups of the given sizes."""
    check_vectors((sum(sizes), first.shape[1]), first.dtype)
    starts = [0, *np.cumsum(sizes).tolist()]
    segments = tuple(starts[group[0]] for group in _grouped(sizes, first))
    n, r = sum(sizes), first.shape[1]
    return Shard(location.name, n, r, first.dtype, columns, record, segments, batches, location.stamp)


def _matrix_shard(location: Location, matrix: Callable[[], Any]) -> Shard:
    """Make a shard of a matrix or tensor that can be opened again, which lets go of what was read of it."""

    def part(start: int, stop: int | None) -> np.ndarray:
        rows = matrix()[start:stop]
        if hasattr(rows, "detach"):
            narrow = str(rows.dtype) == "torch.bfloat16" or str(rows.dtype).startswith("torch.float8")
            rows = (rows.float() if narrow else rows).detach()
        return np.asarray(rows)

    whole = matrix()
    if not len(whole.shape):
        raise QScoreError("expected a 2-D matrix of shape (n, r), got a single number")
    sample = part(0, 1)
    check_vectors(whole.shape, sample.dtype)
    rows = _rows_per_batch(sample)
    step = rows * max(1, SEGMENT_BYTES // BATCH_BYTES)
    segments = tuple(range(0, len(whole), step))

    def batches(segment: int) -> Batches:
        values = part(segments[segment], segments[segment] + step)
        for start in range(0, len(values), rows):
            yield values[start : start + rows], {}

    n, r = whole.shape
    return Shard(location.name, n, r, sample.dtype, (), {}, segments, batches, location.stamp)


def _streamed_shard(location: Location, shape: tuple[int, ...], dtype: Any, stream: Callable[[], Any]) -> Shard:
    """Make a shard of a stream of rows, one after another."""
    check_vectors(shape, dtype)
    n, r = shape

    def batches(_: int) -> Batches:
        rows = max(1, BATCH_BYTES // (r * dtype.itemsize))
        with stream() as source:
            for start in range(0, n, rows):
                count = min(rows, n - start) * r
                values = np.frombuffer(_read_exactly(source, count * dtype.itemsize), dtype=dtype)
                yield values.reshape(-1, r), {}

    return Shard(location.name, n, r, dtype, (), {}, (0,), batches, location.stamp)


def _read_exactly(source: Any, size: int) -> bytes:
    parts = []
    while size:
        part = source.read(size)
        if not part:
            raise QScoreError("the file ends before its last row")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _npy_header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Read a header; leaves the stream at the first value."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return shape, dtype, fortran


def _check_streamable(shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool) -> None:
    if dtype.hasobject:
        raise QScoreError("an array of Python objects; nothing is unpickled")
    if fortran and len(shape) > 1:
        raise QScoreError("a matrix in Fortran order cannot be streamed; save it as a plain .npy in C order")


def _after_header(stream: Any) -> Any:
    _npy_header(stream)
    return stream


def _choose_array(shapes: dict[str, Any], wanted: str | None) -> str:
    name = wanted or "embedding"
    if name in shapes:
        return name
    if wanted is not None:
        raise QScoreError(f"no array {wanted!r}, only {', '.join(shapes) or 'none'}")
    matrices = [key for key, shape in shapes.items() if len(shape) == 2]
    if len(matrices) != 1:
        found = f"{len(matrices)} matrices ({', '.join(matrices)})" if matrices else "no matrix"
        raise QScoreError(f"expected an array 'embedding' or a single matrix, got {found}; choose one with --column")
    return matrices[0]


def _rows_per_batch(sample: np.ndarray) -> int:
    return max(1, BATCH_BYTES // int(sample.shape[1] * sample.dtype.itemsize))
