"""From a score table and labels for a few of its rows to a table of probabilities of failure and accepted rows."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from scipy.stats import mannwhitneyu

from qscore._files import atomic_path, check_new_table, sha256, to_json
from qscore._validate import QScoreError, nearest, one_line
from qscore.evaluate.calibration import Calibration, calibrate, clopper_pearson
from qscore.evaluate.threshold import Threshold, choose_threshold
from qscore.tables import with_record

__all__ = ["CalibratedScores", "HeldOut", "calibrate_scores", "read_outcomes"]

TRUE, FALSE = ("true", "1", "1.0"), ("false", "0", "0.0")
UNKNOWN = ("", "null", "none", "na", "<na>", "nan")
REVERSED = 0.025  # one-sided, as a 95 % interval has it


@dataclass(frozen=True)
class HeldOut:
    """What came of the guarantee on labelled rows that neither map nor threshold had seen."""

    n: int
    """Labelled rows held out, with a score."""
    n_accepted: int
    n_wrong: int
    """Wrong rows among those accepted."""
    wanted: float
    """The error rate wanted among accepted rows."""

    @property
    def sentence(self) -> str:
        """What was observed, in a sentence."""
        if not self.n_accepted:
            return f"Of the {self.n:,} labelled rows held out none is accepted."
        error = self.n_wrong / self.n_accepted
        low, high = clopper_pearson(self.n_wrong, self.n_accepted)
        verdict = f"within the {self.wanted:.1%}" if error <= self.wanted else f"more than the {self.wanted:.1%}"
        return (
            f"Of the {self.n:,} labelled rows held out {self.n_accepted:,} are accepted, a coverage of "
            f"{self.n_accepted / self.n:.1%}, and {self.n_wrong:,} of those are wrong: {error:.1%} (95 % interval "
            f"{low:.1%} to {high:.1%}), {verdict} wanted."
        )


@dataclass(frozen=True)
class CalibratedScores:
    """A score made into probabilities of failure and accepted rows."""

    out: str
    """The table written."""
    score: str
    """Column of the score."""
    n: int
    """Rows of the table."""
    n_accepted: int
    """Rows accepted, labelled ones among them."""
    n_labelled: int
    """Rows whose label was used."""
    calibration: Calibration
    threshold: Threshold
    held_out: HeldOut | None
    """None where no labelled row was held out."""
    notes: tuple[str, ...]
    """What the labels cannot tell, and scores that point the other way."""

    def sentences(self) -> list[str]:
        """Say what was measured, what is guaranteed, and what it costs."""
        checked = [] if self.held_out is None else [self.held_out.sentence]
        return [self.calibration.sentence, *self.notes, self.threshold.sentence, *checked]


def calibrate_scores(
    scores: str | Path,
    labels: str | Path,
    out: str | Path,
    *,
    score: str = "q_score",
    correct_column: str = "correct",
    error_rate: float = 0.05,
    delta: float = 0.1,
    labelled: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> CalibratedScores:
    r"""Turn a score into probabilities of failure, and accept rows at a guaranteed error rate, from a few labels.

    Writes a Parquet table with a row for each row of ``scores``: ``id``; ``score``; ``p_wrong`` in [0, 1], the
    probability of failure by isotonic regression (:func:`~qscore.evaluate.calibration.calibrate`), null without a
    finite score; ``accepted``, whether the score reaches the threshold
    (:func:`~qscore.evaluate.threshold.choose_threshold`); ``labelled``, whether the row's label was used. Map and
    threshold stand in its metadata.

    The guarantee is about rows drawn like the labelled ones: label rows that were chosen at random.

    Parameters
    ----------
    scores : str or Path
        A score table, an evaluation table, or any Parquet file with ``id`` and a column of numbers.
    labels : str or Path
        CSV or Parquet with ``id`` and whether the row was classified correctly, as booleans or 0 and 1. Empty or null:
        not labelled. An ``evaluation.parquet`` will do.
    out : str or Path
        The table to write, ending in ``.parquet``.
    score : str, default="q_score"
        Column of ``scores``; higher should mean "more likely correct". NaN, null and infinity are left out and counted.
    correct_column : str, default="correct"
        Column of ``labels``.
    error_rate : float, default=0.05
        Error rate wanted among accepted rows, in (0, 1).
    delta : float, default=0.1
        Probability that the guarantee may fail, in (0, 1).
    labelled : int, optional
        Use this many of the labelled rows, drawn at random, and check the guarantee on the others. At least 10, and
        fewer than there are with a finite score.
    seed : int, default=0
        Seed of the draw, of folds and of the bootstrap; at least 0.
    overwrite : bool, default=False
        Replace an existing output.

    Returns
    -------
    CalibratedScores
        The map with its reliability, the threshold and its price, what came of them on rows held out, and sentences.

    Raises
    ------
    QScoreError
        If a file cannot be read or lacks a column, ids come twice or do not match, fewer than 10 rows are labelled, all
        rows are, or the output exists.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> folder, rng = pathlib.Path(tempfile.mkdtemp()), np.random.default_rng(0)
    >>> q = rng.random(3000)
    >>> pq.write_table(pa.table({"id": [str(k) for k in range(3000)], "q_score": q}), folder / "scores.parquet")
    >>> rows = "".join(f"{k},{int(rng.random() < q[k])}\n" for k in rng.choice(3000, 300, replace=False))
    >>> _ = (folder / "labels.csv").write_text("id,correct\n" + rows)
    >>> found = calibrate_scores(folder / "scores.parquet", folder / "labels.csv", folder / "c.parquet", error_rate=0.2)
    >>> found.n_labelled, 0.2 < found.threshold.coverage < 0.4
    (300, True)
    """
    for name, share in (("error_rate", error_rate), ("delta", delta)):
        if not 0.0 < share < 1.0:
            raise QScoreError(f"{name}: expected a share between 0 and 1, got {share!r}")
    if seed < 0:
        raise QScoreError(f"seed: expected at least 0, got {seed}")
    out = check_new_table(out, [scores, labels], overwrite=overwrite)
    ids, column = _read_scores(scores, score)
    values = np.asarray(column.cast(pa.float64(), safe=False).to_numpy())
    known, correct = _matched(ids, read_outcomes(labels, correct_column), str(scores), str(labels))
    used = _drawn(known & np.isfinite(values), labelled, seed) if labelled is not None else known
    if used.all():
        raise QScoreError(
            f"all {len(used)} rows of {scores} are labelled, and the threshold's tests need rows that are not; "
            "--labelled K draws K rows to learn from and checks on the others"
        )
    fitted = calibrate(values[used], correct[used], seed=seed)
    threshold = choose_threshold(values[used], correct[used], values[~used], error_rate, delta=delta)
    accepted = threshold.accept(values)
    found = CalibratedScores(
        out=str(out),
        score=score,
        n=len(ids),
        n_accepted=int(accepted.sum()),
        n_labelled=int(used.sum()),
        calibration=fitted,
        threshold=threshold,
        held_out=_held_out(known & ~used & np.isfinite(values), accepted, correct, error_rate) if labelled else None,
        notes=tuple(_notes(values[used], correct[used], score)),
    )
    probability = fitted.probability(values)
    table = pa.table(
        {
            "id": ids,
            "score": column,
            "p_wrong": pa.array(probability.astype(np.float32), mask=np.isnan(probability)),
            "accepted": accepted,
            "labelled": used,
        }
    )
    _write(out, table, found, {"seed": seed, "scores_sha256": sha256(scores), "labels_sha256": sha256(labels)})
    return found


def read_outcomes(path: str | Path, column: str = "correct") -> dict[str, bool]:
    """Read which rows were classified correctly, by their ids, from a CSV or Parquet file.

    Parameters
    ----------
    path : str or Path
        A file that ends in ``.csv`` or ``.parquet``, with a column ``id``.
    column : str, default="correct"
        Column of booleans, or of 0 and 1. Rows without a value are not labelled, and left out.

    Returns
    -------
    dict of str to bool
        In the file's order.

    Raises
    ------
    QScoreError
        If the file cannot be read, lacks a column, holds other values, labels no row, or labels one twice.
    """
    table = _read_labels(str(path), column)
    texts = pc.utf8_lower(pc.utf8_trim_whitespace(_as_text(table.column(column), f"{path}: {column}")))
    right, wrong, unknown = (pc.is_in(texts, pa.array(words)).to_numpy() for words in (TRUE, FALSE, UNKNOWN))
    unknown |= texts.is_null().to_numpy()
    other = np.flatnonzero(~(right | wrong | unknown))
    if len(other):
        raise QScoreError(
            f"{path}: expected booleans, or 0 and 1, in the column {column!r}, got {texts[other[0]].as_py()!r} in row "
            f"{other[0] + 1}; leave rows empty that are not labelled"
        )
    labelled = np.flatnonzero(~unknown)
    if not len(labelled):
        raise QScoreError(f"{path}: no row is labelled, the column {column!r} is empty in all {len(texts)} rows")
    ids = _as_text(table.column("id"), f"{path}: id").take(labelled)
    _check_ids(ids, str(path))
    return dict(zip(ids.to_pylist(), right[labelled].tolist(), strict=True))


def _read_labels(path: str, column: str) -> pa.Table:
    wanted = ["id", column]
    try:
        if path.lower().endswith(".parquet"):
            with pq.ParquetFile(path) as file:
                _check_columns(file.schema_arrow.names, wanted, path)
                return file.read(columns=wanted)
        if path.lower().endswith(".csv"):
            convert = pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=True, null_values=[""]
            )
            parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
            table = pyarrow.csv.read_csv(path, convert_options=convert, parse_options=parse)
            _check_columns(table.column_names, wanted, path)
            return table.select(wanted)
    except FileNotFoundError as error:
        raise QScoreError(f"{path}: no such file") from error
    except (OSError, pa.ArrowException) as error:
        raise QScoreError(f"cannot read {path}: {one_line(error)}") from error
    raise QScoreError(f"{path}: expected a file of labels that ends in .csv or .parquet")


def _read_scores(path: str | Path, name: str) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Return ids and scores."""
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            numbers = [field.name for field in schema if _is_number(field.type)]
            if name not in numbers:
                raise QScoreError(
                    f"{path}: expected a column of numbers {name!r}, got {', '.join(numbers) or 'none'}"
                    f"{nearest(name, numbers)}"
                )
            _check_columns(schema.names, ["id", name], str(path))
            table = file.read(columns=["id", name])
    except FileNotFoundError as error:
        raise QScoreError(f"{path}: no such file") from error
    except (OSError, pa.ArrowException) as error:
        raise QScoreError(f"cannot read {path}: {one_line(error)}") from error
    ids = _as_text(table.column("id"), f"{path}: id")
    _check_ids(ids, str(path))
    return ids, table.column(name)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _check_columns(names: list[str], wanted: list[str], path: str) -> None:
    for name in wanted:
        if names.count(name) != 1:
            found = ", ".join(map(repr, names[:10]))
            raise QScoreError(f"{path}: expected one column {name!r}, got {found}{nearest(name, names)}")


