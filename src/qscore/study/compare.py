"""`compare`: is it the regulariser, or would anything have done? One checkpoint, five arms, the same test rows."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qscore._files import atomic_path, to_json
from qscore._validate import QScoreError
from qscore.encoders import Encoder
from qscore.evaluate.ranking import resampled_statistics
from qscore.images import ImageSource
from qscore.ssl.finetune import make_feeds, warm_up, where_images_go
from qscore.ssl.run import RunFolder
from qscore.study.arms import ARMS, Outcome, choose_arms, run_arm
from qscore.study.finetune import prepare, summary
from qscore.study.measure import METRICS, discover, measure
from qscore.study.paired import bootstrap_means, interval, minimum_effect
from qscore.study.settings import Tuning, refuse_empty, refuse_own_folder
from qscore.study.verdicts import judge

__all__ = ["compare", "contrast"]

log = logging.getLogger(__name__)

MORE = ("warmup", "start", "arms", "compare.json", "compare.parquet")
REFERENCES: dict[str, tuple[str, ...]] = {
    "lr0": (),
    "plain": ("lr0",),
    "lasso": ("plain", "lr0"),
    "qscore": ("plain", "lr0", "random-d", "lasso"),
}
AGAINST = ("plain", "lr0")


def compare(
    checkpoint: str | Path | Encoder,
    method: str,
    images: str | Path | ImageSource,
    out: str | Path,
    *,
    test_images: str | Path | ImageSource | None = None,
    arms: Sequence[str] = tuple(ARMS),
    seeds: int = 3,
    features: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    settings: Tuning | None = None,
    resamples: int = 2000,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Branch one checkpoint into Q-Score regularisation and its controls, and measure all on the same test rows.

    The arms take the same steps at the same learning rate on the same images in the same order, BatchNorm in training
    mode: learning rate 0 (BatchNorm's statistics only), plain, Lasso, Q-Score, and Q-Score with a random D of the same
    size, drawn from the features that are ever highly active. Arms and seeds are folders, ``arms/ARM/seed-K``, that are
    left as they are once finished; the same call again goes on, and may ask for more of either. An arm that diverges is
    reported, and does not stop the others.

    Parameters
    ----------
    checkpoint, method, images, test_images, features, overrides, settings, resamples, overwrite
        As `finetune` takes them.
    out : str or Path
        Folder for ``arms``, ``start``, ``compare.json`` and ``compare.parquet``.
    arms : sequence of str
        Of ``"lr0"``, ``"plain"``, ``"lasso"``, ``"qscore"``, ``"random-d"``.
    seeds : int, default=3
        Fine-tunings of each arm, with seeds ``seed``, ``seed + 1``, ...
    seed : int, default=0
        The first; also of split, heads, probe and resamples.

    Returns
    -------
    dict
        The content of ``compare.json``: ``start``, ``arms`` (means over seeds of each metric with paired bootstrap
        intervals over test rows, each seed's value, the seeds' standard deviation, gradient ratios, why seeds failed),
        ``differences`` (arm -> reference -> metric -> value, low, high, each seed's, ``relative``,
        ``minimum_effect``), ``verdicts``, ``sentences``.

    Raises
    ------
    QScoreError
        As `finetune`, but not for an arm that diverges.
    """
    tuning = settings or Tuning()
    refuse_own_folder(checkpoint, out)
    chosen = choose_arms(arms)
    if seeds < 1:
        raise QScoreError(f"seeds: expected at least 1, got {seeds}")
    kinds = tuple(ARMS[name].regularizer for name in chosen)
    made = prepare(
        checkpoint,
        method,
        images,
        test_images,
        kinds=kinds,
        features=features,
        overrides=overrides,
        tuning=tuning,
        resamples=resamples,
        seed=seed,
    )
    folder = RunFolder(Path(out), "settings.json", MORE)
    data = where_images_go(made.train, made.start, tuning.hardware, None if overwrite else folder.recorded("data"))
    record = made.record | {"data": data, "seed": seed}
    folder.check(record, overwrite=overwrite)
    folder.begin(record, overwrite=overwrite)
    hardware = tuning.hardware
    encoder = made.start.encoder
    D = made.given or discover(folder.path / "start", encoder, made.train, tuning.epsilon, hardware)
    refuse_empty(kinds, D)
    beginning = measure(
        folder.path / "start", encoder, made.train, made.test, epsilon=D.epsilon, hardware=hardware, seed=seed
    )
    feeds = make_feeds(made.start, made.train, hardware, data)
    start = warm_up(made.start, feeds, folder.path / "warmup", tuning.warmup_heads, seed=seed, hardware=hardware)
    outcomes: list[Outcome] = []
    for number in range(seeds):
        for name in chosen:
            log.info("arm %s, seed %d: %d of %d", name, seed + number, len(outcomes) + 1, seeds * len(chosen))
            place = folder.path / "arms" / name / f"seed-{seed + number}"
            outcomes.append(
                run_arm(
                    *(name, seed + number, place),
                    made=made,
                    start=start,
                    feeds=feeds,
                    D=D,
                    tuning=tuning,
                    data=data,
                    probe_seed=seed,
                )
            )
    found: dict[str, Any] = {
        "method": method,
        "seeds": [seed + number for number in range(seeds)],
        "n_train": len(made.train),
        "n_test": len(made.test),
        "n_discriminative": len(D.indices),
        "epsilon": D.epsilon,
        "settings": tuning.to_json() | {"batch_size": start.config.batch_size, "optimizer": start.config.optimizer},
        "start": summary(beginning, resamples=resamples, seed=seed),
        **contrast(outcomes, resamples=resamples, seed=seed),
    }
    found["verdicts"], found["sentences"] = judge(found)
    _write(folder.path, found)
    return found


