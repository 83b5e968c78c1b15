"""Does Q predict failure? Score table and embeddings in, an honest comparison out."""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool

from qscore._files import atomic_path, check_output, sha256, to_json
from qscore._validate import QScoreError
from qscore.core import apply_scaling
from qscore.evaluate.claims import claim_table
from qscore.evaluate.classes import class_statistics
from qscore.evaluate.compression import compression_curve
from qscore.evaluate.few_labels import few_labels
from qscore.evaluate.gain import Gain, gains
from qscore.evaluate.material import Material, gather, n_duplicates
from qscore.evaluate.probes import Probe, fit_table_probe
from qscore.evaluate.ranking import bootstrap, draw_spread
from qscore.evaluate.representation import measure_representation
from qscore.evaluate.scores import SCORES, Evidence, compute_scores
from qscore.evaluate.tidy import tidy_table
from qscore.evaluate.verdict import sentences, undefined_because
from qscore.kernels import scan
from qscore.scoring import features_path, read_stored, summarize_scores
from qscore.tables import open_embeddings, with_record

if TYPE_CHECKING:
    from qscore.encoders import Encoder

__all__ = ["evaluate_scores"]

OUTPUTS = ("metrics.json", "metrics.parquet", "evaluation.parquet")
LABELLED = 500
LEAST_FOR_GAIN = 10  # rows of the rarer outcome; five folds need some in each


