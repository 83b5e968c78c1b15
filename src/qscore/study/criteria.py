"""Label-free criteria for choosing a checkpoint, each with the sign it has had from the start."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import kendalltau, rankdata, spearmanr

from qscore.metrics import Interval

__all__ = ["CRITERIA", "LEAST_FOR_INTERVAL", "Criterion", "correlations", "goodness", "regret"]

LEAST_FOR_INTERVAL = 5  # checkpoints
BATCH = 64  # resamples ranked at a time
ROUNDING = 1e-9


@dataclass(frozen=True)
class Criterion:
    """What a number says of a representation."""

    title: str
    better: str
    """Which values are taken for better, in words."""
    why: str
    """Why, with the source."""
    goodness: Callable[[float], float]
    """Higher is better."""


def _higher(value: float) -> float:
    return value


def _lower(value: float) -> float:
    return -value


def _near_one(value: float) -> float:
    return -abs(value - 1)


CRITERIA = {
    "rankme": Criterion(
        "RankMe",
        "higher",
        "more directions serve more tasks (Garrido et al., ICML 2023, made for this choice)",
        _higher,
    ),
    "alpha_req": Criterion(
        "alpha-ReQ", "near 1", "the spectrum of sensory cortex; 1 is best (Agrawal et al., NeurIPS 2022)", _near_one
    ),
    "nesum": Criterion("NESum", "higher", "less dominated by one eigenvalue (He, Ozay, ICML 2022)", _higher),
    "stable_rank": Criterion("stable rank", "higher", "energy in more than the strongest direction", _higher),
    "uniformity": Criterion("uniformity", "lower", "rows cover the sphere evenly (Wang, Isola, ICML 2020)", _lower),
    "normalized_std": Criterion(
        "std of normalised rows", "higher", "0 is collapse (Chen, He, CVPR 2021, section 4.1)", _higher
    ),
    "hoyer": Criterion("Hoyer sparsity", "higher", "well represented rows are sparse (Kalibhat et al., v1)", _higher),
    "q_over_sigma": Criterion(
        "mean Q / sigma", "higher", "high Q is well represented; over sigma, since scale means nothing", _higher
    ),
    "coverage": Criterion("coverage", "higher", "more rows have a discriminative feature at one epsilon", _higher),
    "dead": Criterion("dead features", "lower", "features that are never anything say nothing", _lower),
    "alignment": Criterion("alignment", "lower", "views of an image lie close (Wang, Isola, ICML 2020)", _lower),
}


def goodness(criterion: str, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return how good a criterion takes values for; higher is better, NaN where it is undefined."""
    judge = CRITERIA[criterion].goodness
    return np.array([judge(value) if math.isfinite(value) else math.nan for value in values])


def regret(good: Float[np.ndarray, " n"], accuracy: Float[np.ndarray, " n"]) -> float:
    """Return by how much the most accurate checkpoint beats the one that a criterion takes, 0 to 1.

    Of several that it takes for equally good the mean counts, as one of them is taken blindly.

    Examples
    --------
    >>> float(regret(np.array([1.0, 3.0, 2.0]), np.array([0.5, 0.75, 1.0])))
    0.25
    """
    known = ~np.isnan(good)
    if not known.any():
        return math.nan
    best = good[known] == good[known].max()
    return float(accuracy.max() - accuracy[known][best].mean())


def correlations(
    good: Float[np.ndarray, " n"], accuracy: Float[np.ndarray, " n"], *, resamples: int = 2000, seed: int = 0
) -> dict[str, Interval | None]:
    """Return Spearman's rho and Kendall's tau-b between goodness and accuracy over checkpoints.

    Parameters
    ----------
    good : ndarray of shape (n,)
        As `goodness` returns it; undefined ones are left out.
    accuracy : ndarray of shape (n,)
        Of the probe.
    resamples, seed : int
        Of the bootstrap over checkpoints; those in which one of the two is constant do not count.

    Returns
    -------
    dict
        ``spearman`` and ``kendall``; +1: the criterion orders checkpoints as the probe does. Bounds are NaN for fewer
        than 5 checkpoints, and where all resamples agree, as of a perfect order: that is no certainty. None where
        there is no order to speak of: fewer than 3, or all equal.
    """
    known = ~np.isnan(good)
    x, y = good[known], accuracy[known]
    if len(x) < 3 or (x == x[0]).all() or (y == y[0]).all():
        return {"spearman": None, "kendall": None}
    values = {"spearman": float(spearmanr(x, y).statistic), "kendall": float(kendalltau(x, y).statistic)}
    bounds = {name: (math.nan, math.nan) for name in values}
    if len(x) >= LEAST_FOR_INTERVAL:
        rng = np.random.default_rng(seed)
        drawn = rng.integers(0, len(x), (resamples, len(x)))
        for name, function in (("spearman", _spearman), ("kendall", _kendall)):
            found = np.concatenate(
                [function(x[part], y[part]) for part in np.array_split(drawn, max(1, resamples // BATCH))]
            )
            found = found[~np.isnan(found)]
            if len(found):
                low, high = np.quantile(found, [0.025, 0.975]).tolist()
                bounds[name] = (low, high) if high - low > ROUNDING else (math.nan, math.nan)
    return {name: Interval(value, *bounds[name]) for name, value in values.items()}


def _spearman(x: Float[np.ndarray, "b n"], y: Float[np.ndarray, "b n"]) -> Float[np.ndarray, " b"]:
    ranks = [rankdata(values, axis=1) for values in (x, y)]
    return _cosine(*(rank - rank.mean(axis=1, keepdims=True) for rank in ranks))


def _kendall(x: Float[np.ndarray, "b n"], y: Float[np.ndarray, "b n"]) -> Float[np.ndarray, " b"]:
    b, n = x.shape
    signs = [np.sign(values[:, :, None] - values[:, None, :]).reshape(b, n * n) for values in (x, y)]
    return _cosine(*signs)  # tau-b: pairs that agree less those that do not, over the root of both untied counts


def _cosine(x: Float[np.ndarray, "b m"], y: Float[np.ndarray, "b m"]) -> Float[np.ndarray, " b"]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1)))
