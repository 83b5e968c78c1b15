"""What scoring a table found, in numbers and in notes."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from qscore._files import sha256
from qscore._validate import QScoreError
from qscore.core import COVERAGE, rank_band
from qscore.tables import iter_scores, read_features, read_scores

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
    rows, _ = read_scores(path, columns)
    return rows, *_features_of(path)


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
    features, record = _features_of(path)
    counts = Counter({name: 0 for name in ("rows", "valid", "constant", "empty", "uncovered")})
    for rows in iter_scores(path, ["n_discriminative", "std", "valid"]):
        valid = rows.column("valid").to_numpy(zero_copy_only=False)
        empty = (rows.column("n_discriminative").to_numpy() == 0) & valid
        constant = (rows.column("std").to_numpy() == 0) & valid
        for name, found in {
            "valid": valid,
            "constant": constant,
            "empty": empty,
            "uncovered": empty & ~constant,
        }.items():
            counts[name] += int(found.sum())
        counts["rows"] += len(rows)
    varied = counts["valid"] - counts["constant"]
    n_discriminative = int(features.column("discriminative").to_numpy().sum())
    start, stop = rank_band(features.num_rows, record["lower"], record["upper"])
    summary = ScoreSummary(
        n=counts["rows"],
        n_features=features.num_rows,
        **{name: record[name] for name in ("epsilon", "automatic", "lower", "upper", "signed", "transductive")},
        n_discriminative=n_discriminative,
        n_dropped=stop - start - n_discriminative,
        n_invalid=counts["rows"] - counts["valid"],
        n_constant=counts["constant"],
        n_empty=counts["empty"],
        coverage=1 - counts["uncovered"] / varied if varied else None,
        quantiles=_quantiles(path, counts["valid"]),
        notes=[],
    )
    return replace(summary, notes=list(_notes(summary, record)))


def _features_of(path: str | Path) -> tuple[pa.Table, dict[str, Any]]:
    """Read the feature table of a score table, and the score table's record."""
    _, record = read_scores(path, [])
    features, _ = read_features(features_path(path))
    if sha256(features_path(path)) != record["features_sha256"]:
        raise QScoreError(f"{features_path(path)} does not belong to {path}; run qscore score again with --overwrite")
    return features, record


def _quantiles(path: str | Path, n: int) -> dict[str, float]:
    """Return exact quantiles of Q in memory that does not grow with the rows: scores are counted by their bits.

    Q is never negative, and such floats order as the integers with their bits do. A first pass counts the upper halves,
    a second the lower halves of those in which a wanted rank lies.
    """
    if not n:
        return {}

    def halves() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows in iter_scores(path, ["q_score"]):
            bits = rows.column("q_score").drop_null().to_numpy().view(np.uint32)
            yield bits >> 16, bits & 0xFFFF

    upper = np.zeros(2**16, dtype=np.int64)
    for high, _ in halves():
        upper += np.bincount(high, minlength=2**16)
    places = {q: q * (n - 1) for q in QUANTILES}
    ranks = sorted({int(f(place)) for place in places.values() for f in (np.floor, np.ceil)})
    below = np.concatenate([[0], np.cumsum(upper)])
    bins = {rank: int(np.searchsorted(below, rank, side="right")) - 1 for rank in ranks}
    lower = {bin_: np.zeros(2**16, dtype=np.int64) for bin_ in bins.values()}
    for high, low in halves():
        for bin_, found in lower.items():
            found += np.bincount(low[high == bin_], minlength=2**16)
    values = {}
    for rank, bin_ in bins.items():
        within = int(np.searchsorted(np.cumsum(lower[bin_]), rank - below[bin_], side="right"))
        values[rank] = float(np.array((bin_ << 16) | within, dtype=np.uint32).view(np.float32))
    return {
        f"{q:g}": values[int(place)] + (place - int(place)) * (values[int(np.ceil(place))] - values[int(place)])
        for q, place in places.items()
    }


def _notes(summary: ScoreSummary, record: dict[str, Any]) -> Iterator[str]:
    n_valid = summary.n - summary.n_invalid
    if record["negative"] and not summary.signed:
        yield "the embeddings have negative values and were scored one-sided, as asked or as their metadata says"
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
