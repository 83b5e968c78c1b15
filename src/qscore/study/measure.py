"""One encoder on training and test images: embedded, scored, probed, row by row."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qscore._files import atomic_path, to_json
from qscore._validate import QScoreError
from qscore.core import apply_scaling
from qscore.embedding import embed
from qscore.encoders import Encoder
from qscore.evaluate.probes import fit_probe
from qscore.images import ImageSource
from qscore.kernels import scan
from qscore.metrics import hoyer_sparsity
from qscore.scoring import features_path, read_stored, score, summarize_scores
from qscore.ssl.finetune import Hardware
from qscore.ssl.watch import Diverged
from qscore.study.splits import has_labels
from qscore.tables import EmbeddingBatch, open_embeddings

__all__ = ["METRICS", "Discovered", "Measured", "discover", "measure", "read_discovered"]

log = logging.getLogger(__name__)

METRICS = ("accuracy", "q", "q_over_sigma", "hoyer", "zeros", "n_active", "coverage")
ROWS = "rows.parquet"


@dataclass(frozen=True)
class Discovered:
    """D of an encoder, and how it was found."""

    table: Path
    """The feature table."""
    indices: np.ndarray
    """D, ascending."""
    counts: np.ndarray
    """(r,) rows in which each feature is highly active."""
    epsilon: float
    coverage: float | None
    """Share of the training rows that vary with a feature of D; None where it is not known."""


@dataclass(frozen=True)
class Measured:
    """What the test rows say of an encoder."""

    rows: dict[str, np.ndarray]
    """By name of `METRICS`, one value a row, NaN where there is none; ``accuracy`` (0 or 1) with labels only."""
    ids: list[str]
    probe: dict[str, Any] | None
    """The probe, as JSON can hold it; None without labels."""


def discover(
    folder: Path, encoder: Encoder, train: ImageSource, epsilon: float | str, hardware: Hardware
) -> Discovered:
    """Embed training images as for evaluation, and find D as `score` does, in files of a folder.

    Raises
    ------
    Diverged
        If representations are not finite, or all the same.
    QScoreError
        If an image cannot be read, or epsilon is out of the features' reach.
    """
    _embed(train, encoder, folder / "train-embeddings", hardware)
    scores = folder / "train-scores.parquet"
    if not (scores.exists() and features_path(scores).exists()):
        # First: scoring refuses such rows as well, but not as a training that has diverged.
        check_alive(open_embeddings(folder / "train-embeddings").read())
        score(folder / "train-embeddings", scores, epsilon=epsilon, overwrite=True)  # type: ignore[arg-type]
    return read_discovered(features_path(scores), summarize_scores(scores).coverage)


def read_discovered(path: str | Path, coverage: float | None = None) -> Discovered:
    """Read D from a feature table."""
    stored = read_stored(path)
    epsilon = float(stored.settings["epsilon"])
    return Discovered(Path(path), stored.discriminative, stored.counts, epsilon, coverage)


def measure(
    folder: Path,
    encoder: Encoder,
    train: ImageSource,
    test: ImageSource,
    *,
    epsilon: float | str,
    hardware: Hardware,
    seed: int,
) -> Measured:
    """Find D on the training rows, score the test rows by it, and probe them where there are labels.

    Everything is written to the folder, and taken from there the next time.

    Parameters
    ----------
    folder : Path
        Of this encoder and these images alone: the caller sees to that.
    encoder : Encoder
        Frozen.
    train, test : ImageSource
        The probe learns from the former.
    epsilon : float or "auto"
        Of L_i.
    hardware : Hardware
        Where to compute.
    seed : int
        Of the probe.

    Raises
    ------
    Diverged
        If representations are not finite, or all the same.
    QScoreError
        If an image cannot be read, or labels cannot be learned from.
    """
    file = folder / ROWS
    if file.exists():
        return _read(file)
    discover(folder, encoder, train, epsilon, hardware)
    _embed(test, encoder, folder / "embeddings", hardware)
    fitted = features_path(folder / "train-scores.parquet")
    learned, seen = (open_embeddings(folder / name).read() for name in ("train-embeddings", "embeddings"))
    check_alive(seen)
    score(folder / "embeddings", folder / "scores.parquet", features=fitted, overwrite=True)
    rows = _quality(seen.embedding, fitted)
    probe = None
    if has_labels(train) and has_labels(test):
        known = [batch.columns["label"].to_numpy(zero_copy_only=False) for batch in (learned, seen)]
        found = fit_probe("logistic", learned.embedding, known[0], seed=seed, test_labels=known[1])
        rows = {"accuracy": (found.predict(seen.embedding)[0] == known[1]).astype(np.float64)} | rows
        probe = found.describe()
    measured = Measured(rows, seen.columns["id"].to_pylist(), probe)
    _write(file, measured)
    return measured


def _embed(source: ImageSource, encoder: Encoder, out: Path, hardware: Hardware) -> None:
    embed(
        source,
        encoder,
        out,
        on_error="raise",  # rows must be the same for all encoders
        device=hardware.device,
        precision="32-true",
        workers=None,
    )


def check_alive(table: EmbeddingBatch) -> None:
    """Refuse representations that nothing can be learned from.

    Raises
    ------
    Diverged
        If some are not finite, or all the same.
    """
    H = table.embedding
    if not np.isfinite(H).all():
        n_invalid = int((~np.isfinite(H)).any(axis=1).sum())
        raise Diverged(f"{n_invalid:,} of {len(H):,} representations hold NaN or infinity")
    if (H[:1] == H).all():
        raise Diverged(f"all {len(H):,} representations are the same")


def _quality(H: np.ndarray, features: Path) -> dict[str, np.ndarray]:
    """Return what Q and sparsity say of each row; undefined values are NaN."""
    stored, found = read_stored(features), read_discovered(features)
    scaled = H if stored.scaling is None else apply_scaling(H, *stored.scaling)
    scanned = scan(scaled, found.epsilon, two_sided=stored.settings["signed"])
    size, q = scanned.select(found.indices)
    sigma = np.where(scanned.std > 0, scanned.std, 1.0)
    return {
        "q": q,
        "q_over_sigma": q / sigma,
        "hoyer": hoyer_sparsity(H),
        "zeros": (H == 0).mean(axis=1),
        "n_active": scanned.n_active.astype(np.float64),
        "coverage": np.where(scanned.varies, size > 0, np.nan),
    }


def _write(file: Path, measured: Measured) -> None:
    table = pa.table({"id": measured.ids} | measured.rows)
    metadata = {b"qscore-probe": to_json(measured.probe).encode()}
    with atomic_path(file) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary)


def _read(file: Path) -> Measured:
    try:
        table = pq.read_table(file)
        probe = json.loads(table.schema.metadata[b"qscore-probe"])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise QScoreError(f"{file}: cannot read it; remove it to measure anew") from error
    columns = {name: table.column(name).to_numpy() for name in table.column_names if name != "id"}
    return Measured(columns, table.column("id").to_pylist(), probe)
