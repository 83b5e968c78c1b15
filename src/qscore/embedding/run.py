"""`embed`: from the names of images, encoder and table to shards on the disk."""

import hashlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

import qscore
from qscore._progress import progress
from qscore._validate import QScoreError, nearest
from qscore.embedding.forward import Plain, Prepare, Views
from qscore.embedding.network import PRECISIONS
from qscore.embedding.parts import Job, Part, PartFolder, compute
from qscore.embedding.processes import (
    PAUSE,
    Errand,
    Rank,
    find_rank,
    pick_devices,
    run_errands,
    started_processes,
    take_parts,
)
from qscore.embedding.shards import Shards, open_shards, views_path
from qscore.encoders import Encoder, load_encoder
from qscore.images import ImageSource, open_images
from qscore.images.augment import Augmentation, Augmenter

__all__ = ["embed"]

SHARD_ROWS = 8192
WORKERS_FROM = 4096  # fewer images are decoded sooner than worker processes start
MOST_VIEWS = 127  # their numbers are stored in 8 bits
ON_ERROR = ("skip", "raise")


def embed(
    images: str | Path | ImageSource | Sequence[str | Path],
    encoder: str | Path | Encoder,
    out: str | Path,
    *,
    views: int = 0,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    on_error: str = "skip",
    batch_size: int = 256,
    device: str = "auto",
    devices: int = 1,
    workers: int | None = None,
    precision: str = "32-true",
    overwrite: bool = False,
) -> Path:
    """Write the representation of every image to an embedding table.

    Parameters
    ----------
    images : str, Path, ImageSource or list of str or Path
        A folder, a CSV or Parquet list, ``.npz`` archives, WebDataset tars, ``"torchvision:CIFAR10/test"``,
        ``"hf:ylecun/mnist:test"``, ``"digits"``, or a Python list of such.
    encoder : str, Path or Encoder
        What :func:`qscore.load_encoder` takes, or an encoder.
    out : str or Path
        The directory for the Parquet shards. An unfinished table of the same images, encoder and settings is
        continued; a finished one is left as it is.
    views : int, default=0
        Augmented views of each image, 0 to 127, written to a second table, ``OUT-views``.
    augmentation : Augmentation, optional
        How views are made; by default SimCLR's recipe. Their size is the encoder's in any case.
    seed : int, default=0
        Seed of the views. A view depends on it, the image's id and the view's number alone.
    on_error : {"skip", "raise"}, default="skip"
        Whether an image that cannot be read is left out and listed in ``OUT.skipped.csv``, or ends the run.
    batch_size : int, default=256
        Images per forward pass, >= 1; halved when memory does not suffice. It changes results by rounding only.
    device : str, default="auto"
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...; ``"auto"`` takes a GPU where there is one.
    devices : int, default=1
        Processes that compute, each on a GPU of its own, or on its share of a CPU's threads, >= 1. They are started
        here, so that a script needs ``if __name__ == "__main__":``; where a launcher such as torchrun has started
        as many, this is one of them, and all return when the table is whole.
    workers : int, optional
        Processes that decode images, >= 0, for each that computes; by default as many as there are cores for them,
        and none for small sources.
    precision : {"32-true", "bf16-mixed", "16-mixed"}, default="32-true"
        Arithmetic of the forward pass; the table is float32 in any case.
    overwrite : bool, default=False
        Replace a table of other images, another encoder or other settings.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    QScoreError
        If no image or the encoder cannot be read, an argument is out of range, or ``out`` holds something else.
    """
    _check_numbers(batch_size, views, devices, workers)
    _check_choice("precision", precision, PRECISIONS)
    _check_choice("on_error", on_error, ON_ERROR)
    rank = find_rank(devices)
    targets = pick_devices(device, devices, rank)
    source = open_images(images)
    encoder = load_encoder(encoder) if isinstance(encoder, str | Path) else encoder
    if encoder.dim < 2:
        raise QScoreError(f"encoder: expected at least 2 features, got {encoder.dim}")
    out = Path(out)
    if workers is None:
        many = len(source) * max(views, 1) >= WORKERS_FROM
        workers = max(1, torch.get_num_threads() // len(targets)) if many else 0
    # Asking a million files for their sizes takes a while; a new table needs the answer with its first shard only.
    fingerprint = _in_background(lambda: source.fingerprint)
    passes = [Pass(source, encoder, fingerprint, batch_size, precision)]
    if views:
        augmentation = replace(augmentation or Augmentation(), size=encoder.preprocess.crop)
        passes.append(replace(passes[0], views=views, augmentation=augmentation, seed=seed))
    places = [out, views_path(out)][: len(passes)]
    writes = rank is None or rank.number == 0
    work = [
        Work(
            open_shards(place, each.describe, each.rows_per_image, len(source), overwrite=overwrite, writes=writes),
            each,
            each.job(workers, on_error),
        )
        for place, each in zip(places, passes, strict=True)
    ]
    if devices == 1:
        for each in work:
            _write_alone(each, targets[0])
    else:
        _write_together(work, rank, targets)
    if writes:
        work[0].table.write_skipped()
    return out


@dataclass(frozen=True)
class Pass:
    """One pass over the images: all that decides what a table holds."""

    source: ImageSource
    encoder: Encoder
    fingerprint: "Future[str]"
    """Of the source; it may still be under way."""
    batch_size: int
    precision: str
    views: int = 0
    augmentation: Augmentation | None = None
    seed: int = 0

    @property
    def rows_per_image(self) -> int:
        """Rows that an image has in the table."""
        return max(self.views, 1)

    @property
    def prepare(self) -> Prepare:
        """What makes the encoder's inputs out of an image."""
        preprocess = self.encoder.preprocess
        if self.augmentation is None:
            return Plain(preprocess)
        augmenter = Augmenter(self.augmentation, preprocess.mean, preprocess.std)
        return Views(preprocess, augmenter, self.views, self.seed)

    @cached_property
    def _weights(self) -> str:
        return self.encoder.fingerprint()

    def job(self, workers: int, on_error: str) -> Job:
        """Return what a process needs in order to compute."""
        k = self.rows_per_image
        per_shard, per_batch = max(1, SHARD_ROWS // k), max(1, self.batch_size // k)
        return Job(self.source, self.encoder, self.prepare, per_shard, per_batch, self.precision, workers, on_error)

    def describe(self) -> dict[str, Any]:
        """Return the table's record, waiting for the source's fingerprint."""
        settings: dict[str, Any] = {
            "images": self.fingerprint.result(),
            "weights": self._weights,
            "encoder": self.encoder.source.to_json(),
            "batch_size": self.batch_size,
            "precision": self.precision,
            "shard_rows": SHARD_ROWS,
        }
        views: dict[str, Any] = {}
        if self.augmentation is not None:
            views = {"views": self.views, "augmentation": asdict(self.augmentation), "seed": self.seed}
        return {
            "kind": "embeddings",
            "n_rows": len(self.source) * self.rows_per_image,
            "images": self.source.name,
            "encoder": self.encoder.source.to_json(),
            "nonnegative": self.encoder.nonnegative,
            "software": f"qscore {qscore.__version__}",
            "fingerprint": hashlib.sha256(json.dumps(settings | views, sort_keys=True).encode()).hexdigest(),
            **views,
        }


class Work(NamedTuple):
    """A table, and what goes into it."""

    table: Shards
    what: Pass
    job: Job

    @property
    def name(self) -> str:
        """What is shown while it goes on."""
        return "embed views" if self.what.views else "embed"

    def check(self) -> None:
        """Refuse images that were left out earlier, if one is enough to end the run."""
        if self.job.on_error == "raise" and self.table.skipped:
            raise QScoreError(f"{self.table.skipped[0].path}: {self.table.skipped[0].reason}")

    def hold(self, part: Part, label_type: pa.DataType | None) -> None:
        """Put a part into the table."""
        columns = _columns(self.what.source, part.kept, label_type, self.what.views)
        self.table.hold(part.rows, columns, part.skipped, part.shard.stop)


def _write_alone(work: Work, device: torch.device) -> None:
    """Compute and write the shards that are missing."""
    work.check()
    table, label_type = work.table, _label_type(work.what.source)
    with progress(work.name, table.n_images, "images", start=table.start) as advance:

        def before(images: int, rows: int) -> None:
            if rows:
                table.flush()
            advance(images)

        for part in compute(work.job, work.job.shards(table.start), device, before):
            work.hold(part, label_type)
    table.finish()


def _write_together(works: list[Work], rank: Rank | None, devices: list[torch.device]) -> None:
    """Compute the shards that are missing in several processes, and write them in the first, or in this."""
    for work in works:
        work.check()
    errands = [Errand(w.job, w.job.shards(w.table.start), PartFolder(w.table.parts_path())) for w in works]
    assembly = itertools.chain.from_iterable(map(_assemble, works, errands))
    if rank is None:
        missing = any(errand.shards for errand in errands)
        with started_processes(errands, devices) if missing else nullcontext(lambda: None) as watch:
            for _ in assembly:
                watch()
    elif rank.number == 0:
        run_errands(errands, rank, devices[0], lambda: next(assembly, None))
        for _ in assembly:
            time.sleep(PAUSE)
    else:
        run_errands(errands, rank, devices[0], lambda: None)
        for work in works:
            while not work.table.is_whole():
                time.sleep(PAUSE)


def _assemble(work: Work, errand: Errand) -> Iterator[None]:
    """Put the parts of a table into it as they come, pausing whenever the next is not there yet."""
    table, label_type = work.table, _label_type(work.what.source)
    held: list[range] = []
    with progress(work.name, table.n_images, "images", start=table.start) as advance:
        for part in take_parts(errand):
            if part is None:
                yield
                continue
            work.hold(part, label_type)
            held.append(part.shard)
            while held and held[0].stop <= table.start:
                errand.folder.drop(held.pop(0))
            advance(len(part.shard))
    table.finish()


def _label_type(source: ImageSource) -> pa.DataType | None:
    if source.labels is None:
        return None
    if not all(isinstance(label, int | None) for label in source.labels):
        return pa.string()
    for label in source.labels:
        if isinstance(label, int) and not -(2**63) <= label < 2**63:
            raise QScoreError(f"{source.name}: expected labels from -2**63 to 2**63 - 1, got {label}")
    return pa.int64()


def _columns(
    source: ImageSource, indices: list[int], label_type: pa.DataType | None, views: int
) -> dict[str, pa.Array]:
    k = max(views, 1)
    records = [record for record in map(source.record, indices) for _ in range(k)]
    columns = {"id": pa.array([r.id for r in records], pa.string())}
    if label_type is not None:
        columns["label"] = pa.array([r.label for r in records], label_type)
    columns["path"] = pa.array([r.path for r in records], pa.string())
    if views:
        columns["view"] = pa.array(np.tile(np.arange(1, views + 1, dtype=np.int8), len(indices)))
    return columns


def _in_background(action: Callable[[], str]) -> "Future[str]":
    """Begin an action whose result can wait; nothing waits for it where it is not asked for, Ctrl-C least of all."""
    future: Future[str] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="qscore-fingerprint", daemon=True).start()
    return future


def _check_numbers(batch_size: int, views: int, devices: int, workers: int | None) -> None:
    if batch_size < 1 or (workers is not None and workers < 0):
        raise QScoreError(f"expected batch_size >= 1 and workers >= 0, got {batch_size} and {workers}")
    if devices < 1:
        raise QScoreError(f"devices: expected at least 1, got {devices}")
    if not 0 <= views <= MOST_VIEWS:
        raise QScoreError(f"views: expected 0 to {MOST_VIEWS}, got {views}")


def _check_choice(name: str, value: str, options: Any) -> None:
    if value not in options:
        raise QScoreError(f"{name}: expected one of {', '.join(options)}, got {value!r}{nearest(value, options)}")
