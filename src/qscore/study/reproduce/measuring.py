"""One encoder measured: embedded, scored, evaluated, and what of it a result keeps."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool

from qscore._files import atomic_path, to_json
from qscore.embedding import embed
from qscore.encoders import Encoder, load_encoder
from qscore.evaluate import evaluate_scores
from qscore.evaluate.compression import JUDGED
from qscore.evaluate.curve import MARGIN
from qscore.images import ImageSource
from qscore.scoring import features_path, score, summarize_scores
from qscore.ssl.watch import Diverged
from qscore.study.measure import check_alive
from qscore.study.reproduce.context import Context
from qscore.study.reproduce.results import compact
from qscore.study.reproduce.views import embed_views
from qscore.tables import open_embeddings

__all__ = [
    *(
        "EVALUATION",
        "FITTED",
        "ORIGIN",
        "SUMMARY",
        "TABLES",
        "claim_folder",
        "condense",
        "correct_rows",
        "made_of",
        "measure_encoder",
    ),
    "paired_rise",
]

log = logging.getLogger(__name__)

SUMMARY, EVALUATION, ORIGIN = "summary.json", "evaluation.parquet", "made-of.json"
SCORED, FITTED = "scores.parquet", "train-scores.parquet"
VIEWS = "views.parquet"
TABLES = ("train-embeddings", "embeddings")
STATISTICS = ("auroc", "ap_correct", "ap_wrong", "aurc")
AGAINST = ("auroc",)
CLAIMED = (
    *(("n_active", s) for s in ("mean_correct", "mean_wrong", "cliffs_delta")),
    *(("z", s) for s in ("mean_correct", "mean_wrong", "cliffs_delta")),
    *(("n_discriminative", s) for s in ("mean_correct", "mean_wrong", "cliffs_delta")),
    *((f"purity_{s}", "excess") for s in ("discriminative", "random", "frequent")),
    ("purity_random", "excess_p95"),
    *((f"purity_discriminative - purity_{s}", "excess") for s in ("random", "frequent")),
)


def measure_encoder(
    context: Context,
    encoder: str | Path,
    folder: Path,
    *,
    train: ImageSource | None = None,
    test: ImageSource | None = None,
    keep: bool = True,
) -> dict[str, Any]:
    """Embed train and test images and views of the latter, find D on the former, and evaluate Q on the latter.

    Epsilon is automatic, fitted on the training rows; the probe learns from them too, and chooses its strength on a
    part of them. What was finished with this encoder, these images and settings is taken from the folder.

    Parameters
    ----------
    context : Context
        Scale, images, and where to compute.
    encoder : str or Path
        What `load_encoder` takes.
    folder : Path
        Of this encoder alone.
    train, test : ImageSource, optional
        Other images than the context's.
    keep : bool, default=True
        Whether the embeddings stay, for the stages that read them; views never do.

    Returns
    -------
    dict
        As `condense` makes it; of representations that are not finite, or all the same, ``failed``: the reason.
    """
    loaded = load_encoder(encoder)
    train, test = train or context.train, test or context.test
    options = {"views": context.scale.views, "resamples": context.scale.resamples, "seed": context.seed}
    claim_folder(folder, made_of(loaded, train, test) | options)
    tables = [folder / name for name in TABLES]
    try:
        found: dict[str, Any] = json.loads((folder / SUMMARY).read_text())
    except (OSError, ValueError):  # not there yet, or damaged
        found = compact(_measured(context, loaded, folder, tables, train, test))
        with atomic_path(folder / SUMMARY) as file:
            file.write_text(to_json(found, indent=1) + "\n")
    (folder / VIEWS).unlink(missing_ok=True)
    for table in tables if "failed" in found or not keep else ():
        shutil.rmtree(table, ignore_errors=True)
    return found


def _measured(
    context: Context, loaded: Encoder, folder: Path, tables: Sequence[Path], train: ImageSource, test: ImageSource
) -> dict[str, Any]:
    common: dict[str, Any] = {"on_error": "raise", "device": context.device, "workers": context.workers}
    common["batch_size"] = context.scale.batch_size
    embed(train, loaded, tables[0], **common)
    embed(test, loaded, tables[1], **common)
    try:
        for table in tables:
            check_alive(open_embeddings(table).read())
    except Diverged as error:
        log.warning("this encoder cannot be measured: %s", error)
        return {"failed": str(error)}
    seen = folder / VIEWS
    if not seen.exists():
        embed_views(test, loaded, seen, views=context.scale.views, seed=context.seed, device=context.device)
    fitted, scored = folder / FITTED, folder / SCORED
    score(tables[0], fitted, epsilon="auto", overwrite=True)
    score(tables[1], scored, features=features_path(fitted), overwrite=True)
    metrics = evaluate_scores(
        scored,
        tables[1],
        tables[0],
        view_embeddings=seen,
        device=context.device,
        resamples=context.scale.resamples,
        seed=context.seed,
        overwrite=True,
    )
    metrics["train_coverage"] = summarize_scores(fitted).coverage
    return condense(metrics)


def made_of(encoder: Encoder, *images: ImageSource) -> dict[str, Any]:
    """Return what a measurement depends on, beside its settings."""
    return {"encoder": encoder.fingerprint(), "images": [source.fingerprint for source in images]}


def claim_folder(folder: Path, origin: Mapping[str, Any]) -> Path:
    """Return a folder of what was made of this origin; what another origin has left in it is removed.

    Parameters
    ----------
    folder : Path
        Of a reproduction's own, holding nothing but what can be made anew.
    origin : mapping
        As JSON can hold it.
    """
    file = folder / ORIGIN
    try:
        same = json.loads(file.read_text()) == origin
    except (OSError, ValueError):
        same = False
    if not same:
        if folder.exists():
            log.info("%s is of another encoder, other images or settings; it is made anew", folder)
            file.unlink(missing_ok=True)  # first: what a kill leaves of the folder is then nobody's
            shutil.rmtree(folder)
        with atomic_path(file) as temporary:
            temporary.write_text(to_json(origin) + "\n")
    return folder


def condense(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return of an evaluation what tables and verdicts are made from.

    Parameters
    ----------
    metrics : mapping
        As `evaluate_scores` returns them, and ``train_coverage``.
    """
    table = metrics["score_table"]
    probe = metrics["probe"]
    found: dict[str, Any] = {
        "n_test": metrics["n"],
        "accuracy": probe["accuracy"],
        "majority": probe["majority"],
        "n_train": probe["n_train"],
        "n_features": table["n_features"],
        "epsilon": table["epsilon"],
        "n_discriminative": table["n_discriminative"],
        "coverage": table["coverage"],
        "train_coverage": metrics["train_coverage"],
        "undefined": metrics["undefined"],
        "base_rate": metrics["base_rate"]["correct"],
        "scores": {name: {key: of[key] for key in STATISTICS if key in of} for name, of in metrics["scores"].items()},
        "q_minus": {name: {key: of[key] for key in AGAINST} for name, of in metrics["q_minus"].items()},
        "within_class": metrics["class_mean"].get("q_score", {}).get("auroc"),
        "random_d": (metrics["random_d"] or {}).get("auroc"),
        "gain_on_norm": metrics["gain"].get("q_on_top_of", {}).get("l2_norm"),
        "left_out": metrics["left_out"],
        "claims": _claims(metrics["claims"]),
        "compression": _compression(metrics["compression"]),
        "representation": _whole(metrics["representation"]),
    }
    return found


