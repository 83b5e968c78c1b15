"""What an evaluation works on: rows under test, and what probes and rivals may learn from, matched by id."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Shaped
from sklearn.model_selection import train_test_split

from qscore._validate import QScoreError
from qscore.evaluate.calibrated import read_outcomes
from qscore.evaluate.probes import mapped_rows
from qscore.scoring import read_scored
from qscore.tables import EmbeddingBatch, EmbeddingTable, open_embeddings

__all__ = ["Material", "gather", "n_duplicates"]

TEST_SHARE = 0.2
BLOCK = 8192  # rows looked at together
SHOWN = 3  # of the ids that do not match


@dataclass(frozen=True)
class Material:
    """Rows under test in the order of the score table, and reference rows."""

    ids: pa.Array
    rows: pa.Table
    """Their rows of the score table."""
    features: pa.Table
    """The feature table."""
    embedding: Float[np.ndarray, "n r"]
    labels: Shaped[np.ndarray, " n"] | None
    correct: Bool[np.ndarray, " n"] | None
    """The outcome that the user brought; None where a probe decides."""
    train: Float[np.ndarray, "m r"]
    """Reference rows, all finite: the training rows, or the rows under test themselves."""
    train_labels: Shaped[np.ndarray, " m"] | None
    train_paths: list[str] | None
    train_is_test: bool
    views: Float[np.ndarray, "n k r"] | None
    """Of the same images."""
    views_missing: str | None
    """Why there are no views, where there are none."""


def gather(
    scores: str | Path,
    embeddings: str | Path,
    train_embeddings: str | Path | None,
    view_embeddings: str | Path | None,
    correct: str | Path | None,
    seed: int,
    open_files: ExitStack,
) -> Material:
    """Read the tables, match their rows by id, and split where there are no training rows.

    Training rows that take more than 1 GiB are a memory map of a temporary file, which lasts as long as ``open_files``.

    Raises
    ------
    QScoreError
        If the tables do not belong together, ids do not match or come twice, or labels are missing.
    """
    rows, features, _ = read_scored(scores)
    scored = set(rows.column("id").to_pylist())
    rows = rows.filter(rows.column("valid"))
    if not rows.num_rows:
        raise QScoreError(f"{scores}: no row is valid, all hold NaN or infinity")
    table = open_embeddings(embeddings)
    _check_width(str(scores), features.num_rows, table)
    test = _matched(table.read(), rows, str(embeddings))
    outcome: np.ndarray | None = None
    if correct is not None:
        known, outcome = _outcomes(correct, rows, scored)
        test, rows = _take(test, known), rows.take(known)
    labels = None if correct is not None and "label" not in test.columns else read_labels(test, str(embeddings))
    train, train_labels, paths = test.embedding, None, _paths(test)
    if train_embeddings is not None:
        train_table = open_embeddings(train_embeddings)
        H, columns = open_files.enter_context(mapped_rows(train_table))
        learned = EmbeddingBatch(H, {name: column.combine_chunks() for name, column in columns.items()})
        _check_training(train_table, learned, table, test)
        finite = np.concatenate([np.isfinite(H[at : at + BLOCK]).all(axis=1) for at in range(0, len(H), BLOCK)])
        if not finite.any():
            raise QScoreError(f"{train_embeddings}: no row is valid, all hold NaN or infinity")
        learned = learned if finite.all() else _take(learned, np.flatnonzero(finite))
        train, paths = learned.embedding, _paths(learned)
        train_labels = None if outcome is not None else read_labels(learned, str(train_embeddings))
    elif outcome is None:
        assert labels is not None
        train_rows, test_rows = _split(labels, seed)
        train, train_labels = test.embedding[train_rows], labels[train_rows]
        paths = None if paths is None else [paths[i] for i in train_rows]
        test, labels, rows = _take(test, test_rows), labels[test_rows], rows.take(test_rows)
    views, missing = _views(view_embeddings, test)
    return Material(
        ids=test.columns["id"],
        rows=rows,
        features=features,
        embedding=test.embedding,
        labels=labels,
        correct=outcome,
        train=train,
        train_labels=train_labels,
        train_paths=paths,
        train_is_test=outcome is not None and train_embeddings is None,
        views=views,
        views_missing=missing,
    )


def n_duplicates(found: Material) -> dict[str, int]:
    """Count rows under test that equal a training row, and those that equal an earlier row under test, bit by bit."""
    hashes, learned = _hashes(found.embedding), _hashes(found.train)
    return {
        "train": 0 if found.train_is_test else int(np.isin(hashes, learned).sum()),
        "test": len(hashes) - len(np.unique(hashes)),
    }


def _hashes(H: np.ndarray) -> np.ndarray:
    """Return a 64-bit hash of each row."""
    return np.array([hash(row.tobytes()) for row in H])


def read_labels(table: EmbeddingBatch, name: str) -> np.ndarray:
    """Return the labels of all rows, as integers or strings.

    Raises
    ------
    QScoreError
        If there are none, or not for all rows.
    """
    labels = table.columns.get("label")
    if labels is None or labels.null_count == len(labels):
        lack = "has no column 'label'" if labels is None else "has no label in any row"
        raise QScoreError(f"{name} {lack}; failure prediction needs labels to test against")
    if labels.null_count:
        raise QScoreError(f"{name}: {labels.null_count} of {len(labels)} rows have no label")
    values: np.ndarray = labels.to_numpy(zero_copy_only=False)
    return values.astype(str) if values.dtype == object else values


def _outcomes(path: str | Path, rows: pa.Table, scored: set[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return which valid rows have an outcome in the user's file, and the outcomes; it may name invalid ones too."""
    found = read_outcomes(path)
    ids = rows.column("id").to_pylist()
    unknown = [key for key in found if key not in scored]
    if unknown:
        raise QScoreError(f"{path}: {_some(unknown, len(found))} are not in the score table")
    known = np.array([i for i, key in enumerate(ids) if key in found], dtype=np.int64)
    if len(known) < 2:
        raise QScoreError(f"{path}: expected outcomes of at least 2 scored rows, got {len(known)}")
    return known, np.array([found[ids[i]] for i in known], dtype=bool)


