"""Stage ``sensitivity``: how much Q depends on epsilon, D's band, scaling and variant, on embeddings that are there.

A setting is called "label-free at use" if it was chosen once, on other methods, by labels of training images: at use it
needs none. What is chosen by test labels is never reported as a result.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Shaped
from sklearn.model_selection import train_test_split

from qscore._files import sha256
from qscore._validate import QScoreError, check_epsilon
from qscore.core import discriminative_features, q_score_v1
from qscore.evaluate.probes import fit_probe
from qscore.evaluate.ranking import bootstrap, failure_statistics
from qscore.kernels import automatic_epsilon, scan
from qscore.ssl import METHODS
from qscore.study.reproduce.context import Context
from qscore.study.reproduce.curve import Save
from qscore.study.reproduce.measuring import EVALUATION, ORIGIN, SUMMARY, TABLES
from qscore.study.reproduce.results import Unit
from qscore.tables import open_embeddings

__all__ = ["BANDS", "EPSILONS", "PAPERS", "SCALINGS", "STAGE", "quality_by_setting", "run", "settings", "units"]

log = logging.getLogger(__name__)

STAGE = "sensitivity"
EPSILONS = ("2", "3", "4", "auto")
BANDS = {"40-95": (0.40, 0.95), "50-95": (0.50, 0.95), "50-99": (0.50, 0.99), "25-95": (0.25, 0.95)}
SCALINGS = ("raw", "unit", "standardised")
VARIANTS = ("q", "q/sigma")
PAPERS, AUTOMATIC = "raw, epsilon 4, band 50-95, q", "raw, epsilon auto, band 50-95, q"
FLOOR = 1.5  # the smallest epsilon of any setting
HELD_OUT = 0.2  # of the training rows, on whose labels settings are chosen
MOST_ROWS = 50_000  # of each table
RESAMPLES = 500  # for a hundred settings


def units(context: Context) -> Iterator[Unit]:
    """Yield one unit for each method."""
    for method in METHODS:
        yield context.unit(STAGE, method, method)


def settings(context: Context, unit: Unit) -> dict[str, Any]:
    """Return what decides a unit's result: which embeddings there are, and how intervals are drawn."""
    sources = list(_sources(context, unit))
    return {
        "sources": [name for name, _ in sources],
        "embeddings": [sha256(folder / ORIGIN) for _, folder in sources],
        "resamples": min(context.scale.resamples, RESAMPLES),
    }


def run(context: Context, unit: Unit, save: Save) -> None:
    """Measure every setting on each encoder of the method whose embeddings are there."""
    sources = list(_sources(context, unit))
    if not sources:
        raise QScoreError(
            f"no embeddings of {unit.method} are there; run --stage curve or methods --methods {unit.method} first"
        )
    found = []
    for number, (name, folder) in enumerate(sources, 1):
        log.info("embeddings %d of %d: %s", number, len(sources), name)
        found.append({"source": name, **_measure(folder, context)})
        save({"sources": found}, number == len(sources))


def _sources(context: Context, unit: Unit) -> Iterator[tuple[str, Path]]:
    """Yield a method's measured encoders with embeddings: the last of each curve, and that of ``methods``."""
    labels = {
        "curve": [unit.method + f"-{width}" for width in context.backbones()],
        "methods": [unit.method],
    }
    for stage, names in labels.items():
        for name in names:
            place = context.folder / "work" / unit.scale / stage / (name + unit.ending)
            for folder in sorted(place.iterdir()) if place.exists() else ():
                if all((folder / part).exists() for part in (ORIGIN, SUMMARY, *TABLES)):
                    yield f"{stage}-{name}", folder


def _measure(folder: Path, context: Context) -> dict[str, Any]:
    train, labels, _ = _read(folder / "train-embeddings", context.seed)
    test, _, ids = _read(folder / "embeddings", context.seed)
    outcome = pq.read_table(folder / EVALUATION, columns=["id", "correct"]).to_pydict()
    known = dict(zip(outcome["id"], outcome["correct"], strict=True))
    correct = np.array([known[id] for id in ids])
    fitted, held = train_test_split(
        np.arange(len(train)), test_size=HELD_OUT, random_state=context.seed, stratify=_rare_together(labels)
    )
    probe = fit_probe("logistic", train[fitted], labels[fitted], seed=context.seed, device=context.device)
    right = probe.predict(train[held])[0] == labels[held]
    chosen_on = quality_by_setting(train[fitted], train[held])
    shown_on = quality_by_setting(train, test)
    resamples = min(context.scale.resamples, RESAMPLES)
    intervals: Mapping[str, Any] = {}
    if 0 < correct.sum() < len(correct):
        intervals, _ = bootstrap(shown_on, correct, resamples=resamples, seed=context.seed)
    return {
        "n_train": len(train),
        "n_held_out": len(held),
        "n_test": len(test),
        "settings": {
            name: {
                "train": failure_statistics(scores, right)["auroc"],
                "test": asdict(intervals[name]["auroc"]) if name in intervals else None,
            }
            for name, scores in chosen_on.items()
        },
    }


