"""Embedding table in, a narrower embedding table out: only the features that are kept."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qscore._files import atomic_path, check_new_table
from qscore._progress import progress
from qscore._validate import Epsilon, QScoreError, check_keep, settle_epsilon
from qscore.core import kept_features
from qscore.scoring.features import read_stored
from qscore.scoring.pipeline import score
from qscore.scoring.summary import features_path
from qscore.scoring.work import SCORES, work_folder
from qscore.tables import EmbeddingTable, open_embeddings, with_record

__all__ = ["CompressionSummary", "compress"]


@dataclass(frozen=True)
class CompressionSummary:
    """What compressing a table did."""

    n: int
    """Rows."""
    n_features: int
    """r, before."""
    n_kept: int
    """Features kept."""
    n_silent: int
    """Features kept that are highly active in no row."""
    keep: float
    """The share asked for."""
    epsilon: float
    """The epsilon at which activations were counted."""
    signed: bool
    """Whether rows were scaled and thresholded on both sides, to be counted; what is written is not scaled."""


def compress(
    embeddings: str | Path,
    out: str | Path,
    *,
    keep: float = 0.6,
    epsilon: Epsilon | None = None,
    features: str | Path | None = None,
    column: str | None = None,
    overwrite: bool = False,
) -> CompressionSummary:
    """Keep a share of the features of an embedding table, chosen without labels by how often they fire.

    Features are ranked by their activation rate, ties by index, and ``keep = k`` takes the ranks from the quantile
    ``max(0, 0.95 - k)`` to ``max(0.95, k)`` (Kalibhat et al., AAAI 2024, arXiv 2203.01881). Rows keep their order and
    their ``id``, ``label``, ``path`` and ``view``; values keep their type (float64 stays float64) and are not scaled;
    rows with NaN or infinity stay, and count nowhere. The table's record gains ``keep`` and ``kept_features``, the
    indices into the encoder's own features.

    Parameters
    ----------
    embeddings : str or Path
        A table of shape (n, r), of any kind that :func:`qscore.score` reads. Read once more than scoring does; with
        ``features`` once in all.
    out : str or Path
        The Parquet file to write, ending in ``.parquet``.
    keep : float, default=0.6
        Share of the features to keep, in (0, 1]; 0.45 is the band of the discriminative features itself.
    epsilon : float, "auto" or "paper", default="auto"
        Standard deviations above the row's mean at which a feature counts as highly active, > 0; as in
        :func:`qscore.score`.
    features : str or Path, optional
        A feature table from an earlier run, whose counts rank the features: test rows are compressed like training
        rows.
    column : str, optional
        The column of vectors, where there are several.
    overwrite : bool, default=False
        Replace an existing output.

    Returns
    -------
    CompressionSummary
        Rows, and features before and after.

    Raises
    ------
    QScoreError
        If the table cannot be read, the output exists or is an input, a parameter is out of range, the feature table is
        of another width, or fewer than 2 features would be left.

    Examples
    --------
    >>> import numpy as np, tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> H = np.random.default_rng(0).gamma(0.2, size=(500, 64)).astype(np.float32)
    >>> np.save(folder / "embeddings.npy", H)
    >>> summary = compress(folder / "embeddings.npy", folder / "small.parquet", keep=0.6, epsilon=2.0)
    >>> summary.n_features, summary.n_kept
    (64, 39)
    """
    check_keep(keep)
    if features is not None and epsilon is not None:
        raise QScoreError("features: the feature table settles epsilon; give only one or the other")
    out = check_new_table(out, [embeddings] if features is None else [embeddings, features], overwrite=overwrite)
    table = open_embeddings(embeddings, column=column)
    with work_folder(
        out,
        {"table": table.fingerprint, "epsilon": "auto" if epsilon is None else settle_epsilon(epsilon)},
        resume=True,
    ) as folder:
        ranked = folder / SCORES
        if features is None and not ranked.exists():  # ranked as the feature table of a score run ranks
            score(embeddings, ranked, epsilon=epsilon, column=column)
        stored = read_stored(features_path(ranked) if features is None else features, table)
        kept = kept_features(stored.counts, keep)
        if len(kept) < 2:
            raise QScoreError(
                f"keep: {keep:g} leaves {len(kept)} of {table.n_features} features; a table needs at least 2: keep more"
            )
        _write(out, table, kept, keep)
    return CompressionSummary(
        n=len(table),
        n_features=table.n_features,
        n_kept=len(kept),
        n_silent=int((stored.counts[kept] == 0).sum()),
        keep=float(keep),
        epsilon=stored.settings["epsilon"],
        signed=stored.settings["signed"],
    )


def _write(out: Path, table: EmbeddingTable, kept: np.ndarray, keep: float) -> None:
    origin = table.record.get("kept_features")  # of a table that was compressed before
    indices = kept if origin is None else np.asarray(origin)[kept]
    record = {"kind": "embeddings", **table.record, "keep": float(keep), "kept_features": indices.tolist()}
    rows = _narrow_rows(table, kept)
    first = next(rows)
    schema = with_record(first.schema, record)
    with (
        progress("compress", len(table), "rows") as advance,
        atomic_path(out) as temporary,
        # Embeddings do not compress, and their values do not repeat: plain pages read twice as fast.
        pq.ParquetWriter(temporary, schema, compression="none", use_dictionary=False) as writer,
    ):
        for batch in chain([first], rows):
            for name in schema.names:
                kinds = schema.field(name).type, batch.schema.field(name).type
                if kinds[0] != kinds[1]:
                    raise QScoreError(
                        f"{table.name}: shards differ in the type of {name!r}: {kinds[0]} in some, {kinds[1]} in others"
                    )
            writer.write_batch(batch)
            advance(len(batch))


def _narrow_rows(table: EmbeddingTable, kept: np.ndarray) -> Iterator[pa.RecordBatch]:
    for batch in table.batches():
        embedding = np.take(batch.embedding, kept, axis=1)
        values = pa.array(embedding.astype(embedding.dtype.newbyteorder("="), copy=False).reshape(-1))
        columns = {**batch.columns, "embedding": pa.FixedSizeListArray.from_arrays(values, len(kept))}
        order = [name for name in ("id", "embedding", "label", "path", "view") if name in columns]
        yield pa.record_batch({name: columns[name] for name in order})
