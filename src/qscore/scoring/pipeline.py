"""Embedding table in, score table and feature table out; the embeddings are read once."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qscore import __version__
from qscore._files import atomic_path, check_new_table, sha256
from qscore._validate import Epsilon, QScoreError, check_band, check_epsilon, nearest, settle_epsilon
from qscore.core import EPSILON_GRID, discriminative_features
from qscore.kernels import automatic_epsilon
from qscore.scoring.features import read_stored
from qscore.scoring.identifiers import check_identifiers
from qscore.scoring.rescoring import rescore
from qscore.scoring.spill import ROW_VALUES, Block, Scaling, Spill, fit_scaling
from qscore.scoring.summary import ScoreSummary, features_path, summarize_scores
from qscore.scoring.work import FEATURES, SCORES, is_finished, publish, sweep, work_folder
from qscore.tables import (
    EmbeddingTable,
    open_embeddings,
    read_record,
    score_schema,
    write_features,
    write_rows,
)

__all__ = ["score"]

ENGINES = ("local",)
UNIT_NORM = 1e-3


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
    epsilon: Epsilon | None = None,
    lower: float | None = None,
    upper: float | None = None,
    signed: bool | Literal["auto"] = "auto",
    features: str | Path | None = None,
    column: str | None = None,
    engine: str = "local",
    threads: int | None = None,
    overwrite: bool = False,
    resume: bool = True,
) -> ScoreSummary:
    """Score every row of an embedding table.

    Writes ``out`` (the score table) and ``STEM.features.parquet`` beside it (activation rates and D). What a run does
    is kept in a hidden folder beside ``out`` until it ends; after a kill, or a store that failed, the same call goes on
    from there, and writes the same bytes.

    Parameters
    ----------
    embeddings : str or Path
        A table of shape (n, r): Parquet, Arrow, ``.npy``, ``.npz``, ``.pt`` or ``.safetensors``, a directory of such
        shards, or a URI of either. Or a score table, whose rows are scored with another band or another D from what it
        holds, at the epsilon it was made with.
    out : str or Path
        The Parquet file to write, ending in ``.parquet``.
    epsilon : float, "auto" or "paper", default="auto"
        Standard deviations above the row's mean, > 0. ``"auto"`` takes the largest of 4.0, 3.9, ..., 1.5 at which
        95 % of the rows keep a discriminative feature; ``"paper"`` is 4.0, at which narrow or dense representations
        leave most rows without any.
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
    resume : bool, default=True
        Go on with what an unfinished run of the same table and settings left.

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
    signed = "auto" if isinstance(signed, str) else bool(signed)
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise QScoreError(f"threads: expected a positive number, got {threads!r}")
    if features is not None and not (epsilon is lower is upper is None and signed == "auto"):
        raise QScoreError(
            "features: the feature table settles epsilon, lower, upper and signed; give only one or the other"
        )
    sweep(Path(out))
    if _is_score_table(embeddings):
        if not (epsilon is column is None and signed == "auto"):
            raise QScoreError(f"{embeddings} is a score table: epsilon, signed and column need the embeddings")
        return rescore(embeddings, out, lower=lower, upper=upper, features=features, overwrite=overwrite)
    lower, upper = 0.50 if lower is None else lower, 0.95 if upper is None else upper
    check_band(lower, upper)
    inputs = [embeddings] if features is None else [embeddings, features]
    out = check_new_table(out, inputs, overwrite=overwrite)
    table = open_embeddings(embeddings, column=column)
    stored = None if features is None else _stored_fit(features, table)
    asked = stored.epsilon if stored else settle_epsilon("auto" if epsilon is None else epsilon)
    _check_reach(asked, table.n_features)
    fingerprint = {
        "version": __version__,
        "settings": [asked, lower, upper, signed, column, None if features is None else sha256(features)],
        "table": table.fingerprint,
        "parts": len(table.parts),
    }
    with work_folder(out, fingerprint, resume=resume) as folder:
        if not is_finished(folder, out):
            check_new_table(features_path(out), inputs, overwrite=overwrite)
            _score(table, folder, asked, (lower, upper), signed, stored, features, threads)
        publish(folder, out)
    return summarize_scores(out)


def _is_score_table(path: str | Path) -> bool:
    if not (str(path).endswith(".parquet") and Path(path).is_file()):
        return False
    try:
        return bool(read_record(pq.read_schema(path)).get("kind") == "scores")
    except pa.ArrowException:  # damaged: opening it as embeddings says so
        return False


