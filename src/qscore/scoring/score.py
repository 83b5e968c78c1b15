"""Embedding table in, score table and feature table out; the embeddings are read once."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qscore._files import atomic_path, check_output, sha256
from qscore._validate import QScoreError, check_band, check_epsilon, nearest
from qscore.core import EPSILON_GRID, discriminative_features
from qscore.kernels import automatic_epsilon
from qscore.scoring.spill import ROW_VALUES, Block, Scaling, Spill, fit_scaling
from qscore.scoring.summary import ScoreSummary, features_path, summarize_scores
from qscore.tables import EmbeddingTable, open_embeddings, read_features, score_schema, write_features

__all__ = ["score"]

ENGINES = ("local",)


@dataclass(frozen=True)
class _Fit:
    """What scoring needs to know of the fit rows."""

    epsilon: float
    automatic: bool
    lower: float
    upper: float
    features: np.ndarray
    scaling: Scaling | None


def score(
    embeddings: str | Path,
    out: str | Path,
    *,
    epsilon: float | Literal["auto"] | None = None,
    lower: float | None = None,
    upper: float | None = None,
    signed: bool | Literal["auto"] = "auto",
    features: str | Path | None = None,
    column: str | None = None,
    engine: str = "local",
    threads: int | None = None,
    overwrite: bool = False,
) -> ScoreSummary:
    """Score every row of an embedding table.

    Writes ``out`` (the score table) and ``STEM.features.parquet`` beside it (activation rates and D).

    Parameters
    ----------
    embeddings : str or Path
        A table of shape (n, r): Parquet, Arrow, ``.npy``, ``.npz``, ``.pt`` or ``.safetensors``, a directory of such
        shards, or a URI of either.
    out : str or Path
        The Parquet file to write, ending in ``.parquet``.
    epsilon : float or "auto", default=4.0
        Standard deviations above the row's mean, > 0. ``"auto"`` takes the largest of 4.0, 3.9, ..., 1.5 at which
        95 % of the rows keep a discriminative feature.
    lower, upper : float, default=0.50, 0.95
        D's band, in quantiles of the activation rate's rank.
    signed : bool or "auto", default="auto"
        Whether features may be negative. Signed tables are scaled by each feature's median and MAD, and thresholded on
        both sides; the plain one-sided score stands beside theirs as ``q_score_plain``. ``"auto"``: as the table's
        metadata says, or else signed if a valid row has a negative value.
    features : str or Path, optional
        A feature table from an earlier run: its D, epsilon, band and scaling are used, and nothing is fitted.
    column : str, optional
        The column of vectors, where there are several.
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
    if signed not in (True, False, "auto"):
        raise QScoreError(f"signed: expected True, False or 'auto', got {signed!r}")
    if features is not None and not (epsilon is lower is upper is None and signed == "auto"):
        raise QScoreError(
            "features: the feature table settles epsilon, lower, upper and signed; give only one or the other"
        )
    lower, upper = 0.50 if lower is None else lower, 0.95 if upper is None else upper
    check_band(lower, upper)
    out = _check_out(out, embeddings, features, overwrite=overwrite)
    table = open_embeddings(embeddings, column=column)
    stored = None if features is None else _stored_fit(features, table)
    asked = stored.epsilon if stored else 4.0 if epsilon is None else epsilon
    _check_reach(asked, table.n_features)
    with _work_folder(out) as folder:
        file = folder / "scans.arrow"
        spill = _scanned(file, table, asked, threads, signed if stored is None else stored.scaling)
        fit = stored or _fit(spill, asked, lower, upper)
        fitted = folder / "features.parquet"
        if features is None:
            _write_features(fitted, spill, fit)
        else:
            shutil.copyfile(features, fitted)
        record = {
            "epsilon": fit.epsilon,
            "lower": fit.lower,
            "upper": fit.upper,
            "signed": fit.scaling is not None,
            "automatic": fit.automatic,
            "transductive": features is None,
            "negative": spill.negative,
            "unit_norm": spill.unit_norm and spill.n_valid > 0,
            "features_sha256": sha256(fitted),
            "embeddings": {key: value for key, value in table.record.items() if key != "version"},
        }
        plain = _fit(spill, asked, lower, upper, plain=True) if fit.scaling and stored is None else None
        scores = folder / "scores.parquet"
        _write_scores(scores, spill, fit, plain, record)
        # The feature table first: a score table without its own is refused, and the same command repairs it.
        fitted.replace(features_path(out))
        scores.replace(out)
    return summarize_scores(out)


def _check_out(out: str | Path, embeddings: str | Path, features: str | Path | None, *, overwrite: bool) -> Path:
    out = check_output(out, overwrite=overwrite)
    if out.suffix != ".parquet":
        raise QScoreError(f"{out}: expected a name that ends in .parquet")
    check_output(features_path(out), overwrite=overwrite)
    source = Path(embeddings).resolve()
    for written in (out.resolve(), features_path(out).resolve()):
        if written == source or source in written.parents:
            raise QScoreError(f"{out} would be written into the embedding table itself; choose another place")
        if features is not None and written == Path(features).resolve():
            raise QScoreError(f"{out} would overwrite the feature table {features}; choose another name")
    return out