def contrast(outcomes: Sequence[Outcome], *, resamples: int, seed: int) -> dict[str, Any]:
    """Set arms against one another on the same test rows.

    The mean over seeds of a row's values is that row's; rows are drawn, seeds are not: their spread stands beside.

    Parameters
    ----------
    outcomes : sequence of Outcome
        Of every arm and seed; those that failed are counted.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        ``arms`` and ``differences``, see `compare`.
    """
    alive = [outcome for outcome in outcomes if outcome.measured is not None]
    drawn, rows = _draw(alive, resamples, seed)
    arms: dict[str, Any] = {}
    for name in dict.fromkeys(outcome.arm for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.arm == name]
        arms[name] = {
            "title": ARMS[name].title,
            "metrics": {metric: _pooled(seeds) for metric, of in drawn.items() if (seeds := of.get(name))},
            "gradient_ratios": _ratios(own),
            "failed": {str(outcome.seed): outcome.failed for outcome in own if outcome.failed},
        }
    differences: dict[str, Any] = {}
    for name in arms:
        for reference in REFERENCES.get(name, AGAINST):
            if reference in arms and reference != name:
                differences.setdefault(name, {})[reference] = _differences(drawn, rows, name, reference)
    return {"arms": arms, "differences": differences}


Drawn = dict[str, dict[str, dict[int, np.ndarray]]]
"""Metric -> arm -> seed -> (1 + resamples,) values, of the rows as they are first."""


