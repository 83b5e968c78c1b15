"""What a probe learns from: rows that were checked, read a block at a time, with their classes."""

import math
import numbers
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Integer, Shaped

from qscore._progress import progress
from qscore._validate import QScoreError, check_matrix
from qscore.tables import EmbeddingTable

__all__ = ["TrainingRows", "block_slices", "check_test_rows", "checked_labels", "mapped_rows", "training_rows"]

BLOCK_BYTES = 32 * 2**20
HELD_IN_MEMORY = 2**30  # bytes of a table that `mapped_rows` reads without a temporary file


@dataclass(frozen=True)
class TrainingRows:
    """Valid rows of a matrix, each with its class."""

    H: Any
    """Array or memory map of shape (N, r); read a block at a time."""
    rows: Integer[np.ndarray, " n"]
    """Which of its rows are valid, ascending."""
    classes: Shaped[np.ndarray, " c"]
    """The classes, sorted."""
    codes: Integer[np.ndarray, " n"]
    """The class of each valid row, as a place in ``classes``."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_features(self) -> int:
        """Width r of the representation."""
        return int(self.H.shape[1])

    @property
    def n_invalid(self) -> int:
        """Rows that hold NaN or infinity, and are left out."""
        return len(self.H) - len(self.rows)

    def take(self, places: Integer[np.ndarray, " b"]) -> Float[np.ndarray, "b r"]:
        """Return the valid rows at some places, in float32, or float64 where the matrix is."""
        return _widened(self.H[self.rows[places]])

    def blocks(
        self, order: Integer[np.ndarray, " n"] | None = None
    ) -> Iterator[tuple[slice, Float[np.ndarray, "b r"]]]:
        """Yield all valid rows, in the order given or their own, a few thousand at a time, and where they stand."""
        for at in block_slices(len(self), self.n_features):
            yield at, self.take(np.arange(at.start, at.stop) if order is None else order[at])


def training_rows(H: Float[Any, "N r"], labels: Shaped[Any, " N"]) -> TrainingRows:
    """Check the rows and labels a probe is to learn from.

    Parameters
    ----------
    H : array or memory map of shape (N, r)
        Floating-point representations. Rows with NaN or infinity are left out, and counted.
    labels : array-like of shape (N,)
        Integers or strings.

    Returns
    -------
    TrainingRows
        The valid rows and their classes.

    Raises
    ------
    QScoreError
        If shapes do not fit, labels are missing or of mixed types, there are fewer than two classes, no row is valid,
        or all rows are the same.

    Examples
    --------
    >>> import numpy as np
    >>> found = training_rows(np.array([[1.0, 2.0], [np.nan, 0.0], [3.0, 4.0]]), np.array(["b", "b", "a"]))
    >>> found.rows.tolist(), found.codes.tolist(), found.n_invalid
    ([0, 2], [1, 0], 1)
    """
    check_matrix(H)
    H = np.asanyarray(H)
    names = checked_labels(labels, len(H))
    rows = np.concatenate([at.start + np.flatnonzero(_finite(H[at])) for at in block_slices(*H.shape)])
    if not len(rows):
        raise QScoreError(f"H: none of the {len(H):,} rows is valid, all hold NaN or infinity")
    classes, codes = np.unique(names[rows], return_inverse=True)
    if len(classes) < 2:
        raise QScoreError(f"the probe needs at least two classes, got {len(classes)}: {classes.tolist()}")
    found = TrainingRows(H, rows, classes, codes)
    first = found.take(np.array([0]))
    if all((block == first).all() for _, block in found.blocks()):
        raise QScoreError(f"H: all {len(found):,} rows are the same, so no probe can tell their classes apart")
    return found


def check_test_rows(H: Float[Any, "n r"], n_features: int) -> None:
    """Refuse rows that a probe cannot classify.

    Raises
    ------
    QScoreError
        If they are no matrix of floating-point numbers, of another width, or hold NaN or infinity.
    """
    check_matrix(H)
    if H.shape[1] != n_features:
        raise QScoreError(
            f"H: expected the {n_features} features that the probe was fitted on, got {H.shape[1]}; "
            "both must come from the same encoder"
        )
    invalid = np.concatenate([at.start + np.flatnonzero(~_finite(H[at])) for at in block_slices(*H.shape)])
    if len(invalid):
        raise QScoreError(
            f"H: {len(invalid):,} of {len(H):,} rows hold NaN or infinity, the first is row {invalid[0]}; "
            "leave them out"
        )


def block_slices(n: int, n_features: int) -> Iterator[slice]:
    """Yield slices of ``range(n)`` that in float64 take about 32 MiB each."""
    step = max(1, BLOCK_BYTES // (8 * n_features))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


@contextmanager
def mapped_rows(table: EmbeddingTable) -> Iterator[tuple[np.ndarray, dict[str, pa.ChunkedArray]]]:
    """Give a table's embeddings as one matrix that can be read in any order, however large.

    Up to 1 GiB is read into memory; more goes to a temporary file, deleted when the block ends, and is mapped.

    Parameters
    ----------
    table : EmbeddingTable
        N rows of r features.

    Yields
    ------
    H : ndarray or memory map of shape (N, r)
        The embeddings, in the table's type.
    columns : dict of pyarrow.ChunkedArray
        ``id``, and ``label`` and ``path`` where the table has them.
    """
    shape, dtype = (len(table), table.n_features), table.shards[0].dtype
    with tempfile.TemporaryDirectory(prefix="qscore-") as folder:
        H: np.ndarray
        if shape[0] * shape[1] * dtype.itemsize <= HELD_IN_MEMORY:
            H = np.empty(shape, dtype)
        else:
            H = np.lib.format.open_memmap(Path(folder) / "rows.npy", mode="w+", dtype=dtype, shape=shape)
        columns: dict[str, list[pa.Array]] = {}
        done = 0
        with progress("read embeddings", len(table), "rows") as advance:
            for batch in table.batches():
                H[done : done + len(batch)] = batch.embedding
                done += len(batch)
                for name, column in batch.columns.items():
                    columns.setdefault(name, []).append(column)
                advance(len(batch))
        yield H, {name: pa.chunked_array(parts) for name, parts in columns.items()}


def checked_labels(labels: Shaped[Any, " n"], n: int) -> Shaped[np.ndarray, " n"]:
    """Return labels as an array of integers or strings.

    Raises
    ------
    QScoreError
        If their number is not n, some are missing, or they are of other or of mixed types.
    """
    # A list of names and numbers would all become strings.
    values = np.asarray(labels) if hasattr(labels, "dtype") else np.array(labels, dtype=object)
    if values.shape != (n,):
        raise QScoreError(f"labels: expected {n:,} labels, one for each row, got shape {values.shape}")
    if values.dtype == object:
        values = _plain(values)
    if values.dtype.kind == "f":  # what pandas and pyarrow make of integers with gaps
        _refuse_missing(int(np.isnan(values).sum()), n)
        whole = np.isfinite(values).all() and (values == np.floor(values)).all()
        values = values.astype(np.int64) if whole else values
    if values.dtype.kind not in "biuUS":
        raise QScoreError(f"labels: expected integers or strings, got {values.dtype}")
    return values


def _plain(values: np.ndarray) -> np.ndarray:
    """Return Python objects as an array of the one type they all have."""
    found: list[str] = [_kind(value) for value in values.tolist()]
    _refuse_missing(found.count("missing"), len(values))
    kinds = sorted(set(found))
    if len(kinds) > 1:
        raise QScoreError(
            f"labels: expected all integers or all strings, got {_listed(kinds)}; convert them to strings"
        )
    return np.array(values.tolist())


def _kind(value: Any) -> str:
    """Return ``"str"``, ``"int"``, ``"missing"``, or the name of another type."""
    if value is None or type(value).__name__ == "NAType" or (isinstance(value, float) and math.isnan(value)):
        return "missing"
    if isinstance(value, str):
        return "str"
    if isinstance(value, bool):
        return "bool"
    return "int" if isinstance(value, numbers.Integral) else type(value).__name__


def _refuse_missing(n_missing: int, n: int) -> None:
    if n_missing == n:
        raise QScoreError(f"labels: none of the {n:,} rows has a label; a probe learns from labelled rows")
    if n_missing:
        raise QScoreError(f"labels: {n_missing:,} of {n:,} rows have no label; leave them out")


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _finite(block: np.ndarray) -> np.ndarray:
    finite: np.ndarray = np.isfinite(block).all(axis=1)
    return finite


def _widened(block: np.ndarray) -> np.ndarray:
    return np.asarray(block, dtype=np.float64 if block.dtype == np.float64 else np.float32)
