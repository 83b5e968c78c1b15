"""Embedding table in, score table and feature table out; the embeddings are read once."""

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qscore._files import atomic_path, check_output, sha256
from qscore._progress import progress
from qscore._validate import QScoreError, check_band, check_epsilon, nearest
from qscore.core import COVERAGE, EPSILON_GRID, discriminative_features, rank_band
from qscore.kernels import Scan, automatic_epsilon, scan
from qscore.tables import (
    EmbeddingTable,
    open_embeddings,
    read_features,
    read_scores,
    score_schema,
    write_features,
)

__all__ = ["ScoreSummary", "features_path", "score", "summarize_scores"]

ENGINES = ("local",)
ROW_VALUES = ("mean", "std", "max", "l1_norm", "l2_norm")
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class ScoreSummary:
    """What scoring a table found."""

    n: int
    """Rows."""
    n_features: int
    """r."""
    epsilon: float
    """The epsilon in force."""
    automatic: bool
    """Whether it was chosen automatically."""
    lower: float
    upper: float
    """D's band."""
    transductive: bool
    """Whether D was found on the very rows that are scored."""
    n_discriminative: int
    """|D|."""
    n_dropped: int
    """Features inside the band that never fire, and so are not in D."""
    n_invalid: int
    """Rows with NaN or infinity."""
    n_constant: int
    """Rows whose values are all equal."""
    n_empty: int
    """Valid rows without a highly active discriminative feature; they score 0."""
    coverage: float
    """Share of the valid, non-constant rows that keep one."""
    quantiles: dict[str, float]
    """Quantiles of Q over the valid rows."""
    notes: list[str]
    """Warnings, each with its cure."""


@dataclass(frozen=True)
class _Fit:
    """What scoring needs to know of the fit rows."""

    epsilon: float
    automatic: bool
    lower: float
    upper: float
    features: np.ndarray


def features_path(scores: str | Path) -> Path:
    """Return where the feature table of a score table lies: ``STEM.features.parquet`` beside it."""
    return Path(scores).with_suffix(".features.parquet")


def score(
    embeddings: str | Path,
    out: str | Path,
    *,
    epsilon: float | Literal["auto"] = 4.0,
    lower: float = 0.50,
    upper: float = 0.95,
    features: str | Path | None = None,
    engine: str = "local",
    threads: int | None = None,
    overwrite: bool = False,
) -> ScoreSummary:
    """Score every row of an embedding table.

    Writes ``out`` (the score table) and ``STEM.features.parquet`` beside it (activation rates and D).

    Parameters
    ----------
    embeddings : str or Path
        A Parquet file, a directory of Parquet shards, or a ``.npy`` matrix of shape (n, r).
    out : str or Path
        The Parquet file to write.
    epsilon : float or "auto", default=4.0
        Standard deviations above the row's mean, > 0. ``"auto"`` takes the largest of 4.0, 3.9, ..., 1.5 at which
        95 % of the rows keep a discriminative feature.
    lower, upper : float, default=0.50, 0.95
        D's band, in quantiles of the activation rate's rank.
    features : str or Path, optional
        A feature table from an earlier run: its D, epsilon and band are used, and nothing is fitted.
    engine : {"local"}
        Where the work runs.
    threads : int, optional
        Threads of the scan; by default one per core. The result does not depend on it.
    overwrite : bool, default=False
        Replace an existing output.

    Returns
    -------
    ScoreSummary
        Counts, coverage, quantiles and warnings.

    Raises
    ------
    QScoreError
        If the table cannot be read, the output exists, a parameter is out of range, or r is too small for epsilon.

    Examples
    --------
    >>> import numpy as np, tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> H = np.random.default_rng(0).gamma(0.2, size=(500, 64)).astype(np.float32)
    >>> np.save(folder / "embeddings.npy", H)
    >>> summary = score(folder / "embeddings.npy", folder / "scores.parquet", epsilon=2.0)
    >>> summary.n, summary.n_discriminative, sorted(path.name for path in folder.iterdir())
    (500, 29, ['embeddings.npy', 'scores.features.parquet', 'scores.parquet'])
    """
    if engine not in ENGINES:
        raise QScoreError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}{nearest(engine, ENGINES)}")
    check_band(lower, upper)
    out = check_output(out, overwrite=overwrite)
    check_output(features_path(out), overwrite=overwrite)
    table = open_embeddings(embeddings)
    fit = None if features is None else _stored_fit(features, table)
    asked = fit.epsilon if fit else epsilon
    _check_reach(asked, table.n_features)

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        scans = _Scans(Path(folder) / "scans.arrow", table)
        floor = EPSILON_GRID[-1] if asked == "auto" else float(asked)
        scans.write(floor, threads)
        stored = Path(folder) / "features.parquet"
        if fit is None:
            fit = _fit(scans, asked, lower, upper)
            _write_features(stored, scans, fit)
        else:
            shutil.copyfile(str(features), stored)
        record = {
            "epsilon": fit.epsilon,
            "lower": fit.lower,
            "upper": fit.upper,
            "signed": False,
            "features_sha256": sha256(stored),
            "transductive": features is None,
            "automatic": fit.automatic,
            "negative": scans.negative,
            "embeddings": {key: value for key, value in table.record.items() if key != "version"},
        }
        _write_scores(out, scans, fit, record)
        stored.replace(features_path(out))
    return summarize_scores(out)


