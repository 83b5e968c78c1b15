"""The embeddings of scored rows, batch by batch, wherever in their table they stand."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from qscore._validate import QScoreError
from qscore.tables import open_embeddings

__all__ = ["check_joined", "iter_joined"]


def check_joined(embeddings: str | Path, rows: pa.Table, n_features: int) -> None:
    """Read an embedding table once, and refuse what `iter_joined` would refuse on the way."""
    for _ in iter_joined(embeddings, rows, n_features):
        pass


def iter_joined(
    embeddings: str | Path, rows: pa.Table, n_features: int
) -> Iterator[tuple[Int[np.ndarray, " b"], Float[np.ndarray, "b r"]]]:
    """Give positions in a score table, and the embeddings of the rows there; memory is bounded by the batch.

    Parameters
    ----------
    embeddings : str or Path
        An embedding table, which may hold other rows too.
    rows : pyarrow.Table
        Of a score table, with ``id``.
    n_features : int
        Width r that the feature table speaks of.

    Raises
    ------
    QScoreError
        If the table has another width, holds views, an id twice, or lacks a row.
    """
    table = open_embeddings(embeddings)
    if table.n_features != n_features:
        raise QScoreError(
            f"{embeddings}: expected the {n_features} features of the feature table, got {table.n_features}"
        )
    if "view" in table.columns:
        raise QScoreError(f"{embeddings}: expected one row for each image, got views of images; name their own table")
    place = {id: i for i, id in enumerate(rows.column("id").to_pylist())}
    seen = np.zeros(len(place), dtype=bool)
    for batch in table.batches():
        found = np.array([place.get(id, -1) for id in batch.columns["id"].to_pylist()], dtype=np.int64)
        inside = np.flatnonzero(found >= 0)
        at = found[inside]
        if seen[at].any() or len(np.unique(at)) < len(at):
            raise QScoreError(f"{embeddings}: expected each id once, got some twice; is it the table that was scored?")
        seen[at] = True
        if len(at):
            yield at, batch.embedding[inside]
    if not seen.all():
        first = rows.column("id")[int(np.flatnonzero(~seen)[0])].as_py()
        raise QScoreError(
            f"{embeddings}: {int((~seen).sum()):,} of {len(seen):,} scored rows are not in this table, the first is "
            f"{first!r}; name the table that was scored"
        )
