"""A score table in, the score table of another D out, without the embeddings."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from qscore._files import check_new_table, sha256
from qscore._progress import progress
from qscore._validate import QScoreError, check_band
from qscore.core import discriminative_features
from qscore.kernels import Scan
from qscore.scoring.features import StoredFeatures, read_stored
from qscore.scoring.spill import ROW_VALUES
from qscore.scoring.summary import ScoreSummary, features_path, read_scored, summarize_scores
from qscore.scoring.work import FEATURES, SCORES, is_finished, publish, work_folder
from qscore.tables import iter_scores, score_schema, write_features, write_rows

__all__ = ["rescore"]


def rescore(
    scores: str | Path,
    out: str | Path,
    *,
    lower: float | None = None,
    upper: float | None = None,
    features: str | Path | None = None,
    overwrite: bool = False,
) -> ScoreSummary:
    """Score the rows of a score table with another band, or another D, without reading their embeddings.

    The table holds the highly activating features of each row and their deviations, which is all that Q needs. They are
    stored as float32: Q differs from that of a run over the embeddings by its rounding, below 1e-6 of its value. The
    plain one-sided score of a signed table is left out: what it is made of is not in the table.

    Parameters
    ----------
    scores : str or Path
        A score table of n rows, its feature table beside it.
    out : str or Path
        The score table to write, ending in ``.parquet``; its feature table goes beside it.
    lower, upper : float, optional
        D's new band; by default the table's own.
    features : str or Path, optional
        A feature table whose D is used instead, of the same width, epsilon, sidedness and scaling.
    overwrite : bool, default=False
        Replace an existing output.

    Returns
    -------
    ScoreSummary
        Counts, coverage, quantiles and warnings.

    Raises
    ------
    QScoreError
        If a table cannot be read, the output exists or is an input, the band is out of range, or the feature table was
        made at another epsilon, or of other features.

    Examples
    --------
    >>> import qscore, tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> H = np.random.default_rng(0).gamma(0.2, size=(500, 64)).astype(np.float32)
    >>> np.save(folder / "embeddings.npy", H)
    >>> _ = qscore.score(folder / "embeddings.npy", folder / "scores.parquet", epsilon=2.0)
    >>> rescore(folder / "scores.parquet", folder / "wide.parquet", lower=0.25).n_discriminative
    45
    """
    if features is not None and not (lower is upper is None):
        raise QScoreError("features: the feature table settles lower and upper; give only one or the other")
    own = features_path(scores)
    inputs = [scores, own] if features is None else [scores, own, features]
    out = check_new_table(out, inputs, overwrite=overwrite)
    _, _, record = read_scored(scores, [])
    stored = read_stored(own if features is None else features)
    if features is None:
        lower = record["lower"] if lower is None else lower
        upper = record["upper"] if upper is None else upper
        check_band(lower, upper)
        band = {"lower": lower, "upper": upper}
        D = discriminative_features(stored.counts, lower, upper)
    else:
        _check_same_scale(read_stored(own), stored)
        band = {name: stored.settings[name] for name in ("lower", "upper")}
        D = stored.discriminative
    fingerprint = {"scores": sha256(scores), "features": sha256(own if features is None else features), **band}
    with work_folder(out, fingerprint, resume=True) as folder:
        if not is_finished(folder, out):
            check_new_table(features_path(out), inputs, overwrite=overwrite)
            if features is None:
                settings = {**stored.notes, "n": stored.n, **stored.settings, **band}
                write_features(folder / FEATURES, stored.counts, D, settings, stored.scaling)
            else:
                shutil.copyfile(features, folder / FEATURES)
            transductive = record["transductive"] and features is None
            new = {**record, **band, "transductive": transductive, "features_sha256": sha256(folder / FEATURES)}
            types = {field.name: field.type for field in next(iter_scores(scores)).schema}
            schema = score_schema(types, {key: value for key, value in new.items() if key not in ("version", "kind")})
            write_rows(folder / SCORES, schema, _rescored(scores, schema, record, D, len(stored.counts)))
        publish(folder, out)
    return summarize_scores(out)


def _check_same_scale(own: StoredFeatures, other: StoredFeatures) -> None:
    """Refuse a D of other activations than the score table holds."""
    for what, a, b in (
        ("features", len(own.counts), len(other.counts)),
        *((name, own.settings[name], other.settings[name]) for name in ("epsilon", "signed")),
    ):
        if a != b:
            raise QScoreError(
                f"{other.path}: {what} is {b}, and the score table was made with {a}; score the embeddings instead"
            )
    if own.scaling and other.scaling and not np.array_equal(own.scaling, other.scaling):
        raise QScoreError(f"{other.path}: scaled otherwise than the score table; score the embeddings instead")


def _rescored(
    scores: str | Path, schema: pa.Schema, record: dict[str, Any], D: np.ndarray, n_features: int
) -> Iterator[pa.RecordBatch]:
    with progress("rescore", None, "rows") as advance:
        for rows in iter_scores(scores):
            active = rows.column("active")
            found = Scan(
                **{name: rows.column(name).to_numpy() for name in ROW_VALUES},
                indptr=active.offsets.to_numpy() - active.offsets[0].as_py(),
                active=active.flatten().to_numpy(),
                deviation=rows.column("deviation").flatten().to_numpy().astype(np.float64),
                counts=np.zeros(n_features, dtype=np.int64),
                valid=rows.column("valid").to_numpy(zero_copy_only=False),
                epsilon=record["epsilon"],
                two_sided=record["signed"],
            )
            size, q = found.select(D)
            new = {
                "q_score": pa.array(q.astype(np.float32), mask=~found.valid),
                "n_discriminative": size.astype(np.int32),
            }
            columns = [new[name] if name in new else rows.column(name) for name in schema.names]
            yield pa.record_batch(columns, schema=schema)
            advance(len(rows))
