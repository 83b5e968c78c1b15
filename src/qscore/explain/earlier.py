"""An earlier explanation of the same images, by another encoder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from qscore._validate import QScoreError, one_line
from qscore.explain.localisation import CONTROLS, SETS
from qscore.images.shapes import drawing

__all__ = ["Earlier", "read_earlier"]

TABLE = "explanations.parquet"


@dataclass(frozen=True)
class Earlier:
    """Rows of an earlier explanation that were measured against masks."""

    name: str
    ids: tuple[str, ...]
    samples: dict[str, Float[np.ndarray, " n"]]
    """As `qscore.explain.localisation.Located.samples`, of the IoU alone."""
    q: Float[np.ndarray, " n"]
    correct: Float[np.ndarray, " n"]
    """1, 0, or NaN where it is not known."""

    def match(self, ids: Sequence[str]) -> tuple[Int[np.ndarray, " m"], "Earlier"]:
        """Return the positions of the ids that are here, and these rows.

        Raises
        ------
        QScoreError
            If none is.
        """
        place = {id: i for i, id in enumerate(self.ids)}
        own = [i for i, id in enumerate(ids) if id in place]
        if not own:
            raise QScoreError(
                f"{self.name}: none of its {len(self.ids):,} measured images is among these; rows are matched by id"
            )
        here = [place[ids[i]] for i in own]
        samples = {name: values[here] for name, values in self.samples.items()}
        matched = Earlier(self.name, tuple(self.ids[i] for i in here), samples, self.q[here], self.correct[here])
        return np.array(own, np.int64), matched


def read_earlier(
    folder: Path, out: Path, images: str, kinds: tuple[str, str] | None, method: str, layer: str | None
) -> Earlier:
    """Read an earlier explanation, to be compared with one that is made now.

    Parameters
    ----------
    folder, out : Path
        Of the earlier one, and of this.
    images : str
        Name of this one's images.
    kinds : tuple of str or None
        What this one's masks mark.
    method, layer : str
        Of this one's heatmaps.

    Raises
    ------
    QScoreError
        If it cannot be read, is this one's own directory, or was measured in another way.
    """
    if folder.resolve() == out.resolve():
        raise QScoreError(
            f"{folder}: the earlier explanation would be overwritten; choose another directory for this one"
        )
    if kinds is None:
        raise QScoreError(f"{folder}: expected masks, to compare with an earlier explanation; got none")
    for name in ("explain.json", TABLE):
        if not (folder / name).is_file():
            raise QScoreError(f"{folder}: expected an earlier explanation, with {name}")
    try:
        settings = json.loads((folder / "explain.json").read_text(encoding="utf-8"))
        table = pq.read_table(folder / TABLE)
        found = tuple(settings["kinds"] or ()), settings["method"], settings["layer"]
        were = str(settings["images"])
        same = drawing(were) == drawing(images) or None in (drawing(were), drawing(images))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise QScoreError(f"{folder}: cannot read this explanation: {one_line(error)}") from error
    for what, was, now in zip(("kinds of masks", "method", "layer"), found, (kinds, method, layer), strict=True):
        if was != now:
            raise QScoreError(f"{folder}: its {what}: {_plain(was)}; now {_plain(now)}; both must be the same")
    if not same:  # under the same ids
        raise QScoreError(f"{folder}: its images: {were}; now {images}; both must be the same but for their number")
    return _measured(str(folder), table, kinds)


def _measured(name: str, table: pa.Table, kinds: tuple[str, str]) -> Earlier:
    """Return the rows that were measured; of the table's columns, those that a comparison takes."""
    wanted = [f"{kind}_iou_{of}" for kind in kinds for of in (*SETS, *CONTROLS)]
    missing = [column for column in ("id", "q_score", *wanted) if column not in table.column_names]
    if missing:
        raise QScoreError(
            f"{name}: cannot read this explanation: {TABLE} has no column {missing[0]!r}; run qscore explain again"
        )
    try:
        samples = {column: _floats(table, column) for column in wanted}
        q = _floats(table, "q_score")
        correct = _floats(table, "correct") if "correct" in table.column_names else np.full(table.num_rows, np.nan)
    except pa.ArrowException as error:
        raise QScoreError(f"{name}: cannot read this explanation: {TABLE}: {one_line(error)}") from error
    measured = ~np.all([np.isnan(samples[f"{kind}_iou_random_map"]) for kind in kinds], axis=0)
    ids = tuple(str(id) for id, known in zip(table.column("id").to_pylist(), measured, strict=True) if known)
    if len(set(ids)) < len(ids):
        raise QScoreError(f"{name}: cannot read this explanation: {TABLE} holds an id more than once")
    samples = {column: values[measured] for column, values in samples.items()}
    return Earlier(name, ids, samples, q[measured], correct[measured])


def _floats(table: pa.Table, name: str) -> Float[np.ndarray, " n"]:
    """Return a column; NaN where it is null."""
    return np.asarray(table.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def _plain(value: object) -> str:
    return " and ".join(map(str, value)) if isinstance(value, tuple) else str(value)