def _check_reach(epsilon: float | Literal["auto"], n_features: int) -> None:
    if epsilon != "auto":
        check_epsilon(epsilon, n_features=n_features)
    elif n_features <= 3:
        raise QScoreError(f"epsilon='auto' needs at least 4 features, got {n_features}")


class _Scans:
    """The scans of a table's rows in a temporary Arrow file, so that any number of rows fits in memory."""

    def __init__(self, path: Path, table: EmbeddingTable) -> None:
        self.path = path
        self.table = table
        self.counts = np.zeros(table.n_features, dtype=np.int64)
        self.n_valid = 0
        self.negative = False

    def write(self, epsilon: float, threads: int | None) -> None:
        """Scan every row at ``epsilon``."""
        self.epsilon = epsilon
        with progress("score", len(self.table), "rows") as advance:
            writer = None
            for batch in self.table.batches():
                found = scan(batch.embedding, epsilon, threads=threads)
                self.counts += found.counts
                self.n_valid += int(found.valid.sum())
                self.negative |= bool((batch.embedding < 0).any())
                columns = {
                    **batch.columns,
                    **{name: getattr(found, name) for name in ROW_VALUES},
                    "valid": found.valid,
                    "active": pa.LargeListArray.from_arrays(found.indptr, found.active),
                    "deviation": pa.LargeListArray.from_arrays(found.indptr, found.deviation),
                }
                rows = pa.record_batch(columns)
                if writer is None:
                    writer = pa.ipc.new_file(str(self.path), rows.schema)
                writer.write_batch(rows)
                advance(len(batch))
            if writer is not None:
                writer.close()

    def blocks(self) -> Iterator[tuple[Scan, pa.RecordBatch]]:
        """Give the scans back, batch by batch, with the rows' own columns."""
        with pa.memory_map(str(self.path)) as source:
            reader = pa.ipc.open_file(source)
            for k in range(reader.num_record_batches):
                rows = reader.get_batch(k)
                indptr = rows.column("active").offsets.to_numpy()
                active = rows.column("active").values.to_numpy()
                found = Scan(
                    **{name: rows.column(name).to_numpy() for name in ROW_VALUES},
                    indptr=indptr,
                    active=active,
                    deviation=rows.column("deviation").values.to_numpy(),
                    counts=np.bincount(active, minlength=len(self.counts)),
                    valid=rows.column("valid").to_numpy(zero_copy_only=False),
                    epsilon=self.epsilon,
                )
                yield found, rows

    def __iter__(self) -> Iterator[Scan]:
        return (found for found, _ in self.blocks())


def _fit(scans: _Scans, epsilon: float | Literal["auto"], lower: float, upper: float) -> _Fit:
    """Find epsilon and D from the scans of the fit rows."""
    counts, chosen = scans.counts, scans.epsilon
    if epsilon == "auto":
        chosen, _ = automatic_epsilon(lambda: scans, len(counts), lower, upper)
        counts = np.sum([found.at(chosen).counts for found in scans], axis=0)
        scans.counts = counts
    return _Fit(chosen, epsilon == "auto", lower, upper, discriminative_features(counts, lower, upper))


def _stored_fit(features: str | Path, table: EmbeddingTable) -> _Fit:
    stored, record = read_features(features)
    if stored.num_rows != table.n_features:
        raise QScoreError(
            f"{features}: has {stored.num_rows} features, and {table.name} has {table.n_features}; "
            "both must come from the same encoder"
        )
    D = np.flatnonzero(stored.column("discriminative").to_numpy())
    return _Fit(record["epsilon"], False, record["lower"], record["upper"], D)


