"""Does Q predict the linear probe's mistakes? Score table and embeddings in, an honest comparison out."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.model_selection import train_test_split

from qscore._files import atomic_path, check_output, sha256, to_json
from qscore._validate import QScoreError
from qscore.core import apply_scaling
from qscore.evaluate.compression import compression_curve
from qscore.evaluate.probe import Probe, fit_probe
from qscore.evaluate.ranking import bootstrap
from qscore.evaluate.representation import measure_representation
from qscore.evaluate.scores import SCORES, Evidence
from qscore.evaluate.verdict import sentences
from qscore.kernels import scan
from qscore.scoring import features_path, read_scored, read_stored, summarize_scores
from qscore.tables import EmbeddingBatch, EmbeddingTable, open_embeddings, with_record

__all__ = ["evaluate_scores"]

TEST_SHARE = 0.2


def evaluate_scores(
    scores: str | Path,
    embeddings: str | Path,
    train_embeddings: str | Path | None = None,
    *,
    view_embeddings: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure how well Q, its rivals and the probe's own confidence predict the linear probe's mistakes.

    Writes ``evaluation.parquet`` (one row per held-out row: prediction, outcome, every score) and ``metrics.json``.
    Without labels only the representation as a whole is measured, and ``metrics.json`` written.

    Parameters
    ----------
    scores : str or Path
        The score table of the rows under test.
    embeddings : str or Path
        Their embedding table, with labels where there are any.
    train_embeddings : str or Path, optional
        Labelled embeddings to fit the probe on. Without it the rows are split 80 / 20, stratified by label.
    view_embeddings : str or Path, optional
        Embeddings of augmented views, at least two of an image and next to each other, with the ids of ``embeddings``:
        for alignment.
    out : str or Path, optional
        Directory of the results; by default that of ``scores``.
    overwrite : bool, default=False
        Replace the results of an earlier evaluation.
    resamples : int, default=2000
        Bootstrap resamples of the rows, the same for every score; at least 1.
    seed : int, default=0
        Seed of split and resamples, at least 0.

    Returns
    -------
    dict
        The content of ``metrics.json``: ``probe``, ``base_rate``, ``scores`` (name -> statistic -> value, low,
        high), ``q_minus`` (name -> difference), ``compression`` (accuracy of a linear classifier for each share of the
        features and each way to choose them; None where it could not be measured), ``representation`` (as
        :func:`~qscore.metrics.representation_metrics`, of all rows of ``embeddings``), ``score_table``, ``sentences``.
        Without labels only ``n``, ``seed``, ``resamples`` and the last three.

    Raises
    ------
    QScoreError
        If some labels are missing, ids do not match or come twice, the tables do not belong together, or results are
        there.
    """
    if resamples < 1 or seed < 0:
        raise QScoreError(f"expected resamples >= 1 and seed >= 0, got {resamples} and {seed}")
    folder = Path(out) if out else Path(scores).parent
    for name in ("metrics.json", "evaluation.parquet"):
        check_output(folder / name, overwrite=overwrite)
    test_table = open_embeddings(embeddings)
    if train_embeddings is None and "label" not in test_table.columns:
        return _without_labels(scores, test_table, view_embeddings, folder, resamples, seed)
    rows, _, _ = read_scored(scores)
    rows = rows.filter(rows.column("valid"))
    if not rows.num_rows:
        raise QScoreError(f"{scores}: no row is valid, all hold NaN or infinity")
    test = _matched(test_table.read(), rows, str(embeddings))
    labels = _labels(test, str(embeddings))
    if train_embeddings is None:
        train_rows, test_rows = _split(labels, seed)
        train_H, train_labels = test.embedding[train_rows], labels[train_rows]
        test, labels, rows = _take(test, test_rows), labels[test_rows], rows.take(test_rows)
    else:
        train_table = open_embeddings(train_embeddings)
        train = train_table.read()
        _check_training(train_table, train, test_table, test)
        finite = np.isfinite(train.embedding).all(axis=1)
        train_H, train_labels = train.embedding[finite], _labels(train, str(train_embeddings))[finite]
    probe = fit_probe(train_H, train_labels, seed=seed)
    predicted, confidence = probe.predict(test.embedding)
    correct = predicted == labels
    evidence = Evidence(rows, test.embedding, train_H, confidence)
    values = {score.name: score.compute(evidence) for score in SCORES}
    metrics = _metrics(values, correct, probe, resamples, seed)
    metrics["representation"] = measure_representation(
        scores, test_table, view_embeddings, resamples=resamples, seed=seed
    )
    metrics["score_table"] = asdict(summarize_scores(scores)) | {"sha256": sha256(scores)}
    found, said = _compression(scores, (train_H, train_labels), (test.embedding, labels), resamples, seed)
    metrics["compression"] = found
    metrics["sentences"] = [*sentences(metrics), *said]
    _write(folder, test.columns["id"], predicted, correct, values, metrics)
    return metrics


