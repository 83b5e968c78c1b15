"""The scans of a table's rows in temporary Arrow files, so that any number of rows fits in memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from qscore import core
from qscore._files import atomic_path
from qscore._progress import Advance, progress
from qscore._validate import QScoreError
from qscore.kernels import Scan, scan
from qscore.scoring.identifiers import sampled_rows
from qscore.tables import EmbeddingBatch, EmbeddingTable

__all__ = ["ROW_VALUES", "Block", "Scaling", "Spill", "fit_scaling"]

ROW_VALUES = ("mean", "std", "max", "l1_norm", "l2_norm")
SCALING_BYTES = 128 * 2**20


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

    Tables of up to 128 MiB of float64 are fitted exactly; larger ones on a sample of that size, chosen by the rows'
    ids, so that it is the same in whatever order they come.
    """
    share = SCALING_BYTES / (len(table) * table.n_features * 8)
    kept = []
    with progress("fit scaling", len(table), "rows") as advance:
        for batch in table.batches():
            rows = batch.embedding[sampled_rows(batch.columns, share)].astype(np.float64)
            kept.append(rows[core.valid_rows(rows)])
            advance(len(batch))
    rows = np.concatenate(kept)
    del kept
    if not len(rows):
        raise QScoreError(
            f"{table.name}: no valid row to fit the scaling on: all of them, or of their sample, hold NaN or infinity"
        )
    return Scaling(*core.robust_scaling(rows))


def _negative_rows(embedding: np.ndarray) -> np.ndarray:
    """Tell which rows have a negative value; of a table without any in a pass that vector registers like."""
    if embedding.min() >= 0:
        return np.zeros(len(embedding), dtype=bool)
    negative: np.ndarray = embedding.min(axis=1) < 0
    return negative


class _NegativeError(Exception):
    """A valid row has a negative value."""


class Spill:
    """The scans of a table, written once and read as often as needed.

    Parameters
    ----------
    folder : Path
        Where they go, a file for each part of the table; those that are there already are taken over.
    table : EmbeddingTable
        The rows.
    epsilon : float
        The smallest epsilon in question.
    scaling : Scaling or None
        For signed tables.
    """

    def __init__(self, folder: Path, table: EmbeddingTable, epsilon: float, scaling: Scaling | None) -> None:
        self.folder = folder
        self.table = table
        self.epsilon = epsilon
        self.scaling = scaling
        self.schema: pa.Schema | None = None

    def write(self, threads: int | None, *, stop_if_negative: bool) -> bool:
        """Scan the rows of every part that is not there yet.

        Returns
        -------
        bool
            False where it stopped at a negative value of a valid row, as asked: what it wrote is deleted.
        """
        done = 0
        while self._part(done).exists():
            done += 1
        with progress("score", len(self.table), "rows", start=self._rows(done)) as advance:
            try:
                for part, batches in groupby(self.table.batches(done), attrgetter("part")):
                    with atomic_path(self._part(part)) as temporary, pa.OSFile(str(temporary), "wb") as file:
                        self._write_part(file, batches, threads, stop_if_negative, advance)
            except _NegativeError:
                for part in self.folder.glob("part-*.arrow"):
                    part.unlink()
                return False
        return True

    def _write_part(
        self,
        file: Any,
        batches: Iterable[EmbeddingBatch],
        threads: int | None,
        stop_if_negative: bool,
        advance: Advance,
    ) -> None:
        writer = None
        for batch in batches:
            plain = scan(batch.embedding, self.epsilon, threads=threads)
            negative = plain.valid & _negative_rows(batch.embedding)
            if stop_if_negative and negative.any():
                raise _NegativeError
            columns = {**batch.columns, **self._columns(batch.embedding, plain, threads), "negative": negative}
            rows = pa.record_batch(columns)
            self._check_types(rows.schema)
            writer = writer or pa.ipc.new_file(file, rows.schema)
            writer.write_batch(rows)
            advance(len(batch))
        if writer is not None:
            writer.close()

    def _check_types(self, schema: pa.Schema) -> None:
        first = self.schema = self.schema or schema
        changed = [name for name in first.names if schema.field(name) != first.field(name)]
        if changed:
            kinds = f"{first.field(changed[0]).type} in some, {schema.field(changed[0]).type} in others"
            raise QScoreError(f"{self.table.name}: shards differ in the type of {changed[0]!r}: {kinds}")

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

    def _part(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}.arrow"

    def _rows(self, done: int) -> int:
        """Return the number of rows in the first parts, and learn the types of their columns."""
        rows = 0
        for part in map(self._part, range(done)):
            with pa.memory_map(str(part)) as source, pa.ipc.open_file(source) as reader:
                self._check_types(reader.schema)
                rows += sum(reader.get_batch(k).num_rows for k in range(reader.num_record_batches))
        return rows

    def rows(self) -> Iterator[pa.RecordBatch]:
        """Give the rows back as they were written, batch by batch."""
        for part in map(self._part, range(len(self.table.parts))):
            with pa.memory_map(str(part)) as source, pa.ipc.open_file(source) as reader:
                for k in range(reader.num_record_batches):
                    yield reader.get_batch(k)

    def blocks(self) -> Iterator[Block]:
        """Give the scans back, batch by batch."""
        for rows in self.rows():
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