def _write_features(path: Path, scans: _Scans, fit: _Fit) -> None:
    record = {
        "n": scans.n_valid,
        "epsilon": fit.epsilon,
        "lower": fit.lower,
        "upper": fit.upper,
        "signed": False,
        "scaling": None,
    }
    write_features(path, scans.counts, fit.features, record)


def _write_scores(out: Path, scans: _Scans, fit: _Fit, record: dict[str, Any]) -> None:
    with atomic_path(out) as temporary:
        writer = None
        for found, rows in scans.blocks():
            if writer is None:
                types = {name: rows.schema.field(name).type for name in ("id", *scans.table.columns)}
                schema = score_schema(types, record)
                writer = pq.ParquetWriter(temporary, schema)
            writer.write_batch(_score_rows(found.at(fit.epsilon), rows, fit.features, schema))
        if writer is not None:
            writer.close()


def _score_rows(found: Scan, rows: pa.RecordBatch, features: np.ndarray, schema: pa.Schema) -> pa.RecordBatch:
    size, _ = found.select(features)
    indptr = found.indptr.astype(np.int32)
    values = {
        "q_score": pa.array(found.q_score(features).astype(np.float32), mask=~found.valid),
        "n_active": found.n_active.astype(np.int32),
        "n_discriminative": size.astype(np.int32),
        **{name: getattr(found, name).astype(np.float32) for name in ROW_VALUES},
        "active": pa.ListArray.from_arrays(indptr, found.active),
        "deviation": pa.ListArray.from_arrays(indptr, found.deviation.astype(np.float32)),
        "valid": found.valid,
    }
    columns = [values[name] if name in values else rows.column(name) for name in schema.names]
    return pa.record_batch(columns, schema=schema)


def summarize_scores(path: str | Path) -> ScoreSummary:
    """Summarize a score table.

    Parameters
    ----------
    path : str or Path
        A score table, its feature table beside it.

    Returns
    -------
    ScoreSummary
        Counts, coverage, quantiles and warnings.

    Raises
    ------
    QScoreError
        If either table is missing or damaged.
    """
    rows, record = read_scores(path, ["q_score", "n_discriminative", "std", "valid"])
    features, _ = read_features(features_path(path))
    valid = rows.column("valid").to_numpy()
    empty = (rows.column("n_discriminative").to_numpy() == 0) & valid
    constant = (rows.column("std").to_numpy() == 0) & valid
    varied = int(valid.sum() - constant.sum())
    q = rows.column("q_score").to_numpy()[valid]
    quantiles = np.quantile(q, QUANTILES) if len(q) else np.full(len(QUANTILES), np.nan)
    n_discriminative = int(features.column("discriminative").to_numpy().sum())
    start, stop = rank_band(features.num_rows, record["lower"], record["upper"])
    summary = ScoreSummary(
        n=rows.num_rows,
        n_features=features.num_rows,
        epsilon=record["epsilon"],
        automatic=record["automatic"],
        lower=record["lower"],
        upper=record["upper"],
        transductive=record["transductive"],
        n_discriminative=n_discriminative,
        n_dropped=stop - start - n_discriminative,
        n_invalid=int((~valid).sum()),
        n_constant=int(constant.sum()),
        n_empty=int(empty.sum()),
        coverage=1 - int((empty & ~constant).sum()) / max(varied, 1),
        quantiles={f"{q:g}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
        notes=[],
    )
    return dataclasses.replace(summary, notes=list(_notes(summary, record)))


def _notes(summary: ScoreSummary, record: dict[str, Any]) -> Iterator[str]:
    n_valid = summary.n - summary.n_invalid
    if record["negative"]:
        yield "the embeddings have negative values and were scored one-sided"
    if summary.n_empty > 0.5 * n_valid:
        cure = "" if summary.automatic else "; --epsilon auto chooses a smaller one"
        yield (
            f"{summary.n_empty:,} of {n_valid:,} rows have no highly active discriminative feature at epsilon "
            f"{summary.epsilon:g}, and score 0{cure}"
        )
    if summary.automatic and summary.coverage < COVERAGE:
        yield (
            f"no epsilon from 4.0 to 1.5 leaves {COVERAGE:.0%} of the rows a discriminative feature; "
            f"1.5 leaves {summary.coverage:.1%}"
        )
    if summary.n_invalid:
        yield f"{summary.n_invalid:,} rows hold NaN or infinity: they have no score and count towards nothing"