def _compression(
    scores: str | Path,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    resamples: int,
    seed: int,
) -> tuple[list[dict[str, Any]] | None, list[str]]:
    """Measure how far the representation can be compressed, and say so; features are ranked on the training rows."""
    stored = read_stored(features_path(scores))
    H = train[0] if stored.scaling is None else apply_scaling(train[0], *stored.scaling)
    rates = scan(H, stored.settings["epsilon"], two_sided=stored.settings["signed"]).counts
    try:
        curve = compression_curve(*train, *test, rates, resamples=resamples, seed=seed)
    except QScoreError as error:
        return None, [f"How far the representation can be compressed was not measured: {error}."]
    return curve.records(), curve.sentences()


def _without_labels(
    scores: str | Path,
    table: EmbeddingTable,
    view_embeddings: str | Path | None,
    folder: Path,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Measure the representation alone; nothing is said of single rows."""
    metrics = {
        "n": len(table),
        "resamples": resamples,
        "seed": seed,
        "representation": measure_representation(scores, table, view_embeddings, resamples=resamples, seed=seed),
        "score_table": asdict(summarize_scores(scores)) | {"sha256": sha256(scores)},
        "sentences": [
            f"{table.name} has no labels, so whether Q predicts failures was not tested; what follows describes the "
            "representation as a whole."
        ],
    }
    (folder / "evaluation.parquet").unlink(missing_ok=True)  # of an earlier evaluation, with labels
    _write_metrics(folder, metrics)
    return metrics


def _metrics(
    values: dict[str, np.ndarray], correct: np.ndarray, probe: Probe, resamples: int, seed: int
) -> dict[str, Any]:
    n, n_correct = len(correct), int(correct.sum())
    metrics: dict[str, Any] = {
        "n": n,
        "probe": {
            "accuracy": n_correct / n,
            "n_correct": n_correct,
            "n_wrong": n - n_correct,
            "n_train": probe.n_train,
            "strength": probe.strength,
            "converged": probe.converged,
        },
        "base_rate": {"correct": n_correct / n, "wrong": 1 - n_correct / n},
        "resamples": resamples,
        "seed": seed,
        "scores": {},
        "q_minus": {},
    }
    if 0 < n_correct < n:
        statistics, differences = bootstrap(values, correct, reference="q_score", resamples=resamples, seed=seed)
        for key, table in (("scores", statistics), ("q_minus", differences)):
            metrics[key] = {
                name: {statistic: asdict(interval) for statistic, interval in row.items()}
                for name, row in table.items()
            }
    return metrics


def _matched(table: EmbeddingBatch, rows: pa.Table, name: str) -> EmbeddingBatch:
    """Return the embeddings in the order of the score table's ids."""
    ids, wanted = table.columns["id"].to_pylist(), rows.column("id").to_pylist()
    position = {key: i for i, key in enumerate(ids)}
    for where, n_ids, distinct in ((name, len(ids), len(position)), ("the score table", len(wanted), len(set(wanted)))):
        if distinct < n_ids:
            raise QScoreError(f"{where}: {n_ids - distinct} ids come more than once; rows are matched by id")
    missing = [key for key in wanted if key not in position]
    if missing:
        raise QScoreError(f"{len(missing)} of {len(wanted)} scored ids are not in {name}, the first is {missing[0]!r}")
    return _take(table, np.array([position[key] for key in wanted]))


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
    if train_table.n_features != test_table.n_features:
        raise QScoreError(
            f"{name} has {train_table.n_features} features, and the rows under test {test_table.n_features}; "
            "both must come from the same encoder"
        )
    kinds = [table.columns["label"].type for table in (train, test) if "label" in table.columns]
    if len(set(kinds)) == 2:
        raise QScoreError(f"{name}: its labels are {kinds[0]}, those of the rows under test {kinds[1]}")


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


def _labels(table: EmbeddingBatch, name: str) -> np.ndarray:
    labels = table.columns.get("label")
    if labels is None:
        raise QScoreError(f"{name} has no column 'label'; failure prediction needs labels to test against")
    if labels.null_count:
        raise QScoreError(f"{name}: {labels.null_count} of {len(labels)} rows have no label")
    values: np.ndarray = labels.to_numpy(zero_copy_only=False)
    return values.astype(str) if values.dtype == object else values


def _write(
    out: Path,
    ids: pa.Array,
    predicted: np.ndarray,
    correct: np.ndarray,
    values: dict[str, np.ndarray],
    metrics: dict[str, Any],
) -> None:
    table = pa.table(
        {
            "id": ids,
            "predicted": predicted,
            "correct": correct,
            "fold": np.zeros(len(ids), dtype=np.int8),
            **{name: value.astype(np.float32) for name, value in values.items()},
        }
    )
    schema = with_record(
        table.schema,
        {
            "kind": "evaluation",
            "n": metrics["n"],
            "seed": metrics["seed"],
            "scores_sha256": metrics["score_table"]["sha256"],
        },
    )
    with atomic_path(out / "evaluation.parquet") as temporary:
        pq.write_table(table.replace_schema_metadata(schema.metadata), temporary)
    _write_metrics(out, metrics)


def _write_metrics(out: Path, metrics: dict[str, Any]) -> None:
    with atomic_path(out / "metrics.json") as temporary:
        temporary.write_text(to_json(metrics, indent=2) + "\n")
