"""Metrics of a whole representation that need no labels, from one pass over its rows."""

from qscore.metrics.covariance import Covariance
from qscore.metrics.intervals import Interval, bootstrap_interval, mean_interval, spearman
from qscore.metrics.rows import alignment, hoyer_sparsity, uniformity
from qscore.metrics.spectrum import alpha_req, nesum, rankme, stable_rank
from qscore.metrics.summary import RepresentationMetrics, representation_metrics

__all__ = [
    "Covariance",
    "Interval",
    "RepresentationMetrics",
    "alignment",
    "alpha_req",
    "bootstrap_interval",
    "hoyer_sparsity",
    "mean_interval",
    "nesum",
    "rankme",
    "representation_metrics",
    "spearman",
    "stable_rank",
    "uniformity",
]