def _check_reach(epsilon: float | Literal["auto"], n_features: int) -> None:
    if epsilon != "auto":
        check_epsilon(epsilon, n_features=n_features)
    elif n_features <= 3:
        raise QScoreError(f"epsilon='auto' needs at least 4 features, got {n_features}")


class _work_folder(tempfile.TemporaryDirectory[str]):  # noqa: N801 - a context manager, used like a function
    """A temporary folder beside the output, on the same disk; failures to write become one clear line."""

    def __init__(self, out: Path) -> None:
        self.out = out
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            super().__init__(prefix=f".{out.name}.", dir=out.parent)
        except OSError as error:
            raise QScoreError(f"cannot write {out}: {error.strerror or error}") from error

    def __enter__(self) -> Path:  # type: ignore[override]
        return Path(super().__enter__())

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        super().__exit__(kind, error, traceback)
        if isinstance(error, OSError):
            raise QScoreError(f"cannot write {self.out}: {error.strerror or error}") from error


def _scanned(
    file: Path,
    table: EmbeddingTable,
    epsilon: float | Literal["auto"],
    threads: int | None,
    signed: bool | Literal["auto"] | Scaling | None,
) -> Spill:
    """Scan a table, scaled if it is signed; whether it is may turn out on the way."""
    floor = EPSILON_GRID[-1] if epsilon == "auto" else float(epsilon)
    if signed == "auto" and isinstance(table.record.get("nonnegative"), bool):
        signed = not table.record["nonnegative"]
    if signed == "auto":
        spill = Spill(file, table, floor, None)
        spill.write(threads, stop_if_negative=True)
        if not spill.negative:
            return spill
        signed = True
    scaling = fit_scaling(table) if signed is True else signed if isinstance(signed, Scaling) else None
    spill = Spill(file, table, floor, scaling)
    spill.write(threads, stop_if_negative=False)
    return spill


def _fit(spill: Spill, epsilon: float | Literal["auto"], lower: float, upper: float, *, plain: bool = False) -> _Fit:
    """Find epsilon and D from the scans of the fit rows."""

    def scans() -> Any:
        return (block.plain if plain else block.scored for block in spill.blocks())

    r, chosen = spill.table.n_features, spill.epsilon
    if epsilon == "auto":
        chosen, _ = automatic_epsilon(scans, r, lower, upper)
    counts = sum((found.at(chosen).counts for found in scans()), np.zeros(r, dtype=np.int64))
    D = discriminative_features(counts, lower, upper)
    return _Fit(chosen, epsilon == "auto", lower, upper, D, None if plain else spill.scaling)


def _stored_fit(features: str | Path, table: EmbeddingTable) -> _Fit:
    stored, record = read_features(features)
    if stored.num_rows != table.n_features:
        raise QScoreError(
            f"{features}: has {stored.num_rows} features, and {table.name} has {table.n_features}; "
            "both must come from the same encoder"
        )
    D = np.flatnonzero(stored.column("discriminative").to_numpy())
    scaling = None
    if record["signed"]:
        scaling = Scaling(stored.column("center").to_numpy(), stored.column("scale").to_numpy())
    return _Fit(record["epsilon"], False, record["lower"], record["upper"], D, scaling)


def _write_features(path: Path, spill: Spill, fit: _Fit) -> None:
    counts = np.zeros(spill.table.n_features, dtype=np.int64)
    for block in spill.blocks():
        counts += block.scored.at(fit.epsilon).counts
    record = {
        "n": spill.n_valid,
        "epsilon": fit.epsilon,
        "lower": fit.lower,
        "upper": fit.upper,
        "signed": fit.scaling is not None,
    }
    scaling = None if fit.scaling is None else (fit.scaling.center, fit.scaling.scale)
    write_features(path, counts, fit.features, record, scaling)


def _write_scores(out: Path, spill: Spill, fit: _Fit, plain: _Fit | None, record: dict[str, Any]) -> None:
    with atomic_path(out) as temporary:
        writer = None
        for block in spill.blocks():
            if writer is None:
                types = {name: block.rows.schema.field(name).type for name in ("id", *spill.table.columns)}
                schema = score_schema(types, record, plain=plain is not None)
                writer = pq.ParquetWriter(temporary, schema)
            writer.write_batch(_score_rows(block, fit, plain, schema))
        if writer is not None:
            writer.close()


def _score_rows(block: Block, fit: _Fit, plain: _Fit | None, schema: pa.Schema) -> pa.RecordBatch:
    found = block.scored.at(fit.epsilon)
    size, _ = found.select(fit.features)
    indptr = found.indptr.astype(np.int32)
    values = {
        "q_score": pa.array(found.q_score(fit.features).astype(np.float32), mask=~found.valid),
        "n_active": found.n_active.astype(np.int32),
        "n_discriminative": size.astype(np.int32),
        **{name: getattr(block.plain, name).astype(np.float32) for name in ROW_VALUES},
        "active": pa.ListArray.from_arrays(indptr, found.active),
        "deviation": pa.ListArray.from_arrays(indptr, found.deviation.astype(np.float32)),
        "valid": found.valid,
    }
    if plain is not None:
        one_sided = block.plain.at(plain.epsilon).q_score(plain.features)
        values["q_score_plain"] = pa.array(one_sided.astype(np.float32), mask=~found.valid)
    columns = [values[name] if name in values else block.rows.column(name) for name in schema.names]
    return pa.record_batch(columns, schema=schema)