def quality_by_setting(
    fit: Float[np.ndarray, "m r"], rows: Float[np.ndarray, "n r"]
) -> dict[str, Float[np.ndarray, " n"]]:
    """Return Q of the rows under every setting, with whatever is fitted taken from other rows.

    Parameters
    ----------
    fit : ndarray of shape (m, r)
        D, automatic epsilon, and the mean and deviation of standardised features come from these.
    rows : ndarray of shape (n, r)
        What is scored.

    Returns
    -------
    dict
        Setting -> (n,) scores, higher is better. ``raw``; ``unit``: rows at unit L2 norm; ``standardised``: each
        feature less its mean, over its deviation, thresholded on one side. Values of epsilon that r features cannot
        reach are left out. Version 1's score has neither epsilon nor band, and takes rows at unit norm in any case.
    """
    found: dict[str, np.ndarray] = {}
    for scaling in SCALINGS:
        F, H = _scaled(fit, rows, scaling)
        learned, seen = scan(F, FLOOR), scan(H, FLOOR)
        sigma = np.where(seen.std > 0, seen.std, 1.0)
        for band, (lower, upper) in BANDS.items():
            automatic, _ = automatic_epsilon(lambda learned=learned: [learned], F.shape[1], lower, upper)  # type: ignore[misc]
            for epsilon in EPSILONS:
                value = automatic if epsilon == "auto" else float(epsilon)
                if not _within_reach(value, F.shape[1]):
                    continue
                D = discriminative_features(learned.at(value).counts, lower, upper)
                q = seen.at(value).q_score(D)
                for variant, scores in zip(VARIANTS, (q, q / sigma), strict=True):
                    found[f"{scaling}, epsilon {epsilon}, band {band}, {variant}"] = scores
        if scaling != "unit":
            found[f"{scaling}, v1"] = np.asarray(q_score_v1(H))
    return found


def _scaled(
    fit: Float[np.ndarray, "m r"], rows: Float[np.ndarray, "n r"], scaling: str
) -> tuple[Float[np.ndarray, "m r"], Float[np.ndarray, "n r"]]:
    if scaling == "raw":
        return fit, rows
    wide = fit.astype(np.float64), rows.astype(np.float64)
    if scaling == "unit":
        norms = [np.linalg.norm(H, axis=1, keepdims=True) for H in wide]
        fit, rows = (
            np.divide(H, norm, out=np.zeros_like(H), where=norm > 0) for H, norm in zip(wide, norms, strict=True)
        )
        return fit, rows
    mean, std = wide[0].mean(axis=0), wide[0].std(axis=0)
    fit, rows = (np.divide(H - mean, std, out=np.zeros_like(H), where=std > 0) for H in wide)
    return fit, rows


def _within_reach(epsilon: float, r: int) -> bool:
    try:
        check_epsilon(epsilon, n_features=r)
    except QScoreError:
        return False
    return True


def _read(table: Path, seed: int) -> tuple[np.ndarray, Shaped[np.ndarray, " n"], list[str]]:
    """Return rows, labels and ids, at most so many, drawn at random."""
    batch = open_embeddings(table).read()
    labels = batch.columns["label"].to_numpy(zero_copy_only=False)
    labels = labels.astype(str) if labels.dtype == object else labels
    ids = batch.columns["id"].to_pylist()
    if len(ids) <= MOST_ROWS:
        return batch.embedding, labels, ids
    some = np.sort(np.random.default_rng(seed).choice(len(ids), MOST_ROWS, replace=False))
    return batch.embedding[some], labels[some], [ids[i] for i in some]


def _rare_together(labels: Shaped[np.ndarray, " n"]) -> Bool[np.ndarray, " n"] | Shaped[np.ndarray, " n"] | None:
    """Return what to stratify by: the labels, unless one comes once only."""
    _, counts = np.unique(labels, return_counts=True)
    return labels if counts.min() > 1 and len(counts) <= HELD_OUT * len(labels) else None
