"""Columns of vectors as matrices, without a copy where they lie side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from qscore._validate import QScoreError, nearest

__all__ = ["check_vectors", "choose_vector_column", "is_vector_column", "vectors"]


def is_vector_column(kind: pa.DataType) -> bool:
    """Tell whether a column type is a list of numbers."""
    listed = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(listed) and bool(pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def choose_vector_column(schema: pa.Schema, wanted: str | None) -> str:
    """Return the column that holds the vectors: the one asked for, ``embedding``, or the only one there is.

    Raises
    ------
    QScoreError
        If it is not there, or several could be meant.
    """
    candidates: list[str] = [field.name for field in schema if is_vector_column(field.type)]
    if wanted is not None:
        if wanted not in schema.names:
            raise QScoreError(f"no column {wanted!r}, only {', '.join(schema.names)}{nearest(wanted, schema.names)}")
        return wanted
    if "embedding" in schema.names:
        return "embedding"
    if len(candidates) > 1:
        raise QScoreError(f"several columns of vectors: {', '.join(candidates)}; choose one with --column")
    if not candidates:
        raise QScoreError(f"expected a column 'embedding' of vectors, got {', '.join(schema.names)}")
    return candidates[0]


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
        raise QScoreError(f"expected vectors (a list column), got {column.type}")
    if not pa.types.is_floating(values.type):
        raise QScoreError(f"expected floating-point vectors, got {values.type}")
    if values.null_count:
        raise QScoreError(f"{values.null_count} values inside vectors are null; write NaN or drop those rows")
    matrix: np.ndarray = values.to_numpy(zero_copy_only=True).reshape(len(column), width)
    return matrix


def check_vectors(shape: Sequence[int], dtype: Any) -> None:
    """Refuse anything but a matrix of floating-point numbers with rows and at least two features."""
    if len(shape) != 2:
        raise QScoreError(f"expected a 2-D matrix of shape (n, r), got shape {tuple(shape)}")
    if shape[0] == 0 or shape[1] < 2:
        raise QScoreError(f"expected at least one row and 2 features, got shape {tuple(shape)}")
    if np.dtype(dtype).kind != "f":
        raise QScoreError(f"expected floating-point values, got {np.dtype(dtype)}; convert the embeddings to float32")