def _score(
    table: EmbeddingTable,
    folder: Path,
    epsilon: float | Literal["auto"],
    band: tuple[float, float],
    signed: bool | Literal["auto"],
    stored: _Fit | None,
    features: str | Path | None,
    threads: int | None,
) -> None:
    """Write both tables into the work folder."""
    scores, fitted = folder / SCORES, folder / FEATURES
    spill = _scanned(folder, table, epsilon, threads, signed if stored is None else stored.scaling)
    if "id" in table.columns:
        check_identifiers(spill.rows, len(table), table.name)
    facts = _facts(spill)
    fit = stored or _fit(spill, epsilon, *band)
    if features is None:
        _write_features(fitted, spill, fit, facts["n_valid"])
    else:
        shutil.copyfile(features, fitted)
    record = {
        "epsilon": fit.epsilon,
        "lower": fit.lower,
        "upper": fit.upper,
        "signed": fit.scaling is not None,
        "automatic": fit.automatic,
        "transductive": features is None,
        "negative": facts["negative"],
        "unit_norm": facts["unit_norm"],
        "features_sha256": sha256(fitted),
        "embeddings": {key: value for key, value in table.record.items() if key != "version"},
    }
    plain = _fit(spill, epsilon, *band, plain=True) if fit.scaling and stored is None else None
    record |= {"plain_epsilon": plain.epsilon} if plain else {}
    _write_scores(scores, spill, fit, plain, record)


def _check_reach(epsilon: float | Literal["auto"], n_features: int) -> None:
    if epsilon != "auto":
        check_epsilon(epsilon, n_features=n_features)
    elif n_features <= 3:
        raise QScoreError(f"epsilon='auto' needs at least 4 features, got {n_features}")


def _scanned(
    folder: Path,
    table: EmbeddingTable,
    epsilon: float | Literal["auto"],
    threads: int | None,
    signed: bool | Literal["auto"] | Scaling | None,
) -> Spill:
    """Scan a table, scaled if it is signed; whether it is may turn out on the way."""
    floor = EPSILON_GRID[-1] if epsilon == "auto" else float(epsilon)
    fitted = folder / "scaling.npz"
    if signed == "auto" and isinstance(table.record.get("nonnegative"), bool):
        signed = not table.record["nonnegative"]
    if signed == "auto":
        spill = Spill(folder, table, floor, None)
        if not fitted.exists() and spill.write(threads, stop_if_negative=True):
            return spill
        signed = True
    scaling = _scaling(fitted, table) if signed is True else signed if isinstance(signed, Scaling) else None
    spill = Spill(folder, table, floor, scaling)
    spill.write(threads, stop_if_negative=False)
    return spill


def _scaling(path: Path, table: EmbeddingTable) -> Scaling:
    """Fit the scaling, or take what an earlier run fitted."""
    if not path.exists():
        scaling = fit_scaling(table)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, center=scaling.center, scale=scaling.scale)
    with np.load(path) as archive:
        return Scaling(archive["center"], archive["scale"])


def _facts(spill: Spill) -> dict[str, Any]:
    """Return what the rows say of the table as a whole."""
    n_valid, negative, unit_norm = 0, False, True
    for rows in spill.rows():
        valid = rows.column("valid").to_numpy(zero_copy_only=False)
        norms = rows.column("l2_norm").to_numpy()[valid]
        n_valid += int(valid.sum())
        negative |= bool(rows.column("negative").true_count)
        unit_norm &= bool((np.abs(norms - 1) < UNIT_NORM).all())
    return {"n_valid": n_valid, "negative": negative, "unit_norm": unit_norm and n_valid > 0}


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
    stored = read_stored(features, table)
    scaling = None if stored.scaling is None else Scaling(*stored.scaling)
    epsilon, lower, upper = (stored.settings[name] for name in ("epsilon", "lower", "upper"))
    return _Fit(epsilon, False, lower, upper, stored.discriminative, scaling)


def _write_features(path: Path, spill: Spill, fit: _Fit, n_valid: int) -> None:
    counts = np.zeros(spill.table.n_features, dtype=np.int64)
    for block in spill.blocks():
        counts += block.scored.at(fit.epsilon).counts
    record = {
        "n": n_valid,
        "epsilon": fit.epsilon,
        "lower": fit.lower,
        "upper": fit.upper,
        "signed": fit.scaling is not None,
    }
    scaling = None if fit.scaling is None else (fit.scaling.center, fit.scaling.scale)
    write_features(path, counts, fit.features, record, scaling)


def _write_scores(out: Path, spill: Spill, fit: _Fit, plain: _Fit | None, record: dict[str, Any]) -> None:
    assert spill.schema is not None  # it has been written
    types = {name: spill.schema.field(name).type for name in ("id", *spill.table.columns)}
    schema = score_schema(types, record, plain=plain is not None)
    write_rows(out, schema, (_score_rows(block, fit, plain, schema) for block in spill.blocks()))


@np.errstate(over="ignore")  # what float32 cannot hold is infinite in the table
def _score_rows(block: Block, fit: _Fit, plain: _Fit | None, schema: pa.Schema) -> pa.RecordBatch:
    found = block.scored.at(fit.epsilon)
    size, q = found.select(fit.features)
    indptr = found.indptr.astype(np.int32)
    values = {
        "q_score": pa.array(q.astype(np.float32), mask=~found.valid),
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