def _as_text(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except pa.ArrowException as error:
        raise QScoreError(f"{what}: expected one value per row, got {column.type}") from error


def _check_ids(ids: pa.ChunkedArray, name: str) -> None:
    if ids.null_count:
        raise QScoreError(f"{name}: {ids.null_count} of {len(ids)} rows have no id; rows are matched by id")
    counts = pc.value_counts(ids)
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(twice):
        raise QScoreError(
            f"{name}: {len(twice)} ids come more than once, the first is {twice[0].as_py()!r}; rows are matched by id"
        )


def _matched(
    ids: pa.ChunkedArray, outcomes: dict[str, bool], scores: str, labels: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return which scored rows are labelled, and which of them are correct."""
    named = pa.array(list(outcomes), pa.string())
    places = pc.index_in(named, value_set=ids)
    if places.null_count:
        first = named.filter(places.is_null())[0].as_py()
        raise QScoreError(
            f"{labels}: {places.null_count} of {len(named)} labelled ids are not in {scores}, the first is {first!r}"
        )
    known, correct = np.zeros(len(ids), dtype=bool), np.zeros(len(ids), dtype=bool)
    known[places.to_numpy()] = True
    correct[places.to_numpy()] = list(outcomes.values())
    return known, correct


def _drawn(usable: np.ndarray, labelled: int, seed: int) -> np.ndarray:
    """Choose some of the labelled rows at random."""
    rows = np.flatnonzero(usable)
    if not 0 < labelled < len(rows):
        raise QScoreError(
            f"labelled: expected fewer than the {len(rows)} labelled rows with a finite score, so that some are left "
            f"to check on, got {labelled}"
        )
    chosen = np.zeros(len(usable), dtype=bool)
    chosen[np.random.default_rng(seed).choice(rows, labelled, replace=False)] = True
    return chosen


def _held_out(rows: np.ndarray, accepted: np.ndarray, correct: np.ndarray, wanted: float) -> HeldOut:
    return HeldOut(int(rows.sum()), int((rows & accepted).sum()), int((rows & accepted & ~correct).sum()), wanted)


def _notes(values: np.ndarray, correct: np.ndarray, score: str) -> Iterator[str]:
    finite = np.isfinite(values)
    values, correct = values[finite], correct[finite]
    n, n_wrong = len(correct), int((~correct).sum())
    if n_wrong in (0, n):
        low, high = clopper_pearson(n_wrong, n)
        bound = f"at most {high:.1%}" if n_wrong == 0 else f"at least {low:.1%}"
        yield (
            f"All {n:,} labelled rows are {'wrong' if n_wrong else 'correct'}: p_wrong is {int(n_wrong > 0)} "
            f"everywhere, where these rows say no more than that {bound} of all rows are wrong (95 % interval)."
        )
    elif values.min() == values.max():
        yield f"All labelled rows have the same {score}: p_wrong is the share of wrong ones everywhere."
    elif mannwhitneyu(values[correct], values[~correct], alternative="less").pvalue < REVERSED:
        yield f"High values of {score} go with wrong rows here, and the map can only fall: turn the score's sign."


def _write(out: Path, table: pa.Table, found: CalibratedScores, sources: dict[str, Any]) -> None:
    record = json.loads(to_json(asdict(found))) | {"kind": "calibration", "sentences": found.sentences(), **sources}
    del record["out"]
    schema = with_record(table.schema, record)
    with atomic_path(out) as temporary:
        pq.write_table(table.replace_schema_metadata(schema.metadata), temporary)
