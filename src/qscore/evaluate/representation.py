"""The representation as a whole, without labels: an embedding table in, its metrics and what they mean out."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qscore._progress import Advance, progress
from qscore._validate import QScoreError
from qscore.metrics import representation_metrics
from qscore.scoring import read_scored
from qscore.tables import EmbeddingTable, open_embeddings

__all__ = ["measure_representation", "representation_sentences"]

FLAT_SHARE = 0.5  # of 1 / sqrt(r): below it rows share most of their direction


def measure_representation(
    scores: str | Path,
    table: EmbeddingTable,
    view_embeddings: str | Path | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a whole embedding table, read once and in batches.

    Parameters
    ----------
    scores : str or Path
        The score table of its rows: what is known of each feature's activity.
    table : EmbeddingTable
        Rows of r features.
    view_embeddings : str or Path, optional
        Embeddings of augmented views, those of an image next to each other, with the ids of ``table``.
    resamples, seed : int
        As for :func:`qscore.metrics.representation_metrics`.

    Returns
    -------
    dict
        The fields of :class:`qscore.metrics.RepresentationMetrics`, and ``sentences``.

    Raises
    ------
    QScoreError
        If the tables do not belong together, or no image has two views.
    """
    scored, features, _ = read_scored(scores, ["id"])
    counts = features.column("count").to_numpy()
    _check_width(f"the features of {scores}", len(counts), table)
    views = None if view_embeddings is None else open_embeddings(view_embeddings)
    if views is not None:
        _check_width(views.name, views.n_features, table)
    ids: list[pa.Array] = []
    view_ids: list[pa.Array] = []
    with progress("measure", len(table) + (len(views) if views else 0), "rows") as advance:
        found = representation_metrics(
            (embedding for embedding, _ in _read(table, ids, advance)),
            None if views is None else _read(views, view_ids, advance),
            counts=counts,
            resamples=resamples,
            seed=seed,
        )
    known = pa.chunked_array(ids, pa.string())
    _check_known(scored.column("id"), known, "scored ids", table.name)
    if views is not None:
        images = _images(pa.chunked_array(view_ids, pa.string()), views.name)
        _check_known(images, known, f"images of {views.name}", table.name)
        if not found.n_alignment:
            raise QScoreError(f"{views.name}: no image has two views to compare; qscore embed --views 2 makes them")
    metrics = asdict(found)
    return metrics | {"sentences": representation_sentences(metrics)}


def _read(table: EmbeddingTable, ids: list[pa.Array], advance: Advance) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give embeddings and ids batch by batch, and keep the ids."""
    for batch in table.batches():
        ids.append(batch.columns["id"])
        yield batch.embedding, batch.columns["id"].to_numpy(zero_copy_only=False)
        advance(len(batch))


def _images(ids: pa.ChunkedArray, name: str) -> pa.Array:
    """Return each image's id once, and refuse images whose views do not stand together."""
    ids = ids.combine_chunks()
    starts = pc.not_equal(ids[1:], ids[:-1])
    images = pa.concat_arrays([ids[:1], ids[1:].filter(starts)])
    n_apart = len(images) - len(images.unique())
    if n_apart:
        raise QScoreError(
            f"{name}: views of one image must follow one another; sort the table by id ({n_apart} do not)"
        )
    return images


def _check_width(name: str, n_features: int, table: EmbeddingTable) -> None:
    if n_features != table.n_features:
        raise QScoreError(
            f"{name}: {n_features} features, and {table.name} has {table.n_features}; both must come from the same "
            "encoder"
        )


def _check_known(ids: Any, known: pa.ChunkedArray, what: str, name: str) -> None:
    missing = ids.filter(pc.invert(pc.is_in(ids, value_set=known)))
    if len(missing):
        raise QScoreError(f"{len(missing)} of {len(ids)} {what} are not in {name}, the first is {missing[0].as_py()!r}")


def representation_sentences(found: Mapping[str, Any]) -> list[str]:
    """Say what the metrics mean, and no more than that.

    Parameters
    ----------
    found : mapping
        The fields of :class:`qscore.metrics.RepresentationMetrics`.
    """
    r, n = found["n_features"], found["n"] - found["n_invalid"]
    said = [*_spectrum(found, n, r), *_sphere(found)]
    dead = f"{found['n_dead']:,} of {r:,} features are zero in every row, {found['n_constant']:,} never vary"
    if found["n_silent"] is not None:
        dead += f", and {found['n_silent']:,} are never highly active"
    said.append(f"{dead}.")
    if not math.isnan(found["hoyer"]["value"]):
        said.append(f"Rows have a mean sparsity of {_interval(found['hoyer'])}: 0 is dense, 1 a single feature.")
    left_out = [
        f"{found[key]:,} {what}"
        for key, what in (("n_invalid", "hold NaN or infinity"), ("n_zero", "are zero"))
        if found[key]
    ]
    if left_out:
        said.append(f"Of {found['n']:,} rows, {' and '.join(left_out)}.")
    said.append("These numbers compare encoders on the same images; they say nothing of single rows.")
    return said


def _spectrum(found: Mapping[str, Any], n: int, r: int) -> Iterator[str]:
    if math.isnan(found["rankme"]):
        yield "No row has a direction, so there is no spectrum to speak of."
        return
    yield f"RankMe is {found['rankme']:.4g} of at most {min(n, r):,}: about so many directions are filled."
    if n < r:
        yield f"There are fewer valid rows ({n:,}) than features ({r:,}), which bounds all ranks: take more rows."
    if not math.isnan(found["alpha_req"]):
        pace = "slower" if found["alpha_req"] < 1 else "faster"
        yield f"Eigenvalues fall with rank to the power {-found['alpha_req']:.3g} (alpha-ReQ), {pace} than 1 / rank."


def _sphere(found: Mapping[str, Any]) -> Iterator[str]:
    share = found["normalized_std_share"]
    if not math.isnan(share):
        verdict = "a collapse to one direction" if share < 1e-3 else "rows share most of their direction"
        yield (
            f"Features of rows scaled to unit length have {share:.1%} of the standard deviation 1 / sqrt(r) that even "
            f"directions have{f': {verdict}' if share < FLAT_SHARE else ''}."
        )
    if found["alignment"] is not None:
        yield (
            f"Views of one image lie at a mean squared distance of {_interval(found['alignment'])} on the unit sphere, "
            f"over {found['n_alignment']:,} images: 0 is the same point."
        )


def _interval(statistic: Mapping[str, float]) -> str:
    if math.isnan(statistic["low"]):
        return f"{statistic['value']:.3f}"
    return f"{statistic['value']:.3f} (95 % interval {statistic['low']:.3f} to {statistic['high']:.3f})"
