"""What an explanation works on: images, their rows of a score table, outcomes and masks, matched by id."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int

from qscore._files import sha256
from qscore._validate import QScoreError, one_line
from qscore.explain.sources import Masks, open_masks
from qscore.images import ImageSource, open_images, subset
from qscore.images.shapes import drawing
from qscore.scoring import features_path, read_scored, read_stored
from qscore.tables import read_record

__all__ = ["Material", "gather", "read_lists"]

EVALUATION = "evaluation.parquet"


@dataclass(frozen=True)
class Material:
    """Images that have a valid row in the score table, in the images' order, and what is known of them."""

    images: ImageSource
    rows: pa.Table
    """Of the score table, one for each image; with ``correct`` and ``predicted`` where they are known."""
    features: pa.Table
    """The feature table."""
    record: dict[str, Any]
    """The score table's."""
    scaling: tuple[np.ndarray, np.ndarray] | None
    """Centre and scale of each feature of a signed table."""
    masks: Masks | None
    masked: Int[np.ndarray, " m"]
    """Which of the images have masks, ascending."""
    of_source: Int[np.ndarray, " n"]
    """Their positions among all images, as ``masks`` counts them."""
    n_unscored: int
    """Images without a row."""
    n_invalid: int
    """Images whose row is not valid."""
    sentences: tuple[str, ...]
    """What was left out, and why."""

    @property
    def q(self) -> Float[np.ndarray, " n"]:
        """The images' Q-Scores."""
        return np.asarray(self.rows.column("q_score").to_numpy(), dtype=np.float64)

    @property
    def correct(self) -> Float[np.ndarray, " n"]:
        """1 where an image was classified correctly, 0 where not, NaN where that is not known."""
        if "correct" not in self.rows.column_names:
            return np.full(self.rows.num_rows, np.nan)
        known = self.rows.column("correct").cast(pa.float64())
        return np.asarray(pc.fill_null(known, float("nan")).to_numpy())

    @property
    def discriminative(self) -> Bool[np.ndarray, " r"]:
        """D, as a mask over the features."""
        return np.asarray(self.features.column("discriminative").to_numpy(zero_copy_only=False), dtype=bool)


def gather(
    images: str | Path | ImageSource,
    scores: str | Path,
    *,
    masks: str | Path | None = None,
    evaluation: str | Path | None = None,
) -> Material:
    """Open images and masks, read the tables, and match them by id.

    Raises
    ------
    QScoreError
        If a source or table cannot be read, an id comes twice, or none of the images has a row.
    """
    source = open_images(images)
    rows, features, record = read_scored(scores)
    ids = _ids(rows, str(scores))
    names = pa.array([source.record(i).id for i in range(len(source))], pa.string())
    place = pc.index_in(names, value_set=ids)
    known = np.flatnonzero(place.is_valid().to_numpy(zero_copy_only=False))
    if not len(known):
        raise QScoreError(
            f"{source.name}: none of its {len(names):,} images has a row in {scores}; rows are matched by id, the "
            f"first image is {names[0].as_py()!r}, the first row {ids[0].as_py()!r}"
        )
    rows = rows.take(place.drop_null())
    _check_drawings(source, known, rows, str(scores))
    valid = np.asarray(rows.column("valid").to_numpy(zero_copy_only=False), dtype=bool)
    if not valid.any():
        raise QScoreError(f"{scores}: none of the images has a valid row, all hold NaN or infinity")
    said = _left_out(names, known, valid, str(scores))
    rows = rows.filter(pa.array(valid)).combine_chunks()
    _check_active(rows, features.num_rows, str(scores))
    if not set(rows.column_names).isdisjoint(("correct", "predicted")):  # never the score table's own
        rows = rows.drop_columns([name for name in ("correct", "predicted") if name in rows.column_names])
    rows, more = _add_outcomes(rows, Path(scores), evaluation)
    opened = None if masks is None else open_masks(masks, source)
    of_source = known[valid]
    masked = np.flatnonzero(np.isin(of_source, opened.positions)) if opened else np.empty(0, np.int64)
    if opened and not len(masked):
        raise QScoreError(f"{masks}: none of the images with masks has a valid row in {scores}; rows are matched by id")
    return Material(
        images=subset(source, of_source.tolist()),
        rows=rows,
        features=features,
        record=record,
        scaling=read_stored(features_path(scores)).scaling,
        masks=opened,
        masked=masked,
        of_source=of_source,
        n_unscored=len(names) - len(known),
        n_invalid=int((~valid).sum()),
        sentences=(*said, *more),
    )