def _claims(claims: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if claims is None:
        return None
    kept = [
        {name: row[name] for name in ("quantity", "scope", "statistic", "value", "low", "high")}
        for row in claims["records"]
        if (row["quantity"], row["statistic"]) in CLAIMED
    ]
    return {"verdicts": claims["verdicts"], "conditions": claims["conditions"], "records": kept}


def _compression(records: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Return the judged points, each with the rule's answer: above -1 point, and above random's 95th percentile."""
    if records is None:
        return None
    at = {(row["method"], row["keep"]): row for row in records}
    found = []
    for keep in JUDGED:
        rank, random = at["rank", keep], at["random", keep]
        others = {name: at[name, keep]["accuracy"] for name in ("variance", "rate", "pca")}
        found.append(
            {
                "keep": keep,
                "n_kept": rank["n_kept"],
                "accuracy": rank["accuracy"],
                "full": at["rank", 1.0]["accuracy"],
                **{name: rank[name] for name in ("change", "change_low", "change_high")},
                "random": random["accuracy"],
                "random_high": random["high"],
                **others,
                "retained": rank["change_low"] > MARGIN,
                "holds": rank["change_low"] > MARGIN and rank["accuracy"] > random["high"],
            }
        )
    return found


def _whole(metrics: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("rankme", "alpha_req", "uniformity", "normalized_std", "n_dead", "hoyer", "alignment"):
        value = metrics.get(name)
        found[name] = value["value"] if isinstance(value, Mapping) else value
    return found


def correct_rows(folder: Path) -> Bool[np.ndarray, " n"]:
    """Return which test rows the probe of a measured encoder classifies correctly, in the order of their ids."""
    table = pq.read_table(folder / EVALUATION, columns=["id", "correct"]).sort_by("id")
    return np.asarray(table.column("correct").to_numpy(zero_copy_only=False), dtype=bool)


def paired_rise(before: Bool[np.ndarray, " n"], after: Bool[np.ndarray, " n"]) -> dict[str, Any]:
    """Return by how much accuracy rose on the same rows, its standard error, and whether it rose by more than that.

    Examples
    --------
    >>> before = np.array([True, False] * 50); after = ~before
    >>> paired_rise(before, after)["rising"], paired_rise(before, np.ones(100, dtype=bool))["rising"]
    (False, True)
    """
    change = after.astype(np.float64) - before.astype(np.float64)
    error = float(change.std(ddof=1) / np.sqrt(len(change))) if len(change) > 1 else float("nan")
    rise = float(change.mean())
    return {"rise": rise, "standard_error": error, "rising": rise > error}
