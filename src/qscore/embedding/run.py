"""`embed`: from the names of images, encoder and table to shards on the disk."""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import qscore
from qscore._progress import progress
from qscore._validate import QScoreError, nearest
from qscore.embedding.forward import PRECISIONS, Plain, Prepare, Views, forward, pick_device
from qscore.embedding.shards import Shards, Skipped, open_shards, views_path
from qscore.encoders import Encoder, load_encoder
from qscore.images import ImageSource, open_images
from qscore.images.augment import Augmentation, Augmenter

__all__ = ["embed"]

SHARD_ROWS = 8192
WORKERS_FROM = 4096  # fewer images are decoded sooner than worker processes start
MOST_VIEWS = 127  # their numbers are stored in 8 bits
ON_ERROR = ("skip", "raise")


def embed(
    images: str | Path | ImageSource,
    encoder: str | Path | Encoder,
    out: str | Path,
    *,
    views: int = 0,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    on_error: str = "skip",
    batch_size: int = 256,
    device: str = "auto",
    workers: int | None = None,
    precision: str = "32-true",
    overwrite: bool = False,
) -> Path:
    """Write the representation of every image to an embedding table.

    Parameters
    ----------
    images : str, Path or ImageSource
        A folder, a CSV or Parquet list, ``.npz`` archives, WebDataset tars, ``"torchvision:CIFAR10/test"``,
        ``"hf:ylecun/mnist:test"``, or ``"digits"``.
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
        Images per forward pass, >= 1. It changes results by rounding only.
    device : str, default="auto"
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...; ``"auto"`` takes a GPU where there is one.
    workers : int, optional
        Processes that decode images, >= 0; by default as many as there are cores, and none for small sources.
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
    if batch_size < 1 or (workers is not None and workers < 0):
        raise QScoreError(f"expected batch_size >= 1 and workers >= 0, got {batch_size} and {workers}")
    if not 0 <= views <= MOST_VIEWS:
        raise QScoreError(f"views: expected 0 to {MOST_VIEWS}, got {views}")
    _check_choice("precision", precision, PRECISIONS)
    _check_choice("on_error", on_error, ON_ERROR)
    source = open_images(images) if isinstance(images, str | Path) else images
    encoder = load_encoder(encoder) if isinstance(encoder, str | Path) else encoder
    target = pick_device(device)
    out = Path(out)
    if workers is None:
        workers = torch.get_num_threads() if len(source) * max(views, 1) >= WORKERS_FROM else 0
    # Asking a million files for their sizes takes a while; a new table needs the answer with its first shard only.
    with _in_background(lambda: source.fingerprint) as fingerprint:
        passes = [Pass(source, encoder, fingerprint, batch_size, precision)]
        if views:
            augmentation = replace(augmentation or Augmentation(), size=encoder.preprocess.crop)
            passes.append(replace(passes[0], views=views, augmentation=augmentation, seed=seed))
        places = [out, views_path(out)][: len(passes)]
        tables = [
            open_shards(place, each.describe, each.rows_per_image, overwrite=overwrite)
            for place, each in zip(places, passes, strict=True)
        ]
        for table, each in zip(tables, passes, strict=True):
            _write(table, each, target, workers, on_error)
    tables[0].write_skipped()
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
        digest = hashlib.sha256()
        for name, tensor in sorted(self.encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return the table's record, waiting for the source's fingerprint."""
        settings: dict[str, Any] = {
            "images": self.fingerprint.result(),
            "weights": self._weights,
            "preprocessing": self.encoder.source.preprocessing.to_json(),
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


def _write(table: Shards, what: Pass, device: torch.device, workers: int, on_error: str) -> None:
    """Write the shards that are missing."""
    source, k = what.source, what.rows_per_image
    if on_error == "raise" and table.skipped:
        raise QScoreError(f"{table.skipped[0].path}: {table.skipped[0].reason}")
    per_shard, per_batch = max(1, SHARD_ROWS // k), max(1, what.batch_size // k)
    batches = [
        range(i, min(i + per_batch, start + per_shard, len(source)))
        for start in range(table.start, len(source), per_shard)  # a batch never crosses a shard, so that a resumed
        for i in range(start, min(start + per_shard, len(source)), per_batch)  # run computes the same batches
    ]
    label_type = _label_type(source)
    results = forward(what.encoder, source, what.prepare, batches, device, what.precision, workers)
    name = "embed views" if what.views else "embed"
    with progress(name, len(source), "images", start=table.start) as advance:
        rows: list[np.ndarray] = []
        kept: list[int] = []
        skipped: list[Skipped] = []
        for batch, (h, reasons) in zip(batches, results, strict=True):
            if len(h):
                table.flush()
                rows.append(h)
            for i, reason in zip(batch, reasons, strict=True):
                if reason:
                    skipped.append(_skipped(source, i, reason, on_error))
                else:
                    kept.append(i)
            advance(len(batch))
            if batch.stop % per_shard == 0 or batch.stop == len(source):
                table.hold(rows, _columns(source, kept, label_type, what.views), skipped, batch.stop)
                rows, kept, skipped = [], [], []
    table.finish()


def _skipped(source: ImageSource, index: int, reason: str, on_error: str) -> Skipped:
    record = source.record(index)
    reason = reason.removeprefix(f"{record.path}: ")
    if on_error == "raise":
        raise QScoreError(f"{record.path}: {reason}")
    return Skipped(record.id, record.path, reason)


def _label_type(source: ImageSource) -> pa.DataType | None:
    if source.labels is None:
        return None
    return pa.int64() if all(isinstance(label, int | None) for label in source.labels) else pa.string()


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


@contextmanager
def _in_background(action: Callable[[], str]) -> Iterator["Future[str]"]:
    with ThreadPoolExecutor(1, "qscore-fingerprint") as pool:
        yield pool.submit(action)


def _check_choice(name: str, value: str, options: Any) -> None:
    if value not in options:
        raise QScoreError(f"{name}: expected one of {', '.join(options)}, got {value!r}{nearest(value, options)}")