def evaluate_scores(
    scores: str | Path,
    embeddings: str | Path,
    train_embeddings: str | Path | None = None,
    *,
    view_embeddings: str | Path | None = None,
    correct: str | Path | None = None,
    probe: str = "logistic",
    encoder: "str | Path | Encoder | None" = None,
    device: str = "auto",
    out: str | Path | None = None,
    overwrite: bool = False,
    labelled: int = LABELLED,
    error_rate: float | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure how well Q, its ablations and its rivals predict which rows a linear probe gets wrong.

    Writes ``evaluation.parquet`` (one row per row under test: prediction, outcome, every score), ``metrics.json``, and
    its numbers as a tidy table, ``metrics.parquet``. Without labels only the representation as a whole is measured.

    Parameters
    ----------
    scores : str or Path
        The score table of the rows under test.
    embeddings : str or Path
        Their embedding table, with labels where there are any.
    train_embeddings : str or Path, optional
        Labelled embeddings to fit the probe on, and the reference of rivals that need one. Without it the rows are
        split 80 / 20, stratified by label.
    view_embeddings : str or Path, optional
        Embeddings of augmented views, those of an image next to each other, with the ids of ``embeddings``: for
        alignment, augmentation cosine and neighbourhood consistency. Rivals without what they need are left out, and
        named.
    correct : str or Path, optional
        A CSV or Parquet file with ``id`` and whether the row was classified correctly, as booleans or 0 and 1, by
        whatever classifier: instead of a probe. Rows it does not name are not under test.
    probe : {"logistic", "knn", "sgd"}, default="logistic"
        What is fitted on frozen embeddings, see :mod:`qscore.evaluate.probes`.
    encoder : str, Path or Encoder, optional
        For ``probe="sgd"``: train on augmented images, reopened by the training table's ``path``, instead of on the
        embeddings.
    device : str, default="auto"
        Where the probe is fitted.
    out : str or Path, optional
        Directory of the results; by default that of ``scores``.
    overwrite : bool, default=False
        Replace the results of an earlier evaluation.
    labelled : int, default=500
        Rows whose outcome calibration may use, at least 10; half of all at most. The others test it.
    error_rate : float, optional
        Wanted among the rows that calibration accepts, in (0, 1); by default half of the error rate of all rows.
    resamples : int, default=2000
        Bootstrap resamples of the rows, the same for every score; at least 1.
    seed : int, default=0
        Seed of splits, draws and resamples, at least 0.

    Returns
    -------
    dict
        The content of ``metrics.json``: ``probe`` (None with ``correct``), ``base_rate``, ``undefined`` (why failure
        prediction is, and what follows then means nothing; None where it is defined), ``scores`` (name -> statistic
        -> value, low, high), ``q_minus`` (name -> difference), ``random_d`` (spread over random sets), ``gain``,
        ``left_out`` (name -> reason), ``classes``, ``class_mean``, ``claims``, ``calibration``, ``compression``,
        ``representation`` (as :func:`~qscore.metrics.representation_metrics`, of all rows of ``embeddings``),
        ``score_table``, ``sentences``. What could not be measured is None or empty, and a sentence says why. Without
        labels only ``n``, ``seed``, ``resamples`` and the last three.

    Raises
    ------
    QScoreError
        If some labels are missing, ids do not match or come twice, the tables do not belong together, or results are
        there.
    """
    if resamples < 1 or seed < 0:
        raise QScoreError(f"expected resamples >= 1 and seed >= 0, got {resamples} and {seed}")
    if labelled < 10 or not (error_rate is None or 0 < error_rate < 1):
        raise QScoreError(f"expected labelled >= 10 and error_rate between 0 and 1, got {labelled} and {error_rate}")
    folder = Path(out) if out else Path(scores).parent
    for name in OUTPUTS:
        check_output(folder / name, overwrite=overwrite)
    metrics: dict[str, Any] = {"n": 0, "resamples": resamples, "seed": seed}
    table = open_embeddings(embeddings)
    if correct is None and train_embeddings is None and "label" not in table.columns:
        metrics["n"] = len(table)
        metrics["sentences"] = [
            f"{table.name} has no labels, so whether Q predicts failures was not tested; what follows describes the "
            "representation as a whole."
        ]
        (folder / "evaluation.parquet").unlink(missing_ok=True)  # of an earlier evaluation, with labels
        _add_whole(metrics, scores, embeddings, view_embeddings)
        _write(folder, metrics)
        return metrics
    with ExitStack() as open_files:
        found = gather(scores, embeddings, train_embeddings, view_embeddings, correct, seed, open_files)
        probed = _outcome(found, probe, encoder, device, seed)
        values, measured = _measure(
            found, probed, labelled=labelled, error_rate=error_rate, resamples=resamples, seed=seed
        )
        metrics |= measured
        metrics["compression"], said = _compression(scores, found, seed=seed, resamples=resamples)
    _add_whole(metrics, scores, embeddings, view_embeddings)
    metrics["undefined"] = undefined_because(metrics)
    metrics["sentences"] = [*sentences(metrics, probed.probe), *said]
    _write(folder, metrics, _evaluation_table(found, probed, values, metrics))
    return metrics


class Probed(NamedTuple):
    """Which rows are correct, and by whom."""

    probe: Probe | None
    """None where the user brought the outcomes."""
    predicted: np.ndarray | None
    confidence: np.ndarray | None
    correct: Bool[np.ndarray, " n"]


def _outcome(found: Material, kind: str, encoder: "str | Path | Encoder | None", device: str, seed: int) -> Probed:
    """Find out which rows are correct: by a probe, or by the user's file."""
    if found.correct is not None:
        return Probed(None, None, None, found.correct)
    probe = fit_table_probe(
        kind,
        found.train,
        found.train_labels,
        paths=found.train_paths,
        encoder=encoder,
        device=device,
        seed=seed,
        test_labels=found.labels,
    )
    predicted, confidence = probe.predict(found.embedding)
    return Probed(probe, predicted, confidence, predicted == found.labels)


def _measure(
    found: Material, probed: Probed, *, labelled: int, error_rate: float | None, resamples: int, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Compute every score, and measure how well it predicts which rows are correct."""
    evidence = Evidence(
        found.rows,
        found.embedding,
        found.train,
        probed.confidence,
        found.features,
        views=found.views,
        seed=seed,
        train_is_test=found.train_is_test,
        views_missing=found.views_missing or "",
    )
    values, left_out = compute_scores(evidence)
    metrics = _failure(values, probed.correct, seed=seed, resamples=resamples)
    metrics |= {"probe": _probe_record(probed), "left_out": left_out, "n_duplicates": n_duplicates(found)}
    metrics |= _within(found, values, probed.correct, seed=seed, resamples=resamples)
    metrics["calibration"] = few_labels(values, probed.correct, labelled=labelled, error_rate=error_rate, seed=seed)
    return values, metrics


def _probe_record(probed: Probed) -> dict[str, Any] | None:
    if probed.probe is None:
        return None
    n, n_correct = len(probed.correct), int(probed.correct.sum())
    return probed.probe.describe() | {"accuracy": n_correct / n, "n_correct": n_correct, "n_wrong": n - n_correct}


def _failure(values: dict[str, np.ndarray], correct: np.ndarray, *, seed: int, resamples: int) -> dict[str, Any]:
    """Measure how well every score predicts the outcome, beside Q, and on top of it."""
    n, n_correct = len(correct), int(correct.sum())
    share = n_correct / n
    found: dict[str, Any] = {"n": n, "base_rate": {"correct": share, "wrong": 1 - share}}
    found |= {"scores": {}, "q_minus": {}, "random_d": None, "gain": {}}
    if not 0 < n_correct < n:
        return found
    statistics, differences = bootstrap(values, correct, reference="q_score", resamples=resamples, seed=seed)
    for key, table in (("scores", statistics), ("q_minus", differences)):
        found[key] = {name: {key: asdict(interval) for key, interval in row.items()} for name, row in table.items()}
    if "q_random_d" in values:
        spread = draw_spread(values["q_random_d"], correct)
        found["random_d"] = {name: asdict(row) for name, row in spread.items()}
    if min(n_correct, n - n_correct) >= LEAST_FOR_GAIN:
        gained = gains(values, correct, resamples=resamples, seed=seed)
        found["gain"] = {"q_on_top_of": _plain(gained.on_top_of), "on_top_of_q": _plain(gained.on_top)}
    return found


def _plain(table: dict[str, Gain]) -> dict[str, Any]:
    return {name: asdict(found.gain) for name, found in table.items()}


def _within(
    found: Material, values: dict[str, np.ndarray], correct: np.ndarray, *, seed: int, resamples: int
) -> dict[str, Any]:
    """Measure what holds within classes, and how the features of correct and wrong rows differ."""
    within: dict[str, Any] = {"classes": [], "class_mean": {}, "claims": None}
    if correct.all() or not correct.any():
        return within
    if found.labels is not None:
        classes = class_statistics(values, found.labels, correct, resamples=resamples, seed=seed)
        within["classes"] = classes.records()
        within["class_mean"] = {
            name: {key: asdict(interval) for key, interval in row.items()} for name, row in classes.mean.items()
        }
    claims = claim_table(found.rows, found.features, correct, found.labels, resamples=resamples, seed=seed)
    verdicts = {verdict.claim: verdict.verdict for verdict in claims.verdicts}
    conditions = {verdict.claim: verdict.conditions for verdict in claims.verdicts}
    records = [{key: None if value != value else value for key, value in row.items()} for row in claims.records()]
    within["claims"] = {"records": records, "verdicts": verdicts, "conditions": conditions}
    within["claims"]["sentences"] = claims.sentences()
    return within


def _compression(
    scores: str | Path, found: Material, *, seed: int, resamples: int
) -> tuple[list[dict[str, Any]] | None, list[str]]:
    """Measure how far the representation can be compressed, and say so; features are ranked on the training rows."""
    if found.train_labels is None or found.labels is None:
        lack = "How far the representation can be compressed was not measured: it needs labelled training embeddings."
        return None, [lack]
    stored = read_stored(features_path(scores))
    H = found.train if stored.scaling is None else apply_scaling(found.train, *stored.scaling)
    rates = scan(H, stored.settings["epsilon"], two_sided=stored.settings["signed"]).counts
    try:
        curve = compression_curve(
            found.train, found.train_labels, found.embedding, found.labels, rates, resamples=resamples, seed=seed
        )
    except QScoreError as error:
        return None, [f"How far the representation can be compressed was not measured: {error}."]
    return curve.records(), curve.sentences()


def _add_whole(
    metrics: dict[str, Any], scores: str | Path, embeddings: str | Path, view_embeddings: str | Path | None
) -> None:
    """Measure the representation as a whole; nothing is said of single rows."""
    metrics["representation"] = measure_representation(
        scores, open_embeddings(embeddings), view_embeddings, resamples=metrics["resamples"], seed=metrics["seed"]
    )
    metrics["score_table"] = asdict(summarize_scores(scores)) | {"sha256": sha256(scores)}


def _evaluation_table(
    found: Material, probed: Probed, values: dict[str, np.ndarray], metrics: dict[str, Any]
) -> pa.Table:
    n = len(probed.correct)
    columns: dict[str, Any] = {"id": found.ids}
    columns["predicted"] = pa.nulls(n, pa.string()) if probed.predicted is None else probed.predicted
    columns |= {"correct": probed.correct, "fold": np.zeros(n, dtype=np.int8)}
    single = [score.name for score in SCORES if score.name in values and values[score.name].ndim == 1]
    table = pa.table(columns | {name: values[name].astype(np.float32) for name in single})
    record = {"kind": "evaluation", "n": n, "seed": metrics["seed"]}
    record["scores_sha256"] = metrics["score_table"]["sha256"]
    return table.replace_schema_metadata(with_record(table.schema, record).metadata)


def _write(folder: Path, metrics: dict[str, Any], evaluation: pa.Table | None = None) -> None:
    tables = {"evaluation.parquet": evaluation, "metrics.parquet": tidy_table(metrics)}
    for name, table in tables.items():
        if table is not None:
            with atomic_path(folder / name) as temporary:
                pq.write_table(table, temporary)
    with atomic_path(folder / "metrics.json") as temporary:
        temporary.write_text(to_json(metrics, indent=2) + "\n")
