"""The numbers behind claims C3, C4, C9 and C10: means, paired differences and correlations, with 95 % intervals."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from qscore.explain.attributes import BACKGROUND, OBJECT, Carried
from qscore.metrics import Interval, bootstrap_interval, mean_interval, spearman

__all__ = [
    "Measure",
    "gap_measures",
    "improvement",
    "localisation_measures",
    "scatter",
    "where_features_look",
]

LEAST_IMAGES = 10  # of a point of the scatter


@dataclass(frozen=True)
class Measure:
    """One number with its 95 % bootstrap interval."""

    quantity: str
    """What: a column of ``explanations.parquet`` without the metric, two of them as ``a - b``, or as ``a ~ b``."""
    statistic: str
    """``mean``; ``correct - wrong``; ``spearman``; ``p95``, over the random sets, without interval; and of the first
    three, after minus before: ``change``, ``change of correct - wrong``, ``change of spearman``."""
    value: float
    low: float
    high: float
    n: int
    """Rows behind it: samples, or features where it is about these."""
    excluded: int
    """Rows without a value."""
    effect: float
    """Of a mean: over the standard deviation of its rows (Cohen's d of paired differences); NaN for all else."""


Columns = Mapping[str, Float[np.ndarray, " n"]]
Statistic = Callable[[np.ndarray], float]  # positions of rows, with repetitions, to a number


def localisation_measures(
    samples: Columns,
    q: Float[np.ndarray, " n"],
    correct: Float[np.ndarray, " n"],
    kinds: tuple[str, str],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Measure]:
    """Measure what C4 and C9 are about, of the IoU and of the first of two kinds of mask against the second.

    Differences are paired: a sample counts where both sides have a value. A *lift* is an IoU minus that of the random
    map on the same mask, since by chance alone a large mask has a larger IoU.

    Parameters
    ----------
    samples : mapping of str to ndarray of shape (n,)
        As `Located.samples`.
    q : ndarray of shape (n,)
        The samples' Q-Scores.
    correct : ndarray of shape (n,)
        1, 0, or NaN where it is not known.
    kinds : tuple of str
        Such as core and spurious.
    resamples, seed : int
        Of the bootstrap over samples.
    """
    columns = _named(samples, kinds)
    found = [_mean(name, values, resamples, seed) for name, values in _contrasts(columns, kinds).items()]
    for kind in kinds:
        inside = columns[f"{kind}_discriminative"]
        found.append(
            _of_rows(f"q_score ~ {kind}_discriminative", "spearman", _spearman(q, inside), inside, resamples, seed)
        )
        known = np.where(np.isnan(correct), np.nan, inside)
        found.append(
            _of_rows(f"{kind}_discriminative", "correct - wrong", _split(inside, correct), known, resamples, seed)
        )
    return found


def improvement(
    before: Columns,
    after: Columns,
    q: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]],
    correct: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]],
    kinds: tuple[str, str],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Measure]:
    """Measure how the numbers of C9 changed on the same images; only those with a value before and after count.

    Parameters
    ----------
    before, after : mapping of str to ndarray of shape (n,)
        As `Located.samples`, rows of the same images.
    q, correct : tuple of two ndarrays of shape (n,)
        Before and after.
    kinds : tuple of str
        Such as core and spurious.
    resamples, seed : int
        Of the bootstrap over samples.
    """
    tables = [_named(table, kinds) for table in (before, after)]
    contrasts = [_contrasts(table, kinds) for table in tables]
    found = [
        _mean(name, contrasts[1][name] - contrasts[0][name], resamples, seed, "change")
        for name in contrasts[0]
        if "outside" not in name and name.split("_")[-1] != "gaussian"
    ]
    for kind in kinds:
        name = f"{kind}_discriminative"
        pair = [table[name] for table in tables]
        known = np.flatnonzero(~np.isnan(pair[0] + pair[1]))
        rho = [_spearman(scores[known], values[known]) for scores, values in zip(q, pair, strict=True)]
        gap = [_split(values[known], right[known]) for right, values in zip(correct, pair, strict=True)]
        for quantity, what, (first, second) in (
            (f"q_score ~ {name}", "spearman", rho),
            (name, "correct - wrong", gap),
        ):
            change = _difference(first, second)
            found.append(_of_rows(quantity, f"change of {what}", change, pair[0][known], resamples, seed))
    return found


def gap_measures(
    carried: Carried, sets: Mapping[str, Bool[np.ndarray, " r"]], *, resamples: int = 2000, seed: int = 0
) -> list[Measure]:
    """Measure what C3 is about: the mutual-information gap of D, beside random sets and the most frequent features.

    From each feature's gap its mean under shuffles is taken. Rows are features: the bootstrap draws these.

    Parameters
    ----------
    carried : Carried
        Of r features; those without a gap are left out.
    sets : mapping of str to ndarray of bool, shape (r,)
        As `feature_sets` gives them.
    resamples, seed : int
        Of the bootstrap over features.
    """
    known = np.flatnonzero(~np.isnan(carried.gap))
    excess = (carried.gap - carried.chance)[known]
    draws = [members[known] for name, members in sets.items() if name.startswith("random")]
    weights = {name: sets[name][known].astype(np.float64) for name in ("discriminative", "frequent")}
    weights["random"] = np.sum(draws, axis=0, dtype=np.float64)

    def mean(name: str) -> Statistic:
        return lambda rows: _weighted(excess[rows], weights[name][rows])

    def row(quantity: str, statistic: Statistic) -> Measure:
        bounds = bootstrap_interval(statistic, len(known), resamples=resamples, seed=seed)
        n = int((weights["discriminative"] > 0).sum())
        return _measure(quantity, "mean", bounds, n, int(sets["discriminative"].sum()) - n)

    found = [row(f"gap_{name}", mean(name)) for name in weights]
    found += [
        row(f"gap_discriminative - gap_{name}", _difference(mean(name), mean("discriminative")))
        for name in ("random", "frequent")
    ]
    means = np.array([_weighted(excess, members) for members in draws])
    highest = float(np.nanquantile(means, 0.95)) if len(means) and not np.isnan(means).all() else np.nan
    return [*found, _measure("gap_random", "p95", Interval(highest, np.nan, np.nan), len(draws), 0)]


