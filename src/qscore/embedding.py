"""Images and an encoder in, an embedding table out, shard by shard; a killed run resumes at the last whole shard."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import qscore
from qscore._progress import progress
from qscore._validate import QScoreError, nearest
from qscore.encoders import Encoder, load_encoder
from qscore.images import ImageSource, open_images
from qscore.tables import open_embeddings, read_record, write_shard

__all__ = ["embed", "pick_device"]

SHARD_ROWS = 8192
WORKERS_FROM = 4096  # fewer images are decoded sooner than worker processes start
PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # Lightning's names


def embed(
    images: str | Path | ImageSource,
    encoder: str | Path | Encoder,
    out: str | Path,
    *,
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
        A folder, ``.npz`` archives, or ``"digits"``.
    encoder : str, Path or Encoder
        What :func:`qscore.load_encoder` takes, or an encoder.
    out : str or Path
        The directory for the Parquet shards. An unfinished table of the same images, encoder and settings is
        continued; a finished one is left as it is.
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
        If an image or the encoder cannot be read, an argument is out of range, or ``out`` holds something else.
    """
    if batch_size < 1 or (workers is not None and workers < 0):
        raise QScoreError(f"expected batch_size >= 1 and workers >= 0, got {batch_size} and {workers}")
    if precision not in PRECISIONS:
        hint = nearest(precision, PRECISIONS)
        raise QScoreError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}{hint}")
    source = open_images(images) if isinstance(images, str | Path) else images
    encoder = load_encoder(encoder) if isinstance(encoder, str | Path) else encoder
    target = pick_device(device)
    record = _record(source, encoder, batch_size, precision)
    out = Path(out)
    folder, done = _working_folder(out, record, overwrite=overwrite)

    starts = range(done * SHARD_ROWS, len(source), SHARD_ROWS)
    batches = [
        list(range(i, min(i + batch_size, start + SHARD_ROWS, len(source))))
        for start in starts  # a batch never crosses a shard, so that a resumed run computes the same batches
        for i in range(start, min(start + SHARD_ROWS, len(source)), batch_size)
    ]
    if workers is None:
        workers = torch.get_num_threads() if len(source) >= WORKERS_FROM else 0
    with progress("embed", len(source), "images", start=min(done * SHARD_ROWS, len(source))) as advance:
        rows: list[np.ndarray] = []
        for h in _forward(encoder, source, batches, target, precision, workers):
            rows.append(h)
            advance(len(h))
            if sum(map(len, rows)) == min(SHARD_ROWS, len(source) - done * SHARD_ROWS):
                columns = _columns(source, done * SHARD_ROWS, rows)
                write_shard(_shard_path(folder, done), np.concatenate(rows), columns, record)
                rows, done = [], done + 1
    open_embeddings(folder)
    if folder != out:
        for shard in _shards(out):
            shard.unlink()
        for shard in _shards(folder):
            shard.replace(out / shard.name)
        folder.rmdir()
    return out


def pick_device(name: str) -> torch.device:
    """Return the device of that name; ``"auto"`` is a GPU where there is one.

    Raises
    ------
    QScoreError
        If the device is unknown or not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise QScoreError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


class _Preprocessed(Dataset[tuple[Tensor, str]]):
    """The images as the encoder wants them; an error travels as text, since workers would wrap it in a traceback."""

    def __init__(self, source: ImageSource, encoder: Encoder) -> None:
        self.source = source
        self.preprocess = encoder.preprocess

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        try:
            return self.preprocess(self.source.image(index)), ""
        except QScoreError as error:
            return torch.empty(0), str(error)


def _collate(items: list[tuple[Tensor, str]]) -> tuple[Tensor, str]:
    errors = [error for _, error in items if error]
    return (torch.empty(0), errors[0]) if errors else (torch.stack([x for x, _ in items]), "")


def _forward(
    encoder: Encoder, source: ImageSource, batches: list[list[int]], device: torch.device, precision: str, workers: int
) -> Iterator[np.ndarray]:
    """Give the representations of each batch, (b, r) float32, leaving the encoder where it was."""
    home = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    loader = DataLoader(
        _Preprocessed(source, encoder),
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    dtype = PRECISIONS[precision]
    try:
        encoder.to(device).eval()
        for x, error in loader:
            if error:
                raise QScoreError(error)
            with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
                h = encoder(x.to(device, non_blocking=True))
            yield h.float().cpu().numpy()
    finally:
        encoder.to(home)


def _record(source: ImageSource, encoder: Encoder, batch_size: int, precision: str) -> dict[str, Any]:
    weights = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    settings = {
        "images": source.fingerprint,
        "weights": weights.hexdigest(),
        "preprocessing": encoder.source.preprocessing.to_json(),
        "batch_size": batch_size,
        "precision": precision,
        "shard_rows": SHARD_ROWS,
    }
    return {
        "kind": "embeddings",
        "n_rows": len(source),
        "images": source.name,
        "encoder": encoder.source.to_json(),
        "nonnegative": encoder.nonnegative,
        "software": f"qscore {qscore.__version__}",
        "fingerprint": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
    }


def _shard_path(out: Path, k: int) -> Path:
    return out / f"part-{k:05d}.parquet"


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def _working_folder(out: Path, record: dict[str, Any], *, overwrite: bool) -> tuple[Path, int]:
    """Return where to write, and how many leading shards of this very table are there already.

    A table to be replaced stays until its successor, written to a hidden folder inside it, is whole.
    """
    if not out.exists():
        return out, 0
    if not out.is_dir():
        raise QScoreError(f"{out} exists and is no folder; choose another name")
    strangers = sorted(
        path.name for path in out.iterdir() if not path.name.startswith(".") and path not in _shards(out)
    )
    if strangers:
        raise QScoreError(f"{out} holds other files ({strangers[0]}); choose another folder")
    for leftover in out.glob(".part-*.tmp"):
        leftover.unlink()
    if _belongs(out, record):
        return out, len(_shards(out))
    if not overwrite:
        raise QScoreError(
            f"{out} holds a table of other images, another encoder or other settings; "
            "choose another folder, or replace it with --overwrite"
        )
    successor = out / ".successor"
    if not _belongs(successor, record):
        shutil.rmtree(successor, ignore_errors=True)
    return successor, len(_shards(successor))


def _belongs(folder: Path, record: dict[str, Any]) -> bool:
    """Tell whether the shards of a folder are the first of this very table."""
    shards = _shards(folder)
    named = shards == [_shard_path(folder, k) for k in range(len(shards))]
    return named and all(_fingerprint(path) == record["fingerprint"] for path in shards)


def _fingerprint(path: Path) -> str | None:
    try:
        return read_record(pq.read_schema(path)).get("fingerprint")
    except (OSError, pa.ArrowException, QScoreError):
        return None


def _columns(source: ImageSource, start: int, rows: list[np.ndarray]) -> dict[str, pa.Array]:
    records = [source.record(i) for i in range(start, start + sum(map(len, rows)))]
    columns = {"id": pa.array([r.id for r in records], pa.string())}
    if source.labels is not None:
        kind = pa.int64() if all(isinstance(label, int | None) for label in source.labels) else pa.string()
        columns["label"] = pa.array([r.label for r in records], kind)
    columns["path"] = pa.array([r.path for r in records], pa.string())
    return columns
