"""What becomes of the images of one shard: computed here, in this process or in several."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import final

import numpy as np
import torch

from qscore._files import atomic_path
from qscore._validate import QScoreError
from qscore.embedding.forward import Prepare, forward
from qscore.embedding.shards import Skipped
from qscore.encoders import Encoder
from qscore.images import ImageSource

__all__ = ["Job", "Part", "PartFolder", "compute"]


@dataclass(frozen=True)
class Job:
    """All that a process needs in order to compute parts; small to pickle, but for the encoder."""

    source: ImageSource
    encoder: Encoder
    prepare: Prepare
    """What makes k inputs out of an image."""
    per_shard: int
    """Images of a shard, >= 1."""
    per_batch: int
    """Images of a batch, >= 1."""
    precision: str
    workers: int
    """Processes that decode, for each that computes."""
    on_error: str

    def shards(self, start: int) -> list[range]:
        """Return the images of each shard, from a shard's first image on."""
        n = len(self.source)
        return [range(i, min(i + self.per_shard, n)) for i in range(start, n, self.per_shard)]

    def batches(self, shard: range) -> list[range]:
        """Return the images of each batch; none crosses a shard, so that a resumed run computes the same batches."""
        return [range(i, min(i + self.per_batch, shard.stop)) for i in range(shard.start, shard.stop, self.per_batch)]


@dataclass
class Part:
    """What became of the images of one shard."""

    shard: range
    rows: list[np.ndarray] = field(default_factory=list)
    """Representations of shape (m, r) each, float32."""
    kept: list[int] = field(default_factory=list)
    """Images with rows."""
    skipped: list[Skipped] = field(default_factory=list)


def compute(
    job: Job, shards: Sequence[range], device: torch.device, before: Callable[[int, int], None]
) -> Iterator[Part]:
    """Compute the parts of some shards, in their order.

    Parameters
    ----------
    job : Job
        What to compute.
    shards : sequence of range
        Of ``job.shards``.
    device : torch.device
        Where the encoder runs.
    before : callable
        Told the number of images and of rows of a batch, before anything is done with them.

    Raises
    ------
    StoreError
        If the disk or the store fails, so that no image can be read.
    QScoreError
        If an image cannot be read and ``on_error`` is ``"raise"``.
    """
    batches = [batch for shard in shards for batch in job.batches(shard)]
    results = forward(job.encoder, job.source, job.prepare, batches, device, job.precision, job.workers)
    remaining = iter(shards)
    part: Part | None = None
    for batch, (h, reasons) in zip(batches, results, strict=True):
        part = part or Part(next(remaining))
        before(len(batch), len(h))
        if len(h):
            part.rows.append(h)
        for i, reason in zip(batch, reasons, strict=True):
            if reason:
                part.skipped.append(_skipped(job, i, reason))
            else:
                part.kept.append(i)
        if batch.stop == part.shard.stop:
            yield part
            part = None


def _skipped(job: Job, index: int, reason: str) -> Skipped:
    record = job.source.record(index)
    reason = reason.removeprefix(f"{record.path}: ")
    if job.on_error == "raise":
        raise QScoreError(f"{record.path}: {reason}")
    return Skipped(record.id, record.path, reason)


@final
@dataclass(frozen=True)
class PartFolder:
    """A folder through which processes hand parts to the one that writes the table."""

    path: Path

    def file(self, shard: range) -> Path:
        """Return where the part of a shard is."""
        return self.path / f"{shard.start:012d}.npz"

    def write(self, part: Part) -> None:
        """Put a part there, whole or not at all.

        Raises
        ------
        QScoreError
            If it cannot be written.
        """
        skipped = np.array(json.dumps([asdict(s) for s in part.skipped]))
        rows = np.concatenate(part.rows) if part.rows else np.empty((0, 0), np.float32)
        with atomic_path(self.file(part.shard)) as temporary, temporary.open("wb") as file:
            np.savez(file, rows=rows, kept=np.array(part.kept, np.int64), skipped=skipped)

    def take(self, shard: range) -> Part | None:
        """Return the part of a shard, or None where it is not there yet; `drop` removes it."""
        try:
            with np.load(self.file(shard)) as found:
                skipped = [Skipped(**entry) for entry in json.loads(str(found["skipped"]))]
                kept = found["kept"].tolist()
                return Part(shard, [found["rows"]] if kept else [], kept, skipped)
        except FileNotFoundError:
            return None

    def drop(self, shard: range) -> None:
        """Remove the part of a shard."""
        self.file(shard).unlink(missing_ok=True)
