"""What a feature table alone is good for: tables of several days become one, and a table becomes a scorer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qscore._files import check_new_table, sha256
from qscore._progress import progress
from qscore._validate import QScoreError
from qscore.core import apply_scaling, discriminative_features
from qscore.kernels import scan
from qscore.tables import EmbeddingTable, open_embeddings, read_features, write_features

if TYPE_CHECKING:
    from qscore.estimator import QScorer

__all__ = ["MergeSummary", "StoredFeatures", "count_features", "load_scorer", "merge_features", "read_stored"]


@dataclass(frozen=True)
class MergeSummary:
    """What merging feature tables gave."""

    n_tables: int
    """Tables merged."""
    n: int
    """Valid rows counted in all of them."""
    n_features: int
    """r."""
    n_discriminative: int
    """|D|."""


@dataclass(frozen=True)
class StoredFeatures:
    """A feature table, read."""

    path: str
    counts: np.ndarray
    """(r,) rows in which each feature is highly active."""
    discriminative: np.ndarray
    """(k,) D, ascending."""
    n: int
    """Valid rows counted."""
    settings: dict[str, Any]
    """``epsilon``, ``lower``, ``upper`` and ``signed``: what must be the same for counts to add up."""
    scaling: tuple[np.ndarray, np.ndarray] | None
    """Centre and scale of each feature, where rows are signed."""
    notes: dict[str, Any]
    """Whatever else the table says of itself."""


def merge_features(paths: Sequence[str | Path], out: str | Path, *, overwrite: bool = False) -> MergeSummary:
    """Merge the feature tables of different rows, such as different days', into the table of all of them.

    Counts and numbers of rows add; ranks and the discriminative features are found anew. The result is exactly the
    table of a run over all rows, in whatever order and groups they are merged.

    Parameters
    ----------
    paths : sequence of str or Path
        Feature tables, as :func:`qscore.score` writes them, of rows that do not overlap. They must agree in width,
        epsilon, lower, upper and signed, and those of signed rows in the scaling, bit for bit.
    out : str or Path
        The feature table to write, ending in ``.parquet``.
    overwrite : bool, default=False
        Replace an existing output.

    Returns
    -------
    MergeSummary
        Tables, rows and features.

    Raises
    ------
    QScoreError
        If a table cannot be read or comes twice, two of them differ in what they must agree in (which is named), or
        the output exists or is an input.

    Examples
    --------
    >>> import qscore, tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> H = np.random.default_rng(0).gamma(0.2, size=(500, 64)).astype(np.float32)
    >>> for name, rows in {"monday": H[:200], "tuesday": H[200:]}.items():
    ...     np.save(folder / f"{name}.npy", rows)
    ...     _ = qscore.score(folder / f"{name}.npy", folder / f"{name}.parquet", epsilon=2.0)
    >>> merge_features(sorted(folder.glob("*.features.parquet")), folder / "all.parquet")
    MergeSummary(n_tables=2, n=500, n_features=64, n_discriminative=29)
    """
    if not paths:
        raise QScoreError("expected feature tables to merge, got none")
    out = check_new_table(out, paths, overwrite=overwrite)
    _check_distinct(paths)
    first = read_stored(paths[0])
    counts, n, notes = first.counts.copy(), first.n, first.notes
    for path in paths[1:]:
        other = read_stored(path)
        _check_agreement(first, other)
        counts += other.counts
        n += other.n
        notes = {key: value for key, value in notes.items() if key in other.notes and other.notes[key] == value}
    D = discriminative_features(counts, first.settings["lower"], first.settings["upper"])
    write_features(out, counts, D, {**notes, "n": n, **first.settings}, first.scaling)
    return MergeSummary(len(paths), n, len(counts), len(D))


def count_features(
    embeddings: str | Path,
    features: str | Path,
    out: str | Path,
    *,
    column: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
) -> MergeSummary:
    """Count new rows as a stored feature table counted its own, so that the two can be merged.

    Parameters
    ----------
    embeddings : str or Path
        The new rows: a table of shape (n, r), of any kind that :func:`qscore.score` reads.
    features : str or Path
        The stored feature table: its epsilon, band and scaling are used.
    out : str or Path
        The feature table of the new rows alone to write, ending in ``.parquet``.
    column : str, optional
        The column of vectors, where there are several.
    threads : int, optional
        Threads of the scan; by default one per core.
    overwrite : bool, default=False
        Replace an existing output.

    Returns
    -------
    MergeSummary
        Rows and features.

    Raises
    ------
    QScoreError
        If a table cannot be read, they differ in width, or the output exists or is an input.

    Examples
    --------
    >>> import qscore, tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> H = np.random.default_rng(0).normal(size=(500, 64)).astype(np.float32)
    >>> np.save(folder / "monday.npy", H[:300])
    >>> np.save(folder / "tuesday.npy", H[300:])
    >>> _ = qscore.score(folder / "monday.npy", folder / "monday.parquet", epsilon=2.0)
    >>> monday, tuesday = folder / "monday.features.parquet", folder / "tuesday.features.parquet"
    >>> count_features(folder / "tuesday.npy", monday, tuesday).n
    200
    >>> merge_features([monday, tuesday], folder / "week.parquet").n
    500
    """
    out = check_new_table(out, [embeddings, features], overwrite=overwrite)
    table = open_embeddings(embeddings, column=column)
    stored = read_stored(features, table)
    counts, n = np.zeros(len(stored.counts), dtype=np.int64), 0
    with progress("count", len(table), "rows") as advance:
        for batch in table.batches():
            H = batch.embedding if stored.scaling is None else apply_scaling(batch.embedding, *stored.scaling)
            found = scan(H, stored.settings["epsilon"], two_sided=stored.settings["signed"], threads=threads)
            counts += found.counts
            n += int(found.valid.sum())
            advance(len(batch))
    D = discriminative_features(counts, stored.settings["lower"], stored.settings["upper"])
    write_features(out, counts, D, {**stored.notes, "n": n, **stored.settings}, stored.scaling)
    return MergeSummary(1, n, len(counts), len(D))


def load_scorer(path: str | Path) -> "QScorer":
    """Return a fitted scorer from a feature table alone.

    It scores rows as ``qscore score --features`` does with that table, and can say how new rows differ
    (:meth:`qscore.QScorer.drift`).

    Parameters
    ----------
    path : str or Path
        A feature table, as :func:`qscore.score` and :func:`qscore.merge_features` write it.

    Returns
    -------
    QScorer
        Fitted.

    Raises
    ------
    QScoreError
        If the file is missing, damaged, or no feature table.

    Examples
    --------
    >>> import qscore, tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> H = np.random.default_rng(0).gamma(0.2, size=(500, 64)).astype(np.float32)
    >>> np.save(folder / "embeddings.npy", H)
    >>> summary = qscore.score(folder / "embeddings.npy", folder / "scores.parquet", epsilon=2.0)
    >>> scorer = load_scorer(folder / "scores.features.parquet")
    >>> bool(np.median(scorer.score_samples(H)).round(4) == round(summary.quantiles["0.5"], 4))
    True
    """
    from qscore.estimator import QScorer  # here, so that scoring a table does not load scikit-learn

    stored = read_stored(path)
    settings = {name: stored.settings[name] for name in ("epsilon", "lower", "upper")}
    scorer = QScorer.from_counts(stored.counts, stored.n, **settings, scaling=stored.scaling)
    scorer.discriminative_features_ = stored.discriminative
    return scorer


def read_stored(path: str | Path, table: EmbeddingTable | None = None) -> StoredFeatures:
    """Read a feature table, to be used on an embedding table.

    Raises
    ------
    QScoreError
        If the file is missing, damaged, no feature table, or of another width than the embeddings.
    """
    stored = _read_stored(path)
    if table is not None and len(stored.counts) != table.n_features:
        raise QScoreError(
            f"{path}: has {len(stored.counts)} features, and {table.name} has {table.n_features}; "
            "both must come from the same encoder"
        )
    return stored


def _read_stored(path: str | Path) -> StoredFeatures:
    table, record = read_features(path)
    try:
        settings = {name: float(record[name]) for name in ("epsilon", "lower", "upper")}
        signed = bool(record["signed"])
        columns = {name: table.column(name).to_numpy() for name in ("center", "scale")} if signed else {}
        return StoredFeatures(
            str(path),
            table.column("count").to_numpy(),
            np.flatnonzero(table.column("discriminative").to_numpy()),
            int(record["n"]),
            {**settings, "signed": signed},
            (columns["center"], columns["scale"]) if signed else None,
            {key: value for key, value in record.items() if key not in {"kind", "version", "n", "signed", *settings}},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise QScoreError(f"{path}: a damaged feature table ({error}); run qscore score again") from error


def _check_distinct(paths: Sequence[str | Path]) -> None:
    seen: dict[str, str | Path] = {}
    for path in paths:
        read_stored(path)  # a file that is not there says so
        other = seen.setdefault(sha256(path), path)
        if other is not path:
            raise QScoreError(
                f"{path} and {other} are the same table, and its rows would count twice; a run with --features copies "
                "the table it was given: count its rows with qscore features count"
            )


def _check_agreement(one: StoredFeatures, other: StoredFeatures) -> None:
    def differ(what: str, a: Any, b: Any) -> QScoreError:
        return QScoreError(
            f"{one.path} and {other.path} cannot be merged: {what} is {a} in the one, and {b} in the other"
        )

    if len(one.counts) != len(other.counts):
        raise differ("the number of features", len(one.counts), len(other.counts))
    for name, value in one.settings.items():
        if value != other.settings[name]:
            raise differ(name, value, other.settings[name])
    if one.scaling is None or other.scaling is None:
        return
    for name, a, b in zip(("center", "scale"), one.scaling, other.scaling, strict=True):
        unlike = np.flatnonzero(a.view(np.int64) != b.view(np.int64))
        if len(unlike):
            j = int(unlike[0])
            raise differ(f"the {name} of feature {j} (of {len(unlike)} that differ)", a[j], b[j])