def _draw(alive: Sequence[Outcome], resamples: int, seed: int) -> tuple[Drawn, Drawn]:
    """Return every metric of the rows and of every resample, and the rows' own values."""
    drawn: Drawn = {}
    rows: Drawn = {}
    for metric in METRICS:
        having = [outcome for outcome in alive if outcome.measured and metric in outcome.measured.rows]
        if not having:
            continue
        values = np.stack([outcome.measured.rows[metric] for outcome in having if outcome.measured], axis=1)
        values[np.isnan(values).any(axis=1)] = np.nan  # so that all arms are measured on the same rows
        means = bootstrap_means(values, resamples=resamples, seed=seed)
        for k, outcome in enumerate(having):
            drawn.setdefault(metric, {}).setdefault(outcome.arm, {})[outcome.seed] = means[:, k]
            rows.setdefault(metric, {}).setdefault(outcome.arm, {})[outcome.seed] = values[:, k]
    for outcome in alive:
        assert outcome.measured is not None
        correct = outcome.measured.rows.get("accuracy")
        if correct is not None and 0 < correct.sum() < len(correct):
            q = {"q": outcome.measured.rows["q"]}
            statistics = resampled_statistics(q, correct == 1, resamples=resamples, seed=seed)
            drawn.setdefault("auroc", {}).setdefault(outcome.arm, {})[outcome.seed] = statistics[:, 0, 0]
    return drawn, rows


def _pooled(seeds: Mapping[int, np.ndarray]) -> dict[str, Any]:
    each = {str(seed): float(values[0]) for seed, values in seeds.items()}
    spread = float(np.std(list(each.values()), ddof=1)) if len(each) > 1 else np.nan
    return asdict(interval(np.mean(list(seeds.values()), axis=0))) | {"seeds": each, "seeds_sd": spread}


def _differences(drawn: Drawn, rows: Drawn, name: str, reference: str) -> dict[str, Any]:
    """Return the difference of two arms in every metric, over the seeds that both have."""
    found: dict[str, Any] = {}
    for metric, of in drawn.items():
        common = sorted(of.get(name, {}).keys() & of.get(reference, {}).keys())
        if not common:
            continue
        ours, theirs = (np.mean([of[arm][seed] for seed in common], axis=0) for arm in (name, reference))
        found[metric] = _pooled({seed: of[name][seed] - of[reference][seed] for seed in common})
        if metric == "auroc":
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            found[metric]["relative"] = asdict(interval(ours / theirs - 1))
        paired = [rows[metric][name][seed] - rows[metric][reference][seed] for seed in common]
        found[metric]["minimum_effect"] = minimum_effect(np.mean(paired, axis=0))
    return found


def _ratios(own: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Return gradient ratios, means over the seeds."""
    names = dict.fromkeys(name for outcome in own for name in outcome.gradient_ratios)
    return {
        name: {
            when: float(np.mean([outcome.gradient_ratios[name][when] for outcome in own if outcome.gradient_ratios]))
            for when in ("first", "mean")
        }
        for name in names
    }


def _write(folder: Path, found: dict[str, Any]) -> None:
    with atomic_path(folder / "compare.parquet") as file:
        pq.write_table(_tidy(found), file)
    with atomic_path(folder / "compare.json") as file:
        file.write_text(to_json(found, indent=2) + "\n")


def _tidy(found: Mapping[str, Any]) -> pa.Table:
    """Return one row for each arm, reference (null: the arm itself), metric and seed (null: all of them)."""
    columns = ("arm", "reference", "metric", "seed", "value", "low", "high", "relative", "minimum_effect")
    rows: list[tuple[Any, ...]] = []

    def add(arm: str, reference: str | None, metric: str, of: Mapping[str, Any]) -> None:
        relative = of.get("relative", {}).get("value")
        rows.append(
            (arm, reference, metric, None, of["value"], of["low"], of["high"], relative, of.get("minimum_effect"))
        )
        rows.extend((arm, reference, metric, int(s), v, None, None, None, None) for s, v in of.get("seeds", {}).items())

    for metric, of in found["start"].items():
        add("start", None, metric, of)
    for arm, one in found["arms"].items():
        for metric, of in one["metrics"].items():
            add(arm, None, metric, of)
    for arm, references in found["differences"].items():
        for reference, metrics in references.items():
            for metric, of in metrics.items():
                add(arm, reference, metric, of)
    kinds = [pa.string()] * 3 + [pa.int64()] + [pa.float64()] * 5
    arrays = [pa.array([row[k] for row in rows], kind) for k, kind in enumerate(kinds)]
    return pa.table(dict(zip(columns, arrays, strict=True)))