def read_lists(rows: pa.Table) -> tuple[Int[np.ndarray, " n+1"], Int[np.ndarray, " nnz"]]:
    """Return where each row's highly active features start and end, and all of them, one after another."""
    column = rows.column("active").combine_chunks()
    offsets = column.offsets.to_numpy()
    return offsets - offsets[0], column.flatten().to_numpy()


def _ids(table: pa.Table, name: str) -> pa.Array:
    ids = table.column("id").combine_chunks().cast(pa.string())
    twice = len(ids) - pc.count_distinct(ids).as_py()
    if twice:
        raise QScoreError(
            f"{name}: {twice:,} ids come more than once; rows are matched by id, so each must have its own"
        )
    return ids


def _check_drawings(source: ImageSource, known: Int[np.ndarray, " k"], rows: pa.Table, scores: str) -> None:
    """Refuse scores of shapes that were drawn otherwise: their ids say no more than which scene it is."""
    if "path" not in rows.column_names or drawing(source.record(int(known[0])).path) is None:
        return
    for i, scored in zip(known, rows.column("path").to_pylist(), strict=True):
        record = source.record(int(i))
        was = drawing(scored or "")
        if was is not None and was != drawing(record.path):
            raise QScoreError(
                f"{source.name}: expected the drawn shapes that {scores} is of, got others under the same ids, the "
                f"first is {record.path!r}, scored was {scored!r}"
            )


def _check_active(rows: pa.Table, n_features: int, scores: str) -> None:
    _, active = read_lists(rows)
    if active.max(initial=-1) >= n_features or active.min(initial=0) < 0:
        wrong = active.max() if active.max() >= n_features else active.min()
        raise QScoreError(
            f"{scores}: feature {wrong} is highly active in some row, and the feature table has {n_features:,} "
            "features, from 0 on; it belongs to another score table"
        )


def _left_out(names: pa.Array, known: np.ndarray, valid: np.ndarray, scores: str) -> list[str]:
    said = []
    if len(known) < len(names):
        has = set(known.tolist())
        first = next(name.as_py() for i, name in enumerate(names) if i not in has)
        n = len(names) - len(known)
        verb = "has" if n == 1 else "have"
        said.append(f"{n:,} of {len(names):,} images {verb} no row in {scores}, the first is {first!r}: left out.")
    if not valid.all():
        said.append(f"{int((~valid).sum()):,} images whose rows are not valid were left out.")
    return said


def _add_outcomes(rows: pa.Table, scores: Path, evaluation: str | Path | None) -> tuple[pa.Table, list[str]]:
    """Add which rows are correct, by the evaluation table that is named, or lies beside the score table."""
    path = scores.parent / EVALUATION if evaluation is None else Path(evaluation)
    if evaluation is None and not path.is_file():
        return rows, ["Which rows are correct is not known: there is no evaluation table."]
    try:
        return _with_outcomes(rows, scores, path)
    except QScoreError as error:
        if evaluation is not None:
            raise
        return rows, [f"Which rows are correct is not known: {error}."]


def _with_outcomes(rows: pa.Table, scores: Path, path: Path) -> tuple[pa.Table, list[str]]:
    found, record = _read_evaluation(path)
    if record.get("scores_sha256", "") not in ("", sha256(scores)):
        raise QScoreError(f"{path} was made of another score table than {scores}; run qscore evaluate again")
    place = pc.index_in(rows.column("id").combine_chunks().cast(pa.string()), value_set=_ids(found, str(path)))
    missing = place.null_count
    if missing == len(place):
        raise QScoreError(f"{path}: none of the {len(place):,} scored images is in it; rows are matched by id")
    for name in ("correct", "predicted"):
        if name in found.column_names:
            rows = rows.append_column(name, found.column(name).combine_chunks().take(place))
    said = [f"{missing:,} of {len(place):,} images are not in {path}: whether they are correct is not known."]
    return rows, said if missing else []


def _read_evaluation(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if not {"id", "correct"} <= set(names) or file.schema_arrow.field("correct").type != pa.bool_():
                raise QScoreError("expected an evaluation table, with id and correct, as qscore evaluate writes it")
            wanted = [name for name in ("id", "correct", "predicted") if name in names]
            return file.read(columns=wanted), read_record(file.schema_arrow)
    except QScoreError as error:
        raise QScoreError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise QScoreError(f"{path}: no such file") from error
    except (OSError, pa.ArrowException) as error:
        raise QScoreError(f"cannot read {path}: {one_line(error)}") from error