def _paths(table: EmbeddingBatch) -> list[str] | None:
    paths = table.columns.get("path")
    return None if paths is None or paths.null_count else paths.to_pylist()


def _matched(table: EmbeddingBatch, rows: pa.Table, name: str) -> EmbeddingBatch:
    """Return the embeddings in the order of the score table's ids."""
    ids, wanted = table.columns["id"], rows.column("id").combine_chunks()
    for where, keys in ((name, ids), ("the score table", wanted)):
        twice = len(keys) - pc.count_distinct(keys).as_py()
        if twice:
            raise QScoreError(f"{where}: {twice} ids come more than once; rows are matched by id")
    places = pc.index_in(wanted, value_set=ids)
    if places.null_count:
        missing = wanted.filter(pc.is_null(places)).to_pylist()
        raise QScoreError(f"{_some(missing, len(wanted))} are not in {name}")
    return _take(table, places.to_numpy())


def _some(missing: list[str], n: int) -> str:
    shown = ", ".join(map(repr, missing[:SHOWN]))
    return f"{len(missing)} of {n} ids ({shown}{', ...' if len(missing) > SHOWN else ''})"


def _views(path: str | Path | None, test: EmbeddingBatch) -> tuple[np.ndarray | None, str | None]:
    """Return the views of each row under test, or why there are none."""
    if path is None:
        return None, "no table of augmented views was given"
    table = open_embeddings(path)
    batch = table.read()
    if batch.embedding.shape[1] != test.embedding.shape[1]:
        raise QScoreError(
            f"{path}: {batch.embedding.shape[1]} features, and the rows under test have {test.embedding.shape[1]}; "
            "both must come from the same encoder"
        )
    places = pc.index_in(batch.columns["id"], value_set=test.columns["id"])
    known = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False))
    known = known[np.isfinite(batch.embedding[known]).all(axis=1)]
    of_row = places.to_numpy(zero_copy_only=False)[known].astype(np.int64)
    counts = np.bincount(of_row, minlength=len(test))
    if not counts.all() or len(set(counts.tolist())) > 1:
        short = int((counts < counts.max()).sum())
        return None, f"{short} of {len(test)} rows lack views, or some of them, in {path}"
    order = known[np.argsort(of_row, kind="stable")]
    return batch.embedding[order].reshape(len(test), counts[0], -1), None


def _check_training(
    train_table: EmbeddingTable, train: EmbeddingBatch, test_table: EmbeddingTable, test: EmbeddingBatch
) -> None:
    """Refuse training rows that are test rows, of another width, or labelled in another way."""
    name = train_table.name
    if Path(name).resolve() == Path(test_table.name).resolve():
        raise QScoreError(f"{name}: the training table is the table under test; the probe must not learn from it")
    if "path" in train_table.columns and "path" in test_table.columns:
        shared = set(train.columns["path"].to_pylist()) & set(test.columns["path"].to_pylist()) - {None}
        if shared:
            raise QScoreError(f"{name}: {len(shared)} images are under test too; the probe must not learn from them")
    _check_width(name, train_table.n_features, test_table)
    kinds = [table.columns["label"].type for table in (train, test) if "label" in table.columns]
    if len(set(kinds)) == 2:
        raise QScoreError(f"{name}: its labels are {kinds[0]}, those of the rows under test {kinds[1]}")


def _check_width(name: str, n_features: int, table: EmbeddingTable) -> None:
    if n_features != table.n_features:
        raise QScoreError(
            f"{name} has {n_features} features, and {table.name} {table.n_features}; both must come from the same "
            "encoder"
        )


def _split(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split 80 / 20, stratified by label: the probe learns from the first part and is tested on the second."""
    try:
        train, test = train_test_split(np.arange(len(labels)), test_size=TEST_SHARE, random_state=seed, stratify=labels)
    except ValueError as error:
        raise QScoreError(f"cannot split {len(labels)} rows 80 / 20 by label: {error}") from error
    return np.sort(train), np.sort(test)


def _take(table: EmbeddingBatch, rows: np.ndarray) -> EmbeddingBatch:
    columns = {name: column.take(pa.array(rows)) for name, column in table.columns.items()}
    return EmbeddingBatch(table.embedding[rows], columns)
