"""What scoring a table found, in numbers and in notes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from qscore._files import sha256
from qscore._validate import QScoreError
from qscore.core import COVERAGE, rank_band
from qscore.tables import read_features, read_scores

__all__ = ["ScoreSummary", "features_path", "read_scored", "summarize_scores"]

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
    signed: bool
    """Whether rows were scaled and thresholded on both sides."""
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
    coverage: float | None
    """Share of the valid, non-constant rows that keep one; None where there are no such rows."""
    quantiles: dict[str, float]
    """Quantiles of Q over the valid rows; empty where there are none."""
    notes: list[str]
    """Warnings, each with its cure."""


def features_path(scores: str | Path) -> Path:
    """Return where the feature table of a score table lies: ``STEM.features.parquet`` beside it."""
    return Path(scores).with_suffix(".features.parquet")


def read_scored(path: str | Path, columns: list[str] | None = None) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
    """Read a score table, its feature table, and the score table's record.

    Raises
    ------
    QScoreError
        If either is missing or damaged, or they do not belong together.
    """
    rows, record = read_scores(path, columns)
    features, _ = read_features(features_path(path))
    if sha256(features_path(path)) != record["features_sha256"]:
        raise QScoreError(f"{features_path(path)} does not belong to {path}; run qscore score again with --overwrite")
    return rows, features, record


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
        If either table is missing or damaged, or they do not belong together.
    """
    rows, features, record = read_scored(path, ["q_score", "n_discriminative", "std", "valid"])
    valid = rows.column("valid").to_numpy()
    empty = (rows.column("n_discriminative").to_numpy() == 0) & valid
    constant = (rows.column("std").to_numpy() == 0) & valid
    varied = int(valid.sum() - constant.sum())
    scores = rows.column("q_score").to_numpy()[valid]
    n_discriminative = int(features.column("discriminative").to_numpy().sum())
    start, stop = rank_band(features.num_rows, record["lower"], record["upper"])
    summary = ScoreSummary(
        n=rows.num_rows,
        n_features=features.num_rows,
        **{name: record[name] for name in ("epsilon", "automatic", "lower", "upper", "signed", "transductive")},
        n_discriminative=n_discriminative,
        n_dropped=stop - start - n_discriminative,
        n_invalid=int((~valid).sum()),
        n_constant=int(constant.sum()),
        n_empty=int(empty.sum()),
        coverage=1 - int((empty & ~constant).sum()) / varied if varied else None,
        quantiles={f"{q:g}": float(np.quantile(scores, q)) for q in QUANTILES} if len(scores) else {},
        notes=[],
    )
    return replace(summary, notes=list(_notes(summary, record)))


def _notes(summary: ScoreSummary, record: dict[str, Any]) -> Iterator[str]:
    n_valid = summary.n - summary.n_invalid
    if record["negative"] and not summary.signed:
        yield "the embeddings have negative values and were scored one-sided, as asked"
    if record["unit_norm"]:
        yield "all rows have unit L2 norm, as the normalised outputs of contrastive models have: norms tell nothing"
    if summary.n_empty > 0.5 * n_valid:
        cure = "; --epsilon auto chooses a smaller one" if summary.transductive and not summary.automatic else ""
        yield (
            f"{summary.n_empty:,} of {n_valid:,} rows have no highly active discriminative feature at epsilon "
            f"{summary.epsilon:g}, and score 0{cure}"
        )
    if summary.automatic and (summary.coverage or 0.0) < COVERAGE:
        yield (
            f"no epsilon from 4.0 to 1.5 leaves {COVERAGE:.0%} of the varied rows a discriminative feature; "
            f"1.5 leaves {summary.coverage or 0.0:.1%}"
        )
    if summary.n_invalid:
        yield f"{summary.n_invalid:,} rows hold NaN or infinity: they have no score and count towards nothing"