def scatter(
    carried: Carried,
    looks: Float[np.ndarray, " r"],
    n_images: Float[np.ndarray, " r"],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Measure | dict[str, list[Any]]]:
    """Compare what features carry with where they look.

    A feature carries the information of its best attribute of the object minus that of its best one of the background;
    and as ``carries_class`` that of the shape minus that of the background's texture: the class, and its spurious cue.

    Parameters
    ----------
    carried : Carried
        Of r features.
    looks : ndarray of shape (r,)
        Core IoU minus spurious IoU, means over the images in which a feature is highly active.
    n_images : ndarray of shape (r,)
        These images; features with fewer than 10 are left out.
    resamples, seed : int
        Of the bootstrap over features.

    Returns
    -------
    dict
        ``points`` (feature, carries, carries_class, looks), and a measure of each correlation.
    """
    information = carried.information
    object_, background = (np.max([information[name] for name in names], axis=0) for names in (OBJECT, BACKGROUND))
    axes = {"carries": object_ - background, "carries_class": information["shape"] - information["background"]}
    known = np.flatnonzero(~np.isnan(looks + carried.gap) & (n_images >= LEAST_IMAGES))
    points: dict[str, list[Any]] = {"feature": known.tolist(), "looks": looks[known].tolist()}
    found: dict[str, Measure | dict[str, list[Any]]] = {"points": points}
    for name, values in axes.items():
        points[name] = values[known].tolist()
        bounds = bootstrap_interval(_spearman(values[known], looks[known]), len(known), resamples=resamples, seed=seed)
        found[name] = _measure(f"{name} ~ looks", "spearman", bounds, len(known), len(looks) - len(known))
    return found


def where_features_look(features: Columns, kinds: tuple[str, str]) -> Float[np.ndarray, " r"]:
    """Return each feature's IoU with the first kind of mask minus that with the second."""
    first, second = kinds
    return np.asarray(features[f"{first}_iou"] - features[f"{second}_iou"])


def _named(samples: Columns, kinds: tuple[str, str]) -> dict[str, np.ndarray]:
    """Return the IoU of all sets, and their lifts above the random map."""
    columns = {}
    for kind in kinds:
        blind = samples[f"{kind}_iou_random_map"]
        for name in ("discriminative", "outside", "random", "frequent", "gaussian", "random_map"):
            columns[f"{kind}_{name}"] = samples[f"{kind}_iou_{name}"]
            columns[f"{kind}_lift_{name}"] = samples[f"{kind}_iou_{name}"] - blind
    return columns


def _contrasts(columns: Columns, kinds: tuple[str, str]) -> dict[str, np.ndarray]:
    """Return all that is averaged over samples."""
    first, second = kinds
    found = {f"{kind}_discriminative": columns[f"{kind}_discriminative"] for kind in kinds}

    def add(a: str, b: str) -> None:
        found[f"{a} - {b}"] = columns[a] - columns[b]

    for kind in kinds:
        for other in ("outside", "random", "frequent", "gaussian", "random_map"):
            add(f"{kind}_discriminative", f"{kind}_{other}")
        add(f"{kind}_outside", f"{kind}_random_map")
    for lift in ("", "lift_"):
        add(f"{first}_{lift}discriminative", f"{second}_{lift}discriminative")
    return found


def _mean(quantity: str, values: np.ndarray, resamples: int, seed: int, statistic: str = "mean") -> Measure:
    known = values[~np.isnan(values)]
    spread = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    effect = float(known.mean()) / spread if spread > 0 else float("nan")
    bounds = mean_interval(known, resamples=resamples, seed=seed)
    return _measure(quantity, statistic, bounds, len(known), len(values) - len(known), effect)


def _of_rows(quantity: str, what: str, statistic: Statistic, values: np.ndarray, resamples: int, seed: int) -> Measure:
    known = np.flatnonzero(~np.isnan(values))
    bounds = bootstrap_interval(lambda rows: statistic(known[rows]), len(known), resamples=resamples, seed=seed)
    return _measure(quantity, what, bounds, len(known), len(values) - len(known))


def _measure(
    quantity: str, statistic: str, bounds: Interval, n: int, excluded: int, effect: float = float("nan")
) -> Measure:
    return Measure(quantity, statistic, bounds.value, bounds.low, bounds.high, n, excluded, effect)


def _spearman(x: np.ndarray, y: np.ndarray) -> Statistic:
    return lambda rows: spearman(x[rows], y[rows])


def _split(values: np.ndarray, correct: np.ndarray) -> Statistic:
    """Return the mean of correct rows minus that of wrong ones; NaN where either are missing."""

    def statistic(rows: np.ndarray) -> float:
        outcome, drawn = correct[rows], values[rows]
        right, wrong = drawn[outcome == 1], drawn[outcome == 0]
        return float(right.mean() - wrong.mean()) if len(right) and len(wrong) else float("nan")

    return statistic


def _difference(first: Statistic, second: Statistic) -> Statistic:
    return lambda rows: second(rows) - first(rows)


def _weighted(values: np.ndarray, weights: np.ndarray) -> float:
    total = float(np.sum(weights))
    return float(values @ weights) / total if total else float("nan")
