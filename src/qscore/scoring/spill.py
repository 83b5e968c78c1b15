"""The scans of a table's rows in a temporary Arrow file, so that any number of rows fits in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from qscore import core
from qscore._progress import progress
from qscore._validate import QScoreError
from qscore.kernels import Scan, scan
from qscore.tables import EmbeddingTable

__all__ = ["ROW_VALUES", "Block", "Scaling", "Spill", "fit_scaling"]

ROW_VALUES = ("mean", "std", "max", "l1_norm", "l2_norm")
SCALING_BYTES = 256 * 2**20
UNIT_NORM = 1e-3


@dataclass(frozen=True)
class Scaling:
    """How the features of a signed table are made comparable."""

    center: np.ndarray
    """(r,) medians."""
    scale: np.ndarray
    """(r,) 1.4826 MAD, or the standard deviation where that is 0."""


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a table, scanned."""

    rows: pa.RecordBatch
    """Their own columns: id, and label and path where there are any."""
    plain: Scan
    """The one-sided scan of the values as they are; row values such as norms come from it."""
    scored: Scan
    """The scan that Q is made of: the plain one, or the two-sided one of scaled values for signed tables."""


def fit_scaling(table: EmbeddingTable) -> Scaling:
    """Fit the robust scaling of a signed table in one pass.

    Tables of up to 256 MiB of float64 are fitted exactly; of larger ones every k-th row, as many as fit.
    """
    step = -(-len(table) * table.n_features * 8 // SCALING_BYTES)
    kept, start = [], 0
    with progress("fit scaling", len(table), "rows") as advance:
        for batch in table.batches():
            rows = batch.embedding[-start % step :: step].astype(np.float64)
            kept.append(rows[core.valid_rows(rows)])
            start += len(batch)
            advance(len(batch))
    rows = np.concatenate(kept)
    if not len(rows):
        raise QScoreError(f"{table.name}: no row is valid, all hold NaN or infinity")
    return Scaling(*core.robust_scaling(rows))


class Spill:
    """The scans of a table, written once and read as often as needed.

    Parameters
    ----------
    path : Path
        The temporary file.
    table : EmbeddingTable
        The rows.
    epsilon : float
        The smallest epsilon in question.
    scaling : Scaling or None
        For signed tables.
    """

    def __init__(self, path: Path, table: EmbeddingTable, epsilon: float, scaling: Scaling | None) -> None:
        self.path = path
        self.table = table
        self.epsilon = epsilon
        self.scaling = scaling
        self.n_valid = 0
        self.negative = False
        self.unit_norm = True

    def write(self, threads: int | None, *, stop_if_negative: bool) -> None:
        """Scan every row; stops at the first negative value of a valid row if asked to."""
        identifiers = _Identifiers(self.table)
        writer = None
        with progress("score", len(self.table), "rows") as advance, pa.OSFile(str(self.path), "wb") as file:
            for batch in self.table.batches():
                identifiers.add(batch.columns["id"])
                plain = scan(batch.embedding, self.epsilon, threads=threads)
                self.n_valid += int(plain.valid.sum())
                self.negative |= bool((plain.valid & (batch.embedding.min(axis=1) < 0)).any())
                if self.negative and stop_if_negative:
                    break
                self.unit_norm &= bool((np.abs(plain.l2_norm[plain.valid] - 1) < UNIT_NORM).all())
                rows = pa.record_batch({**batch.columns, **self._columns(batch.embedding, plain, threads)})
                if writer is None:
                    writer, schema = pa.ipc.new_file(file, rows.schema), rows.schema
                changed = [name for name in schema.names if rows.schema.field(name) != schema.field(name)]
                if changed:
                    kinds = f"{schema.field(changed[0]).type} in some, {rows.schema.field(changed[0]).type} in others"
                    raise QScoreError(f"{self.table.name}: shards differ in the type of {changed[0]!r}: {kinds}")
                writer.write_batch(rows)
                advance(len(batch))
            if writer is not None:
                writer.close()

    def _columns(self, embedding: np.ndarray, plain: Scan, threads: int | None) -> dict[str, Any]:
        columns = {
            **{name: getattr(plain, name) for name in ROW_VALUES},
            "valid": plain.valid,
            "active": pa.LargeListArray.from_arrays(plain.indptr, plain.active),
            "deviation": pa.LargeListArray.from_arrays(plain.indptr, plain.deviation),
        }
        if self.scaling is not None:
            scaled = core.apply_scaling(embedding, self.scaling.center, self.scaling.scale)
            signed = scan(scaled, self.epsilon, two_sided=True, threads=threads)
            columns["signed_std"] = signed.std
            columns["signed_active"] = pa.LargeListArray.from_arrays(signed.indptr, signed.active)
            columns["signed_deviation"] = pa.LargeListArray.from_arrays(signed.indptr, signed.deviation)
        return columns

    def blocks(self) -> Iterator[Block]:
        """Give the scans back, batch by batch."""
        with pa.memory_map(str(self.path)) as source:
            reader = pa.ipc.open_file(source)
            for k in range(reader.num_record_batches):
                rows = reader.get_batch(k)
                plain = self._scan(rows, "", {name: rows.column(name).to_numpy() for name in ROW_VALUES})
                scored = plain
                if self.scaling is not None:
                    std = rows.column("signed_std").to_numpy()
                    scored = self._scan(rows, "signed_", {name: std for name in ROW_VALUES})
                yield Block(rows, plain, scored)

    def _scan(self, rows: pa.RecordBatch, prefix: str, values: dict[str, np.ndarray]) -> Scan:
        active = rows.column(f"{prefix}active")
        return Scan(
            **values,
            indptr=active.offsets.to_numpy(),
            active=active.values.to_numpy(),
            deviation=rows.column(f"{prefix}deviation").values.to_numpy(),
            counts=np.bincount(active.values.to_numpy(), minlength=self.table.n_features),
            valid=rows.column("valid").to_numpy(zero_copy_only=False),
            epsilon=self.epsilon,
            two_sided=prefix != "",
        )


class _Identifiers:
    """Refuses a table in which an id comes twice, from 64 bits of each id."""

    def __init__(self, table: EmbeddingTable) -> None:
        self.table = table
        self.given = "id" in table.columns
        self.seen: list[np.ndarray] = []
        self.rows = 0

    def add(self, ids: pa.Array) -> None:
        if not self.given:
            return
        texts = ids.to_pylist()
        self.seen.append(np.fromiter(map(hash, texts), dtype=np.int64, count=len(texts)))
        self.rows += len(texts)
        if self.rows == len(self.table):
            hashes = np.concatenate(self.seen)
            values, first, counts = np.unique(hashes, return_index=True, return_counts=True)
            if len(values) < len(hashes):
                row = int(first[counts > 1].min())
                raise QScoreError(
                    f"{self.table.name}: {len(hashes) - len(values)} ids come more than once, "
                    f"the first in row {row}; rows of other tables are matched by id"
                )
